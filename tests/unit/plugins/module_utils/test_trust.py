"""Whom HTTPS trusts, against servers of the test's own."""

from __future__ import annotations

import http.server
import pathlib
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest
import requests
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import trust

from emulator.certificates import issue_server, make_authority


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers, and closes."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def authorities(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    """Certificates of two authorities; of the first there is a server's certificate with its key too."""
    files = []
    for number in range(2):
        certificate, key = make_authority(f"authority {number}")
        (tmp_path / f"authority-{number}.pem").write_text(certificate)
        files.append(tmp_path / f"authority-{number}.pem")
        if not number:
            (tmp_path / "server.pem").write_text("".join(issue_server(certificate, key, "localhost", ["localhost"])))
    return files


@pytest.fixture
def serve(tmp_path: pathlib.Path, authorities: list[pathlib.Path]) -> Iterator[Callable[[], str]]:
    """Yield a function that starts the server and returns its address, without a name."""
    assert authorities
    servers = []

    def start() -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return str(server.server_port)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def session(bundle: pathlib.Path) -> requests.Session:
    made = requests.Session()
    made.trust_env = False
    made.verify = str(bundle)
    made.mount("https://", trust.TrustingAdapter())
    return made


def test_what_is_trusted_is_read_once_for_all_connections(
    serve: Callable[[], str], authorities: list[pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    load = ssl.SSLContext.load_verify_locations
    monkeypatch.setattr(
        ssl.SSLContext, "load_verify_locations", lambda self, *a, **k: (read.append(a), load(self, *a, **k))[1]
    )
    made = session(authorities[0])
    for port in (serve(), serve()):
        for _connection in range(2):
            assert made.get(f"https://localhost:{port}/", timeout=10).status_code == 200
    assert len(read) == 1


@pytest.mark.parametrize(("authority", "host"), [(1, "localhost"), (0, "127.0.0.1")])
def test_another_authority_and_another_name_are_refused(
    serve: Callable[[], str], authorities: list[pathlib.Path], authority: int, host: str
) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        session(authorities[authority]).get(f"https://{host}:{serve()}/", timeout=10)


def test_a_bundle_that_is_not_there_is_told(authorities: list[pathlib.Path]) -> None:
    with pytest.raises(OSError, match=r"missing\.pem is not there"):
        session(authorities[0].with_name("missing.pem")).get("https://localhost:1/", timeout=10)
