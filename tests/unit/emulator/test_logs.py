"""Sinks and log-based metrics."""

from typing import Any

import pytest

from tests.unit.emulator.conftest import PROJECT

LOGGING = f"https://logging.googleapis.com/v2/projects/{PROJECT}"
SINKS, METRICS = f"{LOGGING}/sinks", f"{LOGGING}/metrics"
SINK = {"name": "audit", "destination": "storage.googleapis.com/logs-1", "filter": 'logName:"cloudaudit"'}
METRIC = {"name": "nginx-errors", "filter": "jsonPayload.status>=500"}


@pytest.fixture
def bucket(cloud: Any) -> None:
    cloud.call("POST", f"https://storage.googleapis.com/storage/v1/b?project={PROJECT}", {"name": "logs-1"})


@pytest.mark.usefixtures("bucket")
def test_a_sink_has_a_writer_that_can_be_granted_something(cloud: Any) -> None:
    made = cloud.call("POST", f"{SINKS}?uniqueWriterIdentity=true", SINK)
    assert made["writerIdentity"] == "serviceAccount:service-100000000001@gcp-sa-logging.iam.gserviceaccount.com"
    policy = cloud.call("GET", "https://storage.googleapis.com/storage/v1/b/logs-1/iam")
    policy["bindings"].append({"role": "roles/storage.objectCreator", "members": [made["writerIdentity"]]})
    cloud.call("PUT", "https://storage.googleapis.com/storage/v1/b/logs-1/iam", policy)
    assert cloud.call("GET", f"{SINKS}/audit") == made
    assert cloud.call("GET", SINKS)["sinks"] == [made]
    cloud.call("DELETE", f"{SINKS}/audit")
    assert cloud.refused("GET", f"{SINKS}/audit")["code"] == 404


@pytest.mark.usefixtures("bucket")
def test_a_sink_changes_what_its_mask_names_and_keeps_its_writer(cloud: Any) -> None:
    made = cloud.call("POST", f"{SINKS}?uniqueWriterIdentity=true", SINK)
    own = f"{SINKS}/audit?uniqueWriterIdentity=true&updateMask"
    changed = cloud.call("PATCH", f"{own}=filter", {"filter": "severity>=ERROR", "description": "no"})
    assert changed == made | {"filter": "severity>=ERROR", "updateTime": changed["updateTime"]}
    assert "writer of its own" in cloud.refused("PATCH", f"{SINKS}/audit?updateMask=filter", {})["message"]
    assert "updateMask" in cloud.refused("PATCH", f"{own}=writerIdentity", {})["message"]
    gone = {"destination": "storage.googleapis.com/logs-2"}
    assert cloud.refused("PATCH", f"{own}=destination", gone)["code"] == 404


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "-audit"}, 400),
        ({"destination": "storage.googleapis.com/logs-2"}, 404),
        ({"destination": "bigquery.googleapis.com/projects/demo-project/datasets/logs"}, 404),
        ({"destination": "logs-1"}, 400),
        ({"filter": "logname="}, 400),
        ({"bigqueryOptions": {"usePartitionedTables": True}}, 400),
        ({"exclusions": [{"name": "x", "filter": "(("}]}, 400),
        ({"writerIdentity": "user:a@b.c"}, 400),
    ],
)
def test_a_sink_that_is_wrong_is_refused(cloud: Any, changes: dict[str, Any], code: int) -> None:
    assert cloud.refused("POST", SINKS, SINK | changes)["code"] == code
    assert cloud.call("GET", SINKS) == {}


def test_a_metric_is_replaced_whole(cloud: Any) -> None:
    made = cloud.call("POST", METRICS, METRIC | {"description": "errors"})
    assert made["metricDescriptor"]["type"] == "logging.googleapis.com/user/nginx-errors"
    assert cloud.refused("POST", METRICS, METRIC)["code"] == 409
    metric = f"{METRICS}/nginx-errors"
    assert "description" not in cloud.call("PUT", metric, METRIC)
    assert cloud.call("GET", metric)["createTime"] == made["createTime"]
    other = {"metricDescriptor": {"metricKind": "DELTA", "valueType": "DISTRIBUTION"}, "valueExtractor": "EXTRACT(x)"}
    assert "cannot be changed" in cloud.refused("PUT", metric, METRIC | other)["message"]
    cloud.call("DELETE", metric)
    assert cloud.refused("PUT", metric, METRIC)["code"] == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "/errors"},
        {"filter": ""},
        {"filter": "status>=500"},
        {"metricDescriptor": {"metricKind": "GAUGE", "valueType": "INT64"}},
        {"metricDescriptor": {"valueType": "DISTRIBUTION"}},
        {"valueExtractor": "EXTRACT(jsonPayload.seconds)"},
        {"labelExtractors": {"method": "EXTRACT(jsonPayload.method)"}},
    ],
)
def test_a_metric_that_is_wrong_is_refused(cloud: Any, changes: dict[str, Any]) -> None:
    assert cloud.refused("POST", METRICS, METRIC | changes)["code"] == 400


@pytest.mark.usefixtures("bucket")
def test_it_takes_a_permission(cloud: Any, server_account: Any) -> None:
    for url, body in ((SINKS, SINK), (METRICS, METRIC)):
        assert cloud.refused("POST", url, body, server_account)["code"] == 403


def test_entries_are_written_to_the_logs_of_one_project(cloud: Any) -> None:
    body: dict[str, Any] = {"entries": [{"logName": f"projects/{PROJECT}/logs/a", "textPayload": "b"}]}
    assert cloud.call("POST", "https://logging.googleapis.com/v2/entries:write", body) == {}
    body["entries"].append({"logName": "projects/other/logs/a"})
    assert cloud.refused("POST", "https://logging.googleapis.com/v2/entries:write", body)["code"] == 400
