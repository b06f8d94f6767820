"""Waiting for Google's long-running operations, in the three shapes its APIs have."""

from __future__ import annotations

from collections.abc import Iterator

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json, method
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import ApiError, CloudError, Session

LATE = "docs/failures.md#an-operation-takes-too-long"


class OperationError(CloudError):
    """An operation that ended in failure."""

    more = "docs/failures.md#an-operation-failed"


def wait(cloud: Session, api: str, operation: Json, purpose: str) -> Json:
    """Return the operation once it is done.

    Raises OperationError with Google's message when it failed, CloudError when it takes too long.
    `operation` is the answer to the request that began it.
    """
    deadline = cloud.clock() + cloud.timeout_seconds
    pauses = cloud.pauses()
    while not _is_done(operation):
        if cloud.clock() > deadline:
            raise CloudError(
                f"{purpose}: not done after {cloud.timeout_seconds:.0f} s (operation {operation['name']} goes on);"
                " raise timeout_seconds or run again later, the run goes on from here",
                LATE,
            )
        # Compute Engine holds the request until the operation ends, or for two minutes.
        if api != "compute.v1":
            cloud.sleep(min(next(pauses), 5.0))
        operation = _read(cloud, api, operation, f"{purpose}, waiting")
    problems = list(_errors(operation))
    if problems:
        raise OperationError(f"{purpose}: {'; '.join(problems)}")
    return operation


def settle(cloud: Session, instance: str, purpose: str) -> bool:
    """Wait for what is under way on a Cloud SQL instance, begun by an earlier run or by somebody else.

    Return whether anything was. An operation that fails is told as a warning: this run goes on to its own work.
    Raises CloudError when one takes too long.
    """
    running = [operation for operation in _of_instance(cloud, instance) if not _is_done(operation)]
    for operation in reversed(running):
        kind = operation.get("operationType", "operation")
        try:
            wait(cloud, "sqladmin.v1", operation, f"{purpose}, waiting for the {kind} begun before")
        except OperationError as error:
            cloud.warnings.append(str(error))
    return bool(running)


def last_failure(cloud: Session, instance: str) -> str:
    """Return Google's message when the latest operation on a Cloud SQL instance failed, else nothing."""
    try:
        latest = _of_instance(cloud, instance)[:1]
    except ApiError:
        # An instance that is gone may have taken its operations along; they only explain.
        return ""
    return "; ".join(problem for operation in latest for problem in _errors(operation))


def _of_instance(cloud: Session, instance: str) -> list[Json]:
    """Return the latest operations of a Cloud SQL instance, newest first.

    https://cloud.google.com/sql/docs/postgres/admin-api/rest/v1/operations/list
    """
    listing = method("sqladmin.v1", "operations", "list")
    purpose = f"Listing the operations of Cloud SQL instance {instance}"
    answer = cloud.call(listing, {"project": cloud.project}, purpose, None, {"instance": instance, "maxResults": 50})
    found: list[Json] = answer.get("items", [])
    return found


def _is_done(operation: Json) -> bool:
    return bool(operation.get("done")) or operation.get("status") == "DONE"


def _read(cloud: Session, api: str, operation: Json, purpose: str) -> Json:
    name = operation["name"]
    if api == "compute.v1":
        scope = next((scope for scope in ("zone", "region") if operation.get(scope)), "global")
        parameters = {"project": cloud.project, "operation": name}
        if scope != "global":
            parameters[scope] = operation[scope].rsplit("/", 1)[-1]
        return cloud.call(method(api, f"{scope}Operations", "wait"), parameters, purpose)
    parameters = {"project": cloud.project, "operation": name, "+name": name}
    return cloud.call(method(api, "operations", "get"), parameters, purpose)


def _errors(operation: Json) -> Iterator[str]:
    error = operation.get("error") or {}
    if "message" in error:
        yield error["message"]
    for one in error.get("errors", []):
        yield f"{one.get('message') or 'no explanation'} ({one.get('code', '')})"
