"""The deployment in use: the example client, playbooks/verify.yml, and what is refused."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUCKET = "demo-project-mlflow-artifacts"


def on_server(deployment: Any, *command: str) -> str:
    return subprocess.run(
        ["docker", "exec", deployment.server, *command], check=True, capture_output=True, text=True, timeout=120
    ).stdout


def test_the_example_trains_a_model_that_lands_in_the_bucket_and_predicts(deployment: Any) -> None:
    environment = {
        **deployment.environment,
        "MLFLOW_TRACKING_URI": deployment.url,
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": deployment.admin_password,
        "MLFLOW_ARTIFACT_BUCKET": BUCKET,
    }
    done = subprocess.run(
        [sys.executable, "examples/train.py"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"logged accuracy 0\.9\d+", done.stdout)
    assert re.search(r"loaded models:/iris-classifier/\d+ back; its first predictions: \w+", done.stdout)
    assert re.search(rf"gs://{BUCKET}/\d+/models/m-\w+/artifacts/MLmodel \([1-9]\d* bytes\)", done.stdout)
    assert deployment.admin_password not in done.stdout + done.stderr


def test_the_password_command_prints_what_the_server_accepts(deployment: Any) -> None:
    done = subprocess.run(
        [sys.executable, "examples/admin_password.py"],
        cwd=ROOT,
        env=deployment.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"{deployment.admin_password}\n"


def test_verify_changes_nothing_and_leaves_nothing(
    deployment: Any, play: Callable[..., Any], tracking: Callable[..., requests.Response]
) -> None:
    run = play("playbooks/verify.yml")
    assert run.code == 0, run.output
    assert run.changed == 0
    assert "Outage | Expect MLflow to say that it is not ready" in run.output
    assert deployment.admin_password not in run.output
    experiments = tracking("GET", "experiments/search", params={"max_results": 1000}).json()["experiments"]
    assert [one["name"] for one in experiments if one["name"].startswith("verify-")] == []
    models = tracking("GET", "registered-models/search", params={"max_results": 100}).json()
    assert [one["name"] for one in models.get("registered_models", []) if one["name"].startswith("verify-")] == []
    users = tracking("GET", "users/list").json()["users"]
    assert [one["username"] for one in users if one["username"].startswith("verify-")] == []


def test_verify_names_the_component_that_fails_and_the_next_command(deployment: Any, play: Callable[..., Any]) -> None:
    on_server(deployment, "systemctl", "stop", "nginx")
    try:
        run = play("playbooks/verify.yml")
    finally:
        on_server(deployment, "systemctl", "start", "nginx")
    assert run.code != 0
    assert re.search(r"mlops\.mlflow_gcp\.nginx: .*Next, on mlflow-1: journalctl -u nginx", run.output, re.DOTALL)


def test_verify_in_check_mode_asks_nothing_of_the_server(deployment: Any, play: Callable[..., Any]) -> None:
    on_server(deployment, "systemctl", "stop", "nginx")
    try:
        run = play("playbooks/verify.yml", "--check")
    finally:
        on_server(deployment, "systemctl", "start", "nginx")
    assert run.code == 0, run.output
    assert run.changed == 0


@pytest.fixture
def anyone(deployment: Any) -> Iterator[requests.Session]:
    """Yield a session that reaches the server and has no login."""
    with requests.Session() as session:
        session.trust_env = False
        session.proxies = {"https": deployment.environment["HTTPS_PROXY"]}
        session.verify = str(deployment.ca_bundle)
        yield session


@pytest.mark.parametrize(
    "path",
    ["/", "/api/2.0/mlflow/experiments/search?max_results=1", "/api/2.0/mlflow-artifacts/artifacts", "/graphql"],
)
@pytest.mark.parametrize("login", [None, ("admin", "wrong")])
def test_nothing_is_served_without_the_right_login(
    deployment: Any, anyone: requests.Session, path: str, login: tuple[str, str] | None
) -> None:
    assert anyone.get(deployment.url + path, auth=login, timeout=60).status_code == 401


def test_another_name_gets_no_answer_even_with_the_right_login(deployment: Any, anyone: requests.Session) -> None:
    anyone.auth = ("admin", deployment.admin_password)
    address = f"{deployment.url}/api/2.0/mlflow/experiments/search?max_results=1"
    assert anyone.get(address, timeout=60).status_code == 200
    with pytest.raises(requests.ConnectionError):
        anyone.get(address, headers={"Host": "other.example.com"}, timeout=60)
