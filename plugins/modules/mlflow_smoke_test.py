#!/usr/bin/python
"""Use an MLflow server as a person would, and delete what that made."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_smoke_test
short_description: Use an MLflow server as a person would, and delete what that made
version_added: 0.1.0
description:
  - Makes a user, and with the real MLflow client and that user's login logs a run with parameters, metrics and an
    artifact, registers a model version, and reads all of it back.
  - Deletes the run, its artifacts, the model, the experiment and the user again, so it reports no change.
    MLflow keeps the rows of a deleted run and experiment until C(mlflow gc).
  - Honours E(HTTPS_PROXY), E(NO_PROXY) and E(REQUESTS_CA_BUNDLE).
  - Reads the administrator's password from Secret Manager with the application default credentials, or from a file. The
    password is neither a parameter nor a result.
author: MLOps (@mlops)
options:
  url:
    description: Address of the server, such as V(https://mlflow.example.com).
    type: str
    required: true
  project:
    description: Google Cloud project of the secret.
    type: str
  admin_password_secret:
    description: Id of the secret that holds the administrator's password.
    type: str
  admin_password_path:
    description: File that holds the administrator's password, in place of a secret.
    type: path
  socket:
    description: Unix socket on which the server answers, on the machine that runs the module; O(url) is then V(http://localhost).
    type: path
  address:
    description: Where the host of O(url) is looked for, whatever DNS says and without a proxy, such as V(127.0.0.1).
    type: str
  work_as:
    description:
      - Who does the work. A V(user) is made for it. The V(administrator) does it where a provider elsewhere says who
        the users are, and V(anybody), for whom no password is read, where there are none.
    type: str
    choices: [user, administrator, anybody]
    default: user
  admin_username:
    description: Name of the administrator.
    type: str
    default: admin
  server:
    description: Name of the server, for messages only.
    type: str
    default: the server
attributes:
  check_mode:
    description: Does nothing in check mode.
    support: full
  diff_mode:
    description: Leaves nothing behind, so there is nothing to show.
    support: none
requirements:
  - google-auth
  - mlflow
  - requests
"""

EXAMPLES = r"""
- name: Use MLflow as a person would
  mlops.mlflow_gcp.mlflow_smoke_test:
    url: https://mlflow.example.com
    project: my-project
    admin_password_secret: mlflow-admin-password
  delegate_to: localhost

- name: Use it where it is, with the MLflow client of its release
  mlops.mlflow_gcp.mlflow_smoke_test:
    url: http://localhost
    socket: /run/mlflow/live.sock
    admin_password_path: /etc/credstore/mlflow.admin-password
  vars:
    ansible_python_interpreter: /etc/mlflow/live/release/bin/python
"""

RETURN = r"""
used:
  description: Names of what was made, read back and deleted.
  returned: success, outside check mode
  type: dict
  sample:
    experiment: verify-1a2b3c4d
    run_id: 6d7b1d2d2f1c4d9c8f5a1f0c3f0e9b1a
    artifact_uri: mlflow-artifacts:/7/6d7b1d2d2f1c4d9c8f5a1f0c3f0e9b1a/artifacts
    model: verify-1a2b3c4d/1
component:
  description: The role that answers for a failure.
  returned: failure
  type: str
  sample: cloud_sql_proxy
next_command:
  description: The command to run on the server after a failure.
  returned: failure
  type: str
  sample: journalctl -u cloud-sql-proxy -n 50
"""

import base64
import pathlib
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import google.auth
    import google.auth.exceptions
    import google.auth.transport.requests
    import requests
    from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import https_endpoint, mlflow_smoke_test

    MISSING = None
except ImportError as error:
    MISSING = str(error)

TIMEOUT_SECONDS = 30
MORE = "More: docs/failures.md#the-service-cannot-be-used"


def read_secret(project: str, secret: str) -> str:
    """Return the latest version of a secret of Secret Manager; raises google-auth's and requests' errors."""
    credentials, _project = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    session = google.auth.transport.requests.AuthorizedSession(credentials)
    url = f"https://secretmanager.googleapis.com/v1/projects/{project}/secrets/{secret}/versions/latest:access"
    response = session.get(url, timeout=TIMEOUT_SECONDS)
    response.raise_for_status()
    return base64.b64decode(response.json()["payload"]["data"]).decode()


def main() -> None:
    """Read the password, run the test, and say who answers for a failure."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "project": {"type": "str"},
            # The name of the secret is no secret, nor is where it is.
            "admin_password_secret": {"type": "str", "no_log": False},
            "admin_password_path": {"type": "path", "no_log": False},
            "socket": {"type": "path"},
            "address": {"type": "str"},
            "work_as": {"type": "str", "choices": ["user", "administrator", "anybody"], "default": "user"},
            "admin_username": {"type": "str", "default": "admin"},
            "server": {"type": "str", "default": "the server"},
        },
        required_if=[
            ("work_as", who, ("admin_password_secret", "admin_password_path"), True)
            for who in ("user", "administrator")
        ],
        mutually_exclusive=[("admin_password_secret", "admin_password_path"), ("socket", "address")],
        required_by={"admin_password_secret": ["project"]},
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("mlflow"), exception=MISSING)
    if module.check_mode:
        module.exit_json(changed=False)

    options = module.params
    secret, path = options["admin_password_secret"], options["admin_password_path"]
    admin = None
    try:
        if options["work_as"] != "anybody":
            password = pathlib.Path(path).read_text().rstrip("\n") if path else read_secret(options["project"], secret)
            admin = (options["admin_username"], password)
    except (google.auth.exceptions.GoogleAuthError, requests.RequestException) as error:
        command = f"gcloud secrets versions list {secret} --project {options['project']}"
        module.fail_json(
            msg=f"Secret Manager: the password of {options['admin_username']} cannot be read: {error}. Next: {command}"
            f"\n{MORE}",
            component="Secret Manager",
            next_command=command,
        )
    if options["socket"]:
        mlflow_smoke_test.connect_to(options["socket"])
    if options["address"]:
        https_endpoint.go_to(options["address"], urlsplit(options["url"]).hostname or "")
    try:
        used = mlflow_smoke_test.run(options["url"], admin, options["work_as"] == "user")
    except mlflow_smoke_test.SmokeTestError as error:
        module.fail_json(
            msg=f"{error.component}: {error}. Next, on {options['server']}: {error.next_command}\n{MORE}",
            component=error.component,
            next_command=error.next_command,
        )
    module.exit_json(changed=False, used=used)


if __name__ == "__main__":
    main()
