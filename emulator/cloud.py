"""The emulated cloud as one object, and the table of the methods it has."""

import dataclasses
import fnmatch
import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from emulator.discovery import Directory, Method
from emulator.effects import Effects
from emulator.errors import ApiError
from emulator.iam import Access
from emulator.operations import Operations
from emulator.state import Resource, State

# What a fresh project of a new customer can use before anything is enabled.
DEFAULT_SERVICES = ["logging.googleapis.com", "monitoring.googleapis.com", "storage.googleapis.com"]
_ALWAYS_OPEN = {"serviceusage.googleapis.com", "cloudresourcemanager.googleapis.com", "iamcredentials.googleapis.com"}
# What no project without a billing account can have enabled.
BILLED_SERVICES = {f"{name}.googleapis.com" for name in ("compute", "dns", "secretmanager", "sqladmin")}
ADDRESSES = ipaddress.IPv4Network("198.18.0.0/24")


@dataclasses.dataclass
class Cloud:
    """State, permissions, operations and effects, as the services use them."""

    state: State
    directory: Directory
    access: Access
    operations: Operations
    effects: Effects

    def need(self, name: str, label: str | None = None) -> Resource:
        """Return a resource by full name; raises `ApiError` 404 with Google's wording."""
        found = self.state.resources.get(name)
        if found is None:
            raise ApiError(404, f"The resource '{label or name.partition('/')[2]}' was not found")
        return found

    def users_of(self, link: str, besides: str) -> list[str]:
        """Return the full names of the resources that mention a link, except one."""
        return [
            name for name, resource in self.state.resources.items() if name != besides and _mentions(resource, link)
        ]

    def check_enabled(self, service: str, project: str) -> None:
        """Raises `ApiError` 403 SERVICE_DISABLED unless the project has the service's API enabled."""
        number = self.state.projects.get(project, project)
        if service in BILLED_SERVICES and not self.state.billing.get(project):
            where = f"https://console.developers.google.com/billing/enable?project={number}"
            raise ApiError(
                403,
                f"This API method requires billing to be enabled. Please enable billing on project #{number} by "
                f"visiting {where} then retry.",
                reason="forbidden",
                details=[_error_info("BILLING_DISABLED", service, number)],
            )
        if service in _ALWAYS_OPEN or service in self.state.services.get(project, []):
            return
        where = f"https://console.developers.google.com/apis/api/{service}/overview?project={number}"
        raise ApiError(
            403,
            f"{service} has not been used in project {number} before or it is disabled. Enable it by visiting {where} "
            "then retry. If you enabled this API recently, wait a few minutes for the action to propagate to our "
            "systems and retry.",
            reason="accessNotConfigured",
            details=[_error_info("SERVICE_DISABLED", service, number)],
        )


def _error_info(reason: str, service: str, number: str) -> Resource:
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": service, "consumer": f"projects/{number}"},
    }


@dataclasses.dataclass
class Call:
    """One request, matched, authenticated and validated."""

    cloud: Cloud
    method: Method
    parameters: dict[str, Any]
    body: Any
    principal: str | None
    host: str
    request: web.BaseRequest
    fault: dict[str, Any] | None = None

    @property
    def state(self) -> State:
        """The cloud's state."""
        return self.cloud.state

    @property
    def verb(self) -> str:
        """The last word of the method's id, such as `insert`."""
        return self.method.id.rpartition(".")[2]

    @property
    def name(self) -> str:
        """The resource that a newer API names by one path, such as `projects/p/secrets/s`."""
        keys = ("name", "resource", "parent", "sinkName", "metricName")
        return str(next(self.parameters[key] for key in keys if key in self.parameters))

    @property
    def kind(self) -> str:
        """The `kind` of the method's response."""
        return self.cloud.directory.documents[self.method.api].kind(self.method.response or "")

    def page(self, items: list[Resource], field: str = "items", size: str = "maxResults") -> Resource:
        """Return one page of a list, with `nextPageToken` when there is more."""
        items = filtered(items, self.parameters.get("filter", ""))
        start = int(self.parameters.get("pageToken") or 0)
        count = self.parameters.get(size) or 500
        answer: Resource = {field: items[start : start + count]} if items else {}
        if start + count < len(items):
            answer["nextPageToken"] = str(start + count)
        return answer


Handler = Callable[[Call], "Resource | web.StreamResponse | Awaitable[web.StreamResponse | Resource]"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a method is served: by what, and what permission it takes on which resources (most specific first)."""

    handler: Handler
    permission: str | None
    resources: Callable[[Call], list[str]]


METHODS: dict[str, Entry] = {}


def named_resources(call: Call) -> list[str]:
    """Return the resources whose policies count: `projects/p/secrets/s/versions/1` gives the secret and the project."""
    if "project" in call.parameters:
        return [f"projects/{call.parameters['project']}"]
    parts = call.name.split("/")
    return ["/".join(parts[:length]) for length in range(len(parts) - len(parts) % 2, 1, -2)]


def serves(
    *ids: str, permission: str | None = None, resources: Callable[[Call], list[str]] = named_resources
) -> Callable[[Handler], Handler]:
    """Enters a handler in the table for some methods; without a permission any authenticated caller may call."""

    def enter(handler: Handler) -> Handler:
        for identity in ids:
            METHODS[identity] = Entry(handler, permission, resources)
        return handler

    return enter


def held_permissions(call: Call) -> Resource:
    """Serves any `testIamPermissions`: which of the asked permissions the caller holds there."""
    asked = call.parameters.get("permissions") or (call.body or {}).get("permissions", [])
    where = METHODS[call.method.id].resources(call)
    held = [permission for permission in asked if call.cloud.access.allowed(call.principal, permission, where)]
    return {"permissions": held} if held else {}


def filtered(items: list[Resource], expression: str) -> list[Resource]:
    """Return the items that fit a filter of comparisons joined with AND; raises `ApiError` 400 for any other."""
    for clause in re.split(r"\)?\s+AND\s+\(?", expression.strip().removeprefix("(").removesuffix(")")):
        if not clause:
            continue
        found = re.fullmatch(r"\s*([\w.-]+)\s*(!=|=|:|\beq\b|\bne\b)\s*\"?([^\"]*?)\"?\s*", clause)
        if not found:
            raise ApiError(400, f"Invalid value for field 'filter': '{expression}'. Invalid list filter expression.")
        path, operator, wanted = found.groups()
        equal = operator in ("=", ":", "eq")
        items = [item for item in items if _compares(item, path, operator, wanted) == equal]
    return items


def _compares(item: Mapping[str, Any], path: str, operator: str, wanted: str) -> bool:
    value: Any = item
    head, _, label = path.partition(".")
    for part in (head, label) if head == "labels" else path.split("."):
        value = value.get(part) if isinstance(value, Mapping) and part else value
    if operator == ":" and wanted == "*":
        return value is not None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return value is not None and (fnmatch.fnmatchcase(text, wanted) if operator in ("=", ":") else text == wanted)


def _mentions(value: Any, link: str) -> bool:
    if isinstance(value, dict):
        return any(_mentions(item, link) for item in value.values())
    if isinstance(value, list):
        return any(_mentions(item, link) for item in value)
    return bool(value == link)


def patched(current: Resource, patch: Resource) -> Resource:
    """Return a resource after a JSON merge patch: null removes, objects merge, everything else replaces."""
    merged = dict(current)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = patched(merged[name], value)
        else:
            merged[name] = value
    return merged
