import base64
import hashlib
from typing import Any

import pytest

from emulator.media import parse_multipart
from tests.unit.emulator.test_compute import ACCOUNT

ROOT = "https://storage.googleapis.com"
BUCKET = f"{ROOT}/storage/v1/b/demo-artifacts"
UPLOAD = f"{ROOT}/upload/storage/v1/b/demo-artifacts/o"
ARCHIVING = {"action": {"type": "SetStorageClass", "storageClass": "ARCHIVE"}, "condition": {"age": 30}}


def new_bucket(**settings: Any) -> dict[str, Any]:
    access = {"uniformBucketLevelAccess": {"enabled": True}, "publicAccessPrevention": "enforced"}
    return {"name": "demo-artifacts", "location": "us-central1", "iamConfiguration": access} | settings


@pytest.fixture
def bucket(cloud: Any) -> dict[str, Any]:
    made: dict[str, Any] = cloud.call("POST", f"{ROOT}/storage/v1/b?project=demo-project", new_bucket())
    return made


def upload(cloud: Any, name: str, content: bytes, query: str = "", session: Any = None) -> Any:
    url = f"{UPLOAD}?uploadType=media&name={name}{query}"
    return (session or cloud.operator).post(url, data=content, headers={"Content-Type": "text/plain"})


def content(cloud: Any, name: str) -> bytes:
    found: bytes = cloud.operator.get(f"{ROOT}/download/storage/v1/b/demo-artifacts/o/{name}?alt=media").content
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "Capital"},
        {"name": "my-google-bucket"},
        {"location": "atlantis"},
        {"storageClass": "WARM"},
        {"softDeletePolicy": {"retentionDurationSeconds": "60"}},
        {"lifecycle": {"rule": [{"action": {"type": "Shred"}, "condition": {"age": 1}}]}},
        {"lifecycle": {"rule": [{"action": {"type": "Delete"}, "condition": {}}]}},
        {"lifecycle": {"rule": [{"action": {"type": "SetStorageClass"}, "condition": {"age": 1}}]}},
        {"lifecycle": {"rule": [{"action": {"type": "Delete"}, "condition": {"ageDays": 1}}]}},
        {"versioning": True},
        {"encryption": {"defaultKmsKeyName": "my-key"}},
        {"retentionPolicy": {"retentionPeriod": "0"}},
        {"retentionPolicy": {"retentionPeriod": "86400"}, "versioning": {"enabled": True}},
        {"autoclass": {"enabled": True}, "storageClass": "NEARLINE"},
        {"autoclass": {"enabled": True, "terminalStorageClass": "COLDLINE"}},
        {"autoclass": {"terminalStorageClass": "ARCHIVE"}},
        {"autoclass": {"enabled": True}, "lifecycle": {"rule": [ARCHIVING]}},
        {
            "autoclass": {"enabled": True},
            "lifecycle": {"rule": [{"action": {"type": "Delete"}, "condition": {"matchesStorageClass": ["STANDARD"]}}]},
        },
    ],
)
def test_bucket_settings_that_google_refuses_are_refused(cloud: Any, settings: dict[str, Any]) -> None:
    assert cloud.refused("POST", f"{ROOT}/storage/v1/b?project=demo-project", new_bucket(**settings))["code"] == 400


def test_a_bucket_merges_patches_and_counts_them(cloud: Any, bucket: dict[str, Any]) -> None:
    assert (bucket["location"], bucket["storageClass"], bucket["metageneration"]) == ("US-CENTRAL1", "STANDARD", "1")
    changed = cloud.call("PATCH", BUCKET, {"versioning": {"enabled": True}, "labels": {"a": "b"}})
    assert changed["metageneration"] == "2"
    assert changed["iamConfiguration"]["publicAccessPrevention"] == "enforced"
    assert "labels" not in cloud.call("PATCH", BUCKET, {"labels": {"a": None}})
    assert cloud.refused("PATCH", f"{BUCKET}?ifMetagenerationMatch=1", {})["code"] == 412
    assert cloud.refused("PATCH", BUCKET, {"location": "EU"})["code"] == 400


def test_autoclass_has_googles_defaults_and_comes_and_goes(cloud: Any, bucket: dict[str, Any]) -> None:
    assert "autoclass" not in bucket
    made = cloud.call("PATCH", BUCKET, {"autoclass": {"enabled": True}})["autoclass"]
    assert (made["enabled"], made["terminalStorageClass"]) == (True, "NEARLINE")
    assert cloud.refused("PATCH", BUCKET, {"lifecycle": {"rule": [ARCHIVING]}})["code"] == 400
    assert "autoclass" not in cloud.call("PATCH", BUCKET, {"autoclass": {"enabled": False}})
    cloud.call("PATCH", BUCKET, {"lifecycle": {"rule": [ARCHIVING]}})


@pytest.mark.usefixtures("bucket")
def test_a_retention_policy_holds_objects_and_can_go_while_it_is_not_locked(cloud: Any) -> None:
    held = cloud.call("PATCH", BUCKET, {"retentionPolicy": {"retentionPeriod": "86400"}})["retentionPolicy"]
    assert held["retentionPeriod"] == "86400"
    assert "isLocked" not in held
    assert upload(cloud, "model.pkl", b"1").status_code == 200
    refused = upload(cloud, "model.pkl", b"2")
    assert (refused.status_code, "retention policy" in refused.json()["error"]["message"]) == (403, True)
    assert cloud.refused("DELETE", f"{BUCKET}/o/model.pkl")["errors"][0]["reason"] == "retentionPolicyNotMet"
    assert "retentionPolicy" not in cloud.call("PATCH", BUCKET, {"retentionPolicy": None})
    assert cloud.operator.delete(f"{BUCKET}/o/model.pkl").status_code == 204


@pytest.mark.usefixtures("bucket")
def test_a_locked_retention_policy_only_grows(cloud: Any) -> None:
    lock = f"{BUCKET}/lockRetentionPolicy?ifMetagenerationMatch="
    assert "no retention policy" in cloud.refused("POST", f"{lock}1")["message"]
    made = cloud.call("PATCH", BUCKET, {"retentionPolicy": {"retentionPeriod": "86400"}})
    assert cloud.refused("POST", f"{lock}1")["code"] == 412
    assert cloud.call("POST", f"{lock}{made['metageneration']}")["retentionPolicy"]["isLocked"] is True
    for policy in (None, {"retentionPeriod": "3600"}):
        assert "locked" in cloud.refused("PATCH", BUCKET, {"retentionPolicy": policy})["message"]
    grown = cloud.call("PATCH", BUCKET, {"retentionPolicy": {"retentionPeriod": "172800"}})["retentionPolicy"]
    assert (grown["retentionPeriod"], grown["isLocked"]) == ("172800", True)


@pytest.mark.usefixtures("bucket")
def test_objects_come_back_whole_and_in_ranges(cloud: Any) -> None:
    stored = upload(cloud, "runs%2F1%2Fmodel.bin", b"0123456789").json()
    assert stored["name"] == "runs/1/model.bin"
    assert stored["md5Hash"] == base64.b64encode(hashlib.md5(b"0123456789").digest()).decode()
    url = f"{BUCKET}/o/runs%2F1%2Fmodel.bin?alt=media"
    answer = cloud.operator.get(url, headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (206, b"234")
    assert cloud.operator.get(url).headers["X-Goog-Generation"] == stored["generation"]
    assert cloud.refused("GET", f"{BUCKET}/o/absent")["code"] == 404


@pytest.mark.usefixtures("bucket")
def test_a_resumable_upload_survives_a_lost_connection(cloud: Any) -> None:
    metadata = {"name": "model.bin", "contentType": "application/x-model", "metadata": {"run": "1"}}
    begun = cloud.operator.post(f"{UPLOAD}?uploadType=resumable", json=metadata)
    session = begun.headers["Location"]
    first = cloud.operator.put(session, data=b"a" * 100, headers={"Content-Range": "bytes 0-99/150"})
    assert (first.status_code, first.headers["Range"]) == (308, "bytes=0-99")
    held = cloud.operator.put(session, headers={"Content-Range": "bytes */150"})
    assert (held.status_code, held.headers["Range"]) == (308, "bytes=0-99")
    ahead = cloud.operator.put(session, data=b"c", headers={"Content-Range": "bytes 120-120/150"})
    assert ahead.status_code == 503
    assert cloud.refused("GET", f"{BUCKET}/o/model.bin")["code"] == 404
    last = cloud.operator.put(session, data=b"b" * 50, headers={"Content-Range": "bytes 100-149/150"}).json()
    assert (last["size"], last["contentType"], last["metadata"]) == ("150", "application/x-model", {"run": "1"})
    assert content(cloud, "model.bin") == b"a" * 100 + b"b" * 50


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
def test_a_multipart_upload_keeps_bytes_that_look_like_structure(cloud: Any, newline: bytes) -> None:
    data = b"\r\n\r\n--x\n\n--sep" + bytes(range(256))
    parts = [b"--b0und", b"Content-Type: application/json", b"", b'{"name": "m"}', b"--b0und"]
    parts += [b"Content-Type: application/x-model", b"", data, b"--b0und--", b""]
    headers = {"Content-Type": 'multipart/related; boundary="b0und"'}
    answer = cloud.operator.post(f"{UPLOAD}?uploadType=multipart", data=newline.join(parts), headers=headers)
    assert answer.json()["contentType"] == "application/x-model"
    assert content(cloud, "m") == data


def test_a_multipart_body_without_an_end_is_refused() -> None:
    with pytest.raises(Exception, match="Malformed multipart"):
        parse_multipart(b"--b\r\n\r\n{}\r\n--b\r\n\r\nhalf", "multipart/related; boundary=b")


@pytest.mark.usefixtures("bucket")
def test_a_wrong_checksum_or_unknown_field_stores_nothing(cloud: Any) -> None:
    for metadata in ({"name": "m", "md5Hash": "AAAA"}, {"name": "m", "colour": "red"}):
        session = cloud.operator.post(f"{UPLOAD}?uploadType=resumable", json=metadata).headers["Location"]
        assert cloud.operator.put(session, data=b"bytes").status_code == 400
    assert "items" not in cloud.call("GET", f"{BUCKET}/o")


@pytest.mark.usefixtures("bucket")
def test_generations_guard_writes_and_keep_history(cloud: Any) -> None:
    first = upload(cloud, "m", b"1", "&ifGenerationMatch=0").json()
    assert upload(cloud, "m", b"2", "&ifGenerationMatch=0").status_code == 412
    cloud.call("PATCH", BUCKET, {"versioning": {"enabled": True}})
    upload(cloud, "m", b"2", f"&ifGenerationMatch={first['generation']}").raise_for_status()
    assert cloud.operator.delete(f"{BUCKET}/o/m").status_code == 204
    assert cloud.refused("GET", f"{BUCKET}/o/m")["code"] == 404
    versions = cloud.call("GET", f"{BUCKET}/o?versions=true")["items"]
    assert [item["size"] for item in versions] == ["1", "1"]
    assert cloud.operator.get(f"{BUCKET}/o/m?alt=media&generation={first['generation']}").content == b"1"
    assert "not empty" in cloud.refused("DELETE", BUCKET)["message"]
    for version in versions:
        cloud.call("DELETE", f"{BUCKET}/o/m?generation={version['generation']}")
    cloud.call("DELETE", BUCKET)
    assert not list((cloud.state / "objects").iterdir())


@pytest.mark.usefixtures("bucket")
def test_lists_have_prefixes_and_pages(cloud: Any) -> None:
    for name in ("a%2F1", "a%2F2", "b%2F1", "c"):
        upload(cloud, name, b"x").raise_for_status()
    listed = cloud.call("GET", f"{BUCKET}/o?delimiter=/")
    assert ([item["name"] for item in listed["items"]], listed["prefixes"]) == (["c"], ["a/", "b/"])
    names, token = [], ""
    while True:
        page = cloud.call("GET", f"{BUCKET}/o?maxResults=3&pageToken={token}")
        names += [item["name"] for item in page["items"]]
        token = page.get("nextPageToken", "")
        if not token:
            break
    assert names == ["a/1", "a/2", "b/1", "c"]


@pytest.mark.usefixtures("bucket")
def test_copies_and_compositions_have_their_sources_bytes(cloud: Any) -> None:
    upload(cloud, "one", b"1").raise_for_status()
    upload(cloud, "two", b"2").raise_for_status()
    cloud.call("POST", f"{BUCKET}/o/both/compose", {"sourceObjects": [{"name": "one"}, {"name": "two"}]})
    assert content(cloud, "both") == b"12"
    cloud.call("POST", f"{BUCKET}/o/both/rewriteTo/b/demo-artifacts/o/copy")
    assert content(cloud, "copy") == b"12"


@pytest.mark.usefixtures("bucket")
def test_only_the_buckets_policy_opens_it(cloud: Any, server_account: Any) -> None:
    assert upload(cloud, "m", b"1", session=server_account).status_code == 403
    policy = cloud.call("GET", f"{BUCKET}/iam?optionsRequestedPolicyVersion=3")
    member = f"serviceAccount:{ACCOUNT}"
    policy["bindings"].append({"role": "roles/storage.objectUser", "members": [member]})
    cloud.call("PUT", f"{BUCKET}/iam", policy)
    assert cloud.refused("PUT", f"{BUCKET}/iam", policy)["code"] == 412
    assert upload(cloud, "m", b"1", session=server_account).ok
    assert cloud.refused("GET", BUCKET, session=server_account)["code"] == 403
    policy = cloud.call("GET", f"{BUCKET}/iam")
    policy["bindings"].append({"role": "roles/storage.objectViewer", "members": ["allUsers"]})
    assert "public access prevention" in cloud.refused("PUT", f"{BUCKET}/iam", policy)["message"]


def test_the_proxys_bucket_is_public(cloud: Any) -> None:
    path = "cloud-sql-connectors/cloud-sql-proxy/v2.25.2/cloud-sql-proxy.linux"
    assert cloud.operator.get(f"{ROOT}/{path}.amd64").content.startswith(b"#!")
    assert cloud.operator.get(f"{ROOT}/{path}.sparc").status_code == 404
