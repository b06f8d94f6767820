"""MLflow where users sign in at an OpenID provider: what mlflow-oidc-auth is given, and what is closed around it.

The environment holds the plugin's own variables, but for its secrets. Only a release made from the lock
`oidc-requirements-<version>.txt` has the plugin.
"""

import asyncio
import base64
import binascii
import hashlib
import importlib
import os
import pathlib
import re
import time
import unittest.mock
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime
from typing import Any

import alembic.config
import sqlalchemy
from asgiref.sync import ThreadSensitiveContext
from asgiref.wsgi import WsgiToAsgi, WsgiToAsgiInstance
from mlflow_keys import credential

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# What the plugin answers before a login and a sign-in needs: the way to the provider and back, and the page that says
# why it failed. All else that the plugin leaves open, SCIM, SAML, probes and its documentation, is not there.
SIGN_IN = re.compile(r"/(health|providers|login(/default)?|callback|static-files/.*|oidc/ui(/.*)?)")
INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
# Of Flask, in one process, as many as MLflow itself would have.
free_threads = asyncio.Semaphore(40)
# No password of this kind has an end; the credential's is applied at every start.
FOREVER = datetime(9999, 1, 1)
CREDENTIAL = "mlflow.admin-password"


class Constant(dict[str, Any]):
    """A mapping with a hash, for the default of a dataclass's field."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def plugin(module: str) -> Any:
    """Return a module of mlflow-oidc-auth; the first one reads the environment."""
    with unittest.mock.patch("types.MappingProxyType", Constant):
        # Python 3.11 has no hash for the type whose place that takes, and refuses the plugin's default for want of one.
        importlib.import_module("mlflow_oidc_auth.permission_kinds")
    return importlib.import_module(f"mlflow_oidc_auth.{module}")


def alembic_config(uri: str) -> alembic.config.Config:
    """Return the plugin's migrations, for the database of its users, and have the plugin know its secrets."""
    os.environ |= {
        "OIDC_USERS_DB_URI": uri,
        "OIDC_CLIENT_SECRET": credential("oidc-client-secret") or "",
        # Of its cookies, and of the tokens that it keeps.
        "SECRET_KEY": credential("flask-secret-key") or "",
    }
    return plugin("db.utils")._get_alembic_config(uri)


def ensure_admin(username: str, password: str) -> None:
    """Create the administrator who logs in by the credential's password, or give them it.

    A service account: nobody whom the provider calls so becomes it.
    """
    models = plugin("db.models")
    tokens = plugin("repository.user_token")
    store = plugin("store").store
    users = plugin("user")
    users.create_user(username, username, is_admin=True, is_service_account=True)
    if store.authenticate_user(username, password):
        return
    with store.ManagedSessionMaker(read_only=False) as session:
        user = session.query(models.SqlUser).filter_by(username=username).one()
        session.query(models.SqlUserToken).filter_by(user_id=user.id, token_prefix=None).delete()
        session.add(
            models.SqlUserToken(
                user_id=user.id,
                name=CREDENTIAL,
                token_hash=tokens.generate_password_hash(password),
                created_at=datetime.now(),
                expires_at=FOREVER,
            )
        )
    print(f"Applied the password of the credential {CREDENTIAL} to the user {username}.", flush=True)


def sweep() -> None:
    """Remove once an hour sign-ins that nobody finished, and sessions that are over: the plugin leaves both."""
    store = plugin("store").store
    while True:
        try:
            store.auth_state_repo.delete_expired()
            store.auth_session_repo.delete_expired()
        except sqlalchemy.exc.SQLAlchemyError as error:
            print(f"Sign-ins that are over were not removed: {error}", flush=True)
        time.sleep(3600)


def content_security_policy(page: pathlib.Path) -> str:
    """Return the policy for the plugin's own pages, which allows the scripts that stand in them and no others."""
    hashes = [
        base64.b64encode(hashlib.sha256(script).digest()).decode()
        for script in INLINE_SCRIPT.findall(page.read_bytes())
    ]
    scripts = " ".join(["'self'", *(f"'sha256-{one}'" for one in hashes)])
    return (
        f"default-src 'self'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    )


class Closed:
    """Lets through before a login what a sign-in needs, and nothing else that the plugin would answer."""

    def __init__(self, app: App, is_open: Callable[[str], bool], policy: str) -> None:
        self.app = app
        self._is_open = is_open
        self._policy = policy.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or whatever else ASGI calls an app for."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if self._is_open(path) and not SIGN_IN.fullmatch(path):
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and path.startswith("/oidc/ui"):
                message = {**message, "headers": [*message["headers"], (b"content-security-policy", self._policy)]}
            await send(message)

        # NGINX says so in a header that no client can set; where the plugin leads somebody to follows from it.
        secure = dict(scope["headers"]).get(b"x-forwarded-proto") == b"https"
        await self.app({**scope, "scheme": "https"} if secure else scope, receive, answer)


class Request(WsgiToAsgiInstance):
    """One request of Flask, in a thread of its own: the plugin's bridge has one thread for all of a process."""

    def build_environ(self, scope: Scope, body: Any) -> dict[str, Any]:
        """Return what Flask is given: the body is there as a whole, also one whose length nobody told before."""
        # Without it Flask takes such an upload for an empty one.
        return {**super().build_environ(scope, body), "wsgi.input_terminated": True}

    async def run_wsgi_app(self, body: Any) -> None:
        """Answer the request, whose body is there."""
        async with free_threads, ThreadSensitiveContext():
            await super().run_wsgi_app(body)


class Bridge(WsgiToAsgi):
    """Stands for the plugin's bridge to Flask."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await Request(self.wsgi_application)(scope, receive, send)


def basic_login(scope: Scope) -> tuple[str, str] | None:
    """Return the name and the password that a request brings; None without one that can be read."""
    # Of several headers the plugin reads the first.
    given = next((value for name, value in scope.get("headers", []) if name == b"authorization"), b"")
    kind, _, value = given.partition(b" ")
    if kind.lower() != b"basic":
        return None
    try:
        name, _, password = base64.b64decode(value).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return name.lower(), password


def create_plugin_app() -> App:
    """Return the plugin's app with MLflow's checks of host and origin, and what is closed around it."""
    app = plugin("app").app
    ui = plugin("routers.ui")
    paths = plugin("middleware.route_path")
    # The plugin has these for Flask's routes alone.
    importlib.import_module("mlflow.server.fastapi_security").init_fastapi_security(app)
    plugin("middleware.auth_aware_wsgi_middleware").WSGIMiddleware = Bridge
    _, page = ui._get_ui_directory()
    return Closed(app, paths.is_unprotected_route, content_security_policy(page))
