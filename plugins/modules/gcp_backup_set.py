#!/usr/bin/python
"""Ansible module gcp_backup_set."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_backup_set
short_description: Take a backup set of an MLflow deployment
version_added: 0.1.0
description:
  - Exports both databases by Cloud SQL, adds the list of the artifacts as they are then, reads every file back, and
    writes the manifest. The set is named by the time in UTC at which it was begun.
  - What has no manifest is not a set. A run takes a set each time, and nothing in a set is ever replaced.
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
  instance:
    description: Cloud SQL instance, whose own account may write to the bucket.
    type: str
    required: true
  databases:
    description: Names of both databases, as C(tracking) and C(auth).
    type: dict
    required: true
  user:
    description: As whom MLflow logs in to the databases.
    type: str
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
  mlflow:
    description: What serves, by C(version) and C(lock_sha256).
    type: dict
    required: true
  certificate:
    description: The server's certificate, by C(sha256) and C(not_after).
    type: dict
    required: true
  instance_backup:
    description: Whether the instance is backed up as well, which is kept until somebody deletes it.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Take a set
  mlops.mlflow_gcp.gcp_backup_set:
    project: my-project
    bucket: my-project-mlflow-backups
    instance: mlflow
    databases: {tracking: mlflow, auth: mlflow_auth}
    user: mlflow-server@my-project.iam
    artifacts_bucket: my-project-mlflow-artifacts
    secrets: {mlflow.flask-secret-key: mlflow-flask-secret-key}
    mlflow: {version: 3.17.2}
    certificate: {}
"""

RETURN = r"""
manifest:
  description: What was written, empty in check mode.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.backup import TIMEOUT_SECONDS, Deployment, take
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.backup_program import now
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import Session


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "bucket": {"type": "str", "required": True},
            "instance": {"type": "str", "required": True},
            "databases": {"type": "dict", "required": True},
            "user": {"type": "str", "required": True},
            "artifacts_bucket": {"type": "str", "required": True},
            "artifacts_prefix": {"type": "str", "default": ""},
            "secrets": {"type": "dict", "required": True, "no_log": False},
            "mlflow": {"type": "dict", "required": True},
            "certificate": {"type": "dict", "required": True},
            "instance_backup": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    source = Deployment(**{key: module.params[key] for key in Deployment.__dataclass_fields__})

    def step(cloud: Session) -> Json:
        cloud.timeout_seconds = TIMEOUT_SECONDS
        return take(cloud, source, now)

    run(module, step)


if __name__ == "__main__":
    main()
