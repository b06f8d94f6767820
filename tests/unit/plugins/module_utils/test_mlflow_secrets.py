"""Which versions of its secrets a server takes, asked of a small one that behaves as MLflow does."""

from __future__ import annotations

import base64
import http.server
import threading

import flask
import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import mlflow_secrets
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError
from flask.sessions import SecureCookieSessionInterface

NAMES = ("admin-password", "flask-key")


def signed(key: str) -> str:
    app = flask.Flask("signs")
    app.secret_key = key
    return SecureCookieSessionInterface().get_signing_serializer(app).dumps({"csrf_token": "0" * 40})


class MLflow(http.server.BaseHTTPRequestHandler):
    """Lets passwords in, and signs with a key; `statuses` are answered first."""

    passwords = ("new",)
    key = "new key"
    statuses: tuple[int, ...] = ()

    def log_message(self, *_args):
        pass

    def do_GET(self):
        login = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
        status = 200 if login in [f"admin:{password}" for password in self.passwords] else 401
        if self.statuses:
            status, type(self).statuses = self.statuses[0], self.statuses[1:]
        self.send_response(status)
        if self.path == "/signup" and status == 200:
            self.send_header("Set-Cookie", f"session={signed(self.key)}; HttpOnly; Path=/")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def mlflow(monkeypatch):
    """Yield a function that starts the server with other attributes, and returns how to ask it."""
    servers = []
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def start(**attributes):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (MLflow,), attributes))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return mlflow_secrets.Server(f"http://127.0.0.1:{server.server_port}", "admin", sleep=lambda _seconds: None)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def secrets(google):
    """Give the fake cloud versions, oldest first, of which an empty one is disabled."""

    def give(**values):
        for name, versions in zip(NAMES, (values["passwords"], values["keys"]), strict=True):
            listed = [
                {"name": f"projects/1/secrets/{name}/versions/{n}", "state": "ENABLED" if value else "DISABLED"}
                for n, value in enumerate(versions, 1)
            ]
            google.special[f"/{name}/versions$"] = lambda _, listed=listed: {"versions": listed[::-1]}
            for n, value in enumerate(versions, 1):
                data = base64.b64encode(value.encode()).decode()
                google.special[f"/{name}/versions/{n}:access$"] = lambda _, data=data: {"payload": {"data": data}}

    return give


def test_the_latest_is_taken_and_the_ones_before_are_not(cloud, secrets, mlflow):
    secrets(passwords=["", "old", "new"], keys=["old key", "new key"])
    result = mlflow_secrets.ask(cloud, mlflow(), *NAMES)
    assert result["secrets"] == [
        {"name": "admin-password", "taken": ["3"], "refused": ["2"]},
        {"name": "flask-key", "taken": ["2"], "refused": ["1"]},
    ]
    assert "old" not in repr(result)
    assert "new" not in repr(result)


def test_an_old_one_that_still_works_is_told(cloud, secrets, mlflow):
    secrets(passwords=["old", "new"], keys=["old key", "new key"])
    passwords, keys = mlflow_secrets.ask(cloud, mlflow(passwords=("old", "new"), key="old key"), *NAMES)["secrets"]
    assert (passwords["taken"], passwords["refused"]) == (["2", "1"], [])
    assert (keys["taken"], keys["refused"]) == (["1"], ["2"])


def test_without_a_login_nothing_is_taken(cloud, secrets, mlflow):
    secrets(passwords=["old", "new"], keys=["new key"])
    passwords, keys = mlflow_secrets.ask(cloud, mlflow(passwords=("another",)), *NAMES)["secrets"]
    assert (passwords["taken"], keys["taken"]) == ([], [])


def test_an_old_version_with_the_value_of_the_latest_is_not_held_against_it(cloud, secrets, mlflow):
    secrets(passwords=["new", "old", "new"], keys=["new key"])
    passwords, _ = mlflow_secrets.ask(cloud, mlflow(), *NAMES)["secrets"]
    assert (passwords["taken"], passwords["refused"]) == (["3"], ["2"])


def test_passing_failures_are_asked_again_and_lasting_ones_are_told(mlflow):
    assert mlflow(statuses=(503, 502)).logs_in("new")
    with pytest.raises(CloudError, match=r"answered 503 to /api/2\.0/mlflow/experiments/search"):
        mlflow(statuses=(503,) * 9).logs_in("hunter2")
    gone = mlflow_secrets.Server("http://127.0.0.1:9", "admin", sleep=lambda _seconds: None)
    with pytest.raises(CloudError, match="does not answer") as raised:
        gone.logs_in("hunter2")
    assert "hunter2" not in str(raised.value)


def test_a_cookie_is_signed_by_flasks_own_way():
    cookie = signed("a key")
    assert mlflow_secrets.is_signed(cookie, "a key")
    assert not mlflow_secrets.is_signed(cookie, "another")
    assert not mlflow_secrets.is_signed("", "a key")
