"""A backup set and the way back from it, with the real client, databases and objects.

`make backups` runs this alone, whole, and writes the table of docs/backups.md.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import pathlib
import re
import secrets
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.backup import read_back

from tests.integration.conftest import LOCAL, ROOT, Run, interrupted, metadata_token, removed_afterwards
from tests.integration.test_healing import Writer

STORAGE = "https://storage.googleapis.com/storage/v1/b"
SETS, ARTIFACTS = "demo-project-mlflow-backups", "demo-project-mlflow-artifacts"
SECRETS = [
    "mlflow.admin-password",
    "mlflow.flask-secret-key",
    "mlflow.webhook-secret-encryption-key",
    "mlflow.crypto-kek-passphrase",
]
NAME = f"backup-{secrets.token_hex(3)}"
CLIENT = """
import sys, mlflow
from mlflow import MlflowClient
name, work = sys.argv[1:]
mlflow.set_experiment(name)
if work == "write":
    with mlflow.start_run(run_name=name) as run:
        mlflow.log_params({"alpha": "0.5"})
        for step in range(50):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        mlflow.log_text("kept " * 1000, "notes/kept.txt")
        mlflow.log_text("replaced later", "notes/replaced.txt")
    client = MlflowClient()
    client.create_registered_model(name)
    client.create_model_version(name, f"runs:/{run.info.run_id}/notes", run.info.run_id)
else:
    (run,) = MlflowClient().search_runs([mlflow.get_experiment_by_name(name).experiment_id])
    assert run.data.params == {"alpha": "0.5"}, run.data
    assert len(MlflowClient().get_metric_history(run.info.run_id, "loss")) == 50
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/notes/kept.txt") == "kept " * 1000
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/notes/replaced.txt") == "replaced later"
    assert MlflowClient().get_model_version(name, "1").run_id == run.info.run_id
print(run.info.run_id)
"""
Play = Callable[..., Any]


def client(deployment: Any, work: str, name: str = NAME) -> str:
    """Write or read back with the real client; returns the run's id."""
    environment = {
        **deployment.environment,
        "MLFLOW_TRACKING_URI": deployment.url,
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": deployment.admin_password,
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    command = [sys.executable, "-c", CLIENT, name, work]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()[-1]


def measured(scenario: str, run: Run, manifest: Any, writer: Writer | None = None) -> None:
    """Add a row to the table: what a playbook took, and what it compared with the set, or read back for it."""
    rows = sum(sum(tables.values()) for tables in manifest["rows"].values())
    requests_ = [str(writer.acknowledged + len(writer.failures)), str(len(writer.failures))] if writer else ["", ""]
    compared = f"{rows} rows, {manifest['artifacts']['objects']} artifacts"
    table = ROOT / "build/backups.md"
    table.parent.mkdir(exist_ok=True)
    with table.open("a") as file:
        file.write("| " + " | ".join([scenario, *requests_, str(round(run.seconds)), compared]) + " |\n")


def manifest_of(cloud: Any, name: str) -> Any:
    return cloud.get(f"{STORAGE}/{SETS}/o/{name}%2Fmanifest.json?alt=media")


def sql(statement: str) -> str:
    command = ["docker", "exec", "--user", "postgres", "cloudsql-mlflow", "psql", "--host=/run/cloudsql"]
    command += ["--username=cloudsqladmin", "--dbname=mlflow", "--tuples-only", "--no-align", f"--command={statement}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def on_server(deployment: Any, command: str, *, code: int = 0) -> str:
    """Return what a command on the server prints."""
    done = subprocess.run(
        ["docker", "exec", deployment.server, "sh", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout.strip()


def stored(cloud: Any, bucket: str, prefix: str = "") -> dict[str, Any]:
    items = cloud.get(f"{STORAGE}/{bucket}/o?prefix={prefix}").get("items", [])
    return {item["name"]: item for item in items}


@pytest.fixture(scope="module")
def run_id(deployment: Any) -> str:
    return client(deployment, "write")


@pytest.fixture(scope="module")
def taken(run_id: str, deployment: Any, play: Play, cloud: Any) -> str:
    """The name of a set that has the run."""
    assert run_id
    writer = Writer(deployment)
    writer.start()
    try:
        backup = play("playbooks/backup.yml")
    finally:
        writer.stop.set()
        writer.join()
    assert backup.code == 0, backup.output
    assert writer.failures == []
    assert deployment.admin_password not in backup.output
    (name,) = re.findall(rf"gs://{SETS}/(\w+) is whole", backup.output)
    measured("a set is taken while a client writes", backup, manifest_of(cloud, name), writer)
    return str(name)


def test_a_set_holds_what_a_restore_needs_and_nothing_secret(taken: str, deployment: Any, cloud: Any) -> None:
    names = [f"{taken}/{file}" for file in ("artifacts.ndjson.gz", "auth.sql.gz", "manifest.json", "tracking.sql.gz")]
    assert sorted(stored(cloud, SETS, taken)) == names
    address = f"{STORAGE}/{SETS}/o/{taken}%2Fmanifest.json"
    manifest = manifest_of(cloud, taken)
    assert manifest["mlflow"]["version"] == "3.17.2"
    assert set(manifest["mlflow"]["schemas"]) == {"tracking", "auth"}
    assert manifest["rows"]["tracking.sql.gz"]["runs"] == int(sql("SELECT count(*) FROM runs"))
    assert re.fullmatch("[0-9a-f]{64}", manifest["certificate"]["sha256"])
    assert deployment.admin_password not in str(manifest)
    runs = cloud.get("https://sqladmin.googleapis.com/v1/projects/demo-project/instances/mlflow/backupRuns")["items"]
    assert manifest["database"]["backup_run"] in {run["id"] for run in runs if run["status"] == "SUCCESSFUL"}
    refused = cloud.call("DELETE", address)
    assert (refused.status_code, "retention policy" in refused.text) == (403, True)


def test_second_thoughts_and_damaged_sets_are_refused(taken: str, play: Play, cloud: Any, written: Any) -> None:
    broken, address = "20000101T000000Z", f"{STORAGE}/{SETS}/o"
    manifest = {**cloud.get(f"{address}/{taken}%2Fmanifest.json?alt=media"), "name": broken}
    upload = f"{address.replace('/storage/v1', '/upload/storage/v1')}?uploadType=media&name={broken}/manifest.json"
    cloud.call("POST", upload, manifest).raise_for_status()
    cloud.call("POST", f"{address}/{taken}%2Fauth.sql.gz/copyTo/b/{SETS}/o/{broken}%2Fauth.sql.gz").raise_for_status()
    runs: list[Any] = []

    def refuse(**asked: str) -> str:
        options = [word for name, value in asked.items() for word in ("-e", f"platform_restore_{name}={value}")]
        assert written(lambda: runs.append(play("playbooks/restore.yml", *options))) == []
        assert runs[-1].code != 0
        return str(runs[-1].output)

    assert f"give -e platform_restore_confirmed_set={taken}" in refuse()
    damaged = refuse(set=broken, confirmed_set=taken)
    assert f"{broken}/tracking.sql.gz: is not there any more" in damaged
    assert f"{broken}/auth.sql.gz: is not the file that was written, by its generation" in damaged
    assert f"platform_restore_confirmed_set is {taken} and the set is {broken}" in damaged


def damage(run_id: str, cloud: Any) -> None:
    """Delete and replace an artifact of a run, change and delete rows, and drop a table."""
    objects = [name for name in stored(cloud, ARTIFACTS) if run_id in name]
    kept, replaced = (
        next(name for name in objects if name.endswith(f"notes/{file}.txt")) for file in ("kept", "replaced")
    )
    cloud.call("DELETE", f"{STORAGE}/{ARTIFACTS}/o/{kept.replace('/', '%2F')}").raise_for_status()
    upload = f"https://storage.googleapis.com/upload/storage/v1/b/{ARTIFACTS}/o?uploadType=media&name={replaced}"
    cloud.call("POST", upload, {"not": "what it was"}).raise_for_status()
    sql("UPDATE params SET value = 'wrong'")
    sql(f"DELETE FROM metrics WHERE run_uuid = '{run_id}'")
    sql("DROP TABLE model_versions CASCADE")


def test_everything_is_back_after_a_restore(
    taken: str, run_id: str, deployment: Any, play: Play, cloud: Any, tracking: Callable[..., requests.Response]
) -> None:
    damage(run_id, cloud)

    confirmed = ("-e", f"platform_restore_set={taken}", "-e", f"platform_restore_confirmed_set={taken}")
    restored = play("playbooks/restore.yml", *confirmed)

    assert restored.code == 0, restored.output
    assert client(deployment, "read") == run_id
    assert tracking("GET", "users/get", params={"username": "admin"}).status_code == 200
    found = re.search(r"is lost: (\d+) s until the restore began \(RPO\).* took (\d+) s \(RTO\)", restored.output)
    assert found, restored.output
    assert "2 were copied back, 0 are gone" in restored.output
    print(f"RPO {found[1]} s, RTO {found[2]} s")
    measured("everything is restored to the same place", restored, manifest_of(cloud, taken))
    assert deployment.admin_password not in restored.output


JOURNAL = "journalctl --quiet --unit=mlflow-backup.service --output=json --lines=20"
ROLE = "https://iam.googleapis.com/v1/projects/demo-project/roles/mlflow_server"


@pytest.fixture(scope="module")
def nightly(taken: str, deployment: Any) -> str:
    """The name of a set that the server took by itself."""
    on_server(deployment, "systemctl start mlflow-backup.service")
    name = str(json.loads(on_server(deployment, "cat /var/lib/mlflow-backup/last.json"))["name"])
    assert name > taken
    return name


def test_the_server_takes_the_same_set_by_night(nightly: str, taken: str, deployment: Any, cloud: Any) -> None:
    assert on_server(deployment, "systemctl is-enabled mlflow-backup.timer && systemctl is-active mlflow-backup.timer")
    by_night, by_hand = (manifest_of(cloud, name) for name in (nightly, taken))
    assert sorted(stored(cloud, SETS, nightly)) == [name.replace(taken, nightly) for name in stored(cloud, SETS, taken)]
    assert shape(by_night) == shape(by_hand)
    for same in ("mlflow", "certificate", "project"):
        assert by_night[same] == by_hand[same]
    # As gcp_observability's filter has it.
    lines = [json.loads(line) for line in on_server(deployment, JOURNAL).splitlines()]
    told = [line["MESSAGE"] for line in lines if line.get("_SYSTEMD_UNIT") == "mlflow-backup.service"]
    assert told[-1] == f"Backup set gs://{SETS}/{nightly} is whole"
    assert deployment.admin_password not in str(lines)


def shape(manifest: Any) -> Any:
    """Return the names of all that a manifest says, but for tables."""
    return {key: sorted(value) if isinstance(value, dict) else None for key, value in manifest.items()}


def test_the_program_of_the_night_is_confined(nightly: str, deployment: Any, cloud: Any) -> None:
    found = on_server(deployment, "systemd-analyze security --no-pager mlflow-backup.service")
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", found)
    assert exposure, found
    print(f"mlflow-backup.service: exposure {exposure[1]}")
    assert float(exposure[1]) <= 2.0, found
    token = metadata_token(deployment.server)
    instance = "https://sqladmin.googleapis.com/v1/projects/demo-project/instances/mlflow"
    refused = [
        ("DELETE", f"{STORAGE}/{SETS}/o/{nightly}%2Fmanifest.json"),
        ("PATCH", f"{STORAGE}/{SETS}"),
        ("POST", f"{instance}/backupRuns"),
        ("DELETE", instance),
    ]
    assert [cloud.call(verb, url, {}, token=token).status_code for verb, url in refused] == [403] * len(refused)


def test_a_night_that_fails_leaves_no_set_and_is_seen(nightly: str, deployment: Any, cloud: Any, play: Play) -> None:
    role = cloud.get(ROLE)
    before = stored(cloud, SETS)
    fewer = [one for one in role["includedPermissions"] if one != "cloudsql.instances.export"]
    cloud.call("PATCH", f"{ROLE}?updateMask=includedPermissions", {"includedPermissions": fewer}).raise_for_status()

    on_server(deployment, "systemctl start mlflow-backup.service 2>/dev/null", code=1)

    assert stored(cloud, SETS) == before
    assert on_server(deployment, "systemctl is-failed mlflow-backup.service") == "failed"
    told = on_server(deployment, JOURNAL)
    assert "No backup set was taken: exit-code" in told
    assert "The client is not authorized to make this request" in told
    status = play("playbooks/status.yml", "-e", "status_drift_enabled=false")
    assert status.code != 0
    assert f"the last run failed (exit-code); whole: {nightly}" in status.output

    mended = play("playbooks/provision.yml", "--tags", "gcp_identity")
    assert (mended.code, mended.changed) == (0, 1), mended.output
    on_server(deployment, "systemctl start mlflow-backup.service")


SQL_INSTANCES = "https://sqladmin.googleapis.com/v1/projects/demo-project/instances"
COMPUTE = "https://compute.googleapis.com/compute/v1/projects/demo-project"


def made(cloud: Any) -> Any:
    """Return what a drill makes and takes away again: names, and who may use the bucket of the sets."""
    zone, region = f"{COMPUTE}/zones/europe-west1-b", f"{COMPUTE}/regions/europe-west1"
    places = (SQL_INSTANCES, f"{zone}/instances", f"{zone}/disks", f"{region}/addresses", f"{region}/resourcePolicies")
    names = [sorted(one["name"] for one in cloud.get(place).get("items", [])) for place in places]
    policy = cloud.get(f"{STORAGE}/{SETS}/iam")["bindings"]
    return names, {one["role"]: sorted(one["members"]) for one in policy}


@pytest.mark.long
def test_a_drill_that_fails_says_so_and_the_next_one_removes_what_it_left(
    nightly: str, deployment: Any, cloud: Any, play: Play, environment: dict[str, str], run_id: str
) -> None:
    assert nightly
    before = made(cloud)
    latest = max(stored(cloud, SETS)).split("/")[0]
    faults = f"{environment['HTTPS_PROXY']}/_emulator/faults"
    asked = [
        {"method": "sql.instances.import", "operation_error": "No space is left."},
        {"method": "sql.instances.delete", "status": 403},
    ]
    requests.post(faults, json=asked, timeout=30).raise_for_status()

    failed = play("playbooks/drill.yml")

    assert failed.code != 0
    assert "No space is left." in failed.output
    assert requests.get(faults, timeout=30).json() == []
    assert len(cloud.get(SQL_INSTANCES)["items"]) == 2, failed.output

    passed = play("playbooks/drill.yml")

    assert passed.code == 0, passed.output
    assert f"Drill passed: backup set {latest}" in passed.output
    measured("a drill, and what one before left is removed", passed, manifest_of(cloud, latest))
    assert deployment.admin_password not in passed.output
    assert made(cloud) == before
    assert client(deployment, "read") == run_id
    told = json.loads(on_server(deployment, "cat /var/lib/mlflow-drill/last.json"))
    assert (told["set"], told["passed"], told["problem"]) == (latest, True, "")
    assert "Drill passed" in on_server(deployment, "journalctl --quiet --identifier=mlflow-drill --output=cat")


@pytest.mark.long
def test_a_moment_of_the_past_is_restored_and_nothing_after_it(
    nightly: str, run_id: str, deployment: Any, play: Play, cloud: Any, tracking: Callable[..., requests.Response]
) -> None:
    assert nightly
    before, later = made(cloud), f"{NAME}-later"
    time.sleep(2)
    asked = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    time.sleep(2)
    later_run = client(deployment, "write", later)
    damage(run_id, cloud)
    of_later = [name for name in stored(cloud, ARTIFACTS) if later_run in name]

    moment = asked.translate({ord("-"): "", ord(":"): ""})
    options = [f"platform_restore_point_in_time={asked}", f"platform_restore_confirmed_set={moment}"]
    restored = play("playbooks/restore.yml", *(word for option in options for word in ("-e", option)))

    assert restored.code == 0, restored.output
    assert client(deployment, "read") == run_id
    there = {
        name: tracking("GET", "experiments/get-by-name", params={"experiment_name": name}) for name in (NAME, later)
    }
    assert [one.status_code for one in there.values()] == [200, 404]
    assert f"What was written after {asked} is lost" in restored.output
    assert f"2 were copied back, 0 are gone, {len(of_later)} newer" in restored.output
    assert deployment.admin_password not in restored.output
    assert made(cloud) == before
    (name,) = {path.partition("/")[0] for path in stored(cloud, SETS, moment)}
    manifest = manifest_of(cloud, name)
    measured("a moment between two sets is restored", restored, manifest)
    assert (manifest["begun"], manifest["point_in_time"], manifest["mlflow"]["version"]) == (asked, True, "3.17.2")


NEW_PROJECT = "empty-project"


@pytest.fixture
def new_deployment(
    make_inventory: Callable[..., pathlib.Path], deployment: Any, cloud: Any, play: Play
) -> Iterator[tuple[pathlib.Path, Any]]:
    """Make a deployment of another project, yield its inventory and how to reach it, and remove it."""
    name = f"moved-{secrets.token_hex(2)}"
    inventory = make_inventory(projects=[NEW_PROJECT], platform_name=name, platform_domain=f"{name}.localhost")
    with removed_afterwards(inventory, NEW_PROJECT, name, play):
        made = play("site.yml", inventory=inventory)
        assert made.code == 0, made.output
        password = cloud.secret(f"{name}-admin-password", project=NEW_PROJECT)
        url = f"https://{name}.localhost"
        yield inventory, types.SimpleNamespace(url=url, environment=deployment.environment, admin_password=password)


@pytest.mark.long
def test_a_set_is_restored_into_a_new_deployment_of_another_project(
    nightly: str, run_id: str, new_deployment: tuple[pathlib.Path, Any], cloud: Any, play: Play
) -> None:
    assert nightly
    inventory, moved = new_deployment
    latest = max(stored(cloud, SETS)).split("/")[0]
    before = stored(cloud, SETS)
    options = ["-e", f"platform_restore_bucket={SETS}", "-e", f"platform_restore_confirmed_set={latest}"]

    refused = play("playbooks/restore.yml", *options, inventory=inventory)

    assert refused.code != 0
    assert "Nothing was changed." in refused.output
    for credential in SECRETS:
        assert f"{credential} is another secret than in the set" in refused.output

    changed = json.dumps({"platform_restore_changed_secrets": SECRETS})
    restored = play("playbooks/restore.yml", *options, "-e", changed, inventory=inventory)

    assert restored.code == 0, restored.output
    measured("a set is restored into a new deployment of another project", restored, manifest_of(cloud, latest))
    assert client(moved, "read") == run_id
    assert stored(cloud, SETS) == before
    again = play("site.yml", inventory=inventory)
    assert (again.code, again.changed) == (0, 0), again.output


def copied_as_of(version: str, cloud: Any, tracking: bytes = b"") -> str:
    """Add the latest set once more, as if another version of MLflow had taken it; returns the copy's name.

    `tracking` is the dump of the tracking database where that is to be another.
    """
    latest = max(stored(cloud, SETS)).split("/")[0]
    name = f"20200101T00{secrets.randbelow(60):02d}{secrets.randbelow(60):02d}Z"
    upload = f"https://storage.googleapis.com/upload/storage/v1/b/{SETS}/o?uploadType=media&name={name}%2F"

    def content(file: str) -> bytes:
        return bytes(cloud.call("GET", f"{STORAGE}/{SETS}/o/{latest}%2F{file}?alt=media").content)

    def add(file: str, data: bytes) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {cloud.token}"}
        response = cloud.http.post(upload + file, data=data, headers=headers, timeout=30)
        response.raise_for_status()
        return {key: response.json()[key] for key in ("size", "crc32c", "generation")}

    manifest = json.loads(content("manifest.json"))
    manifest["name"], manifest["mlflow"]["version"] = name, version
    for file, about in manifest["files"].items():
        data = (tracking if file == "tracking.sql.gz" else b"") or content(file)
        about |= {**add(file, data), "sha256": hashlib.sha256(data).hexdigest()}
    if tracking:
        found = read_back([tracking], "tracking.sql.gz")
        manifest["rows"]["tracking.sql.gz"], manifest["mlflow"]["schemas"]["tracking"] = found.rows, found.schema
    add("manifest.json", json.dumps(manifest).encode())
    return name


@pytest.mark.long
@pytest.mark.parametrize("locked", ["3.17.1", "3.17.2"])
def test_a_drill_serves_a_set_by_its_own_version_where_that_has_a_lock(
    locked: str, nightly: str, cloud: Any, play: Play, tmp_path: pathlib.Path
) -> None:
    assert nightly
    name = copied_as_of("3.17.1", cloud)
    lock = ROOT / "roles/mlflow/files/requirements-3.17.2.txt"
    for version in ("3.17.2", locked):
        shutil.copy(lock, tmp_path / f"requirements-{version}.txt")

    drilled = play(
        "playbooks/drill.yml", "-e", f"mlflow_lock_dir={tmp_path}", "-e", f"platform_restore_set={name}", "-v"
    )

    assert drilled.code == 0, drilled.output
    assert f"Drill passed: backup set {name}" in drilled.output
    assert set(re.findall(r"mlflow-(3[.]17[.]\d)-[0-9a-f]{10}", drilled.output)) == {locked}


# What 3.16.1 has, and what the migrations of 3.17 make of it.
OLD_SCHEMA, NEW_SCHEMA = "b7e2c1a4d9f3", "dc11669786a5"
IN_THE_WAY = "sql_trace_rollup_rebuild_queue"
# On the server, which may log in to the database; `$1` is a table to make.
DOWNGRADE = f"""
. /etc/mlflow/live/mlflow.env
export MLFLOW_BACKEND_STORE_URI="$(echo "$MLFLOW_BACKEND_STORE_URI" | sed 's|/mlflow[?]|/older?|')"
/etc/mlflow/live/release/bin/python - "$1" <<'END'
import os, sys, alembic.command, sqlalchemy
from mlflow.store.db.utils import _get_alembic_config
uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
alembic.command.downgrade(_get_alembic_config(uri), "{OLD_SCHEMA}")
if sys.argv[1]:
    with sqlalchemy.create_engine(uri).begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE " + sys.argv[1] + " (in_the_way int)"))
END
"""


def in_database(command: str) -> str:
    """Return what a command prints where the deployment's databases are."""
    done = ["docker", "exec", "--user", "postgres", "cloudsql-mlflow", "sh", "-ec", command]
    return subprocess.run(done, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def older_set(deployment: Any, cloud: Any, in_the_way: str = "") -> str:
    """Add a set whose tracking database has the rows of now and the schema of 3.16.1; returns its name."""

    def act(verb: str, path: str, body: Any = None) -> None:
        response = cloud.call(verb, f"{SQL_INSTANCES}/mlflow/{path}", body)
        response.raise_for_status()
        while (operation := cloud.get(response.json()["selfLink"]))["status"] != "DONE":
            time.sleep(0.5)
        assert "error" not in operation, operation

    # Before any set.
    place = f"0-{secrets.token_hex(4)}/tracking.sql.gz"
    act("POST", "databases", {"name": "older"})
    reach = "--host=/run/cloudsql --username=cloudsqladmin"
    in_database(f"pg_dump {reach} mlflow | psql {reach} --quiet --set=ON_ERROR_STOP=1 older")
    on_server(deployment, f"set -- '{in_the_way}'\n{DOWNGRADE}")
    uri = f"gs://{SETS}/{place}"
    act("POST", "export", {"exportContext": {"uri": uri, "databases": ["older"], "fileType": "SQL"}})
    act("DELETE", "databases/older")
    dump = cloud.call("GET", f"{STORAGE}/{SETS}/o/{place.replace('/', '%2F')}?alt=media").content
    return copied_as_of("3.16.1", cloud, dump)


def untouched(deployment: Any, cloud: Any) -> Any:
    """Return what a rehearsal must leave: databases whole, generations and releases, artifacts, the stamp of drills."""
    reach = "--host=/run/cloudsql --username=cloudsqladmin"
    dumps = [in_database(f"pg_dump {reach} {one} | grep -v restrict | sha256sum") for one in ("mlflow", "mlflow_auth")]
    files = "readlink /etc/mlflow/live; ls /etc/mlflow/generations /opt/mlflow/releases"
    stamp = "cat /var/lib/mlflow-drill/last.json 2>/dev/null || true"
    # What was deleted again too.
    artifacts = cloud.get(f"{STORAGE}/{ARTIFACTS}/o?versions=true").get("items", [])
    generations = sorted((one["name"], one["generation"]) for one in artifacts)
    return made(cloud), dumps, on_server(deployment, f"{files}; {stamp}"), generations


@pytest.fixture
def rehearsed(tmp_path: pathlib.Path) -> tuple[str, ...]:
    """Return what asks for a rehearsed upgrade, to a version that is there under this name for the test alone."""
    for version in ("3.17.2", "3.17.3"):
        shutil.copy(ROOT / "roles/mlflow/files/requirements-3.17.2.txt", tmp_path / f"requirements-{version}.txt")
    asked = {"platform_mlflow_version": "3.17.3", "platform_upgrade_rehearsal_enabled": "true"}
    return tuple(f"--extra-vars={name}={value}" for name, value in {**asked, "mlflow_lock_dir": str(tmp_path)}.items())


@pytest.mark.long
def test_a_migration_that_fails_on_the_copy_stops_an_upgrade_before_any_server(
    taken: str, rehearsed: tuple[str, ...], deployment: Any, cloud: Any, play: Play, written: Any
) -> None:
    assert taken
    name = older_set(deployment, cloud, IN_THE_WAY)
    before = untouched(deployment, cloud)
    runs: list[Any] = []

    calls = written(
        lambda: runs.append(play("playbooks/upgrade.yml", *rehearsed, f"--extra-vars=gcp_backup_set={name}"))
    )

    (stopped,) = runs
    assert stopped.code != 0
    assert f"Rehearsal of MLflow 3.17.3 failed: backup set {name}" in stopped.output
    assert IN_THE_WAY in stopped.output.split("Rehearsal of MLflow 3.17.3 failed")[1]
    assert "Nothing was changed, and the servers serve on. Next: mend what is said here" in stopped.output
    assert "Move the servers to the inventory's version" not in stopped.output
    assert untouched(deployment, cloud) == before
    own = [call.rpartition("/")[2] for call in calls if "/instances/mlflow" in call and "-drill-" not in call]
    assert own == ["export", "export", "backupRuns"]
    assert deployment.admin_password not in stopped.output


@pytest.mark.long
def test_an_upgrade_that_was_rehearsed_on_an_older_schema_says_how_long_it_takes_and_is_done(
    taken: str, rehearsed: tuple[str, ...], deployment: Any, cloud: Any, play: Play
) -> None:
    assert taken
    name = older_set(deployment, cloud)
    before, rows = made(cloud), sum(int(sql(f"SELECT count(*) FROM {one}")) for one in ("runs", "metrics", "params"))

    upgraded = play("playbooks/upgrade.yml", *rehearsed, f"--extra-vars=gcp_backup_set={name}")

    assert upgraded.code == 0, upgraded.output
    assert f"Rehearsal of MLflow 3.17.3 passed: backup set {name}" in upgraded.output
    found = re.search(
        rf"On the copy the schema of the tracking database moves from {OLD_SCHEMA} to {NEW_SCHEMA}, in (\d+) s, "
        r"on a copy of (\d+) rows",
        upgraded.output,
    )
    assert found, upgraded.output
    measured("an upgrade is rehearsed on a copy, and done", upgraded, manifest_of(cloud, name))
    assert int(found[2]) > rows
    assert made(cloud) == before
    assert "mlflow-3.17.3-" in on_server(deployment, "readlink /etc/mlflow/live")
    assert on_server(deployment, "journalctl --quiet --identifier=mlflow-drill --output=cat | grep -c 3.17.3", code=1)
    back = play("playbooks/rollback.yml")
    assert back.code == 0, back.output
    assert sql("SELECT version_num FROM alembic_version") == NEW_SCHEMA


MOVED_SCHEMA, MADE = "fe51a0c93b77", "made_by_a_migration"
MIGRATION = f"""
import sqlalchemy
from alembic import op
revision, down_revision, branch_labels, depends_on = "{MOVED_SCHEMA}", "{NEW_SCHEMA}", None, None
def upgrade():
    op.create_table("{MADE}", sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True))
"""
MIGRATIONS = "/opt/mlflow/releases/3.17.3-*/lib/python3*/site-packages/mlflow/store/db_migrations/versions"


@pytest.mark.long
def test_a_rollback_behind_a_migration_says_what_is_lost_asks_and_restores(
    rehearsed: tuple[str, ...],
    deployment: Any,
    cloud: Any,
    play: Play,
    environment: dict[str, str],
    tmp_path: pathlib.Path,
) -> None:
    kept, lost = f"kept-{NAME}", f"lost-{NAME}"
    client(deployment, "write", kept)
    before = on_server(deployment, "readlink /etc/mlflow/live")
    # A release whose migration the one before does not know.
    version, lock = rehearsed[0], rehearsed[-1]
    built = play("tests/integration/build_release.yml", version, lock)
    assert built.code == 0, built.output
    on_server(deployment, f"printf '%s' '{MIGRATION}' >$(echo {MIGRATIONS})/moved.py")
    confirmed = "--extra-vars=platform_upgrade_confirmed_version=3.17.3"
    upgraded = play("playbooks/upgrade.yml", version, lock, confirmed)
    assert upgraded.code == 0, upgraded.output
    (name,) = re.findall(rf"gs://{SETS}/(\w+) is whole", upgraded.output)
    assert sql("SELECT version_num FROM alembic_version") == MOVED_SCHEMA
    client(deployment, "write", lost)
    live = on_server(deployment, "readlink /etc/mlflow/live")
    assert live != before

    refused = play("playbooks/rollback.yml")
    assert refused.code != 0
    said = " ".join(refused.output.split())
    assert f"The way back to MLflow 3.17.2 is the backup set {name}" in said
    # With what the upgrade's own check of the service left hidden.
    assert re.search(r"will be lost: .*\b[12] of tracking\.runs, ", said), said
    assert re.search(r"\b5\d of tracking\.metrics, ", said), said
    assert f"-e platform_restore_confirmed_set={name} where nobody can type" in said
    assert on_server(deployment, "readlink /etc/mlflow/live") == live
    client(deployment, "read", lost)

    agreed, log = f"--extra-vars=platform_restore_confirmed_set={name}", tmp_path / "log"
    dropped = "TASK [Make them again, empty]"
    interrupted(environment, LOCAL, lambda: dropped in log.read_text(), "playbooks/rollback.yml", agreed, log=log)
    # Neither a boot nor another playbook begins anew on empty databases.
    on_server(deployment, "systemctl start mlflow.service", code=1)
    stopped = play("playbooks/configure.yml", "--tags", "mlflow")
    assert "the databases may hold a part of the backup set" in stopped.output, stopped.output
    check = play("playbooks/rollback.yml", "--check")
    assert check.code == 0, check.output
    assert on_server(deployment, "cat /etc/mlflow/restoring") == name

    back = play("playbooks/rollback.yml", agreed)
    assert back.code == 0, back.output
    measured("a rollback behind a migration, killed and run again", back, manifest_of(cloud, name))
    assert f"Restored {name}" in back.output
    assert on_server(deployment, "readlink /etc/mlflow/live") == before
    assert sql("SELECT version_num FROM alembic_version") == NEW_SCHEMA
    assert sql(f"SELECT to_regclass('{MADE}')") == ""
    assert sql(f"SELECT count(*) FROM experiments WHERE name = '{lost}'") == "0"
    client(deployment, "read", kept)
    again = play("playbooks/rollback.yml")
    assert (again.code, again.changed) == (0, 0), again.output
    assert "was live already" in again.output
    site = play("playbooks/configure.yml")
    assert (site.code, site.changed) == (0, 0), site.output
