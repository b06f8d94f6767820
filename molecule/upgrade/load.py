"""Clients of MLflow through NGINX, until the file `stop` is there: counts their requests, and every one that fails.

load.py DIRECTORY PASSWORD: writes DIRECTORY/report.json with the requests by kind, the failed ones, the slowest one,
and how much came back as it was written; until then DIRECTORY/requests has how many there were.
Each client keeps its connection as the real client does, and opens another where the server has closed it meanwhile;
nothing is tried twice.
"""

import base64
import collections
import hashlib
import http.client
import itertools
import json
import os
import pathlib
import select
import socket
import ssl
import sys
import threading
import time
import typing

DIRECTORY, PASSWORD = pathlib.Path(sys.argv[1]), sys.argv[2]
LOGIN = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
HOST = "mlflow.test"
API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
UPLOAD_BYTES, SLOW_UPLOAD_BYTES = 20 << 20, 200 << 20
SLOW_SECONDS = 35
# People think; and what they leave of the machine runs Ansible and a second server.
PAUSE_SECONDS, PAUSE_BETWEEN_FILES_SECONDS = 0.8, 10


class RequestError(Exception):
    """An answer that is not a success, or none."""


class Connection(http.client.HTTPSConnection):
    """To this machine under NGINX's name, whose certificate nobody signed."""

    def connect(self) -> None:
        context = ssl._create_unverified_context()
        self.sock = context.wrap_socket(socket.create_connection(("127.0.0.1", 443), 300), server_hostname=self.host)

    def was_closed(self) -> bool:
        """What urllib3 asks before each request: NGINX that stops closes connections on which nothing is asked."""
        return self.sock is not None and bool(select.select([self.sock], [], [], 0)[0])


class Client(threading.Thread):
    """One user, who does one kind of work over and over."""

    def __init__(self, name: str, work: typing.Callable[["Client"], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.work = work
        self.requests: collections.Counter[str] = collections.Counter()
        self.failed: list[str] = []
        # Read back and found to be what was written.
        self.runs = self.bytes = 0
        self.slowest = 0.0
        self.experiment = ""
        self.connection: Connection | None = None

    def run(self) -> None:
        while not (DIRECTORY / "stop").exists():
            try:
                self.work(self)
            except RequestError:
                time.sleep(0.5)
            time.sleep(PAUSE_SECONDS)

    def call(self, verb: str, path: str, body: typing.Any = None, kind: str = "") -> bytes:
        """Answer of one request; raises `RequestError` when it is not a success."""
        begun = time.monotonic()
        self.requests[kind or path.partition("?")[0]] += 1
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        headers = {"Authorization": f"Basic {LOGIN}"}
        if isinstance(body, dict):
            headers["Content-Type"] = "application/json"
        try:
            if self.connection is None or self.connection.was_closed():
                self.connection = Connection(HOST, timeout=300)
            self.connection.request(verb, path, data, headers)
            response = self.connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection = None
            self.fail(f"{verb} {path}: {error!r}")
        if response.status >= 300:
            self.fail(f"{verb} {path}: {response.status} {answer[:300]!r}")
        self.slowest = max(self.slowest, time.monotonic() - begun)
        return answer

    def fail(self, reason: str) -> typing.NoReturn:
        self.failed.append(f"{time.strftime('%H:%M:%S')} {self.name} {reason}")
        raise RequestError

    def create_run(self) -> str:
        if not self.experiment:
            created = json.loads(
                self.call("POST", f"{API}/experiments/create", {"name": f"{self.name}-{time.time_ns()}"})
            )
            self.experiment = created["experiment_id"]
        created = json.loads(self.call("POST", f"{API}/runs/create", {"experiment_id": self.experiment}))
        return created["run"]["info"]["run_id"]


def train(client: Client) -> None:
    """A run with three batches of metrics, read back."""
    run = client.create_run()
    for step in range(3):
        metrics = [{"key": f"m{n}", "value": n, "timestamp": 1, "step": step} for n in range(20)]
        client.call("POST", f"{API}/runs/log-batch", {"run_id": run, "metrics": metrics})
    client.call("POST", f"{API}/runs/update", {"run_id": run, "status": "FINISHED"})
    read = json.loads(client.call("GET", f"{API}/runs/get?run_id={run}"))
    if len(read["run"]["data"]["metrics"]) != 20:
        client.fail(f"run {run} lost metrics")
    client.runs += 1


def search(client: Client) -> None:
    client.call("GET", f"{API}/experiments/search?max_results=20")
    if client.experiment:
        client.call("POST", f"{API}/runs/search", {"experiment_ids": [client.experiment], "max_results": 20})
    else:
        client.create_run()


def browse(client: Client) -> None:
    """The page, and a file of it."""
    page = client.call("GET", "/").decode()
    script = page.partition("static-files/static/js/main.")[2].partition('"')[0]
    client.call("GET", f"/static-files/static/js/main.{script}", kind="/static-files")


def store(client: Client) -> None:
    """An artifact of tens of megabytes, written and read back."""
    run, content = client.create_run(), os.urandom(UPLOAD_BYTES)
    path = f"{ARTIFACTS}/{client.experiment}/{run}/artifacts/model.bin"
    client.call("PUT", path, content, kind="upload")
    if client.call("GET", path, kind="download") != content:
        client.fail(f"{path} came back different")
    client.bytes += UPLOAD_BYTES
    time.sleep(PAUSE_BETWEEN_FILES_SECONDS)


def store_slowly(client: Client) -> None:
    """A large upload that takes longer than any server is given to stop."""
    run = client.create_run()
    path = f"{ARTIFACTS}/{client.experiment}/{run}/artifacts/slow.bin"
    piece = os.urandom(SLOW_UPLOAD_BYTES // SLOW_SECONDS)
    connection = Connection(HOST, timeout=300)
    client.requests["slow upload"] += 1
    try:
        connection.putrequest("PUT", path)
        connection.putheader("Authorization", f"Basic {LOGIN}")
        connection.putheader("Content-Length", str(len(piece) * SLOW_SECONDS))
        connection.endheaders()
        for _ in range(SLOW_SECONDS):
            connection.send(piece)
            if not (DIRECTORY / "stop").exists():
                time.sleep(1)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        client.fail(f"slow PUT {path}: {error!r}")
    if response.status != 200:
        client.fail(f"slow PUT {path}: {response.status} {answer[:300]!r}")
    back = client.call("GET", path, kind="download")
    if hashlib.sha256(back).digest() != hashlib.sha256(piece * SLOW_SECONDS).digest():
        client.fail(f"{path} came back different")
    client.bytes += len(back)


def main() -> None:
    work = {"train": train, "train2": train, "search": search, "browse": browse, "store": store, "slow": store_slowly}
    clients = [Client(name, function) for name, function in work.items()]
    begun = time.monotonic()
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        (DIRECTORY / "requests").write_text(str(sum(client.requests.total() for client in clients)))
        time.sleep(1)
    kinds = sum((client.requests for client in clients), collections.Counter())
    report = {
        "requests": kinds.total(),
        "failed": list(itertools.chain.from_iterable(client.failed for client in clients)),
        "slowest_seconds": round(max(client.slowest for client in clients), 2),
        "seconds": round(time.monotonic() - begun, 1),
        "runs": sum(client.runs for client in clients),
        "bytes": sum(client.bytes for client in clients),
        "kinds": kinds,
    }
    (DIRECTORY / "report.json").write_text(json.dumps(report))


main()
