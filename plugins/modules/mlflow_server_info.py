#!/usr/bin/python
"""Ansible module mlflow_server_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_server_info
short_description: Read what a server of the deployment says about itself
version_added: 0.1.0
description:
  - Runs on the server, as root. Reads units, versions, disk, memory, pending updates, and the size and connections of
    the database that the live MLflow uses.
  - It does not fail on what is broken, a part that cannot be read says why.
author: MLOps (@mlops)
options:
  proxy_readiness_url:
    description: Readiness page of the Cloud SQL Auth Proxy on this server.
    type: str
    default: http://127.0.0.1:9090/readiness
attributes:
  check_mode:
    description: Reads only.
    support: full
  diff_mode:
    description: Reads only.
    support: none
"""

EXAMPLES = r"""
- name: Ask the server
  mlops.mlflow_gcp.mlflow_server_info:
  become: true
  register: server
"""

RETURN = r"""
server:
  description: Every part by name; one that could not be read is a dictionary with the key C(error).
  returned: success
  type: dict
  sample:
    generations: {live: mlflow-3.17.2-fa71f5f013, previous: ""}
    restoring: ""
    database: {size_bytes: 9000000, connections: 9, max_connections: 100}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import server


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"proxy_readiness_url": {"type": "str", "default": "http://127.0.0.1:9090/readiness"}},
        supports_check_mode=True,
    )
    module.exit_json(changed=False, server=server.read(module.params["proxy_readiness_url"]))


if __name__ == "__main__":
    main()
