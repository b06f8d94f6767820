#!/usr/bin/python
"""Ansible module mlflow_import."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_import
short_description: Bring a batch of runs, logged models or model versions into an MLflow server
version_added: 0.1.0
description:
  - Brings one of the batches that M(mlops.mlflow_gcp.mlflow_import_info) returned, with the real MLflow client.
    A loop over them shows how far an import is.
  - What is brought is marked with tags, C(import.source_run_id), C(import.source_model_id) or
    C(import.source_version), and C(import.complete). What is complete is not brought again,
    and what is not is gone on with.
  - What cannot be brought stops nothing, and is in the result.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.mlflow_import
options:
  batch:
    description: The batch.
    type: dict
    required: true
    suboptions:
      title:
        description: What it is, for messages.
        type: str
        required: true
      experiment_id:
        description: The experiment's id in the source.
        type: str
      run_ids:
        description: Runs, by their ids in the source.
        type: list
        elements: str
        default: []
      model_ids:
        description: Logged models, by their ids in the source.
        type: list
        elements: str
        default: []
      registered_model:
        description: Name of a registered model.
        type: str
      versions:
        description: Numbers of its versions in the source.
        type: list
        elements: int
        default: []
attributes:
  check_mode:
    description: Reads and writes nothing, and says that it would change something.
    support: full
  diff_mode:
    description: The result says what came over.
    support: none
"""

EXAMPLES = r"""
- name: Import
  mlops.mlflow_gcp.mlflow_import:
    source: /home/ann/mlruns
    batch: "{{ item }}"
    url: https://mlflow.example.com
    project: my-project
    admin_password_secret: mlflow-admin-password
  loop: "{{ survey.batches }}"
  loop_control:
    label: "{{ item.title }}"
"""

RETURN = r"""
outcome:
  description: What came over, by kind, and what did not, with the reason.
  returned: always
  type: dict
  sample:
    title: experiment churn, runs 1 to 50 of 950
    imported: {runs: 49, params: 200, metrics: 12000, tags: 300, artifacts: 98}
    missing:
      - what: artifact plots/roc.png of run 6d7b1d2d2f1c4d9c8f5a1f0c3f0e9b1a
        why: "FileNotFoundError: [Errno 2] No such file or directory"
    notes: []
"""

import os

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.secret import read_version
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError, Session

try:
    from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import mlflow_import
    from mlflow.exceptions import MlflowException

    MISSING = None
except ImportError as error:
    MISSING = str(error)


def main() -> None:
    """Bring the batch unless in check mode."""
    batch = {
        "title": {"type": "str", "required": True},
        "experiment_id": {"type": "str"},
        "run_ids": {"type": "list", "elements": "str", "default": []},
        "model_ids": {"type": "list", "elements": "str", "default": []},
        "registered_model": {"type": "str"},
        "versions": {"type": "list", "elements": "int", "default": []},
    }
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "required": True},
            "artifact_dir": {"type": "str", "default": ""},
            "url": {"type": "str", "required": True},
            "project": {"type": "str", "required": True},
            # The name of the secret is no secret.
            "admin_password_secret": {"type": "str", "required": True, "no_log": False},
            "admin_username": {"type": "str", "default": "admin"},
            "batch": {"type": "dict", "required": True, "options": batch},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("mlflow"), exception=MISSING)
    if module.check_mode:
        module.exit_json(changed=True, outcome=outcome(module.params["batch"]["title"]))
    run(module, lambda cloud: bring(cloud, module.params))


def bring(cloud: Session, options: Json) -> Json:
    """Return what came of the batch. What stops it is in there too, so that the others are still tried."""
    title = options["batch"]["title"]
    try:
        password = read_version(cloud, options["admin_password_secret"], "latest")
        source, target = mlflow_import.sides(options, password, os.environ)
        result = mlflow_import.Importer(source, target).bring(options["batch"])
    except (CloudError, MlflowException, OSError) as error:
        result = outcome(title, {"what": title, "why": mlflow_import.reason(error)})
    return {"changed": bool(result["imported"]), "outcome": result}


def outcome(title: str, *missing: Json) -> Json:
    """Return the outcome of a batch of which nothing came over."""
    return {"title": title, "imported": {}, "missing": list(missing), "notes": []}


if __name__ == "__main__":
    main()
