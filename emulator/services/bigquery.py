"""BigQuery: datasets, with who may do what on them in the dataset itself."""

import re
import time

from aiohttp import web

from emulator.cloud import Call, patched, serves
from emulator.errors import ApiError
from emulator.services.compute_catalog import ZONES
from emulator.state import Resource, fingerprint, now

_ID = re.compile(r"[A-Za-z0-9_]{1,1024}")
_LOCATIONS = {"US", "EU", *ZONES}
_WHO = {"userByEmail", "groupByEmail", "domain", "specialGroup", "iamMember"}
_GROUPS = {"projectOwners", "projectReaders", "projectWriters", "allAuthenticatedUsers"}


def _of_project(call: Call) -> list[str]:
    return [f"projects/{call.parameters['projectId']}"]


def _key(call: Call, dataset: str = "") -> str:
    return f"bigquery/projects/{call.parameters['projectId']}/datasets/{dataset or call.parameters['datasetId']}"


def _need(call: Call) -> Resource:
    found = call.state.resources.get(_key(call))
    if found is None:
        raise ApiError(404, f"Not found: Dataset {call.parameters['projectId']}:{call.parameters['datasetId']}")
    return found


def _check(call: Call, dataset: Resource) -> None:
    if dataset.get("location") not in _LOCATIONS:
        raise ApiError(400, f"Invalid location: {dataset.get('location')}.")
    for field in ("defaultTableExpirationMs", "defaultPartitionExpirationMs"):
        if 0 < int(dataset.get(field, 0)) < 3_600_000:
            raise ApiError(400, f"{field} must be 0 or at least an hour.")
    for entry in dataset.get("access", []):
        who = _WHO & entry.keys()
        if len(who) != 1 or entry.get("role") not in ("READER", "WRITER", "OWNER"):
            raise ApiError(400, f"An access entry has a role and one of {sorted(_WHO)}: {entry}.")
        if entry.get("specialGroup", "projectOwners") not in _GROUPS:
            raise ApiError(400, f"There is no special group {entry['specialGroup']}.")
        email = entry.get("userByEmail", "")
        if email.endswith(".iam.gserviceaccount.com") and not call.cloud.access.account_exists(email):
            raise ApiError(400, f"IAM setPolicy failed: the account {email} does not exist.")
    if not any(entry["role"] == "OWNER" for entry in dataset.get("access", [])):
        raise ApiError(400, "A dataset must have an owner.")


@serves("bigquery.datasets.insert", permission="bigquery.datasets.create", resources=_of_project)
def _insert(call: Call) -> Resource:
    body, project = call.body or {}, call.parameters["projectId"]
    reference = body.get("datasetReference", {})
    name = reference.get("datasetId", "")
    if not _ID.fullmatch(name) or reference.get("projectId", project) != project:
        raise ApiError(400, f"Invalid dataset ID '{name}': letters, digits and underscores.")
    if _key(call, name) in call.state.resources:
        raise ApiError(409, f"Already Exists: Dataset {project}:{name}", reason="duplicate")
    everyone = {"OWNER": "projectOwners", "WRITER": "projectWriters", "READER": "projectReaders"}
    dataset: Resource = {
        "location": "US",
        "access": [{"role": role, "specialGroup": group} for role, group in everyone.items()],
        **body,
        "kind": "bigquery#dataset",
        "id": f"{project}:{name}",
        "datasetReference": {"projectId": project, "datasetId": name},
        "creationTime": str(int(time.time() * 1000)),
        "etag": fingerprint([body, now()]),
    }
    _check(call, dataset)
    call.state.resources[_key(call, name)] = dataset
    return dataset


@serves("bigquery.datasets.get", permission="bigquery.datasets.get", resources=_of_project)
def _get(call: Call) -> Resource:
    return _need(call)


@serves("bigquery.datasets.list", permission="bigquery.datasets.get", resources=_of_project)
def _list(call: Call) -> Resource:
    prefix = f"bigquery/projects/{call.parameters['projectId']}/datasets/"
    fields = ("kind", "id", "datasetReference", "labels", "friendlyName", "location")
    found = [{name: item[name] for name in fields if name in item} for _, item in call.state.under(prefix)]
    return call.page(found, "datasets") | {"kind": "bigquery#datasetList"}


@serves("bigquery.datasets.patch", permission="bigquery.datasets.update", resources=_of_project)
def _patch(call: Call) -> Resource:
    current, body = _need(call), call.body or {}
    changed = patched(current, body)
    for field in ("location", "datasetReference"):
        if changed.get(field) != current[field]:
            raise ApiError(400, f"Cannot change {field} of a dataset.")
    _check(call, changed)
    call.state.resources[_key(call)] = changed | {"etag": fingerprint([changed, now()])}
    return _need(call)


@serves("bigquery.datasets.delete", permission="bigquery.datasets.delete", resources=_of_project)
def _delete(call: Call) -> web.StreamResponse:
    _need(call)
    del call.state.resources[_key(call)]
    return web.Response(status=204)


@serves("bigquery.tables.list", permission="bigquery.tables.list", resources=_of_project)
def _tables(call: Call) -> Resource:
    _need(call)
    return {"kind": "bigquery#tableList", "totalItems": 0}
