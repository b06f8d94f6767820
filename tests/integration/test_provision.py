"""The cloud side: made once, left alone afterwards, mended when it drifts."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.conftest import metadata_token

COMPUTE = "https://compute.googleapis.com/compute/v1/projects/demo-project"
SECRET = "https://secretmanager.googleapis.com/v1/projects/demo-project/secrets/mlflow-admin-password"
ACCESSOR = "roles/secretmanager.secretAccessor"
SERVER = "serviceAccount:mlflow-server@demo-project.iam.gserviceaccount.com"
Play = Callable[..., Any]


@pytest.mark.usefixtures("deployment")
def test_a_second_run_changes_nothing(
    play: Play,
) -> None:
    second = play("site.yml")

    assert second.code == 0, second.output
    assert second.changed == 0, second.output
    assert {"localhost", "mlflow-1"} <= set(second.hosts)


@pytest.mark.usefixtures("deployment")
def test_check_mode_changes_nothing_and_writes_nothing(play: Play, written: Callable[..., list[str]]) -> None:
    runs = []

    assert written(lambda: runs.append(play("site.yml", "--check", "--diff"))) == []
    assert runs[0].code == 0, runs[0].output
    assert runs[0].changed == 0, runs[0].output


@pytest.mark.usefixtures("deployment")
def test_the_network_lets_in_whom_it_should(cloud: Any) -> None:
    rules = {rule["name"]: rule for rule in cloud.get(f"{COMPUTE}/global/firewalls")["items"]}
    ours = {name: rule for name, rule in rules.items() if rule["network"].endswith("/mlflow")}

    assert {name: (rule["sourceRanges"], rule["allowed"][0]["ports"]) for name, rule in ours.items()} == {
        "mlflow-allow-https": (["0.0.0.0/0"], ["443"]),
        "mlflow-allow-http": (["0.0.0.0/0"], ["80"]),
        "mlflow-allow-iap-ssh": (["35.235.240.0/20"], ["22"]),
    }
    assert all(rule["targetServiceAccounts"] == [SERVER.split(":")[1]] for rule in ours.values())


@pytest.mark.usefixtures("deployment")
def test_the_servers_account_has_these_roles_and_no_broader(cloud: Any) -> None:
    policy = cloud.call(
        "POST", "https://cloudresourcemanager.googleapis.com/v1/projects/demo-project:getIamPolicy", {}
    ).json()

    assert {binding["role"] for binding in policy["bindings"] if SERVER in binding["members"]} == {
        "roles/cloudsql.client",
        "roles/cloudsql.instanceUser",
        "roles/logging.logWriter",
        "roles/monitoring.metricWriter",
        # What taking a backup set needs.
        "projects/demo-project/roles/mlflow_server",
    }


@pytest.mark.usefixtures("deployment")
def test_a_closed_port_has_no_rule(play: Play, make_inventory: Callable[..., pathlib.Path]) -> None:
    closed = make_inventory(platform_http_source_ranges=[])
    tags = ("--tags", "gcp_network", "--check", "--diff")

    checked = play("playbooks/provision.yml", *tags, inventory=closed)

    assert checked.code == 0, checked.output
    assert checked.changed == 1
    assert "mlflow-allow-http" in checked.output


@pytest.mark.usefixtures("deployment")
def test_a_range_added_by_hand_is_taken_back(play: Play, cloud: Any) -> None:
    rule = f"{COMPUTE}/global/firewalls/mlflow-allow-iap-ssh"
    wider = {"name": "mlflow-allow-iap-ssh", "sourceRanges": ["35.235.240.0/20", "203.0.113.0/24"]}
    assert cloud.call("PATCH", rule, wider).status_code == 200
    wait_for(lambda: cloud.get(rule)["sourceRanges"] == wider["sourceRanges"])

    mended = play("playbooks/provision.yml", "--tags", "gcp_network", "--diff")

    assert mended.code == 0, mended.output
    assert mended.changed == 1
    assert "203.0.113.0/24" in mended.output
    assert cloud.get(rule)["sourceRanges"] == ["35.235.240.0/20"]


def test_the_server_reads_its_secret_by_its_role_alone(play: Play, deployment: Any, cloud: Any) -> None:
    token = metadata_token(deployment.server)
    assert cloud.call("GET", f"{SECRET}/versions/latest:access", token=token).status_code == 200
    assert cloud.call("GET", f"{COMPUTE}/global/networks", token=token).status_code == 403

    policy = cloud.get(f"{SECRET}:getIamPolicy")
    policy["bindings"] = [binding for binding in policy["bindings"] if binding["role"] != ACCESSOR]
    assert cloud.call("POST", f"{SECRET}:setIamPolicy", {"policy": policy}).status_code == 200
    assert cloud.call("GET", f"{SECRET}/versions/latest:access", token=token).status_code == 403

    mended = play("playbooks/provision.yml", "--tags", "gcp_secret")

    assert (mended.code, mended.changed) == (0, 1), mended.output
    assert cloud.call("GET", f"{SECRET}/versions/latest:access", token=token).status_code == 200


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
