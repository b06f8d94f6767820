"""After a restart of any part, everything serves again without a hand."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

SQL = "https://sqladmin.googleapis.com/v1/projects/demo-project"
LONGEST_WAIT_SECONDS = 300


def docker(*arguments: str) -> str:
    return subprocess.run(
        ["docker", *arguments], check=True, capture_output=True, text=True, timeout=LONGEST_WAIT_SECONDS
    ).stdout.strip()


def restart_mlflow(deployment: Any, _cloud: Any) -> None:
    docker("exec", deployment.server, "systemctl", "restart", "mlflow")


def restart_proxy(deployment: Any, _cloud: Any) -> None:
    docker("exec", deployment.server, "systemctl", "restart", "cloud-sql-proxy")


def restart_server(deployment: Any, _cloud: Any) -> None:
    docker("restart", deployment.server)


def restart_database(_deployment: Any, cloud: Any) -> None:
    response = cloud.call("POST", f"{SQL}/instances/mlflow/restart")
    assert response.status_code == 200, response.text
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while (operation := cloud.get(f"{SQL}/operations/{response.json()['name']}"))["status"] != "DONE":
        assert time.monotonic() < deadline, operation
        time.sleep(1)
    assert "error" not in operation


def started(deployment: Any, what: str) -> str:
    """Return what differs after a restart of the part."""
    match what:
        case "mlflow" | "cloud-sql-proxy":
            return docker("exec", deployment.server, "systemctl", "show", "--property=MainPID", "--value", what)
        case "server":
            return docker("inspect", "--format={{.State.StartedAt}}", deployment.server)
        case _:
            return docker("inspect", "--format={{.State.StartedAt}}", "cloudsql-mlflow")


@pytest.mark.parametrize(
    ("what", "restart"),
    [
        ("mlflow", restart_mlflow),
        ("cloud-sql-proxy", restart_proxy),
        ("database", restart_database),
        ("server", restart_server),
    ],
)
def test_everything_serves_again_after_a_restart(
    deployment: Any,
    cloud: Any,
    tracking: Callable[..., requests.Response],
    what: str,
    restart: Callable[[Any, Any], None],
) -> None:
    name = f"kept-over-restart-of-{what}-{time.time_ns()}"
    assert tracking("POST", "experiments/create", json={"name": name}).status_code == 200
    before = started(deployment, what)
    restart(deployment, cloud)

    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    in_a_row = 0
    answer = "nothing yet"
    # One answer may come from a worker or a connection that is about to go.
    while in_a_row < 5:
        assert time.monotonic() < deadline, f"not served {LONGEST_WAIT_SECONDS} s after a restart of {what}: {answer}"
        try:
            response = tracking("GET", "experiments/get-by-name", params={"experiment_name": name})
            answer = f"{response.status_code} {response.text[:300]}"
            in_a_row = in_a_row + 1 if response.status_code == 200 else 0
        except requests.RequestException as error:
            answer, in_a_row = str(error), 0
        time.sleep(1)
    assert started(deployment, what) != before
    experiment = response.json()["experiment"]
    assert experiment["name"] == name
    tracking("POST", "experiments/delete", json={"experiment_id": experiment["experiment_id"]}).raise_for_status()
    assert docker("exec", deployment.server, "systemctl", "list-units", "--failed", "--quiet", "--plain") == ""
