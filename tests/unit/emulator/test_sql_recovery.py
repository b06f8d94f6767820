"""Clones of Cloud SQL instances, as of now and as of a moment, and what Google refuses of them."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest

from tests.unit.emulator.test_access import grant
from tests.unit.emulator.test_compute import network
from tests.unit.emulator.test_sql import INSTANCE, SQL, peering, wanted

__all__ = ["network", "peering"]
LOGGED = {"enabled": True, "pointInTimeRecoveryEnabled": True}


def moment() -> str:
    """Return a moment that is past, and before all that comes."""
    time.sleep(0.003)
    told = datetime.datetime.now(datetime.UTC)
    time.sleep(0.003)
    return told.isoformat().replace("+00:00", "Z")


def databases(cloud: Any, name: str = "mlflow") -> list[str]:
    return [one["name"] for one in cloud.call("GET", f"{SQL}/instances/{name}/databases")["items"]]


def clone(name: str, asked: str | None = None) -> dict[str, Any]:
    return {"cloneContext": {"destinationInstanceName": name, **({"pointInTime": asked} if asked else {})}}


def cloned(cloud: Any, name: str, asked: str | None = None, source: str = "mlflow") -> list[str]:
    """Clone, and return the databases of the clone."""
    operation = cloud.done(cloud.call("POST", f"{SQL}/instances/{source}/clone", clone(name, asked)))
    assert (operation["operationType"], operation.get("error")) == ("CLONE", None)
    return databases(cloud, name)


def refused(cloud: Any, asked: str) -> str:
    error = cloud.refused("POST", f"{INSTANCE}/clone", clone("early", asked))
    assert error["code"] == 400
    return str(error["message"])


@pytest.fixture
def logged(cloud: Any, peering: dict[str, Any]) -> dict[str, Any]:
    """An instance with point-in-time recovery."""
    assert peering
    cloud.done(cloud.call("POST", f"{SQL}/instances", wanted(backupConfiguration=LOGGED)))
    made: dict[str, Any] = cloud.call("GET", INSTANCE)
    return made


def test_a_clone_has_what_its_source_had_at_the_moment(cloud: Any, logged: dict[str, Any]) -> None:
    moments = [moment()]
    for change in (("POST", f"{INSTANCE}/databases", {"name": "a"}), ("DELETE", f"{INSTANCE}/databases/a")):
        cloud.done(cloud.call(*change))
        moments.append(moment())
    user = {"name": "ann", "password": "pencil"}
    cloud.done(cloud.call("POST", f"{INSTANCE}/users", user))
    assert [cloned(cloud, f"copy-{n}", asked) for n, asked in enumerate(moments)] == [
        ["postgres"],
        ["a", "postgres"],
        ["postgres"],
    ]
    assert cloned(cloud, "now") == ["postgres"]
    names = [
        {one["name"] for one in cloud.call("GET", f"{SQL}/instances/{name}/users")["items"]}
        for name in ("copy-1", "now")
    ]
    assert names == [{"postgres"}, {"ann", "postgres"}]
    copy = cloud.call("GET", f"{SQL}/instances/copy-1")
    assert copy["serviceAccountEmailAddress"] != logged["serviceAccountEmailAddress"]
    different = {key for key in copy["settings"] if copy["settings"][key] != logged["settings"][key]}
    assert different <= {"settingsVersion"}


def test_a_clone_can_be_cloned_as_of_a_moment_of_its_own(cloud: Any, logged: dict[str, Any]) -> None:
    before = moment()
    assert cloned(cloud, "first") == ["postgres"]
    own = moment()
    cloud.done(cloud.call("POST", f"{SQL}/instances/first/databases", {"name": "later"}))
    assert cloned(cloud, "second", own, source="first") == ["postgres"]
    error = cloud.refused("POST", f"{SQL}/instances/first/clone", clone("third", before))
    assert "is not between the recovery times" in error["message"]
    assert logged["state"] == "RUNNABLE"


def test_a_moment_that_cannot_be_recovered_is_refused(cloud: Any, logged: dict[str, Any]) -> None:
    made = logged["createTime"]
    assert f"pointInTime {made} is not between" in refused(cloud, made)
    assert "is not between the recovery times" in refused(cloud, "2999-01-01T00:00:00Z")
    for text in ("yesterday", "2026-11-28T12:00:00"):
        assert f"Invalid value for pointInTime: {text}" in refused(cloud, text)


def test_the_window_is_told_and_no_longer_than_the_log(cloud: Any, logged: dict[str, Any]) -> None:
    told = cloud.call("GET", f"{INSTANCE}/getLatestRecoveryTime")
    assert logged["createTime"] <= told["earliestRecoveryTime"] <= told["latestRecoveryTime"]
    history = cloud.server.cloud.state.history["sql/projects/demo-project/instances/mlflow"]
    history[0]["since"] = "2020-01-01T00:00:00.000Z"
    told = cloud.call("GET", f"{INSTANCE}/getLatestRecoveryTime")
    first, last = (datetime.datetime.fromisoformat(told[f"{word}RecoveryTime"]) for word in ("earliest", "latest"))
    assert abs(last - first - datetime.timedelta(days=7)) < datetime.timedelta(seconds=1)


def test_a_log_that_is_switched_off_or_restored_begins_anew(cloud: Any, logged: dict[str, Any]) -> None:
    assert logged
    for change in ("off", "restore"):
        early = moment()
        if change == "off":
            for on in (False, True):
                settings = {"backupConfiguration": {"pointInTimeRecoveryEnabled": on}}
                cloud.done(cloud.call("PATCH", INSTANCE, {"settings": settings}))
                if not on:
                    assert "Point-in-time recovery is not enabled" in refused(cloud, early)
                    told = cloud.refused("GET", f"{INSTANCE}/getLatestRecoveryTime")
                    assert "Point-in-time recovery is not enabled" in told["message"]
        else:
            taken = cloud.done(cloud.call("POST", f"{INSTANCE}/backupRuns", {}))["backupContext"]["backupId"]
            context = {"restoreBackupContext": {"backupRunId": taken, "instanceId": "mlflow"}}
            cloud.done(cloud.call("POST", f"{INSTANCE}/restoreBackup", context))
        assert "is not between the recovery times" in refused(cloud, early)
        assert cloned(cloud, f"after-{change}", moment()) == ["postgres"]


def test_a_clone_is_there_and_not_ready_until_it_is_done(cloud: Any, direct: Any, logged: dict[str, Any]) -> None:
    assert logged
    assert direct.post(f"{cloud.admin}/faults", json={"method": "sql.instances.clone", "delay_seconds": 0.5}).ok
    operation = cloud.call("POST", f"{INSTANCE}/clone", clone("copy"))
    assert cloud.call("GET", f"{SQL}/instances/copy")["state"] == "PENDING_CREATE"
    cloud.done(operation)
    assert cloud.call("GET", f"{SQL}/instances/copy")["state"] == "RUNNABLE"
    cloud.done(cloud.call("DELETE", f"{SQL}/instances/copy"))
    # Its name stays taken, which is stricter than Google.
    assert cloud.refused("POST", f"{INSTANCE}/clone", clone("copy"))["code"] == 409


def test_a_clone_takes_a_permission_of_its_own(cloud: Any, logged: dict[str, Any], server_account: Any) -> None:
    assert logged
    for role, code in (("roles/cloudsql.client", 403), ("roles/cloudsql.admin", 200)):
        grant(cloud, role)
        assert server_account.post(f"{INSTANCE}/clone", json=clone("copy")).status_code == code


def test_mysql_is_not_cloned_where_data_is_real(
    cloud: Any, peering: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert peering
    body = {**wanted(databaseFlags=[]), "databaseVersion": "MYSQL_8_4"}
    cloud.done(cloud.call("POST", f"{SQL}/instances", body))
    monkeypatch.setattr(cloud.server.cloud.effects, "holds_data", True)
    assert cloud.refused("POST", f"{INSTANCE}/clone", clone("copy"))["code"] == 501
