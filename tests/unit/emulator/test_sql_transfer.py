"""Exports and imports of Cloud SQL, and what Google refuses of them."""

from __future__ import annotations

import gzip
import pathlib
from typing import Any

import pytest

from tests.unit.emulator.test_compute import network
from tests.unit.emulator.test_sql import INSTANCE, SQL, instance, mysql, peering

__all__ = ["instance", "mysql", "network", "peering"]
STORAGE = "https://storage.googleapis.com/storage/v1/b"
URI = "gs://demo-backups/set/tracking.sql.gz"


@pytest.fixture
def bucket(cloud: Any, instance: dict[str, Any]) -> str:
    """A bucket on which the instance's own account may do what Google says it needs."""
    return prepared(cloud, instance)


def prepared(cloud: Any, instance: dict[str, Any]) -> str:
    """Make such a bucket, and a database."""
    uniform = {"uniformBucketLevelAccess": {"enabled": True}}
    body = {"name": "demo-backups", "location": "EU", "iamConfiguration": uniform}
    cloud.call("POST", f"{STORAGE}?project=demo-project", body)
    cloud.done(cloud.call("POST", f"{INSTANCE}/databases", {"name": "tracking"}))
    member = f"serviceAccount:{instance['serviceAccountEmailAddress']}"
    grants = [{"role": f"roles/storage.object{role}", "members": [member]} for role in ("Creator", "Viewer")]
    policy = cloud.call("GET", f"{STORAGE}/demo-backups/iam")
    cloud.call("PUT", f"{STORAGE}/demo-backups/iam", {**policy, "bindings": policy["bindings"] + grants})
    return "demo-backups"


def exporting(**changes: Any) -> dict[str, Any]:
    return {"exportContext": {"uri": URI, "databases": ["tracking"], "fileType": "SQL", **changes}}


def importing(**changes: Any) -> dict[str, Any]:
    return {"importContext": {"uri": URI, "database": "tracking", "fileType": "SQL", **changes}}


def failure(operation: dict[str, Any]) -> str:
    return str(operation["error"]["errors"][0]["message"])


@pytest.mark.usefixtures("bucket")
def test_a_dump_lands_in_the_bucket_and_is_read_from_there(cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = cloud.done(cloud.call("POST", f"{INSTANCE}/export", exporting()))
    assert (done["operationType"], done.get("error")) == ("EXPORT", None)
    media = cloud.operator.get(f"{STORAGE}/demo-backups/o/set%2Ftracking.sql.gz?alt=media")
    assert gzip.decompress(media.content) == b"-- mlflow/tracking\n"
    seen = []

    def take(instance: str, name: str, file: pathlib.Path) -> None:
        seen.append((instance, name, file.read_text()))

    monkeypatch.setattr(cloud.server.cloud.effects, "import_sql_database", take, raising=False)
    done = cloud.done(cloud.call("POST", f"{INSTANCE}/import", importing()))
    assert (done["operationType"], done.get("error")) == ("IMPORT", None)
    assert seen == [("mlflow", "tracking", "-- mlflow/tracking\n")]


def test_a_dump_of_mysql_goes_into_the_database_that_it_names(
    cloud: Any, mysql: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(cloud, mysql)
    cloud.done(cloud.call("POST", f"{INSTANCE}/export", exporting()))
    cloud.done(cloud.call("POST", f"{INSTANCE}/databases", {"name": "other"}))
    cloud.done(cloud.call("DELETE", f"{INSTANCE}/databases/tracking"))
    filled = []

    def take(_instance: str, name: str, file: pathlib.Path) -> None:
        filled.append((name, file.read_text().splitlines()[-2:]))

    monkeypatch.setattr(cloud.server.cloud.effects, "import_sql_database", take, raising=False)
    done = cloud.done(cloud.call("POST", f"{INSTANCE}/import", importing(database="other")))
    assert (filled, done.get("error")) == ([("tracking", ["USE `tracking`;", "-- mlflow/tracking"])], None)
    assert cloud.call("GET", f"{INSTANCE}/databases/tracking")["charset"] == "utf8mb4"


@pytest.mark.usefixtures("bucket")
def test_an_export_never_replaces_a_file(cloud: Any) -> None:
    cloud.done(cloud.call("POST", f"{INSTANCE}/export", exporting()))
    before = cloud.call("GET", f"{STORAGE}/demo-backups/o/set%2Ftracking.sql.gz")
    again = cloud.done(cloud.call("POST", f"{INSTANCE}/export", exporting()))
    assert "already exists" in failure(again)
    assert cloud.call("GET", f"{STORAGE}/demo-backups/o/set%2Ftracking.sql.gz") == before


@pytest.mark.usefixtures("bucket")
def test_an_export_that_fails_leaves_no_file(cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("No space.")

    monkeypatch.setattr(cloud.server.cloud.effects, "export_sql_database", fail)
    assert failure(cloud.done(cloud.call("POST", f"{INSTANCE}/export", exporting()))) == "No space."
    assert cloud.refused("GET", f"{STORAGE}/demo-backups/o/set%2Ftracking.sql.gz")["code"] == 404


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (exporting(uri="demo-backups/x.sql"), 400, "gs://bucketName/fileName"),
        (exporting(uri="gs://no-such-bucket/x.sql"), 404, "no-such-bucket does not exist"),
        (exporting(databases=["absent"]), 404, "absent"),
        (exporting(databases=[]), 400, "exactly one database"),
        (exporting(databases=["tracking", "postgres"]), 400, "exactly one database"),
        (exporting(fileType="CSV"), 501, "fileType SQL"),
    ],
)
def test_what_cannot_be_exported_is_refused(cloud: Any, body: dict[str, Any], code: int, words: str) -> None:
    error = cloud.refused("POST", f"{INSTANCE}/export", body)
    assert error["code"] == code
    assert words in error["message"]


@pytest.mark.usefixtures("bucket")
def test_a_file_that_is_not_there_cannot_be_imported(cloud: Any) -> None:
    assert "tracking.sql.gz does not exist" in cloud.refused("POST", f"{INSTANCE}/import", importing())["message"]
    assert cloud.refused("POST", f"{INSTANCE}/import", importing(database="absent"))["code"] == 404
    assert cloud.refused("POST", f"{SQL}/instances/absent/import", importing())["code"] == 404


def test_the_instances_own_account_must_be_let_in(cloud: Any, bucket: str, instance: dict[str, Any]) -> None:
    policy = cloud.call("GET", f"{STORAGE}/{bucket}/iam")
    own = f"serviceAccount:{instance['serviceAccountEmailAddress']}"
    kept = [binding for binding in policy["bindings"] if own not in binding["members"]]
    cloud.call("PUT", f"{STORAGE}/{bucket}/iam", {**policy, "bindings": kept})
    for verb, body in (("export", exporting()), ("import", importing())):
        error = cloud.refused("POST", f"{INSTANCE}/{verb}", body)
        assert (error["code"], "does not have the required permissions" in error["message"]) == (403, True)
