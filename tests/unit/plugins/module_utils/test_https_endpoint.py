import datetime
import http.server
import ipaddress
import socket
import ssl
import threading

import pytest
import requests
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import https_endpoint
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DOMAIN = "mlflow.example.com"
NOW = datetime.datetime.now(datetime.UTC)


def make_certificate(directory, domain, days):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A test authority")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(days=1))
        .not_valid_after(NOW + datetime.timedelta(days=days, hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(domain), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "certificate.pem").write_bytes(pem)
    (directory / "both.pem").write_bytes(secret + pem)


class FrontDoor(http.server.BaseHTTPRequestHandler):
    """A proxy that is also the server behind it: TLS inside CONNECT, a redirect for plain HTTP."""

    context: ssl.SSLContext
    refuse_foreign = True

    def log_message(self, *_args):
        pass

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        try:
            self.connection = self.context.wrap_socket(self.connection, server_side=True)
        except (ssl.SSLError, ConnectionError):
            self.close_connection = True
            return
        self.rfile, self.wfile = self.connection.makefile("rb", -1), self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_GET(self):
        self.close_connection = True
        if isinstance(self.connection, ssl.SSLSocket):
            if self.headers["Host"] != DOMAIN and self.refuse_foreign:
                self.connection.close()
                return
            self.send_response(401)
            self.send_header("Strict-Transport-Security", "max-age=63072000")
        else:
            self.send_response(301)
            self.send_header("Location", f"https://{DOMAIN}/")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def front_door(tmp_path, monkeypatch):
    """Yields a function that starts the server with a certificate for a domain that is valid for so many days."""
    servers = []

    def start(domain=DOMAIN, days=30, **options):
        make_certificate(tmp_path, domain, days)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "both.pem")
        handler = type("Handler", (FrontDoor,), {"context": context, **options})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "certificate.pem"))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_reads_through_the_proxy_what_anybody_sees(front_door):
    front_door(days=30)
    seen = https_endpoint.read(DOMAIN, "/")
    assert seen["certificate"]["names"] == [DOMAIN]
    assert seen["certificate"]["issuer"] == "commonName=A test authority"
    assert seen["certificate"]["days_left"] == 30
    assert seen["status"] == 401
    assert seen["headers"]["strict-transport-security"] == "max-age=63072000"
    assert seen["redirect"] == {"status": 301, "location": f"https://{DOMAIN}/"}
    assert seen["foreign_host_status"] == 0


def test_a_server_that_answers_under_any_name_is_seen(front_door):
    front_door(refuse_foreign=False)
    assert https_endpoint.read(DOMAIN, "/")["foreign_host_status"] == 401


@pytest.mark.parametrize("error", [requests.ConnectionError, requests.ReadTimeout])
def test_plain_http_may_go_unanswered(front_door, monkeypatch, error):
    front_door()
    ask = requests.get

    def closed(url, **options):
        if url.startswith("http:"):
            raise error
        return ask(url, **options)

    monkeypatch.setattr(requests, "get", closed)
    seen = https_endpoint.read(DOMAIN, "/")
    assert (seen["status"], seen["redirect"]) == (401, {"status": 0, "location": ""})


def test_https_may_not(front_door, monkeypatch):
    front_door()
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, closed_proxy())
    with pytest.raises(requests.ConnectionError):
        https_endpoint.read(DOMAIN, "/")


def closed_proxy():
    """Return the URL of a proxy that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_authorities_may_be_in_a_directory(front_door, monkeypatch, tmp_path):
    front_door()
    (tmp_path / "authorities").mkdir()
    # As `openssl rehash` calls it, by the subject.
    (tmp_path / "certificate.pem").rename(tmp_path / "authorities" / "476d119e.0")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authorities"))
    assert https_endpoint.read(DOMAIN, "/")["certificate"]["names"] == [DOMAIN]


def test_curls_variable_names_the_authorities_where_requests_own_does_not(front_door, monkeypatch, tmp_path):
    front_door()
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.setenv("CURL_CA_BUNDLE", str(tmp_path / "certificate.pem"))
    assert https_endpoint.read(DOMAIN, "/")["certificate"]["names"] == [DOMAIN]


# The server may change between the first question and the one for its certificate.
def test_a_certificate_that_cannot_be_read_is_an_error_of_requests(front_door, monkeypatch):
    front_door(domain="other.example.com")
    with pytest.raises(requests.exceptions.SSLError, match="Hostname mismatch"):
        https_endpoint.peer_certificate(DOMAIN)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, closed_proxy())
    with pytest.raises(requests.ConnectionError, match="refused"):
        https_endpoint.peer_certificate(DOMAIN)


def test_a_proxy_that_does_not_speak_http_is_an_error_of_requests(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"SSH-2.0-proxy\r\n"), daemon=True).start()
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(requests.ConnectionError):
            https_endpoint.peer_certificate(DOMAIN)


def test_a_certificate_for_another_name_is_an_error(front_door):
    front_door(domain="other.example.com")
    with pytest.raises(requests.exceptions.SSLError, match=r"doesn't match|Hostname mismatch"):
        https_endpoint.read(DOMAIN, "/")


def test_an_issuer_that_is_not_trusted_is_an_error(front_door, monkeypatch, tmp_path):
    front_door()
    other = tmp_path / "other"
    other.mkdir()
    make_certificate(other, DOMAIN, 30)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other / "certificate.pem"))
    with pytest.raises(requests.exceptions.SSLError):
        https_endpoint.read(DOMAIN, "/")


def test_days_left_of_a_certificate_that_has_ended_are_negative():
    peer = {"notAfter": "Jan  1 00:00:00 2026 GMT", "issuer": ((("commonName", "x"),),)}
    facts = https_endpoint.certificate_facts(peer, datetime.datetime(2026, 1, 11, tzinfo=datetime.UTC))
    assert facts["days_left"] == -10
    assert facts["not_after"] == "2026-01-01T00:00:00+00:00"
