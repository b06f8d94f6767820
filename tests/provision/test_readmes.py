"""The playbooks in the READMEs of the cloud's roles, each alone, in the order in which one needs the other."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.provision.conftest import ROOT, World, writes
from tests.structure.test_readmes import playbook
from tests.unit.emulator.conftest import PROJECT

ROLES = ["project", "identity", "network", "bucket", "secret", "sql", "backup", "instance", "dns", "observability"]
# As whoever tries a role runs it: nothing but the playbook.
NO_INVENTORY = pathlib.Path("/dev/null")


@pytest.fixture
def world(clean_world: World, empty: dict[str, Any]) -> Iterator[World]:
    """An empty project with the zone that gcp_dns writes to."""
    clean_world.put(empty)
    clean_world.state.services[PROJECT].append("dns.googleapis.com")
    zone = {"name": "example-com", "dnsName": "example.com.", "description": "The operator's"}
    clean_world.running.call("POST", f"https://dns.googleapis.com/dns/v1/projects/{PROJECT}/managedZones", zone)
    yield clean_world
    clean_world.put(empty)


def test_each_makes_what_it_says_and_a_second_run_changes_nothing(
    world: World, play: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    plays = {}
    for role in ROLES:
        plays[role] = playbook(ROOT / f"roles/gcp_{role}").replace("my-project", PROJECT)
        (tmp_path / f"{role}.yml").write_text(plays[role])
        since = world.count
        run = play(inventory=NO_INVENTORY, playbook=str(tmp_path / f"{role}.yml"))
        assert run.code == 0, (role, run.errors or run.output)
        assert writes(world.calls(since)), role
    (tmp_path / "all.yml").write_text("\n".join(plays.values()))
    with world.untouched():
        run = play(inventory=NO_INVENTORY, playbook=str(tmp_path / "all.yml"))
        assert run.code == 0, run.errors or run.output
    assert run.changes == []
