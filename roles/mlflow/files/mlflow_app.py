"""MLflow as it is served: says at once that it is alive; its log lines begin with the id that NGINX gave to a request.

Who guesses passwords is told to wait. Where NGINX knows who somebody is, `authenticate` takes its word.
"""

import asyncio
import collections
import contextvars
import dataclasses
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import flask
import mlflow.server
import prometheus_client.multiprocess
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.server import auth
from mlflow.server.fastapi_app import create_fastapi_app
from mlflow_keys import read_with_keys_before
from mlflow_login import log_in
from werkzeug.datastructures import Authorization

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Login = Callable[[MutableMapping[str, Any]], tuple[str, str] | None]
REQUEST_ID = re.compile(rb"[0-9a-f]{32}")
request_id = contextvars.ContextVar("request_id", default="")
# Passwords of one user from one address: so many at once that were not tried before, then one each so many seconds.
GUESSES = 10
SECONDS_PER_GUESS = 6.0
# How many users at addresses, and how many passwords, a process remembers.
REMEMBERED = 10_000


@dataclasses.dataclass
class Caller:
    """From where a request comes, as NGINX says, and whether a password of it was not looked at."""

    address: str
    refused: bool = False


caller: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("caller", default=None)


class RequestId:
    """Remembers the id for as long as the request lasts; Flask's threads inherit it."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable[[], Any], send: Send) -> None:
        """Serve one request, or whatever else ASGI calls an app for."""
        given = dict(scope.get("headers", [])).get(b"x-request-id", b"")
        # Not reset: uvicorn logs a failure of the app after it, in the request's own task.
        request_id.set(given.decode() if REQUEST_ID.fullmatch(given) else "")
        await self.app(scope, receive, send)


class Alive:
    """Answers /health from the event loop itself: Flask's few threads may all be held by long uploads.

    And /metrics, of all of the server's processes, without a login to who asks on this machine: of a request from
    elsewhere NGINX says where it is from.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable[[], Any], send: Send) -> None:
        """Serve one request, or whatever else ASGI calls an app for."""
        path = scope["path"] if scope["type"] == "http" else ""
        if path == "/health":
            kind, content = b"text/html; charset=utf-8", b"OK"
        elif path == "/metrics" and b"x-real-ip" not in dict(scope["headers"]):
            registry = prometheus_client.CollectorRegistry()
            prometheus_client.multiprocess.MultiProcessCollector(registry)
            kind, content = prometheus_client.CONTENT_TYPE_LATEST.encode(), prometheus_client.generate_latest(registry)
        else:
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})


class Guesses:
    """Looks at a password unless too many others were tried before it: what is tried again is no guess.

    So a training that goes on with yesterday's password locks nobody out. Stands for a function of MLflow that says
    whether a user has a password, in one process; each of a server's processes counts for itself.
    """

    def __init__(self, authenticate: Callable[..., bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._authenticate = authenticate
        self._clock = clock
        self._lock = threading.Lock()
        self._key = secrets.token_bytes(32)
        self._tried: collections.OrderedDict[bytes, None] = collections.OrderedDict()
        # What is left of GUESSES, and when that was.
        self._left: collections.OrderedDict[tuple[str, str], tuple[float, float]] = collections.OrderedDict()

    def __call__(self, username: str, password: str, **options: Any) -> bool:
        """Return whether the user has the password; False where it is not looked at, and the caller says so."""
        asking = caller.get()
        if asking is not None and not self.may_try(asking.address, username, password):
            asking.refused = True
            return False
        return self._authenticate(username, password, **options)

    def may_try(self, address: str, username: str, password: str) -> bool:
        """Return whether this password is to be looked at, and remember it."""
        tried = hmac.digest(self._key, f"{username}:{password}".encode(), "sha256")
        who = (address, username)
        with self._lock:
            if tried in self._tried:
                self._tried.move_to_end(tried)
                return True
            now = self._clock()
            left, since = self._left.pop(who, (GUESSES, now))
            left = min(GUESSES, left + (now - since) / SECONDS_PER_GUESS)
            if may := left >= 1:
                left -= 1
                self._tried[tried] = None
                if left < 1:
                    logging.getLogger("mlflow").warning("Too many passwords for one user from %s", address)
            self._left[who] = (left, now)
            for remembered in (self._tried, self._left):
                if len(remembered) > REMEMBERED:
                    remembered.popitem(last=False)
        return may


class Patience:
    """Says 429 in place of 401 where a password was not looked at."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable[[], Any], send: Send) -> None:
        """Serve one request, or whatever else ASGI calls an app for."""
        asking = Caller(dict(scope.get("headers", [])).get(b"x-real-ip", b"").decode("latin-1"))
        caller.set(asking)

        async def answer(message: MutableMapping[str, Any]) -> None:
            if asking.refused and message["type"] == "http.response.start" and message["status"] == 401:
                # With it a browser would ask for another password at once.
                headers = [(name, value) for name, value in message["headers"] if name.lower() != b"www-authenticate"]
                headers.append((b"retry-after", str(int(SECONDS_PER_GUESS)).encode()))
                message = {**message, "status": 429, "headers": headers}
            await send(message)

        await self.app(scope, receive, answer)


class SignedIn:
    """Wants a login for what MLflow, which tells everybody how the server is set up, answers without."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable[[], Any], send: Send) -> None:
        """Serve one request, or whatever else ASGI calls an app for."""
        refusal = None
        if scope["type"] == "http" and scope["path"].endswith("/mlflow/server-info"):
            # It may ask the database.
            refusal = await asyncio.to_thread(refuse, scope["headers"])
        if refusal is None:
            await self.app(scope, receive, send)
            return
        headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
        await send({"type": "http.response.start", "status": refusal.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": refusal.get_data()})


def refuse(headers: list[tuple[bytes, bytes]]) -> flask.Response | None:
    """Return MLflow's refusal of whoever sent these headers, and nothing where it knows who that is."""
    given = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    with mlflow.server.app.test_request_context(headers=given):
        answer = auth.authenticate_request()
    return answer if isinstance(answer, flask.Response) else None


def authenticate() -> Authorization | flask.Response:
    """Return who asks, or a refusal; MLflow's `authorization_function` for Flask's routes and FastAPI's.

    NGINX says so in a header, which no client can set, and says of each request where it is from. What does not is from
    this machine, past NGINX, and logs in by a password.
    """
    if "X-Real-IP" not in flask.request.headers:
        return auth.authenticate_request_basic_auth()
    name = flask.request.headers.get("X-Authenticated-User", "")
    if not name:
        # Without the header that would make a browser ask for a password.
        return flask.make_response("You are not signed in.", 401)
    # MLflow asks for each of its checks of one request.
    if flask.g.get("mlflow_app_user") != name:
        ensure_user(name)
        flask.g.mlflow_app_user = name
    return Authorization("basic", {"username": name, "password": ""})


def ensure_user(name: str) -> None:
    """Make a user of MLflow of who is none yet, without a password that anybody knows."""
    if auth.store.has_user(name):
        return
    try:
        auth.store.create_user(name, secrets.token_urlsafe(32))
    except MlflowException as error:
        # By another request, a moment ago.
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


class Guarded:
    """Answers 429 to a password that would be one guess too many, before the plugin looks at it."""

    def __init__(self, app: Callable[..., Awaitable[None]], guesses: Guesses, login: Login) -> None:
        self.app = app
        self._guesses = guesses
        self._login = login

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable[[], Any], send: Send) -> None:
        """Serve one request, or whatever else ASGI calls an app for."""
        login = self._login(scope) if scope["type"] == "http" else None
        address = dict(scope.get("headers", [])).get(b"x-real-ip", b"").decode("latin-1")
        if login is None or self._guesses.may_try(address, *login):
            await self.app(scope, receive, send)
            return
        headers = [(b"retry-after", str(int(SECONDS_PER_GUESS)).encode()), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def log_record(*arguments: Any, **options: Any) -> logging.LogRecord:
    """Return a record whose message begins with the id of the request at work, where there is one."""
    record = logging.LogRecord(*arguments, **options)
    if current := request_id.get():
        record.msg = f"request_id={current} {record.msg}"
    return record


def prepare() -> None:
    """Make of this process one of MLflow's as it is served here."""
    logging.setLogRecordFactory(log_record)
    log_in()
    read_with_keys_before()


def create_app() -> Alive:
    """Return what uvicorn's workers serve."""
    prepare()
    # Whatever asks for a login ends there, unless the same was right within the last minute.
    auth.store.authenticate_user = Guesses(auth.store.authenticate_user)  # type: ignore[method-assign]
    return Alive(RequestId(Patience(SignedIn(auth.create_app()))))


def create_app_without_users() -> Alive:
    """Return what uvicorn's workers serve where nobody logs in: no password that somebody brings is looked at."""
    prepare()
    return Alive(RequestId(create_fastapi_app()))


def create_app_with_oidc() -> Alive:
    """Return what uvicorn's workers serve where users sign in at an OpenID provider."""
    prepare()
    # Of a release that has the plugin.
    import mlflow_oidc

    guesses = Guesses(lambda *_: False)
    return Alive(RequestId(Guarded(mlflow_oidc.create_plugin_app(), guesses, mlflow_oidc.basic_login)))
