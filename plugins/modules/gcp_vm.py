#!/usr/bin/python
"""Ansible module gcp_vm."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_vm
short_description: Bring a virtual machine to a size, and let it run
version_added: 0.1.0
description:
  - Changes what M(mlops.mlflow_gcp.gcp_resource) cannot, since it takes more than one request, the machine type and the
    size of the boot disk, and starts a machine that is stopped.
  - A machine that does not exist is left to M(mlops.mlflow_gcp.gcp_resource).
  - A disk grows while the machine runs and never shrinks; the file system takes the new space at the next boot.
  - What an interrupted run left stopped is started by the next one.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.google_cloud
requirements:
  - google-cloud-compute
options:
  zone:
    description: Zone of the machine.
    type: str
    required: true
  name:
    description: Name of the machine.
    type: str
    required: true
  machine_type:
    description: Name of the machine type, without a path.
    type: str
    required: true
  disk_size_gib:
    description: Size that the boot disk has at least, in GiB.
    type: int
    required: true
  allow_stopping:
    description: Whether a running machine may be stopped for a minute or two to change its machine type.
    type: bool
    default: false
  timeout_seconds:
    description: How long to wait for each of Google's operations.
    type: int
    default: 600
seealso:
  - module: mlops.mlflow_gcp.gcp_resource
"""

EXAMPLES = r"""
- name: Give the server four processors
  mlops.mlflow_gcp.gcp_vm:
    project: my-project
    zone: europe-west1-b
    name: mlflow-1
    machine_type: e2-standard-4
    disk_size_gib: 100
    allow_stopping: true
"""

RETURN = r"""
changes:
  description: What was done, or in check mode would be, in a line.
  returned: success
  type: list
  elements: str
  sample: ["update compute.instances mlflow-1: machineType"]
differences:
  description: Fields that differed, with the value before and after.
  returned: success
  type: list
  elements: dict
  sample: [{field: machineType, before: e2-standard-2, after: e2-standard-4}]
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.vm import MISSING_LIBRARY, WantedVm, ensure_vm


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "zone": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "machine_type": {"type": "str", "required": True},
            "disk_size_gib": {"type": "int", "required": True},
            "allow_stopping": {"type": "bool", "default": False},
            "timeout_seconds": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    if MISSING_LIBRARY:
        module.fail_json(msg=missing_required_lib(MISSING_LIBRARY))
    options = {key: module.params[key] for key in WantedVm.__dataclass_fields__}
    run(module, lambda cloud: ensure_vm(cloud, WantedVm(**options)))


if __name__ == "__main__":
    main()
