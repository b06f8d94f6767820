"""A backup set as of a moment of the past, from a clone of the Cloud SQL instance and from older versions of artifacts.

Cloud SQL recovers a moment into an instance of its own, https://cloud.google.com/sql/docs/postgres/backup-recovery/pitr.
It is thrown away as soon as its databases are exported; what a run that was killed left, the next one removes.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.action import WantedAction
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.backup import (
    MANIFEST,
    WantedSet,
    act,
    at,
    compact,
    complete,
    export,
    manifest_of,
    newest_first,
    stat,
)
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.batch import ensure_all
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json, method
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.policy import ensure_policies
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Wanted, find
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import ApiError, CloudError, Session

VARIABLE = "platform_restore_point_in_time"
EXAMPLE = "2030-01-01T12:00:00Z"
# What an instance's own account needs to add files to the bucket of the sets, and to read them back.
WRITING_ROLES = ("roles/storage.objectCreator", "roles/storage.objectViewer")
# Where each engine says whether its log is kept, and how that is switched on.
LOGS = {
    "POSTGRES": ("pointInTimeRecoveryEnabled", "--enable-point-in-time-recovery"),
    "MYSQL": ("binaryLogEnabled", "--enable-bin-log"),
}


@dataclass(frozen=True)
class Asked:
    """What is asked for; the fields are the options of gcp_backup_point_in_time."""

    point_in_time: str
    bucket: str
    source_bucket: str
    set: str
    confirmed_set: str
    occupied: bool
    incomplete_enabled: bool
    instance: str
    databases: dict[str, str]
    user: str
    artifacts_bucket: str
    artifacts_prefix: str
    secrets: dict[str, str]
    mlflow_version: str
    schemas: dict[str, str]


@dataclass(frozen=True)
class Found:
    """What there is: the instance and the bucket of artifacts, None where there is none.

    `window` has the earliest and the latest moment that Google recovers, as getLatestRecoveryTime returns them, and
    `refusal` what it said instead.
    """

    instance: Json | None
    window: Json
    refusal: str
    artifacts: Json | None


def is_moment(text: str) -> bool:
    """Whether a text is a moment in UTC, in whole seconds."""
    try:
        datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        return False
    return re.fullmatch(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z", text) is not None


def obstacles(asked: Asked, found: Found, now: str) -> list[str]:
    """Return why a moment cannot be restored, each with what to do."""
    moment = asked.point_in_time
    problems = []
    if asked.set != "latest":
        problems.append(f"platform_restore_set is {asked.set} and {VARIABLE} is {moment}: give one of them")
    if asked.source_bucket != asked.bucket:
        problems.append(
            f"platform_restore_bucket is {asked.source_bucket}, and a moment is recovered from this deployment's own "
            "instance: leave it out, or restore a set from there by platform_restore_set"
        )
    if not is_moment(moment):
        return [*problems, f"{VARIABLE} is {moment}, no moment in UTC: write it as RFC 3339 has it, such as {EXAMPLE}"]
    name = compact(moment)
    if asked.confirmed_set not in ("", name):
        problems.append(f"platform_restore_confirmed_set is {asked.confirmed_set}, and what is asked for is {name}")
    elif asked.occupied and not asked.confirmed_set:
        problems.append(
            "the databases are not empty: all that they hold now would be replaced. If that is meant, give "
            f"-e platform_restore_confirmed_set={name}"
        )
    problems += _out_of_reach(asked, found, now)
    if not (found.artifacts or {}).get("versioning", {}).get("enabled") and not asked.incomplete_enabled:
        problems.append(
            f"the bucket {asked.artifacts_bucket} keeps no older versions, and what was deleted or replaced in it "
            "since then is gone. To restore all else, give -e platform_restore_incomplete_enabled=true"
        )
    return problems


def _out_of_reach(asked: Asked, found: Found, now: str) -> Iterator[str]:
    """Yield why a moment cannot be recovered, the plainest reason alone."""
    moment, instance = asked.point_in_time, found.instance
    earlier = "restore a set of before instead, by platform_restore_set"
    if at(moment) > at(now):
        yield f"{VARIABLE} is {moment}, and now it is {now}: write a moment of the past"
    elif instance is None:
        yield f"there is no Cloud SQL instance {asked.instance} from which {moment} could be recovered: {earlier}"
    elif not has_log(instance):
        option = LOGS[_engine(instance)][1]
        yield (
            f"the Cloud SQL instance {asked.instance} has point-in-time recovery switched off, so {VARIABLE} can be no "
            f"moment until now: {earlier}, and switch it on by playbooks/provision.yml, or where the instance is not "
            f"made here by gcloud sql instances patch {asked.instance} {option}"
        )
    elif at(moment) < at(instance["createTime"]):
        yield (
            f"{VARIABLE} is {moment}, before the Cloud SQL instance {asked.instance} was made, "
            f"{instance['createTime']}: write a later one, or {earlier}"
        )
    elif (days := _log_days(instance)) and at(moment) < at(now) - datetime.timedelta(days=days):
        yield (
            f"{VARIABLE} is {moment}, and the Cloud SQL instance {asked.instance} keeps its log for {days} days: "
            f"write a later one, or {earlier}; gcp_sql_transaction_log_days says for how long it is kept from now on"
        )
    elif found.refusal:
        yield f"Google does not say which moments of {asked.instance} can be recovered ({found.refusal}): {earlier}"
    elif (earliest := found.window.get("earliestRecoveryTime")) and at(moment) < at(earliest):
        yield (
            f"{VARIABLE} is {moment}, and the earliest that can be recovered is {earliest}: write a later one, or "
            f"{earlier}"
        )
    elif (latest := found.window.get("latestRecoveryTime")) and at(moment) > at(latest):
        yield (
            f"{VARIABLE} is {moment}, and the latest that can be recovered is {latest}: run again in some minutes, or "
            "write an earlier one"
        )


def has_log(instance: Json) -> bool:
    """Whether point-in-time recovery is on."""
    return bool(instance["settings"].get("backupConfiguration", {}).get(LOGS[_engine(instance)][0]))


def _engine(instance: Json) -> str:
    return str(instance["databaseVersion"]).partition("_")[0]


def _log_days(instance: Json) -> int:
    return int(instance["settings"].get("backupConfiguration", {}).get("transactionLogRetentionDays", 0))


def look(cloud: Session, asked: Asked) -> Found:
    """Read what a restore of a moment needs."""
    instance = next(iter(find(cloud, "sqladmin.instances", asked.instance)), None)
    artifacts = next(iter(find(cloud, "storage.buckets", asked.artifacts_bucket)), None)
    if instance is None or not has_log(instance):
        return Found(instance, {}, "", artifacts)
    called = method("sqladmin.v1", "projects.instances", "getLatestRecoveryTime")
    place = {"project": cloud.project, "instance": asked.instance}
    try:
        window = cloud.call(called, place, f"Reading which moments of {asked.instance} can be recovered")
    except ApiError as error:
        if error.status != 400:
            raise
        return Found(instance, {}, error.message, artifacts)
    return Found(instance, window, "", artifacts)


def take_as_of(cloud: Session, asked: Asked, now: Callable[[], str]) -> Json:
    """Take a whole set as of a moment, named by it and by the time of now, and return the module's result.

    Raises CloudError with all obstacles before anything is made.
    """
    begun = now()
    problems = obstacles(asked, look(cloud, asked), begun)
    if problems:
        told = f"Nothing was changed. {asked.point_in_time} cannot be restored: {'. '.join(problems)}."
        raise CloudError(told, "docs/failures.md#the-set-cannot-be-restored")
    if cloud.check_mode:
        return {"changed": True, "manifest": {}}
    for left in _clones(cloud, asked):
        _remove(cloud, asked, left)
    # In the bucket of the sets nothing is replaced, and a clone of before may still be going: each run has names of its
    # own.
    clone = f"{_family(asked)}-{re.sub('[^0-9]', '', begun)}"
    name = f"{compact(asked.point_in_time)}-{compact(begun)}"
    try:
        result = _set_from(cloud, asked, clone, name, now)
    except CloudError as error:
        try:
            _remove_all(cloud, asked)
        except CloudError as second:
            both = f"{error}. The clone was not removed either, the next run does that: {second}"
            raise CloudError(both, error.more) from error
        raise
    _remove_all(cloud, asked)
    return result


def _family(asked: Asked) -> str:
    """Return what the names of the clones begin with: in an instance that others use too, the database tells whose."""
    return f"{asked.instance}-{asked.databases['tracking'].lower().replace('_', '-')}-point-in-time"


def _clones(cloud: Session, asked: Asked) -> list[Json]:
    """Return the clones that there are, by their names: Google gives a clone the labels of its source."""
    own = re.compile(rf"{re.escape(_family(asked))}-[0-9]{{14}}")
    return [one for one in find(cloud, "sqladmin.instances") if own.fullmatch(one["name"])]


def _remove_all(cloud: Session, asked: Asked) -> None:
    for one in _clones(cloud, asked):
        _remove(cloud, asked, one)


def _remove(cloud: Session, asked: Asked, clone: Json) -> None:
    """Remove a clone, which has its source's protection, and its account's use of the bucket."""
    name = clone["name"]
    if clone.get("serviceAccountEmailAddress"):
        _grant(cloud, asked, clone, "absent")
    # One that is still being made is waited for.
    if find(cloud, "sqladmin.instances", name):
        settings = {"settings": {"deletionProtectionEnabled": False}}
        ensure_all(cloud, [Wanted("sqladmin.instances", name, body=settings)])
        ensure_all(cloud, [Wanted("sqladmin.instances", name, state="absent")])


def _grant(cloud: Session, asked: Asked, clone: Json, mode: str) -> None:
    member = f"serviceAccount:{clone['serviceAccountEmailAddress']}"
    bindings = [{"role": role, "members": [member]} for role in WRITING_ROLES]
    place = {"kind": "storage.buckets", "name": asked.bucket}
    ensure_policies(cloud, [{"resource": place, "bindings": bindings, "mode": mode}])


def _set_from(cloud: Session, asked: Asked, clone: str, name: str, now: Callable[[], str]) -> Json:
    """Take a set from a clone that is made for it."""
    context = {"destinationInstanceName": clone, "pointInTime": asked.point_in_time}
    body, unless = {"cloneContext": context}, {"name": clone}
    act(cloud, WantedAction("sqladmin.instances", "clone", asked.instance, body=body, unless=unless))
    (made,) = find(cloud, "sqladmin.instances", clone)
    _grant(cloud, asked, made, "additive")
    dumps = export(cloud, clone, asked.databases, f"gs://{asked.bucket}/{name}")
    about = {
        "begun": asked.point_in_time,
        "point_in_time": True,
        "mlflow": {},
        # What NGINX had then, and what the instance itself keeps of then, nobody knows.
        "certificate": {},
        "database": {
            "instance": asked.instance,
            "version": made["databaseVersion"],
            "installed_version": made.get("databaseInstalledVersion", ""),
            "user": asked.user,
            "backup_run": "",
        },
    }
    wanted = WantedSet(
        asked.bucket,
        name,
        dumps,
        asked.artifacts_bucket,
        asked.artifacts_prefix,
        asked.secrets,
        about,
        asked.point_in_time,
        lambda schemas: served(cloud, asked, schemas),
    )
    return complete(cloud, wanted, now)


def served(cloud: Session, asked: Asked, schemas: Mapping[str, str]) -> Json:
    """Return version and lock of what served at the moment, by the schemas that the databases had.

    That is the inventory's release where it has these, else that of the set nearest to the moment that has them: an
    upgrade takes one before. Otherwise the version is empty, as nobody knows.
    """
    if asked.schemas == schemas:
        return {"version": asked.mlflow_version, "lock_sha256": ""}
    names = [one for one in newest_first(cloud, asked.bucket) if stat(cloud, asked.bucket, f"{one}/{MANIFEST}")]
    manifests = [manifest_of(cloud, asked.bucket, one) for one in names]
    same = [one for one in manifests if one["mlflow"]["schemas"] == schemas and one["mlflow"]["version"]]
    if not same:
        return {"version": "", "lock_sha256": ""}
    moment = at(asked.point_in_time)
    nearest = min(same, key=lambda one: abs(at(one["begun"]) - moment))
    return {key: nearest["mlflow"].get(key, "") for key in ("version", "lock_sha256")}
