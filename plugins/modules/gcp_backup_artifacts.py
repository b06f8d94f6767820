#!/usr/bin/python
"""Ansible module gcp_backup_artifacts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_backup_artifacts
short_description: Bring artifacts back to the moment of a backup set
version_added: 0.1.0
description:
  - Objects that were deleted or replaced since the set was made are copied back from the generation that the set names,
    as long as the bucket keeps it.
  - What was made since is left, and counted.
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
    description: Name of the set.
    type: str
    required: true
  artifacts_bucket:
    description: Bucket to bring them back to; the one they are from is in the set.
    type: str
    required: true
  artifacts_prefix:
    description: What the names of the artifacts there begin with.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Say what is gone for good
  mlops.mlflow_gcp.gcp_backup_artifacts:
    project: my-project
    bucket: my-project-mlflow-backups
    name: 20300101T020000Z
    artifacts_bucket: my-project-mlflow-artifacts
  check_mode: true
  register: artifacts
  failed_when: artifacts.lost | length > 0
"""

RETURN = r"""
kept:
  description: How many are as they were.
  returned: success
  type: int
copied:
  description: How many were copied back, or in check mode would be.
  returned: success
  type: int
newer:
  description: How many are there that the set does not know.
  returned: success
  type: int
lost:
  description: Names of those whose generation is nowhere any more.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.backup import bring_artifacts, manifest_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "bucket": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "artifacts_bucket": {"type": "str", "required": True},
            "artifacts_prefix": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    bucket, name, here, prefix = (
        module.params[key] for key in ("bucket", "name", "artifacts_bucket", "artifacts_prefix")
    )
    run(module, lambda cloud: bring_artifacts(cloud, bucket, manifest_of(cloud, bucket, name), here, prefix))


if __name__ == "__main__":
    main()
