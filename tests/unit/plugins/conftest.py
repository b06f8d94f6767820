"""A Google Cloud in memory, at the level of HTTP, for the core of the modules."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import Session


@dataclass
class Response:
    url: str
    status_code: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return b"" if self.body is None else json.dumps(self.body).encode()

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Call:
    verb: str
    path: str
    query: dict[str, Any]
    body: Any


@dataclass
class Fault:
    """Answers the next `times` calls that match in the place of the store; `lands` carries them out all the same."""

    verb: str
    path: str
    status: int = 0
    reason: str = ""
    message: str = "a fault"
    raises: Exception | None = None
    times: int = 1
    lands: bool = False
    headers: dict[str, str] = field(default_factory=dict)


DONE = {"name": "operation-1", "status": "DONE", "done": True}


@dataclass
class FakeGoogle:
    """Resources by the path of their URL. POST on a collection creates, PATCH merges, operations end at once."""

    store: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    special: dict[str, Callable[[Call], Any]] = field(default_factory=dict)

    def request(self, method: str, url: str, **arguments: Any) -> Response:
        call = Call(method, urlsplit(url).path, arguments["params"], arguments["json"])
        self.calls.append(call)
        for fault in self.faults:
            if fault.times and fault.verb == call.verb and re.search(fault.path, call.path):
                fault.times -= 1
                if fault.lands:
                    self._answer(call)
                if fault.raises:
                    raise fault.raises
                error = refusal(fault.status, fault.reason, fault.message)
                return Response(url, fault.status, error, fault.headers)
        status, body = self._answer(call)
        return Response(url, status, body)

    def written(self) -> list[Call]:
        return [
            call for call in self.calls if call.verb != "GET" and not call.path.endswith(("/wait", ":getIamPolicy"))
        ]

    def _answer(self, call: Call) -> tuple[int, Any]:
        for path, handler in self.special.items():
            if re.search(path, call.path):
                return 200, handler(call)
        if call.path.endswith("/wait") or "/operations/" in call.path:
            return 200, DONE
        if call.path.endswith("/operations"):
            return 200, {}
        if call.verb == "POST":
            name = call.body.get("name") or call.query.get("secretId")
            key = f"{call.path}/{name}"
            if key in self.store:
                return 409, refusal(409, "alreadyExists", "already exists")
            self.store[key] = dict(call.body)
            return 200, DONE
        if call.path not in self.store:
            return 404, refusal(404, "notFound", f"{call.path} was not found")
        if call.verb == "PATCH":
            merge(self.store[call.path], call.body)
            return 200, DONE
        if call.verb == "DELETE":
            del self.store[call.path]
            return 200, DONE
        return 200, self.store[call.path]


def refusal(status: int, reason: str, message: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}}


def merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """JSON merge patch: https://www.rfc-editor.org/rfc/rfc7396."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            merge(target[key], value)
        else:
            target[key] = value


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def google() -> FakeGoogle:
    return FakeGoogle()


@pytest.fixture
def fault() -> type[Fault]:
    return Fault


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cloud(google: FakeGoogle, clock: Clock) -> Session:
    return Session("demo", transport=google, sleep=clock.sleep, clock=clock, timeout_seconds=60)


@pytest.fixture
def checking(google: FakeGoogle, clock: Clock) -> Session:
    """A session in check mode."""
    return Session("demo", check_mode=True, transport=google, sleep=clock.sleep, clock=clock, timeout_seconds=60)
