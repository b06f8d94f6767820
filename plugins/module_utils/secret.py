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
    ApiError,
    CloudError,
    Session,
)

ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits
# Fewer characters, or fewer to choose from, could be guessed.
LEAST = 16
ATTEMPTS = 5
NOT_DISABLED = "docs/failures.md#the-old-secrets-were-not-disabled"
# Annotation of a secret while it is rotated: the number of the version that is replaced. It is there from before the
# new version until after the old ones are disabled: a run that was killed in between is finished, and makes no other.
REPLACES = "rotation-replaces"


def _access(cloud: Session, version: str, name: str) -> str:
    answer = cloud.call(_versions("access"), {"+name": version}, f"Reading the value of secret {name}")
    return base64.b64decode(answer["payload"]["data"]).decode()


def read_version(cloud: Session, name: str, number: str) -> str:
    """Return the value of one version, or of `latest`. It must not get into a result or a message."""
    return _access(cloud, f"projects/{cloud.project}/secrets/{name}/versions/{number}", name)


def list_versions(cloud: Session, name: str) -> list[tuple[str, str]]:
    """Return number and state of each version, newest first."""
    parent = f"projects/{cloud.project}/secrets/{name}"
    pages = cloud.pages(_versions("list"), {"+parent": parent}, f"Listing the versions of secret {name}")
    listed = [one for page in pages for one in page.get("versions", [])]
    return [(one["name"].rsplit("/", 1)[-1], str(one.get("state"))) for one in listed]


def _versions(name: str) -> Method:
    return method("secretmanager.v1", "projects.secrets.versions", name)


class Secret:
    """One secret with its versions."""

    def __init__(self, cloud: Session, wanted: Json) -> None:
        self.cloud = cloud
        self.name: str = wanted["name"]
        self.value: str | None = wanted.get("value")
        self.generate: Json = wanted.get("generate") or {}
        self.rotation: str | None = wanted.get("rotation")
        self.used_version: str | None = wanted.get("used_version")
        # What a rotation tells: the latest version, and the one that it replaces, empty where none is under way.
        self.version = self.replaces = ""
        body = {field: wanted[field] for field in ("labels", "replication") if wanted.get(field)}
        self.resource: Resource = resource_of(cloud, Wanted("secretmanager.secrets", self.name, body=body))
        self.problems = [*self.resource.problems, *self._value_problems()]

    def _value_problems(self) -> list[str]:
        length, alphabet = self.generate.get("length", LEAST), self.generate.get("alphabet", ALPHABET)
        problems = []
        if self.rotation and self.value is not None:
            problems.append(f"secret {self.name}: rotation makes a value of its own, write generate in place of value")
        if self.rotation == "end" and not self.used_version:
            problems.append(f"secret {self.name}: rotation end needs used_version")
        if self.value == "":
            problems.append(f"secret {self.name}: value is empty")
        if length < LEAST:
            problems.append(f"secret {self.name}: generate.length is {length}, write {LEAST} or more")
        if len(set(alphabet)) < LEAST:
            problems.append(f"secret {self.name}: generate.alphabet has fewer than {LEAST} different characters")
        return problems

    def ensure(self) -> list[Difference]:
        """Bring the secret to the wanted state and return what differed, without values."""
        if self.rotation == "end":
            return self._end_rotation()
        actual = self.resource.read()
        plan, _ = self.resource.ensure(actual, lambda _: None)
        if self.rotation == "begin" and actual is not None:
            return plan.differences + self._begin_rotation()
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
                self._add(value)
                break
            except AmbiguousError:
                if attempt == ATTEMPTS - 1:
                    raise
        return first or []

    def _add(self, value: str) -> None:
        payload = {"payload": {"data": base64.b64encode(value.encode()).decode()}}
        add = method("secretmanager.v1", "projects.secrets", "addVersion")
        parent = {"+parent": self.resource.full_name}
        answer = self.cloud.call(add, parent, f"Adding a version to secret {self.name}", payload)
        self.version = str(answer.get("name", "")).rsplit("/", 1)[-1]

    def _addition(self, before: str | None) -> list[Difference]:
        return [Difference("version", before, "generated" if self.value is None else "given")]

    def _generated(self) -> str:
        alphabet = self.generate.get("alphabet", ALPHABET)
        return "".join(random_source.choice(alphabet) for _ in range(self.generate.get("length", 2 * LEAST)))

    def _latest(self) -> str | None:
        """Return the number of the latest version, None where none is left; CloudError when nobody can read it.

        Who asks Google for the latest version gets no older one.
        """
        listed = list_versions(self.cloud, self.name)
        if all(state == "DESTROYED" for _, state in listed):
            return None
        number, state = listed[0]
        if state != "ENABLED":
            raise CloudError(
                f"secret {self.name}: its latest version {number} is {state.lower()}; enable it, or add another",
                "docs/failures.md#a-secrets-latest-version-cannot-be-read",
            )
        return number

    def _version_difference(self) -> list[Difference]:
        number = self._latest()
        if number is None:
            return self._addition(None)
        if self.value is None:
            return []
        current = read_version(self.cloud, self.name, number)
        is_same = hmac.compare_digest(current.encode(), self.value.encode())
        return [] if is_same else self._addition(f"version {number}, another value")

    def _begin_rotation(self) -> list[Difference]:
        """Add a version, unless the rotation that is under way has one; return what differed at first."""
        first: list[Difference] | None = None
        value = self._generated()
        for attempt in range(ATTEMPTS):
            secret, latest = self._read(), self._latest()
            if latest is None:
                return self._ensure_version(exists=True)
            noted = secret.get("annotations", {}).get(REPLACES)
            self.version, self.replaces = latest, noted or latest
            is_made = noted is not None and int(latest) > int(noted)
            if first is None:
                first = [] if is_made else self._addition(f"version {latest}")
            if self.cloud.check_mode or is_made:
                break
            try:
                if noted is None:
                    self._note(secret, latest)
                self._add(value)
                break
            except (AmbiguousError, ApiError) as error:
                if attempt == ATTEMPTS - 1 or not _is_to_be_read_again(error):
                    raise
        return first or []

    def _end_rotation(self) -> list[Difference]:
        """Disable every version before the one in use, then forget the rotation; return what differed at first."""
        first: list[Difference] | None = None
        for attempt in range(ATTEMPTS):
            secret, listed = self._read(), list_versions(self.cloud, self.name)
            latest = listed[0] if listed else ("none", "")
            if latest != (self.used_version, "ENABLED"):
                raise CloudError(
                    f"secret {self.name}: version {self.used_version} is in use, the latest is {' '.join(latest)}."
                    " No version was disabled: run the rotation again",
                    NOT_DISABLED,
                )
            noted = secret.get("annotations", {}).get(REPLACES)
            self.version, self.replaces = latest[0], noted or ""
            old = [number for number, state in listed[1:] if state == "ENABLED"]
            if first is None:
                first = [Difference(f"versions.{number}", "ENABLED", "DISABLED") for number in old]
                first += [Difference(f"annotations.{REPLACES}", noted, None)] if noted else []
            if self.cloud.check_mode:
                break
            try:
                for number in old:
                    self._disable(number)
                if noted:
                    self._note(secret, None)
                break
            except (AmbiguousError, ApiError) as error:
                if attempt == ATTEMPTS - 1 or not _is_to_be_read_again(error):
                    raise
        return first or []

    def _read(self) -> Json:
        secret = self.resource.read()
        if secret is None:
            raise CloudError(f"secret {self.name}: does not exist, so it cannot be rotated", NOT_DISABLED)
        return secret

    def _note(self, secret: Json, replaced: str | None) -> None:
        """Write which version is replaced, or take that away, unless somebody has changed the secret meanwhile."""
        others = {key: text for key, text in secret.get("annotations", {}).items() if key != REPLACES}
        body = {"annotations": others | ({REPLACES: replaced} if replaced else {}), "etag": secret.get("etag")}
        purpose = f"Noting the rotation of secret {self.name}"
        patch, name = self.resource.method("patch"), self.resource.parameters("patch")
        self.cloud.call(patch, name, purpose, body, {"updateMask": "annotations"})

    def _disable(self, number: str) -> None:
        name = f"{self.resource.full_name}/versions/{number}"
        self.cloud.call(_versions("disable"), {"+name": name}, f"Disabling version {number} of secret {self.name}", {})


def _is_to_be_read_again(error: CloudError) -> bool:
    """Whether nobody knows if a change was made, or somebody else was faster: an etag that is not the secret's now."""
    return isinstance(error, AmbiguousError) or (
        isinstance(error, ApiError) and (error.conflict or error.reason == "FAILED_PRECONDITION")
    )


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
    failures = [outcome for outcome in outcomes if isinstance(outcome, CloudError)]
    return batch_result("secrets", results, failures, lambda one: f"secret {one['name']}")


def _outcome(secret: Secret) -> Json | CloudError:
    """Return the member of the result, or the failure."""
    try:
        found = secret.ensure()
    except CloudError as error:
        return error
    told = {"version": secret.version, "replaces": secret.replaces} if secret.rotation else {}
    return {"name": secret.name, "changed": bool(found), "differences": [one._asdict() for one in found], **told}
