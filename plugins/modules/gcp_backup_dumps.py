#!/usr/bin/python
"""Ansible module gcp_backup_dumps."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_backup_dumps
short_description: Give the dumps of a backup set to another database user
version_added: 0.1.0
description:
  - A dump of PostgreSQL says which user owns what is in it, and cannot be imported where there is no such user. Both
    dumps of a set are written once more, with another owner, into another bucket. The set stays as it is.
  - They pass through a temporary file on the control host.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.google_cloud
options:
  bucket:
    description: Bucket of the set.
    type: str
    required: true
  name:
    description: Name of the set.
    type: str
    required: true
  destination_bucket:
    description: Bucket to write to, below the name of the set and of the user.
    type: str
    required: true
  user:
    description: Database user to give them to.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Give another deployment's dumps to the own user
  mlops.mlflow_gcp.gcp_backup_dumps:
    project: my-project
    bucket: other-project-mlflow-backups
    name: 20300101T020000Z
    destination_bucket: my-project-mlflow-backups
    user: mlflow-server@my-project.iam
  register: given
"""

RETURN = r"""
dumps:
  description: Addresses of the dumps, by database.
  returned: success
  type: dict
  sample:
    tracking: gs://my-project-mlflow-backups/20300101T020000Z-for-mlflow-server@my-project.iam/tracking.sql.gz
    auth: gs://my-project-mlflow-backups/20300101T020000Z-for-mlflow-server@my-project.iam/auth.sql.gz
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.backup import give, manifest_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "bucket": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "destination_bucket": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    bucket, name, here, user = (module.params[key] for key in ("bucket", "name", "destination_bucket", "user"))
    run(module, lambda cloud: give(cloud, bucket, manifest_of(cloud, bucket, name), here, user))


if __name__ == "__main__":
    main()
