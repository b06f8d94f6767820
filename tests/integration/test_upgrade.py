"""A change takes the place of what serves, and gives it back, by the playbooks an operator runs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

Play = Callable[..., Any]


def live(server: str) -> str:
    command = ["docker", "exec", server, "readlink", "/etc/mlflow/live"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.mark.usefixtures("deployment")
def test_an_upgrade_to_the_version_that_serves_changes_nothing(play: Play) -> None:
    for options in [(), ("--check",)]:
        again = play("playbooks/upgrade.yml", *options)
        assert again.code == 0, again.output
        assert again.changed == 0, again.output


@pytest.mark.long
def test_a_change_of_settings_is_taken_back_by_rollback(play: Play, deployment: Any) -> None:
    before = live(deployment.server)
    changed = play("playbooks/configure.yml", "--tags", "mlflow", "-e", "mlflow_auth_cache_ttl_seconds=61")
    assert changed.code == 0, changed.output
    assert live(deployment.server) != before

    back = play("playbooks/rollback.yml")

    assert back.code == 0, back.output
    assert live(deployment.server) == before
    assert play("playbooks/configure.yml", "--tags", "mlflow").changed == 0


@pytest.mark.usefixtures("deployment")
def test_a_version_agreed_to_is_the_one_wanted(play: Play) -> None:
    refused = play("playbooks/upgrade.yml", "-e", "platform_upgrade_confirmed_version=3.17.1")

    assert refused.code != 0
    assert "platform_upgrade_confirmed_version = '3.17.1'" in refused.output
