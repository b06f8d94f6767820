"""A company's proxy that looks into TLS: it reads all that it passes on, and shows certificates of its own authority.

`company_proxy.py AUTHORITY KEY PORT`, beside the emulator's `certificates.py`. Says each host that it was asked for.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import socket
import socketserver
import ssl
import sys
import tempfile
import threading
import urllib.parse

from certificates import issue_server

SECONDS = 600


@functools.cache
def shown_as(host: str) -> ssl.SSLContext:
    """Return what the proxy answers with in a host's name."""
    certificate, key = issue_server(AUTHORITY, AUTHORITY_KEY, host, [host])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(certificate + key)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def copy(source: socket.socket, target: socket.socket) -> None:
    """Pass on what one side sends until it ends, and end both."""
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    for side in (source, target):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


class Handler(socketserver.StreamRequestHandler):
    """Serves one client: a tunnel, or requests in plain HTTP to one host."""

    rbufsize = 0

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := self.request.recv(1)):
                return
            head += byte
        verb, target, version = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        url = urllib.parse.urlsplit(f"//{target}" if verb == "CONNECT" else target)
        host, port = url.hostname or "", url.port or 80
        print(f"{host}:{port}", flush=True)
        inside: socket.socket = self.request
        # Without one, the thread that waits for the client would keep the other from answering it.
        inside.settimeout(SECONDS)
        outside: socket.socket = socket.create_connection((host, port), timeout=SECONDS)
        if verb == "CONNECT":
            inside.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            inside = shown_as(host).wrap_socket(inside, server_side=True)
            # Whom a company's proxy trusts is its own affair.
            outside = ssl._create_unverified_context().wrap_socket(outside, server_hostname=host)
        else:
            # One request each: the next may be for another host.
            path = f"{url.path or '/'}{'?' if url.query else ''}{url.query}"
            lines = [
                line for line in head.split(b"\r\n")[1:-2] if not line.lower().startswith((b"proxy-", b"connection:"))
            ]
            outside.sendall(b"\r\n".join([f"{verb} {path} {version}".encode(), *lines, b"Connection: close", b"", b""]))
        back = threading.Thread(target=copy, args=[outside, inside], daemon=True)
        back.start()
        copy(inside, outside)
        back.join()


class Server(socketserver.ThreadingTCPServer):
    """Remembers no client's failure."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    AUTHORITY, AUTHORITY_KEY = (pathlib.Path(name).read_text() for name in sys.argv[1:3])
    Server(("0.0.0.0", int(sys.argv[3])), Handler).serve_forever()
