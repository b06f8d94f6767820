"""The emulator in this process, without containers, and real Google clients that reach it through its proxy."""

import asyncio
import base64
import contextlib
import dataclasses
import http.client
import http.server
import json
import pathlib
import shutil
import ssl
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import google.auth
import pytest
import requests
from google.auth.transport.requests import AuthorizedSession
from google.oauth2 import service_account

from emulator import certificates, environment, operations
from emulator.effects import NoEffects
from emulator.server import Server, Settings
from emulator.standins import identity_aware_proxy

PROJECT = "demo-project"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
IAP_CLIENT_ID = "100000000001-mlflow.apps.googleusercontent.com"
IAP_AUDIENCE = "/projects/100000000001/global/backendServices/7110000000000000001"


@dataclasses.dataclass
class Running:
    """An emulator that serves, and how to reach it."""

    server: Server
    loop: asyncio.AbstractEventLoop
    state: pathlib.Path
    operator: AuthorizedSession

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.server.settings.proxy_port}/_emulator"

    def call(self, verb: str, url: str, body: Any = None, session: Any = None, **options: Any) -> Any:
        """Return the JSON of an answer; fails the test for a refusal."""
        answer = (session or self.operator).request(verb, url, json=body, **options)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def refused(self, verb: str, url: str, body: Any = None, session: Any = None) -> dict[str, Any]:
        """Return `error` of an answer that must be a refusal."""
        answer = (session or self.operator).request(verb, url, json=body)
        assert not answer.ok, answer.text
        error: dict[str, Any] = answer.json()["error"]
        assert error["code"] == answer.status_code
        return error

    def done(self, operation: dict[str, Any], api: str = "") -> dict[str, Any]:
        """Return an operation once it has ended."""
        while operation.get("status") != "DONE" and not operation.get("done"):
            operation = self.call("GET", operation.get("selfLink") or f"{api}/v1/{operation['name']}")
        return operation


@contextlib.contextmanager
def serving(directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Serves until the context ends; the environment leads clients there."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    settings = Settings(directory / "state", operation_seconds=0, longest_wait_seconds=0.2, check_responses=True)
    server = Server(settings, NoEffects())
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    try:
        credentials = (server.settings.state / "credentials.json").read_text()
        authority = (server.settings.state / "ca.pem").read_text()
        client = directory / "client"
        environment.write(authority, credentials, server.settings.proxy_port, client)
        for line in (client / "env").read_text().splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            monkeypatch.setenv(name, value.strip("'"))
        # Reading every authority of the machine for each connection takes longer than the tests.
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.settings.state / "ca.pem"))
        found, _ = google.auth.default(scopes=[SCOPE])
        yield Running(server, loop, server.settings.state, AuthorizedSession(found))
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="session")
def fresh_state(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The state of a cloud that was just made: its keys take a while."""
    directory = tmp_path_factory.mktemp("fresh")
    Server(Settings(directory), NoEffects())
    return directory


@pytest.fixture
def cloud(fresh_state: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    shutil.copytree(fresh_state, tmp_path / "state")
    with serving(tmp_path, monkeypatch) as running:
        # Most tests are not about enabling services.
        for services in running.server.cloud.state.services.values():
            services += [
                f"{name}.googleapis.com"
                for name in ("compute", "iam", "sqladmin", "secretmanager", "servicenetworking")
            ]
        yield running


@pytest.fixture
def let_go(cloud: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """A session's sleep: operations with a delay stay pending, however slow the test, until a session waits by it."""
    waited = threading.Event()

    def hold(seconds: float) -> None:
        if seconds:
            waited.wait(60)

    def sleep(seconds: float) -> None:
        waited.set()
        time.sleep(seconds)

    monkeypatch.setattr(operations, "time", types.SimpleNamespace(sleep=hold, time=time.time))
    yield sleep
    waited.set()


def new_account(cloud: Running, name: str) -> dict[str, Any]:
    """Makes a service account that has been granted nothing; returns the content of its credentials file."""
    base = f"https://iam.googleapis.com/v1/projects/{PROJECT}/serviceAccounts"
    account = cloud.call("POST", base, {"accountId": name})
    key = cloud.call("POST", f"{base}/{account['email']}/keys", {})
    return dict(json.loads(base64.b64decode(key["privateKeyData"])))


@pytest.fixture
def server_account(cloud: Running) -> AuthorizedSession:
    """A session of a service account that has been granted nothing."""
    content = new_account(cloud, "mlflow-server")
    return AuthorizedSession(service_account.Credentials.from_service_account_info(content, scopes=[SCOPE]))


@pytest.fixture
def direct() -> requests.Session:
    """A client that takes no proxy, for what is not a Google host."""
    session = requests.Session()
    session.trust_env = False
    return session


class Backend:
    """A server on loopback that keeps what it was asked; `answers` by path: (status, headers)."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, str, http.client.HTTPMessage, bytes]] = []
        self.answers: dict[str, tuple[int, dict[str, str]]] = {}
        backend = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                backend.requests.append((self.command, self.path, self.headers, body))
                status, headers = backend.answers.get(self.path, (200, {}))
                self.send_response(status)
                for name, text in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_PUT = do_GET  # noqa: N815

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@dataclasses.dataclass
class Guarded:
    """Identity-Aware Proxy before a backend; `tls` is a certificate for loopback that clients trust, as its own is."""

    cloud: Running
    tls: ssl.SSLContext
    url: str = ""
    proxy: Any = None

    def guard(self, backend: str, *members: str) -> None:
        key = identity_aware_proxy.SigningKey(self.cloud.state)
        keys = requests.get("https://www.googleapis.com/oauth2/v3/certs", timeout=5).json()
        arguments = (backend, IAP_CLIENT_ID, IAP_AUDIENCE, members, keys, key)
        self.proxy = identity_aware_proxy.IdentityAwareProxy(*arguments)
        port = asyncio.run_coroutine_threadsafe(self.proxy.start(self.tls), self.cloud.loop).result(10)
        self.url = f"https://127.0.0.1:{port}"


@pytest.fixture
def iap(cloud: Running, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    authority, authority_key = certificates.make_authority("loopback")
    certificate, key = certificates.issue_server(authority, authority_key, "127.0.0.1", ["127.0.0.1"])
    (tmp_path / "loopback.pem").write_text(certificate)
    (tmp_path / "loopback.key").write_text(key)
    bundle = tmp_path / "trusted.pem"
    bundle.write_text((cloud.state / "ca.pem").read_text() + authority)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "loopback.pem", tmp_path / "loopback.key")
    guarded = Guarded(cloud, tls)
    yield guarded
    if guarded.proxy:
        asyncio.run_coroutine_threadsafe(guarded.proxy.stop(), cloud.loop).result(10)


@pytest.fixture
def backend() -> Iterator[Backend]:
    server = Backend()
    yield server
    server.close()
