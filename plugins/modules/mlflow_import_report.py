#!/usr/bin/python
"""Ansible module mlflow_import_report."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_import_report
short_description: Write what an import brought, what it did not, and why
version_added: 0.1.0
description:
  - Puts together what M(mlops.mlflow_gcp.mlflow_import_info) and each M(mlops.mlflow_gcp.mlflow_import) returned, as
    text and as a JSON file. The file is a result like any other, and no change.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
options:
  survey:
    description: The result of M(mlops.mlflow_gcp.mlflow_import_info).
    type: dict
    required: true
  outcomes:
    description: The C(outcome) of each M(mlops.mlflow_gcp.mlflow_import).
    type: list
    elements: dict
    required: true
  path:
    description: The file.
    type: path
    required: true
  source:
    description: What was imported from.
    type: str
    required: true
  url:
    description: The server that was imported into.
    type: str
    required: true
attributes:
  check_mode:
    description: Writes no file.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: Write the report
  mlops.mlflow_gcp.mlflow_import_report:
    survey: "{{ survey }}"
    outcomes: "{{ imports.results | map(attribute='outcome') }}"
    path: /home/ann/mlflow-import.json
    source: /home/ann/mlruns
    url: https://mlflow.example.com
"""

RETURN = r"""
text:
  description: The report for a terminal.
  returned: success
  type: str
  sample: "Came over: 49 runs. There before: 2 experiments."
missing:
  description: What did not come over, with the reason.
  returned: success
  type: list
  elements: dict
  sample:
    - what: artifact plots/roc.png of run 6d7b1d2d2f1c4d9c8f5a1f0c3f0e9b1a
      why: "FileNotFoundError: [Errno 2] No such file or directory"
path:
  description: The file, whole.
  returned: success
  type: str
  sample: /home/ann/mlflow-import.json
"""

import datetime
import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import mlflow_import

    MISSING = None
except ImportError as error:
    MISSING = str(error)


def main() -> None:
    """Write the report."""
    module = AnsibleModule(
        argument_spec={
            "survey": {"type": "dict", "required": True},
            "outcomes": {"type": "list", "elements": "dict", "required": True},
            "path": {"type": "path", "required": True},
            "source": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("mlflow"), exception=MISSING)
    options, path = module.params, Path(module.params["path"])
    report = mlflow_import.summary(options["survey"], options["outcomes"], foretold=module.check_mode)
    text = report.pop("text")
    if not module.check_mode:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        content = {"source": options["source"], "url": options["url"], "finished": now, **report}
        try:
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            more = "docs/failures.md#something-did-not-come-over"
            module.fail_json(msg=f"The report cannot be written: {error}. It is:\n{text}\nMore: {more}")
    module.exit_json(changed=False, text=text, missing=report["missing"], path=str(path))


if __name__ == "__main__":
    main()
