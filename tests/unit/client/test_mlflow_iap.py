"""The users' package: MLflow's own client behind the stand-in of Identity-Aware Proxy, with Google's tokens."""

import datetime
import email.parser
import json
import logging
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import google.auth.exceptions
import mlflow
import mlflow_iap
import pytest
import requests
from google.auth.compute_engine import _metadata
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from emulator import oauth
from tests.unit.emulator.conftest import IAP_CLIENT_ID, PROJECT, SCOPE, Backend, Guarded, Running, new_account
from tests.unit.emulator.test_compute import ACCOUNT, ZONE, insert, machine, network, subnetwork

__all__ = ["network", "subnetwork"]
METADATA_FILES = ("METADATA", "RECORD", "WHEEL", "entry_points.txt")
ROOT = pathlib.Path(__file__).resolve().parents[3]
TRAINER = f"trainer@{PROJECT}.iam.gserviceaccount.com"
# What a user's program does, for as long as several tokens live.
TRAINING = """
import json, pathlib, tempfile, time
import mlflow

@mlflow.trace
def predict(x):
    return x + 1

mlflow.set_experiment("churn")
with mlflow.start_run() as run:
    for step in range(13):
        mlflow.log_metric("loss", 1 / (step + 1), step)
        time.sleep(1)
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "model.bin").write_bytes(bytes(range(256)) * 8000)
    mlflow.log_artifact(folder / "model.bin", "model")
    predict(1)
mlflow.flush_trace_async_logging()
found = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="model/model.bin")
client = mlflow.MlflowClient()
trace = client.get_trace(mlflow.get_last_active_trace_id())
print(json.dumps({
    "metrics": len(client.get_metric_history(run.info.run_id, "loss")),
    "artifact": pathlib.Path(found).read_bytes() == (folder / "model.bin").read_bytes(),
    "spans": [span.name for span in trace.data.spans],
}))
"""
ONE_CALL = "import mlflow; print(len(mlflow.search_experiments()))"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The package as its users install it; Python takes a wheel on its path for an installed one."""
    where = tmp_path_factory.mktemp("wheel")
    command = ["uv", "build", "--wheel", "--offline", "--no-config", "--quiet", "--out-dir", where, ROOT / "client"]
    subprocess.run(command, check=True)
    (built,) = where.glob("*.whl")
    return pathlib.Path(built)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server, that asks nobody who he is."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1", "--port", str(port)]
    plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    plain |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=plain, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        for _attempt in range(300):
            try:
                if requests.get(f"{url}/health", timeout=5, proxies={"http": ""}).ok:
                    break
            except requests.ConnectionError:
                assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        yield url
        os.killpg(process.pid, 15)


@pytest.fixture
def key_file(iap: Guarded, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The file of the service account that may pass, as Application Default Credentials."""
    file = tmp_path / "trainer.json"
    file.write_text(json.dumps(new_account(iap.cloud, "trainer")))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    monkeypatch.setenv("IAP_CLIENT_ID", IAP_CLIENT_ID)
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "iap")
    return file


@pytest.fixture
def track(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Names the tracking server of this process."""
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    yield mlflow.set_tracking_uri
    mlflow.set_tracking_uri(before)


def python(program: str, url: str, wheel: pathlib.Path | None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a user's program, in a process and a folder of its own."""
    names = {"MLFLOW_TRACKING_URI": url, "PYTHONPATH": str(wheel or ""), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    environment = {**os.environ, **names, **environment}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=300, check=False)


def fetched(cloud: Running) -> int:
    """Return how many tokens the token endpoint was asked for."""
    lines = requests.get(f"{cloud.admin}/log", timeout=5).text.splitlines()
    return sum(json.loads(line)["path"] == "/token" for line in lines)


def test_the_wheel_holds_the_package_and_its_entry_point_alone(wheel: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
        info = "mlflow_iap-0.1.0.dist-info"
        assert files == {"mlflow_iap/__init__.py", *(f"{info}/{name}" for name in METADATA_FILES)}
        entry_points = archive.read(f"{info}/entry_points.txt").decode().split()
        assert entry_points == ["[mlflow.request_auth_provider]", "iap", "=", "mlflow_iap:IapAuthProvider"]
        metadata = email.parser.Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    assert [item.partition(">")[0] for item in metadata.get_all("Requires-Dist", [])] == [
        "google-auth[requests]",
        "mlflow-skinny",
    ]


def test_a_training_outlives_its_tokens(
    iap: Guarded, key_file: pathlib.Path, wheel: pathlib.Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth, "IDENTITY_TOKEN_SECONDS", 6)
    iap.guard(mlflow_server, TRAINER)
    before = fetched(iap.cloud)
    done = python(TRAINING, iap.url, wheel)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == {"metrics": 13, "artifact": True, "spans": ["predict"]}
    assert iap.proxy.refused == []
    tokens = {claims["exp"] for claims in iap.proxy.admitted}
    # Each lives for six seconds, and is replaced after three.
    assert 4 <= len(tokens) <= fetched(iap.cloud) - before < len(iap.proxy.admitted)
    assert "eyJ" not in done.stdout + done.stderr


def test_without_the_package_and_with_a_token_for_another_there_is_no_way_in(
    iap: Guarded, key_file: pathlib.Path, wheel: pathlib.Path, backend: Backend
) -> None:
    iap.guard(backend.url, TRAINER)
    plain = python(ONE_CALL, iap.url, None, MLFLOW_TRACKING_AUTH="")
    assert plain.returncode == 1
    assert "401" in plain.stderr
    assert "Invalid IAP credentials: empty token" in plain.stderr
    other = python(ONE_CALL, iap.url, wheel, IAP_CLIENT_ID="another.apps.googleusercontent.com")
    assert other.returncode == 1
    assert "Invalid JWT audience" in other.stderr
    assert {status for status, _ in iap.proxy.refused} == {401}
    assert backend.requests == []


@pytest.fixture
def signed(iap: Guarded, key_file: pathlib.Path, backend: Backend, track: Callable[[str], None]) -> mlflow_iap.IapAuth:
    """What signs the requests of this process, to a backend that keeps them."""
    iap.guard(backend.url, TRAINER)
    track(iap.url)
    return mlflow_iap.IapAuth()


@pytest.fixture
def elsewhere(iap: Guarded) -> Iterator[Backend]:
    """A server that is not the tracking server, though clients trust it as much."""
    server = Backend(iap.tls)
    yield server
    server.close()


def secrets(backend: Backend) -> list[str]:
    """Return what reached a server that looks like a token, by whatever header."""
    return [text for *_, headers, _ in backend.requests for text in headers.values() if "eyJ" in text]


def test_the_token_goes_to_the_tracking_server_and_nowhere_else(
    iap: Guarded,
    signed: mlflow_iap.IapAuth,
    backend: Backend,
    elsewhere: Backend,
    track: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _time in range(2):
        assert requests.get(f"{elsewhere.url}/api", auth=signed, timeout=5).ok
    assert requests.get(f"{backend.url}/api", auth=signed, timeout=5).ok
    assert requests.get(f"{iap.url}/api", auth=signed, timeout=5).ok
    assert secrets(elsewhere) == []
    track(backend.url)
    assert requests.get(f"{backend.url}/plain", auth=signed, timeout=5).ok
    assert "Authorization" not in backend.requests.pop()[2]
    assert [(path, headers["X-Goog-Authenticated-User-Email"]) for _, path, headers, _ in backend.requests] == [
        ("/api", None),
        ("/api", f"accounts.google.com:{TRAINER}"),
    ]
    assert "Authorization" not in backend.requests[0][2]
    # Once for each of the others.
    assert [record.getMessage().split()[0] for record in caplog.records] == [elsewhere.url, backend.url]
    assert "eyJ" not in caplog.text


@pytest.mark.parametrize("login", [{}, {"Authorization": "Basic YTpi"}])
def test_a_redirect_does_not_carry_the_token_away(
    iap: Guarded, signed: mlflow_iap.IapAuth, backend: Backend, elsewhere: Backend, login: dict[str, str]
) -> None:
    backend.answers["/away"] = (307, {"Location": f"{elsewhere.url}/there"})
    assert requests.post(f"{iap.url}/away", headers=login, data=b"x", auth=signed, timeout=5).ok
    assert [path for _, path, *_ in elsewhere.requests] == ["/there"]
    assert secrets(elsewhere) == []


def test_mlflows_own_login_goes_beside_the_token(
    iap: Guarded, signed: mlflow_iap.IapAuth, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setattr("mlflow.tracking.request_auth.registry.fetch_auth", lambda _name: signed)
    assert http_request(get_default_host_creds(iap.url), "/api", "GET").ok
    (headers,) = (headers for *_, headers, _ in backend.requests)
    assert headers.get_all("Authorization") == ["Basic YW5uOnNlY3JldA=="]
    assert headers["X-Goog-Authenticated-User-Email"] == f"accounts.google.com:{TRAINER}"
    assert "eyJ" not in str(headers).replace(headers["X-Goog-IAP-JWT-Assertion"], "")


def test_the_second_header_gets_through_a_tunnel_of_an_http_proxy(
    iap: Guarded, signed: mlflow_iap.IapAuth, backend: Backend
) -> None:
    proxy = socket.create_server(("127.0.0.1", 0))
    heads: list[bytes] = []

    def carry(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            target.sendall(data)

    def serve() -> None:
        client, _ = proxy.accept()
        head = client.recv(65536)
        heads.append(head)
        host, _, port = head.split()[1].decode().partition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=carry, args=(client, server), daemon=True).start()
        carry(server, client)

    threading.Thread(target=serve, daemon=True).start()
    session = requests.Session()
    session.trust_env = False
    session.verify = os.environ["REQUESTS_CA_BUNDLE"]
    session.proxies = {"https": f"http://127.0.0.1:{proxy.getsockname()[1]}"}
    assert session.get(f"{iap.url}/api", headers={"Authorization": "Basic YTpi"}, auth=signed, timeout=5).ok
    assert heads[0].startswith(b"CONNECT ")
    assert b"eyJ" not in heads[0]
    assert backend.requests[0][2]["Authorization"] == "Basic YTpi"
    proxy.close()


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """A machine of nobody: no file, no metadata server."""
    monkeypatch.setenv("IAP_CLIENT_ID", IAP_CLIENT_ID)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.delenv("GOOGLE_IMPERSONATE_SERVICE_ACCOUNT", raising=False)


def test_without_the_client_id_the_next_step_is_told(
    iap: Guarded, signed: mlflow_iap.IapAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAP_CLIENT_ID", "")
    monkeypatch.setattr("mlflow.tracking.request_auth.registry.fetch_auth", lambda _name: signed)
    with pytest.raises(MlflowException, match="IAP_CLIENT_ID is not set: set it to the OAuth client ID"):
        http_request(get_default_host_creds(iap.url), "/api", "GET")


def test_without_credentials_the_next_step_is_told(no_credentials: None) -> None:
    with pytest.raises(MlflowException, match="Set GOOGLE_APPLICATION_CREDENTIALS"):
        mlflow_iap.IdToken().fetch()


def test_a_users_own_credentials_are_not_enough(no_credentials: None, tmp_path: pathlib.Path) -> None:
    content = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    (tmp_path / "application_default_credentials.json").write_text(json.dumps(content))
    with pytest.raises(MlflowException, match=r"are a user's, .* Set GOOGLE_IMPERSONATE_SERVICE_ACCOUNT"):
        mlflow_iap.IdToken().fetch()


def test_an_account_without_a_key_that_google_knows_is_told_so(iap: Guarded, key_file: pathlib.Path) -> None:
    url = f"https://iam.googleapis.com/v1/projects/{PROJECT}/serviceAccounts/{TRAINER}"
    iap.cloud.call("DELETE", url)
    with pytest.raises(MlflowException, match=r"invalid_grant.* its key is not disabled"):
        mlflow_iap.IdToken().fetch()


def claims_of(token: str) -> dict[str, Any]:
    return dict(oauth.jwt.decode(token, options={"verify_signature": False}))


def test_a_person_speaks_for_a_service_account(
    iap: Guarded, key_file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(iap.cloud.state / "credentials.json"))
    monkeypatch.setenv("GOOGLE_IMPERSONATE_SERVICE_ACCOUNT", TRAINER)
    with pytest.raises(MlflowException, match=r"have roles/iam\.serviceAccountOpenIdTokenCreator on it"):
        mlflow_iap.IdToken().fetch()
    person = iap.cloud.operator.credentials.service_account_email
    binding = {"role": "roles/iam.serviceAccountOpenIdTokenCreator", "members": [f"serviceAccount:{person}"]}
    url = f"https://iam.googleapis.com/v1/projects/{PROJECT}/serviceAccounts/{TRAINER}:setIamPolicy"
    iap.cloud.call("POST", url, {"policy": {"bindings": [binding]}})
    claims = claims_of(mlflow_iap.IdToken().fetch())
    assert (claims["email"], claims["aud"]) == (TRAINER, IAP_CLIENT_ID)


def test_a_machine_speaks_for_itself(
    cloud: Running, server_account: Any, subnetwork: str, no_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(cloud, f"{ZONE}/instances", machine(serviceAccounts=[{"email": ACCOUNT, "scopes": [SCOPE]}]))
    name = f"compute/projects/{PROJECT}/zones/us-central1-b/instances/mlflow-1"
    cloud.server.cloud.state.resources[name]["_ip"] = "127.0.0.1"
    address = f"127.0.0.1:{cloud.server.settings.metadata_port}"
    monkeypatch.delenv("NO_GCE_CHECK")
    monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", address)
    monkeypatch.setenv("GCE_METADATA_IP", address)
    claims = claims_of(mlflow_iap.IdToken().fetch())
    assert (claims["email"], claims["aud"]) == (ACCOUNT, IAP_CLIENT_ID)


class FakeCredentials:
    """Gives out a token of an hour at each asking, or what was told."""

    def __init__(self) -> None:
        self.token = ""
        self.expiry: datetime.datetime | None = None
        self.asked = 0
        self.seconds = 3600.0
        self.failure: Exception | None = None

    def refresh(self, request: object) -> None:
        self.asked += 1
        time.sleep(0.05)
        if self.failure:
            raise self.failure
        self.token = f"token {self.asked}"
        self.expiry = mlflow_iap._now() + datetime.timedelta(seconds=self.seconds)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCredentials:
    credentials = FakeCredentials()
    monkeypatch.setattr(mlflow_iap, "_id_token_credentials", lambda _request: credentials)
    return credentials


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets minutes pass."""
    now, passed = mlflow_iap._now, datetime.timedelta()

    def go_on(minutes: float) -> None:
        nonlocal passed
        passed += datetime.timedelta(minutes=minutes)

    monkeypatch.setattr(mlflow_iap, "_now", lambda: now() + passed)
    return go_on


def test_many_threads_share_one_token_and_one_fetch(fake: FakeCredentials) -> None:
    token, found = mlflow_iap.IdToken(), []
    threads = [threading.Thread(target=lambda: found.append(token.fetch())) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (set(found), fake.asked) == ({"token 1"}, 1)


def test_a_token_is_replaced_five_minutes_before_its_end(fake: FakeCredentials, later: Callable[[float], None]) -> None:
    token = mlflow_iap.IdToken()
    assert token.fetch() == "token 1"
    later(54)
    assert token.fetch() == "token 1"
    later(2)
    assert token.fetch() == "token 2"


def test_a_failure_to_replace_it_does_no_harm_while_it_is_good(
    fake: FakeCredentials, later: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    token = mlflow_iap.IdToken()
    token.fetch()
    # As google-auth says it where the endpoint gave another kind of token.
    fake.failure = google.auth.exceptions.RefreshError("No ID token in response.", {"access_token": "ya29.x"})
    later(56)
    assert (token.fetch(), token.fetch(), fake.asked) == ("token 1", "token 1", 2)
    later(3)
    assert (token.fetch(), fake.asked) == ("token 1", 3)
    later(2)
    with pytest.raises(MlflowException, match="No ID token in response") as refusal:
        token.fetch()
    assert "ya29" not in caplog.text + "".join(traceback.format_exception(refusal.value))
    fake.failure = None
    assert token.fetch() == "token 5"


def test_one_that_others_used_before_is_replaced_halfway(fake: FakeCredentials, later: Callable[[float], None]) -> None:
    fake.seconds = 240
    token = mlflow_iap.IdToken()
    token.fetch()
    later(1.9)
    assert token.fetch() == "token 1"
    later(0.2)
    assert token.fetch() == "token 2"


def test_nothing_is_logged_even_by_google_auth_and_urllib3(
    iap: Guarded, signed: mlflow_iap.IapAuth, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert requests.get(f"{iap.url}/api", auth=signed, timeout=5).ok
    assert caplog.records
    assert "eyJ" not in caplog.text
