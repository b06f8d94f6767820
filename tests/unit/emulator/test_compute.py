from typing import Any

import pytest
from google.cloud import compute_v1

BASE = "https://compute.googleapis.com/compute/v1/projects/demo-project"
NETWORK = "projects/demo-project/global/networks/mlflow"
REGION = f"{BASE}/regions/us-central1"
ZONE = f"{BASE}/zones/us-central1-b"
SUBNETWORK = "projects/demo-project/regions/us-central1/subnetworks/mlflow"
ACCOUNT = "mlflow-server@demo-project.iam.gserviceaccount.com"


def insert(cloud: Any, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Make a resource and return it."""
    operation = cloud.done(cloud.call("POST", url, body))
    assert "error" not in operation, operation
    resource: dict[str, Any] = cloud.call("GET", operation["targetLink"])
    return resource


@pytest.fixture
def network(cloud: Any) -> dict[str, Any]:
    return insert(cloud, f"{BASE}/global/networks", {"name": "mlflow", "autoCreateSubnetworks": False})


@pytest.fixture
def subnetwork(cloud: Any, network: dict[str, Any]) -> dict[str, Any]:
    body = {"name": "mlflow", "network": network["selfLink"], "ipCidrRange": "10.0.0.0/24"}
    return insert(cloud, f"{REGION}/subnetworks", body)


def machine(**changes: Any) -> dict[str, Any]:
    image = {"sourceImage": "projects/debian-cloud/global/images/family/debian-12", "diskSizeGb": "50"}
    body = {
        "name": "mlflow-1",
        "machineType": "zones/us-central1-b/machineTypes/e2-standard-2",
        "labels": {"mlflow-deployment": "mlflow"},
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": image}],
        "networkInterfaces": [{"subnetwork": SUBNETWORK}],
    }
    return body | changes


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"name": "n", "autoCreateSubnetworks": False, "colour": "red"}, 'Unknown name "colour": Cannot find field'),
        ({"name": "n", "autoCreateSubnetworks": "no"}, "TYPE_BOOLEAN"),
        ({"name": "N", "autoCreateSubnetworks": False}, "Must be a match of regex"),
        ({"name": "n", "autoCreateSubnetworks": False, "mtu": "many"}, "TYPE_INT32"),
        ({"name": "n", "autoCreateSubnetworks": False, "routingConfig": {"routingMode": "FAST"}}, "(enum)"),
        ({"autoCreateSubnetworks": False}, "Required field 'name'"),
    ],
)
def test_a_body_outside_the_schema_is_refused(cloud: Any, body: dict[str, Any], reason: str) -> None:
    error = cloud.refused("POST", f"{BASE}/global/networks", body)
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert reason in error["message"]
    assert "items" not in cloud.call("GET", f"{BASE}/global/networks")


def test_query_parameters_are_checked(cloud: Any) -> None:
    cloud.call(
        "GET", f"{BASE}/global/networks?returnPartialSuccess=true&alt=json&prettyPrint=false&$unique=1&fields=items"
    )
    assert "maxSize" in cloud.refused("GET", f"{BASE}/global/networks?maxSize=1")["message"]
    assert cloud.refused("GET", f"{BASE}/global/networks?maxResults=many")["code"] == 400


def test_what_the_emulator_lacks_is_told_from_what_google_lacks(cloud: Any) -> None:
    assert cloud.refused("GET", f"{BASE}/global/sslCertificates")["code"] == 501
    assert cloud.refused("GET", f"{BASE}/global/bananas")["code"] == 404
    assert (
        cloud.operator.get("https://compute.googleapis.com/compute/v1/projects//aggregated/instances").status_code
        == 404
    )


def test_a_resource_has_googles_defaults_and_cannot_be_made_twice(cloud: Any, network: dict[str, Any]) -> None:
    assert network["selfLink"] == f"https://www.googleapis.com/compute/v1/{NETWORK}"
    assert network["kind"] == "compute#network"
    rule = {"name": "https", "network": f"{NETWORK}", "allowed": [{"IPProtocol": "TCP", "ports": ["443"]}]}
    firewall = insert(cloud, f"{BASE}/global/firewalls", rule)
    assert (firewall["priority"], firewall["direction"], firewall["sourceRanges"]) == (1000, "INGRESS", ["0.0.0.0/0"])
    assert firewall["network"] == network["selfLink"]
    error = cloud.refused("POST", f"{BASE}/global/networks", {"name": "mlflow", "autoCreateSubnetworks": False})
    assert (error["code"], error["errors"][0]["reason"]) == (409, "alreadyExists")


def test_references_must_lead_somewhere(cloud: Any, network: dict[str, Any]) -> None:
    body = {"name": "s", "network": "projects/demo-project/global/networks/absent", "ipCidrRange": "10.0.0.0/24"}
    assert "networks/absent' was not found" in cloud.refused("POST", f"{REGION}/subnetworks", body)["message"]
    error = cloud.refused("POST", f"{REGION}/subnetworks", body | {"network": "mlflow"})
    assert "malformed" in error["message"]
    assert cloud.refused("GET", f"{BASE}/regions/atlantis-north1/subnetworks")["code"] == 404
    assert network["name"] == "mlflow"


def test_a_resource_in_use_is_not_deleted(cloud: Any, subnetwork: dict[str, Any]) -> None:
    error = cloud.refused("DELETE", f"{BASE}/global/networks/mlflow")
    assert error["errors"][0]["reason"] == "resourceInUseByAnotherResource"
    cloud.done(cloud.call("DELETE", subnetwork["selfLink"]))
    cloud.done(cloud.call("DELETE", f"{BASE}/global/networks/mlflow"))
    assert cloud.refused("GET", f"{BASE}/global/networks/mlflow")["code"] == 404


@pytest.mark.parametrize("block", ["10.0.0.1/24", "10.0.0.0/30", "10.0.0.128/25", "elsewhere"])
def test_a_range_is_well_formed_and_free(cloud: Any, subnetwork: dict[str, Any], block: str) -> None:
    body = {"name": "other", "network": subnetwork["network"], "ipCidrRange": block}
    assert cloud.refused("POST", f"{REGION}/subnetworks", body)["code"] == 400


def test_a_change_needs_the_current_fingerprint_and_keeps_what_cannot_change(
    cloud: Any, subnetwork: dict[str, Any]
) -> None:
    link, current = subnetwork["selfLink"], subnetwork["fingerprint"]
    assert cloud.refused("PATCH", link, {"privateIpGoogleAccess": True})["code"] == 412
    fixed = cloud.refused("PATCH", link, {"ipCidrRange": "10.1.0.0/24", "fingerprint": current})
    assert "ipCidrRange cannot be changed" in fixed["message"]
    cloud.done(cloud.call("PATCH", link, {"privateIpGoogleAccess": True, "fingerprint": current}))
    changed = cloud.call("GET", link)
    assert changed["privateIpGoogleAccess"] is True
    assert changed["fingerprint"] != current


def test_a_router_gets_its_nat_by_patch(cloud: Any, network: dict[str, Any]) -> None:
    router = insert(cloud, f"{REGION}/routers", {"name": "mlflow", "network": network["selfLink"]})
    nat = {"name": "mlflow", "natIpAllocateOption": "AUTO_ONLY"}
    assert "sourceSubnetworkIpRangesToNat" in cloud.refused("PATCH", router["selfLink"], {"nats": [nat]})["message"]
    nat["sourceSubnetworkIpRangesToNat"] = "ALL_SUBNETWORKS_ALL_IP_RANGES"
    cloud.done(cloud.call("PATCH", router["selfLink"], {"nats": [nat]}))
    assert cloud.call("GET", router["selfLink"])["nats"][0]["type"] == "PUBLIC"


def test_an_instance_takes_reserved_addresses_only_and_holds_them(cloud: Any, subnetwork: dict[str, Any]) -> None:
    stray = [{"subnetwork": SUBNETWORK, "accessConfigs": [{"natIP": "198.18.0.99"}]}]
    error = cloud.refused("POST", f"{ZONE}/instances", machine(networkInterfaces=stray))
    assert "was not found in the region" in error["message"]
    address = insert(cloud, f"{REGION}/addresses", {"name": "mlflow"})
    mine = [{"subnetwork": subnetwork["selfLink"], "accessConfigs": [{"natIP": address["address"]}]}]
    instance = insert(cloud, f"{ZONE}/instances", machine(networkInterfaces=mine))
    assert instance["status"] == "RUNNING"
    assert instance["networkInterfaces"][0]["networkIP"] == "10.0.0.2"
    assert cloud.call("GET", address["selfLink"])["users"] == [instance["selfLink"]]
    assert cloud.refused("DELETE", address["selfLink"])["errors"][0]["reason"] == "resourceInUseByAnotherResource"
    assert cloud.refused("DELETE", subnetwork["selfLink"])["code"] == 400


def test_an_external_address_is_given_and_taken_while_a_machine_runs(cloud: Any, subnetwork: dict[str, Any]) -> None:
    none = [{"subnetwork": subnetwork["selfLink"], "accessConfigs": []}]
    instance = insert(cloud, f"{ZONE}/instances", machine(networkInterfaces=none))
    assert "accessConfigs" not in instance["networkInterfaces"][0]
    link, address = instance["selfLink"], insert(cloud, f"{REGION}/addresses", {"name": "mlflow"})
    config = {"name": "External NAT", "natIP": address["address"]}
    assert cloud.refused("POST", f"{link}/addAccessConfig?networkInterface=nic1", config)["code"] == 400
    stray = {"natIP": "198.18.0.99"}
    assert cloud.refused("POST", f"{link}/addAccessConfig?networkInterface=nic0", stray)["code"] == 400

    cloud.done(cloud.call("POST", f"{link}/addAccessConfig?networkInterface=nic0", config))
    interface = cloud.call("GET", link)["networkInterfaces"][0]
    assert [one["natIP"] for one in interface["accessConfigs"]] == [address["address"]]
    assert cloud.refused("POST", f"{link}/addAccessConfig?networkInterface=nic0", {})["code"] == 400
    assert cloud.refused("DELETE", address["selfLink"])["code"] == 400

    taking = f"{link}/deleteAccessConfig?networkInterface=nic0&accessConfig="
    assert cloud.refused("POST", f"{taking}other")["code"] == 400
    cloud.done(cloud.call("POST", f"{taking}External NAT"))
    assert "accessConfigs" not in cloud.call("GET", link)["networkInterfaces"][0]
    cloud.done(cloud.call("DELETE", address["selfLink"]))


def test_an_instance_is_protected_stopped_changed_and_deleted(cloud: Any, subnetwork: dict[str, Any]) -> None:
    del subnetwork
    instance = insert(cloud, f"{ZONE}/instances", machine(deletionProtection=True))
    link = instance["selfLink"]
    assert "protected against deletion" in cloud.refused("DELETE", link)["message"]
    cloud.done(cloud.call("POST", f"{link}/setDeletionProtection?deletionProtection=false"))
    larger = {"machineType": "zones/us-central1-b/machineTypes/e2-standard-4"}
    assert cloud.refused("POST", f"{link}/setMachineType", larger)["code"] == 400
    cloud.done(cloud.call("POST", f"{link}/stop"))
    cloud.done(cloud.call("POST", f"{link}/setMachineType", larger))
    cloud.done(cloud.call("POST", f"{link}/start"))
    changed = cloud.call("GET", link)
    assert changed["machineType"].endswith("e2-standard-4")
    assert changed["status"] == "RUNNING"
    cloud.done(cloud.call("DELETE", link))
    assert "items" not in cloud.call("GET", f"{ZONE}/disks")


def test_changes_under_way_at_once_all_count(cloud: Any, subnetwork: dict[str, Any]) -> None:
    del subnetwork
    instance = insert(cloud, f"{ZONE}/instances", machine())
    link = instance["selfLink"]
    labels = {"labels": {"a": "b"}, "labelFingerprint": instance["labelFingerprint"]}
    tags = {"items": ["web"], "fingerprint": instance["tags"]["fingerprint"]}
    under_way = [cloud.call("POST", f"{link}/setLabels", labels), cloud.call("POST", f"{link}/setTags", tags)]
    for operation in under_way:
        cloud.done(operation)
    changed = cloud.call("GET", link)
    assert (changed["labels"], changed["tags"]["items"]) == ({"a": "b"}, ["web"])
    assert cloud.refused("POST", f"{link}/setTags", tags)["code"] == 412


def test_google_cloud_compute_finds_instances_by_label(cloud: Any, subnetwork: dict[str, Any]) -> None:
    del subnetwork
    insert(cloud, f"{ZONE}/instances", machine())
    client = compute_v1.InstancesClient()
    for expression, expected in (
        ("labels.mlflow-deployment = mlflow", ["mlflow-1"]),
        ("labels.mlflow-deployment=x", []),
    ):
        request = compute_v1.AggregatedListInstancesRequest(project="demo-project", filter=expression)
        found = [item.name for _, scope in client.aggregated_list(request) for item in scope.instances]
        assert found == expected


def test_an_operation_that_fails_withdraws_what_it_was_to_create(cloud: Any, direct: Any) -> None:
    fault = {"method": "compute.networks.insert", "operation_error": "quota exceeded"}
    assert direct.post(f"{cloud.admin}/faults", json=[fault]).ok
    body = {"name": "mlflow", "autoCreateSubnetworks": False}
    operation = cloud.done(cloud.call("POST", f"{BASE}/global/networks", body))
    assert operation["error"]["errors"][0]["message"] == "quota exceeded"
    assert cloud.refused("GET", f"{BASE}/global/networks/mlflow")["code"] == 404
    assert "error" not in cloud.done(cloud.call("POST", f"{BASE}/global/networks", body))


def test_a_resource_cannot_be_used_before_it_is_made(cloud: Any, direct: Any) -> None:
    fault = {"method": "compute.networks.insert", "delay_seconds": 0.5}
    assert direct.post(f"{cloud.admin}/faults", json=[fault]).ok
    slow = cloud.call("POST", f"{BASE}/global/networks", {"name": "mlflow", "autoCreateSubnetworks": False})
    body = {"name": "mlflow", "network": NETWORK, "ipCidrRange": "10.0.0.0/24"}
    assert cloud.refused("POST", f"{REGION}/subnetworks", body)["errors"][0]["reason"] == "resourceNotReady"
    cloud.done(slow)
    assert cloud.call("POST", f"{slow['selfLink']}/wait")["status"] == "DONE"
    insert(cloud, f"{REGION}/subnetworks", body)


def schedule(**changes: Any) -> dict[str, Any]:
    daily = {"dailySchedule": {"daysInCycle": 1, "startTime": "04:00"}}
    policy = {"schedule": daily, "retentionPolicy": {"maxRetentionDays": 14}}
    return {"name": "daily", "snapshotSchedulePolicy": policy | changes}


def boot_disk(**changes: Any) -> dict[str, Any]:
    return {"name": "mlflow-1", "sourceImage": "projects/debian-cloud/global/images/family/debian-12"} | changes


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"schedule": {"dailySchedule": {"daysInCycle": 1, "startTime": "05:00"}}}, 400),
        ({"schedule": {"dailySchedule": {"daysInCycle": 2, "startTime": "04:00"}}}, 400),
        ({"schedule": {}}, 501),
        ({"retentionPolicy": {}}, 400),
        ({"retentionPolicy": {"maxRetentionDays": 0}}, 400),
        ({"snapshotProperties": {"storageLocations": ["us", "eu"]}}, 400),
        ({"snapshotProperties": {"labels": {"Team": "a"}}}, 400),
    ],
)
def test_a_snapshot_schedule_that_google_refuses_is_refused(cloud: Any, changes: dict[str, Any], code: int) -> None:
    assert cloud.refused("POST", f"{REGION}/resourcePolicies", schedule(**changes))["code"] == code


def test_a_snapshot_schedule_changes_but_for_where_snapshots_are_kept(cloud: Any) -> None:
    kept = {"snapshotProperties": {"storageLocations": ["us-central1"]}}
    policy = insert(cloud, f"{REGION}/resourcePolicies", schedule(**kept))
    described = policy["snapshotSchedulePolicy"]
    assert (policy["kind"], policy["status"]) == ("compute#resourcePolicy", "READY")
    assert described["retentionPolicy"]["onSourceDiskDelete"] == "KEEP_AUTO_SNAPSHOTS"
    cloud.done(
        cloud.call(
            "PATCH",
            policy["selfLink"],
            {"snapshotSchedulePolicy": {"retentionPolicy": {"maxRetentionDays": 7}}},
        )
    )
    assert cloud.call("GET", policy["selfLink"])["snapshotSchedulePolicy"]["retentionPolicy"]["maxRetentionDays"] == 7
    elsewhere = {"snapshotSchedulePolicy": {"snapshotProperties": {"storageLocations": ["us-east1"]}}}
    assert "storageLocations cannot be changed" in cloud.refused("PATCH", policy["selfLink"], elsewhere)["message"]


def test_a_disk_has_one_schedule_of_its_region_which_is_then_in_use(cloud: Any) -> None:
    policy = insert(cloud, f"{REGION}/resourcePolicies", schedule())["selfLink"]
    other = insert(cloud, f"{REGION}/resourcePolicies", schedule() | {"name": "other"})["selfLink"]
    far = insert(cloud, f"{BASE}/regions/us-east1/resourcePolicies", schedule())["selfLink"]
    disk = insert(cloud, f"{ZONE}/disks", boot_disk())
    assert (disk["sizeGb"], disk["type"].rpartition("/")[2], disk["status"]) == ("10", "pd-standard", "READY")
    add, remove = (f"{disk['selfLink']}/{verb}ResourcePolicies" for verb in ("add", "remove"))
    assert cloud.refused("POST", add, {"resourcePolicies": [far]})["code"] == 400
    assert cloud.refused("POST", remove, {"resourcePolicies": [policy]})["code"] == 400
    cloud.done(cloud.call("POST", add, {"resourcePolicies": [policy]}))
    assert cloud.refused("POST", add, {"resourcePolicies": [other]})["code"] == 400
    assert cloud.refused("DELETE", policy)["errors"][0]["reason"] == "resourceInUseByAnotherResource"
    cloud.done(cloud.call("POST", remove, {"resourcePolicies": [policy]}))
    cloud.done(cloud.call("DELETE", policy))


@pytest.mark.parametrize(
    "changes",
    [{"sizeGb": "5"}, {"sizeGb": "70000"}, {"type": "zones/us-central1-b/diskTypes/tape"}, {"sourceImage": "absent"}],
)
def test_a_disk_that_google_refuses_is_refused(cloud: Any, changes: dict[str, Any]) -> None:
    assert cloud.refused("POST", f"{ZONE}/disks", boot_disk(**changes))["code"] in (400, 404)


@pytest.mark.usefixtures("subnetwork")
def test_an_instance_boots_from_a_disk_that_is_there_and_free(cloud: Any) -> None:
    disk = insert(cloud, f"{ZONE}/disks", boot_disk(sizeGb="50"))
    attached = {"boot": True, "autoDelete": True, "source": disk["selfLink"]}
    both = attached | {"initializeParams": {"diskSizeGb": "50"}}
    assert "without source" in cloud.refused("POST", f"{ZONE}/instances", machine(disks=[both]))["message"]
    instance = insert(cloud, f"{ZONE}/instances", machine(disks=[attached]))
    assert (instance["disks"][0]["source"], instance["disks"][0]["diskSizeGb"]) == (disk["selfLink"], "50")
    assert cloud.call("GET", disk["selfLink"])["users"] == [instance["selfLink"]]
    second = machine(name="mlflow-2", disks=[attached])
    assert "already being used" in cloud.refused("POST", f"{ZONE}/instances", second)["message"]
    assert cloud.refused("DELETE", disk["selfLink"])["errors"][0]["reason"] == "resourceInUseByAnotherResource"
    cloud.done(cloud.call("DELETE", instance["selfLink"]))
    assert cloud.refused("GET", disk["selfLink"])["code"] == 404


@pytest.mark.usefixtures("subnetwork")
def test_a_confidential_machine_has_its_type_and_stops_for_its_host(cloud: Any) -> None:
    config = {"confidentialInstanceConfig": {"confidentialInstanceType": "SEV"}}
    stops = {"scheduling": {"onHostMaintenance": "TERMINATE"}}
    small = config | {"machineType": "zones/us-central1-b/machineTypes/n2d-standard-2"}
    assert "does not support" in cloud.refused("POST", f"{ZONE}/instances", machine(**config, **stops))["message"]
    assert "Must be TERMINATE" in cloud.refused("POST", f"{ZONE}/instances", machine(**small))["message"]
    assert "items" not in cloud.call("GET", f"{ZONE}/disks")
    made = insert(cloud, f"{ZONE}/instances", machine(**small, **stops))
    assert made["confidentialInstanceConfig"]["enableConfidentialCompute"] is True
    migrates = {"onHostMaintenance": "MIGRATE"}
    assert cloud.refused("POST", f"{made['selfLink']}/setScheduling", migrates)["code"] == 400
