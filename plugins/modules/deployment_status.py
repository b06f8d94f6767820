#!/usr/bin/python
"""Ansible module deployment_status."""

from __future__ import annotations

DOCUMENTATION = r"""
module: deployment_status
short_description: Judge a deployment, and write one page about it
version_added: 0.1.0
description:
  - Reads the VMs with their disks, the Cloud SQL instance with its backups, the bucket, and the front door, and judges
    them together with what M(mlops.mlflow_gcp.mlflow_server_info) said. It never fails on what is broken.
  - The page is a result like any other, so it is written in check mode too and is no change.
author: MLOps (@mlops)
extends_documentation_fragment:
  - mlops.mlflow_gcp.google_cloud
options:
  deployment:
    description: Names of the deployment's parts.
    type: dict
    required: true
    suboptions:
      name:
        description: Name of the deployment.
        type: str
        required: true
      region:
        description: Region it is in.
        type: str
        required: true
      zone:
        description: Zone of the servers.
        type: str
        required: true
      domain:
        description: Name that users open, without a scheme.
        type: str
        required: true
      inventory:
        description: The inventory, as it is written after C(-i) in the commands that the page recommends.
        type: str
        required: true
      server:
        description: Name of the server that is expected when the inventory finds none.
        type: str
        required: true
      bucket:
        description: Bucket of the artifacts.
        type: str
        required: true
      database:
        description: Cloud SQL instance.
        type: str
        required: true
      sets_enabled:
        description: Whether the servers take a backup set every night.
        type: bool
        default: true
      renewal_role:
        description: The role that brings a new certificate to the servers.
        type: str
        choices: [certbot, server_secrets]
        default: certbot
      authentication:
        description: How users log in, by a password, Identity-Aware Proxy or an OpenID provider, or not at all.
        type: str
        choices: [basic, iap, oidc, none]
        default: basic
  servers:
    description: Results of a loop of M(mlops.mlflow_gcp.mlflow_server_info) over the servers' names.
    type: list
    elements: dict
    required: true
  door:
    description:
      - Result of M(mlops.mlflow_gcp.https_endpoint_info) on a server, where this machine may not reach the domain.
    type: dict
  drift:
    description:
      - Result of C(ansible-playbook provision.yml --check -v) run by M(ansible.builtin.command), with results in JSON.
      - Empty, when it was not compared.
    type: dict
    default: {}
  mlflow_versions:
    description: Releases of MLflow that there is a lock for.
    type: list
    elements: str
    default: []
  limits:
    description: From where on something is degraded.
    type: dict
    required: true
    suboptions:
      certificate_days_minimum:
        description: Days that the certificate has left, at least.
        type: int
        required: true
      disk_percent_maximum:
        description: Percentage of the servers' disk.
        type: int
        required: true
      memory_percent_maximum:
        description: Percentage of the servers' memory.
        type: int
        required: true
      connections_percent_maximum:
        description: Percentage of the database's max_connections.
        type: int
        required: true
      backup_age_hours_maximum:
        description: Hours since the newest successful backup.
        type: int
        required: true
  page_path:
    description: Where the page is written, readable by its owner alone. Its directory is made.
    type: path
    required: true
attributes:
  check_mode:
    description: Reads only.
    support: full
  diff_mode:
    description: Reads only.
    support: none
"""

EXAMPLES = r"""
- name: Judge, and write the page
  mlops.mlflow_gcp.deployment_status:
    project: my-project
    deployment:
      name: mlflow
      region: europe-west1
      zone: europe-west1-b
      domain: mlflow.example.com
      inventory: inventories/prod
      server: mlflow-1
      bucket: my-project-mlflow-artifacts
      database: mlflow
    servers: "{{ servers.results }}"
    limits:
      certificate_days_minimum: 20
      disk_percent_maximum: 85
      memory_percent_maximum: 95
      connections_percent_maximum: 80
      backup_age_hours_maximum: 48
    page_path: /tmp/status.html
  register: status
"""

RETURN = r"""
verdict:
  description: V(healthy), V(degraded) or V(down).
  returned: success
  type: str
reasons:
  description: Why it is not healthy, a line each, what others depend on first.
  returned: success
  type: list
  elements: str
action:
  description: What to do next.
  returned: success
  type: str
text:
  description: The page for a terminal.
  returned: success
  type: str
"""

import datetime
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import status
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.module import run
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import find
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError, Session

try:
    import requests
    from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import https_endpoint
except ImportError:
    # `run` says which library is missing.
    pass

LIMITS = (
    "certificate_days_minimum",
    "disk_percent_maximum",
    "memory_percent_maximum",
    "connections_percent_maximum",
    "backup_age_hours_maximum",
)
NAMES = ("name", "region", "zone", "domain", "inventory", "server", "bucket", "database")


def read_kind(cloud: Session, kind: str, wanted: list[dict[str, str]]) -> Any:
    """Return the resources of a kind, or `{"error": why}`."""
    try:
        return [resource for one in wanted for resource in find(cloud, kind, **one)]
    except CloudError as error:
        return {"error": str(error)}


def read_door(domain: str) -> dict[str, Any]:
    """Return what users see, or `{"error": why}` with the component at fault."""
    try:
        return https_endpoint.read(domain, "/")
    except requests.exceptions.SSLError as error:
        return {"error": f"its certificate is not accepted: {error}", "component": "certbot"}
    except requests.RequestException as error:
        return {"error": f"it does not answer: {error}", "component": "nginx"}


def seen_door(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a server said of its own front door, in the shape of `read_door`."""
    if "certificate" in result:
        return result
    said = str(result.get("msg") or "no server could be asked").partition("\n")[0]
    return {"error": said, "component": result.get("component", "nginx")}


def read(
    cloud: Session, servers: list[str], deployment: status.Deployment, seen: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is in the cloud, by kind, and the front door, unless a server has been asked for that."""
    in_zone = [{"name": name, "location": deployment.zone} for name in servers]
    wanted = {
        "compute.instances": in_zone,
        "compute.disks": in_zone,
        "sqladmin.instances": [{"name": deployment.database}],
        "sqladmin.backupRuns": [{"parent": deployment.database}],
        "storage.buckets": [{"name": deployment.bucket}],
    }
    with ThreadPoolExecutor() as pool:
        door = pool.submit(read_door, deployment.domain) if seen is None else pool.submit(seen_door, seen)
        found = {kind: pool.submit(read_kind, cloud, kind, names) for kind, names in wanted.items()}
        return {kind: one.result() for kind, one in found.items()}, door.result()


def write(path: str, page: str) -> None:
    """Put the page in its place at once, for its owner alone."""
    directory = os.path.dirname(os.path.abspath(path))
    os.makedirs(directory, exist_ok=True)
    handle, staged = tempfile.mkstemp(dir=directory, prefix=".status-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(page)
        os.replace(staged, path)
    except OSError:
        os.unlink(staged)
        raise


def report(cloud: Session, options: dict[str, Any]) -> dict[str, Any]:
    """Read, judge, write the page."""
    deployment = status.Deployment(project=options["project"], **options["deployment"])
    servers = status.asked(options["servers"])
    in_cloud, door = read(cloud, [one["name"] for one in servers] or [deployment.server], deployment, options["door"])
    facts = {
        "servers": servers,
        "cloud": in_cloud,
        "door": door,
        "drift": status.drift(options["drift"]),
        "locked": options["mlflow_versions"],
    }
    judged = status.judge(facts, status.Limits(**options["limits"]), deployment, datetime.datetime.now(datetime.UTC))
    try:
        write(options["page_path"], status.render_html(judged))
    except OSError as error:
        raise CloudError(f"The page cannot be written: {error}. Write another status_page_path") from error
    return {
        "changed": False,
        "verdict": judged.verdict,
        "reasons": judged.reasons,
        "action": judged.action,
        "text": status.render_text(judged),
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "deployment": {
                "type": "dict",
                "required": True,
                "options": {
                    **{name: {"type": "str", "required": True} for name in NAMES},
                    "sets_enabled": {"type": "bool", "default": True},
                    "renewal_role": {"type": "str", "choices": ["certbot", "server_secrets"], "default": "certbot"},
                    "authentication": {"type": "str", "choices": ["basic", "iap", "oidc", "none"], "default": "basic"},
                },
            },
            "servers": {"type": "list", "elements": "dict", "required": True},
            "door": {"type": "dict"},
            "drift": {"type": "dict", "default": {}},
            "mlflow_versions": {"type": "list", "elements": "str", "default": []},
            "limits": {
                "type": "dict",
                "required": True,
                "options": {name: {"type": "int", "required": True} for name in LIMITS},
            },
            "page_path": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    run(module, lambda cloud: report(cloud, module.params))


if __name__ == "__main__":
    main()
