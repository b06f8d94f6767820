"""Secrets in Google Secret Manager, whose values never leave this module but for Google."""

from __future__ import annotations

import base64
import hmac
import secrets as random_source
import string
from concurrent.futures import ThreadPoolExecutor

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json, Method, method
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.drift import Difference
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import batch_result
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Resource, Wanted, resource_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import (
    THREADS,
    AmbiguousError,
    CloudError,
    Session,
)

ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits
# Fewer characters, or fewer to choose from, could be guessed.
LEAST = 16
ATTEMPTS = 5


def read_latest(cloud: Session, name: str) -> str:
    """Return the value of the secret's latest version. It must not get into a result or a message."""
    return _access(cloud, f"projects/{cloud.project}/secrets/{name}/versions/latest", name)


def _access(cloud: Session, version: str, name: str) -> str:
    answer = cloud.call(_versions("access"), {"+name": version}, f"Reading the value of secret {name}")
    return base64.b64decode(answer["payload"]["data"]).decode()


def _versions(name: str) -> Method:
    return method("secretmanager.v1", "projects.secrets.versions", name)


class Secret:
    """One secret with its versions."""

    def __init__(self, cloud: Session, wanted: Json) -> None:
        self.cloud = cloud
        self.name: str = wanted["name"]
        self.value: str | None = wanted.get("value")
        self.generate: Json = wanted.get("generate") or {}
        body = {field: wanted[field] for field in ("labels", "replication") if wanted.get(field)}
        self.resource: Resource = resource_of(cloud, Wanted("secretmanager.secrets", self.name, body=body))
        self.problems = [*self.resource.problems, *self._value_problems()]

    def _value_problems(self) -> list[str]:
        length, alphabet = self.generate.get("length", LEAST), self.generate.get("alphabet", ALPHABET)
        problems = []
        if self.value == "":
            problems.append(f"secret {self.name}: value is empty")
        if length < LEAST:
            problems.append(f"secret {self.name}: generate.length is {length}, write {LEAST} or more")
        if len(set(alphabet)) < LEAST:
            problems.append(f"secret {self.name}: generate.alphabet has fewer than {LEAST} different characters")
        return problems

    def ensure(self) -> list[Difference]:
        """Bring the secret to the wanted state and return what differed, without values."""
        actual = self.resource.read()
        plan, _ = self.resource.ensure(actual, lambda _: None)
        return plan.differences + self._ensure_version(exists=actual is not None)

    def _ensure_version(self, *, exists: bool) -> list[Difference]:
        first: list[Difference] | None = None
        value = self.value if self.value is not None else self._generated()
        for attempt in range(ATTEMPTS):
            found = self._version_difference() if exists else self._addition(None)
            first = found if first is None else first
            if self.cloud.check_mode or not found:
                break
            exists = True
            try:
                payload = {"payload": {"data": base64.b64encode(value.encode()).decode()}}
                add = method("secretmanager.v1", "projects.secrets", "addVersion")
                name = f"projects/{self.cloud.project}/secrets/{self.name}"
                self.cloud.call(add, {"+parent": name}, f"Adding a version to secret {self.name}", payload)
                break
            except AmbiguousError:
                if attempt == ATTEMPTS - 1:
                    raise
        return first or []

    def _addition(self, before: str | None) -> list[Difference]:
        return [Difference("version", before, "generated" if self.value is None else "given")]

    def _generated(self) -> str:
        alphabet = self.generate.get("alphabet", ALPHABET)
        return "".join(random_source.choice(alphabet) for _ in range(self.generate.get("length", 2 * LEAST)))

    def _version_difference(self) -> list[Difference]:
        parent = f"projects/{self.cloud.project}/secrets/{self.name}"
        answer = self.cloud.call(_versions("list"), {"+parent": parent}, f"Listing the versions of secret {self.name}")
        # Newest first, and destroyed ones are nothing any more.
        latest = next((v for v in answer.get("versions", []) if v.get("state") != "DESTROYED"), None)
        if latest is None:
            return self._addition(None)
        number = latest["name"].rsplit("/", 1)[-1]
        if latest.get("state") == "DISABLED":
            raise CloudError(f"secret {self.name}: its latest version {number} is disabled; enable or destroy it")
        if self.value is None:
            return []
        current = _access(self.cloud, latest["name"], self.name)
        is_same = hmac.compare_digest(current.encode(), self.value.encode())
        return [] if is_same else self._addition(f"version {number}, another value")


def ensure_secrets(cloud: Session, wanted: list[Json]) -> Json:
    """Bring all secrets to the wanted state, side by side, and return the module's result.

    `wanted` has the suboptions of gcp_secret. All are checked before the first call.
    """
    members = [Secret(cloud, one) for one in wanted]
    problems = [problem for member in members for problem in member.problems]
    if problems:
        raise CloudError("\n".join(problems))
    with ThreadPoolExecutor(THREADS) as pool:
        outcomes = list(pool.map(_outcome, members))
    results = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
    return batch_result("secrets", results, failures, lambda one: f"secret {one['name']}")


def _outcome(secret: Secret) -> Json | str:
    """Return the member of the result, or the message of the failure."""
    try:
        found = secret.ensure()
    except CloudError as error:
        return str(error)
    return {"name": secret.name, "changed": bool(found), "differences": [one._asdict() for one in found]}
