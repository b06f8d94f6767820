"""As much of Cloud DNS as Debian's Certbot asks for, one public zone, and the name server that tells the world of it.

The emulated cloud is strict about it; here the role is what is tried. With /run/denied nobody may do anything.
"""

import http.server
import itertools
import json
import pathlib
import socketserver
import ssl
import threading
from typing import Any
from urllib.parse import parse_qs, urlsplit

from name_server import NameServer

ZONE = {"id": "17", "name": "test", "dnsName": "mlflow.test.", "visibility": "public"}
HERE = pathlib.Path(__file__).parent
ADDRESSES = {"mlflow.test.": ["127.0.0.1"]}
records: dict[str, Any] = {}
numbers = itertools.count(1)


class Api(http.server.BaseHTTPRequestHandler):
    """The API, and where it is described."""

    def do_GET(self) -> None:
        """Answer from the zone."""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        end = url.path.rsplit("/", 1)[1]
        if end == "rest":
            self.answer(200, json.loads((HERE / "dns.json").read_text()))
        elif end == "managedZones":
            self.answer(200, {"managedZones": [ZONE] if query.get("dnsName") in (None, ZONE["dnsName"]) else []})
        elif end == "rrsets":
            self.answer(200, {"rrsets": [records[query["name"]]] if query["name"] in records else []})
        else:
            self.answer(200, {"id": end, "status": "done"})

    def do_POST(self) -> None:
        """Carry out a change."""
        change = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for record in change.get("deletions", []):
            del records[record["name"]]
        for record in change.get("additions", []):
            quoted = [text if text.startswith('"') else f'"{text}"' for text in record["rrdatas"]]
            records[record["name"]] = {**record, "rrdatas": quoted}
        self.answer(200, {**change, "id": str(next(numbers)), "status": "pending"})

    def answer(self, status: int, body: Any) -> None:
        """Send JSON, a refusal in any case while nobody may do anything."""
        if pathlib.Path("/run/denied").exists() and "/discovery/" not in self.path:
            status, body = 403, {"error": {"code": 403, "message": "Forbidden", "errors": [{"reason": "forbidden"}]}}
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Question(socketserver.BaseRequestHandler):
    """One question of the certificate authority."""

    def handle(self) -> None:
        """Answer it."""
        data, connection = self.request
        answer = NameServer(looked_up).answer(data)
        if answer:
            connection.sendto(answer, self.client_address)


def looked_up(name: str, kind: str) -> list[str] | None:
    """Return the data of a name's records, None for a name that is in no zone."""
    if not f".{name}".endswith(".mlflow.test."):
        return None
    return {"A": ADDRESSES.get(name, []), "TXT": records.get(name, {}).get("rrdatas", [])}.get(kind, [])


def main() -> None:
    """Serve both."""
    names = socketserver.UDPServer(("127.0.0.1", 5353), Question)
    threading.Thread(target=names.serve_forever, daemon=True).start()
    api = http.server.ThreadingHTTPServer(("127.0.0.1", 443), Api)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(HERE / "google.pem", HERE / "google.key")
    api.socket = context.wrap_socket(api.socket, server_side=True)
    api.serve_forever()


if __name__ == "__main__":
    main()
