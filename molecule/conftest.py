"""What the scenarios' tests share."""

import contextlib
import json
import os
import pathlib
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

Converge = Callable[..., "subprocess.CompletedProcess[str]"]
Begin = Callable[..., "subprocess.Popen[str]"]
# Rows for docs/upgrades.md, by `make upgrades`.
TABLE = pathlib.Path(__file__).parents[1] / "build" / "upgrades.md"


@pytest.fixture
def once(host: Host) -> None:
    """Try on the newer system alone what takes long and is the same work on both."""
    if host.backend.get_hostname().endswith("-debian-12"):
        pytest.skip("tried on Debian 13")


@pytest.fixture
def begin(host: Host, once: None) -> Begin:
    """Begin the scenario's converge.yml, or another playbook, on this host in a process group of its own.

    Its output is to be read.
    """
    # Molecule forces colours, whose codes would stand in the middle of sentences.
    environment = os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
    own = pathlib.Path(environment["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml"

    def run(*options: str, playbook: pathlib.Path = own, **variables: object) -> "subprocess.Popen[str]":
        limits = ["--inventory", environment["MOLECULE_INVENTORY_FILE"], "--limit", host.backend.get_hostname()]
        return subprocess.Popen(
            ["ansible-playbook", *limits, *options, "--extra-vars", json.dumps(variables), str(playbook)],
            cwd=environment["MOLECULE_PROJECT_DIRECTORY"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return run


@pytest.fixture
def converge(begin: Begin) -> Converge:
    """Run what `begin` begins to its end: options and variables in, the finished process out."""

    def run(*options: str, **arguments: Any) -> "subprocess.CompletedProcess[str]":
        process = begin(*options, **arguments)
        output, _ = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output, "")

    return run


@pytest.fixture
def open_paths() -> set[str]:
    """Return what is answered to everybody: the health check, and the files of the page, which MLflow publishes."""
    return {"/health", "/static-files/1"}


@pytest.fixture
def walk(host: Host) -> Callable[..., tuple[set[str], set[tuple[str, int]]]]:
    """Ask for every route of the installed MLflow, as walk_routes.py says.

    Returns all paths, and those with their status that were answered by something else than 401.
    """
    program = pathlib.Path(__file__).parent / "mlflow/walk_routes.py"

    def run(*arguments: str) -> tuple[set[str], set[tuple[str, int]]]:
        host.run_expect([0], "cat >/srv/walk_routes.py <<'END'\n" + program.read_text() + "END")
        command = ["/etc/mlflow/live/release/bin/python", "-B", "-W", "ignore", "/srv/walk_routes.py", *arguments]
        answers = json.loads(host.check_output(shlex.join(command)))
        paths = {path for _, _, path in answers}
        assert len(paths) > 400
        return paths, {(path, status) for status, _, path in answers if status != 401}

    return run


@pytest.fixture
def clients(host: Host, request: pytest.FixtureRequest) -> Callable[..., contextlib.AbstractContextManager[None]]:
    """A context in which load.py's clients work, and at whose end none of their requests may have failed.

    It lasts until there were as many requests as are asked for: too few would prove nothing.
    """

    @contextlib.contextmanager
    def working(fewest: int = 200) -> Iterator[None]:
        password = "admin-secret-5c3e"
        host.check_output(
            "rm -rf /srv/load && mkdir /srv/load && rm -rf /var/lib/mlflow/artifacts/*"
            f" && systemd-run --quiet --collect --unit=load python3 /srv/load.py /srv/load {password}"
        )
        time.sleep(5)
        try:
            yield
            time.sleep(5)
            # Slow machines have slow clients.
            deadline = time.monotonic() + fewest / 5
            while int(host.file("/srv/load/requests").content_string or 0) < fewest and time.monotonic() < deadline:
                time.sleep(5)
        finally:
            host.check_output("touch /srv/load/stop")
            deadline = time.monotonic() + 300
            while not host.file("/srv/load/report.json").exists:
                assert time.monotonic() < deadline, host.run("journalctl --unit=load --no-pager").stdout
                time.sleep(1)
        report = json.loads(host.file("/srv/load/report.json").content_string)
        scenario = (
            request.node.originalname.removeprefix("test_").removesuffix("_fails_no_request").removesuffix("_and")
        )
        system = {"upgrade-debian-12": "Debian 12", "upgrade-debian-13": "Debian 13"}
        cells = [
            scenario.replace("_", " ").replace("debians", "Debian's"),
            system.get(host.backend.get_hostname(), "three servers"),
            report["requests"],
            len(report["failed"]),
            report["slowest_seconds"],
            round(report["seconds"]),
            f"{report['runs']} runs, {report['bytes'] >> 20} MiB",
        ]
        TABLE.parent.mkdir(exist_ok=True)
        with TABLE.open("a") as file:
            file.write("| " + " | ".join(map(str, cells)) + " |\n")
        assert report["failed"] == []
        assert report["requests"] >= fewest
        assert report["kinds"]["slow upload"]

    return working
