"""A server behind a company's proxy that looks into TLS: all of its ways out lead through it, and back again."""

from __future__ import annotations

import json
import pathlib
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from emulator.certificates import make_authority
from tests.integration.conftest import ROOT, removed_afterwards

pytestmark = pytest.mark.long
PROJECT = "empty-project"
NAME = f"egress-{secrets.token_hex(2)}"
SERVER = f"gce-{NAME}-1"
ACCOUNT = f"{NAME}-server@{PROJECT}.iam.gserviceaccount.com"
PROXY = "company-proxy"
Play = Callable[..., Any]


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def address(container: str) -> str:
    return docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container)


@pytest.fixture(scope="module")
def company(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Yield the URL of the proxy, and the certificate of its authority."""
    assert environment
    directory = tmp_path_factory.mktemp("company")
    authority, key = make_authority("A company's own authority")
    (directory / "authority.pem").write_text(authority)
    (directory / "key.pem").write_text(key)
    command = ("python3", "/srv/company_proxy.py", "/srv/authority.pem", "/srv/key.pem", "3128")
    labels = ("--label", "mlops.mlflow_gcp=emulator", "--network", "mlflow-gcp")
    docker("create", "--name", PROXY, *labels, "mlflow-gcp/vm:debian-13", *command)
    try:
        sources = (ROOT / "tests/integration/company_proxy.py", ROOT / "emulator/certificates.py")
        for file in (*sources, *directory.iterdir()):
            docker("cp", str(file), f"{PROXY}:/srv/{file.name}")
        docker("start", PROXY)
        yield f"http://{address(PROXY)}:3128", authority
    finally:
        docker("rm", "--force", PROXY)


@pytest.fixture(scope="module")
def behind(company: tuple[str, str], play: Play, make_inventory: Callable[..., pathlib.Path]) -> Iterator[pathlib.Path]:
    """Yield the inventory of a deployment that knows no other way."""
    url, authority = company
    inventory = make_inventory(
        [PROJECT],
        platform_name=NAME,
        platform_domain=f"{NAME}.localhost",
        platform_https_proxy=url,
        platform_no_proxy=[],
        platform_ca_certificates=authority,
    )
    with removed_afterwards(inventory, PROJECT, NAME, play):
        yield inventory


@pytest.fixture
def asked(environment: dict[str, str]) -> Callable[[], tuple[set[str], set[str]]]:
    """Return a function that returns who asked Google since the test began: for the account, and from the server."""
    admin = f"{environment['HTTPS_PROXY']}/_emulator"
    since = requests.get(f"{admin}/health", timeout=5).json()["calls"]

    def callers() -> tuple[set[str], set[str]]:
        log = requests.get(f"{admin}/log", params={"since": since}, timeout=30).text.splitlines()
        records = [json.loads(line) for line in log]
        mine = {record["from"] for record in records if record["principal"] == ACCOUNT}
        direct = {f"{record['host']}{record['path']}" for record in records if record["from"] == address(SERVER)}
        return mine, {place for place in direct if not place.startswith(("metadata", "169.254."))}

    return callers


def test_an_empty_project_becomes_a_server_all_of_whose_ways_out_lead_through_it(
    behind: pathlib.Path, play: Play, asked: Callable[[], tuple[set[str], set[str]]]
) -> None:
    made = play("site.yml", inventory=behind)
    assert made.code == 0, made.output
    docker("exec", SERVER, "systemctl", "start", "mlflow-backup.service")
    assert asked() == ({address(PROXY)}, set())
    through = set(docker("logs", PROXY).splitlines())
    hosts = ("secretmanager", "storage", "sqladmin")
    assert {f"{host}.googleapis.com:443" for host in hosts} <= through
    assert {"acme.emulator.internal:14000", "packages.cloud.google.com:443"} <= through
    # As its users do; and no less confined for that.
    again = play("site.yml", "--diff", inventory=behind)
    assert (again.code, again.changed) == (0, 0), again.output


def test_services_that_run_are_replaced_where_the_way_changes(
    behind: pathlib.Path, play: Play, asked: Callable[[], tuple[set[str], set[str]]]
) -> None:
    direct = ("-e", "platform_https_proxy=", "-e", "platform_ca_certificates=")
    check = play("playbooks/configure.yml", "--check", "--diff", *direct, inventory=behind)
    assert check.code == 0, check.output
    changed = play("playbooks/configure.yml", "--diff", *direct, inventory=behind)
    assert changed.code == 0, changed.output
    assert changed.changed >= check.changed > 5
    mine, _ = asked()
    assert address(SERVER) in mine
    units = ("mlflow", "cloud-sql-proxy", "google-cloud-ops-agent-fluent-bit")
    for unit in units:
        environment = f"cat /proc/$(systemctl show -P MainPID {unit})/environ"
        assert "3128" not in docker("exec", SERVER, "sh", "-c", environment)
    again = play("playbooks/configure.yml", *direct, inventory=behind)
    assert (again.code, again.changed) == (0, 0), again.output
    # And back, under way: nobody waits for a stop.
    back = play("site.yml", inventory=behind)
    assert back.code == 0, back.output
    time.sleep(1)
    for unit in units:
        environment = f"cat /proc/$(systemctl show -P MainPID {unit})/environ"
        assert "3128" in docker("exec", SERVER, "sh", "-c", environment)
