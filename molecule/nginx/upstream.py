"""Stands in for MLflow on a Unix socket: answers with its socket's path and what it was asked, as JSON."""

import hashlib
import http.server
import json
import os
import socketserver
import sys
import typing


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        digest, size = hashlib.sha256(), 0
        remaining = int(self.headers.get("Content-Length", 0))
        while remaining and (piece := self.rfile.read(min(remaining, 1 << 20))):
            digest.update(piece)
            size += len(piece)
            remaining -= len(piece)
        answer = {
            "socket": sys.argv[1],
            "path": self.path,
            "headers": dict(self.headers),
            "bytes": size,
            "sha256": digest.hexdigest(),
        }
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Frame-Options", "SAMEORIGIN")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.do_GET()

    def log_message(self, *_: typing.Any) -> None:
        """Says nothing, not even who called: a Unix socket has no address."""


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


os.umask(0)
Server(sys.argv[1], Handler).serve_forever()
