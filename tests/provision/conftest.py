"""Provisioning against the emulated cloud in this process: nothing here needs Docker."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import module as module_util
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.reference import among, resolved
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import GoogleTransport, Session

from tests.unit.emulator.conftest import PROJECT, Running, serving

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOCAL = ROOT / "inventories" / "local"
PROVISION = "playbooks/provision.yml"
COLLECTION = "mlops.mlflow_gcp."
MODULES = "ansible_collections.mlops.mlflow_gcp.plugins.modules"
# POST methods that write nothing.
READING = ("getIamPolicy", "testIamPermissions", "getEffectiveOrgPolicy", ".wait")
# What Google counts and stamps by itself.
STAMPS = {
    *("etag", "fingerprint", "labelFingerprint", "metageneration", "settingsVersion"),
    *("updated", "updateTime", "timeUpdated", "createTime", "timeCreated", "creationTimestamp"),
    *("mutationRecord", "creationRecord", "lastStartTimestamp", "lastStopTimestamp"),
    *("id", "uniqueId", "oauth2ClientId"),
}
Json = dict[str, Any]
# What an environment can do without, and may ask for.
OTHERWISE: Json = {
    "platform_domain": "mlflow.example.com",
    "platform_dns_zone": "example-com",
    "platform_log_destination": "dataset",
    "platform_sql_private_service_connect_enabled": True,
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What a task of a role asked a module of this collection for, and what the module answered."""

    role: str
    module: str
    arguments: Json
    result: Json

    @property
    def members(self) -> list[Json]:
        """The resources that a gcp_resource stated, each as it would be stated alone."""
        return list(self.resolved("resources")) if self.module == "gcp_resource" else []

    def resolved(self, option: str) -> Any:
        """Return an option with what its references stood for."""
        return resolved(self.arguments.get(option, []), among(self.result.get("resources", []), check_mode=False))


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished playbook run; `output` is the report of the callback ansible.posix.json."""

    code: int
    output: str

    @property
    def tasks(self) -> list[Task]:
        """The tasks of this collection's modules, in the order in which they ran."""
        plays = json.loads(self.output[self.output.index("{\n") :])["plays"]
        return [
            Task(
                task["task"]["path"].partition("/roles/")[2].partition("/")[0],
                result["action"].removeprefix(COLLECTION),
                given(result["invocation"]["module_args"]),
                result,
            )
            for play in plays
            for task in play["tasks"]
            for result in task["hosts"].values()
            if result["action"].startswith(COLLECTION) and "invocation" in result
        ]

    @property
    def errors(self) -> list[str]:
        """What the tasks that failed said."""
        return [task.result["msg"] for task in self.tasks if task.result.get("failed")]

    @property
    def outcomes(self) -> list[Any]:
        """What every module says it did, or in check mode would do."""
        return [outcome(task.result) for task in self.tasks]

    @property
    def changes(self) -> list[str]:
        return [change for task in self.tasks for change in task.result.get("changes", [])]


def given(options: Json) -> Json:
    """Return the options that have a value, those of the members of a batch included; a body keeps its nulls."""

    def inner(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [given(one) if isinstance(one, dict) else one for one in value]
        return given(value) if name == "sql_users" else value

    return {name: inner(name, value) for name, value in options.items() if value is not None}


class Replay:
    """Tasks of one run carried out again in another project's state, where Google gives other names."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def task(self, task: Task) -> Task:
        """Return the task with the names of now."""
        text = json.dumps(task.arguments)
        for old, new in self._names.items():
            text = text.replace(old, new)
        return dataclasses.replace(task, arguments=json.loads(text))

    def note(self, task: Task, result: Json) -> None:
        """Remember what Google has named otherwise this time."""
        for old, new in zip(task.result.get("resources", []), result.get("resources", []), strict=True):
            before, after = (one.get("resource") or {} for one in (old, new))
            for field, mark in (("name", "/"), ("serviceAccountEmailAddress", "@")):
                if mark in before.get(field, "") and field in after:
                    self._names[before[field]] = after[field]


def outcome(result: Json) -> Json:
    """Return what a module says of its changes, field by field; one that only reads says nothing."""
    if "changes" not in result:
        return {"changed": False}
    members = [one for key in ("resources", "secrets", "users", "policies") for one in result.get(key, [])]
    return {
        "changed": result["changed"],
        "changes": result["changes"],
        "diff": result["diff"],
        "members": [(one.get("kind"), one["name"], one.get("action"), one["differences"]) for one in members],
    }


def unstamped(value: Any) -> Any:
    """Return what a user can see of a value: without counters, times, and the numbers that Google gives."""
    if isinstance(value, str):
        return re.sub(r"\d{12,}", "<number>", value)
    if isinstance(value, dict):
        return {key: unstamped(content) for key, content in value.items() if key not in STAMPS}
    return [unstamped(element) for element in value] if isinstance(value, list) else value


def visible(tables: Json) -> Json:
    """Return the resources, services and policies of a state, without counters and times."""
    policies = {
        name: {
            (binding["role"], json.dumps(binding.get("condition")), member)
            for binding in policy.get("bindings", [])
            for member in binding["members"]
        }
        for name, policy in tables["policies"].items()
    }
    return {"resources": unstamped(tables["resources"]), "services": tables["services"], "policies": policies}


class World:
    """The emulated cloud with its state in hand, and the modules run against it in this process."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.state = running.server.cloud.state
        self.transport = GoogleTransport(PROJECT)
        self.offset = 0.0

    # State

    def tables(self) -> Json:
        """Return a copy of everything that the cloud keeps, but its operations."""
        with self.state.lock:
            kept = {name: table for name, table in self.state.tables().items() if name not in ("operations", "last_id")}
            return copy.deepcopy(kept)

    def put(self, tables: Json) -> None:
        """Put the cloud into a state, with no operation under way and no fault asked for."""
        self.running.server.clear_faults()
        with self.state.lock:
            self.state.operations.clear()
            for name, table in copy.deepcopy(tables).items():
                setattr(self.state, name, table)

    def visible(self) -> Json:
        """Return what a user can see of the cloud now."""
        return visible(self.tables())

    # Calls

    def calls(self, since: int = 0) -> list[Json]:
        """Return the calls from a number on."""
        lines = (self.running.state / "calls.jsonl").read_text().splitlines()[since:]
        return [json.loads(line) for line in lines]

    @property
    def count(self) -> int:
        """Number of calls until now."""
        return int(self.running.server._count)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Fail when the block writes anything."""
        before, since = self.tables(), self.count
        yield
        assert writes(self.calls(since)) == []
        assert self.tables() == before

    # Modules

    def sleep(self, seconds: float) -> None:
        """Let time pass quickly."""
        self.offset += seconds
        time.sleep(min(seconds, 0.01))

    def session(self, project: str = PROJECT, **options: Any) -> Session:
        """Return a session for which time passes quickly."""
        options = {"transport": self.transport, **options}
        return Session(project, sleep=self.sleep, clock=lambda: time.monotonic() + self.offset, **options)

    def module(self, name: str, arguments: Json, *, check: bool = False) -> Json:
        """Run a module and return its result, `failed` among it when it failed."""
        printed = io.StringIO()
        main = importlib.import_module(f"{MODULES}.{name}").main
        with (
            pytest.MonkeyPatch.context() as patch,
            patch_module_args({**given(arguments), "_ansible_check_mode": check}),
            contextlib.redirect_stdout(printed),
        ):
            patch.setattr(module_util, "Session", self.session)
            with pytest.raises(SystemExit):
                main()
        result: Json = json.loads(printed.getvalue())
        return result

    def done(self, name: str, arguments: Json, *, check: bool = False) -> Json:
        """Run a module that must not fail."""
        result = self.module(name, arguments, check=check)
        assert not result.get("failed"), result["msg"]
        return result

    def foretold(self, name: str, arguments: Json) -> Json:
        """Run a module as a check, which writes nothing, then really: both say the same. Return the result."""
        with self.untouched():
            foretold = self.done(name, arguments, check=True)
        result = self.done(name, arguments)
        assert outcome(result) == outcome(foretold)
        return result


def by_collection(tables: Json) -> Counter[str]:
    """Return how many resources there are of each collection: some names end in what Google chose."""
    return Counter(name.rpartition("/")[0] for name in tables["resources"])


def differing(before: Json, after: Json) -> list[str]:
    """Return each field of each resource, service and policy that differs between two states, with both values."""
    found = []
    for table in before:
        for name in sorted({*before[table], *after[table]}):
            left, right = before[table].get(name), after[table].get(name)
            if isinstance(left, dict) and isinstance(right, dict):
                fields = [key for key in {**left, **right} if left.get(key) != right.get(key)]
                found += [f"{name} {key}: {left.get(key)} -> {right.get(key)}" for key in fields]
            elif left != right:
                found.append(f"{name}: {left} -> {right}")
    return found


def writes(calls: list[Json]) -> list[Json]:
    """Return the calls of an API that write something."""
    return [call for call in calls if call["verb"] != "GET" and call["method"] and not call["method"].endswith(READING)]


@contextlib.contextmanager
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Serve an emulated cloud until the context ends, and lead this process' clients there."""
    with pytest.MonkeyPatch.context() as patch, serving(tmp_path_factory.mktemp("cloud"), patch) as running:
        yield running


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The emulated cloud, one for all tests."""
    with emulated(tmp_path_factory) as running:
        yield running


@pytest.fixture(scope="session")
def clean_world(running: Running) -> World:
    return World(running)


@pytest.fixture(scope="session")
def empty(clean_world: World) -> Json:
    """The state of an empty project."""
    return clean_world.tables()


@pytest.fixture(scope="session")
def play(running: Running) -> Callable[..., Run]:
    """Return a function that runs a playbook to its end; `begin` starts it and returns the process."""

    def run(*arguments: str, inventory: pathlib.Path = LOCAL, playbook: str = PROVISION) -> Run:
        return ended(begun(*arguments, inventory=inventory, playbook=playbook))

    return run


def begun(*arguments: str, inventory: pathlib.Path = LOCAL, playbook: str = PROVISION) -> subprocess.Popen[str]:
    """Start a playbook."""
    return subprocess.Popen(
        ["ansible-playbook", playbook, "-i", str(inventory), *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> Run:
    """Return the finished run."""
    output, _ = process.communicate(timeout=600)
    return Run(process.returncode, output)


@pytest.fixture(scope="session")
def make_inventory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., pathlib.Path]:
    """Return a function that copies the local inventory with other values."""

    def make(**values: Any) -> pathlib.Path:
        inventory = tmp_path_factory.mktemp("inventory") / "inventory"
        shutil.copytree(LOCAL, inventory)
        variables = inventory / "group_vars" / "platform" / "main.yml"
        variables.write_text(yaml.safe_dump({**yaml.safe_load(variables.read_text()), **values}))
        return inventory

    return make


@pytest.fixture(scope="session")
def provisioned(clean_world: World, empty: Json, play: Callable[..., Run]) -> tuple[list[Task], Json]:
    """What the roles ask of the modules in one run, and the state that it leads to."""
    clean_world.put(empty)
    run = play()
    assert run.code == 0, run.errors
    return run.tasks, clean_world.tables()


@pytest.fixture(scope="session")
def provisioned_otherwise(
    clean_world: World, empty: Json, play: Callable[..., Run], make_inventory: Callable[..., pathlib.Path]
) -> tuple[list[Task], Json]:
    """The same where an environment asks for more."""
    clean_world.put(empty)
    zone = {"name": "example-com", "dnsName": "example.com.", "description": "The operator's"}
    clean_world.running.server.cloud.state.services[PROJECT].append("dns.googleapis.com")
    clean_world.running.call("POST", f"https://dns.googleapis.com/dns/v1/projects/{PROJECT}/managedZones", zone)
    run = play(inventory=make_inventory(**OTHERWISE))
    assert run.code == 0, run.errors
    return run.tasks, clean_world.tables()


@pytest.fixture
def world(clean_world: World, provisioned: tuple[list[Task], Json]) -> World:
    """The cloud as a run of provision.yml leaves it."""
    clean_world.put(provisioned[1])
    return clean_world


@pytest.fixture
def tasks(provisioned: tuple[list[Task], Json]) -> list[Task]:
    """What the roles ask of the modules."""
    return provisioned[0]
