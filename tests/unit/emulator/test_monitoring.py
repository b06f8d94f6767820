"""Notification channels, alert policies, uptime checks and dashboards."""

from typing import Any

import pytest

from tests.unit.emulator.conftest import PROJECT
from tests.unit.emulator.test_logs import METRIC, METRICS

PARENT = f"projects/{PROJECT}"
V3, V1 = "https://monitoring.googleapis.com/v3", "https://monitoring.googleapis.com/v1"
CHANNELS, POLICIES, CHECKS = (
    f"{V3}/{PARENT}/{kind}" for kind in ("notificationChannels", "alertPolicies", "uptimeCheckConfigs")
)
DASHBOARDS = f"{V1}/{PARENT}/dashboards"
CHANNEL = {"type": "email", "labels": {"email_address": "ops@example.com"}, "userLabels": {"ansible-name": "ops"}}
PROMQL: dict[str, Any] = {"query": "monitoring_googleapis_com:uptime_check_check_passed < 1", "duration": "60s"}
CONDITION = {"displayName": "Down", "conditionPrometheusQueryLanguage": PROMQL}
POLICY: dict[str, Any] = {"displayName": "Down", "combiner": "OR", "conditions": [CONDITION]}
TARGET = {"type": "uptime_url", "labels": {"project_id": PROJECT, "host": "a.example.com"}}
CHECK: dict[str, Any] = {
    "displayName": "Health",
    "monitoredResource": TARGET,
    "httpCheck": {"useSsl": True, "validateSsl": True, "path": "/health"},
    "timeout": "10s",
}
CHART = {"dataSets": [{"timeSeriesQuery": {"prometheusQuery": PROMQL["query"]}}]}
TILE: dict[str, Any] = {"width": 6, "height": 4, "widget": {"title": "Up", "xyChart": CHART}}
DASHBOARD: dict[str, Any] = {
    "name": f"{PARENT}/dashboards/mlflow",
    "displayName": "MLflow",
    "mosaicLayout": {"columns": 12, "tiles": [TILE]},
}


def promql(**changes: Any) -> dict[str, Any]:
    condition = {**CONDITION, "conditionPrometheusQueryLanguage": PROMQL | changes}
    return POLICY | {"conditions": [condition]}


def test_names_are_assigned_and_alike_are_two(cloud: Any) -> None:
    made = [cloud.call("POST", CHANNELS, CHANNEL) for _ in range(2)]
    assert made[0]["name"] != made[1]["name"]
    assert cloud.call("GET", f"{V3}/{made[0]['name']}") == made[0]
    listed = cloud.call("GET", f"{CHANNELS}?pageSize=1")
    assert len(listed["notificationChannels"]) == 1
    assert listed["nextPageToken"]


def test_a_channel_in_use_goes_only_by_force(cloud: Any) -> None:
    channel = cloud.call("POST", CHANNELS, CHANNEL)["name"]
    policy = cloud.call("POST", POLICIES, POLICY | {"notificationChannels": [channel]})["name"]
    assert cloud.refused("DELETE", f"{V3}/{channel}")["status"] == "FAILED_PRECONDITION"
    cloud.call("DELETE", f"{V3}/{channel}?force=true")
    assert cloud.call("GET", f"{V3}/{policy}")["notificationChannels"] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "pigeon"},
        {"labels": {}},
        {"labels": {"email_address": "ops"}},
        {"userLabels": {"Team": "x"}},
        {"userLabels": {"team": "X"}},
        {"name": f"{PARENT}/notificationChannels/1"},
    ],
)
def test_a_channel_that_is_wrong_is_refused(cloud: Any, changes: dict[str, Any]) -> None:
    assert cloud.refused("POST", CHANNELS, CHANNEL | changes)["code"] == 400


def test_a_patch_changes_what_its_mask_names(cloud: Any) -> None:
    made = cloud.call("POST", CHANNELS, CHANNEL)
    channel = f"{V3}/{made['name']}"
    changed = cloud.call("PATCH", f"{channel}?updateMask=displayName", {"displayName": "Ops", "enabled": False})
    assert changed == made | {"displayName": "Ops"}
    for mask in ("type", "name", "nonsense", ""):
        assert cloud.refused("PATCH", f"{channel}?updateMask={mask}", {})["code"] == 400


def test_conditions_keep_their_names(cloud: Any) -> None:
    made = cloud.call("POST", POLICIES, POLICY)
    condition = made["conditions"][0]
    assert condition["name"].startswith(f"{made['name']}/conditions/")
    url = f"{V3}/{made['name']}?updateMask=conditions"
    changed = cloud.call("PATCH", url, {"conditions": [condition | {"displayName": "Gone"}]})
    assert changed["conditions"] == [condition | {"displayName": "Gone"}]
    other = condition | {"name": f"{made['name']}/conditions/1"}
    assert "there is no" in cloud.refused("PATCH", url, {"conditions": [other]})["message"]


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (POLICY | {"conditions": []}, 400),
        (POLICY | {"combiner": "COMBINE_UNSPECIFIED"}, 400),
        (POLICY | {"conditions": [{"displayName": "x"}]}, 400),
        (POLICY | {"conditions": [CONDITION | {"name": "x"}]}, 400),
        (POLICY | {"notificationChannels": [f"{PARENT}/notificationChannels/1"]}, 404),
        (POLICY | {"documentation": {"content": "x" * 8193}}, 400),
        (POLICY | {"alertStrategy": {"autoClose": "60s"}}, 400),
        (POLICY | {"alertStrategy": {"notificationRateLimit": {"period": "3600s"}}}, 400),
        (POLICY | {"conditions": [{"displayName": "x", "conditionMatchedLog": {"filter": "severity>=ERROR"}}]}, 400),
        (POLICY | {"conditions": [{"displayName": "x", "conditionAbsent": {}}]}, 501),
        (promql(query=""), 400),
        (promql(query="sum(a_googleapis_com:b"), 400),
        (promql(evaluationInterval="45s"), 400),
        (promql(query="logging_googleapis_com:user_nginx_errors > 1"), 404),
        (promql(query="monitoring_googleapis_com:uptime_check_nonsense > 1"), 404),
    ],
)
def test_a_policy_that_is_wrong_is_refused(cloud: Any, policy: dict[str, Any], code: int) -> None:
    assert cloud.refused("POST", POLICIES, policy)["code"] == code


def test_a_policy_reads_metrics_that_there_are_unless_it_says_otherwise(cloud: Any) -> None:
    query = "logging_googleapis_com:user_nginx_errors > 1"
    cloud.call("POST", POLICIES, promql(query=query, disableMetricValidation=True))
    cloud.call("POST", METRICS, METRIC)
    cloud.call("POST", POLICIES, promql(query=query))


def test_an_uptime_check_in_use_stays(cloud: Any) -> None:
    made = cloud.call("POST", CHECKS, CHECK)
    assert (made["httpCheck"]["port"], made["period"]) == (443, "60s")
    identity = made["name"].rpartition("/")[2]
    assert identity.startswith("health-")
    query = f'monitoring_googleapis_com:uptime_check_check_passed{{check_id="{identity}"}} < 1'
    policy = cloud.call("POST", POLICIES, promql(query=query))
    assert cloud.refused("DELETE", f"{V3}/{made['name']}")["status"] == "FAILED_PRECONDITION"
    cloud.call("DELETE", f"{V3}/{policy['name']}")
    cloud.call("DELETE", f"{V3}/{made['name']}")
    assert cloud.call("GET", CHECKS) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"displayName": ""},
        {"monitoredResource": {"type": "uptime_url", "labels": {"project_id": "other", "host": "a"}}},
        {"monitoredResource": {"type": "uptime_url", "labels": {"project_id": PROJECT}}},
        {"tcpCheck": {"port": 80}},
        {"period": "30s"},
        {"timeout": "90s"},
        {"timeout": "1m"},
        {"httpCheck": {"validateSsl": True}},
    ],
)
def test_an_uptime_check_that_is_wrong_is_refused(cloud: Any, changes: dict[str, Any]) -> None:
    assert cloud.refused("POST", CHECKS, CHECK | changes)["code"] == 400


def test_what_an_uptime_check_watches_is_fixed(cloud: Any) -> None:
    made = cloud.call("POST", CHECKS, CHECK)
    assert cloud.refused("PATCH", f"{V3}/{made['name']}?updateMask=monitoredResource", CHECK)["code"] == 400


def test_a_dashboard_is_replaced_whole_under_its_etag(cloud: Any) -> None:
    made = cloud.call("POST", DASHBOARDS, DASHBOARD)
    assert made["name"] == "projects/100000000001/dashboards/mlflow"
    assert cloud.refused("POST", DASHBOARDS, DASHBOARD)["code"] == 409
    changed = cloud.call("PATCH", f"{DASHBOARDS}/mlflow", made | {"displayName": "Other"})
    assert changed["etag"] != made["etag"]
    assert cloud.refused("PATCH", f"{DASHBOARDS}/mlflow", made)["status"] == "ABORTED"
    assert cloud.call("GET", DASHBOARDS)["dashboards"] == [changed]
    cloud.call("DELETE", f"{V1}/{made['name']}")
    assert cloud.refused("GET", f"{DASHBOARDS}/mlflow")["code"] == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"displayName": ""},
        {"name": f"{PARENT}/dashboards/a b"},
        {"etag": "x"},
        {"gridLayout": {}},
        {"mosaicLayout": {"columns": 49}},
        {"mosaicLayout": {"columns": 12, "tiles": [TILE | {"xPos": 7}]}},
        {"mosaicLayout": {"columns": 12, "tiles": [TILE, TILE | {"xPos": 5}]}},
        {"gridLayout": {"widgets": [{"xyChart": {"dataSets": [{"timeSeriesQuery": {}}]}}]}, "mosaicLayout": None},
        {
            "gridLayout": {"widgets": [{"scorecard": {"timeSeriesQuery": {"prometheusQuery": "up{"}}}]},
            "mosaicLayout": None,
        },
    ],
)
def test_a_dashboard_that_is_wrong_is_refused(cloud: Any, changes: dict[str, Any]) -> None:
    assert cloud.refused("POST", DASHBOARDS, DASHBOARD | changes)["code"] == 400


def test_it_takes_a_permission(cloud: Any, server_account: Any) -> None:
    for url, body in ((CHANNELS, CHANNEL), (POLICIES, POLICY), (CHECKS, CHECK), (DASHBOARDS, DASHBOARD)):
        assert cloud.refused("POST", url, body, server_account)["code"] == 403
