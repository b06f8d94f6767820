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
  - mlops.mlflow_gcp.policies
options:
  resource:
    description: See O(policies[].resource).
    type: dict
    suboptions:
      kind:
        description: See O(policies[].resource.kind).
        type: str
        required: true
        choices:
          - project
          - storage.buckets
          - secretmanager.secrets
          - iam.serviceAccounts
          - cloudkms.cryptoKeys
          - dns.managedZones
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
  confined_members:
    description: See O(policies[].confined_members).
    type: list
    elements: str
    default: []
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

- name: Let the server's account do that on the bucket, and nothing else there
  mlops.mlflow_gcp.gcp_iam:
    project: my-project
    resource: {kind: storage.buckets, name: my-project-mlflow-artifacts}
    bindings:
      - role: roles/storage.objectUser
        members: &server ["serviceAccount:mlflow-server@my-project.iam.gserviceaccount.com"]
    confined_members: *server

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

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.policy import POLICIES, POLICY, ensure_policies


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "policies": POLICIES,
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
