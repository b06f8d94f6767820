#!/usr/bin/python
"""Ansible module mlflow_users."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_users
short_description: Keep MLflow's users, their passwords and what each may do
version_added: 0.1.0
description:
  - Runs on the server, as root, and asks the live MLflow over its Unix socket, as the administrator.
  - Makes users that are missing, sets a password that no longer logs in, and mends O(users[].is_admin) and the
    permissions that are declared. Users and permissions that are not declared are left as they are.
  - An experiment or model that is named with a permission and does not exist is made, empty, so that a new deployment
    needs no second run; one that was deleted is refused.
  - Passwords are read from files, and are neither a parameter nor a result.
  - Needs nothing but Python on the server.
author: MLOps (@mlops)
options:
  users:
    description: The users to keep.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the user, which may be an address of e-mail.
        type: str
        required: true
      is_admin:
        description: Whether the user may do everything.
        type: bool
        default: false
      state:
        description: V(absent) deletes the user with all permissions; what the user made stays.
        type: str
        choices: [present, absent]
        default: present
      experiments:
        description: What the user may do with experiments.
        type: list
        elements: dict
        default: []
        suboptions: &grant
          name:
            description: Name of the experiment or model; V(*) is all there are and will be.
            type: str
            required: true
          permission:
            description: V(NO_PERMISSIONS) takes a permission away, V(DENY) forbids what a role or the default allows.
            type: str
            choices: [READ, USE, EDIT, MANAGE, DENY, NO_PERMISSIONS]
            required: true
      registered_models:
        description: What the user may do with registered models.
        type: list
        elements: dict
        default: []
        suboptions: *grant
  admin_username:
    description: Name of the administrator.
    type: str
    default: admin
  credentials_dir:
    description:
      - Directory of the files C(mlflow.admin-password) and, for each user, C(mlflow.user-<name>-password).
      - In it a hyphen stands for each sign of the name but letters, digits, hyphens and underscores.
    type: path
    default: /etc/credstore
  unwritten:
    description: Files in O(credentials_dir) that only a real run would have written anew; read in check mode alone.
    type: list
    elements: str
    default: []
  socket:
    description: The live server's Unix socket.
    type: path
    default: /run/mlflow/live.sock
attributes:
  check_mode:
    description:
      - Compares and changes nothing. A server that was never started counts as one without users.
      - A password whose file is not written yet, or is in O(unwritten), counts as another one.
    support: full
  diff_mode:
    description: Shows each user's fields; of a password only that it is another one.
    support: full
"""

EXAMPLES = r"""
- name: Keep a reader and an administrator, and let one go
  mlops.mlflow_gcp.mlflow_users:
    users:
      - name: ann
        experiments:
          - {name: churn, permission: EDIT}
        registered_models:
          - {name: "*", permission: READ}
      - {name: bob, is_admin: true}
      - {name: eve, state: absent}
  become: true
"""

RETURN = r"""
changes:
  description: What was changed, or would be, a line each; after a failure the last one may be half done.
  returned: always, unless nothing could be compared
  type: list
  elements: str
  sample: [delete user eve, create experiment churn, "update user ann: password, experiment churn"]
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import mlflow_users
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.mlflow_users import Change, UsersError

MORE = "More: docs/failures.md#not-all-users-are-as-declared"


def main() -> None:
    """Compare, change unless in check mode, and say what was changed."""
    grant = {
        "name": {"type": "str", "required": True},
        "permission": {"type": "str", "choices": list(mlflow_users.PERMISSIONS), "required": True},
    }
    user = {
        "name": {"type": "str", "required": True},
        "is_admin": {"type": "bool", "default": False},
        "state": {"type": "str", "choices": list(mlflow_users.STATES), "default": "present"},
        "experiments": {"type": "list", "elements": "dict", "default": [], "options": grant},
        "registered_models": {"type": "list", "elements": "dict", "default": [], "options": grant},
    }
    module = AnsibleModule(
        argument_spec={
            "users": {"type": "list", "elements": "dict", "required": True, "options": user},
            "admin_username": {"type": "str", "default": "admin"},
            "credentials_dir": {"type": "path", "default": "/etc/credstore"},
            "unwritten": {"type": "list", "elements": "str", "default": []},
            "socket": {"type": "path", "default": "/run/mlflow/live.sock"},
        },
        supports_check_mode=True,
    )
    wrong = mlflow_users.problems(module.params["users"], module.params["admin_username"], "users")
    if wrong:
        module.fail_json(msg=f"{mlflow_users.report(wrong)}\n{MORE}")
    try:
        changes = compare(module)
    except UsersError as error:
        module.fail_json(msg=f"{error}\n{MORE}")
    done: list[Change] = []
    try:
        for change in changes:
            done.append(change)
            for step in change.steps if not module.check_mode else []:
                step()
    except UsersError as error:
        module.fail_json(msg=f"{change.title}: {error}\n{MORE}", **told(done))
    module.exit_json(**told(done))


def compare(module: AnsibleModule) -> list[Change]:
    """Return the changes still to be made; raises `UsersError`."""
    options = module.params
    unwritten = options["unwritten"] if module.check_mode else []
    secrets = mlflow_users.passwords(
        options["users"], options["credentials_dir"], unwritten, foretell=module.check_mode
    )
    if module.check_mode and not os.path.lexists(options["socket"]):
        return mlflow_users.plan(None, options["users"], secrets)
    password = mlflow_users.read_password(options["credentials_dir"], mlflow_users.ADMIN_CREDENTIAL)
    if password is None:
        path = f"{options['credentials_dir']}/{mlflow_users.ADMIN_CREDENTIAL}"
        raise UsersError(f"{path} is not there. Next: run the role server_secrets before")
    server = mlflow_users.Server(options["socket"], options["admin_username"], password)
    return mlflow_users.plan(server, options["users"], secrets)


def told(changes: list[Change]) -> mlflow_users.Json:
    """Return the result about these changes."""
    lines = [change.line() for change in changes]
    return {"changed": bool(changes), "changes": lines, "diff": [change.diff() for change in changes]}


if __name__ == "__main__":
    main()
