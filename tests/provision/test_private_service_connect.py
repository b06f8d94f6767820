"""Private Service Connect in place of private services access: made, left alone, mended, removed, and never swapped."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import pytest

from tests.provision.conftest import emulated
from tests.provision.test_existing import COMPUTE, CONFIRMED, DNS, LOGS, PROJECT, SQL, play, tables
from tests.unit.emulator.conftest import Running

SWITCH = "platform_sql_private_service_connect_enabled"
REGION = f"{COMPUTE}/regions/europe-west1"
NAME = "mlflow-private-service-connect"
BUCKET = ("-e", f"platform_destroy_bucket={PROJECT}-mlflow-artifacts")
REMOVED = (*CONFIRMED, *LOGS, *BUCKET, "-e", "platform_destroy_database=mlflow")
PROVISION = "playbooks/provision.yml"
ROLES = ("--tags", "gcp_network,gcp_sql")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An emulated cloud of its own."""
    with emulated(tmp_path_factory) as running:
        yield running


def test_an_endpoint_is_made_left_alone_mended_and_removed(
    running: Running, make_inventory: Callable[..., pathlib.Path]
) -> None:
    inventory = make_inventory(**{SWITCH: True})
    before = tables(running)
    predicted, _ = play(PROVISION, "--check", inventory=inventory)
    assert tables(running) == before, predicted

    play(PROVISION, inventory=inventory)
    assert play(PROVISION, *ROLES, inventory=inventory)[1] == 0
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

    # The endpoint stands in the network, which goes; the instance does not.
    kept, _ = play("playbooks/destroy.yml", *CONFIRMED, inventory=inventory)
    assert f"delete compute.forwardingRules {NAME}" in kept, kept
    assert running.call("GET", f"{SQL}/mlflow")["state"] == "RUNNABLE"
    assert running.refused("GET", f"{COMPUTE}/global/networks/mlflow")["code"] == 404

    play("playbooks/destroy.yml", *REMOVED, inventory=inventory)
    left = tables(running)["resources"].keys() - before["resources"].keys()
    # Google keeps the accounts of its own services.
    assert [name for name in left if not name.startswith(("agents/", "iam/projects/compute-system/"))] == []


def test_an_instance_that_is_there_is_not_swapped(
    running: Running, make_inventory: Callable[..., pathlib.Path]
) -> None:
    sql = ("--tags", "gcp_network,gcp_identity,gcp_sql,gcp_project")
    # Another name: Cloud SQL keeps that of an instance which was removed.
    play(PROVISION, *sql, inventory=make_inventory(platform_name="other"))
    switched = make_inventory(platform_name="other", **{SWITCH: True})
    before = tables(running)
    for mode in (("--check",), ()):
        refused, _ = play(PROVISION, "--tags", "gcp_sql", *mode, inventory=switched, code=2)
        assert "settings.ipConfiguration.pscConfig.pscEnabled is false, wanted true" in refused, refused
        assert "Google cannot change this in place" in refused
    assert tables(running) == before
