"""`--check --diff` of the real playbook tells what the run after it then does, field by field, and writes nothing."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from tests.provision.conftest import Run, Task, World
from tests.provision.fields import SPARES, can_drift, changed_by_hand, others, stated, stated_resources, with_value
from tests.unit.emulator.conftest import PROJECT

Play = Callable[..., Run]
CHECK = ("--check", "--diff")
# Single values of an environment, each of which reaches another field.
OTHER_VALUES = {
    "platform_labels": {"team": "research"},
    "platform_https_source_ranges": ["203.0.113.0/24"],
    "platform_http_source_ranges": [],
    "platform_operators": ["user:ann@example.com"],
    "platform_deletion_protection_enabled": True,
    "platform_profile": "large",
    "platform_stop_enabled": True,
    "platform_sql_availability_type": "REGIONAL",
    "gcp_bucket_storage_class": "NEARLINE",
    "gcp_bucket_soft_delete_days": 14,
    "gcp_sql_backup_count": 30,
    "gcp_sql_backup_start_time": "04:00",
    "gcp_sql_maintenance_day": 6,
    "gcp_sql_database_flags": {"log_min_duration_statement": "500"},
    "gcp_identity_project_roles": ["roles/cloudsql.client", "roles/cloudsql.instanceUser"],
}


def fields(run: Run) -> list[str]:
    """Return the name of every field that differed, with its resource."""
    return [
        f"{diff['before_header']}: {name}"
        for task in run.tasks
        for diff in task.result.get("diff", [])
        for name in {**diff["before"], **diff["after"]}
    ]


def test_a_check_tells_what_the_run_then_does(
    world: World, tasks: list[Task], play: Play, make_inventory: Callable[..., pathlib.Path]
) -> None:
    world.done("gcp_resource", {"project": PROJECT, "resources": SPARES})
    there = set(world.tables()["resources"])
    for resource in stated_resources(world, tasks):
        body = resource.wanted.body
        for field in stated(resource):
            for way, value in others(field) if can_drift(resource, field) else ():
                # Shorter lists would take the fields below them along.
                other = with_value(body, field, value) if way in ("changed", "added") else body
                if other != body and changed_by_hand(world, resource, field, other):
                    body = other
                    break

    with world.untouched():
        checked = play(*CHECK)
    mended = play("--diff")

    assert (checked.code, mended.code) == (0, 0), checked.errors + mended.errors
    assert mended.outcomes == checked.outcomes
    assert set(world.tables()["resources"]) == there
    for task in tasks:
        assert not world.done(task.module, task.arguments, check=True)["changed"], task.role

    inventory = make_inventory(**OTHER_VALUES)
    with world.untouched():
        foretold = play(*CHECK, inventory=inventory)
    done = play("--diff", inventory=inventory)

    assert (foretold.code, done.code) == (0, 0), foretold.errors + done.errors
    assert done.outcomes == foretold.outcomes
    assert len(set(fields(mended)) | set(fields(done))) >= 50
    assert len(fields(done)) >= len(OTHER_VALUES)
