#!/usr/bin/python
"""Ansible module gcp_resource_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_resource_info
short_description: Read Google Cloud resources
version_added: 0.1.0
description:
  - Returns one resource, or all of a kind, as Google's REST API gives them.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.google_cloud
options:
  kind:
    description: API and collection, as in Google's REST reference.
    type: str
    required: true
    choices:
      - bigquery.datasets
      - compute.addresses
      - compute.disks
      - compute.firewalls
      - compute.forwardingRules
      - compute.globalAddresses
      - compute.instances
      - compute.networks
      - compute.resourcePolicies
      - compute.routers
      - compute.snapshots
      - compute.subnetworks
      - dns.managedZones
      - dns.resourceRecordSets
      - iam.roles
      - iam.serviceAccounts
      - logging.metrics
      - logging.sinks
      - monitoring.alertPolicies
      - monitoring.dashboards
      - monitoring.notificationChannels
      - monitoring.uptimeCheckConfigs
      - secretmanager.secrets
      - servicenetworking.connections
      - serviceusage.services
      - sqladmin.backupRuns
      - sqladmin.databases
      - sqladmin.instances
      - storage.buckets
  name:
    description: Name of the resource, as in M(mlops.mlflow_gcp.gcp_resource). Without it, all of the kind are returned.
    type: str
  location:
    description: Region or zone, for the kinds that have one in their URL.
    type: str
  parent:
    description:
      - Instance of a V(sqladmin.databases) or V(sqladmin.backupRuns), network of a
        V(servicenetworking.connections), zone of a V(dns.resourceRecordSets).
    type: str
seealso:
  - module: mlops.mlflow_gcp.gcp_resource
"""

EXAMPLES = r"""
- name: Read the address of the deployment
  mlops.mlflow_gcp.gcp_resource_info:
    project: my-project
    kind: compute.addresses
    location: europe-west1
    name: mlflow
  register: address

- name: Show it
  ansible.builtin.debug:
    msg: "{{ address.resources | map(attribute='address') | first | default('not reserved yet') }}"
"""

RETURN = r"""
resources:
  description: The resources found, an empty list when there is none. Secrets are masked.
  returned: success
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import READABLE
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import find


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "kind": {"type": "str", "required": True, "choices": sorted(READABLE)},
            "name": {"type": "str"},
            "location": {"type": "str"},
            "parent": {"type": "str"},
        },
        supports_check_mode=True,
    )
    wanted = {option: module.params[option] for option in ("kind", "name", "location", "parent")}
    run(module, lambda cloud: {"changed": False, "resources": find(cloud, **wanted)})


if __name__ == "__main__":
    main()
