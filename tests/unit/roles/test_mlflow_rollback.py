"""Which generation each server goes back to, where they differ too."""

from __future__ import annotations

import json
import pathlib
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
Generations = tuple[str, str, bool]


@pytest.mark.parametrize(
    ("servers", "targets"),
    [
        # Live, before it, and whether it came there by going back.
        ([("b", "a", False)], ["a"]),
        ([("b", "", False)], [""]),
        ([("b", "a", False), ("b", "a", False)], ["a", "a"]),
        # Run again after it was killed, or once it has ended.
        ([("a", "b", True), ("b", "a", False)], ["a", "a"]),
        ([("a", "b", True), ("a", "b", True)], ["a", "a"]),
        # An upgrade came to the first alone, or to the last in the list.
        ([("b", "a", False), ("a", "o", False), ("a", "o", False)], ["a", "a", "a"]),
        ([("a", "o", False), ("b", "a", False)], ["a", "a"]),
        # From where it had gone back before.
        ([("b", "a", False), ("a", "b", True)], ["a", "a"]),
    ],
)
def test_every_server_goes_back_to_the_same(
    servers: list[Generations], targets: list[str], tmp_path: pathlib.Path
) -> None:
    hosts = {
        f"server-{number}": {
            "ansible_connection": "local",
            "mlflow_generations": {"live": live, "previous": previous, "rolled_back": rolled_back},
        }
        for number, (live, previous, rolled_back) in enumerate(servers)
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    wanted = {"ansible.builtin.debug": {"var": "__mlflow_target"}}
    play = {
        "hosts": "all",
        "gather_facts": False,
        "serial": 1,
        "vars_files": [str(ROOT / "roles/mlflow/vars/main.yml")],
        "tasks": [wanted],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    command = ["ansible-playbook", "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    told = [yaml.safe_load(line) for line in done.stdout.splitlines() if "__mlflow_target:" in line]
    assert [one["__mlflow_target"] for one in told] == targets
