"""Asks the live server for every route of the installed MLflow, without a login; prints [status, method, path] as JSON.

Run by the server's own Python. The table is made as the server makes it, with an empty database of users of its own.
"""

import collections
import http.client
import json
import os
import pathlib
import re
import socket
import sys
import tempfile

place = pathlib.Path(tempfile.mkdtemp())
config = place / "basic_auth.ini"
config.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{place}/db\nadmin_username = admin\n")
os.environ |= {
    "_MLFLOW_AUTH_ADMIN_BOOTSTRAPPED": "true",
    "_MLFLOW_SGI_NAME": "uvicorn",
    "MLFLOW_AUTH_CONFIG_PATH": str(config),
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-a-test",
}

from mlflow.server import app as flask_app  # noqa: E402
from mlflow.server.auth import create_app  # noqa: E402


class UnixConnection(http.client.HTTPConnection):
    """HTTP to the live socket."""

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        # A refusal comes at once; without one, some routes stream for ever.
        self.sock.settimeout(10)
        self.sock.connect("/run/mlflow/live.sock")


def fastapi_routes(routes, prefix: str = ""):
    """Yield methods and path of each route, those of included routers as well."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from fastapi_routes(route.original_router.routes, prefix + route.include_context.prefix)
        elif getattr(route, "methods", None):
            yield route.methods, prefix + route.path


table = collections.defaultdict(set)
for methods, path in [
    *fastapi_routes(create_app().routes),
    *((r.methods, r.rule) for r in flask_app.url_map.iter_rules()),
]:
    table[re.sub(r"[{<][^}>]*[}>]", "1", path)] |= methods

answers = []
for path, methods in sorted(table.items()):
    for method in sorted(methods):
        connection = UnixConnection("mlflow.test")
        # As NGINX tells of a caller from elsewhere.
        connection.request(method, path, headers={"X-Forwarded-For": "192.0.2.1"})
        answers.append([connection.getresponse().status, method, path])
        connection.close()
json.dump(answers, sys.stdout)
