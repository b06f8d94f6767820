"""What holds for every service: snapshots, faults, the log, and answers that fit Google's schemas."""

import json
import pathlib
import shutil
from typing import Any

import pytest
import requests
from google.auth.transport.requests import Request

from tests.unit.emulator.conftest import serving
from tests.unit.emulator.test_compute import BASE, insert
from tests.unit.emulator.test_storage import content, new_bucket, upload

NETWORKS = f"{BASE}/global/networks"


def test_a_restart_keeps_the_cloud(
    fresh_state: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(fresh_state, tmp_path / "state")
    body = {"name": "mlflow", "autoCreateSubnetworks": False}
    with serving(tmp_path, monkeypatch) as cloud:
        cloud.server.cloud.state.services["demo-project"].append("compute.googleapis.com")
        network = insert(cloud, NETWORKS, body)
        cloud.call("POST", "https://storage.googleapis.com/storage/v1/b?project=demo-project", new_bucket())
        upload(cloud, "model", b"bytes").raise_for_status()
        token = cloud.operator.credentials.token
    assert (tmp_path / "state" / "state.json").stat().st_mode & 0o077 == 0
    with serving(tmp_path, monkeypatch) as cloud:
        assert cloud.call("GET", network["selfLink"]) == network
        assert content(cloud, "model") == b"bytes"
        assert requests.get(NETWORKS, headers={"Authorization": f"Bearer {token}"}, timeout=5).ok


def test_an_operation_cut_short_by_a_crash_has_failed(
    fresh_state: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(fresh_state, tmp_path / "state")
    file = tmp_path / "state" / "state.json"
    tables = json.loads(file.read_text())
    key = "compute/projects/demo-project/global/networks/half"
    tables["services"]["demo-project"].append("compute.googleapis.com")
    tables["resources"][key] = {"name": "half", "selfLink": f"{NETWORKS}/half"}
    body = {"kind": "compute#operation", "name": "o", "status": "RUNNING"}
    record = {"style": "compute", "body": body, "done": False, "creates": [key], "target": key}
    tables["operations"]["compute/projects/demo-project/global/operations/o"] = record
    file.write_text(json.dumps(tables))
    with serving(tmp_path, monkeypatch) as cloud:
        assert "restarted" in cloud.call("GET", f"{BASE}/global/operations/o")["error"]["errors"][0]["message"]
        assert cloud.refused("GET", f"{NETWORKS}/half")["code"] == 404


@pytest.mark.parametrize(("status", "word"), [(429, "RESOURCE_EXHAUSTED"), (503, "UNAVAILABLE")])
def test_a_fault_lasts_as_often_as_asked(cloud: Any, direct: Any, status: int, word: str) -> None:
    faults = f"{cloud.admin}/faults"
    assert direct.post(faults, json=[{"method": "compute.*.list", "status": status, "times": 3}]).ok
    cloud.operator.credentials.refresh(Request())
    # Without google-auth's own retries.
    headers = {"Authorization": f"Bearer {cloud.operator.credentials.token}"}
    answers = [requests.get(NETWORKS, headers=headers, timeout=5) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [status] * 3 + [200]
    assert answers[0].json()["error"]["status"] == word
    assert direct.get(faults).json() == []
    assert direct.post(faults, json=[{"method": "x", "colour": "red"}]).status_code == 400


def test_an_answer_can_be_missing_before_and_after_the_deed(cloud: Any, direct: Any) -> None:
    for number, when in enumerate(("before", "after")):
        fault = {"method": "compute.networks.insert", "no_answer": when}
        assert direct.post(f"{cloud.admin}/faults", json=fault).ok
        body = {"name": f"net-{number}", "autoCreateSubnetworks": False}
        with pytest.raises(requests.ConnectionError):
            cloud.operator.request("POST", NETWORKS, json=body)
    assert [network["name"] for network in cloud.call("GET", NETWORKS)["items"]] == ["net-1"]


def test_an_operation_hangs_until_the_faults_are_deleted(cloud: Any, direct: Any) -> None:
    fault = {"method": "compute.networks.insert", "operation_hangs": True}
    assert direct.post(f"{cloud.admin}/faults", json=fault).ok
    operation = cloud.call("POST", NETWORKS, {"name": "mlflow", "autoCreateSubnetworks": False})
    # A wait does not last for ever.
    assert cloud.call("POST", f"{operation['selfLink']}/wait")["status"] == "RUNNING"
    assert direct.delete(f"{cloud.admin}/faults").ok
    assert "error" not in cloud.done(operation)


def test_an_operation_whose_fault_is_deleted_before_it_has_begun_does_not_hang(
    cloud: Any, direct: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = cloud.server.cloud.operations
    begin = operations.start

    def begin_late(*arguments: Any, **options: Any) -> Any:
        cloud.server.clear_faults()
        return begin(*arguments, **options)

    monkeypatch.setattr(operations, "start", begin_late)
    fault = {"method": "compute.networks.insert", "operation_hangs": True}
    assert direct.post(f"{cloud.admin}/faults", json=fault).ok
    operation = cloud.call("POST", NETWORKS, {"name": "mlflow", "autoCreateSubnetworks": False})
    assert cloud.call("POST", f"{operation['selfLink']}/wait")["status"] == "DONE"


def test_what_was_made_may_be_seen_late(cloud: Any, direct: Any) -> None:
    fault = {"method": "compute.networks.get", "after": "compute.networks.insert", "status": 404, "times": 2}
    assert direct.post(f"{cloud.admin}/faults", json=fault).ok
    assert cloud.refused("GET", f"{NETWORKS}/mlflow")["message"].endswith("was not found")
    cloud.done(cloud.call("POST", NETWORKS, {"name": "mlflow", "autoCreateSubnetworks": False}))
    answers = [cloud.operator.request("GET", f"{NETWORKS}/mlflow").status_code for _ in range(3)]
    assert answers == [404, 404, 200]


def test_every_call_is_logged_once(cloud: Any, direct: Any) -> None:
    before = direct.get(f"{cloud.admin}/health").json()["calls"]
    cloud.refused("POST", NETWORKS, {"name": "N"})
    cloud.call("GET", f"{NETWORKS}?maxResults=5")
    # google-auth looks a credential's allowed locations up beside the call, whenever it likes: only Compute's are ours.
    answered = direct.get(f"{cloud.admin}/log?since={before}").text.splitlines()
    written = (cloud.state / "calls.jsonl").read_text().splitlines()[before:]
    calls, logged = (
        [item for item in map(json.loads, lines) if item["host"] == "compute.googleapis.com"]
        for lines in (answered, written)
    )
    assert calls == logged
    assert [(item["method"], item["status"]) for item in calls] == [
        ("compute.networks.insert", 400),
        ("compute.networks.list", 200),
    ]
    assert calls[-1]["principal"] == "operator@demo-project.iam.gserviceaccount.com"
    assert calls[-1]["path"] == "/compute/v1/projects/demo-project/global/networks"


def test_an_answer_outside_googles_schema_is_the_emulators_fault(cloud: Any) -> None:
    insert(cloud, NETWORKS, {"name": "mlflow", "autoCreateSubnetworks": False})
    cloud.server.cloud.state.resources["compute/projects/demo-project/global/networks/mlflow"]["colour"] = "red"
    assert "does not fit compute.networks.get" in cloud.refused("GET", f"{NETWORKS}/mlflow")["message"]


def test_the_state_shown_has_no_keys(cloud: Any, direct: Any) -> None:
    shown = direct.get(f"{cloud.admin}/state").json()
    assert "demo-project" in shown["projects"]
    assert cloud.server.cloud.state.signing_key not in json.dumps(shown)
    assert direct.get(cloud.admin.removesuffix("_emulator")).status_code == 404


def test_telemetry_takes_the_writers_role(cloud: Any, server_account: Any) -> None:
    url = "https://logging.googleapis.com/v2/entries:write"
    entry = {
        "logName": "projects/demo-project/logs/nginx",
        "textPayload": "hello",
        "resource": {"type": "gce_instance"},
    }
    assert cloud.refused("POST", url, {"entries": [entry]}, server_account)["code"] == 403
    assert cloud.call("POST", url, {"entries": [entry]}) == {}
    assert cloud.refused("POST", url, {"entries": [entry | {"colour": "red"}]})["code"] == 400
