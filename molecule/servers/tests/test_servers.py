"""From 3.16.1, whose schema 3.17 moves, to 3.17.2 on three servers behind a load balancer, with clients at work."""

import os
import signal
import subprocess
import time

import pytest
import testinfra
from testinfra.host import Host

testinfra_hosts = ["ansible://servers-balancer"]
SERVERS = [testinfra.get_host(f"docker://servers-{number}") for number in (1, 2, 3)]
ALL = ("--limit", "mlflow")
UPGRADE = {"entry_point": "upgrade", "version": "3.17.2", "mlflow_upgrade_confirmed_version": "3.17.2"}
PASSWORD = "admin-secret-5c3e"


@pytest.fixture
def once() -> None:
    """There is one system here."""


def versions(servers: list[Host]) -> list[str]:
    """What each server serves, once it does, on the one generation that it runs."""
    found = []
    for server in servers:
        assert server.run("/opt/mlflow/bin/mlflow-ready --wait 60").rc == 0
        units = "systemctl list-units --plain --no-legend --state=active,activating 'mlflow-3*'"
        assert len(server.check_output(units).splitlines()) == 1
        command = f"curl --silent --user admin:{PASSWORD} --unix-socket /run/mlflow/live.sock http://localhost/version"
        found.append(server.check_output(command))
    return found


def generations() -> list[str]:
    return [server.check_output("readlink /etc/mlflow/live") for server in SERVERS]


def taken_out(host: Host) -> list[str]:
    """Names of the servers to which the load balancer sends nothing."""
    code = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy.sock'); s.sendall(b'show stat\\n')"
    )
    code += "; print(s.makefile().read())"
    lines = host.check_output("python3 -c %s", code).splitlines()
    rows = [line.split(",") for line in lines if line.startswith("servers,servers-")]
    assert len(rows) == 3, lines
    return [row[1] for row in rows if not row[17].startswith("UP")]


def kill_at(process: "subprocess.Popen[str]", *words: str) -> None:
    """Kill Ansible once it has come to lines with each of the words, in this order."""
    assert process.stdout
    left = list(words)
    for line in process.stdout:
        if left[0] in line:
            left.pop(0)
        if not left:
            break
    else:
        pytest.fail(f"never came to {left[0]}")
    time.sleep(3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.long
def test_an_upgrade_that_stops_at_the_second_server_and_is_killed_at_the_third_and_run_again_fails_no_request(
    host: Host, begin, converge, clients
) -> None:
    assert versions(SERVERS) == ["3.16.1"] * 3
    second = SERVERS[1]
    with clients(fewest=10_000):
        staged = converge(*ALL, entry_point="stage", version="3.17.2")
        assert staged.returncode == 0, staged.stdout
        store = second.check_output(
            "ls /opt/mlflow/releases/3.17.2-*/lib/python3*/site-packages/mlflow/store/tracking/sqlalchemy_store.py"
        )
        second.check_output(f"cp -p {store} /srv/whole.py; echo 'SqlAlchemyStore.search_experiments = None' >> {store}")
        stopped = converge(*ALL, **UPGRADE, mlflow_start_timeout_seconds=60)
        assert stopped.returncode != 0
        assert "mlflow is not ready: the API answered 500" in " ".join(stopped.stdout.split())
        assert versions(SERVERS) == ["3.17.2", "3.16.1", "3.16.1"]

        second.check_output(f"cp -p /srv/whole.py {store}")
        kill_at(begin(*ALL, **UPGRADE), "changed: [servers-2]", "Service | Start it", "Service | Start it")
        assert versions(SERVERS[:2]) == ["3.17.2", "3.17.2"]

        finished = converge(*ALL, **UPGRADE)
        assert finished.returncode == 0, finished.stdout
    assert versions(SERVERS) == ["3.17.2"] * 3
    assert len(set(generations())) == 1


@pytest.mark.long
def test_a_change_of_settings_fails_no_request(converge, clients) -> None:
    before = generations()
    with clients():
        changed = converge(*ALL, version="3.17.2", mlflow_auth_cache_ttl_seconds=61)
    assert changed.returncode == 0, changed.stdout
    assert len(set(generations())) == 1
    assert generations() != before


@pytest.mark.long
def test_a_rollback_that_is_killed_and_run_again_fails_no_request(begin, converge, clients) -> None:
    before = generations()
    with clients():
        kill_at(begin(*ALL, entry_point="rollback"), "changed: [servers-1]", "Rollback | Start it")
        back = converge(*ALL, entry_point="rollback")
    assert back.returncode == 0, back.stdout
    assert len(set(generations())) == 1
    assert generations() != before


@pytest.mark.long
def test_a_rollback_leaves_the_servers_that_an_upgrade_did_not_come_to(converge) -> None:
    before = generations()
    changed = converge("--limit", "servers-1", version="3.17.2", mlflow_auth_cache_ttl_seconds=62)
    assert changed.returncode == 0, changed.stdout
    assert generations()[0] not in before
    back = converge(*ALL, entry_point="rollback")
    assert back.returncode == 0, back.stdout
    assert generations() == before
    again = converge(*ALL, entry_point="rollback")
    assert again.returncode == 0, again.stdout
    assert again.stdout.count("was live already") == 3
    assert generations() == before
    assert converge(*ALL, version="3.17.2").returncode == 0


@pytest.mark.long
def test_a_restart_of_every_nginx_fails_no_request(host: Host, converge, clients) -> None:
    def started() -> list[str]:
        return [server.check_output("systemctl show --property=MainPID --value nginx") for server in SERVERS]

    before = started()
    for server in SERVERS:
        server.check_output("touch /etc/systemd/system/nginx.service.d/hardening.conf")
    with clients():
        restarted = converge(*ALL, version="3.17.2")
    assert restarted.returncode == 0, restarted.stdout
    assert not set(started()) & set(before)
    assert [server.file("/run/nginx-drain").exists for server in SERVERS] == [False] * 3
    assert taken_out(host) == []


@pytest.mark.long
def test_a_server_that_is_drained_stopped_and_given_back_fails_no_request(host: Host, converge, clients) -> None:
    with clients():
        drained = converge("--limit", "servers-3", nginx_entry_point="drain")
        assert drained.returncode == 0, drained.stdout
        assert taken_out(host) == ["servers-3"]
        SERVERS[2].check_output("systemctl stop nginx mlflow")
        time.sleep(15)
        SERVERS[2].check_output("systemctl start mlflow nginx")
        assert taken_out(host) == ["servers-3"]
        enabled = converge("--limit", "servers-3", nginx_entry_point="enable")
        assert enabled.returncode == 0, enabled.stdout
        deadline = time.monotonic() + 30
        while taken_out(host):
            assert time.monotonic() < deadline
            time.sleep(1)
