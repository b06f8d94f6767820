"""What the emulated cloud knows, in memory, with a snapshot on disk."""

import base64
import hashlib
import json
import os
import pathlib
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

Resource = dict[str, Any]


def now() -> str:
    """Return the time in RFC 3339 with milliseconds, as Google's APIs write it."""
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"


def public(resource: Resource) -> Resource:
    """Return a resource without the emulator's own fields, whose names begin with `_`."""
    return {name: value for name, value in resource.items() if not name.startswith("_")}


def fingerprint(value: Any) -> str:
    """Return a base64 digest (8 bytes) of a JSON value: equal values, equal fingerprints."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    return base64.urlsafe_b64encode(digest[:8]).decode()


def write_private(path: pathlib.Path, content: str) -> None:
    """Writes a file that only its owner can read, in one step."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
    temporary.replace(path)


class State:
    """Tables of JSON values, guarded by one lock, written atomically to `state.json` in the state directory.

    `resources` maps a full name such as `compute/projects/p/global/networks/n` to the resource; `objects` a bucket to
    object names to their generations, oldest first; `policies` a resource to its IAM policy; `services` a project to
    its enabled services; `operations` an operation's path to its record; `keys` a service account key's id to
    `{email, certificate}`; `retired` holds names that cannot be used again; `history` maps a Cloud SQL instance with
    point-in-time recovery to what it held, `{since, content}`, oldest first; `quotas` has the limits that were set, by
    metric, for `<project>/<region or global>`; `billing` a project to its billing account.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.lock = threading.RLock()
        self.dirty = False
        self._file = directory / "state.json"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (directory / "objects").mkdir(exist_ok=True)
        tables: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.projects: dict[str, str] = tables.get("projects", {})
        self.resources: dict[str, Resource] = tables.get("resources", {})
        self.objects: dict[str, dict[str, list[Resource]]] = tables.get("objects", {})
        self.policies: dict[str, Resource] = tables.get("policies", {})
        self.services: dict[str, list[str]] = tables.get("services", {})
        self.operations: dict[str, Resource] = tables.get("operations", {})
        self.keys: dict[str, Resource] = tables.get("keys", {})
        self.uploads: dict[str, Resource] = tables.get("uploads", {})
        self.retired: list[str] = tables.get("retired", [])
        self.history: dict[str, list[Resource]] = tables.get("history", {})
        self.quotas: dict[str, dict[str, float]] = tables.get("quotas", {})
        self.billing: dict[str, str] = tables.get("billing", {})
        self.signing_key: str = tables.get("signing_key", "") or secrets.token_hex(32)
        self.last_id: int = tables.get("last_id", 10**18 + secrets.randbelow(10**17))

    def tables(self) -> dict[str, Any]:
        """Return everything that a snapshot holds."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_") and name not in _ASIDE}

    def save(self) -> None:
        """Writes the snapshot when something changed since the last one."""
        with self.lock:
            if not self.dirty:
                return
            self.dirty = False
            content = json.dumps(self.tables())
        write_private(self._file, content)

    def new_id(self) -> str:
        """Return an unused 64-bit resource id, as a string."""
        with self.lock:
            self.last_id += 1 + secrets.randbelow(1000)
            return str(self.last_id)

    def under(self, prefix: str) -> Iterator[tuple[str, Resource]]:
        """Yields the full names that begin with a prefix, and their resources, in order of name."""
        for name in sorted(self.resources):
            if name.startswith(prefix):
                yield name, self.resources[name]

    def blob(self, identity: str) -> pathlib.Path:
        """Return the file that holds an object's bytes."""
        return self.directory / "objects" / identity

    def project_of(self, name_or_number: str) -> str:
        """Return the project id for an id or a number; unknown ones stay as they are."""
        return next((name for name, number in self.projects.items() if number == name_or_number), name_or_number)


_ASIDE = ("directory", "lock", "dirty")
