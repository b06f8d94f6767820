"""A company's proxy that looks into TLS: whatever is asked for, it answers itself, by a certificate of its own.

`proxy.py CERTIFICATE PORT`: the file holds certificate and key. Its answer is the request's first line; only what comes
by it is answered, for the names that are asked for lead nowhere.
"""

import socketserver
import ssl
import sys


class Handler(socketserver.StreamRequestHandler):
    """Answers one request, in plain HTTP, or in TLS after CONNECT."""

    def handle(self) -> None:
        line = self._head(self.rfile)
        stream = self.request
        if line.startswith("CONNECT "):
            self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            stream = context.wrap_socket(self.request, server_side=True)
            with stream.makefile("rb") as sent:
                line = f"{line.split()[1]} {self._head(sent)}"
        said = f"{line}\n".encode()
        stream.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said))

    def _head(self, sent) -> str:
        first = sent.readline().decode().strip()
        while sent.readline().strip():
            pass
        return first


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
