"""Long-running operations, in the three shapes that Google's APIs give them."""

import concurrent.futures
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from emulator.errors import ApiError
from emulator.state import Resource, State, now

_LOG = logging.getLogger(__name__)
Work = Callable[[], None]
# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto, of what an operation's work refuses.
_NUMBERS = {"FAILED_PRECONDITION": 9}
_EXCLUSIVE = {"delete", "resize", "setMachineType", "start", "stop"}


def _nothing() -> None:
    """Most operations have no effect outside the state."""


class Operations:
    """Runs the work of operations in threads and keeps their records in the state.

    A record is `{"style": compute|sql|longrunning, "body": <what the API shows>, "done": bool, "creates": [names],
    "target": name}`, kept under the path by which clients ask for it.
    """

    def __init__(self, state: State, seconds: float, longest_wait_seconds: float) -> None:
        self.longest_wait_seconds = longest_wait_seconds
        self._state = state
        self._seconds = seconds
        self.released = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=8, thread_name_prefix="operation")
        for record in state.operations.values():
            if not record["done"]:
                for name in record["creates"]:
                    state.resources.pop(name, None)
                _finish(record, "INTERNAL_ERROR", "The emulated cloud was restarted during the operation.")

    def close(self) -> None:
        """Waits for running operations."""
        self.release()
        self._pool.shutdown()

    def release(self) -> None:
        """Lets the operations that hang by a fault go on, and those that a fault taken before now will befall."""
        released, self.released = self.released, threading.Event()
        released.set()

    def busy(self, target: str) -> bool:
        """True while an operation on the resource (or on something in it) has not finished."""
        return any(not record["done"] and record["target"] == target for record in self._state.operations.values())

    def being_created(self, name: str) -> bool:
        """True until the operation that creates the resource has finished."""
        return any(not record["done"] and name in record["creates"] for record in self._state.operations.values())

    def exclusive(self, name: str) -> bool:
        """True while an operation on the resource suffers no other beside it."""
        return self.being_created(name) or any(
            not record["done"] and record["target"] == name and record["body"].get("operationType") in _EXCLUSIVE
            for record in self._state.operations.values()
        )

    def start(
        self,
        path: str,
        style: str,
        body: Resource,
        *,
        target: str,
        work: Work = _nothing,
        finish: Work = _nothing,
        undo: Work = _nothing,
        creates: tuple[str, ...] = (),
        fault: dict[str, Any] | None = None,
    ) -> Resource:
        """Starts an operation and returns what the API shows of it now.

        `work` runs in a thread without the lock and may raise: then the operation fails with the message and what it
        creates is withdrawn. `finish` changes the state, under the lock, after `work` has succeeded, `undo` after a
        failure.
        """
        record: Resource = {
            "style": style,
            "body": body,
            "done": False,
            "creates": list(creates),
            "target": target,
        }
        with self._state.lock:
            self._state.operations[path] = record
        shown = dict(body)
        self._pool.submit(self._run, record, work, finish, undo, fault or {})
        return shown

    def _run(
        self,
        record: Resource,
        work: Work,
        finish: Work,
        undo: Work,
        fault: dict[str, Any],
    ) -> None:
        code, message = "", ""
        if hangs_until := fault.get("operation_hangs"):
            hangs_until.wait()
        time.sleep(fault.get("delay_seconds", self._seconds))
        try:
            if fault.get("operation_error"):
                raise RuntimeError(fault["operation_error"])
            work()
            with self._state.lock:
                finish()
        except Exception as error:  # whatever goes wrong belongs to whoever waits for the operation
            _LOG.warning("operation on %s failed", record["target"], exc_info=True)
            code, message = error.status if isinstance(error, ApiError) else "INTERNAL_ERROR", str(error)
        with self._state.lock:
            if code:
                for name in record["creates"]:
                    self._state.resources.pop(name, None)
                undo()
            _finish(record, code, message)
            self._state.dirty = True


def new_name() -> str:
    """Return an unused name for an operation."""
    return f"operation-{int(time.time() * 1000)}-{uuid.uuid4().hex[:13]}"


def _finish(record: Resource, code: str, message: str) -> None:
    body = dict(record["body"])
    if record["style"] == "longrunning":
        body["done"] = True
        if code:
            body.pop("response", None)
            body["error"] = {"code": _NUMBERS.get(code, 13), "message": message}
        elif "response" not in body:
            body["response"] = {"@type": "type.googleapis.com/google.protobuf.Empty"}
    else:
        body |= {"status": "DONE", "endTime": now()}
        if record["style"] == "compute":
            body["progress"] = 100
        if code and record["style"] == "compute":
            body |= {
                "error": {"errors": [{"code": code, "message": message}]},
                "httpErrorStatusCode": 500,
                "httpErrorMessage": "INTERNAL SERVER ERROR",
            }
        elif code:
            body["error"] = {
                "kind": "sql#operationErrors",
                "errors": [{"kind": "sql#operationError", "code": code, "message": message}],
            }
    record["body"] = body
    record["done"] = True
