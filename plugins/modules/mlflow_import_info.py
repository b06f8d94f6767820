#!/usr/bin/python
"""Ansible module mlflow_import_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_import_info
short_description: See what an import into an MLflow server would bring
version_added: 0.1.0
description:
  - Judges the source, the paths and the source's login, and reports all problems at once.
  - Compares the source with the server, and returns what is not there yet, in batches for
    M(mlops.mlflow_gcp.mlflow_import).
  - Reads only. Opening a folder, MLflow adds the empty folders C(.trash) and C(models) where they are missing.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.mlflow_import
options:
  report_path:
    description: Where M(mlops.mlflow_gcp.mlflow_import_report) is to write; its folder has to be there.
    type: str
    required: true
attributes:
  check_mode:
    description: Reads only.
    support: full
  diff_mode:
    description: Reads only.
    support: none
"""

EXAMPLES = r"""
- name: See what is to be imported
  mlops.mlflow_gcp.mlflow_import_info:
    source: /home/ann/mlruns
    report_path: /home/ann/mlflow-import.json
    url: https://mlflow.example.com
    project: my-project
    admin_password_secret: mlflow-admin-password
  register: survey
"""

RETURN = r"""
batches:
  description: What is to be brought; each has a C(title).
  returned: success
  type: list
  elements: dict
  sample:
    - title: experiment churn, runs 1 to 50 of 950
      experiment_id: "3"
      run_ids: [6d7b1d2d2f1c4d9c8f5a1f0c3f0e9b1a]
totals:
  description: What the source holds, by kind.
  returned: success
  type: dict
  sample: {experiments: 4, runs: 1200, logged_models: 20, registered_models: 2, model_versions: 9}
pending:
  description: What of it is not in the deployment yet, by kind.
  returned: success
  type: dict
  sample: {experiments: 1, runs: 950, logged_models: 20, registered_models: 2, model_versions: 9}
left_out:
  description: What the source holds and no import brings.
  returned: success
  type: list
  elements: str
  sample: [30 traces, 2 deleted runs]
missing:
  description: What should come over and cannot, with the reason.
  returned: success
  type: list
  elements: dict
  sample:
    - what: experiment in the folder 7
      why: its meta.yaml is missing or damaged
problems:
  description: What is wrong with the options and the environment.
  returned: when there are any
  type: list
  elements: dict
  sample:
    - variable: platform_import_source
      value: "'/home/ann/mlruns'"
      problem: /home/ann/mlruns is not a folder on this machine
      fix: name one that is there
"""

import os

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.secret import read_version
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError, Session

try:
    from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import mlflow_import, preflight
    from mlflow.exceptions import MlflowException

    MISSING = None
except ImportError as error:
    MISSING = str(error)


def main() -> None:
    """Judge what was named, then compare."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "required": True},
            "artifact_dir": {"type": "str", "default": ""},
            "url": {"type": "str", "required": True},
            "project": {"type": "str", "required": True},
            # The name of the secret is no secret.
            "admin_password_secret": {"type": "str", "required": True, "no_log": False},
            "admin_username": {"type": "str", "default": "admin"},
            "report_path": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("mlflow"), exception=MISSING)
    options = module.params
    problems = mlflow_import.problems(
        options["source"], options["artifact_dir"], options["report_path"], options["url"], os.environ
    )
    if problems:
        module.fail_json(msg=preflight.report(problems), problems=[one.as_dict() for one in problems])
    run(module, lambda cloud: compare(cloud, options))


def compare(cloud: Session, options: Json) -> Json:
    """Return the survey; raises `CloudError`."""
    password = read_version(cloud, options["admin_password_secret"], "latest")
    try:
        source, target = mlflow_import.sides(options, password, os.environ)
        return {"changed": False, **mlflow_import.survey(source, target)}
    except (mlflow_import.ImportStoppedError, MlflowException, OSError) as error:
        stopped = f"{error}. Nothing was imported by this run. Run it again once that is mended"
        raise CloudError(stopped, "docs/failures.md#the-import-stopped") from error


if __name__ == "__main__":
    main()
