"""The fields that a resource states, and values that somebody might give them by hand."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Node
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Resource, Wanted, resource_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError

from tests.provision.conftest import Task, World
from tests.unit.emulator.conftest import PROJECT

# Another value of a field whose schema does not tell its values.
EXAMPLES: dict[str, list[Any]] = {
    "storageClass": ["NEARLINE"],
    "publicAccessPrevention": ["inherited"],
    "tier": ["db-custom-2-7680"],
    "zone": ["europe-west1-c"],
    "startTime": ["05:00", "08:00"],
    "storageAutoResizeLimit": ["200"],
    "destination": [f"storage.googleapis.com/{PROJECT}-mlflow-artifacts"],
    "period": ["300s", "600s"],
    "timeout": ["20s"],
    "updateTrack": ["canary"],
    "sourceRanges": ["203.0.113.0/24"],
    "ports": ["8443"],
    "natIP": ["198.51.100.7"],
    "IPAddress": ["10.10.0.99"],
    "networkUrl": [f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/global/networks/spare"],
    "reservedPeeringRanges": ["spare"],
}
# Fields that Google changes only together with their neighbours.
TOGETHER: dict[str, dict[str, Any]] = {
    "natIpAllocateOption": {"natIpAllocateOption": "MANUAL_ONLY", "natIps": ["regions/europe-west1/addresses/spare"]},
    "natIps": {"natIpAllocateOption": "MANUAL_ONLY", "natIps": ["regions/europe-west1/addresses/spare"]},
    "edition": {"edition": "ENTERPRISE_PLUS", "tier": "db-perf-optimized-N-2"},
    # Beside a link, which is resolved in what the roles state alone.
    "rrdatas": {"rrdatas": ["198.51.100.7"]},
    "useSsl": {"useSsl": False, "validateSsl": False},
    "enabled": {"enabled": False, "pointInTimeRecoveryEnabled": False},
}
# Fields, of one resource where it is named, that nobody can give another value by hand, and why.
FIXED = {
    "settings.backupConfiguration.backupRetentionSettings.retentionUnit": "COUNT is the only unit there is",
    "autoclass.enabled": "is not for a bucket whose rules set storage classes",
    "settings.dataCacheConfig.dataCacheEnabled": "takes another edition",
    "snapshotSchedulePolicy.schedule.dailySchedule.daysInCycle": "1 is its only value",
    "mosaicLayout.tiles.xPos": "moves together with the tile beside it",
    "mosaicLayout.tiles.yPos": "moves together with the tile below it",
    "conditions.conditionPrometheusQueryLanguage.disableMetricValidation": "takes metrics that are there",
    "monitoring.alertPolicies mlflow-backup-failed: conditions": "has one condition, as it matches a log",
    "monitoring.alertPolicies mlflow-set-failed: conditions": "has one condition, as it matches a log",
    "monitoring.alertPolicies mlflow-drill-failed: conditions": "has one condition, as it matches a log",
    "monitoring.alertPolicies mlflow-renewal-failed: conditions": "has one condition, as it matches a log",
    "monitoring.alertPolicies mlflow-gc-failed: conditions": "has one condition, as it matches a log",
    "storage.buckets demo-project-mlflow-backups: versioning.enabled": "is not for a bucket with a retention policy",
    "networkInterfaces.accessConfigs.name": "stands beside a link, which is resolved in what the roles state alone",
    "networkInterfaces.accessConfigs.type": "ONE_TO_ONE_NAT is its only value beside a link",
    "settings.ipConfiguration.privateNetwork": "takes another network that is peered with Google's",
}
# What some of the values above refer to.
SPARES: list[dict[str, Any]] = [
    {
        "kind": "compute.globalAddresses",
        "name": "spare",
        "body": {
            "addressType": "INTERNAL",
            "purpose": "VPC_PEERING",
            "prefixLength": 24,
            "network": f"projects/{PROJECT}/global/networks/mlflow",
        },
    },
    {"kind": "compute.addresses", "name": "spare", "location": "europe-west1"},
    {"kind": "compute.networks", "name": "spare", "body": {"autoCreateSubnetworks": False}},
]


@dataclass(frozen=True)
class Together:
    """Values of a field and of its neighbours."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Field:
    """One stated field: its name in a difference, its path of field names, and the steps that lead to it."""

    name: str
    path: str
    steps: tuple[str | int, ...]
    value: Any
    node: Node


def stated(resource: Resource) -> Iterator[Field]:
    """Yield the fields that a resource states, as the comparison tells them apart."""
    yield from _fields(resource, resource.body, resource.node, "", "", ())


def _fields(
    resource: Resource, value: Any, node: Node, name: str, path: str, steps: tuple[str | int, ...]
) -> Iterator[Field]:
    rules = resource.kind.rules
    if path in rules.write_only or value is None:
        return
    if isinstance(value, dict):
        for key, content in value.items():
            below = (f"{name}.{key}" if name else key, f"{path}.{key}" if path else key)
            yield from _fields(resource, content, node.child(key), *below, (*steps, key))
        return
    if isinstance(value, list):
        yield Field(name, path, steps, value, node)
        if path in rules.keyed or path in rules.positional:
            for index, element in enumerate(value):
                label = element[rules.keyed[path]] if path in rules.keyed else index
                below = {k: v for k, v in element.items() if k != rules.keyed.get(path)}
                yield from _fields(resource, below, node.items, f"{name}[{label}]", path, (*steps, index))
        return
    yield Field(name, path, steps, value, node)


def others(field: Field) -> Iterator[tuple[str, Any]]:
    """Yield what might become of a field: `changed`, `added`, `removed` or `unset`, and the value."""
    if isinstance(field.value, list):
        for entry in _entries(field):
            yield "added", [*field.value, entry]
        if field.value:
            yield "removed", field.value[:-1]
    else:
        for value in _values(field.steps[-1], field.value, field.node):
            yield "changed", value
    yield "unset", None
    if field.steps[-1] in TOGETHER:
        yield "changed", Together(TOGETHER[str(field.steps[-1])])


def _entries(field: Field) -> Iterator[Any]:
    """Yield what could be in the list as well."""
    if not field.value:
        return
    last, node = field.value[-1], field.node.items
    if not isinstance(last, dict):
        yield from (value for value in _values(str(field.steps[-1]), last, node) if value not in field.value)
        return
    for key, content in last.items():
        if isinstance(content, list):
            one = Field(key, "", (key,), content, node.child(key))
            yield from ({**last, key: value} for way, value in others(one) if way == "added")
        elif not isinstance(content, dict):
            yield from ({**last, key: value} for value in _values(key, content, node.child(key)))


def _values(key: Any, value: Any, node: Node) -> Iterator[Any]:
    """Yield values like the present one."""
    yield from EXAMPLES.get(str(key), [])
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif re.fullmatch(r"\d+", str(value)):
        yield from (str(int(value) + 1), str(max(int(value) - 1, 0)))
    else:
        for choice in node.schema.get("enum", []):
            if choice != value and "UNSPECIFIED" not in choice:
                yield choice
        if not node.schema.get("enum"):
            yield f"{value}x"
            yield f"x{value}"


def with_value(body: Any, field: Field, value: Any) -> Any:
    """Return a body in which a field has another value."""
    changed = copy.deepcopy(body)
    place = changed
    for step in field.steps[:-1]:
        place = place[step]
    place |= value.values if isinstance(value, Together) else {field.steps[-1]: value}
    return changed


def stated_resources(world: World, tasks: list[Task]) -> list[Resource]:
    """Return every resource that the roles want present."""
    wanted = [Wanted(**member) for task in tasks for member in task.members if member["state"] == "present"]
    return [resource_of(world.session(), one) for one in wanted]


def options(resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of gcp_resource for a resource with another body."""
    wanted = resource.wanted
    place = {"kind": wanted.kind, "name": wanted.name, "location": wanted.location, "parent": wanted.parent}
    return {"project": PROJECT, "body": body, **place}


def can_drift(resource: Resource, field: Field) -> bool:
    """Whether somebody could give the field another value that matters: what may only grow is left alone."""
    is_bare = field.value == [] and field.steps[-1] not in TOGETHER
    is_fixed = not {field.path, f"{resource.title}: {field.path}"}.isdisjoint(FIXED)
    return not (is_bare or is_fixed or resource._is_immutable(field.path) or field.path in resource.kind.rules.minimums)


def changed_by_hand(world: World, resource: Resource, field: Field, body: dict[str, Any]) -> bool:
    """Bring one field to what the body says, past the inventory; return whether Google took it."""
    top = field.steps[0]
    scope = options(resource, {top: body[top]})
    del scope["project"]
    other = resource_of(world.session(), Wanted(**scope))
    before = world.visible()
    try:
        if not other.problems:
            other.update(other.body, other.read() or {})
    except CloudError:
        return False
    return world.visible() != before
