"""A metadata server and a Secret Manager that know one service account; a secret is a file in the directory given."""

import base64
import http.server
import json
import pathlib
import ssl
import sys
import threading

ACCOUNT = "server@demo-project.iam.gserviceaccount.com"
TOKEN = "token-of-the-server"


class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = {"token": json.dumps({"access_token": TOKEN}), "email": ACCOUNT}
        what = self.path.removeprefix("/computeMetadata/v1/instance/service-accounts/default/")
        if self.headers["Metadata-Flavor"] != "Google" or what not in known:
            self.send_error(403)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(known[what].encode())


class SecretManager(http.server.BaseHTTPRequestHandler):
    secrets: pathlib.Path

    def do_GET(self) -> None:
        _, _, _, project, _, name, *rest = self.path.split("/")
        secret = self.secrets / name
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer(401, {"error": {"message": "Request had invalid authentication credentials."}})
        elif project != "demo-project" or name == "denied" or rest != ["versions", "latest:access"]:
            self.answer(403, {"error": {"message": "Permission 'secretmanager.versions.access' denied."}})
        elif not secret.exists():
            self.answer(404, {"error": {"message": f"Secret [{name}] not found or has no versions."}})
        else:
            payload = {"data": base64.b64encode(secret.read_bytes()).decode()}
            self.answer(200, {"name": f"projects/1/secrets/{name}/versions/1", "payload": payload})

    def answer(self, status: int, content: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())


if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1])
    SecretManager.secrets = directory / "secrets"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "certificate.pem", directory / "key.pem")
    api = http.server.ThreadingHTTPServer(("127.0.0.1", 443), SecretManager)
    api.socket = context.wrap_socket(api.socket, server_side=True)
    threading.Thread(target=api.serve_forever).start()
    http.server.ThreadingHTTPServer(("127.0.0.1", 80), Metadata).serve_forever()
