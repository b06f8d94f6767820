"""What the scenarios' tests share."""

import json
import os
import pathlib
import subprocess
from collections.abc import Callable

import pytest
from testinfra.host import Host

Converge = Callable[..., "subprocess.CompletedProcess[str]"]
Begin = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def once(host: Host) -> None:
    """Try on the newer system alone what takes long and is the same work on both."""
    if host.backend.get_hostname().endswith("-debian-12"):
        pytest.skip("tried on Debian 13")


@pytest.fixture
def begin(host: Host, once: None) -> Begin:
    """Begin the scenario's converge.yml again on this host, in a process group of its own; its output is to be read."""
    # Molecule forces colours, whose codes would stand in the middle of sentences.
    environment = os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
    playbook = pathlib.Path(environment["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml"

    def run(*options: str, **variables: object) -> "subprocess.Popen[str]":
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
    """Run the scenario's converge.yml again on this host: options and variables in, the finished process out."""

    def run(*options: str, **variables: object) -> "subprocess.CompletedProcess[str]":
        process = begin(*options, **variables)
        output, _ = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output, "")

    return run
