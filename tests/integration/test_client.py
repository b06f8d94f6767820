"""The deployment in use: the example client, playbooks/verify.yml, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import pathlib
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUCKET = "demo-project-mlflow-artifacts"


# A process of its own: MLflow's client keeps what it was last pointed at.
FILL = """
import mlflow, sys
mlflow.set_tracking_uri(sys.argv[1])
client = mlflow.MlflowClient()
experiment = client.create_experiment("imported")
run = client.create_run(experiment, start_time=1000, run_name="old")
for step in range(3):
    client.log_metric(run.info.run_id, "loss", 1 / (step + 1), 1000 + step, step)
client.log_text(run.info.run_id, "content", "plots/ä b.txt")
client.set_terminated(run.info.run_id, "FAILED", 9000)
client.create_registered_model("imported")
client.create_model_version("imported", run.info.artifact_uri + "/plots", run.info.run_id)
client.set_registered_model_alias("imported", "champion", "1")
"""


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


# Memory of MLflow's and NGINX's processes in KiB: now (VmRSS), or at the most since then (VmHWM).
MEMORY = """
import pathlib, subprocess, sys
for pid in subprocess.check_output(["pgrep", "-u", "mlflow,www-data"], text=True).split():
    process = pathlib.Path("/proc", pid)
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    print(pid, fields[sys.argv[1]].split()[0])
    if sys.argv[1] == "VmRSS":
        (process / "clear_refs").write_text("5")
"""


def memory(deployment: Any, field: str) -> dict[str, int]:
    said = on_server(deployment, "python3", "-c", MEMORY, field)
    return {pid: int(size) for pid, size in (line.split() for line in said.splitlines())}


def test_an_artifact_passes_through_the_server_without_being_in_memory(
    deployment: Any, tracking: Callable[..., requests.Response]
) -> None:
    mebibytes, piece = 1024, random.Random(1).randbytes(2**20)
    experiment = tracking("POST", "experiments/create", json={"name": "large"}).json()["experiment_id"]
    run = tracking("POST", "runs/create", json={"experiment_id": experiment}).json()["run"]["info"]["run_id"]
    path = f"../mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/large"
    sent, received = hashlib.sha256(), hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        for number in range(mebibytes):
            content = number.to_bytes(4) + piece[4:]
            sent.update(content)
            yield content

    before = memory(deployment, "VmRSS")
    tracking("PUT", path, data=pieces()).raise_for_status()
    with tracking("GET", path, stream=True) as answer:
        answer.raise_for_status()
        for content in answer.iter_content(2**20):
            received.update(content)
    after = memory(deployment, "VmHWM")

    assert received.digest() == sent.digest()
    grown = {pid: after[pid] - size for pid, size in before.items() if pid in after}
    assert len(grown) > 3
    assert max(grown.values()) < 64 * 1024, grown
    assert sum(grown.values()) < 128 * 1024, grown
    tracking("POST", "experiments/delete", json={"experiment_id": experiment}).raise_for_status()


# A client with the credentials of its own.
TRAIN = """
import mlflow, sys
mlflow.set_experiment(sys.argv[1])
with mlflow.start_run() as run:
    mlflow.log_text("content", "a/b.txt")
print(run.info.artifact_uri, mlflow.artifacts.load_text(run.info.artifact_uri + "/a/b.txt"))
"""


def proxied(deployment: Any) -> int:
    """Return how many requests for artifacts NGINX has logged."""
    return on_server(deployment, "cat", "/var/log/nginx/access.log").count("mlflow-artifacts/artifacts")


@pytest.mark.long
def test_artifacts_travel_between_client_and_bucket_where_that_is_wanted(
    deployment: Any,
    cloud: Any,
    play: Callable[..., Any],
    tracking: Callable[..., requests.Response],
    tmp_path: pathlib.Path,
) -> None:
    accounts = "https://iam.googleapis.com/v1/projects/demo-project/serviceAccounts"
    email = "trainer@demo-project.iam.gserviceaccount.com"
    made = cloud.call("POST", accounts, {"accountId": "trainer"})
    assert made.status_code in (200, 409), made.text
    key = cloud.call("POST", f"{accounts}/{email}/keys", {})
    key.raise_for_status()
    credentials = tmp_path / "key.json"
    credentials.write_bytes(base64.b64decode(key.json()["privateKeyData"]))
    environment = {
        **deployment.environment,
        "GOOGLE_APPLICATION_CREDENTIALS": str(credentials),
        "MLFLOW_TRACKING_URI": deployment.url,
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": deployment.admin_password,
    }

    def train(experiment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", TRAIN, experiment]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    before = tracking("POST", "experiments/create", json={"name": "through"}).json()["experiment_id"]
    user = (
        "-e",
        "platform_artifact_access=direct",
        "-e",
        json.dumps({"platform_artifact_users": [f"serviceAccount:{email}"]}),
    )
    served = play("playbooks/configure.yml", "--tags", "mlflow", *user)
    assert served.code == 0, served.output
    refused = train("direct")
    assert refused.returncode != 0
    assert "403" in refused.stderr
    granted = play("playbooks/provision.yml", "--tags", "gcp_bucket", *user)
    assert (granted.code, granted.changed) == (0, 1), granted.output

    logged = proxied(deployment)
    done = train("direct")

    assert done.returncode == 0, done.stderr
    assert proxied(deployment) == logged
    address, content = done.stdout.split()[-2:]
    assert address.startswith(f"gs://{BUCKET}/")
    assert content == "content"
    listed = tracking("GET", "artifacts/list", params={"run_id": address.split("/")[-2], "path": "a"}).json()
    assert [one["path"] for one in listed["files"]] == ["a/b.txt"]
    # Those that are there go on as they were made, through the server.
    through = train("through")
    assert through.returncode == 0, through.stderr
    assert through.stdout.split()[-2].startswith("mlflow-artifacts:/")
    assert proxied(deployment) > logged

    assert play("playbooks/configure.yml", "--tags", "mlflow").code == 0
    for experiment in (before, address.split("/")[3]):
        tracking("POST", "experiments/delete", json={"experiment_id": experiment}).raise_for_status()
    cloud.call("DELETE", f"{accounts}/{email}").raise_for_status()


def test_a_folder_is_imported_once(
    deployment: Any, play: Callable[..., Any], tracking: Callable[..., requests.Response], tmp_path: pathlib.Path
) -> None:
    folder, report = tmp_path / "mlruns", tmp_path / "report.json"
    subprocess.run(
        [sys.executable, "-c", FILL, folder.as_uri()],
        env={**deployment.environment, "MLFLOW_ALLOW_FILE_STORE": "true"},
        check=True,
        timeout=120,
    )
    importing = (
        "playbooks/import.yml",
        *("-e", f"platform_import_source={folder}", "-e", f"platform_import_report_path={report}"),
    )
    check = play(*importing, "--check")
    assert check.code == 0, check.output
    assert "Would come over: 1 experiments, 1 runs, 1 registered models, 1 model versions." in check.output
    assert not report.exists()
    assert tracking("GET", "experiments/get-by-name", params={"experiment_name": "imported"}).status_code == 404

    first = play(*importing, "-vvv")
    assert first.code == 0, first.output
    assert deployment.admin_password not in first.output
    assert json.loads(report.read_text())["missing"] == []
    again = play(*importing)
    assert (again.code, again.changed) == (0, 0), again.output

    found = tracking("GET", "experiments/get-by-name", params={"experiment_name": "imported"}).json()["experiment"]
    (run,) = tracking("POST", "runs/search", json={"experiment_ids": [found["experiment_id"]]}).json()["runs"]
    assert (run["info"]["status"], run["info"]["start_time"], run["info"]["end_time"]) == ("FAILED", 1000, 9000)
    values = {"run_id": run["info"]["run_id"], "metric_key": "loss"}
    metrics = tracking("GET", "metrics/get-history", params=values).json()["metrics"]
    assert [(one["step"], one["timestamp"], one["value"]) for one in metrics] == [
        (step, 1000 + step, 1 / (step + 1)) for step in range(3)
    ]
    place = {"run_id": run["info"]["run_id"], "path": "plots"}
    assert tracking("GET", "artifacts/list", params=place).json()["files"] == [
        {"path": "plots/ä b.txt", "is_dir": False, "file_size": 7}
    ]
    alias = tracking("GET", "registered-models/alias", params={"name": "imported", "alias": "champion"})
    assert alias.json()["model_version"]["run_id"] == run["info"]["run_id"]
    tracking("DELETE", "registered-models/delete", json={"name": "imported"}).raise_for_status()
    tracking("POST", "experiments/delete", json={"experiment_id": found["experiment_id"]}).raise_for_status()


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
