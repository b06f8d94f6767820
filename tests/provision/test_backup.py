"""The control host's half of backup.yml and restore.yml: what is called in which order, and what a check writes."""

from __future__ import annotations

import base64
import datetime
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.backup import Deployment, take
from google.auth.transport.requests import AuthorizedSession
from google.oauth2 import service_account

from tests.provision.conftest import World, writes
from tests.unit.emulator.conftest import SCOPE

# What the servers would say, which are not real here.
MLFLOW = {"version": "3.17.2", "lock_sha256": "0" * 64}
CERTIFICATE = {"sha256": "1" * 64, "not_after": "Jan  1 00:00:00 2031 GMT"}
SAID = json.dumps(
    {
        "gcp_backup_mlflow": MLFLOW,
        "gcp_backup_certificate": CERTIFICATE,
        "gcp_backup_rows": {"tracking": {}, "auth": {}},
    }
)
SETS = "demo-project-mlflow-backups"
OLDER = ("-e", json.dumps({"gcp_backup_mlflow": {**MLFLOW, "version": "3.16.1"}}))
REHEARSED = (*OLDER, "-e", "platform_upgrade_rehearsal_enabled=true")
Play = Callable[..., Any]


@pytest.fixture(scope="module")
def world(clean_world: World, provisioned: tuple[Any, dict[str, Any]], empty: dict[str, Any]) -> Iterator[World]:
    """The cloud with a deployment."""
    clean_world.put(provisioned[1])
    yield clean_world
    clean_world.put(empty)


def run(play: Play, name: str, *arguments: str) -> Any:
    return play("--limit", "localhost", "-e", SAID, *arguments, playbook=f"playbooks/{name}.yml")


def called(world: World, since: int) -> list[str]:
    """Return what was done: a call that found the instance busy is repeated."""
    return [call["method"] for call in writes(world.calls(since)) if call["status"] == 200]


def test_a_set_is_taken_in_order_and_a_check_writes_nothing(world: World, play: Play) -> None:
    with world.untouched():
        assert run(play, "backup", "--check").code == 0
        # Without any set there is still something to say.
        foretold = run(play, "upgrade", *REHEARSED, "--check")
        assert foretold.code == 0, foretold.output
        assert "MLflow 3.17.2 is tried before it serves anybody" in foretold.output
    since = world.count
    first = run(play, "backup")
    assert first.code == 0, first.output
    assert called(world, since) == [
        "sql.instances.export",
        "sql.instances.export",
        "sql.backupRuns.insert",
        "storage.objects.insert",
        "storage.objects.insert",
    ]
    (name,) = {path.partition("/")[0] for path in world.state.objects[SETS]}
    files = ["artifacts.ndjson.gz", "auth.sql.gz", "manifest.json", "tracking.sql.gz"]
    assert sorted(world.state.objects[SETS]) == [f"{name}/{file}" for file in files]
    retention = world.state.resources[f"storage/{SETS}"]["retentionPolicy"]
    assert retention["retentionPeriod"] == str(30 * 86400)
    assert "isLocked" not in retention


def test_a_restore_is_refused_and_one_that_failed_is_done_by_the_next(world: World, play: Play) -> None:
    (name,) = {path.partition("/")[0] for path in world.state.objects[SETS]}
    with world.untouched():
        refused = run(play, "restore")
        assert refused.code != 0
        assert f"give -e platform_restore_confirmed_set={name}" in refused.output
    confirmed = ("-e", f"platform_restore_confirmed_set={name}")
    fault = {"method": "sql.instances.import", "times": 1, "operation_error": "No space."}
    world.running.server.faults.append(fault)
    interrupted = run(play, "restore", *confirmed)
    assert interrupted.code != 0
    assert "No space." in interrupted.output
    since = world.count
    done = run(play, "restore", *confirmed)
    assert done.code == 0, done.output
    assert called(world, since) == [
        "sql.databases.delete",
        "sql.databases.delete",
        "sql.databases.insert",
        "sql.databases.insert",
        "sql.instances.import",
        "sql.instances.import",
    ]
    assert "(RPO)" in done.output


def test_a_server_that_cannot_be_stopped_keeps_its_databases(
    world: World, play: Play, make_inventory: Callable[..., pathlib.Path]
) -> None:
    (name,) = {path.partition("/")[0] for path in world.state.objects[SETS]}
    inventory = make_inventory()
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0}
    (inventory / "away.yml").write_text(json.dumps({"mlflow": {"hosts": {"mlflow-1": away}}}))
    since = world.count
    confirmed = ("-e", SAID, "-e", f"platform_restore_confirmed_set={name}")
    ended = play(*confirmed, inventory=inventory, playbook="playbooks/restore.yml")
    assert ended.code != 0
    assert '"unreachable": true' in ended.output
    assert called(world, since) == []


def moment() -> str:
    """Return a moment in whole seconds that is past, and after all that was done before."""
    time.sleep(1.1)
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def as_of(asked: str, *, confirmed: bool = True) -> list[str]:
    options = {"point_in_time": asked, **({"confirmed_set": asked.translate({45: "", 58: ""})} if confirmed else {})}
    return [word for name, value in options.items() for word in ("-e", f"platform_restore_{name}={value}")]


def instances(world: World) -> list[str]:
    prefix = "sql/projects/demo-project/instances/"
    return [name.removeprefix(prefix) for name, _ in world.state.under(prefix) if name.count("/") == prefix.count("/")]


def test_what_cannot_be_recovered_is_refused_at_once_and_a_check_writes_nothing(world: World, play: Play) -> None:
    asked = moment()
    with world.untouched():
        checked = run(play, "restore", "--check", *as_of(asked))
        assert checked.code == 0, checked.output
        assert f"A run would take a set as of {asked}" in checked.output
        wrong = ("-e", "platform_restore_set=x", "-e", "platform_restore_bucket=y")
        refused = run(play, "restore", *as_of("2999-01-01T00:00:00Z", confirmed=False), *wrong)
        assert refused.code != 0
        for words in (
            "platform_restore_set is x and platform_restore_point_in_time is 2999-01-01T00:00:00Z: give one of them",
            "platform_restore_bucket is y",
            "write a moment of the past",
            "give -e platform_restore_confirmed_set=29990101T000000Z",
        ):
            assert words in refused.output


@pytest.mark.long
def test_a_moment_is_restored_from_a_clone_that_goes_again_whatever_happens(world: World, play: Play) -> None:
    asked, before = moment(), instances(world)
    # Which version served then is told by a set of the same schemas.
    assert run(play, "backup").code == 0
    sets = set(world.state.objects[SETS])
    faults = world.running.server.faults
    faults.append({"method": "sql.instances.export", "times": 1, "operation_error": "No space."})
    faults.append({"method": "sql.instances.delete", "times": 1, "status": 403})
    stopped = run(play, "restore", *as_of(asked))
    assert stopped.code != 0
    assert "No space." in stopped.output
    assert "The clone was not removed either, the next run does that" in stopped.output
    assert faults == []
    assert len(instances(world)) == len(before) + 1

    since = world.count
    done = run(play, "restore", *as_of(asked))
    assert done.code == 0, done.output
    # The clone that the first run could not remove goes first; protection is off here.
    assert called(world, since) == [
        "sql.instances.delete",
        "sql.instances.clone",
        "storage.buckets.setIamPolicy",
        "sql.instances.export",
        "sql.instances.export",
        "storage.objects.insert",
        "storage.objects.insert",
        "storage.buckets.setIamPolicy",
        "sql.instances.delete",
        "sql.databases.delete",
        "sql.databases.delete",
        "sql.databases.insert",
        "sql.databases.insert",
        "sql.instances.import",
        "sql.instances.import",
    ]
    assert instances(world) == before
    assert f"What was written after {asked} is lost" in done.output
    (name,) = {path.partition("/")[0] for path in set(world.state.objects[SETS]) - sets}
    assert name.startswith(f"{asked.translate({45: '', 58: ''})}-")


def test_an_upgrade_takes_a_set_before_another_version_alone(world: World, play: Play) -> None:
    for arguments, exports in ((), 0), (OLDER, 2):
        since = world.count
        done = run(play, "upgrade", *arguments)
        assert done.code == 0, done.output
        assert called(world, since).count("sql.instances.export") == exports
        assert "sql.instances.insert" not in called(world, since)


def kept(world: World) -> Any:
    """Return what there is, and who may do what with it."""
    tables = world.tables()
    return tables["resources"], tables["objects"], {name: one["bindings"] for name, one in tables["policies"].items()}


def test_a_drill_leaves_nothing_whatever_happens_and_a_check_writes_nothing(world: World, play: Play) -> None:
    # The latest set is of the version in the inventory, whatever was tested before.
    assert run(play, "backup").code == 0
    with world.untouched():
        checked = run(play, "drill", "--check")
        assert checked.code == 0, checked.output
    before = kept(world)
    faults = world.running.server.faults
    faults.append({"method": "sql.instances.import", "times": 1, "operation_error": "No space."})
    faults.append({"method": "sql.instances.delete", "times": 1, "status": 403})
    stopped = run(play, "drill")
    assert stopped.code != 0
    assert "No space." in stopped.output
    # Both are told, where an alert looks too.
    assert "Not all was removed: " in stopped.output
    assert "Drill failed: backup set " in stopped.output
    assert faults == []
    since = world.count
    passed = run(play, "drill")
    assert passed.code == 0, passed.output
    assert "Drill passed: backup set " in passed.output
    # The instance that the first one could not remove goes first.
    assert [one for one in called(world, since) if one.startswith(("sql", "compute.instances"))] == [
        "sql.instances.delete",
        "sql.instances.insert",
        "sql.databases.insert",
        "sql.databases.insert",
        "sql.users.insert",
        "sql.instances.import",
        "sql.instances.import",
        "compute.instances.insert",
        "compute.instances.delete",
        "sql.instances.delete",
    ]
    assert kept(world) == before


def taken(world: World) -> set[str]:
    """Return the names of the sets."""
    return {path.partition("/")[0] for path in world.state.objects[SETS]}


def left(world: World) -> Any:
    """Return what there is beside sets, and the instance's own backup that goes with each."""
    resources, _objects, policies = kept(world)
    return {name: one for name, one in resources.items() if "/backupRuns/" not in name}, policies


@pytest.mark.long
def test_an_upgrade_is_rehearsed_with_the_set_it_has_taken_and_a_check_writes_nothing(world: World, play: Play) -> None:
    with world.untouched():
        checked = run(play, "rehearse", "--check")
        assert checked.code == 0, checked.output
    before, had, since = left(world), taken(world), world.count

    serving = run(play, "upgrade", "-e", "platform_upgrade_rehearsal_enabled=true")

    assert serving.code == 0, serving.output
    assert called(world, since) == []
    done = run(play, "upgrade", *REHEARSED)
    assert done.code == 0, done.output
    (name,) = taken(world) - had
    assert f"Rehearsal of MLflow 3.17.2 passed: backup set {name}" in done.output
    assert [one for one in called(world, since) if one.startswith(("sql", "compute.instances"))] == [
        "sql.instances.export",
        "sql.instances.export",
        "sql.backupRuns.insert",
        "sql.instances.insert",
        "sql.databases.insert",
        "sql.databases.insert",
        "sql.users.insert",
        "sql.instances.import",
        "sql.instances.import",
        "compute.instances.insert",
        "compute.instances.delete",
        "sql.instances.delete",
    ]
    assert left(world) == before


@pytest.mark.long
def test_a_rehearsal_that_fails_leaves_nothing_and_stops_the_upgrade(world: World, play: Play) -> None:
    before = left(world)
    world.running.server.faults.append({"method": "sql.instances.import", "times": 1, "operation_error": "No space."})

    stopped = run(play, "upgrade", *REHEARSED)

    assert stopped.code != 0
    assert "Rehearsal of MLflow 3.17.2 failed: backup set " in stopped.output
    assert "No space." in stopped.output
    assert "the servers serve on. Next: mend what is said here" in stopped.output
    assert "Use the service as its users do" not in stopped.output
    assert left(world) == before


def test_a_servers_own_account_may_take_a_set_by_night(world: World) -> None:
    account = "projects/-/serviceAccounts/mlflow-server@demo-project.iam.gserviceaccount.com"
    key = world.running.call("POST", f"https://iam.googleapis.com/v1/{account}/keys", {})
    content = json.loads(base64.b64decode(key["privateKeyData"]))
    server = AuthorizedSession(service_account.Credentials.from_service_account_info(content, scopes=[SCOPE]))
    source = Deployment(
        bucket=SETS,
        instance="mlflow",
        databases={"tracking": "mlflow", "auth": "mlflow_auth"},
        user="mlflow-server",
        artifacts_bucket="demo-project-mlflow-artifacts",
        artifacts_prefix="",
        secrets={"mlflow.flask-secret-key": "mlflow-flask-secret-key"},
        mlflow=MLFLOW,
        certificate=CERTIFICATE,
        instance_backup=False,
    )
    name = take(world.session(transport=server), source, moment)["manifest"]["name"]
    assert f"{name}/manifest.json" in world.state.objects[SETS]


@pytest.mark.long
@pytest.mark.usefixtures("world")
def test_a_set_of_mysql_goes_into_databases_of_its_own_names_alone(
    clean_world: World, empty: dict[str, Any], play: Play, make_inventory: Callable[..., pathlib.Path]
) -> None:
    world = clean_world
    world.put(empty)
    mysql = {"inventory": make_inventory(platform_sql_database_version="MYSQL_8_4")}
    assert play(**mysql).code == 0
    limited = ("--limit", "localhost", "-e", SAID)
    assert play(*limited, playbook="playbooks/backup.yml", **mysql).code == 0
    (name,) = {path.partition("/")[0] for path in world.state.objects[SETS]}
    other = ("-e", "platform_sql_database=team_a")
    with world.untouched():
        refused = play(*limited, *other, playbook="playbooks/restore.yml", **mysql)
        assert refused.code != 0
        words = "the set would overwrite mlflow, mlflow_auth, and the deployment has team_a, team_a_auth"
        assert words in refused.output
        assert f"give -e platform_restore_confirmed_set={name}" in refused.output
    confirmed = ("-e", f"platform_restore_confirmed_set={name}")
    done = play(*limited, *confirmed, playbook="playbooks/restore.yml", **mysql)
    assert done.code == 0, done.output
