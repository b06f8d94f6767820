#!/usr/bin/python
"""Check the inventory and the cloud before anything is made."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Check the inventory and the cloud before anything is made
version_added: 0.1.0
description:
  - Checks every C(platform_*) variable, where each is set, and the version of MLflow.
  - When the inventory is clean, checks the credentials, the project and its billing, the permissions in it, the region
    and the zone, the quotas, names that are taken, whether what is there already is fit for use, address ranges that
    overlap, and where the domain points.
  - Reports all problems of a stage at once, each with variable, value, problem and fix.
  - Reads only.
author: MLOps (@mlops)
options:
  variables:
    description:
      - The C(platform_*) variables that are checked and C(mlflow_version), as the playbooks will use them.
    type: dict
    required: true
  names:
    description:
      - Every C(platform_*) variable that means something. In the inventory others are refused.
    type: list
    elements: str
    required: true
  inventory_dir:
    description:
      - Directory of the inventory, whose files are searched for values that cannot win.
    type: path
    required: true
  for_removal:
    description: Whether a deployment is to be removed; then it does not matter whether one could be made.
    type: bool
    default: false
  for_rotation:
    description: Whether secrets or the certificate are to be rotated; then C(platform_rotate) has to say which.
    type: bool
    default: false
attributes:
  check_mode:
    description: Runs the same in check mode, but for missing permissions, which are a warning then.
    support: full
  diff_mode:
    description: Changes nothing, so there is nothing to show.
    support: none
requirements:
  - google-auth
  - requests
  - PyYAML
"""

EXAMPLES = r"""
- name: Check the inventory and the cloud
  mlops.mlflow_gcp.preflight:
    variables: "{{ preflight_variables }}"
    names: "{{ preflight_variables.keys() }}"
    inventory_dir: "{{ inventory_dir }}"
"""

RETURN = r"""
problems:
  description: What is wrong; empty when the module succeeds.
  returned: always
  type: list
  elements: dict
  sample:
    - variable: platform_zone
      value: "'europe-west1-a'"
      problem: region europe-west1 has no such zone
      fix: write one of europe-west1-b, europe-west1-c, europe-west1-d
"""

import json
import socket
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import preflight, preflight_cloud

try:
    import google.auth
    import google.auth.exceptions
    import google.auth.transport.requests
    import requests
    import urllib3
    from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.trust import TrustingAdapter

    MISSING = None
except ImportError as error:
    MISSING = str(error)

TIMEOUT_SECONDS = 30
PASSING_STATUSES = (429, 500, 502, 503, 504)
LOG_IN = (
    "log in with `gcloud auth application-default login`, "
    "or export GOOGLE_APPLICATION_CREDENTIALS=<path of a service account's key file>"
)


def main() -> None:
    """Run the two stages; the second only when the first found nothing."""
    module = AnsibleModule(
        argument_spec={
            "variables": {"type": "dict", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "inventory_dir": {"type": "path", "required": True},
            "for_removal": {"type": "bool", "default": False},
            "for_rotation": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("google-auth"), exception=MISSING)

    variables, inventory_dir = module.params["variables"], Path(module.params["inventory_dir"])
    problems = preflight.check_inventory(variables, inventory_dir, module.params["names"])
    if module.params["for_rotation"]:
        problems += preflight.check_rotation(variables)
    if not problems:
        problems, notes = check_cloud(variables, str(inventory_dir), for_removal=module.params["for_removal"])
        if module.check_mode:
            # Whoever only looks need not be able to change anything.
            about = (preflight.PERMISSIONS_OF, preflight.PERMISSIONS_OF_KEY)
            notes += [problem.problem for problem in problems if problem.variable in about]
            problems = [problem for problem in problems if problem.variable not in about]
        for note in notes:
            module.warn(note)
    if problems:
        module.fail_json(msg=preflight.report(problems), problems=[problem.as_dict() for problem in problems])
    module.exit_json(changed=False, problems=[])


def check_cloud(
    variables: dict[str, Any], where: str, *, for_removal: bool
) -> tuple[list[preflight.Problem], list[str]]:
    """Log in and check the cloud; what goes wrong on the way is a problem like any other."""
    name = "GOOGLE_APPLICATION_CREDENTIALS or gcloud's own"
    try:
        credentials, _project = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        session = google.auth.transport.requests.AuthorizedSession(credentials)
        retries = urllib3.Retry(
            4, allowed_methods=None, backoff_factor=1, status_forcelist=PASSING_STATUSES, raise_on_status=False
        )
        adapter = TrustingAdapter(max_retries=retries, pool_maxsize=preflight_cloud.THREADS)
        session.mount("https://", adapter)

        def ask(url: str, body: dict[str, Any] | None = None) -> preflight_cloud.Response:
            response = session.request("POST" if body else "GET", url, json=body, timeout=TIMEOUT_SECONDS)
            try:
                return response.status_code, response.json()
            except json.JSONDecodeError:
                return response.status_code, {}

        return preflight_cloud.check_cloud(ask, variables, where, resolve, for_removal=for_removal)
    except google.auth.exceptions.DefaultCredentialsError as error:
        return [preflight.Problem("credentials", name, f"none that can be used: {error}", LOG_IN)], []
    except google.auth.exceptions.RefreshError as error:
        return [preflight.Problem("credentials", name, f"Google refused them: {error}", LOG_IN)], []
    except (google.auth.exceptions.TransportError, requests.RequestException) as error:
        fix = (
            "check the network, HTTPS_PROXY, and REQUESTS_CA_BUNDLE when a proxy has a certificate authority of its own"
        )
        return [preflight.Problem("network", "googleapis.com", f"cannot be reached: {error}", fix)], []


def resolve(name: str) -> list[str]:
    """Return the addresses of a name, none when this machine cannot tell."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
    except OSError:
        return []


if __name__ == "__main__":
    main()
