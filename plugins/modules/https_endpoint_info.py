#!/usr/bin/python
"""Read what anybody on the network sees of an HTTPS server."""

from __future__ import annotations

DOCUMENTATION = r"""
module: https_endpoint_info
short_description: Read what anybody on the network sees of an HTTPS server
version_added: 0.1.0
description:
  - Asks the server without a login, over HTTPS, over plain HTTP, and under a Host header that is not its own.
  - Fails when nothing answers over HTTPS, or when the certificate is not valid for the domain or not trusted.
  - Honours E(HTTPS_PROXY), E(HTTP_PROXY), E(NO_PROXY), E(REQUESTS_CA_BUNDLE) and E(CURL_CA_BUNDLE).
author: MLOps (@mlops)
options:
  domain:
    description: Name of the server, without a scheme.
    type: str
    required: true
  address:
    description:
      - Where the server is looked for, whatever DNS says and without a proxy, such as V(127.0.0.1) on itself.
    type: str
  path:
    description: Path to ask for.
    type: str
    default: /
attributes:
  check_mode:
    description: Reads only.
    support: full
  diff_mode:
    description: Reads only.
    support: none
requirements:
  - requests
"""

EXAMPLES = r"""
- name: Read the front door
  mlops.mlflow_gcp.https_endpoint_info:
    domain: mlflow.example.com
  register: door
  delegate_to: localhost
"""

RETURN = r"""
certificate:
  description: The server's certificate.
  returned: success
  type: dict
  sample:
    names: [mlflow.example.com]
    issuer: countryName=US, organizationName=Let's Encrypt, commonName=E7
    not_after: "2027-02-20T08:00:00+00:00"
    days_left: 88
status:
  description: HTTP status without a login.
  returned: success
  type: int
  sample: 401
headers:
  description: Response headers, by name in lower case.
  returned: success
  type: dict
  sample: {strict-transport-security: max-age=63072000}
redirect:
  description: The answer over plain HTTP; status 0 and no location when there was none, as where port 80 is closed.
  returned: success
  type: dict
  sample: {status: 301, location: "https://mlflow.example.com/"}
foreign_host_status:
  description: HTTP status under a Host header that is not the server's; 0 when it closed the connection.
  returned: success
  type: int
  sample: 0
component:
  description: The role that answers for a failure.
  returned: failure
  type: str
  sample: certbot
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import requests
    from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import https_endpoint

    MISSING = None
except ImportError as error:
    MISSING = str(error)


def main() -> None:
    """Read, and tell a certificate that is not trusted from a server that does not answer."""
    module = AnsibleModule(
        argument_spec={
            "domain": {"type": "str", "required": True},
            "address": {"type": "str"},
            "path": {"type": "str", "default": "/"},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("requests"), exception=MISSING)
    domain = module.params["domain"]
    if module.params["address"]:
        https_endpoint.go_to(module.params["address"], domain)
    try:
        seen = https_endpoint.read(domain, module.params["path"])
    except requests.exceptions.SSLError as error:
        msg = (
            f"certbot: the certificate of {domain} is not accepted: {error}. Next, on the server: certbot certificates."
            " With your own: see that this machine trusts who issued it"
            "\nMore: docs/failures.md#the-certificate-is-not-accepted"
        )
        module.fail_json(msg=msg, component="certbot")
    except requests.RequestException as error:
        msg = (
            f"nginx: {domain} does not answer: {error}. Next, on the server: journalctl -u nginx -n 50"
            "\nMore: docs/failures.md#the-address-does-not-answer"
        )
        module.fail_json(msg=msg, component="nginx")
    module.exit_json(changed=False, **seen)


if __name__ == "__main__":
    main()
