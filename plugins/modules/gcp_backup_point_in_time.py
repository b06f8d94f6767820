#!/usr/bin/python
"""Ansible module gcp_backup_point_in_time."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_backup_point_in_time
short_description: Take a backup set of an MLflow deployment as of a moment of the past
version_added: 0.1.0
description:
  - Cloud SQL clones the instance as of the moment, by point-in-time recovery. Both databases are exported from the
    clone, and the list of artifacts has the generations that were live then. The rest is as
    M(mlops.mlflow_gcp.gcp_backup_set) has it.
  - The clone is removed at the end, whether it went well or not. What a run that was killed left, the next one removes
    first.
  - What cannot be recovered is refused before anything is made, all problems at once, in check mode too.
  - A run takes a set each time, named by the moment and by the time of the run.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.google_cloud
options:
  point_in_time:
    description: The moment, in RFC 3339, in UTC and whole seconds.
    type: str
    required: true
  bucket:
    description: Bucket of the sets.
    type: str
    required: true
  source_bucket:
    description: Bucket of the sets from which a restore was asked for. It has to be O(bucket), or empty.
    type: str
    default: ""
  set:
    description: The set that was asked for beside the moment. It has to be V(latest).
    type: str
    default: latest
  confirmed_set:
    description: The moment as it is in the set's name, for which databases that are not empty may be replaced.
    type: str
    default: ""
  occupied:
    description: Whether the databases hold anything.
    type: bool
    required: true
  incomplete_enabled:
    description: Whether a set is taken where the bucket of artifacts keeps no older versions.
    type: bool
    default: false
  instance:
    description: Cloud SQL instance.
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
  mlflow_version:
    description: The deployment's release of MLflow. It is what served then, if its schemas are those of then.
    type: str
    required: true
  schemas:
    description: The revision that this release needs of each database, as far as it is known.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Take a set as of noon
  mlops.mlflow_gcp.gcp_backup_point_in_time:
    project: my-project
    point_in_time: "2030-01-01T12:00:00Z"
    bucket: my-project-mlflow-backups
    occupied: true
    confirmed_set: 20300101T120000Z
    instance: mlflow
    databases: {tracking: mlflow, auth: mlflow_auth}
    user: mlflow-server@my-project.iam
    artifacts_bucket: my-project-mlflow-artifacts
    secrets: {mlflow.flask-secret-key: mlflow-flask-secret-key}
    mlflow_version: 3.17.2
"""

RETURN = r"""
manifest:
  description: What was written, empty in check mode.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.backup import TIMEOUT_SECONDS
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.backup_program import now
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.point_in_time import Asked, take_as_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import Session


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "point_in_time": {"type": "str", "required": True},
            "bucket": {"type": "str", "required": True},
            "source_bucket": {"type": "str", "default": ""},
            "set": {"type": "str", "default": "latest"},
            "confirmed_set": {"type": "str", "default": ""},
            "occupied": {"type": "bool", "required": True},
            "incomplete_enabled": {"type": "bool", "default": False},
            "instance": {"type": "str", "required": True},
            "databases": {"type": "dict", "required": True},
            "user": {"type": "str", "required": True},
            "artifacts_bucket": {"type": "str", "required": True},
            "artifacts_prefix": {"type": "str", "default": ""},
            "secrets": {"type": "dict", "required": True, "no_log": False},
            "mlflow_version": {"type": "str", "required": True},
            "schemas": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    given = {key: module.params[key] for key in Asked.__dataclass_fields__}
    asked = Asked(**{**given, "source_bucket": given["source_bucket"] or given["bucket"]})

    def step(cloud: Session) -> Json:
        cloud.timeout_seconds = TIMEOUT_SECONDS
        return take_as_of(cloud, asked, now)

    run(module, step)


if __name__ == "__main__":
    main()
