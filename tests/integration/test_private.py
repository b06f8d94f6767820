"""A deployment without a public address, in an empty project: nobody outside reaches it, a record proves its domain."""

from __future__ import annotations

import pathlib
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.integration.conftest import metadata_token, removed_afterwards

pytestmark = pytest.mark.long
PROJECT = "empty-project"
COMPUTE = f"https://compute.googleapis.com/compute/v1/projects/{PROJECT}/zones/europe-west1-b/instances"
DNS = f"https://dns.googleapis.com/dns/v1/projects/{PROJECT}/managedZones"
SERVICES = f"https://serviceusage.googleapis.com/v1/projects/{PROJECT}/services"
Play = Callable[..., Any]


@pytest.fixture(scope="module", params=["debian-12", "debian-13"])
def private(
    request: pytest.FixtureRequest, cloud: Any, play: Play, make_inventory: Callable[..., pathlib.Path]
) -> Iterator[tuple[str, pathlib.Path]]:
    """Yield the name and the inventory of such a deployment, whose zone is there and nobody's record in it."""
    name = f"private-{secrets.token_hex(2)}"
    operation = cloud.call("POST", f"{SERVICES}/dns.googleapis.com:enable", {}).json()["name"]
    while not cloud.get(f"https://serviceusage.googleapis.com/v1/{operation}").get("done"):
        time.sleep(0.2)
    zone = {"name": name, "dnsName": f"{name}.localhost.", "description": "Of the domain"}
    for body in (zone, {**zone, "name": f"{name}-other", "dnsName": f"{name}-other.localhost."}):
        cloud.call("POST", DNS, body).raise_for_status()
    inventory = make_inventory(
        [PROJECT],
        platform_name=name,
        platform_domain=f"{name}.localhost",
        platform_dns_zone=name,
        platform_external_address_enabled=False,
        platform_vm_image_family=request.param,
        # The emulated name servers know a record at once.
        certbot_dns_propagation_seconds=1,
    )
    try:
        with removed_afterwards(inventory, PROJECT, name, play):
            yield name, inventory
        records = cloud.get(f"{DNS}/{name}/rrsets")["rrsets"]
        assert {record["type"] for record in records} == {"NS", "SOA"}
    finally:
        for made in (name, f"{name}-other"):
            cloud.call("DELETE", f"{DNS}/{made}")


def on_server(name: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command on the server."""
    return subprocess.run(
        ["docker", "exec", f"gce-{name}-1", "sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def serial(name: str) -> str:
    found = on_server(name, f"openssl x509 -in /etc/letsencrypt/live/{name}.localhost/cert.pem -noout -serial -issuer")
    assert "Pebble" in found.stdout, found.stderr
    return found.stdout.partition("\n")[0]


def test_it_serves_inside_alone_and_its_certificate_is_proven_by_a_record(
    private: tuple[str, pathlib.Path], play: Play, cloud: Any, environment: dict[str, str]
) -> None:
    name, inventory = private
    first = play("site.yml", inventory=inventory)
    assert first.code == 0, first.output
    assert "Look from the server, where nobody else may reach it" in first.output

    interface = cloud.get(f"{COMPUTE}/{name}-1")["networkInterfaces"][0]
    assert "accessConfigs" not in interface
    records = {one["type"]: one["rrdatas"] for one in cloud.get(f"{DNS}/{name}/rrsets")["rrsets"]}
    assert records["A"] == [interface["networkIP"]]
    assert "TXT" not in records
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get(f"https://{name}.localhost/", proxies={"https": environment["HTTPS_PROXY"]}, timeout=30)
    kept = on_server(name, f"cat /etc/letsencrypt/renewal/{name}.localhost.conf").stdout
    assert "authenticator = dns-google" in kept
    assert "credentials" not in kept

    second = play("site.yml", inventory=inventory)
    assert (second.code, second.changed) == (0, 0), second.output
    page = play("playbooks/status.yml", "-e", "status_drift_enabled=false", inventory=inventory)
    assert re.search(r"✓ Front door +ok", page.output), page.output


def test_it_is_renewed_by_the_same_and_the_account_may_do_no_more(
    private: tuple[str, pathlib.Path], cloud: Any
) -> None:
    name, _ = private
    before = serial(name)
    renewed = on_server(name, f"certbot renew --cert-name {name}.localhost --force-renewal --no-random-sleep-on-renew")
    assert renewed.returncode == 0, renewed.stdout + renewed.stderr
    assert serial(name) != before

    token = metadata_token(f"gce-{name}-1")
    record = {"name": f"_acme-challenge.{name}-other.localhost.", "type": "TXT", "ttl": 60, "rrdatas": ["x"]}
    assert cloud.call("POST", f"{DNS}/{name}-other/changes", {"additions": [record]}, token).status_code == 403
    for verb, place in (("DELETE", name), ("PATCH", name), ("GET", f"{name}-other/rrsets")):
        body = {"description": "Mine"} if verb == "PATCH" else None
        assert cloud.call(verb, f"{DNS}/{place}", body, token).status_code == 403


def test_what_is_rotated_is_proven_on_the_server(private: tuple[str, pathlib.Path], play: Play, cloud: Any) -> None:
    name, inventory = private
    chosen = "admin_password,flask_secret_key,certificate"
    before = serial(name)
    done = play("playbooks/rotate.yml", "-e", f"platform_rotate={chosen}", inventory=inventory)

    assert done.code == 0, done.output
    assert "Use MLflow as a person would" in done.output
    assert serial(name) != before
    for secret in (f"{name}-admin-password", f"{name}-flask-secret-key"):
        versions = f"https://secretmanager.googleapis.com/v1/projects/{PROJECT}/secrets/{secret}/versions"
        assert [one["state"] for one in cloud.get(versions)["versions"]] == ["ENABLED", "DISABLED"]


def test_without_the_right_on_the_zone_it_says_so_and_the_next_run_mends_it(
    private: tuple[str, pathlib.Path], play: Play, cloud: Any
) -> None:
    name, inventory = private
    policy = cloud.call("POST", f"{DNS}/{name}:getIamPolicy", {}).json()
    cloud.call("POST", f"{DNS}/{name}:setIamPolicy", {"policy": {**policy, "bindings": []}}).raise_for_status()
    # Another wait is another request.
    other = ("-e", "certbot_dns_propagation_seconds=2")
    failed = play("playbooks/configure.yml", "--tags", "certbot", *other, inventory=inventory)
    assert failed.code != 0
    assert f"Check that the public zone {name}" in failed.output, failed.output
    assert "docs/failures.md#no-certificate-was-issued" in failed.output

    mended = play("site.yml", inventory=inventory)
    assert (mended.code, mended.changed) == (0, 1), mended.output
    renewed = on_server(name, f"certbot renew --cert-name {name}.localhost --force-renewal --no-random-sleep-on-renew")
    assert renewed.returncode == 0, renewed.stdout + renewed.stderr
