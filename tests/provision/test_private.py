"""A server without a public address: made, kept, given one, taken it again, and removed."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.provision.conftest import Json, Task, World, emulated
from tests.provision.test_existing import ACCOUNT, COMPUTE, CONFIRMED, DNS, PROJECT, RECORD, play, tables
from tests.unit.emulator.conftest import Running

SERVER = f"{COMPUTE}/zones/europe-west1-b/instances/mlflow-1"
ADDRESS = f"{COMPUTE}/regions/europe-west1/addresses/mlflow"
CHECKS = f"https://monitoring.googleapis.com/v3/projects/{PROJECT}/uptimeCheckConfigs"
MEMBER = f"serviceAccount:{ACCOUNT}"
PRIVATE = {
    "platform_domain": "mlflow.example.com",
    "platform_dns_zone": "example-com",
    "platform_external_address_enabled": False,
}
TAGS = "gcp_identity,gcp_instance,gcp_dns,gcp_observability"
ROLES = ("playbooks/provision.yml", "--tags", TAGS)
# What those stand on comes with them.
BEGINNING = ("playbooks/provision.yml", "--tags", f"gcp_project,gcp_network,gcp_backup,{TAGS}")


def make_zone(running: Running) -> None:
    """Make somebody's zone, with another record in it."""
    running.server.cloud.state.services[PROJECT].append("dns.googleapis.com")
    running.call("POST", DNS, {"name": "example-com", "dnsName": "example.com.", "description": "Example"})
    record = {"name": "www.example.com.", "type": "A", "ttl": 60, "rrdatas": ["203.0.113.9"]}
    running.call("POST", f"{DNS}/example-com/rrsets", record)


def granted(running: Running, place: str) -> dict[str, list[str]]:
    """Return what the servers' account may do somewhere by roles of the project's own."""
    bindings = running.server.cloud.state.policies.get(place, {}).get("bindings", [])
    own = [one["role"] for one in bindings if MEMBER in one["members"] and one["role"].startswith("projects/")]
    roles = running.server.cloud.state.resources
    return {role.split("/")[-1]: roles[f"iam/{role}"]["includedPermissions"] for role in own}


def test_a_running_server_loses_its_public_address_as_foretold_and_gets_it_back(
    clean_world: World, provisioned: tuple[list[Task], Json], empty: Json, make_inventory: Callable[..., pathlib.Path]
) -> None:
    clean_world.put(provisioned[1])
    running, roles = clean_world.running, ("playbooks/provision.yml", "--tags", "gcp_identity,gcp_instance,gcp_dns")
    try:
        make_zone(running)
        made, there = running.call("GET", SERVER), tables(running)
        predicted, foretold = play(*roles, "--check", "--diff", inventory=make_inventory(**PRIVATE))
        assert tables(running) == there
        closed, changed = play(*roles, "--diff", inventory=make_inventory(**PRIVATE))
        assert changed == foretold, (predicted, closed)
        interface = running.call("GET", SERVER)["networkInterfaces"][0]
        assert "accessConfigs" not in interface, closed
        assert running.call("GET", RECORD)["rrdatas"] == [interface["networkIP"]]
        assert running.refused("GET", ADDRESS)["code"] == 404
        zone = f"projects/{PROJECT}/managedZones/example-com"
        assert "dns.changes.create" in granted(running, zone)["mlflow_certificate"]

        play(*roles, inventory=make_inventory(**PRIVATE | {"platform_external_address_enabled": True}))
        opened = running.call("GET", SERVER)
        address = running.call("GET", ADDRESS)["address"]
        assert [one["natIP"] for one in opened["networkInterfaces"][0]["accessConfigs"]] == [address]
        assert running.call("GET", RECORD)["rrdatas"] == [address]
        assert granted(running, zone) == {}
        assert opened["id"] == made["id"]
    finally:
        clean_world.put(empty)


@pytest.mark.long
def test_a_server_without_a_public_address_comes_changes_and_goes(
    tmp_path_factory: pytest.TempPathFactory, make_inventory: Callable[..., pathlib.Path]
) -> None:
    with emulated(tmp_path_factory) as running:
        make_zone(running)
        come_change_and_go(running, make_inventory)


def come_change_and_go(running: Running, make_inventory: Callable[..., pathlib.Path]) -> None:
    """Take an empty project through all of it."""
    inventory = make_inventory(**PRIVATE)
    play(*BEGINNING, inventory=inventory)

    def seen() -> tuple[list[Any], list[str], int]:
        """Return the server's access configs, the record, and how many checks there are from outside."""
        interface = running.call("GET", SERVER)["networkInterfaces"][0]
        checks = running.call("GET", CHECKS).get("uptimeCheckConfigs", [])
        return interface.get("accessConfigs", []), running.call("GET", RECORD)["rrdatas"], len(checks)

    internal = running.call("GET", SERVER)["networkInterfaces"][0]["networkIP"]
    assert seen() == ([], [internal], 0)
    assert running.refused("GET", ADDRESS)["code"] == 404
    place, zone = f"projects/{PROJECT}", f"projects/{PROJECT}/managedZones/example-com"
    assert not [one for one in granted(running, place)["mlflow_server"] if ".dns" in one or "create" in one]
    assert "dns.managedZones.list" in granted(running, place)["mlflow_server"]
    assert "dns.changes.create" in granted(running, zone)["mlflow_certificate"]

    # All but this is as it was: an address given by hand is taken back, and another record mended.
    running.done(running.call("POST", f"{SERVER}/addAccessConfig?networkInterface=nic0", {"name": "by-hand"}))
    running.call("PATCH", RECORD, {"rrdatas": ["203.0.113.7"]})
    mended, changed = play(*ROLES, inventory=inventory)
    assert (changed, seen()) == (2, ([], [internal], 0)), mended

    made = running.call("GET", SERVER)["id"]
    public = make_inventory(**{**PRIVATE, "platform_external_address_enabled": True})
    there = tables(running)
    predicted, foretold = play(*ROLES, "--check", inventory=public)
    assert tables(running) == there
    opened, changed = play(*ROLES, inventory=public)
    address = running.call("GET", ADDRESS)["address"]
    configs, record, checks = seen()
    assert ([one["natIP"] for one in configs], record, checks) == ([address], [address], 1), opened
    assert changed == foretold, (predicted, opened)
    assert granted(running, zone) == {}
    assert not [one for one in granted(running, place)["mlflow_server"] if one.startswith("dns.")]
    assert play(*ROLES, inventory=public)[1] == 0

    closed, _ = play(*ROLES, inventory=inventory)
    assert seen() == ([], [internal], 0), closed
    assert running.refused("GET", ADDRESS)["code"] == 404
    assert running.call("GET", SERVER)["id"] == made

    removed, _ = play("playbooks/destroy.yml", *CONFIRMED, inventory=inventory)
    assert running.refused("GET", RECORD)["code"] == 404, removed
    assert granted(running, zone) == {}
    left = [one["name"] for one in running.call("GET", f"{DNS}/example-com/rrsets")["rrsets"]]
    assert "www.example.com." in left
