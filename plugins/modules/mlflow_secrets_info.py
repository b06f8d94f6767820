#!/usr/bin/python
"""Ansible module mlflow_secrets_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_secrets_info
short_description: Tell which versions of its secrets an MLflow server takes
version_added: 0.1.0
description:
  - Tries every enabled version of the administrator's password, and sees with which version of Flask's secret key the
    server signs the cookie of a session.
  - Reads the versions from Secret Manager with the application default credentials. No value is a parameter, a result
    or part of a message.
  - Honours E(HTTPS_PROXY), E(NO_PROXY) and E(REQUESTS_CA_BUNDLE).
author: MLOps (@mlops)
options:
  url:
    description: Address of the server, such as V(https://mlflow.example.com).
    type: str
    required: true
  project:
    description: Google Cloud project of the secrets.
    type: str
    required: true
  admin_password_secret:
    description: Id of the secret that holds the administrator's password.
    type: str
    required: true
  flask_secret_key_secret:
    description: Id of the secret that holds Flask's secret key.
    type: str
    required: true
  admin_username:
    description: Name of the administrator.
    type: str
    default: admin
attributes:
  check_mode:
    description: Reads only.
    support: full
  diff_mode:
    description: Reads only.
    support: none
requirements:
  - google-auth
  - google-api-python-client
  - itsdangerous
  - requests
"""

EXAMPLES = r"""
- name: Ask which versions the server takes
  mlops.mlflow_gcp.mlflow_secrets_info:
    url: https://mlflow.example.com
    project: my-project
    admin_password_secret: mlflow-admin-password
    flask_secret_key_secret: mlflow-flask-secret-key
  delegate_to: localhost
"""

RETURN = r"""
secrets:
  description:
    - The numbers of each secret's enabled versions, newest first, by whether the server takes them.
    - An older version with the value of the latest is in neither list.
  returned: success
  type: list
  elements: dict
  sample:
    - name: mlflow-admin-password
      taken: ["4"]
      refused: ["3"]
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run

try:
    from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import mlflow_secrets

    MISSING = None
except ImportError as error:
    MISSING = str(error)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "project": {"type": "str", "required": True},
            # The names of the secrets are none.
            "admin_password_secret": {"type": "str", "required": True, "no_log": False},
            "flask_secret_key_secret": {"type": "str", "required": True, "no_log": False},
            "admin_username": {"type": "str", "default": "admin"},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("requests"), exception=MISSING)
    options = module.params
    server = mlflow_secrets.Server(options["url"], options["admin_username"])
    names = (options["admin_password_secret"], options["flask_secret_key_secret"])
    run(module, lambda cloud: mlflow_secrets.ask(cloud, server, *names))


if __name__ == "__main__":
    main()
