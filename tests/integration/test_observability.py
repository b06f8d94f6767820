"""What watches the deployment: made once, mended when it drifts, and never taken for somebody else's."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

PROJECT = "projects/demo-project"
LOGGING, MONITORING = "https://logging.googleapis.com/v2", "https://monitoring.googleapis.com"
CHANNELS = f"{MONITORING}/v3/{PROJECT}/notificationChannels"
POLICIES = f"{MONITORING}/v3/{PROJECT}/alertPolicies"
CHECKS = f"{MONITORING}/v3/{PROJECT}/uptimeCheckConfigs"
DASHBOARD = f"{MONITORING}/v1/{PROJECT}/dashboards/mlflow"
SINK = f"{LOGGING}/{PROJECT}/sinks/mlflow"
BUCKET = "https://storage.googleapis.com/storage/v1/b/demo-project-mlflow-logs"
DATASET = f"https://bigquery.googleapis.com/bigquery/v2/{PROJECT}/datasets/mlflow_logs"
IAM_POLICY = f"https://cloudresourcemanager.googleapis.com/v1/{PROJECT}"
PROVISION = ("playbooks/provision.yml", "--diff", "--tags")
Play = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def _made(play: Play) -> None:
    made = play(*PROVISION, "gcp_project,gcp_observability")
    assert made.code == 0, made.output


def named(cloud: Any, collection: str, name: str) -> dict[str, Any]:
    """Return the resource that has this name in its label."""
    (listed,) = cloud.get(collection).values()
    (found,) = (one for one in listed if one.get("userLabels", {}).get("ansible-name") == name)
    return dict(found)


def test_the_sink_alone_writes_to_the_bucket(cloud: Any) -> None:
    bindings = cloud.get(f"{BUCKET}/iam")["bindings"]
    writers = next(binding for binding in bindings if binding["role"] == "roles/storage.objectCreator")
    assert writers["members"] == [cloud.get(SINK)["writerIdentity"]]
    access = cloud.get(BUCKET)["iamConfiguration"]
    assert access["uniformBucketLevelAccess"]["enabled"]
    assert access["publicAccessPrevention"] == "enforced"


def test_every_alert_tells_the_channel_and_what_to_do(cloud: Any) -> None:
    channel = named(cloud, CHANNELS, "mlflow")
    assert channel["labels"] == {"email_address": "operator@example.com"}
    policies = [one for one in cloud.get(POLICIES)["alertPolicies"] if one["displayName"].startswith("mlflow: ")]
    assert {one["userLabels"]["ansible-name"] for one in policies} == {
        f"mlflow-{name}"
        for name in (
            *("down", "errors", "certificate", "disk", "memory", "connections"),
            *("backup-failed", "backup-old", "set-failed", "set-old", "drill-failed", "renewal-failed", "gc-failed"),
        )
    }
    for policy in policies:
        assert policy["notificationChannels"] == [channel["name"]]
        assert "1. " in policy["documentation"]["content"]
        # What a title says must fit a query that is there.
        assert "None" not in str(policy["conditions"])
        assert "known after" not in str(policy["conditions"])


def test_two_that_carry_one_name_are_both_named(play: Play, cloud: Any) -> None:
    channel = named(cloud, CHANNELS, "mlflow")
    copied = {field: channel[field] for field in ("type", "labels", "userLabels")}
    copy = cloud.call("POST", CHANNELS, copied).json()

    refused = play(*PROVISION, "gcp_observability")
    assert cloud.call("DELETE", f"{MONITORING}/v3/{copy['name']}").status_code == 200

    assert refused.code != 0
    for name in (channel["name"], copy["name"]):
        assert name in refused.output
    assert play(*PROVISION, "gcp_observability").changed == 0


def test_every_threshold_can_be_set(play: Play) -> None:
    wanted = {
        "error_percent": (7, "* 100 > 7 and"),
        "certificate_days": (21, "}) < 21"),
        "disk_percent": (71, "}) > 71"),
        "memory_percent": (72, "}) > 72"),
        "database_connections": (173, "}) > 173"),
        "backup_hours": (50, "[50h]"),
        "log_days": (500, '"age": 500'),
        "database_version": ("MYSQL_8_4", "database_network_connections"),
    }
    values = {f"gcp_observability_{name}": value for name, (value, _) in wanted.items()}
    checked = play(*PROVISION, "gcp_observability", "--check", "-e", json.dumps(values))
    assert (checked.code, checked.changed) == (0, 1), checked.output
    # The callback writes the difference with its quotes escaped.
    output = checked.output.replace('\\"', '"')
    assert [said for _, said in wanted.values() if said not in output] == []


def test_nobody_asks_from_the_internet_where_it_may_not_connect(
    play: Play, cloud: Any, make_inventory: Callable[..., pathlib.Path]
) -> None:
    closed = make_inventory(platform_https_source_ranges=["203.0.113.0/24"])
    taken = play(*PROVISION, "gcp_observability", inventory=closed)
    assert (taken.code, taken.changed) == (0, 1), taken.output
    assert "uptimeCheckConfigs" not in cloud.get(CHECKS)
    names = {one["userLabels"]["ansible-name"] for one in cloud.get(POLICIES)["alertPolicies"]}
    assert {"mlflow-down", "mlflow-certificate", "mlflow-disk"} & names == {"mlflow-disk"}

    again = play(*PROVISION, "gcp_observability")
    # The check and its policies, in one task.
    assert (again.code, again.changed) == (0, 1), again.output
    assert named(cloud, CHECKS, "mlflow")["monitoredResource"]["labels"]["host"] == "mlflow.localhost"


def test_the_check_of_another_domain_is_not_replaced_by_itself(play: Play) -> None:
    refused = play(*PROVISION, "gcp_observability", "--check", "-e", "gcp_observability_domain=other.example.com")
    assert refused.code != 0
    assert "monitoredResource.labels.host is" in refused.output
    assert "-e gcp_observability_uptime_enabled=false" in refused.output


def test_logs_go_to_a_dataset_where_that_is_wanted(
    play: Play, cloud: Any, make_inventory: Callable[..., pathlib.Path]
) -> None:
    dataset = make_inventory(platform_log_destination="dataset")
    runs = [play(*PROVISION, "gcp_observability", inventory=dataset) for _ in range(2)]
    # The parts, and the access to the dataset.
    assert [(run.code, run.changed) for run in runs] == [(0, 2), (0, 0)], runs[0].output
    sink = cloud.get(SINK)
    assert sink["destination"] == f"bigquery.googleapis.com/{PROJECT}/datasets/mlflow_logs"
    made = cloud.get(DATASET)
    assert made["access"] == [
        {"role": "OWNER", "specialGroup": "projectOwners"},
        {"role": "WRITER", "userByEmail": sink["writerIdentity"].removeprefix("serviceAccount:")},
    ]
    assert made["defaultPartitionExpirationMs"] == str(400 * 86_400_000)

    back = play(*PROVISION, "gcp_observability")
    assert (back.code, back.changed) == (0, 1), back.output
    assert cloud.get(SINK)["destination"] == "storage.googleapis.com/demo-project-mlflow-logs"
    assert cloud.call("DELETE", DATASET).status_code == 204


def test_audit_logs_of_others_stay(play: Play, cloud: Any) -> None:
    policy = cloud.call("POST", f"{IAM_POLICY}:getIamPolicy", {}).json()
    before = policy["auditConfigs"]
    assert {one["service"] for one in before} >= {
        f"{name}.googleapis.com" for name in ("cloudsql", "iam", "secretmanager", "storage")
    }
    theirs = [
        {"service": "compute.googleapis.com", "auditLogConfigs": [{"logType": "ADMIN_READ"}]},
        {
            "service": "storage.googleapis.com",
            "auditLogConfigs": [
                {"logType": "ADMIN_READ"},
                {"logType": "DATA_READ", "exemptedMembers": ["user:ann@example.com"]},
            ],
        },
    ]
    mask = {"updateMask": "bindings,etag,auditConfigs"}
    cloud.call("POST", f"{IAM_POLICY}:setIamPolicy", {"policy": {**policy, "auditConfigs": theirs}, **mask})

    mended = play(*PROVISION, "gcp_identity")

    assert (mended.code, mended.changed) == (0, 1), mended.output
    policy = cloud.call("POST", f"{IAM_POLICY}:getIamPolicy", {}).json()
    after = {one["service"]: one["auditLogConfigs"] for one in policy["auditConfigs"]}
    assert after["compute.googleapis.com"] == theirs[0]["auditLogConfigs"]
    assert after["storage.googleapis.com"] == [*theirs[1]["auditLogConfigs"], {"logType": "DATA_WRITE"}]
    policy["auditConfigs"] = before
    cloud.call("POST", f"{IAM_POLICY}:setIamPolicy", {"policy": policy, **mask})
