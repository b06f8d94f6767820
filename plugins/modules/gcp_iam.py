#!/usr/bin/python
"""Ansible module gcp_iam."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_iam
short_description: Grant Google Cloud IAM roles and configure audit logs
version_added: 0.1.0
description:
  - Adds members to roles, takes them away, or makes the members of the named roles exactly those given, on a project,
    bucket, secret, service account or key.
  - The policy is read, changed and written with its etag, and the change is made again when another writer was
    faster.
  - Roles and audited services that are not named are never touched.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.google_cloud
options:
  policies:
    description:
      - Batch of policies. Mutually exclusive with O(resource).
      - Several entries for one resource are written together.
    type: list
    elements: dict
    suboptions:
      resource:
        description: What the policy belongs to.
        type: dict
        required: true
        suboptions:
          kind:
            description: Kind of the resource.
            type: str
            required: true
            choices: [project, storage.buckets, secretmanager.secrets, iam.serviceAccounts, cloudkms.cryptoKeys]
          name:
            description:
              - Name of the resource, the account ID of a service account.
              - A key goes by its full name,
                C(projects/<project>/locations/<location>/keyRings/<ring>/cryptoKeys/<key>).
              - Not used for the project.
            type: str
      bindings:
        description: Roles and their members.
        type: list
        elements: dict
        default: []
        suboptions:
          role:
            description: Role, C(roles/storage.objectUser) or C(projects/<project>/roles/<role>).
            type: str
            required: true
          members:
            description:
              - Members with their type, C(serviceAccount:<email>), C(user:<email>), C(group:<email>).
              - C(serviceAgent:<service>) is the account through which a service of Google's acts in the project, one of
                V(serviceAgent:compute.googleapis.com), V(serviceAgent:sqladmin.googleapis.com) and
                V(serviceAgent:storage.googleapis.com). It is made where it is not there yet.
            type: list
            elements: str
            required: true
          condition:
            description: Condition in Common Expression Language.
            type: dict
            suboptions:
              title:
                description: Short name of the condition.
                type: str
                required: true
              expression:
                description: The condition itself.
                type: str
                required: true
              description:
                description: What it is for.
                type: str
      mode:
        description:
          - With V(additive) members and kinds of access to log are added.
          - With V(exclusive) the named roles have exactly these members, and no members under other conditions; of the
            named services exactly these kinds of access are logged.
          - With V(absent) they are taken away, and it does not matter when the resource is not there.
        type: str
        choices: [additive, exclusive, absent]
        default: additive
      audit_configs:
        description: Audit logs per service, for the project only. Services that are not named are left alone.
        type: list
        elements: dict
        suboptions:
          service:
            description: Host name of the service, or V(allServices).
            type: str
            required: true
          log_types:
            description: Kinds of access to log; with V(exclusive), an empty list removes what the service has.
            type: list
            elements: str
            required: true
            choices: [ADMIN_READ, DATA_READ, DATA_WRITE]
  resource:
    description: See O(policies[].resource).
    type: dict
    suboptions:
      kind:
        description: See O(policies[].resource.kind).
        type: str
        required: true
        choices: [project, storage.buckets, secretmanager.secrets, iam.serviceAccounts, cloudkms.cryptoKeys]
      name:
        description: See O(policies[].resource.name).
        type: str
  bindings:
    description: See O(policies[].bindings).
    type: list
    elements: dict
    default: []
    suboptions:
      role:
        description: See O(policies[].bindings[].role).
        type: str
        required: true
      members:
        description: See O(policies[].bindings[].members).
        type: list
        elements: str
        required: true
      condition:
        description: See O(policies[].bindings[].condition).
        type: dict
        suboptions:
          title:
            description: See O(policies[].bindings[].condition.title).
            type: str
            required: true
          expression:
            description: See O(policies[].bindings[].condition.expression).
            type: str
            required: true
          description:
            description: See O(policies[].bindings[].condition.description).
            type: str
  mode:
    description: See O(policies[].mode).
    type: str
    choices: [additive, exclusive, absent]
    default: additive
  audit_configs:
    description: See O(policies[].audit_configs).
    type: list
    elements: dict
    suboptions:
      service:
        description: See O(policies[].audit_configs[].service).
        type: str
        required: true
      log_types:
        description: See O(policies[].audit_configs[].log_types).
        type: list
        elements: str
        required: true
        choices: [ADMIN_READ, DATA_READ, DATA_WRITE]
"""

EXAMPLES = r"""
- name: Let the server's account write logs and read one bucket
  mlops.mlflow_gcp.gcp_iam:
    project: my-project
    policies:
      - resource: {kind: project}
        bindings:
          - role: roles/logging.logWriter
            members: ["serviceAccount:mlflow-server@my-project.iam.gserviceaccount.com"]
      - resource: {kind: storage.buckets, name: my-project-mlflow-artifacts}
        mode: exclusive
        bindings:
          - role: roles/storage.objectUser
            members: ["serviceAccount:mlflow-server@my-project.iam.gserviceaccount.com"]

- name: Let a bucket be encrypted with a key of one's own
  mlops.mlflow_gcp.gcp_iam:
    project: my-project
    resource:
      kind: cloudkms.cryptoKeys
      name: projects/my-keys/locations/europe-west1/keyRings/mlflow/cryptoKeys/mlflow
    bindings:
      - role: roles/cloudkms.cryptoKeyEncrypterDecrypter
        members: ["serviceAgent:storage.googleapis.com"]

- name: Log who reads secrets
  mlops.mlflow_gcp.gcp_iam:
    project: my-project
    resource: {kind: project}
    audit_configs:
      - service: secretmanager.googleapis.com
        log_types: [DATA_READ]
"""

RETURN = r"""
changes:
  description: What was done, or in check mode would be, a line for each member that changed.
  returned: success
  type: list
  elements: str
policies:
  description: Each resource whose policy was compared.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: Kind of the resource.
      type: str
    name:
      description: Name of the resource.
      type: str
    changed:
      description: Whether the policy was changed, or in check mode would be.
      type: bool
    differences:
      description: Roles and audited services that differed, with their members or log types before and after.
      type: list
      elements: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.policy import RESOURCES, ensure_policies

CONDITION = {
    "title": {"type": "str", "required": True},
    "expression": {"type": "str", "required": True},
    "description": {"type": "str"},
}
BINDING = {
    "role": {"type": "str", "required": True},
    "members": {"type": "list", "elements": "str", "required": True},
    "condition": {"type": "dict", "options": CONDITION},
}
AUDIT_CONFIG = {
    "service": {"type": "str", "required": True},
    "log_types": {
        "type": "list",
        "elements": "str",
        "required": True,
        "choices": ["ADMIN_READ", "DATA_READ", "DATA_WRITE"],
    },
}
RESOURCE = {
    "kind": {"type": "str", "required": True, "choices": list(RESOURCES)},
    "name": {"type": "str"},
}
POLICY: dict[str, dict[str, Any]] = {
    "resource": {"type": "dict", "options": RESOURCE},
    "bindings": {"type": "list", "elements": "dict", "default": [], "options": BINDING},
    "mode": {"type": "str", "choices": ["additive", "exclusive", "absent"], "default": "additive"},
    "audit_configs": {"type": "list", "elements": "dict", "options": AUDIT_CONFIG},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "policies": {
                "type": "list",
                "elements": "dict",
                "options": {**POLICY, "resource": {**POLICY["resource"], "required": True}},
            },
            **POLICY,
        },
        mutually_exclusive=[("policies", "resource"), ("policies", "audit_configs")],
        required_one_of=[("policies", "resource")],
        supports_check_mode=True,
    )
    policies = module.params["policies"]
    if policies is None:
        policies = [{option: module.params[option] for option in POLICY}]
    run(module, lambda cloud: ensure_policies(cloud, policies))


if __name__ == "__main__":
    main()
