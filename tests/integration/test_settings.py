"""Settings of bucket, network, database and server that an environment may state: predicted, made, kept and undone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

COMPUTE = "https://compute.googleapis.com/compute/v1/projects/demo-project"
BUCKET = "https://storage.googleapis.com/storage/v1/b/demo-project-mlflow-artifacts"
DATABASE = "https://sqladmin.googleapis.com/v1/projects/demo-project/instances/mlflow"
DISK = f"{COMPUTE}/zones/europe-west1-b/disks/mlflow-1"
SCHEDULE = f"{COMPUTE}/regions/europe-west1/resourcePolicies/mlflow-1-daily"
RING = "projects/demo-project/locations/europe-west1/keyRings/settings"
KEY = f"{RING}/cryptoKeys/settings"
DENIED = {"startDate": "12-15", "endDate": "01-07", "time": "00:00:00"}
STATED = {
    "gcp_network_flow_logs": {"enable": True, "flowSampling": 0.1},
    "gcp_bucket_autoclass_enabled": True,
    "gcp_sql_edition": "ENTERPRISE_PLUS",
    "platform_sql_tier": "db-perf-optimized-N-2",
    "gcp_sql_data_cache_enabled": True,
    "gcp_sql_storage_size_gib": 20,
    "gcp_sql_insights": {"queryInsightsEnabled": True, "recordApplicationTags": True},
    "gcp_sql_maintenance_deny_periods": [DENIED],
    "gcp_instance_snapshot_retention_days": 7,
}
# Network, bucket, database and server, each with one task that changes.
ROLES, CHANGES = "gcp_network,gcp_bucket,gcp_sql,gcp_instance", 4
Play = Callable[..., Any]


@pytest.fixture(scope="module")
def provision(play: Play) -> Play:
    """Return a function that runs provision.yml with some roles and values on what the inventory says."""
    assert play("playbooks/provision.yml").code == 0

    def run(roles: str, *arguments: str, **values: Any) -> Any:
        return play("playbooks/provision.yml", "--tags", roles, "-e", json.dumps(values), *arguments)

    return run


@pytest.fixture(scope="module")
def key(cloud: Any) -> str:
    """Return the name of a key of the operator's own."""
    services = "https://serviceusage.googleapis.com/v1/projects/demo-project/services"
    assert cloud.call("POST", f"{services}/cloudkms.googleapis.com:enable", {}).status_code == 200
    kms = "https://cloudkms.googleapis.com/v1"
    cloud.call("POST", f"{kms}/{RING.removesuffix('/settings')}?keyRingId=settings", {})
    cloud.call("POST", f"{kms}/{RING}/cryptoKeys?cryptoKeyId=settings", {"purpose": "ENCRYPT_DECRYPT"})
    assert cloud.get(f"{kms}/{KEY}")["primary"]["state"] == "ENABLED"
    return KEY


def test_settings_are_predicted_made_kept_and_undone(
    provision: Play, cloud: Any, written: Callable[..., list[str]]
) -> None:
    checks = []
    assert written(lambda: checks.append(provision(ROLES, "--check", "--diff", **STATED))) == []
    made = provision(ROLES, "--diff", **STATED)
    again = provision(ROLES, **STATED)

    assert [(run.code, run.changed) for run in (checks[0], made, again)] == [(0, CHANGES), (0, CHANGES), (0, 0)], (
        made.output
    )
    database, bucket = cloud.get(DATABASE)["settings"], cloud.get(BUCKET)
    assert database["dataCacheConfig"] == {"dataCacheEnabled": True}
    assert (database["dataDiskSizeGb"], database["denyMaintenancePeriods"]) == ("20", [DENIED])
    assert bucket["autoclass"]["enabled"] is True
    assert "SetStorageClass" not in str(bucket["lifecycle"])
    assert cloud.get(SCHEDULE)["snapshotSchedulePolicy"]["retentionPolicy"]["maxRetentionDays"] == 7

    undone = provision(ROLES)
    assert (undone.code, undone.changed) == (0, CHANGES), undone.output
    # It never shrinks.
    assert cloud.get(DATABASE)["settings"]["dataDiskSizeGb"] == "20"
    assert "autoclass" not in cloud.get(BUCKET)


def test_a_detached_schedule_is_attached_again_and_goes_when_none_is_wanted(provision: Play, cloud: Any) -> None:
    policy = {"resourcePolicies": [SCHEDULE.partition("/compute/v1/")[2]]}
    assert cloud.call("POST", f"{DISK}/removeResourcePolicies", policy).status_code == 200
    assert provision("gcp_instance").changed == 1
    assert cloud.get(DISK)["resourcePolicies"][0].endswith("/mlflow-1-daily")

    off = provision("gcp_instance", gcp_instance_snapshot_retention_days=0)
    assert (off.code, off.changed) == (0, 1), off.output
    assert cloud.call("GET", SCHEDULE).status_code == 404
    assert provision("gcp_instance").changed == 1
    assert provision("gcp_instance").changed == 0


def test_a_key_goes_to_the_bucket_at_once_and_never_to_what_is_there_without_it(
    provision: Play, cloud: Any, key: str
) -> None:
    encrypted = provision("gcp_project,gcp_bucket", platform_kms_key=key)
    again = provision("gcp_project,gcp_bucket", platform_kms_key=key)
    assert [(run.code, run.changed) for run in (encrypted, again)] == [(0, 2), (0, 0)], encrypted.output
    assert cloud.get(BUCKET)["encryption"]["defaultKmsKeyName"] == key

    for role, field in (
        ("gcp_sql", "diskEncryptionConfiguration.kmsKeyName"),
        ("gcp_instance", "diskEncryptionKey.kmsKeyName"),
    ):
        refused = provision(role, platform_kms_key=key)
        assert refused.code != 0
        assert f"{field} is null, wanted" in refused.output
        assert "Google cannot change this in place and nothing was changed" in refused.output

    assert provision("gcp_project,gcp_bucket").changed == 1
    assert "encryption" not in cloud.get(BUCKET)
