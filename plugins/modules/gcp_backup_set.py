#!/usr/bin/python
"""Ansible module gcp_backup_set."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_backup_set
short_description: Complete a backup set of an MLflow deployment
version_added: 0.1.0
description:
  - Adds the list of the artifacts as they are now to the dumps of a set, reads every file back, writes the manifest.
  - What has no manifest is not a set. A set that has one is left as it is, and nothing in a set is ever replaced.
  - Of secrets, the manifest has name, version and a salted, slow hash, from which a restore tells whether they changed.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.google_cloud
options:
  bucket:
    description: Bucket of the sets.
    type: str
    required: true
  name:
    description: Name of the set, the first part of the names of its objects.
    type: str
    required: true
  dumps:
    description: Names of the dumps, without the set's.
    type: list
    elements: str
    required: true
  artifacts_bucket:
    description: Bucket of the artifacts.
    type: str
    required: true
  artifacts_prefix:
    description: What the names of the artifacts begin with.
    type: str
    default: ""
  secrets:
    description: Secrets in Secret Manager, by the credential that each is on the server.
    type: dict
    required: true
  about:
    description: What else the manifest tells, C(mlflow), C(database) and C(begun) among it. Secrets do not belong here.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Complete a set whose dumps were exported before
  mlops.mlflow_gcp.gcp_backup_set:
    project: my-project
    bucket: my-project-mlflow-backups
    name: 20300101T020000Z
    dumps: [tracking.sql.gz, auth.sql.gz]
    artifacts_bucket: my-project-mlflow-artifacts
    secrets: {mlflow.flask-secret-key: mlflow-flask-secret-key}
    about:
      begun: "2030-01-01T02:00:00Z"
      mlflow: {version: 3.17.2, schemas: {tracking: 1a2b3c4d5e6f, auth: 6f5e4d3c2b1a}}
      database: {version: POSTGRES_17}
"""

RETURN = r"""
manifest:
  description: What was written, empty in check mode.
  returned: success
  type: dict
"""

import datetime

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.backup import WantedSet, complete
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run


def now() -> str:
    """Return the time, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "bucket": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "dumps": {"type": "list", "elements": "str", "required": True},
            "artifacts_bucket": {"type": "str", "required": True},
            "artifacts_prefix": {"type": "str", "default": ""},
            "secrets": {"type": "dict", "required": True, "no_log": False},
            "about": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    options = {key: module.params[key] for key in WantedSet.__dataclass_fields__}
    run(module, lambda cloud: complete(cloud, WantedSet(**options), now))


if __name__ == "__main__":
    main()
