"""Cloud DNS: what is kept, and what is refused."""

import pytest

from tests.unit.emulator.conftest import PROJECT, Running

ZONES = f"https://dns.googleapis.com/dns/v1/projects/{PROJECT}/managedZones"
RECORDS = f"{ZONES}/example-com/rrsets"
ZONE = {"name": "example-com", "dnsName": "example.com.", "description": "Example"}
RECORD = {"name": "mlflow.example.com.", "type": "A", "ttl": 300, "rrdatas": ["203.0.113.9"]}
PLACE = f"{RECORDS}/mlflow.example.com./A"


@pytest.fixture
def dns(cloud: Running) -> Running:
    cloud.server.cloud.state.services[PROJECT].append("dns.googleapis.com")
    cloud.call("POST", ZONES, ZONE)
    return cloud


def test_the_api_has_to_be_enabled(cloud: Running) -> None:
    assert cloud.refused("GET", ZONES)["code"] == 403


def test_a_record_lives_from_create_to_delete(dns: Running) -> None:
    made = dns.call("POST", RECORDS, RECORD)
    assert made == dns.call("GET", PLACE) == {**RECORD, "kind": "dns#resourceRecordSet"}

    changed = dns.call("PATCH", PLACE, {**RECORD, "rrdatas": ["203.0.113.10"]})
    assert changed == dns.call("GET", PLACE)
    assert changed["rrdatas"] == ["203.0.113.10"]

    dns.call("DELETE", PLACE)
    assert dns.refused("GET", PLACE)["code"] == 404
    assert dns.refused("DELETE", PLACE)["code"] == 404


def test_a_zone_has_its_own_records_and_goes_only_without_others(dns: Running) -> None:
    dns.call("POST", RECORDS, RECORD)
    assert sorted(one["type"] for one in dns.call("GET", RECORDS)["rrsets"]) == ["A", "NS", "SOA"]
    assert [one["name"] for one in dns.call("GET", f"{ZONES}?dnsName=example.com.")["managedZones"]] == ["example-com"]
    assert "managedZones" not in dns.call("GET", f"{ZONES}?dnsName=example.org.")

    assert dns.refused("DELETE", f"{ZONES}/example-com")["errors"][0]["reason"] == "containerNotEmpty"
    assert dns.refused("DELETE", f"{RECORDS}/example.com./SOA")["code"] == 400
    dns.call("DELETE", PLACE)
    dns.call("DELETE", f"{ZONES}/example-com")
    assert dns.refused("GET", RECORDS)["code"] == 404


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "mlflow.example.com"},
        {"name": "mlflow.example.org."},
        {"name": "mlflow.notexample.com."},
        {"type": "B"},
        {"rrdatas": []},
        {"rrdatas": ["203.0.113.9", "203.0.113.9"]},
        {"rrdatas": ["2001:db8::1"]},
        {"rrdatas": ["projects/p/regions/r/addresses/a"]},
        {"ttl": -1},
    ],
)
def test_a_bad_record_is_refused(dns: Running, changed: dict[str, object]) -> None:
    assert dns.refused("POST", RECORDS, {**RECORD, **changed})["code"] == 400


def test_a_name_has_one_record_of_a_type_and_a_cname_stands_alone(dns: Running) -> None:
    dns.call("POST", RECORDS, RECORD)

    assert dns.refused("POST", RECORDS, RECORD)["code"] == 409
    cname = {**RECORD, "type": "CNAME", "rrdatas": ["www.example.com."]}
    assert dns.refused("POST", RECORDS, cname)["errors"][0]["reason"] == "cnameResourceRecordSetConflict"
    assert dns.refused("PATCH", PLACE, {**RECORD, "name": "other.example.com."})["code"] == 400


@pytest.mark.parametrize("missing", ["name", "dnsName", "description"])
def test_a_zone_needs_a_name_a_domain_and_a_description(dns: Running, missing: str) -> None:
    body = {name: value for name, value in ZONE.items() if name != missing}
    assert missing in dns.refused("POST", ZONES, body)["message"]


def test_a_zone_is_made_once(dns: Running) -> None:
    assert dns.refused("POST", ZONES, ZONE)["code"] == 409


def test_only_who_may_change_the_zone_writes_records(dns: Running, server_account: object) -> None:
    assert dns.refused("POST", RECORDS, RECORD, server_account)["code"] == 403
