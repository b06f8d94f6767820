"""What an interrupted run left under way, and what fails after it was begun, against the emulated cloud."""

import time
from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.batch import ensure_all
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import PartialError
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Resource, Wanted
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import Session
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.sql_user import ensure_users

from tests.unit.emulator.test_compute import BASE, NETWORK, insert, network
from tests.unit.emulator.test_sql import CONNECTIONS, INSTANCE, instance, peering, settings

__all__ = ["instance", "network", "peering"]
SERVICE = "servicenetworking.googleapis.com"
MANAGER = Wanted("serviceusage.services", "cloudresourcemanager.googleapis.com")
ENABLING = f"https://serviceusage.googleapis.com/v1/projects/demo-project/services/{MANAGER.name}:enable"
DATABASE = Wanted("sqladmin.instances", "mlflow", body={"region": "us-central1", "databaseVersion": "POSTGRES_17"})
CONNECTION = Wanted(
    "servicenetworking.connections", SERVICE, parent="mlflow", body={"reservedPeeringRanges": ["services"]}
)
EMPTY_NETWORK = Wanted("compute.networks", "mlflow", body={"autoCreateSubnetworks": False})
SUBNETWORK = Wanted(
    "compute.subnetworks", "mlflow", "us-central1", body={"network": NETWORK, "ipCidrRange": "10.0.0.0/24"}
)


def instance_of(**changes: Any) -> Wanted:
    return Wanted(DATABASE.kind, DATABASE.name, body={**DATABASE.body, "settings": settings(**changes)})


def ensure(*members: Wanted, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the result of a run and its warnings."""
    session = Session("demo-project", **{"timeout_seconds": 60, **options})
    return ensure_all(session, list(members)), session.warnings


def faults(cloud: Any, direct: Any, method: str, **fault: Any) -> None:
    assert direct.post(f"{cloud.admin}/faults", json={"method": method, **fault}).ok


def taken(cloud: Any, direct: Any, method: str) -> int:
    """Return how many requests to a method were taken."""
    lines = direct.get(f"{cloud.admin}/log").text.splitlines()
    return sum(f'"method": "{method}"' in line and '"status": 200' in line for line in lines)


@pytest.mark.usefixtures("instance")
def test_an_update_that_was_given_up_is_finished_by_the_next_run(cloud: Any, direct: Any, let_go: Any) -> None:
    faults(cloud, direct, "sql.instances.patch", delay_seconds=1)
    larger = instance_of(tier="db-custom-2-7680")
    with pytest.raises(PartialError, match=r"Changing sqladmin.instances mlflow: not done after 0 s .*run again later"):
        ensure(larger, timeout_seconds=0.1)
    ensure(larger, sleep=let_go)
    assert cloud.call("GET", INSTANCE)["settings"]["tier"] == "db-custom-2-7680"
    assert taken(cloud, direct, "sql.instances.patch") == 1
    assert ensure(larger)[0]["changed"] is False


@pytest.mark.usefixtures("instance")
def test_an_update_that_failed_meanwhile_is_told_and_made_again(cloud: Any, direct: Any, let_go: Any) -> None:
    faults(cloud, direct, "sql.instances.patch", delay_seconds=1, operation_error="No such machine left.")
    larger = instance_of(tier="db-custom-2-7680")
    with pytest.raises(PartialError, match="not done after"):
        ensure(larger, timeout_seconds=0.1)
    result, warnings = ensure(larger, sleep=let_go)
    assert result["changed"] is True
    assert "waiting for the UPDATE begun before: No such machine left. (INTERNAL_ERROR)" in warnings[0]
    assert cloud.call("GET", INSTANCE)["settings"]["tier"] == "db-custom-2-7680"


@pytest.mark.usefixtures("peering")
def test_an_instance_that_was_being_made_is_waited_for(cloud: Any, direct: Any, let_go: Any) -> None:
    faults(cloud, direct, "sql.instances.insert", delay_seconds=1)
    with pytest.raises(PartialError, match="not done after"):
        ensure(instance_of(), timeout_seconds=0.1)
    assert ensure(instance_of(), sleep=let_go)[0]["changed"] is False
    assert cloud.call("GET", INSTANCE)["state"] == "RUNNABLE"
    assert taken(cloud, direct, "sql.instances.insert") == 1


@pytest.mark.usefixtures("peering")
def test_one_that_did_not_come_to_be_is_told_and_made_again(cloud: Any, direct: Any, let_go: Any) -> None:
    faults(cloud, direct, "sql.instances.insert", delay_seconds=1, operation_error="No address left.")
    with pytest.raises(PartialError, match="not done after"):
        ensure(instance_of(), timeout_seconds=0.1)
    result, warnings = ensure(instance_of(), sleep=let_go)
    assert result["resources"][0]["action"] == "create"
    assert warnings == ["sqladmin.instances mlflow: was PENDING_CREATE and is gone (No address left. (INTERNAL_ERROR))"]


@pytest.mark.usefixtures("instance")
def test_a_database_and_a_user_wait_for_what_is_under_way(cloud: Any, direct: Any) -> None:
    database = Wanted("sqladmin.databases", "mlflow", parent="mlflow")
    faults(cloud, direct, "sql.databases.insert", delay_seconds=1)
    cloud.call("POST", f"{INSTANCE}/databases", {"name": "mlflow"})
    ensure(database)
    assert taken(cloud, direct, "sql.databases.insert") == 1
    faults(cloud, direct, "sql.users.insert", delay_seconds=1)
    cloud.call("POST", f"{INSTANCE}/users", {"name": "mlflow", "password": "hunter2"})
    user = {"name": "mlflow", "type": "BUILT_IN", "password": "hunter2", "state": "present"}
    ensure_users(Session("demo-project", timeout_seconds=60), "mlflow", "POSTGRES", [user])
    assert taken(cloud, direct, "sql.users.insert") == 1


@pytest.mark.usefixtures("cloud")
def test_what_refers_to_a_network_that_is_being_made_waits(cloud: Any, direct: Any, let_go: Any) -> None:
    faults(cloud, direct, "compute.networks.insert", delay_seconds=1)
    cloud.call("POST", f"{BASE}/global/networks", {"name": "mlflow", "autoCreateSubnetworks": False})
    result, _ = ensure(EMPTY_NETWORK, SUBNETWORK, sleep=let_go)
    assert [member["action"] for member in result["resources"]] == ["none", "create"]
    assert taken(cloud, direct, "compute.networks.insert") == 1


def test_a_network_that_did_not_come_to_be_is_made_by_the_run_after(cloud: Any, direct: Any, let_go: Any) -> None:
    faults(cloud, direct, "compute.networks.insert", delay_seconds=1, operation_error="Quota exceeded.")
    cloud.call("POST", f"{BASE}/global/networks", {"name": "mlflow", "autoCreateSubnetworks": False})
    with pytest.raises(PartialError, match=r"Creating compute.subnetworks mlflow: .*networks/mlflow' was not found"):
        ensure(EMPTY_NETWORK, SUBNETWORK, sleep=let_go)
    assert ensure(EMPTY_NETWORK, SUBNETWORK)[0]["changed"] is True


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("state", ["present", "absent"])
def test_a_network_that_is_being_deleted_is_gone_first(cloud: Any, direct: Any, state: str) -> None:
    faults(cloud, direct, "compute.networks.delete", delay_seconds=3)
    cloud.call("DELETE", f"{BASE}/global/networks/mlflow")
    body = {"autoCreateSubnetworks": False, "routingConfig": {"routingMode": "GLOBAL"}}
    ensure(Wanted("compute.networks", "mlflow", body=body, state=state))
    found = [item["name"] for item in cloud.call("GET", f"{BASE}/global/networks").get("items", [])]
    assert found == (["mlflow"] if state == "present" else [])


@pytest.mark.usefixtures("network")
def test_a_network_that_goes_between_reading_and_changing_is_made_again(cloud: Any, monkeypatch: Any) -> None:
    url, plan = f"{BASE}/global/networks/mlflow", Resource.plan
    body = {"autoCreateSubnetworks": False, "routingConfig": {"routingMode": "GLOBAL"}}
    wanted = Wanted("compute.networks", "mlflow", body=body)

    def plan_and_be_late(resource: Resource, actual: Any, lookup: Any) -> Any:
        planned = plan(resource, actual, lookup)
        if actual:
            cloud.done(cloud.call("DELETE", url))
        return planned

    with monkeypatch.context() as patched:
        patched.setattr(Resource, "plan", plan_and_be_late)
        ensure(wanted)
    assert cloud.call("GET", url)["routingConfig"]["routingMode"] == "GLOBAL"


def test_a_connection_that_is_being_made_is_waited_for(cloud: Any, direct: Any, network: dict[str, Any]) -> None:
    reserved = {"name": "services", "addressType": "INTERNAL", "purpose": "VPC_PEERING", "prefixLength": 20}
    insert(cloud, f"{BASE}/global/addresses", reserved | {"network": network["selfLink"]})
    create = "servicenetworking.services.connections.create"
    faults(cloud, direct, create, delay_seconds=1)
    cloud.call("POST", CONNECTIONS, {"network": NETWORK, "reservedPeeringRanges": ["services"]})
    ensure(CONNECTION)
    assert ensure(CONNECTION)[0]["changed"] is False
    assert taken(cloud, direct, create) == 1


def test_a_connection_waits_for_the_rights_of_the_services_agent(
    cloud: Any, direct: Any, network: dict[str, Any]
) -> None:
    reserved = {"name": "services", "addressType": "INTERNAL", "purpose": "VPC_PEERING", "prefixLength": 20}
    insert(cloud, f"{BASE}/global/addresses", reserved | {"network": network["selfLink"]})
    create = "servicenetworking.services.connections.create"
    words = "Required 'compute.globalAddresses.list' permission for 'projects/demo-project'"
    faults(cloud, direct, create, operation_error=words, times=2)
    result, warnings = ensure(CONNECTION)
    assert (result["changed"], warnings) == (True, [])
    assert taken(cloud, direct, create) == 3


def test_a_service_that_is_being_enabled_is_waited_for(cloud: Any, direct: Any, let_go: Any) -> None:
    enable = "serviceusage.services.enable"
    faults(cloud, direct, enable, delay_seconds=1)
    cloud.call("POST", ENABLING, {})
    error = cloud.refused("POST", ENABLING, {})
    assert "deactivation is in progress for the following service(s): cloudresourcemanager" in error["message"]
    assert error["status"] == "FAILED_PRECONDITION"
    assert ensure(MANAGER, sleep=let_go)[0]["changed"] is True
    assert taken(cloud, direct, enable) == 1


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize(
    ("method", "member"),
    [
        ("compute.subnetworks.insert", SUBNETWORK),
        ("sql.databases.insert", Wanted("sqladmin.databases", "mlflow", parent="mlflow")),
        ("serviceusage.services.enable", MANAGER),
    ],
)
def test_an_operation_that_fails_is_told_in_googles_words_and_done_by_the_next_run(
    request: Any, cloud: Any, direct: Any, method: str, member: Wanted
) -> None:
    if member.kind == "sqladmin.databases":
        request.getfixturevalue("instance")
    faults(cloud, direct, method, operation_error="The region is on fire.")
    with pytest.raises(
        PartialError, match=rf"(Creating|Enabling) {member.kind} {member.name}: The region is on fire\."
    ):
        ensure(member)
    assert ensure(member)[0]["changed"] is True
    assert ensure(member)[0]["changed"] is False


@pytest.mark.usefixtures("instance")
def test_a_timeout_holds(cloud: Any, direct: Any) -> None:
    faults(cloud, direct, "sql.databases.insert", delay_seconds=4)
    begun = time.monotonic()
    with pytest.raises(PartialError, match=r"operation .* goes on\); raise timeout_seconds"):
        ensure(Wanted("sqladmin.databases", "mlflow", parent="mlflow"), timeout_seconds=0.5)
    assert time.monotonic() - begun < 4
