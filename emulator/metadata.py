"""The metadata server: a VM learns who it is, and gets its service account's tokens, by its address alone."""

import datetime
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from emulator.cloud import Cloud
from emulator.errors import ApiError
from emulator.iam import TOKEN_SECONDS
from emulator.oauth import IdentityKey
from emulator.services.compute import external_ip, instances
from emulator.state import Resource

_HEADERS = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
_ROOT = "/computeMetadata/v1"


class Metadata:
    """Answers on port 80; a caller that is no instance gets 404 for everything but the root."""

    def __init__(self, cloud: Cloud, fault: Callable[[str, bool], Awaitable[Any]]) -> None:
        self._cloud = cloud
        self._fault = fault

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Serves one request as https://cloud.google.com/compute/docs/metadata/querying-metadata describes.

        Of a fault of the method `metadata` the status counts.
        """
        try:
            await self._fault("metadata", False)
        except ApiError as error:
            return web.Response(status=error.code, text=f"{error.message}\n", headers=_HEADERS)
        if request.path == "/":
            return web.Response(text="computeMetadata/\n", headers=_HEADERS)
        if request.headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in request.headers:
            return web.Response(status=403, text="Missing Metadata-Flavor:Google header.\n", headers=_HEADERS)
        # A booting instance asks before the operation that creates it has ended.
        known = (item for item in instances(self._cloud) if request.remote in (item.get("_ip"), external_ip(item)))
        instance = next(known, None)
        if instance is None or not request.path.startswith(_ROOT):
            return web.Response(status=404, text="This address is no instance.\n", headers=_HEADERS)
        account = self._account(request, instance)
        if account is not None:
            return account
        value: Any = self._tree(instance)
        for part in request.path.removeprefix(_ROOT).strip("/").split("/"):
            if not part:
                continue
            value = value[int(part)] if isinstance(value, list) and part.isdigit() else _child(value, part)
            if value is None:
                return web.Response(status=404, text="Not found.\n", headers=_HEADERS)
        return _shown(value, request.query)

    def _account(self, request: web.Request, instance: Resource) -> web.Response | None:
        parts = request.path.split("/")
        if parts[3:5] != ["instance", "service-accounts"] or parts[-1] not in ("token", "identity"):
            return None
        accounts = instance.get("serviceAccounts", [])
        if not accounts or parts[5] not in ("default", accounts[0]["email"]):
            return web.Response(status=404, text="The instance has no such service account.\n", headers=_HEADERS)
        email = accounts[0]["email"]
        if not self._cloud.access.account_exists(email):
            return web.Response(status=404, text="The service account was not found.\n", headers=_HEADERS)
        if parts[-1] == "token":
            token = self._cloud.access.issue_token(email, accounts[0]["scopes"])
            content = {"access_token": token, "expires_in": TOKEN_SECONDS - 1, "token_type": "Bearer"}
            return _json(content)
        return self._identity(request, instance, email)

    def _identity(self, request: web.Request, instance: Resource, email: str) -> web.Response:
        """Answers as https://cloud.google.com/compute/docs/instances/verifying-instance-identity describes."""
        query = request.query
        audience, form = query.get("audience"), query.get("format", "standard")
        if not audience:
            return web.Response(status=400, text="non-empty audience parameter required\n", headers=_HEADERS)
        if form not in ("standard", "full") or set(query) - {"audience", "format", "licenses"}:
            return web.Response(status=400, text="format must be standard or full.\n", headers=_HEADERS)
        if query.get("licenses", "FALSE") != "FALSE":
            return web.Response(status=501, text="The emulated cloud knows no licenses.\n", headers=_HEADERS)
        # The standard form says nothing of the instance, and has no e-mail address.
        more = {"google": {"compute_engine": self._described(instance)}} if form == "full" else {}
        token = IdentityKey(self._cloud).token(email, audience, form == "full", more)
        return web.Response(text=token, headers=_HEADERS)

    def _described(self, instance: Resource) -> Resource:
        created = datetime.datetime.fromisoformat(instance["creationTimestamp"])
        return {
            "project_id": instance["_project"],
            "project_number": int(self._cloud.state.projects[instance["_project"]]),
            "zone": instance["zone"].rpartition("/")[2],
            "instance_id": instance["id"],
            "instance_name": instance["name"],
            "instance_creation_timestamp": int(created.timestamp()),
        }

    def _tree(self, instance: Resource) -> Resource:
        project, zone = instance["_project"], instance["zone"].rpartition("/")[2]
        number = self._cloud.state.projects[project]
        accounts = {
            name: {"aliases": ["default"], "email": account["email"], "scopes": account["scopes"]}
            for account in instance.get("serviceAccounts", [])
            for name in ("default", account["email"])
        }
        interface = instance["networkInterfaces"][0]
        external = external_ip(instance)
        return {
            "instance": {
                "attributes": {item["key"]: item["value"] for item in instance["metadata"].get("items", [])},
                "hostname": f"{instance['name']}.{zone}.c.{project}.internal",
                "id": int(instance["id"]),
                "image": f"projects/debian-cloud/global/images/family/{instance['_family']}",
                "machineType": f"projects/{number}/machineTypes/{instance['machineType'].rpartition('/')[2]}",
                "name": instance["name"],
                "networkInterfaces": [
                    {
                        "accessConfigs": [{"externalIp": external, "type": "ONE_TO_ONE_NAT"}] if external else [],
                        "ip": interface["networkIP"],
                        "network": f"projects/{number}/networks/{interface['network'].rpartition('/')[2]}",
                    }
                ],
                "serviceAccounts": accounts,
                "tags": instance.get("tags", {}).get("items", []),
                "zone": f"projects/{number}/zones/{zone}",
            },
            "project": {"attributes": {}, "numericProjectId": int(number), "projectId": project},
            "universe": {"universeDomain": "googleapis.com"},
            "time": int(time.time()),
        }


def _child(value: Any, part: str) -> Any:
    """A path says `service-accounts`, JSON says `serviceAccounts`; attributes keep their own names."""
    if not isinstance(value, dict):
        return None
    head, *rest = part.split("-")
    camel = head + "".join(word.capitalize() for word in rest)
    return value.get(part, value.get(camel))


def _json(value: Any) -> web.Response:
    """Says no charset, as the metadata server does: an older google-auth knows no other JSON."""
    headers = {**_HEADERS, "Content-Type": "application/json"}
    return web.Response(body=json.dumps(value).encode(), headers=headers)


def _shown(value: Any, query: Any) -> web.Response:
    deep = isinstance(value, dict | list)
    if query.get("alt") == "json" or (deep and query.get("recursive", "").lower() == "true"):
        return _json(value)
    if not deep:
        return web.Response(text=str(value), headers=_HEADERS, content_type="application/text")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return web.Response(text="".join(f"{item}\n" for item in value), headers=_HEADERS)
    items = enumerate(value) if isinstance(value, list) else value.items()
    lines = (f"{key}/\n" if isinstance(item, dict | list) else f"{key}\n" for key, item in items)
    return web.Response(text="".join(lines), headers=_HEADERS)
