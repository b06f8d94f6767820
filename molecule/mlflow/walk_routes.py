"""Asks the live server for every route of the installed MLflow; prints [status, method, path] as JSON.

Run by the server's own Python. The table is made as the server makes it, with an empty database of users of its own.
Without arguments it asks on the live socket as somebody from elsewhere without a login; the first argument is other
headers as JSON, the second a name of NGINX's to ask over HTTPS.
"""

import collections
import http.client
import importlib.util
import json
import os
import pathlib
import re
import socket
import ssl
import sys
import tempfile

# Where MLflow's own programs are.
sys.path.append("/etc/mlflow/live")
place = pathlib.Path(tempfile.mkdtemp())
config = place / "basic_auth.ini"
config.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{place}/db\nadmin_username = admin\n")
os.environ |= {
    "_MLFLOW_AUTH_ADMIN_BOOTSTRAPPED": "true",
    "_MLFLOW_SGI_NAME": "uvicorn",
    "CREDENTIALS_DIRECTORY": str(place),
    "MLFLOW_AUTH_CONFIG_PATH": str(config),
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-a-test",
}


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


def route_table() -> dict[str, set[str]]:
    """Return the methods of each path, with 1 in the place of its parameters."""
    # Reads the environment above.
    from mlflow.server import app, auth

    table = collections.defaultdict(set)
    if importlib.util.find_spec("mlflow_oidc_auth"):
        import mlflow_oidc

        mlflow_oidc.alembic_config(f"sqlite:///{place}/db")
        served = mlflow_oidc.plugin("app").app
    else:
        served = auth.create_app()
    routes = [*fastapi_routes(served.routes), *((r.methods, r.rule) for r in app.url_map.iter_rules())]
    for methods, path in routes:
        table[re.sub(r"[{<][^}>]*[}>]", "1", path)] |= methods
    return table


# As NGINX tells of a caller from elsewhere.
headers = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {"X-Forwarded-For": "192.0.2.1"}
context = ssl._create_unverified_context()
answers = []
for path, methods in sorted(route_table().items()):
    for method in sorted(methods):
        connection = UnixConnection("mlflow.test")
        if len(sys.argv) > 2:
            connection = http.client.HTTPSConnection(sys.argv[2], context=context, timeout=10)
        connection.request(method, path, headers=headers)
        try:
            status = connection.getresponse().status
        except TimeoutError:
            # Open, and at work: which is no refusal.
            status = 0
        answers.append([status, method, path])
        connection.close()
json.dump(answers, sys.stdout)
