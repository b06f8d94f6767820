"""Private Service Connect: an instance's service attachment, the endpoint before it, and the name that leads there."""

from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.batch import ensure_all
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Wanted
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import Session

from tests.unit.emulator.conftest import PROJECT, Running

SQL = f"https://sqladmin.googleapis.com/v1/projects/{PROJECT}/instances"
COMPUTE = f"https://compute.googleapis.com/compute/v1/projects/{PROJECT}"
REGION = f"{COMPUTE}/regions/europe-west1"
ZONES = f"https://dns.googleapis.com/dns/v1/projects/{PROJECT}/managedZones"
NETWORK = f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/global/networks/n"
ZONE = {
    "name": "sql",
    "dnsName": "a.europe-west1.sql.goog.",
    "description": "Database",
    "visibility": "private",
    "privateVisibilityConfig": {"networks": [{"networkUrl": NETWORK}]},
}
INTERNAL = {"name": "psc", "addressType": "INTERNAL", "subnetwork": "regions/europe-west1/subnetworks/s"}


def instance(name: str = "i", region: str = "europe-west1", projects: tuple[str, ...] = (PROJECT,), **ip: Any) -> Any:
    """Return an instance that the projects may reach."""
    config = {"pscEnabled": True, "allowedConsumerProjects": list(projects)}
    settings = {
        "edition": "ENTERPRISE",
        "tier": "db-custom-1-3840",
        "ipConfiguration": {"ipv4Enabled": False, "pscConfig": config, **ip},
    }
    return {"name": name, "region": region, "databaseVersion": "POSTGRES_17", "settings": settings}


@pytest.fixture
def network(cloud: Running) -> Running:
    """A network with a subnetwork and an internal address in it."""
    cloud.server.cloud.state.services[PROJECT].append("dns.googleapis.com")
    cloud.done(cloud.call("POST", f"{COMPUTE}/global/networks", {"name": "n", "autoCreateSubnetworks": False}))
    subnetwork = {"name": "s", "network": NETWORK, "ipCidrRange": "10.10.0.0/24"}
    cloud.done(cloud.call("POST", f"{REGION}/subnetworks", subnetwork))
    cloud.done(cloud.call("POST", f"{REGION}/addresses", INTERNAL))
    return cloud


@pytest.fixture
def attachment(network: Running) -> str:
    """The service attachment of an instance."""
    network.done(network.call("POST", SQL, instance()))
    link: str = network.call("GET", f"{SQL}/i")["pscServiceAttachmentLink"]
    return link


def rule(target: str, address: str = "regions/europe-west1/addresses/psc", **more: Any) -> Any:
    return {"name": "psc", "network": NETWORK, "IPAddress": address, "target": target, **more}


def test_an_instance_with_it_has_a_name_and_an_attachment_and_no_address(network: Running, attachment: str) -> None:
    found = network.call("GET", f"{SQL}/i")
    assert found["dnsName"].endswith(".europe-west1.sql.goog.")
    assert "/regions/europe-west1/serviceAttachments/" in attachment
    assert found["ipAddresses"] == []
    settings = network.call("GET", f"{SQL}/i/connectSettings")
    assert settings["pscEnabled"] is True
    assert settings["dnsName"] == found["dnsName"] == settings["dnsNames"][0]["name"]


def test_an_instance_without_it_has_neither(network: Running) -> None:
    network.done(network.call("POST", SQL, instance(ipv4Enabled=True, pscConfig={"pscEnabled": False})))
    found = network.call("GET", f"{SQL}/i")
    assert not {"dnsName", "dnsNames", "pscServiceAttachmentLink"} & set(found)
    settings = network.call("GET", f"{SQL}/i/connectSettings")
    assert settings["pscEnabled"] is False
    assert "dnsName" not in settings
    switched = {"settings": {"ipConfiguration": {"ipv4Enabled": False, "pscConfig": {"pscEnabled": True}}}}
    assert "when the instance is made" in network.refused("PATCH", f"{SQL}/i", switched)["message"]


@pytest.mark.parametrize(
    ("ip", "code"),
    [
        ({"ipv4Enabled": True}, 400),
        ({"pscConfig": {"pscEnabled": False}}, 400),
        ({"ipv4Enabled": True, "pscConfig": {"allowedConsumerProjects": [PROJECT]}}, 400),
        ({"privateNetwork": f"projects/{PROJECT}/global/networks/n"}, 501),
    ],
)
def test_what_does_not_go_with_it_is_refused(network: Running, ip: dict[str, Any], code: int) -> None:
    assert network.refused("POST", SQL, instance(**ip))["code"] == code


def test_an_endpoint_is_accepted_and_holds_what_it_stands_on(network: Running, attachment: str) -> None:
    network.done(network.call("POST", f"{REGION}/forwardingRules", rule(attachment)))
    found = network.call("GET", f"{REGION}/forwardingRules/psc")
    address = network.call("GET", f"{REGION}/addresses/psc")
    assert (found["IPAddress"], found["pscConnectionStatus"]) == (address["address"], "ACCEPTED")
    assert address["users"] == [found["selfLink"]]
    for place in ("addresses/psc", "subnetworks/s"):
        assert network.refused("DELETE", f"{REGION}/{place}")["errors"][0]["reason"].startswith("resourceInUse")
    network.done(network.call("DELETE", f"{SQL}/i"))
    assert network.call("GET", f"{REGION}/forwardingRules/psc")["pscConnectionStatus"] == "CLOSED"
    network.done(network.call("DELETE", f"{REGION}/forwardingRules/psc"))
    network.done(network.call("DELETE", f"{REGION}/addresses/psc"))


def test_an_endpoint_has_its_labels_from_the_run_that_makes_it_or_from_the_next(
    network: Running, attachment: str
) -> None:
    body = {**rule(attachment, labels={"a": "b"}), "IPAddress": "10.10.0.2"}
    body.pop("name")
    wanted = Wanted("compute.forwardingRules", "psc", "europe-west1", body=body)
    for ready in ("made", "half made"):
        if ready == "half made":
            network.done(network.call("DELETE", f"{REGION}/forwardingRules/psc"))
            network.done(network.call("POST", f"{REGION}/forwardingRules", rule(attachment)))
        assert ensure_all(Session(PROJECT), [wanted])["changed"] is True
        assert network.call("GET", f"{REGION}/forwardingRules/psc")["labels"] == {"a": "b"}
        assert ensure_all(Session(PROJECT), [wanted])["changed"] is False


def test_an_endpoint_waits_where_the_instance_does_not_let_the_project_in(network: Running) -> None:
    network.done(network.call("POST", SQL, instance(projects=("other",))))
    target = network.call("GET", f"{SQL}/i")["pscServiceAttachmentLink"]
    network.done(network.call("POST", f"{REGION}/forwardingRules", rule(target)))
    assert network.call("GET", f"{REGION}/forwardingRules/psc")["pscConnectionStatus"] == "PENDING"
    allowed = {"settings": {"ipConfiguration": {"pscConfig": {"allowedConsumerProjects": ["other", PROJECT]}}}}
    network.done(network.call("PATCH", f"{SQL}/i", allowed))
    assert network.call("GET", f"{REGION}/forwardingRules/psc")["pscConnectionStatus"] == "ACCEPTED"


def test_a_bad_endpoint_is_refused(network: Running, attachment: str) -> None:
    url, external = f"{REGION}/forwardingRules", {"name": "outside"}
    network.done(network.call("POST", f"{REGION}/addresses", external))
    for body, code in (
        (rule(attachment + "x"), 404),
        (rule("projects/p/regions/europe-west1/targetPools/t"), 501),
        (rule(attachment, loadBalancingScheme="INTERNAL"), 501),
        (rule(attachment, labels={"a": "b"}), 400),
        (rule(attachment, "10.10.0.77"), 400),
        (rule(attachment, "regions/europe-west1/addresses/outside"), 400),
        ({key: value for key, value in rule(attachment).items() if key != "network"}, 400),
    ):
        assert network.refused("POST", url, body)["code"] == code, body
    network.done(network.call("POST", SQL, instance("far", "us-central1")))
    far = network.call("GET", f"{SQL}/far")["pscServiceAttachmentLink"]
    assert "not in the region" in network.refused("POST", url, rule(far))["message"]
    network.done(network.call("POST", url, rule(attachment)))
    assert "already in use" in network.refused("POST", url, {**rule(attachment), "name": "again"})["message"]


def test_a_private_zone_is_for_a_network_that_is_there_and_has_none_of_that_domain(network: Running) -> None:
    assert network.call("POST", ZONES, ZONE)["nameServers"] == ["ns-gcp-private.googledomains.com."]
    assert network.refused("POST", ZONES, {**ZONE, "name": "again"})["code"] == 409
    for config, code in (({"networks": []}, 400), ({"networks": [{"networkUrl": f"{NETWORK}x"}]}, 404)):
        body = {**ZONE, "name": "other", "dnsName": "b.sql.goog.", "privateVisibilityConfig": config}
        assert network.refused("POST", ZONES, body)["code"] == code
    assert network.refused("PATCH", f"{ZONES}/sql", {"dnsName": "b.sql.goog."})["code"] == 400
    network.call("PATCH", f"{ZONES}/sql", {"description": "Other"})
    assert network.call("GET", f"{ZONES}/sql")["description"] == "Other"
    network.done(network.call("DELETE", f"{REGION}/addresses/psc"))
    network.done(network.call("DELETE", f"{REGION}/subnetworks/s"))
    assert "already being used" in network.refused("DELETE", f"{COMPUTE}/global/networks/n")["message"]
