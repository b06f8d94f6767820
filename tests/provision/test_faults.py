"""Provisioning while Google fails: a run completes or stops with a clear error, and the next one completes."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import READING_METHODS

from tests.provision.conftest import Json, Replay, Task, World, by_collection

# What befalls the next calls of one method. Those of an operation befall only methods that begin one, and what was
# made is seen late by its own read.
FAULTS: dict[str, list[Json]] = {
    "busy for a moment": [{"status": 429}, {"status": 500}, {"status": 503}],
    "away for long": [{"status": 503, "times": 1000}],
    "no answer, nothing done": [{"no_answer": "before"}],
    "no answer, yet done": [{"no_answer": "after"}],
    "never an answer": [{"no_answer": "after", "times": 1000}],
    "seen late": [{"status": 404, "times": 2}],
    "the operation fails": [{"operation_error": "The zone is out of resources."}],
    "the operation hangs": [{"operation_hangs": True}],
}
# From these nobody recovers in one run: the section of docs/failures.md that the message ends with.
STOPPING = {
    "away for long": "google-is-out-of-reach",
    "never an answer": "google-is-out-of-reach",
    "the operation fails": "an-operation-failed",
    "the operation hangs": "an-operation-takes-too-long",
}
# How the core of the modules words what went wrong.
CLEAR = (
    "(HTTP ",
    "no answer from",
    "could not be reached",
    "The zone is out of resources.",
    "not done after",
    "not attempted, as it needs",
)


@dataclasses.dataclass(frozen=True)
class Step:
    """A task of a role: the state before it, the methods that it calls, and what is there afterwards."""

    task: Task
    before: Json
    methods: list[str]
    after: Counter[str]


@pytest.fixture(scope="module")
def steps(clean_world: World, empty: Json, provisioned: tuple[list[Task], Json]) -> list[Step]:
    """The tasks of provision.yml, one after the other, in a project that is empty at first."""
    world, found = clean_world, []
    world.put(empty)
    replay = Replay()
    for captured in provisioned[0]:
        task, before, since = replay.task(captured), world.tables(), world.count
        replay.note(captured, world.done(task.module, task.arguments))
        methods = {call["method"] for call in world.calls(since) if call["method"]}
        methods = {method for method in methods if not method.endswith("getAllowedLocations")}
        found.append(Step(task, before, sorted(methods), by_collection(world.tables())))
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_task_completes_or_stops_with_a_clear_error_and_the_next_run_completes(
    clean_world: World, steps: list[Step], fault: str
) -> None:
    world, completed, stopped = clean_world, [], []
    for step in steps:
        for method in step.methods:
            if "operation" in fault and not begins_operation(world, method):
                continue
            maker = made_by(method, step.methods) if fault == "seen late" else {}
            if maker is None:
                continue
            world.put(step.before)
            world.running.server.faults += [{"times": 1, "method": method, **maker, **one} for one in FAULTS[fault]]
            hurried = {"timeout_seconds": 1} if "hangs" in fault else {}
            result = world.module(step.task.module, {**step.task.arguments, **hurried})
            world.running.server.clear_faults()
            if result.get("failed"):
                stopped.append((method, result["msg"]))
                where = (method, step.task.role, result["msg"])
                *lines, more = result["msg"].splitlines()
                assert all(any(words in line for words in CLEAR) for line in lines), where
                assert more == f"More: docs/failures.md#{STOPPING.get(fault)}", where
            else:
                completed.append(method)
            world.done(step.task.module, step.task.arguments)
            assert by_collection(world.tables()) == step.after, (method, step.task.role)
            with world.untouched():
                assert not world.done(step.task.module, step.task.arguments)["changed"], (method, step.task.role)
    assert completed or fault in STOPPING
    # What passes must not stop anybody.
    assert stopped == [] or fault in STOPPING


def made_by(method: str, methods: list[str]) -> Json | None:
    """Return the fault's condition that what is read has been made, None when no method here makes it."""
    collection, _, verb = method.rpartition(".")
    makers = [f"{collection}.{create}" for create in ("insert", "create") if f"{collection}.{create}" in methods]
    return {"after": makers[0]} if verb == "get" and makers else None


def begins_operation(world: World, method: str) -> bool:
    """Whether a method of the emulated cloud answers with an operation that it began."""
    documents = world.running.server.cloud.directory.documents.values()
    found = next(one for document in documents for one in document.methods if one.id == method)
    return found.response == "Operation" and found.verb != "GET" and method.rpartition(".")[2] not in READING_METHODS
