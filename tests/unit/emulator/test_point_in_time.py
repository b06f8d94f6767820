"""A backup set as of a moment of the past, against the emulated cloud."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import time
from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import backup, backup_program, point_in_time
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError, Session

from tests.unit.emulator.test_backup import ARTIFACTS, SECRETS, SETS, STORAGE, put
from tests.unit.emulator.test_compute import network
from tests.unit.emulator.test_sql import INSTANCE, SQL, peering, wanted

__all__ = ["network", "peering"]
LOGGED = {"enabled": True, "pointInTimeRecoveryEnabled": True}
ASKED = point_in_time.Asked(
    point_in_time="",
    bucket=SETS,
    source_bucket=SETS,
    set="latest",
    confirmed_set="",
    occupied=False,
    incomplete_enabled=False,
    instance="mlflow",
    databases={"tracking": "mlflow", "auth": "mlflow_auth"},
    user="mlflow",
    artifacts_bucket=ARTIFACTS,
    artifacts_prefix="",
    secrets={"mlflow.flask-secret-key": "flask"},
    mlflow_version="3.17.2",
    schemas={"tracking": "", "auth": ""},
)


def session(**options: Any) -> Session:
    return Session("demo-project", timeout_seconds=60, **options)


def moment() -> str:
    """Return a moment in whole seconds: what was done is before it, what comes is after it."""
    time.sleep(1.01 - time.time() % 1)
    told: str = backup_program.now()
    time.sleep(0.01)
    return told


def add_version(cloud: Any, secret: str, value: str) -> None:
    payload = {"payload": {"data": base64.b64encode(value.encode()).decode()}}
    cloud.call("POST", f"{SECRETS}/{secret}:addVersion", payload)


def delete(cloud: Any, name: str) -> None:
    cloud.call("DELETE", f"{STORAGE}/{ARTIFACTS}/o/{name.replace('/', '%2F')}")


@pytest.fixture
def prepared(cloud: Any, peering: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cloud with a protected instance, three artifacts and a secret."""
    assert peering
    monkeypatch.setattr(backup, "ITERATIONS", 1)
    body = wanted(backupConfiguration=LOGGED, deletionProtectionEnabled=True)
    cloud.done(cloud.call("POST", f"{SQL}/instances", body))
    for name in ("mlflow", "mlflow_auth"):
        cloud.done(cloud.call("POST", f"{INSTANCE}/databases", {"name": name}))
    for name, versioned in ((SETS, False), (ARTIFACTS, True)):
        uniform = {"uniformBucketLevelAccess": {"enabled": True}}
        bucket = {"name": name, "location": "EU", "iamConfiguration": uniform, "versioning": {"enabled": versioned}}
        cloud.call("POST", f"{STORAGE}?project=demo-project", bucket)
    for name in ("kept", "deleted", "replaced"):
        put(cloud, ARTIFACTS, name, name.encode())
    cloud.call("POST", f"{SECRETS}?secretId=flask", {"replication": {"automatic": {}}})
    add_version(cloud, "flask", "then")
    return cloud


def change_everything(cloud: Any) -> None:
    """What happens after the moment."""
    put(cloud, ARTIFACTS, "replaced", b"other")
    put(cloud, ARTIFACTS, "new", b"new")
    delete(cloud, "deleted")
    add_version(cloud, "flask", "now")
    cloud.call("POST", f"{SECRETS}?secretId=kek", {"replication": {"automatic": {}}})
    add_version(cloud, "kek", "new")
    for name in ("mlflow", "mlflow_auth"):
        cloud.done(cloud.call("DELETE", f"{INSTANCE}/databases/{name}"))


def take(asked: str, **changes: Any) -> Any:
    options = {**changes.pop("options", {})}
    wanted_set = dataclasses.replace(ASKED, point_in_time=asked, **changes)
    return point_in_time.take_as_of(session(**options), wanted_set, backup_program.now)["manifest"]


def instances(cloud: Any) -> list[str]:
    return sorted(one["name"] for one in cloud.call("GET", f"{SQL}/instances")["items"])


def calls(cloud: Any, since: int) -> list[Any]:
    """Return the calls of a method from a number on."""
    lines = (cloud.state / "calls.jsonl").read_text().splitlines()[since:]
    return [call for call in map(json.loads, lines) if call["method"]]


def listed(cloud: Any, manifest: Any) -> dict[str, str]:
    content = cloud.operator.get(f"{STORAGE}/{SETS}/o/{manifest['name']}%2F{backup.ARTIFACTS}?alt=media").content
    return {one["name"]: one["generation"] for one in map(json.loads, gzip.decompress(content).splitlines())}


def live(cloud: Any) -> dict[str, str]:
    return {one["name"]: one["generation"] for one in cloud.call("GET", f"{STORAGE}/{ARTIFACTS}/o")["items"]}


def test_a_set_has_what_was_there_at_the_moment(cloud: Any, prepared: Any) -> None:
    assert prepared
    then = live(cloud)
    asked = moment()
    change_everything(cloud)

    manifest = take(asked, secrets={**ASKED.secrets, "mlflow.crypto-kek-passphrase": "kek"})

    assert listed(cloud, manifest) == then
    assert (manifest["begun"], manifest["artifacts"]["objects"]) == (asked, 3)
    assert manifest["name"].startswith(f"{point_in_time.compact(asked)}-")
    assert manifest["mlflow"]["version"] == "3.17.2"
    # The key that came later was none then, and of the other the version of then is told.
    assert [(one["name"], one["version"]) for one in manifest["secrets"]["latest"]] == [("flask", "1")]
    assert backup.examine(session(), SETS, "latest", None, None)["problems"] == []
    dump = cloud.operator.get(f"{STORAGE}/{SETS}/o/{manifest['name']}%2Fauth.sql.gz?alt=media").content
    assert gzip.decompress(dump).startswith(b"-- mlflow-mlflow-point-in-time-")
    brought = backup.bring_artifacts(session(), SETS, manifest, ARTIFACTS, "")
    assert brought == {"changed": True, "kept": 1, "copied": 2, "newer": 1, "lost": []}


def test_nothing_is_left_but_the_set(cloud: Any, prepared: Any) -> None:
    assert prepared
    policy = cloud.call("GET", f"{STORAGE}/{SETS}/iam")["bindings"]
    take(moment())
    assert instances(cloud) == ["mlflow"]
    assert cloud.call("GET", INSTANCE)["settings"]["deletionProtectionEnabled"] is True
    assert cloud.call("GET", f"{STORAGE}/{SETS}/iam")["bindings"] == policy


def test_a_secret_that_cannot_be_read_any_more_is_another_one(cloud: Any, prepared: Any) -> None:
    assert prepared
    asked = moment()
    add_version(cloud, "flask", "then")
    cloud.call("POST", f"{SECRETS}/flask/versions/1:disable", {})
    manifest = take(asked)
    target = backup.Target("POSTGRES_17", "mlflow", "3.17.2", {}, False, "", ASKED.secrets, [], ASKED.databases)
    (told,) = backup.examine(session(), SETS, manifest["name"], target, None)["problems"]
    assert "another secret than in the set (version 1 of flask there, version 2" in told


def test_what_a_killed_run_left_goes_and_nothing_else(cloud: Any, prepared: Any, direct: Any) -> None:
    assert prepared
    asked = moment()
    left = "mlflow-mlflow-point-in-time-20300101000000"
    others = [left[:-15], left[:-4], left.replace("mlflow-mlflow", "mlflow-team"), f"other-{left}", f"{left}0"]
    for name in (left, *others):
        context = {"cloneContext": {"destinationInstanceName": name, "pointInTime": asked}}
        cloud.done(cloud.call("POST", f"{INSTANCE}/clone", context))
    # One that is still being made when the next run begins.
    assert direct.post(f"{cloud.admin}/faults", json={"method": "sql.instances.clone", "delay_seconds": 1}).ok
    context = {"cloneContext": {"destinationInstanceName": left.replace("2030", "2031"), "pointInTime": asked}}
    cloud.call("POST", f"{INSTANCE}/clone", context)
    since = cloud.server._count
    take(asked)
    assert instances(cloud) == sorted(["mlflow", *others])
    wanted_order = ["delete", "delete", "clone", "delete"]
    methods = [call["method"].rpartition(".")[2] for call in calls(cloud, since) if "sql.instances" in call["method"]]
    assert [one for one in methods if one in wanted_order] == wanted_order


@pytest.mark.parametrize(
    "fault",
    [
        {"method": "sql.instances.clone", "operation_error": "No space."},
        {"method": "sql.instances.export", "operation_error": "No space."},
        {"method": "storage.objects.insert", "status": 403},
    ],
)
def test_a_run_that_fails_leaves_no_clone_and_the_next_takes_a_set(
    cloud: Any, prepared: Any, direct: Any, fault: dict[str, Any]
) -> None:
    assert prepared
    asked = moment()
    assert direct.post(f"{cloud.admin}/faults", json=fault).ok
    with pytest.raises(CloudError):
        take(asked)
    assert instances(cloud) == ["mlflow"]
    # Its files keep their names.
    time.sleep(1)
    assert backup.examine(session(), SETS, take(asked)["name"], None, None)["problems"] == []


def test_a_lost_answer_makes_no_second_clone(cloud: Any, prepared: Any, direct: Any) -> None:
    assert prepared
    asked = moment()
    assert direct.post(f"{cloud.admin}/faults", json={"method": "sql.instances.clone", "no_answer": "after"}).ok
    take(asked)
    assert direct.get(f"{cloud.admin}/log").text.count('"sql.instances.clone"') == 1
    assert instances(cloud) == ["mlflow"]


def test_refusals_and_checks_write_nothing(cloud: Any, prepared: Any) -> None:
    assert prepared
    asked, before = moment(), cloud.server._count
    with pytest.raises(CloudError, match=r"Nothing was changed\. 2020-.*before the Cloud SQL instance mlflow was made"):
        take("2020-01-01T00:00:00Z")
    assert take(asked, options={"check_mode": True}) == {}
    assert [call for call in calls(cloud, before) if call["verb"] != "GET"] == []


def test_the_version_is_that_of_a_set_with_the_same_schemas(cloud: Any, prepared: Any) -> None:
    assert prepared
    asked = moment()
    unknown = take(asked, schemas={"tracking": "a2"}, secrets={})
    assert unknown["mlflow"]["version"] == ""
    target = backup.Target("POSTGRES_17", "mlflow", "3.17.2", {"tracking": "a2"}, False, "", {}, [], {})
    (told,) = backup.examine(session(), SETS, unknown["name"], target, None)["problems"]
    assert "no set tells which version of MLflow served then" in told
    for day, version, schema in (("02", "3.18.0", "a2"), ("03", "3.16.1", ""), ("04", "3.17.1", "")):
        name = f"203001{day}T000000Z"
        schemas = {"tracking": schema, "auth": ""}
        mlflow = {"version": version, "lock_sha256": version, "schemas": schemas}
        manifest = {"name": name, "begun": f"2030-01-{day}T00:00:00Z", "mlflow": mlflow}
        put(cloud, SETS, f"{name}/manifest.json", json.dumps(manifest).encode())
    time.sleep(1)
    known = take(asked, schemas={"tracking": "a2"}, secrets={})
    assert known["mlflow"] == {"version": "3.16.1", "lock_sha256": "3.16.1", "schemas": {"tracking": "", "auth": ""}}
