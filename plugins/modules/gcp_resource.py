#!/usr/bin/python
"""Ansible module gcp_resource."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_resource
short_description: Bring Google Cloud resources to a stated shape
version_added: 0.1.0
description:
  - Creates, changes or deletes any resource of the supported kinds, one or a batch in a single task.
  - Field names, types and enum values are those of Google's REST API and are checked against Google's discovery
    documents before anything is sent; in a batch, all members are checked first.
  - Mappings are compared as subsets, fields left out are left alone; lists are compared whole.
    A V(null) stands for an unset field.
  - A field that Google cannot change in place fails and is named. Nothing is ever deleted and created again.
  - What is protected against deletion in the cloud is not deleted, whatever the body says.
  - Members of a batch that refer to each other by link, parent or service account are ordered; the others go side by
    side. When one fails, those that do not depend on it are finished, then the module fails with every message.
  - C($(ref.<kind>/<name>:<field>\)) in a text of a body or of O(policies) is a field of another member, for what Google
    names itself; the member is made first. C(id) is the last part of the name that Google assigned.
  - Once all resources are there, O(sql_users) and O(policies) are brought to what is wanted. One task does it all, as
    starting a module takes longer than all that it reads.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.google_cloud
  - mlops.mlflow_gcp.policies
options:
  resources:
    description: Batch of resources. Mutually exclusive with O(kind).
    type: list
    elements: dict
    suboptions: &resource
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
          - sqladmin.databases
          - sqladmin.instances
          - storage.buckets
      name:
        description:
          - Name of the resource, without a path.
          - For V(iam.serviceAccounts) the account ID, for V(serviceusage.services) and
            V(servicenetworking.connections) the host name of the service, for V(dns.resourceRecordSets)
            C(<domain>./<type>).
          - Google names V(monitoring.alertPolicies), V(monitoring.notificationChannels) and
            V(monitoring.uptimeCheckConfigs) itself. They are found by the user label C(ansible-name), which is written
            with this name; when two carry it, the module fails and names both.
        type: str
        required: true
      location:
        description: Region or zone, for the kinds that have one in their URL.
        type: str
      parent:
        description:
          - Instance of a V(sqladmin.databases), network of a V(servicenetworking.connections), zone of a
            V(dns.resourceRecordSets).
        type: str
      body:
        description:
          - Wanted fields, spelled as in Google's REST reference.
          - Links may be partial, C(projects/<project>/global/networks/<name>).
          - C(machineType) of a V(compute.instances) and C(sizeGb) of a V(compute.disks) count when they are made, and
            are not compared afterwards; M(mlops.mlflow_gcp.gcp_vm) changes them.
          - C(natIP) of a V(compute.instances) and C(IPAddress) of a V(compute.forwardingRules) may be the link of an
            address.
        type: dict
        default: {}
      sensitive_body:
        description:
          - Secret fields, C(rootPassword) for instance. Sent when the resource is created, never compared, logged
            or returned.
        type: dict
      state:
        description: Whether the resource exists. For V(serviceusage.services), whether the service is enabled.
        type: str
        choices: [present, absent]
        default: present
      delete_contents:
        description:
          - Whether a V(storage.buckets) that is to be absent is deleted with every version of every object in it, a
            V(bigquery.datasets) with its tables, a V(dns.managedZones) with its record sets.
          - Without it, what is not empty fails.
        type: bool
        default: false
  kind:
    description: See O(resources[].kind).
    type: str
    choices: *kinds
  name:
    description: See O(resources[].name).
    type: str
  location:
    description: See O(resources[].location).
    type: str
  parent:
    description: See O(resources[].parent).
    type: str
  body:
    description: See O(resources[].body).
    type: dict
    default: {}
  sensitive_body:
    description: See O(resources[].sensitive_body).
    type: dict
  state:
    description: See O(resources[].state).
    type: str
    choices: [present, absent]
    default: present
  delete_contents:
    description: See O(resources[].delete_contents).
    type: bool
    default: false
  sql_users:
    description: Users of a Cloud SQL instance, as M(mlops.mlflow_gcp.gcp_sql_user) keeps them.
    type: dict
    suboptions:
      instance:
        description: Name of the Cloud SQL instance.
        type: str
        required: true
      engine:
        description: The instance's engine.
        type: str
        choices: [POSTGRES, MYSQL]
        default: POSTGRES
      users:
        description: The users; of each suboption M(mlops.mlflow_gcp.gcp_sql_user) tells more.
        type: list
        elements: dict
        required: true
        suboptions:
          name:
            description: Name of the user, the e-mail address for an IAM user.
            type: str
            required: true
          type:
            description: How the user signs in.
            type: str
            choices: [BUILT_IN, CLOUD_IAM_SERVICE_ACCOUNT, CLOUD_IAM_USER]
            default: BUILT_IN
          password:
            description: Password of a built-in user.
            type: str
          password_secret:
            description: ID of the secret that holds the password of a built-in user.
            type: str
          password_secret_version:
            description: Number of that secret's version, or V(latest).
            type: str
            default: latest
          update_password:
            description: When the password is set.
            type: str
            choices: [on_create, always]
            default: on_create
          database_roles:
            description: Database roles the user has, exactly.
            type: list
            elements: str
          state:
            description: Whether the user exists.
            type: str
            choices: [present, absent]
            default: present
  timeout_seconds:
    description: How long to wait for each of Google's operations. A new Cloud SQL instance takes ten minutes and more.
    type: int
    default: 1800
seealso:
  - module: mlops.mlflow_gcp.gcp_resource_info
  - module: mlops.mlflow_gcp.gcp_iam
  - module: mlops.mlflow_gcp.gcp_sql_user
"""

EXAMPLES = r"""
- name: A network, its subnetwork and the rule that lets HTTPS in
  mlops.mlflow_gcp.gcp_resource:
    project: my-project
    resources:
      - kind: compute.networks
        name: mlflow
        body:
          autoCreateSubnetworks: false
          routingConfig: {routingMode: REGIONAL}
      - kind: compute.subnetworks
        name: mlflow-europe-west1
        location: europe-west1
        body:
          network: projects/my-project/global/networks/mlflow
          ipCidrRange: 10.10.0.0/24
          privateIpGoogleAccess: true
      - kind: compute.firewalls
        name: mlflow-https
        body:
          network: projects/my-project/global/networks/mlflow
          sourceRanges: [203.0.113.0/24]
          allowed: [{IPProtocol: tcp, ports: ["443"]}]

- name: A bucket that keeps old versions, and who may use its objects
  mlops.mlflow_gcp.gcp_resource:
    project: my-project
    kind: storage.buckets
    name: my-project-mlflow-artifacts
    body:
      location: europe-west1
      versioning: {enabled: true}
      iamConfiguration:
        uniformBucketLevelAccess: {enabled: true}
        publicAccessPrevention: enforced
    policies:
      - resource: {kind: storage.buckets, name: my-project-mlflow-artifacts}
        bindings:
          - role: roles/storage.objectUser
            members: ["serviceAccount:mlflow-server@my-project.iam.gserviceaccount.com"]

- name: A database of a Cloud SQL instance, and who signs in to it
  mlops.mlflow_gcp.gcp_resource:
    project: my-project
    kind: sqladmin.databases
    parent: mlflow
    name: mlflow_auth
    sql_users:
      instance: mlflow
      users:
        - name: mlflow-server@my-project.iam.gserviceaccount.com
          type: CLOUD_IAM_SERVICE_ACCOUNT
"""

RETURN = r"""
changes:
  description: What was done, or in check mode would be, a line for each member that changed.
  returned: success
  type: list
  elements: str
  sample: [create compute.networks mlflow]
resources:
  description: Each member, in the order given.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: As given.
      type: str
    name:
      description: As given.
      type: str
    changed:
      description: Whether the resource was changed, or in check mode would be.
      type: bool
    action:
      description: What was done, or in check mode would be.
      type: str
      choices: [none, create, update, delete]
    differences:
      description: Fields that differed, with the value before and after.
      type: list
      elements: dict
      sample: [{field: routingConfig.routingMode, before: GLOBAL, after: REGIONAL}]
    resource:
      description:
        - The resource as Google returns it now, or in check mode as it would be; V(null) when absent.
        - Secrets are masked.
      type: dict
users:
  description: As M(mlops.mlflow_gcp.gcp_sql_user) returns them.
  returned: success, when O(sql_users) are given
  type: list
  elements: dict
policies:
  description: As M(mlops.mlflow_gcp.gcp_iam) returns them.
  returned: success, when O(policies) are given
  type: list
  elements: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.batch import ensure_all
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import KINDS
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.policy import POLICIES, policies_step
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Wanted
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import Session
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.sql_user import USERS, users_step

MEMBER: dict[str, dict[str, Any]] = {
    "kind": {"type": "str", "required": True, "choices": sorted(KINDS)},
    "name": {"type": "str", "required": True},
    "location": {"type": "str"},
    "parent": {"type": "str"},
    "body": {"type": "dict", "default": {}},
    "sensitive_body": {"type": "dict", "no_log": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "delete_contents": {"type": "bool", "default": False},
}


def main() -> None:
    """Run the module."""
    single = {
        option: {key: value for key, value in spec.items() if key != "required"} for option, spec in MEMBER.items()
    }
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "resources": {"type": "list", "elements": "dict", "options": MEMBER},
            "policies": POLICIES,
            "sql_users": {"type": "dict", "options": USERS},
            "timeout_seconds": {"type": "int", "default": 1800},
            **single,
        },
        mutually_exclusive=[
            ("resources", option) for option in ("kind", "name", "location", "parent", "sensitive_body")
        ],
        required_one_of=[("resources", "kind")],
        required_together=[("kind", "name")],
        supports_check_mode=True,
    )
    members = module.params["resources"]
    if members is None:
        members = [{option: module.params[option] for option in MEMBER}]
    policies, made = module.params["policies"], []

    def resources(cloud: Session) -> Json:
        result = ensure_all(cloud, [Wanted(**member) for member in members], policies)
        made.extend(result["resources"])
        return result

    run(module, resources, *users_step(module.params["sql_users"]), *policies_step(policies, made))


if __name__ == "__main__":
    main()
