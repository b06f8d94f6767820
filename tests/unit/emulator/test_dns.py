"""Cloud DNS: what is kept, what is refused, and what everybody is told."""

import socket
import struct
from typing import Any

import pytest
import requests

from tests.unit.emulator.conftest import PROJECT, Running

COMPUTE = f"https://compute.googleapis.com/compute/v1/projects/{PROJECT}"
ZONES = f"https://dns.googleapis.com/dns/v1/projects/{PROJECT}/managedZones"
RECORDS = f"{ZONES}/example-com/rrsets"
ZONE = {"name": "example-com", "dnsName": "example.com.", "description": "Example"}
RECORD = {"name": "mlflow.example.com.", "type": "A", "ttl": 300, "rrdatas": ["203.0.113.9"]}
PLACE = f"{RECORDS}/mlflow.example.com./A"
CHANGES = f"{ZONES}/example-com/changes"
CHALLENGE = {"name": "_acme-challenge.mlflow.example.com.", "type": "TXT", "ttl": 60}
ACCOUNT = f"serviceAccount:mlflow-server@{PROJECT}.iam.gserviceaccount.com"


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
    assert dns.call("GET", f"{ZONES}?dnsName=example.org.")["managedZones"] == []

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


def challenge(*data: str) -> dict[str, Any]:
    return {**CHALLENGE, "rrdatas": list(data)}


def change(dns: Running, **sides: dict[str, Any]) -> dict[str, Any]:
    """Send one change, with at most one record set on each side."""
    made: dict[str, Any] = dns.call("POST", CHANGES, {side: [record] for side, record in sides.items()})
    return made


def test_a_change_adds_replaces_and_takes_away_records_as_one(dns: Running) -> None:
    made = change(dns, additions=challenge("one"))
    assert made["status"] == "pending"
    assert dns.call("GET", f"{CHANGES}/{made['id']}")["status"] == "done"
    # By its number too, as Certbot does, and in quotes, as Google keeps it.
    number = dns.call("GET", f"{ZONES}/example-com")["id"]
    query = f"name={CHALLENGE['name']}&type=TXT"
    assert dns.call("GET", f"{ZONES}/{number}/rrsets?{query}")["rrsets"][0]["rrdatas"] == ['"one"']

    change(dns, deletions=challenge('"one"'), additions=challenge('"one"', "two"))
    change(dns, deletions=challenge('"two"', '"one"'))
    assert dns.call("GET", f"{RECORDS}?{query}")["rrsets"] == []
    assert len(dns.call("GET", CHANGES)["changes"]) == 3


@pytest.mark.parametrize(
    ("sides", "code"),
    [
        ({}, 400),
        ({"additions": [challenge("one")]}, 409),
        ({"additions": [challenge("two"), challenge("three")]}, 400),
        ({"additions": [{**challenge("two"), "name": "_acme-challenge.mlflow.example.com"}]}, 400),
        ({"additions": [{**challenge("x" * 256), "name": "long.example.com."}]}, 400),
        ({"deletions": [challenge("two")]}, 412),
        ({"deletions": [{**challenge("one"), "ttl": 300}]}, 412),
        ({"deletions": [{**challenge("one"), "name": "absent.example.com."}]}, 404),
        ({"deletions": [challenge("one"), {**challenge("one"), "name": "absent.example.com."}]}, 404),
        ({"additions": [{**challenge("www.example.com."), "type": "CNAME"}]}, 400),
    ],
)
def test_a_change_that_does_not_fit_changes_nothing(dns: Running, sides: dict[str, Any], code: int) -> None:
    change(dns, additions=challenge("one"))
    before = dns.call("GET", RECORDS)

    assert dns.refused("POST", CHANGES, sides)["code"] == code

    assert dns.call("GET", RECORDS) == before


def grant(dns: Running, *permissions: str) -> None:
    """Grant the servers' account permissions on the zone alone."""
    roles = f"https://iam.googleapis.com/v1/projects/{PROJECT}/roles"
    dns.call("POST", roles, {"roleId": "zone", "role": {"includedPermissions": list(permissions), "stage": "GA"}})
    policy = dns.call("POST", f"{ZONES}/example-com:getIamPolicy", {})
    bindings = [{"role": f"projects/{PROJECT}/roles/zone", "members": [ACCOUNT]}]
    dns.call("POST", f"{ZONES}/example-com:setIamPolicy", {"policy": {**policy, "bindings": bindings}})


def test_a_zone_is_granted_alone_and_each_side_of_a_change_by_itself(dns: Running, server_account: object) -> None:
    dns.call("POST", ZONES, {**ZONE, "name": "example-org", "dnsName": "example.org."})
    grant(dns, "dns.changes.create", "dns.resourceRecordSets.create")

    sides = {"additions": [challenge("one")]}
    assert dns.call("POST", CHANGES, sides, server_account)["status"] == "pending"
    for refused in (
        {"deletions": [challenge("one")]},
        {"deletions": [challenge("one")], "additions": [challenge("two")]},
    ):
        assert dns.refused("POST", CHANGES, refused, server_account)["code"] == 403
    assert dns.refused("GET", RECORDS, None, server_account)["code"] == 403
    # The zones are listed in the project.
    assert dns.refused("GET", ZONES, None, server_account)["code"] == 403
    elsewhere = {"additions": [{**challenge("one"), "name": "_acme-challenge.example.org."}]}
    assert dns.refused("POST", f"{ZONES}/example-org/changes", elsewhere, server_account)["code"] == 403


def ask(dns: Running, name: str, kind: int) -> tuple[int, list[bytes]]:
    """Ask the name server; return its status and the data of its answers."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = labels + struct.pack(">HH", kind, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        # With one additional record, as Go's and glibc's resolvers send it.
        edns = b"\0" + struct.pack(">HHIH", 41, 1232, 0, 0)
        client.sendto(struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 1) + question + edns, ("127.0.0.1", port(dns)))
        answer = client.recv(1232)
    identity, flags, _, count, *_ = struct.unpack_from(">HHHHHH", answer)
    assert (identity, flags & 0x8000) == (7, 0x8000)
    place, found = 12 + len(question), []
    for _ in range(count):
        *_, length = struct.unpack_from(">HHHIH", answer, place)
        found.append(answer[place + 12 : place + 12 + length])
        place += 12 + length
    assert place == len(answer)
    return flags & 0xF, found


def port(dns: Running) -> int:
    return dns.server.settings.dns_port


def test_everybody_is_told_what_is_in_public_zones(dns: Running) -> None:
    dns.call("POST", RECORDS, RECORD)
    change(dns, additions=challenge("one", "two"))

    assert ask(dns, "_acme-challenge.MLflow.example.com.", 16) == (0, [b"\x03one", b"\x03two"])
    assert ask(dns, "mlflow.example.com.", 1) == (0, [bytes([203, 0, 113, 9])])
    assert ask(dns, "mlflow.example.com.", 28) == (0, [])
    assert ask(dns, "absent.example.com.", 1) == (0, [])
    assert ask(dns, "example.org.", 1) == (5, [])
    # A zone of its own hides what the outer one has.
    dns.call("POST", ZONES, {**ZONE, "name": "inner", "dnsName": "mlflow.example.com."})
    assert ask(dns, "_acme-challenge.mlflow.example.com.", 16) == (0, [])


def test_nobody_outside_is_told_what_is_in_private_zones(dns: Running) -> None:
    dns.done(dns.call("POST", f"{COMPUTE}/global/networks", {"name": "n", "autoCreateSubnetworks": False}))
    seen_by = {"networks": [{"networkUrl": f"{COMPUTE.replace('compute.', 'www.')}/global/networks/n"}]}
    private = {"name": "inner", "dnsName": "mlflow.example.com.", "visibility": "private"}
    dns.call("POST", ZONES, {**ZONE, **private, "privateVisibilityConfig": seen_by})
    dns.call("POST", f"{ZONES}/inner/rrsets", RECORD)

    assert ask(dns, "mlflow.example.com.", 1) == (0, [])


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 12, b"\0" * 11, bytes([0, 7, 0x80, 0, 0, 1] + [0] * 6 + [0, 0, 1, 0, 1])]
)
def test_what_is_no_question_gets_no_answer(dns: Running, data: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        client.sendto(data, ("127.0.0.1", port(dns)))
        with pytest.raises(TimeoutError):
            client.recv(100)
    assert ask(dns, "example.com.", 1) == (0, [])


def test_older_clients_find_what_the_api_is_like(dns: Running) -> None:
    proxies, trust = dns.operator.proxies, dns.operator.verify
    for url in (
        "https://www.googleapis.com/discovery/v1/apis/dns/v1/rest",
        "https://dns.googleapis.com/$discovery/rest?version=v1",
    ):
        answer = requests.get(url, timeout=5, proxies=proxies, verify=trust)
        assert "changes" in answer.json()["resources"]
