#!/usr/bin/python
"""Ansible module gcp_secret."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_secret
short_description: Keep secrets in Google Secret Manager
version_added: 0.1.0
description:
  - Creates secrets and gives each a first version, generated or given.
  - A generated value is made once; later runs leave it alone and never read it.
  - A given value adds a version only when it differs from the latest one.
  - A secret without a version, left behind by an interrupted run, gets its first one.
  - A secret is rotated in two steps, O(secrets[].rotation); what uses it is brought to the new version in between.
  - No value is ever returned, shown in a diff or logged.
  - Once all secrets are there, O(policies) are brought to what is wanted, in the same task.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.google_cloud
  - mlops.mlflow_gcp.policies
options:
  secrets:
    description: The secrets.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: ID of the secret.
        type: str
        required: true
      labels:
        description: Labels; others that the secret has are left alone.
        type: dict
        default: {}
      replication:
        description:
          - Where the values are kept, and with which key they are encrypted, spelled as in Google's REST reference.
            Everywhere and with Google's own when left out.
          - Google cannot change it later. Another one than the secret has fails.
        type: dict
      generate:
        description: Make a random value when there is none. Mutually exclusive with O(secrets[].value).
        type: dict
        suboptions:
          length:
            description: Number of characters, at least 16.
            type: int
            default: 32
          alphabet:
            description: Characters to choose from, at least 16 different ones.
            type: str
            default: ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789
      value:
        description: The value itself.
        type: str
      rotation:
        description:
          - With V(begin) another version is generated, which replaces the latest. Which one that is, is noted on the
            secret before, in its annotation C(rotation-replaces), so V(begin) makes one new version until V(end),
            however often it is run.
          - With V(end) all versions before O(secrets[].used_version) are disabled, and the annotation goes. None is
            destroyed.
          - A secret that does not exist yet, or has no version, gets its first one by V(begin).
        type: str
        choices: [begin, end]
      used_version:
        description:
          - Number of the version that was seen to be in use, for V(end) of O(secrets[].rotation).
          - Unless it is the latest, V(end) fails and disables nothing.
        type: str
"""

EXAMPLES = r"""
- name: Make the administrator's password, once
  mlops.mlflow_gcp.gcp_secret:
    project: my-project
    secrets:
      - name: mlflow-admin-password
        labels: {mlflow-deployment: mlflow}
        generate: {length: 24}
    policies:
      - resource: {kind: secretmanager.secrets, name: mlflow-admin-password}
        mode: exclusive
        bindings:
          - role: roles/secretmanager.secretAccessor
            members: ["serviceAccount:mlflow-server@my-project.iam.gserviceaccount.com"]

- name: Add another version, once
  mlops.mlflow_gcp.gcp_secret:
    project: my-project
    secrets:
      - name: mlflow-admin-password
        generate: {length: 24}
        rotation: begin
  register: begun

- name: Disable the versions before it, once nothing uses them any more
  mlops.mlflow_gcp.gcp_secret:
    project: my-project
    secrets:
      - name: mlflow-admin-password
        generate: {length: 24}
        rotation: end
        used_version: "{{ begun.secrets[0].version }}"
"""

RETURN = r"""
changes:
  description: What was done, or in check mode would be, a line for each member that changed.
  returned: success
  type: list
  elements: str
secrets:
  description: Each secret, in the order given.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: As given.
      type: str
    changed:
      description: Whether the secret was changed, or in check mode would be.
      type: bool
    differences:
      description: What differed, with its state before and after, never a value.
      type: list
      elements: dict
      sample: [{field: version, before: null, after: generated}]
    version:
      description: Number of the latest version, the new one unless in check mode; empty for a first one.
      type: str
      returned: with O(secrets[].rotation)
    replaces:
      description: Number of the version that the rotation replaces, empty where none is under way.
      type: str
      returned: with O(secrets[].rotation)
policies:
  description: As M(mlops.mlflow_gcp.gcp_iam) returns them.
  returned: success, when O(policies) are given
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.policy import POLICIES, policies_step
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.secret import ALPHABET, ensure_secrets

SECRET = {
    "name": {"type": "str", "required": True},
    "labels": {"type": "dict", "default": {}},
    "replication": {"type": "dict"},
    "generate": {
        "type": "dict",
        "options": {"length": {"type": "int", "default": 32}, "alphabet": {"type": "str", "default": ALPHABET}},
    },
    "value": {"type": "str", "no_log": True},
    "rotation": {"type": "str", "choices": ["begin", "end"]},
    "used_version": {"type": "str"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "secrets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                # The list is names and labels; the value in it is masked on its own.
                "no_log": False,
                "options": SECRET,
                "mutually_exclusive": [("generate", "value")],
                "required_one_of": [("generate", "value")],
            },
            "policies": POLICIES,
        },
        supports_check_mode=True,
    )
    steps = policies_step(module.params["policies"])
    run(module, lambda cloud: ensure_secrets(cloud, module.params["secrets"]), *steps)


if __name__ == "__main__":
    main()
