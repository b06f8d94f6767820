"""The size and the power of one virtual machine: what a patch cannot change.

https://cloud.google.com/compute/docs/instances/changing-machine-type-of-stopped-instance
https://cloud.google.com/compute/docs/disks/resize-persistent-disk
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.util
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json, method
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.drift import Difference
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.operations import LATE
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import batch_result
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import (
    AmbiguousError,
    ApiError,
    CloudError,
    Session,
    credentials_for,
)

try:
    MISSING_LIBRARY = None if importlib.util.find_spec("google.cloud.compute_v1") else "google-cloud-compute"
except ImportError:
    MISSING_LIBRARY = "google-cloud-compute"

# https://cloud.google.com/compute/docs/instances/instance-lifecycle
RUNNING, STOPPED = "RUNNING", frozenset({"TERMINATED", "STOPPED"})
PASSING = frozenset({"PROVISIONING", "STAGING", "STOPPING", "DEPROVISIONING", "REPAIRING"})
RETRY_SECONDS = 120.0


@dataclass(frozen=True)
class WantedVm:
    """A machine as the inventory states it; the fields are the options of gcp_vm."""

    zone: str
    name: str
    machine_type: str
    disk_size_gib: int
    allow_stopping: bool = False


class Vm:
    """One machine, by google-cloud-compute's REST clients."""

    def __init__(self, cloud: Session, wanted: WantedVm) -> None:
        self.cloud = cloud
        self.wanted = wanted
        self.title = f"compute.instances {wanted.name}"

    @functools.cached_property
    def _compute(self) -> Any:
        """google-cloud-compute, which takes seconds to import: only where there is something to change."""
        from google.cloud import compute_v1

        return compute_v1

    @functools.cached_property
    def _instances(self) -> Any:
        return self._compute.InstancesClient(credentials=credentials_for(self.cloud.project), transport="rest")

    @functools.cached_property
    def _disks(self) -> Any:
        return self._compute.DisksClient(credentials=credentials_for(self.cloud.project), transport="rest")

    def ensure(self) -> list[Difference]:
        """Bring the machine to the wanted size and let it run; return what differed.

        What an interrupted run left under way ends first, then the machine is read again.
        """
        first: list[Difference] | None = None
        deadline = self.cloud.clock() + self.cloud.timeout_seconds
        for pause in self.cloud.pauses(1.0):
            actual = self._settled()
            if actual is None:
                return []
            present = actual["machineType"].rsplit("/", 1)[-1]
            found = self._differences(actual, present)
            first = found if first is None else first
            self._raise_if_refused(actual["status"], present)
            if self.cloud.check_mode:
                return found
            try:
                self._bring(actual, present)
                return first
            except ApiError as error:
                if not error.busy or self.cloud.clock() > deadline:
                    raise
            self.cloud.sleep(min(pause, 10.0))
        raise AssertionError("pauses never end")

    def _differences(self, actual: Json, present: str) -> list[Difference]:
        size, found = int(_boot_disk(actual)["diskSizeGb"]), []
        if present != self.wanted.machine_type:
            found.append(Difference("machineType", present, self.wanted.machine_type))
        if size < self.wanted.disk_size_gib:
            found.append(Difference("disks[0].diskSizeGb", size, self.wanted.disk_size_gib))
        if actual["status"] != RUNNING:
            found.append(Difference("status", actual["status"], RUNNING))
        return found

    def _bring(self, actual: Json, present: str) -> None:
        boot, status = _boot_disk(actual), actual["status"]
        if int(boot["diskSizeGb"]) < self.wanted.disk_size_gib:
            self._resize(boot["source"].rsplit("/", 1)[-1])
        if present != self.wanted.machine_type:
            self._change_type(status)
        if present != self.wanted.machine_type or status != RUNNING:
            self._start(present)

    def _raise_if_refused(self, status: str, present: str) -> None:
        if status not in {RUNNING, *STOPPED}:
            unfit = f"{self.title}: is {status}, and only what runs or is stopped is brought to a size"
            raise CloudError(unfit, "docs/failures.md#the-machine-would-have-to-stop")
        if present != self.wanted.machine_type and status == RUNNING and not self.wanted.allow_stopping:
            raise CloudError(
                f"{self.title}: machineType is {present}, wanted {self.wanted.machine_type}. Google changes it only"
                " while the machine is stopped, which takes a minute or two, so the machine was left as it is;"
                " allow that with allow_stopping, or state the present value",
                "docs/failures.md#the-machine-would-have-to-stop",
            )

    def _settled(self) -> Json | None:
        """Return the machine once nothing passes over it any more, None when there is none."""
        deadline = self.cloud.clock() + self.cloud.timeout_seconds
        for pause in self.cloud.pauses(1.0):
            actual = self._read()
            if actual is None or actual["status"] not in PASSING or self.cloud.check_mode:
                return actual
            if self.cloud.clock() > deadline:
                late = f"{self.title}: still {actual['status']} after {self.cloud.timeout_seconds:.0f} s"
                raise CloudError(late, LATE)
            self.cloud.sleep(min(pause, 10.0))
        raise AssertionError("pauses never end")

    def _read(self) -> Json | None:
        try:
            return self.cloud.call(method("compute.v1", "instances", "get"), self._instance, f"Reading {self.title}")
        except ApiError as error:
            if error.status == 404 or (error.service_disabled and self.cloud.check_mode):
                return None
            raise

    @property
    def _instance(self) -> dict[str, str]:
        return {"project": self.cloud.project, "zone": self.wanted.zone, "instance": self.wanted.name}

    def _resize(self, disk: str) -> None:
        size = self._compute.DisksResizeRequest(size_gb=self.wanted.disk_size_gib)
        request = self._compute.ResizeDiskRequest(
            project=self.cloud.project,
            zone=self.wanted.zone,
            disk=disk,
            request_id=str(uuid.uuid4()),
            disks_resize_request_resource=size,
        )
        try:
            self._change(f"Resizing the disk of {self.title}", self._disks.resize, request)
        except ApiError as error:
            # A resize that an interrupted run began may have ended since the machine was read.
            actual = self._read() if error.status == 400 else None
            if actual is None or int(_boot_disk(actual)["diskSizeGb"]) < self.wanted.disk_size_gib:
                raise
        self.cloud.warnings.append(f"{self.title}: its file system takes the new space of the disk at the next boot")

    def _change_type(self, status: str) -> None:
        if status == RUNNING:
            stop = self._compute.StopInstanceRequest(**self._instance, request_id=str(uuid.uuid4()))
            self._change(f"Stopping {self.title}", self._instances.stop, stop)
        link = f"zones/{self.wanted.zone}/machineTypes/{self.wanted.machine_type}"
        request = self._compute.SetMachineTypeInstanceRequest(
            **self._instance,
            request_id=str(uuid.uuid4()),
            instances_set_machine_type_request_resource=self._compute.InstancesSetMachineTypeRequest(machine_type=link),
        )
        self._change(f"Setting the machine type of {self.title}", self._instances.set_machine_type, request)

    def _start(self, before: str) -> None:
        request = self._compute.StartInstanceRequest(**self._instance, request_id=str(uuid.uuid4()))
        try:
            self._change(f"Starting {self.title}", self._instances.start, request)
        except CloudError as error:
            if isinstance(error, ApiError) and error.busy:
                raise
            fix = f"it is stopped: run again, or state another type; before this run it was {before}"
            raise CloudError(f"{error}; {fix}", "docs/failures.md#the-machine-is-stopped") from error

    def _change(self, purpose: str, send: Callable[..., Any], request: Any) -> None:
        """Send a request and wait for the operation it began."""
        operation = self._call(purpose, send, request)
        try:
            self._call(purpose, operation.result, timeout=self.cloud.timeout_seconds)
        except concurrent.futures.TimeoutError as error:
            took = f"not done after {self.cloud.timeout_seconds:.0f} s"
            raise CloudError(f"{purpose}: {took}; run again later, the run goes on from here", LATE) from error

    def _call(self, purpose: str, send: Callable[..., Any], *request: Any, **options: Any) -> Any:
        import requests
        from google.api_core import exceptions, retry

        # A repeated request has the same requestId: Google carries it out once.
        passing = retry.if_exception_type(
            exceptions.TooManyRequests,
            exceptions.ServerError,
            requests.exceptions.ConnectionError,
            requests.exceptions.Timeout,
        )
        try:
            return send(*request, retry=retry.Retry(predicate=passing, timeout=RETRY_SECONDS), **options)
        except exceptions.RetryError as error:
            raise CloudError(f"{purpose}: {error.cause}", AmbiguousError.more) from error
        except exceptions.GoogleAPICallError as error:
            # Of an operation that failed, the status line says nothing.
            failed = getattr(error.response, "error", None)
            words = "; ".join(f"{one.message} ({one.code})" for one in failed.errors) if failed else error.message
            reason = next((str(one.get("reason", "")) for one in error.errors or [] if isinstance(one, dict)), "")
            raise ApiError(purpose, error.code or 0, reason, words) from error
        except requests.exceptions.RequestException as error:
            silence = f"{purpose}: no answer from compute.googleapis.com ({error})"
            raise CloudError(silence, AmbiguousError.more) from error


def _boot_disk(machine: Json) -> Json:
    disk: Json = next(disk for disk in machine["disks"] if disk.get("boot"))
    return disk


def ensure_vm(cloud: Session, wanted: WantedVm) -> Json:
    """Bring the machine to the wanted size and return the module's result."""
    found = Vm(cloud, wanted).ensure()
    differences = [difference._asdict() for difference in found]
    member = {"name": wanted.name, "changed": bool(found), "differences": differences}
    result = batch_result("vms", [member], [], lambda _: f"compute.instances {wanted.name}")
    del result["vms"]
    return {**result, "differences": differences}
