"""Settings of bucket, network, database and server that an environment may state: predicted, made, kept and undone."""

from __future__ import annotations

import copy
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests.provision.conftest import LOCAL, ROOT, Json, Run, Task, World
from tests.provision.test_existing import PROJECT, tables
from tests.provision.test_existing import play as played
from tests.unit.emulator.conftest import Running

COMPUTE = f"https://compute.googleapis.com/compute/v1/projects/{PROJECT}"
BUCKET = f"https://storage.googleapis.com/storage/v1/b/{PROJECT}-mlflow-artifacts"
DATABASE = f"https://sqladmin.googleapis.com/v1/projects/{PROJECT}/instances/mlflow"
DISK = f"{COMPUTE}/zones/europe-west1-b/disks/mlflow-1"
SCHEDULE = f"{COMPUTE}/regions/europe-west1/resourcePolicies/mlflow-1-daily"
SECRETS = f"https://secretmanager.googleapis.com/v1/projects/{PROJECT}/secrets"
KMS = "https://cloudkms.googleapis.com/v1"
RING = f"projects/{PROJECT}/locations/europe-west1/keyRings"
KEY = f"{RING}/mlflow/cryptoKeys/mlflow"
DENIED = {"startDate": "12-15", "endDate": "01-07", "time": "00:00:00"}
STATED = {
    "gcp_network_flow_logs": {"enable": True, "flowSampling": 0.1},
    "gcp_bucket_autoclass_enabled": True,
    "gcp_sql_edition": "ENTERPRISE_PLUS",
    "platform_sql_tier": "db-perf-optimized-N-2",
    "gcp_sql_data_cache_enabled": True,
    "gcp_sql_transaction_log_days": 14,
    "gcp_sql_storage_size_gib": 20,
    "gcp_sql_insights": {"queryInsightsEnabled": True, "recordApplicationTags": True},
    "gcp_sql_maintenance_deny_periods": [DENIED],
    "gcp_instance_snapshot_retention_days": 7,
}
# Network, bucket, database and server, each with one task that changes.
ROLES, CHANGES = "gcp_network,gcp_bucket,gcp_sql,gcp_instance", 4
Provision = Callable[..., tuple[str, int]]


@pytest.fixture(scope="module")
def cloud(clean_world: World, provisioned: tuple[list[Task], Json], empty: Json) -> Iterator[Running]:
    """The cloud with a deployment, whose operator has a key."""
    clean_world.put(provisioned[1])
    clean_world.state.services[PROJECT].append("cloudkms.googleapis.com")
    clean_world.running.call("POST", f"{KMS}/{RING}?keyRingId=mlflow", {})
    made = f"{KMS}/{RING}/mlflow/cryptoKeys?cryptoKeyId=mlflow"
    clean_world.running.call("POST", made, {"purpose": "ENCRYPT_DECRYPT"})
    yield clean_world.running
    clean_world.put(empty)


@pytest.fixture(scope="module")
def provision(cloud: Running, make_inventory: Callable[..., pathlib.Path]) -> Provision:
    """Return a function that runs provision.yml with some roles and values on what the inventory says."""
    del cloud
    inventory = make_inventory()

    def run(roles: str, *arguments: str, code: int = 0, **values: Any) -> tuple[str, int]:
        given = ("--tags", roles, "-e", json.dumps(values), *arguments)
        return played("playbooks/provision.yml", *given, inventory=inventory, code=code)

    return run


def test_settings_are_predicted_made_kept_and_undone(cloud: Running, provision: Provision) -> None:
    before = tables(cloud)
    predicted, changed = provision(ROLES, "--check", "--diff", **STATED)
    assert (changed, tables(cloud)) == (CHANGES, before), predicted

    made, changed = provision(ROLES, "--diff", **STATED)
    assert changed == CHANGES, made
    assert [line for line in made.splitlines() if line[:1] in "+-"] == [
        line for line in predicted.splitlines() if line[:1] in "+-"
    ]
    assert provision(ROLES, **STATED)[1] == 0
    database, bucket = cloud.call("GET", DATABASE)["settings"], cloud.call("GET", BUCKET)
    assert database["dataCacheConfig"] == {"dataCacheEnabled": True}
    assert (database["dataDiskSizeGb"], database["denyMaintenancePeriods"]) == ("20", [DENIED])
    assert database["backupConfiguration"]["transactionLogRetentionDays"] == 14
    assert bucket["autoclass"]["enabled"] is True
    assert "SetStorageClass" not in str(bucket["lifecycle"])
    assert cloud.call("GET", SCHEDULE)["snapshotSchedulePolicy"]["retentionPolicy"]["maxRetentionDays"] == 7

    undone, changed = provision(ROLES)
    assert changed == CHANGES, undone
    # It never shrinks.
    assert cloud.call("GET", DATABASE)["settings"]["dataDiskSizeGb"] == "20"
    assert "autoclass" not in cloud.call("GET", BUCKET)


def test_a_users_password_is_a_secret_for_the_server_that_goes_when_the_user_is_to_be_absent(
    cloud: Running, provision: Provision
) -> None:
    secret = f"{SECRETS}/mlflow-user-ann-example-com-password"
    users = [{"name": "ann@example.com"}]
    made, changed = provision("gcp_secret", platform_mlflow_users=users)
    assert changed == 1, made
    assert cloud.call("GET", f"{secret}:getIamPolicy") == cloud.call(
        "GET", f"{SECRETS}/mlflow-admin-password:getIamPolicy"
    )
    # Nobody named it.
    assert provision("gcp_secret")[1] == 0
    assert cloud.call("GET", secret)["labels"] == {"mlflow-deployment": "mlflow"}

    absent = [{"name": "ann@example.com", "state": "absent"}]
    predicted, changed = provision("gcp_secret", "--check", platform_mlflow_users=absent)
    assert changed == 1, predicted
    removed, changed = provision("gcp_secret", platform_mlflow_users=absent)
    assert changed == 1, removed
    cloud.refused("GET", secret)
    assert provision("gcp_secret", platform_mlflow_users=absent)[1] == 0


def test_a_deployment_without_the_keys_gets_them_and_keeps_its_other_secrets(
    cloud: Running, provision: Provision
) -> None:
    keys = [f"{SECRETS}/mlflow-{key}" for key in ("webhook-secret-encryption-key", "crypto-kek-passphrase")]
    kept = [f"{SECRETS}/mlflow-{key}/versions/latest:access" for key in ("admin-password", "flask-secret-key")]
    values = [cloud.call("GET", one) for one in kept]
    for key in keys:
        cloud.call("DELETE", key)
    made, changed = provision("gcp_secret")
    assert changed == 1, made
    new = [cloud.call("GET", f"{key}/versions/latest:access")["payload"]["data"] for key in keys]
    assert len({*new, *(one["payload"]["data"] for one in values)}) == 4
    assert [cloud.call("GET", one) for one in kept] == values
    assert provision("gcp_secret")[1] == 0


def test_a_detached_schedule_is_attached_again_and_goes_when_none_is_wanted(
    cloud: Running, provision: Provision
) -> None:
    policy = {"resourcePolicies": [SCHEDULE.partition("/compute/v1/")[2]]}
    cloud.done(cloud.call("POST", f"{DISK}/removeResourcePolicies", policy))
    assert provision("gcp_instance")[1] == 1
    assert cloud.call("GET", DISK)["resourcePolicies"][0].endswith("/mlflow-1-daily")

    off, changed = provision("gcp_instance", gcp_instance_snapshot_retention_days=0)
    assert changed == 1, off
    cloud.refused("GET", SCHEDULE)
    assert "resourcePolicies" not in {k: v for k, v in cloud.call("GET", DISK).items() if v}
    assert provision("gcp_instance")[1] == 1


def test_a_key_goes_to_the_bucket_at_once_and_never_to_what_is_there_without_it(
    cloud: Running, provision: Provision
) -> None:
    encrypted, changed = provision("gcp_project,gcp_bucket", platform_kms_key=KEY)
    assert changed == 2, encrypted
    assert provision("gcp_project,gcp_bucket", platform_kms_key=KEY)[1] == 0
    assert cloud.call("GET", BUCKET)["encryption"]["defaultKmsKeyName"] == KEY

    before = tables(cloud)
    for role, present in (
        ("gcp_secret", "replication.userManaged.replicas is []"),
        ("gcp_sql", "diskEncryptionConfiguration.kmsKeyName is null"),
        ("gcp_instance", "diskEncryptionKey.kmsKeyName is null"),
    ):
        refused, _ = provision(role, platform_kms_key=KEY, code=2)
        assert f"{present}, wanted" in refused
        assert "Google cannot change this in place and nothing was changed" in refused
    assert tables(cloud) == before

    assert provision("gcp_bucket")[1] == 1
    assert "encryption" not in cloud.call("GET", BUCKET)


def test_a_deployment_is_encrypted_from_the_beginning_and_leaves_the_key(
    cloud: Running, clean_world: World, play: Callable[..., Run], make_inventory: Callable[..., pathlib.Path]
) -> None:
    inventory = make_inventory(
        platform_name="sealed",
        platform_kms_key=KEY,
        platform_machine_type="n2d-standard-2",
        platform_subnetwork_cidr="10.20.0.0/24",
        gcp_instance_confidential_type="SEV",
    )
    (inventory / "gcp.yml").write_text((inventory / "gcp.yml").read_text().replace("= mlflow", "= sealed"))
    assert not [name for name in tables(cloud)["resources"] if "sealed" in name]

    made = play(inventory=inventory)
    assert (made.code, bool(made.changes)) == (0, True), made.errors
    for task in made.tasks:
        assert not clean_world.done(task.module, task.arguments, check=True)["changed"], task.role
    instance = cloud.call("GET", DATABASE.replace("/mlflow", "/sealed"))
    assert instance["diskEncryptionConfiguration"]["kmsKeyName"] == KEY
    secret = cloud.call("GET", f"{SECRETS}/sealed-admin-password")
    replicas = [{"location": "europe-west1", "customerManagedEncryption": {"kmsKeyName": KEY}}]
    assert secret["replication"] == {"userManaged": {"replicas": replicas}}
    logs = cloud.call("GET", BUCKET.replace("mlflow-artifacts", "sealed-logs"))
    assert logs["encryption"]["defaultKmsKeyName"] == KEY
    disk = cloud.call("GET", DISK.replace("mlflow-1", "sealed-1"))
    assert disk["diskEncryptionKey"]["kmsKeyName"].startswith(f"{KEY}/")
    machine = cloud.call("GET", DISK.replace("disks/mlflow-1", "instances/sealed-1"))
    assert machine["confidentialInstanceConfig"]["confidentialInstanceType"] == "SEV"
    assert machine["scheduling"]["onHostMaintenance"] == "TERMINATE"

    policy = copy.deepcopy(cloud.server.cloud.state.policies[KEY])
    confirmed = ("-e", f"platform_destroy_project={PROJECT}", "-e", "platform_destroy_database=sealed")
    bucket = ("-e", f"platform_destroy_bucket={PROJECT}-sealed-artifacts")
    removed, _ = played("playbooks/destroy.yml", *confirmed, *bucket, inventory=inventory)
    left = {name for name, one in tables(cloud)["resources"].items() if one.get("name", "").startswith("sealed")}
    assert left == set(), removed
    assert cloud.call("GET", f"{KMS}/{KEY}")["primary"]["state"] == "ENABLED"
    assert cloud.server.cloud.state.policies[KEY] == policy


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {
                "gcp_bucket_autoclass_enabled": True,
                "gcp_bucket_storage_class": "NEARLINE",
                "gcp_bucket_retention_days": 30,
                "gcp_bucket_soft_delete_days": 3,
                "gcp_bucket_lifecycle_rules": [
                    {"action": {"type": "SetStorageClass", "storageClass": "ARCHIVE"}, "condition": {"age": 5}},
                    {"action": {"type": "Delete"}, "condition": {"age": 5}},
                ],
            },
            [
                "goes with gcp_bucket_storage_class STANDARD only, which is NEARLINE",
                "sets or matches storage classes, which Autoclass does by itself",
                "goes with gcp_bucket_versioning_enabled false only",
                "deletes objects younger than gcp_bucket_retention_days, 30",
                "is neither 0 nor from 7 to 90",
            ],
        ),
        (
            {
                "gcp_sql_edition": "ENTERPRISE",
                "platform_sql_tier": "db-perf-optimized-N-2",
                "gcp_sql_data_cache_enabled": True,
                "gcp_sql_client_connections": 391,
                "gcp_sql_storage_size_gib": 50,
                "gcp_sql_storage_limit_gib": 20,
                "gcp_sql_transaction_log_days": 20,
                "gcp_sql_maintenance_hour": 24,
                "gcp_sql_maintenance_deny_periods": [{}, {}],
            },
            [
                "db-perf-optimized-N-2 is no tier of gcp_sql_edition ENTERPRISE",
                "391 is more than the 400 that db-perf-optimized-N-2 takes, less 10 of Google's own",
                "goes with gcp_sql_edition ENTERPRISE_PLUS only",
                "is less than gcp_sql_storage_size_gib, 50",
                "is not from 1 to 7, as gcp_sql_edition ENTERPRISE has it",
                "is more than the days of gcp_sql_backup_count, 14",
                "is not an hour from 0 to 23",
                "has more than the one period that Cloud SQL takes",
            ],
        ),
        (
            {"gcp_sql_edition": "ENTERPRISE_PLUS", "platform_sql_tier": "db-c4a-highmem-4"},
            ["db-c4a-highmem-4 has a disk of HYPERDISK_BALANCED only, and the one made here is PD_SSD"],
        ),
        (
            {"gcp_instance_confidential_type": "SEV", "gcp_instance_snapshot_retention_days": -1},
            [
                "e2-standard-2 is none that has gcp_instance_confidential_type SEV",
                "is not a number of days from 0 to 365",
            ],
        ),
    ],
    ids=["bucket", "database", "machine of the database", "server"],
)
@pytest.mark.usefixtures("cloud")
def test_settings_that_contradict_each_other_are_reported_together(
    make_inventory: Callable[..., pathlib.Path], values: dict[str, Any], expected: list[str]
) -> None:
    given = ("-e", json.dumps(values))
    refused, _ = played("playbooks/preflight.yml", *given, inventory=make_inventory(), code=2)

    assert [problem for problem in expected if problem not in refused] == []
    assert refused.count('"fix"') == len(expected)


@pytest.mark.usefixtures("cloud")
def test_whatever_has_a_default_may_be_set(
    play: Callable[..., Run], make_inventory: Callable[..., pathlib.Path]
) -> None:
    defaults = yaml.safe_load((ROOT / "group_vars" / "all" / "platform.yml").read_text())
    stated = yaml.safe_load((LOCAL / "group_vars" / "platform" / "main.yml").read_text())
    others = {name: value for name, value in defaults.items() if name not in stated and "{{" not in str(value)}
    assert len(others) > 30
    run = play("--check", inventory=make_inventory(**others), playbook="playbooks/preflight.yml")
    assert run.code == 0, run.errors
