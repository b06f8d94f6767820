"""Secret Manager: secrets, their versions and policies."""

import base64
import binascii
import re

import google_crc32c

from emulator.cloud import Call, held_permissions, serves
from emulator.errors import ApiError
from emulator.services import kms
from emulator.services.compute_catalog import ZONES
from emulator.state import Resource, fingerprint, now, public

_STATES = {"enable": "ENABLED", "disable": "DISABLED", "destroy": "DESTROYED"}


def _key(name: str) -> str:
    return f"secretmanager/{name}"


def _need(call: Call, name: str, kind: str = "Secret") -> Resource:
    found = call.state.resources.get(_key(name))
    if found is None:
        raise ApiError(
            404, f"{kind} [{_numbered(call, name)}] not found{' or has no versions' if kind != 'Secret' else ''}."
        )
    return found


def _numbered(call: Call, name: str) -> str:
    """Return a name as Secret Manager writes it, with the project's number."""
    _, project, rest = name.split("/", 2)
    return f"projects/{call.state.projects[project]}/{rest}"


@serves("secretmanager.projects.secrets.create", permission="secretmanager.secrets.create")
def _create(call: Call) -> Resource:
    identity = call.parameters.get("secretId", "")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", identity):
        raise ApiError(400, f"The secret ID '{identity}' must be 1-255 letters, digits, dashes and underscores.")
    name = f"{call.name}/secrets/{identity}"
    if _key(name) in call.state.resources:
        raise ApiError(409, f"Secret [{_numbered(call, name)}] already exists.")
    body = call.body or {}
    if len(set(body.get("replication", {})) & {"automatic", "userManaged"}) != 1:
        raise ApiError(400, "The field 'replication' must say automatic or userManaged.")
    _check_keys(call, body["replication"])
    secret = {**body, "name": _numbered(call, name), "createTime": now()}
    secret["etag"] = f'"{fingerprint(secret)}"'
    call.state.resources[_key(name)] = secret
    return secret


def _check_keys(call: Call, replication: Resource) -> None:
    """A key lies where the replica is, and in `global` for a secret that is everywhere.

    https://cloud.google.com/secret-manager/docs/cmek
    """
    if "automatic" in replication:
        replicas = [{"location": "global", **replication["automatic"]}]
    else:
        replicas = replication["userManaged"].get("replicas", [])
        if not replicas or any(replica.get("location") not in ZONES for replica in replicas):
            raise ApiError(400, "The field 'replication.userManaged.replicas' must name locations.")
    for replica in replicas:
        key = replica.get("customerManagedEncryption", {}).get("kmsKeyName")
        project = call.name.split("/")[1]
        fault = key and kms.fault_of(call.cloud, key, project, "secretmanager.googleapis.com", {replica["location"]})
        if fault in ("malformed", "location"):
            raise ApiError(400, f"The key {key} is not one of the location {replica['location']}.")
        if fault:
            agent = kms.agent_email(call.state, project, "secretmanager.googleapis.com")
            message = f"Secret Manager ({agent}) cannot use the key: Permission denied on {key} (or it may not exist)."
            raise ApiError(400, message, status="FAILED_PRECONDITION")


@serves("secretmanager.projects.secrets.get", permission="secretmanager.secrets.get")
def _get(call: Call) -> Resource:
    return _need(call, call.name)


@serves("secretmanager.projects.secrets.list", permission="secretmanager.secrets.list")
def _list(call: Call) -> Resource:
    found = [item for name, item in call.state.under(_key(f"{call.name}/secrets/")) if "/versions/" not in name]
    return call.page(found, "secrets", "pageSize") | ({"totalSize": len(found)} if found else {})


@serves("secretmanager.projects.secrets.patch", permission="secretmanager.secrets.update")
def _patch(call: Call) -> Resource:
    secret, body = _need(call, call.name), call.body or {}
    _check_etag(secret, body.get("etag"))
    masked = [field.strip() for field in call.parameters.get("updateMask", "").split(",") if field.strip()]
    allowed = {
        "labels",
        "annotations",
        "expireTime",
        "ttl",
        "rotation",
        "topics",
        "versionAliases",
        "versionDestroyTtl",
    }
    unknown = set(masked) - allowed
    if unknown or not masked:
        raise ApiError(400, f"updateMask must name fields that can change; not {sorted(unknown)}.")
    for field in masked:
        secret.pop(field, None)
    secret |= {field: body[field] for field in masked if body.get(field) is not None}
    secret["etag"] = f'"{fingerprint([secret, now()])}"'
    return secret


@serves("secretmanager.projects.secrets.delete", permission="secretmanager.secrets.delete")
def _delete(call: Call) -> Resource:
    _check_etag(_need(call, call.name), call.parameters.get("etag"))
    for name, _ in list(call.state.under(_key(f"{call.name}/versions/"))):
        del call.state.resources[name]
    del call.state.resources[_key(call.name)]
    call.state.policies.pop(call.name, None)
    return {}


def _check_etag(resource: Resource, etag: str | None) -> None:
    if etag and etag != resource["etag"]:
        raise ApiError(
            400, "The etag provided in the request does not match the resource's.", status="FAILED_PRECONDITION"
        )


@serves("secretmanager.projects.secrets.addVersion", permission="secretmanager.versions.add")
def _add(call: Call) -> Resource:
    secret = _need(call, call.name)
    payload = (call.body or {}).get("payload", {})
    try:
        data = base64.b64decode(payload.get("data", ""), validate=True)
    except binascii.Error as error:
        raise ApiError(400, f"Invalid value at 'payload.data' (TYPE_BYTES), {error}") from error
    if not 0 < len(data) <= 65536:
        raise ApiError(400, "The payload must have 1 to 65536 bytes.")
    if "dataCrc32c" in payload and int(payload["dataCrc32c"]) != google_crc32c.value(data):
        raise ApiError(400, "The payload's checksum does not match dataCrc32c.")
    number = 1 + sum(1 for _ in call.state.under(_key(f"{call.name}/versions/")))
    name = f"{call.name}/versions/{number}"
    version: Resource = {
        "name": _numbered(call, name),
        "createTime": now(),
        "state": "ENABLED",
        "_data": payload["data"],
    }
    replicas = secret["replication"].get("userManaged", {}).get("replicas")
    places = [{"location": replica["location"]} for replica in replicas or []]
    status: Resource = {"userManaged": {"replicas": places}} if replicas else {"automatic": {}}
    version |= {"replicationStatus": status, "clientSpecifiedPayloadChecksum": "dataCrc32c" in payload}
    version |= {"etag": f'"{fingerprint(version)}"', "_number": number}
    secret["etag"] = f'"{fingerprint([secret, now()])}"'
    call.state.resources[_key(name)] = version
    return public(version)


def _versions(call: Call, secret: str) -> list[Resource]:
    """Return a secret's versions, newest first."""
    _need(call, secret)
    found = [item for _, item in call.state.under(_key(f"{secret}/versions/"))]
    return sorted(found, key=lambda version: -int(version["_number"]))


def _version(call: Call) -> Resource:
    secret, _, number = call.name.partition("/versions/")
    if number == "latest":
        versions = _versions(call, secret)
        if versions:
            return versions[0]
    return _need(call, call.name, "Secret Version")


@serves("secretmanager.projects.secrets.versions.get", permission="secretmanager.versions.get")
def _get_version(call: Call) -> Resource:
    return public(_version(call))


@serves("secretmanager.projects.secrets.versions.list", permission="secretmanager.versions.list")
def _list_versions(call: Call) -> Resource:
    wanted = call.parameters.pop("filter", "").replace(" ", "")
    if wanted and not re.fullmatch(r"state[:=](ENABLED|DISABLED|DESTROYED)", wanted):
        raise ApiError(400, f"Invalid filter '{wanted}'.")
    found = [public(item) for item in _versions(call, call.name) if not wanted or item["state"] == wanted[6:]]
    return call.page(found, "versions", "pageSize") | ({"totalSize": len(found)} if found else {})


@serves("secretmanager.projects.secrets.versions.access", permission="secretmanager.versions.access")
def _access(call: Call) -> Resource:
    version = _version(call)
    if version["state"] != "ENABLED":
        raise ApiError(
            400, f"Secret Version [{version['name']}] is in {version['state']} state.", status="FAILED_PRECONDITION"
        )
    checksum = str(google_crc32c.value(base64.b64decode(version["_data"])))
    return {"name": version["name"], "payload": {"data": version["_data"], "dataCrc32c": checksum}}


@serves("secretmanager.projects.secrets.versions.enable", permission="secretmanager.versions.enable")
@serves("secretmanager.projects.secrets.versions.disable", permission="secretmanager.versions.disable")
@serves("secretmanager.projects.secrets.versions.destroy", permission="secretmanager.versions.destroy")
def _switch(call: Call) -> Resource:
    version = _version(call)
    if version["state"] == "DESTROYED":
        raise ApiError(400, f"Secret Version [{version['name']}] is already destroyed.", status="FAILED_PRECONDITION")
    version["state"] = _STATES[call.verb]
    if version["state"] == "DESTROYED":
        version |= {"destroyTime": now(), "_data": ""}
    version["etag"] = f'"{fingerprint(version)}"'
    return public(version)


@serves("secretmanager.projects.secrets.getIamPolicy", permission="secretmanager.secrets.getIamPolicy")
def _get_policy(call: Call) -> Resource:
    _need(call, call.name)
    return call.cloud.access.get_policy(call.name, call.parameters.get("options.requestedPolicyVersion", 1))


@serves("secretmanager.projects.secrets.setIamPolicy", permission="secretmanager.secrets.setIamPolicy")
def _set_policy(call: Call) -> Resource:
    _need(call, call.name)
    return call.cloud.access.set_policy(call.name, call.body["policy"], call.body.get("updateMask"))


serves("secretmanager.projects.secrets.testIamPermissions")(held_permissions)
