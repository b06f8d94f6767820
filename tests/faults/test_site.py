"""The whole of site.yml, from nothing, while Google fails: it completes, or says why not and the next run goes on.

Takes too long for every change: `make faults`.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.integration.conftest import Run, exported
from tests.provision.test_faults import CLEAR, FAULTS, STOPPING

ROOT = pathlib.Path(__file__).resolve().parents[2]
PASSING = [name for name in FAULTS if name not in STOPPING and name != "seen late"]
# Methods of the emulated machines' own first boot and of the verification's browser, which no task of ours calls.
OURS = ("operator@", "mlflow-server@")
Json = dict[str, Any]


class World:
    """An emulated cloud in which nothing is, and its own paths."""

    def __init__(self, play: Callable[..., Run], environment: dict[str, str]) -> None:
        self._play, self.environment = play, environment
        self._admin = f"{environment['HTTPS_PROXY']}/_emulator"

    def empty(self) -> None:
        """Begin again from nothing; the address and the operator's key stay."""
        for action in ("down", "up"):
            command = [sys.executable, "-m", "emulator", action]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=1800)
        self.environment.update(exported())

    def ask(self, faults: list[Json]) -> None:
        requests.post(f"{self._admin}/faults", json=faults, timeout=30).raise_for_status()

    def asked(self) -> list[Json]:
        """Return the faults that nobody has met yet."""
        found: list[Json] = requests.get(f"{self._admin}/faults", timeout=30).json()
        return found

    def clear(self) -> None:
        requests.delete(f"{self._admin}/faults", timeout=30).raise_for_status()

    def calls(self) -> list[Json]:
        lines = requests.get(f"{self._admin}/log", timeout=30).text.splitlines()
        return [
            call for call in map(json.loads, lines) if call["method"] and (call["principal"] or "").startswith(OURS)
        ]

    def site(self) -> Run:
        return self._play("site.yml")

    def site_killed_once(self, met: Callable[[], bool]) -> bool:
        """Run site.yml, and kill it some seconds after a condition holds; False when it ended before that."""
        command = ["ansible-playbook", "site.yml", "-i", "inventories/local"]
        options: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, cwd=ROOT, env=self.environment, start_new_session=True, **options) as running:
            while not met() and running.poll() is None:
                time.sleep(0.2)
            time.sleep(3)
            if running.poll() is not None:
                return False
            os.killpg(running.pid, signal.SIGKILL)
        return True


@pytest.fixture(scope="module")
def world(play: Callable[..., Run], environment: dict[str, str]) -> Iterator[World]:
    found = World(play, environment)
    yield found
    found.clear()


@pytest.fixture(scope="module")
def calls(world: World) -> list[Json]:
    """The calls of a run without faults, in a project that was empty: the first of each method."""
    world.empty()
    run = world.site()
    assert run.code == 0, run.output
    first: dict[str, Json] = {}
    for call in world.calls():
        first.setdefault(call["method"], call)
    assert len(first) > 60
    return list(first.values())


@pytest.mark.parametrize("turn", range(len(PASSING)))
def test_what_passes_stops_nobody(world: World, calls: list[Json], turn: int) -> None:
    world.empty()
    kinds = PASSING[turn:] + PASSING[:turn]
    world.ask(
        [
            {"method": call["method"], **fault}
            for number, call in enumerate(calls)
            for fault in FAULTS[kinds[number % len(kinds)]]
        ]
    )

    run = world.site()

    assert run.code == 0, run.output
    missed = world.asked()
    assert len(missed) < len(calls) / 10, missed
    world.clear()
    assert world.site().changed == 0


@pytest.mark.parametrize("turn", range(len(STOPPING)))
def test_what_stops_a_run_is_told_and_the_next_goes_on(world: World, calls: list[Json], turn: int) -> None:
    world.empty()
    stops = 0
    for number, call in enumerate(call for call in calls if call["verb"] != "GET"):
        kind = STOPPING[(number + turn) % len(STOPPING)]
        world.ask([{"method": call["method"], **fault} for fault in FAULTS[kind]])
        before = len(world.asked())
        if "hangs" in kind:
            stopped = world.site_killed_once(lambda before=before: len(world.asked()) < before)
        else:
            run = world.site()
            stopped = run.code != 0
            assert not stopped or any(words in run.output for words in CLEAR), run.output
        stops += stopped
        world.clear()
    assert stops > 10

    run, again = world.site(), world.site()

    assert run.code == 0, run.output
    assert (again.code, again.changed) == (0, 0), again.output
