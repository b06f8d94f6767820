"""Waiting for Google's long-running operations, in the three shapes its APIs have."""

from __future__ import annotations

from collections.abc import Iterator

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json, method
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError, Session


def wait(cloud: Session, api: str, operation: Json, purpose: str) -> None:
    """Return when the operation is done; raise CloudError with Google's message when it failed or takes too long.

    `operation` is the answer to the request that began it.
    """
    deadline = cloud.clock() + cloud.timeout_seconds
    pauses = cloud.pauses()
    while not _is_done(operation):
        if cloud.clock() > deadline:
            raise CloudError(
                f"{purpose}: not done after {cloud.timeout_seconds:.0f} s (operation {operation['name']} goes on);"
                " raise timeout_seconds or run again later, the run goes on from here"
            )
        # Compute Engine holds the request until the operation ends, or for two minutes.
        if api != "compute.v1":
            cloud.sleep(min(next(pauses), 5.0))
        operation = _read(cloud, api, operation, f"{purpose}, waiting")
    problems = list(_errors(operation))
    if problems:
        raise CloudError(f"{purpose}: {'; '.join(problems)}")


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
