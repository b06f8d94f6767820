"""`make bench`: runs both playbooks and provision.yml against an emulated cloud of their own, and prints a table.

The resources are of Compute Engine: of the others, google.cloud's modules send what the emulated cloud refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import pathlib
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from emulator import environment
from emulator.effects import NoEffects
from emulator.server import Server, Settings

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESOURCES = 12
SERVICES = ("compute",)
ANSIBLE = {
    "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
    "GCP_AUTH_KIND": "application",
    "GCP_PROJECT": environment.PROJECT,
    "GCP_SCOPES": "https://www.googleapis.com/auth/cloud-platform",
}
# Of these calls no playbook is the author: tokens, and google-auth's look-up beside each.
BESIDE = ("oauth2.googleapis.com", "iamcredentials.googleapis.com")


class Cloud:
    """An emulated cloud in this process whose operations take no time, and playbooks that run against it."""

    def __init__(self, server: Server, variables: dict[str, str]) -> None:
        self.server = server
        self.variables = variables

    def run(self, playbook: str, inventory: str) -> tuple[float, float, list[Any], Any]:
        """Run a playbook; return seconds, those of the processor, the API calls and Ansible's report.

        Raises RuntimeError when it fails.
        """
        log = self.server.settings.state / "calls.jsonl"
        before = len(log.read_text().splitlines()) if log.exists() else 0
        started, used = time.monotonic(), _processor_seconds()
        finished = subprocess.run(
            ["ansible-playbook", playbook, "-i", inventory],
            cwd=ROOT,
            env={**os.environ, **self.variables, **ANSIBLE},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds, used = time.monotonic() - started, _processor_seconds() - used
        if finished.returncode:
            raise RuntimeError(f"{playbook} failed: {_failures(finished.stdout)}")
        calls = [json.loads(line) for line in log.read_text().splitlines()[before:]]
        report = json.loads(finished.stdout[finished.stdout.index("{\n") :])
        return seconds, used, [call for call in calls if call["host"] not in BESIDE], report


@contextlib.contextmanager
def serving(directory: pathlib.Path) -> Iterator[Cloud]:
    """Serve an emulated cloud until the context ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = Server(Settings(directory / "state", operation_seconds=0), NoEffects())
    for services in server.cloud.state.services.values():
        services += [f"{name}.googleapis.com" for name in SERVICES]
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    state = server.settings.state
    authority, credentials = (state / "ca.pem").read_text(), (state / "credentials.json").read_text()
    environment.write(authority, credentials, server.settings.proxy_port, directory / "client")
    exports = (directory / "client" / "env").read_text().splitlines()
    variables = dict(line.removeprefix("export ").replace("'", "").split("=", 1) for line in exports)
    try:
        yield Cloud(server, variables)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _processor_seconds() -> float:
    """Return what the processes begun here have used, which another load on the machine does not change."""
    times = os.times()
    return times.children_user + times.children_system


def _failures(output: str) -> list[str]:
    """Return what the tasks that failed said."""
    report = json.loads(output[output.index("{\n") :])
    results = [result for play in report["plays"] for task in play["tasks"] for result in task["hosts"].values()]
    return [str(result.get("msg")) for result in results if result.get("failed") or result.get("unreachable")]


def seconds_by_role(report: Any, calls: list[Any]) -> dict[str, tuple[float, float]]:
    """Return how long the tasks of each role took, and how long of it the cloud was answering."""
    found: dict[str, tuple[float, float]] = {}
    for play in report["plays"]:
        for task in play["tasks"]:
            role = task["task"]["path"].partition("/roles/")[2].partition("/")[0]
            duration = task["task"]["duration"]
            if "end" not in duration:
                continue  # nothing ran, as for a refreshed inventory
            start, end = (datetime.datetime.fromisoformat(duration[at]) for at in ("start", "end"))
            spent, answering = found.get(role, (0.0, 0.0))
            answering += _answering(calls, start.timestamp(), end.timestamp())
            found[role] = (spent + (end - start).total_seconds(), answering)
    found.pop("", None)
    return found


def _answering(calls: list[Any], start: float, end: float) -> float:
    """Return the seconds between two times in which one call at least was being answered."""
    total, until = 0.0, start
    for call in sorted(calls, key=lambda call: call["time"]):
        begun, ended = max(call["time"], until), min(call["time"] + call["seconds"], end)
        if ended > begun:
            total, until = total + ended - begun, ended
    return total


def main() -> None:
    """Print what was measured."""
    with tempfile.TemporaryDirectory() as directory, serving(pathlib.Path(directory)) as cloud:
        print(f"{RESOURCES} resources, emulated cloud, operations take no time; seconds of the whole ansible-playbook")
        print(f"{'':24}{'API calls':>10}{'seconds':>10}{'s/resource':>12}{'processor':>12}")
        took = {}
        for run in ("create", "no-op"):
            for playbook in ("ours", "google_cloud"):
                seconds, used, calls, _ = cloud.run(f"bench/{playbook}.yml", "localhost,")
                took[run, playbook] = (seconds, used)
                print(f"{run:8}{playbook:16}{len(calls):>10}{seconds:>10.1f}{seconds / RESOURCES:>12.2f}{used:>12.1f}")
            ratios = [theirs / ours for theirs, ours in zip(took[run, "google_cloud"], took[run, "ours"], strict=True)]
            print(f"{run:8}google_cloud takes {ratios[0]:.1f} times as long, {ratios[1]:.1f} times the processor")
        cloud.run("playbooks/provision.yml", "inventories/local")
        seconds, _, calls, report = cloud.run("playbooks/provision.yml", "inventories/local")
        print(f"\nprovision.yml with nothing to do: {len(calls)} API calls, {seconds:.1f} s, of which in tasks:")
        print(f"  {'':22}{'seconds':>10}{'API':>8}{'Ansible':>10}")
        for role, (spent, answering) in seconds_by_role(report, calls).items():
            print(f"  {role:22}{spent:>10.2f}{answering:>8.2f}{spent - answering:>10.2f}")


if __name__ == "__main__":
    main()
