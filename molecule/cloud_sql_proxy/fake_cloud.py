"""A metadata server, the Cloud SQL Admin API for one instance, and that instance's port 3307.

Who connects with a certificate of the instance's authority is told its common name and gets back what it sends.
"""

import datetime
import http.server
import ipaddress
import json
import pathlib
import socketserver
import ssl
import sys
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

INSTANCE = "demo-project:europe-west1:mlflow"
TOKEN = "token-of-the-server"
BASE = "/sql/v1beta4/projects/demo-project/instances/mlflow"


class Authority:
    """The instance's certificate authority."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "instance authority")])
        self.certificate = self.sign("instance authority", self.key.public_key(), authority=True)

    def sign(self, name: str, public_key, authority: bool = False) -> bytes:
        """PEM of a certificate for one hour."""
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(
            issuer_name=self.name,
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            public_key=public_key,
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(minutes=5),
            not_valid_after=now + datetime.timedelta(hours=1),
        )
        builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.headers["Metadata-Flavor"] == "Google" else 403)
        self.end_headers()
        self.wfile.write(json.dumps({"access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer"}).encode())


class Api(http.server.BaseHTTPRequestHandler):
    authority: Authority
    directory: pathlib.Path

    def do_GET(self) -> None:
        found = {
            "kind": "sql#connectSettings",
            "region": "europe-west1",
            "databaseVersion": "POSTGRES_17",
            "backendType": "SECOND_GEN",
            "ipAddresses": [{"type": "PRIVATE", "ipAddress": "127.0.0.1"}],
            "serverCaCert": {"cert": self.authority.certificate.decode()},
        }
        self.answer(found if self.path == f"{BASE}/connectSettings" else None)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = serialization.load_pem_public_key(request["public_key"].encode())
        name = "iam login" if request.get("access_token") == TOKEN else "password login"
        certificate = {"cert": self.authority.sign(name, key).decode()}
        self.answer({"ephemeralCert": certificate} if self.path == f"{BASE}:generateEphemeralCert" else None)

    def answer(self, content: object) -> None:
        status = 200
        if self.headers["Authorization"] != f"Bearer {TOKEN}" or (self.directory / "denied").exists():
            status, content = 403, {"error": {"message": "The client is not authorized to make this request."}}
        elif content is None:
            status, content = 404, {"error": {"message": "The Cloud SQL instance does not exist."}}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())


class Database(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.request.do_handshake()
        subject = dict(part[0] for part in self.request.getpeercert()["subject"])
        self.wfile.write(f"{subject['commonName']}\n".encode())
        while data := self.request.recv(4096):
            self.wfile.write(data)


class TlsServer(socketserver.ThreadingTCPServer):
    """Each handshake happens in the connection's own thread."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, handler: type, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)


def main(directory: pathlib.Path) -> None:
    """Serve for ever; `directory` holds the certificate of the API."""
    authority = Authority()
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "instance.pem").write_bytes(secret + authority.sign("demo-project:mlflow", key.public_key()))
    database = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    database.load_verify_locations(cadata=authority.certificate.decode())
    database.load_cert_chain(directory / "instance.pem")
    database.verify_mode = ssl.CERT_REQUIRED
    api = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    api.load_cert_chain(directory / "certificate.pem", directory / "key.pem")
    Api.authority, Api.directory = authority, directory
    threading.Thread(target=TlsServer(3307, Database, database).serve_forever).start()
    threading.Thread(target=TlsServer(443, Api, api).serve_forever).start()
    http.server.ThreadingHTTPServer(("127.0.0.1", 80), Metadata).serve_forever()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
