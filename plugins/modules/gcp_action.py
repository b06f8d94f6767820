#!/usr/bin/python
"""Ansible module gcp_action."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_action
short_description: Let Google Cloud do something once
version_added: 0.1.0
description:
  - Calls a custom verb of Google's REST API, such as a backup, a clone, a failover, a promotion or a restart, and waits
    for it to end.
  - With O(unless) it is done only where its effect is not there yet. Without it, it is done on every run.
  - Verb and body are checked against Google's discovery documents before anything is sent. What
    M(mlops.mlflow_gcp.gcp_resource) and M(mlops.mlflow_gcp.gcp_iam) do is left to them.
  - What is under way on a Cloud SQL instance, left by an interrupted run for instance, is waited for first, and then
    O(unless) is asked again.
  - A request without an answer may have been carried out, so it is never sent a second time. When O(unless) holds
    afterwards it counts as done, else the module fails and says so.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.google_cloud
options:
  kind:
    description: API and collection, as in Google's REST reference.
    type: str
    required: true
    choices: &kinds
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
  action:
    description:
      - Verb, as in Google's REST reference, C(failover) for instance.
      - A wrong one is answered with the list of those that the kind has.
    type: str
    required: true
  name:
    description: Name of the resource, without a path. Left out where the verb is one of the collection.
    type: str
  location:
    description: Region or zone, for the kinds that have one in their URL.
    type: str
  parent:
    description: Instance of a V(sqladmin.backupRuns) or V(sqladmin.databases).
    type: str
  body:
    description: Body of the request, spelled as in Google's REST reference. Secrets are refused.
    type: dict
    default: {}
  unless:
    description:
      - Nothing is done when there is such a resource already. It should describe what the action brings about, or the
        next run repeats it, of which the module warns.
    type: dict
    suboptions:
      kind:
        description: Kind of that resource. By default the one the action is on, with its name and place.
        type: str
        choices: *kinds
      name:
        description: Its name. Without one, any of its kind will do.
        type: str
      location:
        description: Its region or zone.
        type: str
      parent:
        description: What it belongs to.
        type: str
      fields:
        description: Values that it must have, spelled as in Google's REST reference. Any resource will do by default.
        type: dict
        default: {}
      state:
        description: With V(absent), nothing is done when there is no such resource.
        type: str
        choices: [present, absent]
        default: present
  timeout_seconds:
    description: How long to wait for each of Google's operations.
    type: int
    default: 1800
seealso:
  - module: mlops.mlflow_gcp.gcp_resource
  - module: mlops.mlflow_gcp.gcp_resource_info
"""

EXAMPLES = r"""
- name: Back the database up before the upgrade, once
  mlops.mlflow_gcp.gcp_action:
    project: my-project
    kind: sqladmin.backupRuns
    parent: mlflow
    action: insert
    body: {description: before MLflow 3.18}
    unless:
      fields: {description: before MLflow 3.18, status: SUCCESSFUL}
  register: backup

- name: Show the identifier of the backup
  ansible.builtin.debug:
    msg: "{{ backup.answer.backupContext.backupId }}"
  when: backup is changed

- name: Clone the database as it was at noon
  mlops.mlflow_gcp.gcp_action:
    project: my-project
    kind: sqladmin.instances
    name: mlflow
    action: clone
    body:
      cloneContext: {destinationInstanceName: mlflow-noon, pointInTime: "2030-01-01T12:00:00Z"}
    unless: {name: mlflow-noon}

- name: Let the database serve from another zone
  mlops.mlflow_gcp.gcp_action:
    project: my-project
    kind: sqladmin.instances
    name: mlflow
    action: failover
    unless:
      fields: {gceZone: europe-west1-c}

- name: Remove a backup
  mlops.mlflow_gcp.gcp_action:
    project: my-project
    kind: sqladmin.backupRuns
    parent: mlflow
    name: "1700000000000"
    action: delete
    unless: {state: absent}
"""

RETURN = r"""
changes:
  description: What was done, or in check mode would be, in a line.
  returned: success
  type: list
  elements: str
  sample: ["failover sqladmin.instances mlflow: gceZone"]
differences:
  description: What O(unless) lacked, with the value before and after, and the body of the request.
  returned: success
  type: list
  elements: dict
  sample: [{field: gceZone, before: europe-west1-b, after: europe-west1-c}]
answer:
  description:
    - What Google answered, the finished operation where there is one. Secrets are masked.
    - V(null) when nothing was done; empty when the effect is there but the answer was lost.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.action import WantedAction, do
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import READABLE
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run


def main() -> None:
    """Run the module."""
    place = {"name": {"type": "str"}, "location": {"type": "str"}, "parent": {"type": "str"}}
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "kind": {"type": "str", "required": True, "choices": sorted(READABLE)},
            "action": {"type": "str", "required": True},
            **place,
            "body": {"type": "dict", "default": {}},
            "unless": {
                "type": "dict",
                "options": {
                    "kind": {"type": "str", "choices": sorted(READABLE)},
                    **place,
                    "fields": {"type": "dict", "default": {}},
                    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                },
            },
            "timeout_seconds": {"type": "int", "default": 1800},
        },
        supports_check_mode=True,
    )
    options = {key: module.params[key] for key in WantedAction.__dataclass_fields__}
    run(module, lambda cloud: do(cloud, WantedAction(**options)))


if __name__ == "__main__":
    main()
