"""Whatever fails while a client writes, everything serves again without a hand, and nothing acknowledged is lost.

Some faults take long: `make faults` has them too, and writes docs/faults.md.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

ROOT = pathlib.Path(__file__).resolve().parents[2]
SQL = "https://sqladmin.googleapis.com/v1/projects/demo-project"
DATABASE = "cloudsql-mlflow"
LONGEST_WAIT_SECONDS = 300
# One answer may come from a worker or a connection that is about to go.
ANSWERS_IN_A_ROW = 20
AWAY_SECONDS = 15


def docker(*arguments: str) -> str:
    return subprocess.run(
        ["docker", *arguments], check=True, capture_output=True, text=True, timeout=LONGEST_WAIT_SECONDS
    ).stdout.strip()


class Writer(threading.Thread):
    """A client that writes and tries nothing twice: metrics to one run, and now and then an artifact."""

    def __init__(self, deployment: Any) -> None:
        super().__init__(daemon=True)
        self.url = deployment.url
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.proxies = {"https": deployment.environment["HTTPS_PROXY"]}
        self.http.verify = str(deployment.ca_bundle)
        self.http.auth = ("admin", deployment.admin_password)
        self.stop = threading.Event()
        self.metrics: set[int] = set()
        self.artifacts: set[int] = set()
        self.failures: list[tuple[float, str]] = []
        self.in_a_row = 0
        self.served_again = 0.0
        self.experiment = self.ask("POST", "mlflow/experiments/create", json={"name": f"healing-{time.time_ns()}"})[
            "experiment_id"
        ]
        run = self.ask("POST", "mlflow/runs/create", json={"experiment_id": self.experiment})
        self.run_id = run["run"]["info"]["run_id"]
        self.files = f"mlflow-artifacts/artifacts/{self.experiment}/{self.run_id}/artifacts"

    @property
    def acknowledged(self) -> int:
        return len(self.metrics) + len(self.artifacts)

    def ask(self, verb: str, path: str, **options: Any) -> Any:
        """Return the answer of one request; raises `requests.RequestException` when it fails."""
        response = self.http.request(verb, f"{self.url}/api/2.0/{path}", timeout=10, **options)
        response.raise_for_status()
        return response.json() if "json" in response.headers.get("Content-Type", "") else response.content

    def run(self) -> None:
        for number in range(1, 1_000_000):
            if self.stop.wait(0.05):
                return
            try:
                if number % 10:
                    metric = {"run_id": self.run_id, "key": "n", "value": number, "timestamp": 1, "step": number}
                    self.ask("POST", "mlflow/runs/log-metric", json=metric)
                    self.metrics.add(number)
                else:
                    self.ask("PUT", f"{self.files}/{number}.txt", data=f"{number}" * 1000)
                    self.artifacts.add(number)
            except requests.RequestException as error:
                self.failures.append((time.monotonic(), str(error)))
                self.in_a_row = 0
            else:
                if not self.in_a_row:
                    self.served_again = time.monotonic()
                self.in_a_row += 1

    def lost(self) -> list[str]:
        """Return what was acknowledged and is not there."""
        query = {"run_id": self.run_id, "metric_key": "n", "max_results": 25_000}
        history = self.ask("GET", "mlflow/metrics/get-history", params=query)["metrics"]
        lost = [f"metric {number}" for number in self.metrics - {int(metric["step"]) for metric in history}]
        for number in self.artifacts:
            answer = self.http.get(f"{self.url}/api/2.0/{self.files}/{number}.txt", timeout=30)
            if answer.text != f"{number}" * 1000:
                lost.append(f"artifact {number}: {answer.status_code}")
        return lost


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a fault is made: the server's container, the operator's calls, the emulated cloud's own address."""

    server: str
    cloud: Any
    emulator: str

    def shell(self, command: str) -> str:
        return docker("exec", self.server, "sh", "-c", command)


MAIN = "$(systemctl show -P MainPID mlflow)"
SUPERVISOR = f"$(pgrep --parent {MAIN} --full uvicorn)"
WORKERS = f"$(pgrep --parent {SUPERVISOR} --full spawn_main)"


def hang(place: Place) -> None:
    # The supervisor as well: it would replace workers that stand still.
    place.shell(f"kill -STOP {SUPERVISOR} {WORKERS}")


def database_restarts(place: Place) -> None:
    response = place.cloud.call("POST", f"{SQL}/instances/mlflow/restart")
    assert response.status_code == 200, response.text
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while (operation := place.cloud.get(f"{SQL}/operations/{response.json()['name']}"))["status"] != "DONE":
        assert time.monotonic() < deadline, operation
        time.sleep(0.5)
    assert "error" not in operation


def database_away(place: Place) -> None:
    docker("stop", DATABASE)
    time.sleep(AWAY_SECONDS)
    docker("start", DATABASE)


def database_away_at_boot(place: Place) -> None:
    docker("stop", DATABASE)
    docker("restart", place.server)
    time.sleep(AWAY_SECONDS)
    docker("start", DATABASE)


def bucket_unavailable(place: Place) -> None:
    faults = f"{place.emulator}/_emulator/faults"
    fault = {"method": "storage.objects.*", "status": 503, "times": 10_000}
    requests.post(faults, json=[fault], timeout=30).raise_for_status()
    time.sleep(AWAY_SECONDS)
    requests.delete(faults, timeout=30).raise_for_status()


FAULTS: dict[str, Callable[[Place], Any]] = {
    "a worker of MLflow is killed": lambda place: place.shell(f"set -- {WORKERS}; kill -9 $1"),
    "MLflow's main process is killed": lambda place: place.shell(f"kill -9 {MAIN}"),
    "the Cloud SQL Auth Proxy is killed": lambda place: place.shell("systemctl kill --signal=KILL cloud-sql-proxy"),
    "NGINX is killed": lambda place: place.shell("systemctl kill --signal=KILL nginx"),
    "the database restarts": database_restarts,
    "the virtual machine restarts": lambda place: docker("restart", place.server),
    "MLflow hangs, its socket open": hang,
}
SLOW_FAULTS: dict[str, Callable[[Place], Any]] = {
    f"the database is away for {AWAY_SECONDS} s": database_away,
    f"the database is away for {AWAY_SECONDS} s at boot": database_away_at_boot,
    f"the bucket answers 503 for {AWAY_SECONDS} s": bucket_unavailable,
}
if os.environ.get("FAULTS") == "all":
    FAULTS |= SLOW_FAULTS


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Yield the rows of the table, written when the tests are done."""
    rows = ["| fault | seconds to serve again | writes | failed | acknowledged and lost |", "|---|---|---|---|---|"]
    yield rows
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "faults.md").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("fault", FAULTS)
def test_everything_serves_again_and_nothing_acknowledged_is_lost(
    deployment: Any, cloud: Any, table: list[str], fault: str
) -> None:
    writer = Writer(deployment)
    writer.start()
    wait_for_answers(writer, fault)
    begun = time.monotonic()

    FAULTS[fault](Place(deployment.server, cloud, deployment.environment["HTTPS_PROXY"]))
    wait_for_answers(writer, fault)
    writer.stop.set()
    writer.join()

    seconds = writer.served_again - begun if writer.failures else 0
    writes = writer.acknowledged + len(writer.failures)
    lost = writer.lost()
    table.append(f"| {fault} | {seconds:.0f} | {writes} | {len(writer.failures)} | {len(lost)} |")
    assert lost == []
    assert docker("exec", deployment.server, "systemctl", "list-units", "--failed", "--quiet", "--plain") == ""
    writer.ask("POST", "mlflow/experiments/delete", json={"experiment_id": writer.experiment})


def wait_for_answers(writer: Writer, fault: str) -> None:
    """Wait until the writer has had good answers for a while from now on."""
    deadline, before = time.monotonic() + LONGEST_WAIT_SECONDS, writer.acknowledged
    while min(writer.in_a_row, writer.acknowledged - before) < ANSWERS_IN_A_ROW:
        assert time.monotonic() < deadline, f"not served {LONGEST_WAIT_SECONDS} s after {fault}: {writer.failures[-1:]}"
        time.sleep(0.2)
