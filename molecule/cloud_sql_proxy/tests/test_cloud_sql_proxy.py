import json
import time
from collections.abc import Iterator

import pytest
from testinfra.host import Host

DIRECTORY = "/run/cloud-sql-proxy"
SOCKET = f"{DIRECTORY}/demo-project:europe-west1:mlflow/.s.PGSQL.5432"
LINK = "/usr/local/bin/cloud-sql-proxy"
# A client of the socket: prints what the database says first.
CLIENT = f"""python3 -c '
import socket
client = socket.socket(socket.AF_UNIX)
client.settimeout(10)
client.connect("{SOCKET}")
print(client.makefile().readline().strip())'"""


def main_pid(host: Host) -> str:
    return host.check_output("systemctl show -P MainPID cloud-sql-proxy")


def get(host: Host, path: str) -> str:
    return host.check_output(
        f"curl --silent --output /tmp/body --write-out '%{{http_code}}' http://127.0.0.1:9090{path}"
    )


def wait_until_ready(host: Host) -> None:
    deadline = time.monotonic() + 30
    while host.run("curl --silent --fail http://127.0.0.1:9090/readiness").rc:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def checksums(host: Host, version: str) -> dict[str, str]:
    digest = host.file(f"/srv/downloads/v{version}/cloud-sql-proxy.linux.amd64").sha256sum
    return {"amd64": digest, "arm64": digest}


def test_the_service_runs_at_boot(host: Host) -> None:
    service = host.service("cloud-sql-proxy")
    assert service.is_running
    assert service.is_enabled


def test_clients_of_the_group_reach_the_database_as_the_service_account(host: Host) -> None:
    allowed = f"setpriv --reuid=nobody --regid=nogroup --groups=cloud-sql-proxy {CLIENT}"
    assert host.check_output(allowed) == "iam login"
    refused = host.run(f"setpriv --reuid=nobody --regid=nogroup --clear-groups {CLIENT}")
    assert "PermissionError" in refused.stderr
    directory = host.file(f"{DIRECTORY}.main")
    assert (directory.user, directory.group, directory.mode) == ("cloud-sql-proxy", "cloud-sql-proxy", 0o750)


def test_health_and_metrics_answer_on_loopback_alone(host: Host) -> None:
    assert [get(host, path) for path in ("/startup", "/readiness", "/liveness", "/metrics")] == ["200"] * 4
    assert host.check_output("ss -Hltn 'sport = :9090'").split()[3] == "127.0.0.1:9090"


def test_the_program_belongs_to_root_and_the_process_does_not(host: Host) -> None:
    program = host.file(host.file(LINK).linked_to)
    assert (program.user, program.mode) == ("root", 0o755)
    assert host.check_output(f"ps -o user= -p {main_pid(host)} ww").startswith("cloud-sq")


def test_unit_is_confined(host: Host) -> None:
    report = host.check_output("systemd-analyze security --no-pager cloud-sql-proxy.service | tail -1")
    assert float(report.split("cloud-sql-proxy.service:")[1].split()[0]) <= 2.0


def test_logs_are_structured(host: Host) -> None:
    journal = host.check_output("journalctl --unit=cloud-sql-proxy --no-pager --output=cat")
    assert '"severity": "INFO"' in journal or '"severity":"INFO"' in journal


@pytest.mark.parametrize("signal", ["KILL", "TERM"])
def test_a_killed_proxy_comes_back(host: Host, signal: str) -> None:
    before = main_pid(host)
    host.check_output(f"kill -{signal} {before}")
    deadline = time.monotonic() + 30
    while main_pid(host) in (before, "0"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    wait_until_ready(host)
    assert host.check_output(CLIENT) == "iam login"


CLIENTS = f"""
import pathlib, socket, time
stop, count, failed = pathlib.Path("/tmp/stop"), 0, []
while not stop.exists():
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect("{SOCKET}")
            assert client.makefile().readline().strip() == "iam login"
    except (AssertionError, OSError) as error:
        failed.append(repr(error))
    count += 1
    time.sleep(0.02)
pathlib.Path("/tmp/report.json").write_text(__import__("json").dumps([count, failed]))
"""


@pytest.fixture
def clients(host: Host, once: None) -> Iterator[None]:
    """Connect all the time; none of the connections may have failed at the end."""
    host.check_output(
        "rm -f /tmp/stop /tmp/report.json; systemd-run --quiet --collect --unit=clients python3 -c %s", CLIENTS
    )
    yield
    host.check_output("touch /tmp/stop; timeout 30 sh -c 'until test -s /tmp/report.json; do sleep 0.2; done'")
    count, failed = json.loads(host.file("/tmp/report.json").content_string)
    assert (count > 50, failed) == (True, [])


def states(host: Host) -> list[str]:
    """Return which proxy new connections go to, and whether the main and the spare one run."""
    units = host.run("systemctl is-active cloud-sql-proxy cloud-sql-proxy-spare").stdout.split()
    return [host.check_output(f"readlink {DIRECTORY}"), *units]


@pytest.mark.usefixtures("clients")
def test_a_run_finishes_what_an_interrupted_one_left_and_no_connection_fails(host: Host, converge) -> None:
    before = main_pid(host)
    host.check_output("touch /etc/systemd/system/cloud-sql-proxy.service")
    assert "changed=1 " in converge("--check").stdout
    assert main_pid(host) == before
    assert "changed=1 " in converge().stdout
    assert main_pid(host) != before
    assert states(host) == ["cloud-sql-proxy.main", "active", "inactive"]
    assert "changed=0 " in converge("--check").stdout


@pytest.mark.usefixtures("clients")
@pytest.mark.parametrize("seconds", [3, 8])
def test_a_killed_handover_is_finished_by_the_next(host: Host, seconds: int) -> None:
    host.check_output("touch /etc/systemd/system/cloud-sql-proxy.service")
    handover = "/usr/local/sbin/cloud-sql-proxy-handover"
    assert host.run(f"timeout --signal=KILL {seconds} {handover} 5").rc == 137
    assert states(host)[2] == "active"
    assert host.check_output(f"{handover} 1").splitlines() == [
        "hands over to a new proxy" if seconds == 3 else "stops the spare proxy"
    ]
    assert states(host) == ["cloud-sql-proxy.main", "active", "inactive"]
    assert host.check_output(f"{handover} 1") == ""


@pytest.mark.usefixtures("clients")
def test_a_proxy_that_does_not_start_takes_nobody_s_place(host: Host, converge) -> None:
    before = main_pid(host)
    broken = converge(cloud_sql_proxy_version="2.25.4", cloud_sql_proxy_checksums=checksums(host, "2.25.4"))
    assert broken.returncode != 0
    assert "the one before serves on" in broken.stdout
    assert (main_pid(host), states(host)) == (before, ["cloud-sql-proxy.main", "active", "inactive"])
    assert converge().returncode == 0


def test_a_wrong_checksum_changes_nothing(host: Host, converge) -> None:
    before = main_pid(host)
    done = converge(cloud_sql_proxy_version="2.25.3")
    assert done.returncode != 0
    assert "checksum" in done.stdout
    assert host.file(LINK).linked_to == f"{LINK}-2.25.2"
    assert not host.file(f"{LINK}-2.25.3").exists
    assert main_pid(host) == before


def test_another_version_takes_over(host: Host, converge) -> None:
    done = converge(cloud_sql_proxy_version="2.25.3", cloud_sql_proxy_checksums=checksums(host, "2.25.3"))
    assert done.returncode == 0, done.stdout
    assert host.file(LINK).linked_to == f"{LINK}-2.25.3"
    assert host.check_output(CLIENT) == "iam login"


def test_settings_reach_the_proxy(host: Host, converge) -> None:
    done = converge(cloud_sql_proxy_iam_authentication_enabled=False, cloud_sql_proxy_health_port=9191)
    assert done.returncode == 0, done.stdout
    assert host.check_output(CLIENT) == "password login"
    assert host.run("curl --silent --fail http://127.0.0.1:9191/readiness").rc == 0
    assert converge().returncode == 0


def test_a_refusal_is_explained(host: Host, converge) -> None:
    host.check_output("touch /srv/cloud/denied; systemctl restart --no-block cloud-sql-proxy")
    try:
        done = converge(entry_point="health", cloud_sql_proxy_ready_timeout_seconds=4)
    finally:
        host.check_output("rm /srv/cloud/denied")
    assert done.returncode != 0
    assert "not authorized" in done.stdout
    assert "roles/cloudsql.client" in done.stdout
    wait_until_ready(host)
