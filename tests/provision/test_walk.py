"""Every resource that the roles state, through its life: made, left alone, changed by hand, mended, refused, removed."""

from __future__ import annotations

import collections
from typing import Any

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Wanted, resource_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError

from tests.provision.conftest import Json, Task, World
from tests.provision.fields import Field, others, stated, with_value
from tests.unit.emulator.conftest import PROJECT


def members(tasks: list[Task]) -> list[Json]:
    return [member for task in tasks for member in task.members if member["state"] == "present"]


def drifted(world: World, member: Json, field: Field, value: Any) -> bool:
    """Give one field another value through the API; return whether Google took it."""
    top = field.steps[0]
    body = {top: with_value(member["body"], field, value)[top]}
    other = resource_of(world.session(), Wanted(**{**member, "body": body}))
    if other.problems:
        return False
    before = world.visible()
    try:
        other.update(other.body, other.read() or {})
    except CloudError:
        return False
    return world.visible() != before


def test_every_stated_field_is_mended(world: World, tasks: list[Task]) -> None:
    mended: dict[str, set[str]] = collections.defaultdict(set)
    fields = set()
    for member in members(tasks):
        resource = resource_of(world.session(), Wanted(**member))
        base, seen = world.tables(), world.visible()
        for field in stated(resource):
            name = f"{resource.title}: {field.name}"
            if resource._is_immutable(field.path):
                continue
            fields.add(name)
            for way, value in others(field):
                if way in mended[name] or not drifted(world, member, field, value):
                    world.put(base)
                    continue
                result = world.foretold("gcp_resource", {"project": PROJECT, **member})
                found = result["resources"][0]["differences"]
                assert all(one["field"].startswith(field.name) for one in found), (name, way, found)
                assert found, (name, way, value)
                assert world.visible() == seen, (name, way, value)
                mended[name].add(way)
                world.put(base)
    print({n: w for n, w in mended.items()})
    assert fields - {n for n in mended if mended[n]} == set()
