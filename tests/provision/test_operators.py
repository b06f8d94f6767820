"""Two operators at once, and what a run costs that has nothing to do."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Callable

import pytest

from tests.provision.conftest import OTHERWISE, Json, Run, Task, World, begun, by_collection, ended, writes

# Read more than once in a run, and why that is right.
READ_AGAIN = {
    "compute.instances.aggregatedList": "the inventory, before the run and after it: not a resource of ours",
}


@pytest.fixture(scope="module")
def runs(
    clean_world: World, empty: Json, provisioned: object, play: Callable[..., Run]
) -> tuple[list[Run], list[Json]]:
    """Two runs at once in an empty project, then a third; and the calls of the third."""
    operations = clean_world.running.server.cloud.operations
    clean_world.put(empty)
    operations._seconds = 0.3
    try:
        both = [ended(process) for process in [begun(), begun()]]
    finally:
        operations._seconds = 0
    since = clean_world.count
    return [*both, play()], clean_world.calls(since)


def test_two_operators_at_once_end_in_the_right_state(
    runs: tuple[list[Run], list[Json]], clean_world: World, provisioned: tuple[object, Json]
) -> None:
    first, second, third = runs[0]
    assert (first.code, second.code) == (0, 0), first.errors + second.errors
    assert third.code == 0
    assert third.changes == []
    assert writes(runs[1]) == []
    there, wanted = by_collection(clean_world.tables()), by_collection(provisioned[1])
    # Both may have generated a secret's first version: the newest counts.
    twice = {name for name in there if name.endswith("/versions") and there[name] == 2}
    assert {**there, **dict.fromkeys(twice, 1)} == wanted


def test_a_run_that_changes_nothing_reads_every_resource_once(runs: tuple[list[Run], list[Json]]) -> None:
    assert_read_once(runs[1])


def test_so_does_a_run_with_all_that_may_be_asked_for(
    clean_world: World,
    provisioned_otherwise: tuple[list[Task], Json],
    play: Callable[..., Run],
    make_inventory: Callable[..., pathlib.Path],
) -> None:
    clean_world.put(provisioned_otherwise[1])
    since = clean_world.count
    again = play(inventory=make_inventory(**OTHERWISE))
    assert (again.code, again.changes) == (0, []), again.errors
    assert_read_once(clean_world.calls(since))


def assert_read_once(calls: list[Json]) -> None:
    reads = Counter(
        (call["method"], call["path"])
        for call in calls
        # google-auth looks up where a credential may be used whenever it likes.
        if call["method"] and not call["method"].endswith("getAllowedLocations")
    )
    again = {method for (method, _path), times in reads.items() if times > 1}
    assert again == set(READ_AGAIN)
    assert max(reads.values()) == 2


def test_a_role_starts_two_modules_at_most(provisioned: tuple[list[Task], Json]) -> None:
    """Starting a module takes longer than all that it reads: a role states what it wants in a task or two."""
    started = Counter(task.role for task in provisioned[0])
    assert {role: times for role, times in started.items() if times > 2} == {}
