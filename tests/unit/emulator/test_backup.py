"""Backup sets, their checks and the artifacts' point in time, against the emulated cloud."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import backup
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError, Session

STORAGE = "https://storage.googleapis.com/storage/v1/b"
SECRETS = "https://secretmanager.googleapis.com/v1/projects/demo-project/secrets"
SETS, ARTIFACTS = "demo-backups", "demo-artifacts"
DUMP = b"""CREATE TABLE public.runs (id);
COPY public.runs (id) FROM stdin;
1
2
\\.
COPY public."Odd one" (id) FROM stdin;
\\.
COPY public.alembic_version (version_num) FROM stdin;
a1
\\.
"""
ROWS = {"runs": 2, "Odd one": 0, "alembic_version": 1}
ABOUT = {
    "begun": "2030-01-01T02:00:00Z",
    "mlflow": {"version": "3.17.2"},
    "database": {"version": "POSTGRES_17", "user": "mlflow"},
}
WANTED = backup.WantedSet(
    SETS, "20300101T020000Z", ["tracking.sql.gz"], ARTIFACTS, "", {"mlflow.flask-secret-key": "flask"}, ABOUT
)
NAMES = {"tracking": "mlflow", "auth": "mlflow_auth"}
TARGET = backup.Target("POSTGRES_17", "mlflow", "3.17.2", {}, False, "", WANTED.secrets, [], NAMES)
MYSQL = b"CREATE DATABASE /*!32312 IF NOT EXISTS*/ `%s`;\n\nUSE `%s`;\n-- USE `no statement`;\n"


def session(**options: Any) -> Session:
    return Session("demo-project", timeout_seconds=60, **options)


def put(cloud: Any, bucket: str, name: str, content: bytes) -> None:
    url = f"https://storage.googleapis.com/upload/storage/v1/b/{bucket}/o"
    assert cloud.operator.post(url, params={"uploadType": "media", "name": name}, data=content).ok


def read(cloud: Any, bucket: str, name: str) -> bytes:
    content: bytes = cloud.operator.get(f"{STORAGE}/{bucket}/o/{name.replace('/', '%2F')}?alt=media").content
    return content


def add_secret(cloud: Any, value: str) -> None:
    cloud.call("POST", f"{SECRETS}/flask:addVersion", {"payload": {"data": base64.b64encode(value.encode()).decode()}})


@pytest.fixture
def prepared(cloud: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cloud with a dump, three artifacts and a secret."""
    monkeypatch.setattr(backup, "ITERATIONS", 1)
    for name, versioned in ((SETS, False), (ARTIFACTS, True)):
        uniform = {"uniformBucketLevelAccess": {"enabled": True}}
        body = {"name": name, "location": "EU", "iamConfiguration": uniform, "versioning": {"enabled": versioned}}
        cloud.call("POST", f"{STORAGE}?project=demo-project", body)
    put(cloud, SETS, f"{WANTED.name}/tracking.sql.gz", gzip.compress(DUMP))
    for name in ("1/a", "1/b", "2/c"):
        put(cloud, ARTIFACTS, name, name.encode())
    cloud.call("POST", f"{SECRETS}?secretId=flask", {"replication": {"automatic": {}}})
    add_secret(cloud, "the old value")
    return cloud


def take(**changes: Any) -> dict[str, Any]:
    wanted = dataclasses.replace(WANTED, **changes)
    return backup.complete(session(), wanted, lambda: "2030-01-01T02:01:00Z")


def problems(target: backup.Target | None = None, name: str = "latest") -> list[str]:
    found: list[str] = backup.examine(session(), SETS, name, target, None)["problems"]
    return found


@pytest.mark.usefixtures("prepared")
def test_a_set_is_complete_once_it_has_its_manifest(cloud: Any) -> None:
    with pytest.raises(CloudError, match=r"is not a backup set, for it has no manifest.json"):
        problems()
    result = take()
    assert result["changed"] is True
    manifest = json.loads(read(cloud, SETS, f"{WANTED.name}/manifest.json"))
    assert manifest == result["manifest"]
    assert manifest["rows"] == {"tracking.sql.gz": ROWS}
    assert (manifest["artifacts"]["objects"], manifest["artifacts"]["bytes"]) == (3, 9)
    listed = [
        json.loads(line)
        for line in gzip.decompress(read(cloud, SETS, f"{WANTED.name}/{backup.ARTIFACTS}")).splitlines()
    ]
    assert [one["name"] for one in listed] == ["1/a", "1/b", "2/c"]
    assert "the old value" not in json.dumps(manifest)
    assert problems(TARGET) == []
    assert take() == {"changed": False, "manifest": manifest}


@pytest.mark.usefixtures("prepared")
def test_check_mode_writes_nothing(cloud: Any) -> None:
    assert backup.complete(session(check_mode=True), WANTED, str)["changed"] is True
    assert [one["name"] for one in backup.objects(session(), SETS)] == [f"{WANTED.name}/tracking.sql.gz"]


@pytest.mark.usefixtures("prepared")
def test_a_dump_that_ends_too_early_makes_no_set(cloud: Any) -> None:
    put(cloud, SETS, f"{WANTED.name}/tracking.sql.gz", gzip.compress(DUMP)[:-9])
    with pytest.raises(CloudError, match=r"tracking.sql.gz: is damaged \(it ends too early\)"):
        take()
    assert backup.stat(session(), SETS, f"{WANTED.name}/manifest.json") is None


@pytest.mark.usefixtures("prepared")
def test_latest_is_the_newest_that_is_whole(cloud: Any) -> None:
    take()
    put(cloud, SETS, "20300102T020000Z/tracking.sql.gz", gzip.compress(DUMP))
    assert backup.manifest_of(session(), SETS, "latest")["name"] == WANTED.name
    take(name="20300102T020000Z")
    assert backup.manifest_of(session(), SETS, "latest")["name"] == "20300102T020000Z"


@pytest.mark.usefixtures("prepared")
def test_latest_may_be_the_newest_of_a_release(cloud: Any) -> None:
    take()
    put(cloud, SETS, "20300102T020000Z/tracking.sql.gz", gzip.compress(DUMP))
    take(name="20300102T020000Z", about={**ABOUT, "mlflow": {"version": "3.17.3"}})
    assert backup.manifest_of(session(), SETS, "latest", "3.17.2")["name"] == WANTED.name
    assert backup.manifest_of(session(), SETS, "latest", "3.17.3")["name"] == "20300102T020000Z"
    with pytest.raises(CloudError, match=r"has no backup set of MLflow 3\.16\.1"):
        backup.manifest_of(session(), SETS, "latest", "3.16.1")


@pytest.mark.usefixtures("prepared")
def test_every_damage_is_named(cloud: Any) -> None:
    take()
    put(cloud, SETS, f"{WANTED.name}/tracking.sql.gz", gzip.compress(b"else"))
    cloud.call("DELETE", f"{STORAGE}/{SETS}/o/{WANTED.name}%2F{backup.ARTIFACTS}")
    found = problems(TARGET)
    assert len(found) == 2
    assert f"{backup.ARTIFACTS}: is not there any more" in found[0]
    assert "tracking.sql.gz: is not the file that was written, by its size and crc32c and generation" in found[1]


@pytest.mark.usefixtures("prepared")
def test_the_same_bytes_again_are_what_was_written(cloud: Any) -> None:
    """A file whose description agrees is still read."""
    manifest = take()["manifest"]
    manifest["files"]["tracking.sql.gz"]["sha256"] = "0"
    assert "by its sha256" in backup.read_files(session(), SETS, manifest)[0][0]


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"database_version": "MYSQL_8_4"}, "the set is of POSTGRES_17 and the deployment has MYSQL_8_4"),
        ({"database_version": "POSTGRES_16"}, "newer than the deployment's POSTGRES_16"),
        ({"user": "other"}, "belongs to the database user mlflow"),
        ({"mlflow_version": "3.18.0"}, "(tracking a1 there, unknown here)"),
        (
            {"mlflow_version": "3.18.0", "schemas": {"tracking": "a2", "auth": "b1"}},
            "tracking a1 there, a2 here): give -e platform_mlflow_version=3.17.2",
        ),
        ({"occupied": True}, "give -e platform_restore_confirmed_set=20300101T020000Z"),
        ({"confirmed_set": "20291231T020000Z"}, "confirmed_set is 20291231T020000Z and the set is 20300101T020000Z"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    take()
    found = problems(dataclasses.replace(TARGET, **changes))
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.usefixtures("prepared")
def test_a_set_of_mysql_goes_into_databases_of_its_own_names_alone(cloud: Any) -> None:
    """Google imports a dump into the database that it names, and another's may have that name."""
    for one, name in (("tracking", b"team_a"), ("auth", b"team_a_auth")):
        put(cloud, SETS, f"20300101T020000Z/{one}.sql.gz", gzip.compress(MYSQL % (name, name)))
    about = {**ABOUT, "database": {"version": "MYSQL_8_4", "user": "team-a"}}
    take(dumps=["tracking.sql.gz", "auth.sql.gz"], about=about)
    target = dataclasses.replace(TARGET, database_version="MYSQL_8_4")
    refused, also = problems(dataclasses.replace(target, occupied=True))
    assert "the set would overwrite team_a, team_a_auth, and the deployment has mlflow, mlflow_auth" in refused
    assert refused.endswith("platform_sql_database: team_a, platform_sql_auth_database: team_a_auth")
    assert "the databases are not empty" in also
    own = {"tracking": "team_a", "auth": "team_a_auth"}
    assert problems(dataclasses.replace(target, databases=own)) == []
    # PostgreSQL's dumps go where they are sent.
    manifest = backup.manifest_of(session(), SETS, "latest")
    manifest["database"] = {"version": "POSTGRES_17", "user": "mlflow"}
    assert backup.misfits(manifest, TARGET, [], own) == []


OWNED = b"""CREATE TABLE public.runs (id);
ALTER TABLE public.runs OWNER TO "old@demo.iam";
ALTER TABLE public."Odd OWNER TO one" OWNER TO "old@demo.iam";
ALTER TABLE public.other OWNER TO "old@demo.iam2";
ALTER SCHEMA public OWNER TO pg_database_owner;
GRANT SELECT ON TABLE public.runs TO "old@demo.iam" WITH GRANT OPTION;
COPY public.runs (id) FROM stdin;
ALTER TABLE public.runs OWNER TO "old@demo.iam";
\\.
REVOKE ALL ON SCHEMA public FROM "old@demo.iam";
ALTER DEFAULT PRIVILEGES FOR ROLE "old@demo.iam" IN SCHEMA public GRANT ALL ON TABLES TO PUBLIC;
"""
KEPT = {1, 4, 5, 7, 8, 9}


def test_owners_and_grants_go_to_another_user_and_rows_stay() -> None:
    lines = OWNED.splitlines(keepends=True)
    wanted = [
        line if number in KEPT else line.replace(b"old@demo.iam", b"new@x.iam") for number, line in enumerate(lines, 1)
    ]
    assert list(backup.owned(lines, "old@demo.iam", "new@x.iam")) == wanted
    plain = [line.replace(b'"old@demo.iam"', b"old") for line in lines]
    assert list(backup.owned(plain, "old", "new@x.iam"))[1] == wanted[1]


def given(manifest: Any, **options: Any) -> Any:
    return backup.give(session(**options), SETS, manifest, ARTIFACTS, "new@x.iam")


@pytest.mark.usefixtures("prepared")
def test_dumps_are_given_to_another_user_once_and_the_set_stays(cloud: Any) -> None:
    for one in ("tracking", "auth"):
        put(cloud, SETS, f"20300101T020000Z/{one}.sql.gz", gzip.compress(OWNED * 5000))
    names = [f"20300101T020000Z/{one}.sql.gz" for one in ("tracking", "auth")]
    files = {
        name.split("/")[1]: {
            "generation": cloud.call("GET", f"{STORAGE}/{SETS}/o/{name.replace('/', '%2F')}")["generation"]
        }
        for name in names
    }
    manifest = {"name": "20300101T020000Z", "database": {"user": "old@demo.iam"}, "files": files}

    assert given(manifest, check_mode=True)["changed"] is True
    told = given(manifest)

    place = "20300101T020000Z-for-new@x.iam/tracking.sql.gz"
    assert told == {
        "changed": True,
        "dumps": {one: f"gs://{ARTIFACTS}/20300101T020000Z-for-new@x.iam/{one}.sql.gz" for one in ("tracking", "auth")},
    }
    lines = list(backup.owned(OWNED.splitlines(keepends=True), "old@demo.iam", "new@x.iam"))
    assert gzip.decompress(read(cloud, ARTIFACTS, place)) == b"".join(lines) * 5000
    assert gzip.decompress(read(cloud, SETS, names[0])) == OWNED * 5000
    assert given(manifest)["changed"] is False

    put(cloud, ARTIFACTS, place, gzip.compress(OWNED))
    with pytest.raises(CloudError, match="with other content"):
        given(manifest)


@pytest.mark.usefixtures("prepared")
def test_what_fits_is_not_refused(cloud: Any) -> None:
    take()
    same = {"mlflow_version": "3.18.0", "schemas": {"tracking": "a1", "auth": "b1"}}
    assert problems(dataclasses.replace(TARGET, **same)) == []
    assert problems(dataclasses.replace(TARGET, mlflow_version="", user="")) == []
    assert problems(dataclasses.replace(TARGET, occupied=True, confirmed_set=WANTED.name)) == []
    add_secret(cloud, "the old value")
    assert problems(TARGET) == []


@pytest.mark.usefixtures("prepared")
def test_another_secret_is_refused_unless_it_is_meant(cloud: Any) -> None:
    take()
    add_secret(cloud, "the new value")
    found = problems(TARGET)
    assert len(found) == 1
    assert "mlflow.flask-secret-key is another secret than in the set (version 1 of flask there, version 2" in found[0]
    assert "If it was rotated since, say that it may differ by platform_restore_changed_secrets: [mlflow." in found[0]
    assert "value" not in found[0].replace("the old value as a version", "")
    assert problems(dataclasses.replace(TARGET, changed_secrets=["mlflow.flask-secret-key"])) == []


@pytest.mark.usefixtures("prepared")
def test_what_another_key_would_lose_is_said(cloud: Any) -> None:
    passphrase = {"mlflow.crypto-kek-passphrase": "flask"}
    take(secrets=passphrase)
    add_secret(cloud, "the new value")
    (found,) = problems(dataclasses.replace(TARGET, secrets=passphrase))
    assert "the providers' keys of the AI gateway could not be read: add the old value as a version" in found
    assert problems(dataclasses.replace(TARGET, secrets=passphrase, changed_secrets=[*passphrase])) == []


@pytest.mark.usefixtures("prepared")
def test_rows_are_compared_by_table() -> None:
    take()
    rows = {"tracking.sql.gz": {**ROWS, "runs": 1, "new": 5}}
    found = backup.examine(session(), SETS, "latest", None, rows)["problems"]
    assert found == ["runs of tracking.sql.gz has 1 rows, 2 in the set"]
    assert backup.examine(session(), SETS, "latest", None, {"tracking.sql.gz": ROWS})["problems"] == []
    assert len(backup.examine(session(), SETS, "latest", None, {})["problems"]) == 3


@pytest.mark.usefixtures("prepared")
def test_after_a_migration_only_rows_that_are_gone_count() -> None:
    take()
    for moved, problems in (
        ({"runs": 3, "alembic_version": 1, "new": 5}, []),
        ({**ROWS, "runs": 1}, ["runs of tracking.sql.gz has 1 rows, 2 in the set"]),
    ):
        rows = {"tracking.sql.gz": moved}
        assert backup.examine(session(), SETS, "latest", None, rows, migrated=True)["problems"] == problems


@pytest.mark.usefixtures("prepared")
def test_artifacts_return_to_their_moment_and_newer_ones_stay(cloud: Any) -> None:
    manifest = take()["manifest"]
    cloud.call("DELETE", f"{STORAGE}/{ARTIFACTS}/o/1%2Fa")
    put(cloud, ARTIFACTS, "1/b", b"replaced")
    put(cloud, ARTIFACTS, "3/d", b"newer")
    expected = {"changed": True, "kept": 1, "copied": 2, "newer": 1, "lost": []}
    assert backup.bring_artifacts(session(check_mode=True), SETS, manifest, ARTIFACTS, "") == expected
    assert read(cloud, ARTIFACTS, "1/b") == b"replaced"
    assert backup.bring_artifacts(session(), SETS, manifest, ARTIFACTS, "") == expected
    assert [read(cloud, ARTIFACTS, name) for name in ("1/a", "1/b", "2/c", "3/d")] == [b"1/a", b"1/b", b"2/c", b"newer"]
    again = backup.bring_artifacts(session(), SETS, manifest, ARTIFACTS, "")
    assert again == {"changed": False, "kept": 3, "copied": 0, "newer": 1, "lost": []}


@pytest.mark.usefixtures("prepared")
def test_artifacts_can_go_to_another_bucket_and_place(cloud: Any) -> None:
    manifest = take(artifacts_prefix="1/")["manifest"]
    body = {"name": "demo-other", "location": "EU", "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}}}
    cloud.call("POST", f"{STORAGE}?project=demo-project", body)
    result = backup.bring_artifacts(session(), SETS, manifest, "demo-other", "new/")
    assert result == {"changed": True, "kept": 0, "copied": 2, "newer": 0, "lost": []}
    assert read(cloud, "demo-other", "new/b") == b"1/b"


@pytest.mark.usefixtures("prepared")
def test_what_is_gone_for_good_is_named(cloud: Any) -> None:
    manifest = take()["manifest"]
    described = cloud.call("GET", f"{STORAGE}/{ARTIFACTS}/o/1%2Fa")
    cloud.call("DELETE", f"{STORAGE}/{ARTIFACTS}/o/1%2Fa")
    cloud.call("DELETE", f"{STORAGE}/{ARTIFACTS}/o/1%2Fa?generation={described['generation']}")
    assert backup.bring_artifacts(session(), SETS, manifest, ARTIFACTS, "")["lost"] == ["1/a"]


@pytest.mark.usefixtures("prepared")
def test_an_answer_that_gets_lost_makes_no_second_file(cloud: Any, direct: Any) -> None:
    assert direct.post(f"{cloud.admin}/faults", json={"method": "storage.objects.insert", "no_answer": "after"}).ok
    backup.write(session(), SETS, "x", b"content")
    assert read(cloud, SETS, "x") == b"content"
    with pytest.raises(CloudError, match=r"exists already, with other content"):
        backup.write(session(), SETS, "x", b"other")
