"""MLflow with login: says at once that it is alive; its log lines begin with the id that NGINX gave to the request."""

import contextvars
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mlflow.server import auth

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
REQUEST_ID = re.compile(rb"[0-9a-f]{32}")
request_id = contextvars.ContextVar("request_id", default="")


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
    """Answers /health from the event loop itself: Flask's few threads may all be held by long uploads."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable[[], Any], send: Send) -> None:
        """Serve one request, or whatever else ASGI calls an app for."""
        if scope["type"] != "http" or scope["path"] != "/health":
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else b"OK"})


def log_record(*arguments: Any, **options: Any) -> logging.LogRecord:
    """Return a record whose message begins with the id of the request at work, where there is one."""
    record = logging.LogRecord(*arguments, **options)
    if current := request_id.get():
        record.msg = f"request_id={current} {record.msg}"
    return record


def create_app() -> Alive:
    """Return what uvicorn's workers serve."""
    logging.setLogRecordFactory(log_record)
    return Alive(RequestId(auth.create_app()))
