#!/usr/bin/python
"""Ansible module gcp_backup_set_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_backup_set_info
short_description: Read a backup set back, and tell whether it can be restored
version_added: 0.1.0
description:
  - Reads every file of a set whole, and compares it with the manifest.
  - With O(target) it also tells why the set must not be restored to that deployment. All problems are returned at once.
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
    description: Name of the set; V(latest) is the newest that has a manifest.
    type: str
    default: latest
  version:
    description: With O(name=latest), the newest set of this release of MLflow; empty for any.
    type: str
    default: ""
  target:
    description: The deployment that the set is to be restored to.
    type: dict
    suboptions:
      database_version:
        description: Its database engine, in Google's spelling.
        type: str
        required: true
      user:
        description: As whom its server logs in, which must own PostgreSQL's dumps; empty where they are given to it.
        type: str
        required: true
      mlflow_version:
        description: Its release of MLflow; empty where that is chosen by the set.
        type: str
        required: true
      schemas:
        description: The revision that this release needs of each database, as far as it is known.
        type: dict
        default: {}
      occupied:
        description: Whether its databases hold anything.
        type: bool
        required: true
      confirmed_set:
        description: Name of the set for which they may be replaced all the same.
        type: str
        default: ""
      secrets:
        description: Its secrets in Secret Manager, by the credential that each is on the server.
        type: dict
        required: true
      changed_secrets:
        description: Credentials that may be others than in the set.
        type: list
        elements: str
        default: []
      databases:
        description: Names of its databases, V(tracking) and V(auth), which those that dumps of MySQL name must be.
        type: dict
        required: true
  rows:
    description: Rows of its databases by dump and table, to be compared with those of the dumps and nothing else.
    type: dict
  migrated:
    description: Whether the schema has moved since, so that O(rows) may have other tables, and more rows.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: See whether the newest set is whole
  mlops.mlflow_gcp.gcp_backup_set_info:
    project: my-project
    bucket: my-project-mlflow-backups
  register: newest
  failed_when: newest.problems | length > 0
"""

RETURN = r"""
manifest:
  description: The set's manifest.
  returned: success
  type: dict
problems:
  description: What is wrong with the set, or speaks against restoring it.
  returned: success
  type: list
  elements: str
  sample: ["20300101T020000Z/auth.sql.gz: is not there any more"]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.backup import Target, examine
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run

TARGET: dict[str, Any] = {
    "database_version": {"type": "str", "required": True},
    "user": {"type": "str", "required": True},
    "mlflow_version": {"type": "str", "required": True},
    "schemas": {"type": "dict", "default": {}},
    "occupied": {"type": "bool", "required": True},
    "confirmed_set": {"type": "str", "default": ""},
    "secrets": {"type": "dict", "required": True, "no_log": False},
    "changed_secrets": {"type": "list", "elements": "str", "default": [], "no_log": False},
    "databases": {"type": "dict", "required": True},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "bucket": {"type": "str", "required": True},
            "name": {"type": "str", "default": "latest"},
            "version": {"type": "str", "default": ""},
            "target": {"type": "dict", "options": TARGET},
            "rows": {"type": "dict"},
            "migrated": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    asked = module.params
    target = Target(**asked["target"]) if asked["target"] else None
    place = (asked["bucket"], asked["name"])
    options = {"migrated": asked["migrated"], "version": asked["version"]}
    run(module, lambda cloud: examine(cloud, *place, target, asked["rows"], **options))


if __name__ == "__main__":
    main()
