"""Every resource that the roles state, through its life: made, left alone, changed by hand, mended, removed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import KINDS
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.policy import PolicyOf, Wish, desired_policy
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.reference import KNOWN_AFTER
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Resource, Wanted, resource_of

from tests.provision.conftest import Json, Replay, Task, World, differing, outcome, visible
from tests.provision.fields import (
    SPARES,
    Field,
    can_drift,
    changed_by_hand,
    options,
    others,
    stated,
    stated_resources,
    with_value,
)
from tests.unit.emulator.conftest import PROJECT

# Kinds that no role states unless an environment asks for them.
ASKED_FOR = {"bigquery.datasets", "compute.forwardingRules", "dns.managedZones", "dns.resourceRecordSets"}
# gcp_secret makes it together with its versions.
OF_ANOTHER_MODULE = {"secretmanager.secrets"}


@pytest.fixture
def asked_for(world: World, provisioned_otherwise: tuple[list[Task], Json]) -> list[Resource]:
    """What else the roles state where an environment asks for it, in a cloud that has it."""
    tasks, tables = provisioned_otherwise
    world.put(tables)
    return [one for one in stated_resources(world, tasks) if one.wanted.kind in ASKED_FOR]


def test_the_roles_state_resources_of_every_kind(world: World, tasks: list[Task], asked_for: list[Resource]) -> None:
    used = {resource.wanted.kind for resource in stated_resources(world, tasks)}
    assert {resource.wanted.kind for resource in asked_for} == ASKED_FOR
    assert used | ASKED_FOR | OF_ANOTHER_MODULE == set(KINDS)


def test_every_task_tells_what_it_makes_and_makes_it_once(world: World, empty: Json, tasks: list[Task]) -> None:
    world.put(empty)
    replay = Replay()
    for captured in tasks:
        task = replay.task(captured)
        with world.untouched():
            foretold = world.done(task.module, task.arguments, check=True)
        result = world.done(task.module, task.arguments)
        replay.note(captured, result)
        assert known_after(outcome(result), outcome(foretold)) == outcome(foretold)
        with world.untouched():
            again = world.done(task.module, task.arguments)
        assert (again["changed"], again.get("diff", [])) == (False, []), task
    assert world.visible()["policies"]


def known_after(result: Any, foretold: Any) -> Any:
    """Return a result without what nobody could know before: the addresses that Google chose."""
    if isinstance(foretold, str) and KNOWN_AFTER in foretold:
        known = ".+".join(re.escape(part) for part in foretold.split(KNOWN_AFTER))
        return foretold if re.fullmatch(known, result, re.DOTALL) else result
    if isinstance(result, dict):
        return {key: known_after(value, foretold.get(key)) for key, value in result.items()}
    if isinstance(result, list | tuple) and len(result) == len(foretold):
        return type(result)(known_after(left, right) for left, right in zip(result, foretold, strict=True))
    return result


def test_every_field_changed_by_hand_is_foretold_and_mended(world: World, tasks: list[Task]) -> None:
    world.done("gcp_resource", {"project": PROJECT, "resources": SPARES})
    assert not (problems := walking_problems(world, stated_resources(world, tasks))), "\n".join(problems)


def test_every_field_of_what_is_asked_for_is_foretold_and_mended(world: World, asked_for: list[Resource]) -> None:
    world.done("gcp_resource", {"project": PROJECT, "resources": SPARES})
    assert not (problems := walking_problems(world, asked_for)), "\n".join(problems)


def walking_problems(world: World, resources: list[Resource]) -> list[str]:
    """Change every field of the resources by hand and bring it back; return what was not as it should be."""
    base = world.tables()
    problems: list[str] = []
    for resource in resources:
        for field in stated(resource):
            if not can_drift(resource, field):
                continue
            done: set[str] = set()
            for way, value in others(field):
                body = with_value(resource.wanted.body, field, value)
                if way not in done and changed_by_hand(world, resource, field, body):
                    done.add(way)
                    problems += [
                        f"{resource.title}: {field.name} {way}: {problem}"
                        for problem in mending_problems(world, base, resource, field)
                    ]
                world.put(base)
            if not done:
                problems.append(f"{resource.title}: {field.name}: no other value was taken, give one in fields.py")
    return problems


def mending_problems(world: World, base: Json, resource: Resource, field: Field) -> list[str]:
    """Bring a resource back, one field of which was changed by hand; return what was not as it should be."""
    arguments = options(resource, resource.wanted.body)
    result = world.foretold("gcp_resource", arguments)
    named = {one["field"] for one in result["resources"][0]["differences"]}
    problems = [] if named else ["not found"]
    # Some go together with the fields beside them.
    near = f"{field.name.rpartition('.')[0]}." if "." in field.name else field.name
    problems += [f"{name} differs" for name in named if not name.startswith(near)]
    # Within the field Google may leave the defaults that came with the other value.
    kept = f" {field.steps[0]}: "
    problems += [line for line in differing(visible(base), world.visible()) if kept not in line]
    if world.done("gcp_resource", arguments, check=True)["changed"]:
        problems.append("differs again")
    return problems


def test_every_field_that_google_cannot_change_is_refused_by_name(world: World, tasks: list[Task]) -> None:
    assert "compute.subnetworks.ipCidrRange" in refused_fields(world, stated_resources(world, tasks))


def test_every_such_field_of_what_is_asked_for_is_refused_by_name(world: World, asked_for: list[Resource]) -> None:
    assert {"compute.forwardingRules.target", "dns.managedZones.dnsName"} <= refused_fields(world, asked_for)


def refused_fields(world: World, resources: list[Resource]) -> set[str]:
    """Return the fields of the resources that cannot change; each has been refused by its name."""
    refused = set()
    for resource in resources:
        for field in stated(resource):
            if not resource._is_immutable(field.path):
                continue
            for way, value in others(field):
                body = with_value(resource.wanted.body, field, value)
                if (
                    way == "unset"
                    or resource_of(world.session(), Wanted(**{**vars(resource.wanted), "body": body})).problems
                ):
                    continue
                with world.untouched():
                    results = [
                        world.module("gcp_resource", options(resource, body), check=check) for check in (True, False)
                    ]
                for result in results:
                    assert result.get("failed"), (resource.title, field.name, value)
                    assert "Google cannot change this in place" in result["msg"], result["msg"]
                    assert f"{field.name.partition('[')[0]}" in result["msg"], result["msg"]
                refused.add(f"{resource.wanted.kind}.{field.path}")
                break
    return refused


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
    # Secrets are another module's, and Google keeps the accounts of its own services, and a deleted role for a while.
    kept = ("secretmanager/", "agents/", "iam/projects/compute-system/", f"iam/projects/{PROJECT}/roles/")
    assert [name for name in left if not name.startswith(kept)] == []
    with world.untouched():
        assert not world.done("gcp_resource", absent)["changed"]


def of(tasks: list[Task], module: str) -> list[Task]:
    """Return the tasks of one module; the roles use every one of the family."""
    found = [task for task in tasks if task.module == module]
    assert found, module
    return found


STRANGER = "user:stranger@example.com"


def test_every_grant_taken_away_or_added_by_hand_is_foretold_and_mended(world: World, tasks: list[Task]) -> None:
    base, seen = world.tables(), world.visible()
    for task in [task for task in tasks if task.arguments.get("policies")]:
        for entry in task.resolved("policies"):
            name = entry["resource"].get("name") or PROJECT
            policy_of = PolicyOf(world.session(), Wish(entry["resource"]["kind"], name))
            for binding in entry["bindings"]:
                for member in binding["members"]:
                    world.put(base)
                    rewrite(policy_of, "absent", binding["role"], member)
                    result = world.foretold(task.module, task.arguments)
                    assert result["changes"] == [
                        f"update IAM policy of {policy_of.wish.title}: {binding['role']} +{member}"
                    ]
                    assert world.visible() == seen
                if binding["members"]:
                    world.put(base)
                    rewrite(policy_of, "present", binding["role"], STRANGER)
                    result = world.foretold(task.module, task.arguments)
                    is_exclusive = entry["mode"] == "exclusive"
                    assert result["changed"] == is_exclusive
                    assert (world.visible() == seen) == is_exclusive


def rewrite(policy_of: PolicyOf, mode: str, role: str, member: str) -> None:
    """Give or take a role on one resource, past the inventory."""
    entry = {"mode": mode, "bindings": [{"role": role, "members": [member]}]}
    policy_of.write(desired_policy(policy_of.read(), [entry]))


def test_every_secret_destroyed_or_relabelled_by_hand_is_foretold_and_mended(world: World, tasks: list[Task]) -> None:
    api = f"https://secretmanager.googleapis.com/v1/projects/{PROJECT}/secrets"
    call = world.running.call
    for task in of(tasks, "gcp_secret"):
        for secret in task.arguments["secrets"]:
            url = f"{api}/{secret['name']}"
            call("PATCH", f"{url}?updateMask=labels", {"labels": {"mlflow-deployment": "other"}})
            call("POST", f"{url}/versions/1:destroy", {})
            result = world.foretold(task.module, task.arguments)
            assert [line for line in result["changes"] if secret["name"] in line] == result["changes"]
            assert call("GET", url)["labels"] == secret["labels"]
            assert call("GET", f"{url}/versions/2:access")["payload"]["data"]
            call("POST", f"{url}/versions/2:disable", {})
            with world.untouched():
                refused = world.module(task.module, task.arguments)
            assert "its latest version 2 is disabled" in refused["msg"]
            call("POST", f"{url}/versions/2:enable", {})


def test_every_database_user_changed_by_hand_is_foretold_and_mended_or_refused(world: World, tasks: list[Task]) -> None:
    call, seen = world.running.call, world.visible()
    (task,) = (task for task in tasks if "sql_users" in task.arguments)
    arguments = {"project": PROJECT, **task.arguments["sql_users"]}
    api = f"https://sqladmin.googleapis.com/v1/projects/{PROJECT}/instances/{arguments['instance']}/users"
    for user, member in zip(arguments["users"], task.result["users"], strict=True):
        # As the database calls it.
        name = member["name"]
        query = f"name={name}&databaseRoles=pg_monitor&revokeExistingRoles=true"
        world.running.done(call("PUT", f"{api}?{query}", {"name": user["name"]}))
        result = world.foretold("gcp_sql_user", arguments)
        moves = "databaseRoles -pg_monitor +cloudsqlsuperuser"
        assert result["changes"] == [f"update Cloud SQL user {name}: {moves}"]
        world.running.done(call("DELETE", f"{api}?name={name}"))
        result = world.foretold("gcp_sql_user", arguments)
        assert result["users"][0]["action"] == "create"
        assert world.visible() == seen
        with world.untouched():
            other = {**user, "name": name, "type": "BUILT_IN", "password_secret": "mlflow-admin-password"}
            refused = world.module("gcp_sql_user", {**arguments, "users": [other]})
        assert "Google cannot change the type" in refused["msg"]


def test_a_machine_stopped_by_hand_runs_again_and_its_size_is_kept(world: World, tasks: list[Task]) -> None:
    machines = [one for task in of(tasks, "gcp_resource") for one in task.arguments["resources"]]
    (wanted,) = (one for one in machines if one["kind"] == "compute.instances")
    arguments = {
        "project": PROJECT,
        "zone": wanted["location"],
        "name": wanted["name"],
        "machine_type": "e2-standard-2",
        "disk_size_gib": 50,
    }
    zone = f"https://compute.googleapis.com/compute/v1/projects/{PROJECT}/zones/{wanted['location']}"
    machine, seen = f"{zone}/instances/{wanted['name']}", world.visible()
    world.running.done(world.running.call("POST", f"{machine}/stop"))
    kind = {"machineType": f"zones/{wanted['location']}/machineTypes/e2-small"}
    world.running.done(world.running.call("POST", f"{machine}/setMachineType", kind))
    result = world.foretold("gcp_vm", arguments)
    assert {one["field"] for one in result["differences"]} == {"machineType", "status"}
    assert world.visible() == seen
    with world.untouched():
        refused = world.module("gcp_vm", {**arguments, "machine_type": "e2-small"})
    assert "machineType is e2-standard-2, wanted e2-small" in refused["msg"]
