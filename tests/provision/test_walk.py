"""Every resource that the roles state, through its life: made, left alone, changed by hand, mended, refused, removed."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import KINDS
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Resource, Wanted, resource_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError

from tests.provision.conftest import Json, Task, World, outcome
from tests.provision.fields import FIXED, Field, Together, others, stated, with_value
from tests.unit.emulator.conftest import PROJECT

SPARE_RANGE = {
    "kind": "compute.globalAddresses",
    "name": "spare",
    "body": {
        "addressType": "INTERNAL",
        "purpose": "VPC_PEERING",
        "prefixLength": 24,
        "network": f"projects/{PROJECT}/global/networks/mlflow",
    },
}
SPARE_ADDRESS = {"kind": "compute.addresses", "name": "spare", "location": "europe-west1"}


def stated_resources(world: World, tasks: list[Task]) -> list[Resource]:
    """Return every resource that the roles want present."""
    wanted = [Wanted(**member) for task in tasks for member in task.members if member["state"] == "present"]
    return [resource_of(world.session(), one) for one in wanted]


def options(resource: Resource, body: Json) -> Json:
    """Return the arguments of gcp_resource for a resource with another body."""
    wanted = resource.wanted
    given = {"kind": wanted.kind, "name": wanted.name, "location": wanted.location, "parent": wanted.parent}
    return {"project": PROJECT, "body": body, **given}


def test_the_roles_state_resources_of_every_kind(world: World, tasks: list[Task]) -> None:
    used = {resource.wanted.kind for resource in stated_resources(world, tasks)}
    # A secret is made together with its versions.
    assert used | {"secretmanager.secrets"} == set(KINDS)


def test_every_task_tells_what_it_makes_and_makes_it_once(world: World, empty: Json, tasks: list[Task]) -> None:
    world.put(empty)
    for task in tasks:
        if task.module == "preflight":
            continue
        with world.untouched():
            foretold = world.done(task.module, task.arguments, check=True)
        result = world.done(task.module, task.arguments)
        assert known_after(outcome(result), outcome(foretold)) == outcome(foretold)
        with world.untouched():
            again = world.done(task.module, task.arguments)
        assert (again["changed"], again["diff"]) == (False, []), task
    assert world.visible()["policies"]


def known_after(result: Any, foretold: Any) -> Any:
    """Return a result without what nobody could know before: the addresses that Google chose."""
    if foretold == "(known after create)":
        return foretold
    if isinstance(result, dict):
        return {key: known_after(value, foretold.get(key)) for key, value in result.items()}
    if isinstance(result, list | tuple) and len(result) == len(foretold):
        return type(result)(known_after(left, right) for left, right in zip(result, foretold, strict=True))
    return result


def changed_by_hand(world: World, resource: Resource, field: Field, value: Any) -> bool:
    """Give a field another value past the inventory; return whether Google took it."""
    top = field.steps[0]
    body = {top: with_value(resource.wanted.body, field, value)[top]}
    scope = options(resource, body)
    del scope["project"]
    other = resource_of(world.session(), Wanted(**scope))
    before = world.visible()
    try:
        if not other.problems:
            other.update(other.body, other.read() or {})
    except CloudError:
        return False
    return world.visible() != before


def test_every_field_changed_by_hand_is_foretold_and_mended(world: World, tasks: list[Task]) -> None:
    world.done("gcp_resource", {"project": PROJECT, "resources": [SPARE_RANGE, SPARE_ADDRESS]})
    base, seen = world.tables(), world.visible()
    never: list[str] = []
    for resource in stated_resources(world, tasks):
        for field in stated(resource):
            if resource._is_immutable(field.path) or field.path in FIXED or field.value == []:
                continue
            done: set[str] = set()
            for way, value in others(field):
                if way not in done and changed_by_hand(world, resource, field, value):
                    done.add(way)
                    result = world.foretold("gcp_resource", options(resource, resource.wanted.body))
                    names = {one["field"] for one in result["resources"][0]["differences"]}
                    parent = field.name.rpartition(".")[0]
                    expected = {f"{parent}.{key}" for key in value.values} if isinstance(value, Together) else set()
                    problem = f"{resource.title}: {field.name} {way}: {names}"
                    assert names, problem
                    assert all(name in expected or name.startswith(field.name) for name in names), problem
                    assert world.visible() == seen, problem
                world.put(base)
            if not done:
                never.append(f"{resource.title}: {field.name}")
    assert never == [], "no other value was taken: give one in fields.py"


def test_every_field_that_google_cannot_change_is_refused_by_name(world: World, tasks: list[Task]) -> None:
    refused = set()
    for resource in stated_resources(world, tasks):
        for field in stated(resource):
            if not resource._is_immutable(field.path):
                continue
            for way, value in others(field):
                body = with_value(resource.wanted.body, field, value)
                if way == "unset" or resource_of(world.session(), Wanted(**{**vars(resource.wanted), "body": body})).problems:
                    continue
                with world.untouched():
                    results = [world.module("gcp_resource", options(resource, body), check=check) for check in (True, False)]
                for result in results:
                    assert result.get("failed"), (resource.title, field.name, value)
                    assert "Google cannot change this in place" in result["msg"], result["msg"]
                    assert f"{field.name.partition('[')[0]}" in result["msg"], result["msg"]
                refused.add(f"{resource.wanted.kind}.{field.path}")
                break
    assert "compute.subnetworks.ipCidrRange" in refused


def test_what_the_roles_made_goes_and_nothing_else(world: World, empty: Json, tasks: list[Task]) -> None:
    resources = stated_resources(world, tasks)
    absent = {
        "project": PROJECT,
        "resources": [
            {**options(resource, {}), "state": "absent"}
            for resource in resources
            if resource.wanted.kind != "serviceusage.services"
        ],
    }
    for member in absent["resources"]:
        del member["project"]

    result = world.foretold("gcp_resource", absent)

    assert [member["action"] for member in result["resources"]] == ["delete"] * len(absent["resources"])
    left = set(world.visible()["resources"]) - set(empty["resources"])
    assert all("/secrets/" in name for name in left), left
    with world.untouched():
        assert not world.done("gcp_resource", absent)["changed"]
