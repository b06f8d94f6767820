import http.server
import os
import socketserver
import threading

import mlflow
import pytest
import requests
import urllib3.util.connection
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import mlflow_smoke_test
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.mlflow_smoke_test import SmokeTestError


@pytest.fixture
def server(monkeypatch):
    """Yields a function that starts a server which gives every request the same status, and returns its address."""
    servers = []
    # Without the proxy to an emulated cloud that other tests in this process may keep.
    direct = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    monkeypatch.setattr(os, "environ", direct)

    def start(status):
        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_any(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_args):
                pass

        for method in ("GET", "POST", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.handle_any)
        one = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(one)
        threading.Thread(target=one.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{one.server_port}"

    yield start
    for one in servers:
        one.shutdown()
        one.server_close()


@pytest.mark.parametrize(
    ("status", "component"), [(401, "mlflow"), (500, "mlflow"), (503, "cloud_sql_proxy"), (404, "nginx")]
)
def test_a_refusal_names_the_component_and_the_next_command(server, status, component):
    with pytest.raises(SmokeTestError) as failed:
        mlflow_smoke_test.run(server(status), ("admin", "a password"))
    assert failed.value.component == component
    assert failed.value.next_command == mlflow_smoke_test.NEXT_COMMANDS[component]
    assert str(status) in str(failed.value)
    assert "a password" not in str(failed.value)


def test_a_server_that_does_not_listen_is_nginx(server):
    nobody_there = server(200).replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(SmokeTestError) as failed:
        mlflow_smoke_test.run(nobody_there, ("admin", "a password"))
    assert failed.value.component == "nginx"


def test_the_real_client_reaches_a_server_by_its_unix_socket(monkeypatch, tmp_path):
    path = str(tmp_path / "live.sock")
    # Restored at the end: they are the process' own.
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib3.util.connection, "create_connection", urllib3.util.connection.create_connection)
    mlflow_smoke_test.connect_to(path)
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.headers["Host"], self.path))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_args):
            pass

    with socketserver.ThreadingUnixStreamServer(path, Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert mlflow.MlflowClient("http://localhost").search_experiments() == []
        server.shutdown()
    assert asked == [("localhost", "/api/2.0/mlflow/experiments/search")]


def test_the_first_cause_behind_the_clients_own_error_counts():
    hidden = mlflow.MlflowException("API request failed")
    hidden.__context__ = requests.exceptions.SSLError("certificate verify failed")
    assert mlflow_smoke_test.blame(hidden) == "certbot"


def test_what_was_made_is_deleted_in_reverse_even_after_a_failure(monkeypatch):
    deleted = []

    def use(_url, _name, _admin, _is_user_made, undo):
        undo.append(("user u", lambda: deleted.append("user")))
        undo.append(("run r", lambda: deleted.append("run")))
        raise SmokeTestError("Upload an artifact", "mlflow", "refused")

    monkeypatch.setattr(mlflow_smoke_test, "_use", use)
    with pytest.raises(SmokeTestError, match=r"^Upload an artifact: refused$"):
        mlflow_smoke_test.run("https://x", ("admin", "p"))
    assert deleted == ["run", "user"]


def test_what_cannot_be_deleted_is_a_failure_and_stops_no_other_deletion(monkeypatch):
    deleted = []

    def use(_url, _name, _admin, _is_user_made, undo):
        def refuse():
            raise requests.ConnectionError("gone")

        undo.append(("user u", lambda: deleted.append("user")))
        undo.append(("run r", refuse))
        return {}

    monkeypatch.setattr(mlflow_smoke_test, "_use", use)
    with pytest.raises(SmokeTestError, match=r"^Delete run r: .*gone.*Left behind: run r$") as failed:
        mlflow_smoke_test.run("https://x", ("admin", "p"))
    assert failed.value.component == "nginx"
    assert deleted == ["user"]


def test_something_else_read_back_is_a_failure():
    mlflow_smoke_test.expect("Read back", "the metrics", {"loss": 1.0}, {"loss": 1.0})
    with pytest.raises(SmokeTestError, match="the metrics came back as"):
        mlflow_smoke_test.expect("Read back", "the metrics", {"loss": 1.0}, {"loss": 2.0})
