"""A user's day on an MLflow server, with the real client: log, register, read back, delete.

`run` raises `SmokeTestError`, which names the component that answers for the failure and the next command to run.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import requests
import urllib3.util.connection
from mlflow.entities import Metric, Param
from mlflow.exceptions import RestException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

TIMEOUT_SECONDS = 60
# More than NGINX lets through unless it is told to stream without a limit.
ARTIFACT_BYTES = 2 * 1024 * 1024
PARAMETERS = {"alpha": "0.5", "solver": "saga"}
METRICS = {"accuracy": 0.875, "loss": 0.125}

NEXT_COMMANDS = {
    "nginx": "journalctl -u nginx -n 50",
    "certbot": "journalctl -u certbot -n 50",
    "mlflow": "journalctl -u 'mlflow-*' -n 50",
    "cloud_sql_proxy": "journalctl -u cloud-sql-proxy -n 50",
}


class SmokeTestError(Exception):
    """One step failed: `step`, the `component` that answers for it, the `next_command` to run on the server."""

    def __init__(self, step: str, component: str, cause: str) -> None:
        self.step, self.component, self.cause = step, component, cause
        self.next_command = NEXT_COMMANDS[component]
        super().__init__(f"{step}: {cause}")


def blame(error: BaseException) -> str:
    """Return the component that answers for an error of the client, which hides the first cause in its context."""
    status = None
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, requests.exceptions.SSLError):
            return "certbot"
        if isinstance(seen, requests.HTTPError) and seen.response is not None:
            status = seen.response.status_code
        elif isinstance(seen, RestException):
            status = seen.get_http_status_code()
        elif isinstance(seen, requests.exceptions.RetryError):
            status = 503
        elif isinstance(seen, requests.exceptions.ConnectionError | requests.exceptions.Timeout):
            return "nginx"
        seen = seen.__cause__ or seen.__context__
    return "cloud_sql_proxy" if status == 503 else "nginx" if status in {404, 413} else "mlflow"


@contextmanager
def step(name: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a `SmokeTestError` of this step."""
    try:
        yield
    except SmokeTestError:
        raise
    except Exception as error:
        raise SmokeTestError(name, blame(error), f"{type(error).__name__}: {error}") from error


def expect(step_name: str, what: str, found: object, expected: object) -> None:
    """Raise `SmokeTestError` when what was read back is not what was written."""
    if found != expected:
        raise SmokeTestError(step_name, "mlflow", f"{what} came back as {found!r}, not {expected!r}")


def connect_to(path: str) -> None:
    """Send all HTTP of this process to a Unix socket, whatever its URL."""

    def connect(_address: Any, timeout: Any = None, **_options: Any) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout if isinstance(timeout, int | float) else TIMEOUT_SECONDS)
        connection.connect(path)
        return connection

    # A proxy is for other machines.
    os.environ |= dict.fromkeys(("NO_PROXY", "no_proxy"), "*")
    # What urllib3 opens every connection with.
    vars(urllib3.util.connection)["create_connection"] = connect


def run(url: str, admin: tuple[str, str] | None, is_user_made: bool = True) -> dict[str, Any]:
    """Work as a new user on the server at `url`, and delete all of it, the user included.

    `admin` is the administrator's name and password; None where the server has no users. Without `is_user_made` the
    administrator does the work. Returns the names used:
    `experiment`, `run_id`, `artifact_uri`, `model`. The process' environment holds the new user's login while it runs.
    MLflow keeps the rows of a deleted run and experiment until `mlflow gc`.
    """
    name = f"verify-{secrets.token_hex(4)}"
    undo: list[tuple[str, Callable[[], Any]]] = []
    failure: SmokeTestError | None = None
    result: dict[str, Any] = {}
    try:
        result = _use(url, name, admin, is_user_made, undo)
    except SmokeTestError as error:
        failure = error
    left = []
    for what, action in reversed(undo):
        try:
            action()
        except Exception as error:
            failure = failure or SmokeTestError(f"Delete {what}", blame(error), f"{type(error).__name__}: {error}")
            left.append(what)
    if failure:
        if left:
            failure.args = (f"{failure}. Left behind: {', '.join(left)}",)
        raise failure
    return result


def _make_user(
    url: str, name: str, admin: tuple[str, str], undo: list[tuple[str, Callable[[], Any]]]
) -> tuple[str, str]:
    user_password = secrets.token_urlsafe(24)
    with step("Create a user as the administrator"):
        _ask("POST", url, "users/create", admin, {"username": name, "password": user_password})
        undo.append((f"user {name}", lambda: _ask("DELETE", url, "users/delete", admin, {"username": name})))
    return name, user_password


def _use(
    url: str,
    name: str,
    admin: tuple[str, str] | None,
    is_user_made: bool,
    undo: list[tuple[str, Callable[[], Any]]],
) -> dict[str, Any]:
    if admin:
        username, password = _make_user(url, name, admin, undo) if is_user_made else admin
        os.environ.update(MLFLOW_TRACKING_USERNAME=username, MLFLOW_TRACKING_PASSWORD=password)
    os.environ.update(
        MLFLOW_HTTP_REQUEST_TIMEOUT=str(TIMEOUT_SECONDS),
        # The client's own seven tries take minutes before they say what is wrong.
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="3",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        # Standard output belongs to the module's result.
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
    )
    mlflow.set_tracking_uri(url)
    client = mlflow.MlflowClient(url)

    with step("Create an experiment"):
        experiment_id = client.create_experiment(name)
        undo.append((f"experiment {name}", lambda: client.delete_experiment(experiment_id)))
    with step("Log a run with parameters and metrics"):
        active = client.create_run(experiment_id, run_name=name)
        run_id, artifact_uri = active.info.run_id, active.info.artifact_uri
        undo.append((f"run {run_id}", lambda: client.delete_run(run_id)))
        metrics = [Metric(key, value, timestamp=0, step=0) for key, value in METRICS.items()]
        client.log_batch(run_id, metrics=metrics, params=[Param(*item) for item in PARAMETERS.items()])
    # Through the server, also where a client would go to the bucket with credentials of its own.
    artifacts = get_artifact_repository(f"mlflow-artifacts:/{experiment_id}/{run_id}/artifacts")
    content = secrets.token_bytes(ARTIFACT_BYTES)
    with tempfile.TemporaryDirectory(prefix="mlflow-verify-") as directory:
        with step("Upload an artifact"):
            undo.append((f"artifacts {artifact_uri}", artifacts.delete_artifacts))
            Path(directory, "check.bin").write_bytes(content)
            artifacts.log_artifact(f"{directory}/check.bin", "model")
        with step("Read the artifact back"):
            back = Path(artifacts.download_artifacts("model/check.bin", tempfile.mkdtemp(dir=directory)))
            if back.read_bytes() != content:
                raise SmokeTestError("Read the artifact back", "mlflow", "its bytes are not those that were uploaded")
    with step("Register a model version"):
        client.create_registered_model(name)
        undo.append((f"registered model {name}", lambda: client.delete_registered_model(name)))
        version = client.create_model_version(name, f"{artifact_uri}/model", run_id).version
        client.set_terminated(run_id)

    reading = "Read the run and the model version back"
    with step(reading):
        found = client.search_runs([experiment_id])
        expect(reading, "the list of runs", [one.info.run_id for one in found], [run_id])
        expect(reading, "the run's status", found[0].info.status, "FINISHED")
        expect(reading, "the parameters", found[0].data.params, PARAMETERS)
        expect(reading, "the metrics", found[0].data.metrics, METRICS)
        expect(reading, "the model version's run", client.get_model_version(name, version).run_id, run_id)
    return {"experiment": name, "run_id": run_id, "artifact_uri": artifact_uri, "model": f"{name}/{version}"}


def _ask(method: str, url: str, path: str, login: tuple[str, str], body: dict[str, str]) -> None:
    """Call MLflow's user API, which the client has no public function for; raises `requests.RequestException`."""
    response = requests.request(method, f"{url}/api/2.0/mlflow/{path}", auth=login, json=body, timeout=TIMEOUT_SECONDS)
    response.raise_for_status()
