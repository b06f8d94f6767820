"""Private Service Connect in place of private services access: mended, never swapped, removed."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator

import pytest

from tests.provision.conftest import emulated
from tests.provision.test_existing import COMPUTE, CONFIRMED, DNS, SQL, play, tables
from tests.unit.emulator.conftest import Running

SWITCH = "platform_sql_private_service_connect_enabled"
REGION = f"{COMPUTE}/regions/europe-west1"
NAME = "mlflow-private-service-connect"
PROVISION = "playbooks/provision.yml"
ROLES = ("--tags", "gcp_network,gcp_sql")
# What those two stand on comes with them.
BEGINNING = ("--tags", "gcp_project,gcp_identity,gcp_network,gcp_sql")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An emulated cloud of its own."""
    with emulated(tmp_path_factory) as running:
        yield running


@pytest.mark.long
def test_an_endpoint_is_mended_never_swapped_and_removed(
    running: Running, make_inventory: Callable[..., pathlib.Path]
) -> None:
    inventory = make_inventory(**{SWITCH: True})
    play(PROVISION, *BEGINNING, inventory=inventory)
    instance = running.call("GET", f"{SQL}/mlflow")
    rule, address = (running.call("GET", f"{REGION}/{kind}/{NAME}") for kind in ("forwardingRules", "addresses"))
    assert rule["target"].endswith(instance["pscServiceAttachmentLink"])
    assert (rule["pscConnectionStatus"], rule["IPAddress"]) == ("ACCEPTED", address["address"])
    record = f"{DNS}/{NAME}/rrsets/{instance['dnsName']}/A"
    assert running.call("GET", record)["rrdatas"] == [address["address"]]
    assert not [name for name in tables(running)["resources"] if name.startswith("servicenetworking/")]

    running.call("PATCH", record, {"rrdatas": ["10.10.0.99"]})
    running.call("PATCH", f"{DNS}/{NAME}", {"description": "Somebody's"})
    running.done(running.call("DELETE", f"{REGION}/forwardingRules/{NAME}"))
    nobody = {"settings": {"ipConfiguration": {"pscConfig": {"allowedConsumerProjects": []}}}}
    running.done(running.call("PATCH", f"{SQL}/mlflow", nobody))
    mended, changed = play(PROVISION, *ROLES, inventory=inventory)
    assert changed == 2, mended
    assert running.call("GET", record)["rrdatas"] == [address["address"]]
    assert running.call("GET", f"{REGION}/forwardingRules/{NAME}")["pscConnectionStatus"] == "ACCEPTED"
    assert play(PROVISION, *ROLES, "--check", inventory=inventory)[1] == 0

    there = tables(running)
    refused, _ = play(PROVISION, "--tags", "gcp_sql", inventory=make_inventory(**{SWITCH: False}), code=2)
    assert "settings.ipConfiguration.pscConfig.pscEnabled is true, wanted false" in refused, refused
    assert "Google cannot change this in place" in refused
    assert tables(running) == there

    # The endpoint stands in the network, which goes; the instance does not.
    kept, _ = play("playbooks/destroy.yml", *CONFIRMED, inventory=inventory)
    assert f"delete compute.forwardingRules {NAME}" in kept, kept
    assert running.call("GET", f"{SQL}/mlflow")["state"] == "RUNNABLE"
    assert running.refused("GET", f"{COMPUTE}/global/networks/mlflow")["code"] == 404


@pytest.mark.long
def test_a_drill_makes_an_endpoint_whatever_the_deployments_name(
    running: Running, make_inventory: Callable[..., pathlib.Path]
) -> None:
    name = "m" * 23
    inventory = make_inventory(**{SWITCH: True, "platform_name": name})
    (inventory / "gcp.yml").write_text((inventory / "gcp.yml").read_text().replace("= mlflow", f"= {name}"))
    said = {
        "gcp_backup_mlflow": {"version": "3.17.2", "lock_sha256": ""},
        "gcp_backup_certificate": {},
        "gcp_backup_rows": {"tracking": {}, "auth": {}},
    }
    limited = ("--limit", "localhost", "-e", json.dumps(said))
    play(PROVISION, inventory=inventory)
    play("playbooks/backup.yml", *limited, inventory=inventory)
    passed, _ = play("playbooks/drill.yml", *limited, inventory=inventory)
    assert "Drill passed: backup set " in passed
    left = [one for one in running.server.cloud.state.resources if "-drill-" in one]
    assert left == []
