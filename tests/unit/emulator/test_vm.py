"""gcp_vm's core, with google-cloud-compute's own clients, against the emulated cloud."""

import time
from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError, Session
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.vm import WantedVm, ensure_vm

ZONE = "https://compute.googleapis.com/compute/v1/projects/demo-project/zones/us-central1-b"
MACHINE = f"{ZONE}/instances/mlflow-1"
DISK = f"{ZONE}/disks/mlflow-1"


def ensure(*, check_mode: bool = False, timeout_seconds: float = 60, **wanted: Any) -> dict[str, Any]:
    """Bring the machine to e2-standard-2 with 50 GiB, but for what is wanted."""
    session = Session("demo-project", check_mode=check_mode, timeout_seconds=timeout_seconds)
    options = {"machine_type": "e2-standard-2", "disk_size_gib": 50, **wanted}
    result: dict[str, Any] = ensure_vm(session, WantedVm("us-central1-b", "mlflow-1", **options))
    return result


@pytest.fixture
def machine(cloud: Any) -> dict[str, Any]:
    """Return a running e2-standard-2 with 50 GiB."""
    base = "https://compute.googleapis.com/compute/v1/projects/demo-project"
    cloud.done(cloud.call("POST", f"{base}/global/networks", {"name": "mlflow", "autoCreateSubnetworks": False}))
    network = {
        "name": "mlflow",
        "network": "projects/demo-project/global/networks/mlflow",
        "ipCidrRange": "10.0.0.0/24",
    }
    cloud.done(cloud.call("POST", f"{base}/regions/us-central1/subnetworks", network))
    image = {"sourceImage": "projects/debian-cloud/global/images/family/debian-12", "diskSizeGb": "50"}
    body = {
        "name": "mlflow-1",
        "machineType": "zones/us-central1-b/machineTypes/e2-standard-2",
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": image}],
        "networkInterfaces": [{"subnetwork": "projects/demo-project/regions/us-central1/subnetworks/mlflow"}],
    }
    cloud.done(cloud.call("POST", f"{ZONE}/instances", body))
    made: dict[str, Any] = cloud.call("GET", MACHINE)
    return made


def test_a_machine_of_the_wanted_size_is_left_alone(cloud: Any, machine: dict[str, Any]) -> None:
    assert ensure()["changed"] is False
    assert cloud.call("GET", MACHINE) == machine


def test_one_that_is_not_there_is_left_to_whoever_makes_it(cloud: Any) -> None:
    del cloud
    assert ensure(machine_type="e2-standard-4") == {
        "changed": False,
        "changes": [],
        "diff": [],
        "differences": [],
    }


@pytest.mark.usefixtures("machine")
def test_the_machine_type_changes_by_a_stop_that_is_allowed(cloud: Any) -> None:
    wanted = {"machine_type": "e2-standard-4", "allow_stopping": True}
    predicted = ensure(check_mode=True, **wanted)
    assert cloud.call("GET", MACHINE)["machineType"].endswith("e2-standard-2")
    done = ensure(**wanted)
    assert done["differences"] == predicted["differences"]
    assert done["changes"] == ["update compute.instances mlflow-1: machineType"]
    after = cloud.call("GET", MACHINE)
    assert (after["machineType"].rsplit("/", 1)[-1], after["status"]) == ("e2-standard-4", "RUNNING")
    assert ensure(**wanted)["changed"] is False


@pytest.mark.usefixtures("cloud")
@pytest.mark.parametrize("check_mode", [True, False])
def test_a_stop_that_is_not_allowed_is_refused_and_nothing_changes(
    cloud: Any, machine: dict[str, Any], check_mode: bool
) -> None:
    with pytest.raises(CloudError, match=r"machineType is e2-standard-2, wanted e2-standard-4.*allow_stopping"):
        ensure(check_mode=check_mode, machine_type="e2-standard-4", disk_size_gib=100)
    assert cloud.call("GET", MACHINE) == machine


@pytest.mark.usefixtures("machine")
def test_a_disk_grows_while_the_machine_runs_and_never_shrinks(cloud: Any) -> None:
    done = ensure(disk_size_gib=100)
    assert [tuple(one.values()) for one in done["differences"]] == [("disks[0].diskSizeGb", 50, 100)]
    assert cloud.call("GET", DISK)["sizeGb"] == "100"
    started = cloud.call("GET", MACHINE)["lastStartTimestamp"]
    assert ensure(disk_size_gib=100)["changed"] is False
    assert ensure(disk_size_gib=20)["changed"] is False
    assert cloud.call("GET", MACHINE)["lastStartTimestamp"] == started


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("machine_type", ["e2-standard-2", "e2-standard-4"])
def test_what_an_interrupted_run_left_stopped_is_finished(cloud: Any, machine_type: str) -> None:
    cloud.done(cloud.call("POST", f"{MACHINE}/stop"))
    # Nobody has to allow the stop of what is stopped.
    done = ensure(machine_type=machine_type)
    assert ("status", "TERMINATED", "RUNNING") in [tuple(one.values()) for one in done["differences"]]
    after = cloud.call("GET", MACHINE)
    assert (after["machineType"].rsplit("/", 1)[-1], after["status"]) == (machine_type, "RUNNING")


@pytest.mark.usefixtures("machine")
def test_an_answer_that_passes_is_waited_out(cloud: Any, direct: Any) -> None:
    faults = [{"method": "compute.instances.stop", "status": 503}, {"method": "compute.instances.get", "status": 429}]
    assert direct.post(f"{cloud.admin}/faults", json=faults).ok
    assert ensure(machine_type="e2-standard-4", allow_stopping=True)["changed"] is True


@pytest.mark.usefixtures("machine")
def test_a_machine_that_does_not_start_is_explained_and_started_by_the_next_run(cloud: Any, direct: Any) -> None:
    fault = {"method": "compute.instances.start", "operation_error": "The zone has no such machine left"}
    assert direct.post(f"{cloud.admin}/faults", json=[fault]).ok
    with pytest.raises(CloudError, match=r"(?s)Starting.*no such machine left.*before this run it was e2-standard-2"):
        ensure(machine_type="e2-standard-4", allow_stopping=True)
    assert ensure(machine_type="e2-standard-4")["changed"] is True
    assert cloud.call("GET", MACHINE)["status"] == "RUNNING"


@pytest.mark.usefixtures("machine")
def test_waiting_for_an_operation_ends(cloud: Any, direct: Any) -> None:
    fault = {"method": "compute.instances.stop", "delay_seconds": 4}
    assert direct.post(f"{cloud.admin}/faults", json=[fault]).ok
    begun = time.monotonic()
    with pytest.raises(CloudError, match=r"Stopping.*not done after 1 s; run again later"):
        ensure(machine_type="e2-standard-4", allow_stopping=True, timeout_seconds=1)
    assert time.monotonic() - begun < 4


def test_check_mode_needs_no_service(cloud: Any) -> None:
    for services in cloud.server.cloud.state.services.values():
        services.clear()
    assert ensure(check_mode=True)["changed"] is False
    with pytest.raises(CloudError, match="has not been used in project"):
        ensure()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("method", ["compute.instances.stop", "compute.disks.resize", "compute.instances.start"])
def test_what_a_run_gave_up_is_finished_by_the_next(cloud: Any, direct: Any, method: str) -> None:
    wanted = {"machine_type": "e2-standard-4", "disk_size_gib": 100, "allow_stopping": True}
    assert direct.post(f"{cloud.admin}/faults", json=[{"method": method, "delay_seconds": 3}]).ok
    with pytest.raises(CloudError, match=r"not done after 1 s; run again later"):
        ensure(timeout_seconds=1, **wanted)
    ensure(**wanted)
    after = cloud.call("GET", MACHINE)
    assert (after["machineType"].rsplit("/", 1)[-1], after["status"]) == ("e2-standard-4", "RUNNING")
    assert cloud.call("GET", DISK)["sizeGb"] == "100"
    assert ensure(**wanted)["changed"] is False
