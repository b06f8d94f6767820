#!/usr/bin/python
"""Ansible module gcp_sql_user."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_sql_user
short_description: Keep the users of a Cloud SQL instance
version_added: 0.1.0
description:
  - Creates, changes and deletes IAM users and built-in users of a Cloud SQL instance.
  - Google never tells a password, so it cannot be compared; it is set when the user is created, or on every run when
    asked.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.google_cloud
options:
  instance:
    description: Name of the Cloud SQL instance.
    type: str
    required: true
  engine:
    description: The instance's engine, the beginning of its database version. MySQL's users are those of any host.
    type: str
    choices: [POSTGRES, MYSQL]
    default: POSTGRES
  users:
    description: The users.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - Name of the user, the e-mail address for an IAM user.
          - C(.gserviceaccount.com) at the end of a service account's address is dropped for PostgreSQL.
          - In MySQL an IAM user is called by what stands before the @, so two of the same name cannot be users.
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
        description: ID of the secret in Secret Manager that holds the password of a built-in user.
        type: str
      password_secret_version:
        description: Number of that secret's version, or V(latest).
        type: str
        default: latest
      update_password:
        description: With V(always) the password is set on every run, which always counts as a change.
        type: str
        choices: [on_create, always]
        default: on_create
      database_roles:
        description: Database roles the user has, exactly. Left alone when not given.
        type: list
        elements: str
      state:
        description: Whether the user exists.
        type: str
        choices: [present, absent]
        default: present
  timeout_seconds:
    description: How long to wait for each of Google's operations.
    type: int
    default: 600
"""

EXAMPLES = r"""
- name: Let the server's account sign in without a password
  mlops.mlflow_gcp.gcp_sql_user:
    project: my-project
    instance: mlflow
    users:
      - name: mlflow-server@my-project.iam.gserviceaccount.com
        type: CLOUD_IAM_SERVICE_ACCOUNT
        database_roles: [cloudsqlsuperuser]

- name: A user whose password is kept in Secret Manager
  mlops.mlflow_gcp.gcp_sql_user:
    project: my-project
    instance: mlflow
    users:
      - name: mlflow
        password_secret: mlflow-database-password
"""

RETURN = r"""
changes:
  description: What was done, or in check mode would be, a line for each member that changed.
  returned: success
  type: list
  elements: str
users:
  description: Each user, in the order given.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name as the instance knows it.
      type: str
    changed:
      description: Whether the user was changed, or in check mode would be.
      type: bool
    action:
      description: What was done, or in check mode would be.
      type: str
      choices: [none, create, update, delete]
    differences:
      description: Fields that differed, with the value before and after, never a password.
      type: list
      elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.sql_user import USERS, ensure_users


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            **USERS,
            "timeout_seconds": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    users = {option: module.params[option] for option in USERS}
    run(module, lambda cloud: ensure_users(cloud, **users))


if __name__ == "__main__":
    main()
