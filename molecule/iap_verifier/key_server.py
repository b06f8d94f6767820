"""Stands in for Google's document of keys: answers with what is in /srv/keys/document, and logs one line a fetch."""

import http.server
import pathlib
import ssl


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        with pathlib.Path("/srv/keys/fetches").open("a") as log:
            log.write(f"{self.path}\n")
        body = pathlib.Path("/srv/keys/document").read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/srv/keys/certificate.pem", "/srv/keys/key.pem")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
