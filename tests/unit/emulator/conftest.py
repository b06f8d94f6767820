"""The emulator in this process, without containers, and real Google clients that reach it through its proxy."""

import asyncio
import base64
import contextlib
import dataclasses
import json
import pathlib
import shutil
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

from emulator import environment, operations
from emulator.effects import NoEffects
from emulator.server import Server, Settings

PROJECT = "demo-project"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


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


@pytest.fixture
def server_account(cloud: Running) -> AuthorizedSession:
    """A session of a service account that has been granted nothing."""
    base = f"https://iam.googleapis.com/v1/projects/{PROJECT}/serviceAccounts"
    account = cloud.call("POST", base, {"accountId": "mlflow-server"})
    key = cloud.call("POST", f"{base}/{account['email']}/keys", {})
    content = json.loads(base64.b64decode(key["privateKeyData"]))
    return AuthorizedSession(service_account.Credentials.from_service_account_info(content, scopes=[SCOPE]))


@pytest.fixture
def direct() -> requests.Session:
    """A client that takes no proxy, for what is not a Google host."""
    session = requests.Session()
    session.trust_env = False
    return session
