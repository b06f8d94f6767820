"""gcp_action's core on Cloud SQL, against the emulated cloud: backups, restores, clones and failovers."""

from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.action import WantedAction, do
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import find
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import ApiError, CloudError, Session

from tests.unit.emulator.test_compute import network
from tests.unit.emulator.test_sql import INSTANCE, SQL, instance, peering, wanted

__all__ = ["instance", "network", "peering"]
LABEL = "before the upgrade"
BACKUP = WantedAction(
    "sqladmin.backupRuns",
    "insert",
    parent="mlflow",
    body={"description": LABEL},
    unless={"fields": {"description": LABEL, "status": "SUCCESSFUL"}},
)


def session(**options: Any) -> Session:
    return Session("demo-project", **{"timeout_seconds": 60, **options})


def databases(cloud: Any, name: str = "mlflow") -> list[str]:
    return [item["name"] for item in cloud.call("GET", f"{SQL}/instances/{name}/databases")["items"]]


def backup(cloud: Any) -> str:
    """Back up and return the identifier."""
    result = do(session(), BACKUP)
    assert result["changed"] is True
    identity: str = result["answer"]["backupContext"]["backupId"]
    return identity


def faults(cloud: Any, direct: Any, **fault: Any) -> None:
    assert direct.post(f"{cloud.admin}/faults", json=fault).ok


def sent(cloud: Any, direct: Any, method: str) -> int:
    """Return how many requests to a method were taken."""
    lines = direct.get(f"{cloud.admin}/log").text.splitlines()
    return sum(f'"method": "{method}"' in line and '"status": 200' in line for line in lines)


@pytest.mark.usefixtures("instance")
def test_a_backup_is_taken_once_and_deleted_once(cloud: Any) -> None:
    assert do(session(check_mode=True), BACKUP)["changed"] is True
    assert find(session(), "sqladmin.backupRuns", parent="mlflow") == []
    identity = backup(cloud)
    assert do(session(), BACKUP)["changed"] is False
    (run,) = find(session(), "sqladmin.backupRuns", parent="mlflow")
    assert (run["id"], run["type"], run["status"], run["location"]) == (identity, "ON_DEMAND", "SUCCESSFUL", "us")
    gone = WantedAction("sqladmin.backupRuns", "delete", identity, parent="mlflow", unless={"state": "absent"})
    assert [do(session(), gone)["changed"] for _ in range(2)] == [True, False]
    assert find(session(), "sqladmin.backupRuns", parent="mlflow") == []


@pytest.mark.usefixtures("instance")
def test_a_restore_brings_databases_and_users_back(cloud: Any) -> None:
    cloud.done(cloud.call("POST", f"{INSTANCE}/databases", {"name": "mlflow"}))
    identity = backup(cloud)
    cloud.done(cloud.call("DELETE", f"{INSTANCE}/databases/mlflow"))
    cloud.done(cloud.call("POST", f"{INSTANCE}/databases", {"name": "later"}))
    context = {"backupRunId": identity, "instanceId": "mlflow"}
    restore = WantedAction("sqladmin.instances", "restoreBackup", "mlflow", body={"restoreBackupContext": context})
    assert do(session(check_mode=True), restore)["changed"] is True
    assert databases(cloud) == ["later", "postgres"]
    assert do(session(), restore)["answer"]["operationType"] == "RESTORE_VOLUME"
    assert databases(cloud) == ["mlflow", "postgres"]


@pytest.mark.usefixtures("instance")
def test_a_clone_is_made_once(cloud: Any, direct: Any) -> None:
    cloud.done(cloud.call("POST", f"{INSTANCE}/databases", {"name": "mlflow"}))
    clone = WantedAction(
        "sqladmin.instances",
        "clone",
        "mlflow",
        body={"cloneContext": {"destinationInstanceName": "mlflow-copy"}},
        unless={"name": "mlflow-copy"},
    )
    assert [do(session(), clone)["changed"] for _ in range(2)] == [True, False]
    copy = cloud.call("GET", f"{SQL}/instances/mlflow-copy")
    assert (copy["state"], copy["connectionName"]) == ("RUNNABLE", "demo-project:us-central1:mlflow-copy")
    assert databases(cloud, "mlflow-copy") == ["mlflow", "postgres"]
    assert sent(cloud, direct, "sql.instances.clone") == 1


@pytest.mark.usefixtures("peering")
def test_a_failover_needs_a_standby_and_happens_once(cloud: Any) -> None:
    for name, kind in (("alone", "ZONAL"), ("mlflow", "REGIONAL")):
        body = {**wanted(availabilityType=kind, backupConfiguration={"enabled": True}), "name": name}
        cloud.done(cloud.call("POST", f"{SQL}/instances", body))
    before = cloud.call("GET", INSTANCE)["gceZone"]
    target = {"fields": {"gceZone": "us-central1-b"}}
    with pytest.raises(ApiError, match="not configured for high availability"):
        do(session(), WantedAction("sqladmin.instances", "failover", "alone", unless=target))
    failover = WantedAction("sqladmin.instances", "failover", "mlflow", unless=target)
    result = do(session(), failover)
    assert result["differences"] == [{"field": "gceZone", "before": before, "after": "us-central1-b"}]
    assert do(session(), failover)["changed"] is False
    after = cloud.call("GET", INSTANCE)
    assert (after["gceZone"], after["secondaryGceZone"]) == ("us-central1-b", before)
    stale = {"failoverContext": {"settingsVersion": "7"}}
    assert cloud.refused("POST", f"{INSTANCE}/failover", stale)["code"] == 412


@pytest.mark.usefixtures("instance")
def test_what_a_run_left_under_way_is_finished_by_the_next(cloud: Any, direct: Any, let_go: Any) -> None:
    faults(cloud, direct, method="sql.backupRuns.insert", delay_seconds=1.5)
    with pytest.raises(CloudError, match=r"insert of sqladmin.backupRuns mlflow: not done after 0 s .*run again later"):
        do(session(timeout_seconds=0.1), BACKUP)
    assert find(session(), "sqladmin.backupRuns", parent="mlflow")[0]["status"] == "RUNNING"
    assert do(session(sleep=let_go), BACKUP)["changed"] is False
    assert sent(cloud, direct, "sql.backupRuns.insert") == 1


@pytest.mark.usefixtures("instance")
def test_a_backup_that_failed_stays_on_the_list_and_another_is_taken(cloud: Any, direct: Any, let_go: Any) -> None:
    faults(cloud, direct, method="sql.backupRuns.insert", operation_error="No space.", delay_seconds=1.5)
    with pytest.raises(CloudError, match="not done after"):
        do(session(timeout_seconds=0.1), BACKUP)
    second = session(sleep=let_go)
    assert do(second, BACKUP)["changed"] is True
    assert "waiting for the BACKUP_VOLUME begun before: No space. (INTERNAL_ERROR)" in second.warnings[0]
    assert {run["status"] for run in find(session(), "sqladmin.backupRuns", parent="mlflow")} == {
        "FAILED",
        "SUCCESSFUL",
    }


@pytest.mark.usefixtures("instance")
def test_what_google_refuses_is_refused(cloud: Any) -> None:
    def restore(**context: Any) -> str:
        body = {"restoreBackupContext": {"backupRunId": "1", "instanceId": "mlflow", **context}}
        return str(cloud.refused("POST", f"{INSTANCE}/restoreBackup", body)["message"])

    assert "Backup Run does not exist" in restore()
    assert "Missing parameter" in restore(instanceId=None)
    identity = backup(cloud)
    cloud.done(cloud.call("POST", f"{SQL}/instances", {**wanted(dataDiskSizeGb="20"), "name": "larger"}))
    operation = cloud.done(cloud.call("POST", f"{SQL}/instances/larger/backupRuns", {}))
    larger = operation["backupContext"]["backupId"]
    assert "smaller than that" in restore(backupRunId=larger, instanceId="larger")
    assert cloud.refused("GET", f"{INSTANCE}/backupRuns/{larger}")["code"] == 404
    assert cloud.refused("DELETE", f"{INSTANCE}/backupRuns/1")["code"] == 404
    assert (
        cloud.refused("POST", f"{INSTANCE}/restoreBackup", {"backup": f"projects/p/backups/{identity}"})["code"] == 501
    )
    taken = {"cloneContext": {"destinationInstanceName": "larger"}}
    assert cloud.refused("POST", f"{INSTANCE}/clone", taken)["code"] == 409
    early = {"cloneContext": {"destinationInstanceName": "early", "pointInTime": "2030-01-01T00:00:00Z"}}
    assert "Point-in-time recovery is not enabled" in cloud.refused("POST", f"{INSTANCE}/clone", early)["message"]


def test_a_lock_is_put_on_what_was_read_and_once(cloud: Any) -> None:
    bucket = "https://storage.googleapis.com/storage/v1/b"
    body = {"name": "demo-backups", "location": "EU", "retentionPolicy": {"retentionPeriod": "86400"}}
    cloud.call("POST", f"{bucket}?project=demo-project", body)
    unless = {"fields": {"retentionPolicy": {"isLocked": True}}}
    lock = WantedAction("storage.buckets", "lockRetentionPolicy", "demo-backups", unless=unless)
    assert do(session(check_mode=True), lock)["changed"] is True
    assert "isLocked" not in cloud.call("GET", f"{bucket}/demo-backups")["retentionPolicy"]
    assert [do(session(), lock)["changed"] for _ in range(2)] == [True, False]
    assert cloud.call("GET", f"{bucket}/demo-backups")["retentionPolicy"]["isLocked"] is True
