"""From 3.16.1, whose schema 3.17 moves, to 3.17.2 and about, with clients at work. The tests go on from one another."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest
from testinfra.host import Host

PASSWORD = "admin-secret-5c3e"
OLD_SCHEMA, NEW_SCHEMA = "b7e2c1a4d9f3", "dc11669786a5"
CONFIRMED = {"mlflow_upgrade_confirmed_version": "3.17.2"}
UPGRADE = {"entry_point": "upgrade", "version": "3.17.2"}
# Of the clients of the upgrade that everything else begins with: `make long` and `make upgrades` have ten thousand.
REQUESTS = int(os.environ.get("UPGRADE_REQUESTS", "200"))


@pytest.fixture
def once() -> None:
    """Try all of this on both systems."""


def sql(host: Host, statement: str) -> str:
    command = f'runuser -u postgres -- psql --quiet --tuples-only --no-align --command "{statement}" mlflow'
    return host.check_output(command).strip()


def schema(host: Host) -> str:
    return sql(host, "SELECT version_num FROM alembic_version")


def live(host: Host) -> str:
    """Name of the live generation, once everything agrees about it."""
    name = host.check_output("readlink /etc/systemd/system/mlflow.service").removesuffix(".service")
    assert host.check_output("readlink /etc/mlflow/live") == f"generations/{name}"
    assert host.check_output("readlink /run/mlflow/live.sock") == f"{name}/server.sock"
    assert host.run("/opt/mlflow/bin/mlflow-ready --wait 120").rc == 0
    return name


def running(host: Host) -> list[str]:
    lines = host.check_output(
        "systemctl list-units --plain --no-legend --state=active,activating 'mlflow-[0-9]*.service'"
    )
    return [line.split()[0].removesuffix(".service") for line in lines.splitlines()]


def served_version(host: Host) -> str:
    return host.check_output(
        f"curl --silent --user admin:{PASSWORD} --unix-socket /run/mlflow/live.sock http://localhost/version"
    )


def kill_at(process: "subprocess.Popen[str]", task: str, host: Host, seconds: float) -> None:
    """Kill Ansible some seconds after it began a task, and what it runs on the server."""
    assert process.stdout
    for line in process.stdout:
        if task in line:
            break
    else:
        pytest.fail(f"never came to {task}")
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    host.run("pkill -9 -f bin/mlflow-switch")


def test_site_yml_refuses_a_schema_that_moves(host: Host, converge) -> None:
    before = live(host)
    refused = converge(version="3.17.2")
    assert refused.returncode != 0
    assert "run playbooks/upgrade.yml" in " ".join(refused.stdout.split())
    assert f"{before} serves as before" in " ".join(refused.stdout.split())
    assert (live(host), running(host), schema(host)) == (before, [before], OLD_SCHEMA)


def test_an_upgrade_says_that_the_schema_moves_and_asks(host: Host, converge) -> None:
    before = live(host)
    refused = converge(**UPGRADE)
    said = " ".join(refused.stdout.split())
    assert refused.returncode != 0
    assert f"{OLD_SCHEMA} to {NEW_SCHEMA}" in said
    assert "the way back is a backup" in said
    assert "-e platform_upgrade_confirmed_version=3.17.2" in said
    assert (live(host), running(host), schema(host)) == (before, [before], OLD_SCHEMA)


def test_a_migration_that_fails_midway_leaves_the_schema(host: Host, converge, clients) -> None:
    before = live(host)
    sql(host, "CREATE TABLE sql_trace_rollup_rebuild_queue (in_the_way int)")
    with clients():
        failed = converge(**UPGRADE, **CONFIRMED)
    said = " ".join(failed.stdout.split())
    assert failed.returncode != 0
    assert "The migration failed" in said
    assert "sql_trace_rollup_rebuild_queue" in said
    assert (live(host), running(host), schema(host)) == (before, [before], OLD_SCHEMA)
    # Made by the migration, before it came to the table that was in the way.
    assert sql(host, "SELECT to_regclass('sql_trace_metric_daily_rollups')") == ""
    sql(host, "DROP TABLE sql_trace_rollup_rebuild_queue")


def test_an_upgrade_that_is_killed_twice_and_run_again_fails_no_request(host: Host, begin, converge, clients) -> None:
    before = live(host)
    with clients(REQUESTS):
        kill_at(begin(**UPGRADE, **CONFIRMED), "Migrate | Move the schemas of both databases", host, 1)
        kill_at(begin(**UPGRADE, **CONFIRMED), "Service | Start it", host, 4)
        assert host.run("/opt/mlflow/bin/mlflow-ready").rc == 0
        finished = converge(**UPGRADE, **CONFIRMED)
    assert finished.returncode == 0, finished.stdout
    assert (served_version(host), schema(host)) == ("3.17.2", NEW_SCHEMA)
    assert running(host) == [live(host)]
    assert host.check_output("readlink /etc/mlflow/previous") == f"generations/{before}"


def test_rollback_refuses_a_schema_that_has_moved(host: Host, converge) -> None:
    before = live(host)
    refused = converge(entry_point="rollback")
    said = " ".join(refused.stdout.split())
    assert refused.returncode != 0
    assert f"the tracking database has schema {NEW_SCHEMA}, this MLflow needs {OLD_SCHEMA}" in said
    assert "restore a backup" in said
    assert (live(host), running(host)) == (before, [before])


def test_a_change_of_settings_fails_no_request(host: Host, converge, clients) -> None:
    before = live(host)
    with clients():
        changed = converge(version="3.17.2", mlflow_auth_cache_ttl_seconds=61)
    assert changed.returncode == 0, changed.stdout
    now = live(host)
    assert now != before
    assert running(host) == [now]
    assert host.check_output("readlink /etc/mlflow/previous") == f"generations/{before}"
    # Two are kept, and what they run; and the release before, for pages that are open or come from another server.
    assert len(host.check_output("ls /etc/mlflow/generations").split()) == 2
    assert len(host.check_output("ls /opt/mlflow/releases").split()) == 2
    script = host.check_output("cd /opt/mlflow/releases/3.16.1-*/static && ls static/js/main.*.js")
    address = f"--resolve mlflow.test:443:127.0.0.1 https://mlflow.test/static-files/{script}"
    assert (
        host.check_output(f"curl --insecure --silent --output /dev/null --write-out '%{{http_code}}' {address}")
        == "200"
    )


def test_rollback_is_live_within_a_minute(host: Host, begin, clients) -> None:
    before, wanted = live(host), host.check_output("readlink /etc/mlflow/previous").rpartition("/")[2]
    with clients():
        begun = time.monotonic()
        process = begin(entry_point="rollback")
        while host.check_output("readlink /run/mlflow/live.sock") != f"{wanted}/server.sock":
            assert time.monotonic() < begun + 120
            time.sleep(0.5)
        seconds = time.monotonic() - begun
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert running(host) == [live(host)] == [wanted]
    assert f"would bring {before} back" in " ".join(output.split())
    assert seconds < 60


@pytest.mark.long
def test_another_patch_release_fails_no_request(host: Host, converge, clients) -> None:
    with clients():
        changed = converge(version="3.17.1")
    assert changed.returncode == 0, changed.stdout
    assert (served_version(host), schema(host)) == ("3.17.1", NEW_SCHEMA)
    refused = converge(entry_point="upgrade", version="3.16.1")
    assert refused.returncode != 0
    assert "older than 3.17.1, which serves" in " ".join(refused.stdout.split())


@pytest.mark.long
def test_a_version_that_starts_but_is_broken_never_goes_live(host: Host, converge, clients) -> None:
    before = live(host)
    packages = "/opt/mlflow/releases/3.17.2-*/lib/python3*/site-packages"
    store = host.check_output(f"ls {packages}/mlflow/store/tracking/sqlalchemy_store.py")
    host.check_output(f"cp -p {store} /srv/whole.py; echo 'SqlAlchemyStore.search_experiments = None' >> {store}")
    try:
        with clients():
            failed = converge(**UPGRADE, mlflow_start_timeout_seconds=40)
    finally:
        host.check_output(f"cp -p /srv/whole.py {store}")
    said = " ".join(failed.stdout.split())
    assert failed.returncode != 0
    assert f"{before} serves as before" in said
    assert "mlflow is not ready: the API answered 500" in said
    assert (live(host), running(host)) == (before, [before])


@pytest.mark.long
def test_an_upgrade_whose_schema_stays_asks_nothing_and_fails_no_request(host: Host, converge, clients) -> None:
    with clients():
        upgraded = converge(**UPGRADE)
    assert upgraded.returncode == 0, upgraded.stdout
    assert served_version(host) == "3.17.2"
    assert running(host) == [live(host)]


@pytest.mark.long
def test_a_change_of_dependencies_fails_no_request(host: Host, converge, clients, tmp_path) -> None:
    before, name = live(host), "requirements-3.17.2.txt"
    lock = pathlib.Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "locks", name).read_text()
    # One less, which PostgreSQL does not need.
    shorter = re.sub(r"(?m)^pymysql==.*(\n    --hash.*)*\n", "", lock)
    assert shorter != lock
    (tmp_path / name).write_text(shorter)
    with clients():
        changed = converge(version="3.17.2", mlflow_lock_dir=str(tmp_path))
    assert changed.returncode == 0, changed.stdout
    assert running(host) == [live(host)] != [before]
    assert host.run("ls /etc/mlflow/live/release/lib/python3*/site-packages | grep pymysql").rc == 1
    assert host.check_output("readlink /etc/mlflow/previous") == f"generations/{before}"
    assert converge(version="3.17.2").returncode == 0


@pytest.mark.long
def test_an_upgrade_of_all_of_debians_packages_fails_no_request(host: Host, converge, clients) -> None:
    before = running(host)
    # The database stands for Cloud SQL, and is not on this machine.
    names = host.check_output("dpkg-query --show --showformat '${binary:Package}\\n' | grep -v postgresql").split()
    options = "--quiet=2 --reinstall --option=Dpkg::Options::=--force-confold"
    with clients():
        host.check_output(f"DEBIAN_FRONTEND=noninteractive apt-get install {options} {' '.join(names)}")
    assert len(names) > 100
    assert running(host) == before == [live(host)]
    # Nothing that a run would have to mend.
    again = converge("--diff", version="3.17.2")
    assert again.returncode == 0, again.stdout
    assert "changed=0" in again.stdout


def kill_at_step(process: "subprocess.Popen[str]", number: int) -> str:
    """Kill Ansible in a task, and return its name; empty where it ended before. What it runs on the server is left."""
    assert process.stdout
    begun = 0
    for line in process.stdout:
        begun += line.startswith("TASK [")
        if begun == number:
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return line
    return ""


@pytest.mark.long
def test_an_upgrade_that_is_killed_in_every_task_fails_no_request(host: Host, begin, converge, clients) -> None:
    assert converge(version="3.17.1").returncode == 0
    tasks: list[str] = []
    with clients():
        while task := kill_at_step(begin(**UPGRADE), len(tasks) + 1):
            tasks.append(task)
            assert host.run("/opt/mlflow/bin/mlflow-ready").rc == 0, task
        finished = converge(**UPGRADE)
    assert finished.returncode == 0, finished.stdout
    assert [word for word in ("Install |", "Configure |", "Service |") if word not in "".join(tasks)] == []
    assert served_version(host) == "3.17.2"
    assert running(host) == [live(host)]


def test_settings_edited_by_hand_are_mended_and_in_effect(host: Host, converge) -> None:
    name = live(host)
    host.check_output(f"sed -i /MLFLOW_DISABLE_TELEMETRY/d /etc/mlflow/generations/{name}/mlflow.env")
    host.check_output("systemctl restart mlflow")
    environ = f"cat /proc/$(systemctl show -P MainPID {name})/environ | tr '\\0' '\\n'"
    assert "MLFLOW_DISABLE_TELEMETRY" not in host.check_output(environ)
    assert converge(version="3.17.2").returncode == 0
    assert live(host) == name
    assert "MLFLOW_DISABLE_TELEMETRY" in host.check_output(environ)


def test_a_boot_starts_the_live_generation_alone(host: Host) -> None:
    name = live(host)
    subprocess.run(["docker", "restart", host.backend.get_hostname()], check=True, capture_output=True)
    deadline = time.monotonic() + 180
    while host.run("/opt/mlflow/bin/mlflow-ready --wait 60").rc:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert running(host) == [live(host)] == [name]
