import base64
from typing import Any

import google_crc32c
import pytest

from tests.unit.emulator.test_compute import ACCOUNT

SECRETS = "https://secretmanager.googleapis.com/v1/projects/demo-project/secrets"
SECRET = f"{SECRETS}/admin-password"


def payload(text: bytes) -> dict[str, Any]:
    return {"payload": {"data": base64.b64encode(text).decode()}}


@pytest.fixture
def secret(cloud: Any) -> dict[str, Any]:
    made: dict[str, Any] = cloud.call("POST", f"{SECRETS}?secretId=admin-password", {"replication": {"automatic": {}}})
    return made


def test_names_have_the_projects_number(cloud: Any, secret: dict[str, Any]) -> None:
    assert secret["name"] == "projects/100000000001/secrets/admin-password"
    assert cloud.call("GET", f"https://secretmanager.googleapis.com/v1/{secret['name']}") == secret
    assert (
        cloud.refused("POST", f"{SECRETS}?secretId=admin-password", {"replication": {"automatic": {}}})["code"] == 409
    )
    assert cloud.refused("POST", f"{SECRETS}?secretId=other", {})["code"] == 400


@pytest.mark.usefixtures("secret")
def test_versions_are_added_switched_and_destroyed(cloud: Any) -> None:
    assert cloud.refused("GET", f"{SECRET}/versions/latest:access")["code"] == 404
    for text in (b"first", b"second"):
        cloud.call("POST", f"{SECRET}:addVersion", payload(text))
    latest = cloud.call("GET", f"{SECRET}/versions/latest:access")
    assert base64.b64decode(latest["payload"]["data"]) == b"second"
    assert latest["payload"]["dataCrc32c"] == str(google_crc32c.value(b"second"))
    cloud.call("POST", f"{SECRET}/versions/2:disable", {})
    assert cloud.refused("GET", f"{SECRET}/versions/2:access")["status"] == "FAILED_PRECONDITION"
    enabled = cloud.call("GET", f"{SECRET}/versions?filter=state:ENABLED")["versions"]
    assert [item["name"].rpartition("/")[2] for item in enabled] == ["1"]
    assert cloud.call("POST", f"{SECRET}/versions/1:destroy", {})["state"] == "DESTROYED"
    assert "first" not in str(cloud.server.cloud.state.resources)
    assert "_data" not in str(cloud.call("GET", f"{SECRET}/versions"))


@pytest.mark.usefixtures("secret")
def test_a_payload_is_checked(cloud: Any) -> None:
    assert cloud.refused("POST", f"{SECRET}:addVersion", {"payload": {"data": "no base64!"}})["code"] == 400
    damaged = payload(b"text")
    damaged["payload"]["dataCrc32c"] = "1"
    assert "checksum" in cloud.refused("POST", f"{SECRET}:addVersion", damaged)["message"]


def test_the_secrets_own_policy_opens_it_and_no_other(cloud: Any, secret: dict[str, Any], server_account: Any) -> None:
    del secret
    cloud.call("POST", f"{SECRETS}?secretId=other", {"replication": {"automatic": {}}})
    for name in ("admin-password", "other"):
        cloud.call("POST", f"{SECRETS}/{name}:addVersion", payload(b"text"))
    policy = cloud.call("GET", f"{SECRET}:getIamPolicy?options.requestedPolicyVersion=3")
    binding = {"role": "roles/secretmanager.secretAccessor", "members": [f"serviceAccount:{ACCOUNT}"]}
    cloud.call("POST", f"{SECRET}:setIamPolicy", {"policy": policy | {"bindings": [binding]}})
    cloud.call("GET", f"{SECRET}/versions/latest:access", session=server_account)
    assert cloud.refused("GET", f"{SECRETS}/other/versions/latest:access", session=server_account)["code"] == 403
    assert cloud.refused("POST", f"{SECRET}:addVersion", payload(b"x"), server_account)["code"] == 403


def test_a_patch_changes_what_its_mask_names(cloud: Any, secret: dict[str, Any]) -> None:
    changed = cloud.call("PATCH", f"{SECRET}?updateMask=labels", {"labels": {"a": "b"}, "annotations": {"c": "d"}})
    assert changed["labels"] == {"a": "b"}
    assert "annotations" not in changed
    assert cloud.refused("PATCH", f"{SECRET}?updateMask=replication", {})["code"] == 400
    stale = {"labels": {}, "etag": secret["etag"]}
    assert cloud.refused("PATCH", f"{SECRET}?updateMask=labels", stale)["status"] == "FAILED_PRECONDITION"
