"""Quotas and billing: what is refused beyond them, and how it is shown."""

from typing import Any

import pytest
import requests

from tests.unit.emulator.conftest import PROJECT, Running

COMPUTE = f"https://compute.googleapis.com/compute/v1/projects/{PROJECT}"
REGION = f"{COMPUTE}/regions/europe-west1"
BILLING = f"https://cloudbilling.googleapis.com/v1/projects/{PROJECT}/billingInfo"
SERVICES = f"https://serviceusage.googleapis.com/v1/projects/{PROJECT}/services"


def limit(cloud: Running, direct: requests.Session, **quota: Any) -> None:
    assert direct.post(f"{cloud.admin}/quotas", json={"project": PROJECT, **quota}).ok


def shown(cloud: Running, url: str, metric: str) -> tuple[float, float]:
    (quota,) = [one for one in cloud.call("GET", url)["quotas"] if one["metric"] == metric]
    return quota["limit"], quota["usage"]


def test_no_more_is_made_than_the_project_may_have(cloud: Running, direct: requests.Session) -> None:
    limit(cloud, direct, metric="NETWORKS", limit=1)
    network = {"name": "one", "autoCreateSubnetworks": False}
    cloud.done(cloud.call("POST", f"{COMPUTE}/global/networks", network))
    assert shown(cloud, COMPUTE, "NETWORKS") == (1, 1)

    error = cloud.refused("POST", f"{COMPUTE}/global/networks", {**network, "name": "two"})

    assert (error["code"], error["errors"][0]["reason"]) == (403, "quotaExceeded")
    assert error["message"] == "Quota 'NETWORKS' exceeded.  Limit: 1.0 globally."
    assert cloud.refused("GET", f"{COMPUTE}/global/networks/two")["code"] == 404


def test_a_region_counts_for_itself(cloud: Running, direct: requests.Session) -> None:
    limit(cloud, direct, region="europe-west1", metric="STATIC_ADDRESSES", limit=1)
    for region in ("europe-west1", "us-east1"):
        cloud.done(cloud.call("POST", f"{COMPUTE}/regions/{region}/addresses", {"name": "one"}))
    cloud.done(cloud.call("POST", f"{COMPUTE}/regions/us-east1/addresses", {"name": "two"}))

    error = cloud.refused("POST", f"{REGION}/addresses", {"name": "two"})

    assert "in region europe-west1" in error["message"]
    assert shown(cloud, REGION, "STATIC_ADDRESSES") == (1, 1)
    assert shown(cloud, f"{COMPUTE}/regions/us-east1", "STATIC_ADDRESSES") == (64, 2)


@pytest.mark.parametrize(
    ("metric", "short", "enough"),
    [("CPUS", 1, 2), ("IN_USE_ADDRESSES", 0, 1), ("SSD_TOTAL_GB", 19, 20), ("DISKS_TOTAL_GB", 9, None)],
)
def test_a_machine_takes_processors_an_address_and_a_disk(
    cloud: Running, direct: requests.Session, metric: str, short: int, enough: int | None
) -> None:
    cloud.done(cloud.call("POST", f"{COMPUTE}/global/networks", {"name": "net", "autoCreateSubnetworks": False}))
    network = f"projects/{PROJECT}/global/networks/net"
    subnetwork = {"name": "sub", "network": network, "ipCidrRange": "10.0.0.0/24"}
    cloud.done(cloud.call("POST", f"{REGION}/subnetworks", subnetwork))
    zone = f"projects/{PROJECT}/zones/europe-west1-b"
    initial = {
        "sourceImage": "projects/debian-cloud/global/images/family/debian-12",
        "diskType": f"{zone}/diskTypes/pd-balanced",
        "diskSizeGb": "20",
    }
    machine = {
        "name": "vm",
        "machineType": f"{zone}/machineTypes/e2-standard-2",
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": initial}],
        "networkInterfaces": [
            {"subnetwork": f"projects/{PROJECT}/regions/europe-west1/subnetworks/sub", "accessConfigs": [{}]}
        ],
    }
    machines = f"{COMPUTE}/zones/europe-west1-b/instances"
    limit(cloud, direct, region="europe-west1", metric=metric, limit=short)

    if enough is not None:
        assert metric in cloud.refused("POST", machines, machine)["message"]
        assert "items" not in cloud.call("GET", f"{COMPUTE}/zones/europe-west1-b/disks")
        limit(cloud, direct, region="europe-west1", metric=metric, limit=enough)
    cloud.done(cloud.call("POST", machines, machine))
    assert shown(cloud, REGION, metric) == (short if enough is None else enough, enough or 0)

    cloud.done(cloud.call("DELETE", f"{machines}/vm"))
    assert shown(cloud, REGION, metric)[1] == 0


def test_a_disk_does_not_grow_beyond_what_is_left(cloud: Running, direct: requests.Session) -> None:
    disk = {"kind": "compute#disk", "name": "d", "type": "x/pd-ssd", "sizeGb": "20"}
    cloud.server.cloud.state.resources[f"compute/projects/{PROJECT}/zones/europe-west1-b/disks/d"] = disk
    limit(cloud, direct, region="europe-west1", metric="SSD_TOTAL_GB", limit=30)

    error = cloud.refused("POST", f"{COMPUTE}/zones/europe-west1-b/disks/d/resize", {"sizeGb": "31"})

    assert error["errors"][0]["reason"] == "quotaExceeded"


def test_a_policy_of_the_organization_is_kept(cloud: Running) -> None:
    project = f"https://cloudresourcemanager.googleapis.com/v1/projects/{PROJECT}"
    asked = {"constraint": "constraints/compute.vmExternalIpAccess"}
    policy = {**asked, "listPolicy": {"allValues": "DENY"}}
    assert cloud.call("POST", f"{project}:getEffectiveOrgPolicy", asked)["listPolicy"]["allValues"] == "ALLOW"

    cloud.call("POST", f"{project}:setOrgPolicy", {"policy": policy})

    assert cloud.call("POST", f"{project}:getEffectiveOrgPolicy", asked) == policy
    assert cloud.refused("POST", f"{project}:getEffectiveOrgPolicy", {"constraint": "compute.x"})["code"] == 400


def test_without_billing_nothing_that_costs_is_enabled_or_answers(cloud: Running) -> None:
    cloud.server.cloud.state.services[PROJECT].append("cloudbilling.googleapis.com")
    assert cloud.call("GET", BILLING)["billingEnabled"]

    assert not cloud.call("PUT", BILLING, {"billingAccountName": ""})["billingEnabled"]

    error = cloud.refused("GET", REGION)
    assert (error["code"], error["details"][0]["reason"]) == (403, "BILLING_DISABLED")
    error = cloud.refused("POST", f"{SERVICES}/compute.googleapis.com:enable", {})
    assert (error["status"], "Billing must be enabled" in error["message"]) == ("FAILED_PRECONDITION", True)
    assert cloud.refused("PUT", BILLING, {"billingAccountName": "mine"})["code"] == 400
    cloud.call("PUT", BILLING, {"billingAccountName": "billingAccounts/012345-567890-ABCDEF"})
    assert cloud.call("GET", REGION)["name"] == "europe-west1"
