"""What the scenarios' tests share."""

import json
import os
import pathlib
import subprocess
from collections.abc import Callable

import pytest
from testinfra.host import Host

Converge = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def converge(host: Host) -> Converge:
    """Run the scenario's converge.yml again on this host: options and variables in, the finished process out."""
    # Molecule forces colours, whose codes would stand in the middle of sentences.
    environment = os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
    playbook = pathlib.Path(environment["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml"

    def run(*options: str, **variables: object) -> "subprocess.CompletedProcess[str]":
        limits = ["--inventory", environment["MOLECULE_INVENTORY_FILE"], "--limit", host.backend.get_hostname()]
        return subprocess.run(
            ["ansible-playbook", *limits, *options, "--extra-vars", json.dumps(variables), str(playbook)],
            cwd=environment["MOLECULE_PROJECT_DIRECTORY"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
