"""Cloud Storage, JSON API: buckets, and objects with real bytes, generations and every kind of upload."""

import asyncio
import base64
import re
import time
import urllib.parse
import uuid
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from emulator import media
from emulator.cloud import Call, held_permissions, patched, serves
from emulator.errors import ApiError
from emulator.services import kms
from emulator.services.compute_catalog import ZONES
from emulator.state import Resource, State, fingerprint, now, public

_ROOT = "https://www.googleapis.com/storage/v1/"
_BUCKET_NAME = re.compile(r"(?!goog)(?!.*google)[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_LOCATIONS = {"US", "EU", "ASIA", *(region.upper() for region in ZONES)}
_CLASSES = {"STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"}
_ACTIONS = {"Delete", "SetStorageClass", "AbortIncompleteMultipartUpload"}
_WEEK_SECONDS, _QUARTER_SECONDS, _CENTURY_SECONDS = 604_800, 7_776_000, 3_155_760_000
# Reasons and messages: https://cloud.google.com/storage/docs/json_api/v1/status-codes
_KEY_FAULTS = {
    "malformed": (400, "Invalid argument.", "invalid"),
    "location": (400, "Cloud KMS key location not allowed.", "cloudKmsKeyLocationNotAllowed"),
    "missing": (400, "Cloud KMS encryption key not found.", "cloudKmsEncryptionKeyNotFound"),
    "disabled": (400, "Cloud KMS key is disabled, destroyed, or scheduled to be destroyed.", "cloudKmsDisabledKey"),
    "denied": (
        403,
        "Permission denied on Cloud KMS key. Please ensure that your Cloud Storage service account has been authorized "
        "to use this key.",
        "forbidden",
    ),
}
_EVERYBODY = {"allUsers", "allAuthenticatedUsers"}
# What the server decides, whatever a client sends back.
_SERVER_FIELDS = {"kind", "id", "selfLink", "projectNumber", "timeCreated", "updated", "metageneration", "etag"}
_SERVER_FIELDS |= {"generation", "locationType", "name", "location"}


def _bucket_name(call: Call) -> str:
    return str(call.parameters.get("bucket") or call.parameters.get("destinationBucket"))


def _of_bucket(call: Call) -> list[str]:
    """Return the bucket and its project; both policies count."""
    name = _bucket_name(call)
    return [f"buckets/{name}", f"projects/{_need(call, name)['_project']}"]


def _need(call: Call, name: str) -> Resource:
    found = call.state.resources.get(f"storage/{name}")
    if found is None:
        raise ApiError(404, "The specified bucket does not exist.")
    return found


def _check_metageneration(call: Call, resource: Resource) -> None:
    wanted, unwanted = (call.parameters.get(f"ifMetageneration{word}Match") for word in ("", "Not"))
    current = int(resource["metageneration"])
    if (wanted is not None and wanted != current) or unwanted == current:
        raise _precondition()


def _precondition() -> ApiError:
    return ApiError(412, "At least one of the pre-conditions you specified did not hold.")


def _complete(call: Call, bucket: Resource, before: Resource) -> None:
    """Fills in Google's defaults and raises `ApiError` for settings, or changes to them, that Google refuses."""
    access = bucket.setdefault("iamConfiguration", {})
    uniform = bool(access.get("uniformBucketLevelAccess", {}).get("enabled"))
    access["uniformBucketLevelAccess"] = access.get("uniformBucketLevelAccess", {}) | {"enabled": uniform}
    access["bucketPolicyOnly"] = {"enabled": uniform}
    access.setdefault("publicAccessPrevention", "inherited")
    bucket["storageClass"] = bucket.get("storageClass", "STANDARD").upper()
    if bucket["storageClass"] not in _CLASSES:
        raise ApiError(400, f"Invalid argument: storageClass {bucket['storageClass']}.")
    soft = bucket.setdefault("softDeletePolicy", {"retentionDurationSeconds": str(_WEEK_SECONDS)})
    seconds = int(soft.get("retentionDurationSeconds", _WEEK_SECONDS))
    if seconds and not _WEEK_SECONDS <= seconds <= _QUARTER_SECONDS:
        raise ApiError(400, "softDeletePolicy.retentionDurationSeconds must be 0 or between 7 and 90 days.")
    soft |= {"retentionDurationSeconds": str(seconds), "effectiveTime": soft.get("effectiveTime", now())}
    for rule in bucket.get("lifecycle", {}).get("rule", []):
        _check_rule(rule.get("action", {}), rule.get("condition", {}))
    _complete_encryption(call, bucket, before)
    _complete_retention(bucket, before.get("retentionPolicy", {}))
    _complete_autoclass(bucket, before.get("autoclass", {}))
    if bucket.get("lifecycle") == {} or bucket.get("lifecycle", {}).get("rule") == []:
        del bucket["lifecycle"]
    if bucket.get("labels") == {}:
        del bucket["labels"]


def _complete_encryption(call: Call, bucket: Resource, before: Resource) -> None:
    """A key is looked at when it is set: https://cloud.google.com/storage/docs/encryption/customer-managed-keys."""
    key = bucket.get("encryption", {}).get("defaultKmsKeyName")
    if not key:
        bucket.pop("encryption", None)
    elif key != before.get("encryption", {}).get("defaultKmsKeyName"):
        location = bucket["location"].lower()
        fault = kms.fault_of(call.cloud, key, bucket["_project"], "storage.googleapis.com", {location})
        if fault:
            code, message, reason = _KEY_FAULTS[fault]
            raise ApiError(code, message, reason=reason)


def _complete_retention(bucket: Resource, before: Resource) -> None:
    """https://cloud.google.com/storage/docs/bucket-lock; Google has it on a bucket without versions only."""
    policy = bucket.get("retentionPolicy") or {}
    seconds, held = int(policy.get("retentionPeriod") or 0), int(before.get("retentionPeriod") or 0)
    if before.get("isLocked") and seconds < held:
        raise ApiError(403, "Cannot reduce retention duration of a locked Retention Policy for bucket.")
    if not policy:
        bucket.pop("retentionPolicy", None)
        return
    if not 0 < seconds < _CENTURY_SECONDS:
        raise ApiError(400, "retentionPolicy.retentionPeriod must be more than 0 and less than 100 years.")
    if bucket.get("versioning", {}).get("enabled"):
        raise ApiError(400, "Retention policies and object versioning cannot be on the same bucket.")
    effective = before.get("effectiveTime") if seconds == held else None
    bucket["retentionPolicy"] = {"retentionPeriod": str(seconds), "effectiveTime": effective or now()}
    if before.get("isLocked"):
        bucket["retentionPolicy"]["isLocked"] = True


def _complete_autoclass(bucket: Resource, before: Resource) -> None:
    """https://cloud.google.com/storage/docs/autoclass."""
    sent = bucket.get("autoclass") or {}
    if not sent.get("enabled"):
        if sent.get("terminalStorageClass") and not before:
            raise ApiError(400, "autoclass.terminalStorageClass goes with autoclass.enabled only.")
        bucket.pop("autoclass", None)
        return
    rules = bucket.get("lifecycle", {}).get("rule", [])
    if bucket["storageClass"] != "STANDARD":
        raise ApiError(400, "The storage class of a bucket with Autoclass must be STANDARD.")
    if any(r["action"]["type"] == "SetStorageClass" or "matchesStorageClass" in r["condition"] for r in rules):
        raise ApiError(400, "Autoclass goes with neither SetStorageClass nor matchesStorageClass in lifecycle rules.")
    if sent.get("terminalStorageClass", "NEARLINE") not in ("NEARLINE", "ARCHIVE"):
        raise ApiError(400, "autoclass.terminalStorageClass must be NEARLINE or ARCHIVE.")
    filled = {"toggleTime": now(), "terminalStorageClass": "NEARLINE", "terminalStorageClassUpdateTime": now()}
    bucket["autoclass"] = filled | sent


def _check_rule(action: Resource, condition: Resource) -> None:
    kind = action.get("type")
    if kind not in _ACTIONS or not condition:
        raise ApiError(400, f"A lifecycle rule needs a condition and an action of {sorted(_ACTIONS)}.")
    if (kind == "SetStorageClass") != ("storageClass" in action) or action.get(
        "storageClass", "STANDARD"
    ) not in _CLASSES:
        raise ApiError(400, f"Only SetStorageClass has a storageClass, one of {sorted(_CLASSES)}.")
    if kind == "AbortIncompleteMultipartUpload" and set(condition) - {"age", "matchesPrefix", "matchesSuffix"}:
        raise ApiError(400, "AbortIncompleteMultipartUpload takes age, matchesPrefix and matchesSuffix only.")


@serves("storage.buckets.insert", permission="storage.buckets.create")
def _insert_bucket(call: Call) -> Resource:
    body, project = call.body or {}, call.parameters["project"]
    name, location = body.get("name", ""), body.get("location", "US").upper()
    if not _BUCKET_NAME.fullmatch(name):
        raise ApiError(400, f"Invalid bucket name: '{name}'")
    if location not in _LOCATIONS:
        raise ApiError(400, f"The specified location constraint is not valid: {location}.")
    if f"storage/{name}" in call.state.resources:
        raise ApiError(
            409, "Your previous request to create the named bucket succeeded and you already own it.", reason="conflict"
        )
    bucket: Resource = {
        **body,
        "kind": "storage#bucket",
        "id": name,
        "location": location,
        "locationType": "region" if "-" in location else "multi-region",
        "projectNumber": call.state.projects[project],
        "selfLink": f"{_ROOT}b/{name}",
        "timeCreated": now(),
        "updated": now(),
        "generation": _generation(),
        "metageneration": "1",
        "etag": "CAE=",
        "_project": project,
    }
    _complete(call, bucket, {})
    call.state.resources[f"storage/{name}"] = bucket
    call.state.objects[name] = {}
    owners = [f"projectEditor:{project}", f"projectOwner:{project}"]
    granted = {"legacyBucketOwner": owners, "legacyBucketReader": [f"projectViewer:{project}"]}
    if bucket["iamConfiguration"]["uniformBucketLevelAccess"]["enabled"]:
        granted |= {"legacyObjectOwner": owners, "legacyObjectReader": [f"projectViewer:{project}"]}
    bindings = [{"role": f"roles/storage.{role}", "members": members} for role, members in granted.items()]
    call.state.policies[f"buckets/{name}"] = {"bindings": bindings}
    return public(bucket)


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def _generation() -> str:
    return str(time.time_ns() // 1000)


@serves(
    "storage.projects.serviceAccount.get",
    permission="resourcemanager.projects.get",
    resources=lambda call: [f"projects/{call.parameters['projectId']}"],
)
def _service_agent(call: Call) -> Resource:
    """Names Cloud Storage's own account, which the first call makes."""
    project = call.parameters["projectId"]
    agent = kms.make_agent(call.state, project, "storage.googleapis.com")
    return {"kind": "storage#serviceAccount", "email_address": agent["email"]}


@serves("storage.buckets.get", permission="storage.buckets.get", resources=_of_bucket)
def _get_bucket(call: Call) -> Resource:
    bucket = _need(call, _bucket_name(call))
    _check_metageneration(call, bucket)
    return public(bucket)


@serves("storage.buckets.list", permission="storage.buckets.list")
def _list_buckets(call: Call) -> Resource:
    mine = [item for _, item in call.state.under("storage/") if item["_project"] == call.parameters["project"]]
    prefix = call.parameters.get("prefix", "")
    return {"kind": "storage#buckets", **call.page([public(item) for item in mine if item["name"].startswith(prefix)])}


@serves("storage.buckets.patch", "storage.buckets.update", permission="storage.buckets.update", resources=_of_bucket)
def _change_bucket(call: Call) -> Resource:
    name, body = _bucket_name(call), call.body or {}
    bucket = _need(call, name)
    _check_metageneration(call, bucket)
    for field in ("name", "location"):
        if field in body and str(body[field]).upper() != bucket[field].upper():
            raise ApiError(400, f"The {field} of a bucket cannot be changed.")
    sent = {field: value for field, value in body.items() if field not in _SERVER_FIELDS}
    kept = {field: value for field, value in bucket.items() if field in _SERVER_FIELDS or field.startswith("_")}
    changed = patched(bucket, sent) if call.verb == "patch" else kept | sent
    _complete(call, changed, bucket)
    metageneration = int(bucket["metageneration"]) + 1
    changed |= {"metageneration": str(metageneration), "updated": now(), "etag": fingerprint(metageneration)}
    call.state.resources[f"storage/{name}"] = changed
    return public(changed)


@serves("storage.buckets.lockRetentionPolicy", permission="storage.buckets.update", resources=_of_bucket)
def _lock_retention(call: Call) -> Resource:
    """For ever: https://cloud.google.com/storage/docs/bucket-lock."""
    bucket = _need(call, _bucket_name(call))
    _check_metageneration(call, bucket)
    if "retentionPolicy" not in bucket:
        raise ApiError(400, "The bucket has no retention policy to lock.")
    bucket["retentionPolicy"]["isLocked"] = True
    bucket["metageneration"] = str(int(bucket["metageneration"]) + 1)
    return public(bucket)


@serves("storage.buckets.delete", permission="storage.buckets.delete", resources=_of_bucket)
def _delete_bucket(call: Call) -> Any:
    name = _bucket_name(call)
    _check_metageneration(call, _need(call, name))
    if call.state.objects[name]:
        raise ApiError(409, "The bucket you tried to delete is not empty.", reason="conflict")
    del call.state.resources[f"storage/{name}"], call.state.objects[name]
    call.state.policies.pop(f"buckets/{name}", None)


@serves("storage.buckets.getIamPolicy", permission="storage.buckets.getIamPolicy", resources=_of_bucket)
def _get_policy(call: Call) -> Resource:
    name = _bucket_name(call)
    policy = call.cloud.access.get_policy(f"buckets/{name}", call.parameters.get("optionsRequestedPolicyVersion", 1))
    return {"kind": "storage#policy", "resourceId": f"projects/_/buckets/{name}", **policy}


@serves("storage.buckets.setIamPolicy", permission="storage.buckets.setIamPolicy", resources=_of_bucket)
def _set_policy(call: Call) -> Resource:
    name, body = _bucket_name(call), call.body or {}
    members = {member for binding in body.get("bindings", []) for member in binding.get("members", [])}
    configuration = _need(call, name)["iamConfiguration"]
    if members & _EVERYBODY and configuration["publicAccessPrevention"] == "enforced":
        raise ApiError(
            412,
            "The member bindings allUsers and allAuthenticatedUsers are not allowed since public access prevention "
            "is enforced.",
        )
    policy = call.cloud.access.set_policy(f"buckets/{name}", body, conflict_code=412)
    return {"kind": "storage#policy", "resourceId": f"projects/_/buckets/{name}", **policy}


serves("storage.buckets.testIamPermissions", resources=_of_bucket)(held_permissions)


def live(call: Call, bucket: str, name: str) -> Resource | None:
    """Return an object as it is now, None where there is none."""
    versions = call.state.objects[bucket].get(name, [])
    return versions[-1] if versions and "timeDeleted" not in versions[-1] else None


def _object(call: Call, bucket: str, name: str, generation: int | None) -> Resource:
    versions = call.state.objects[bucket].get(name, [])
    found = next((item for item in versions if item["generation"] == str(generation)), None)
    found = found if generation else live(call, bucket, name)
    if found is None:
        raise ApiError(404, f"No such object: {bucket}/{name}")
    return found


def _check_generation(call: Call, current: Resource | None, prefix: str = "if") -> None:
    """Raises `ApiError` 412 unless the preconditions hold; generation 0 means that there is no live object."""
    generation = int(current["generation"]) if current else 0
    wanted = call.parameters.get(f"{prefix}GenerationMatch")
    unwanted = call.parameters.get(f"{prefix}GenerationNotMatch")
    if (wanted is not None and wanted != generation) or (unwanted is not None and unwanted == generation):
        raise _precondition()
    if current and prefix == "if":
        _check_metageneration(call, current)


@serves("storage.objects.get", permission="storage.objects.get", resources=_of_bucket)
def _get_object(call: Call) -> Resource | web.StreamResponse:
    found = _object(call, _bucket_name(call), call.parameters["object"], call.parameters.get("generation"))
    _check_generation(call, found)
    if call.parameters.get("alt") != "media":
        return public(found)
    headers = {
        "Content-Type": found.get("contentType", "application/octet-stream"),
        "X-Goog-Generation": found["generation"],
        "X-Goog-Metageneration": found["metageneration"],
        "X-Goog-Hash": f"crc32c={found['crc32c']},md5={found['md5Hash']}",
        "X-Goog-Stored-Content-Length": found["size"],
        "X-Goog-Storage-Class": found["storageClass"],
    }
    for header, field in (("Content-Encoding", "contentEncoding"), ("Cache-Control", "cacheControl")):
        if field in found:
            headers[header] = found[field]
    return web.FileResponse(call.state.blob(found["_blob"]), headers=headers)


@serves("storage.objects.list", permission="storage.objects.list", resources=_of_bucket)
def _list_objects(call: Call) -> Resource:
    given = call.parameters
    if given.get("matchGlob") or given.get("softDeleted"):
        raise ApiError(501, "The emulated cloud lists neither by matchGlob nor soft-deleted objects.")
    prefix, delimiter = given.get("prefix", ""), given.get("delimiter")
    start = base64.urlsafe_b64decode(given.get("pageToken", "")).decode()
    limit, last = given.get("maxResults") or 1000, ""
    items: list[Resource] = []
    prefixes: list[str] = []
    for name in sorted(call.state.objects[_bucket_name(call)]):
        if not name.startswith(prefix) or not given.get("startOffset", "") <= name < given.get(
            "endOffset", "\U0010ffff"
        ):
            continue
        versions = call.state.objects[_bucket_name(call)][name]
        shown = [item for item in versions if given.get("versions") or "timeDeleted" not in item]
        place = name.find(delimiter, len(prefix)) if delimiter else -1
        entry = name[: place + len(delimiter or "")] if place >= 0 else name
        if not shown or entry <= start or (place >= 0 and entry in prefixes):
            continue
        if len(items) + len(prefixes) >= limit:
            token = base64.urlsafe_b64encode(last.encode()).decode()
            return _listed(items, prefixes) | {"nextPageToken": token}
        last = entry
        if place >= 0:
            prefixes.append(entry)
        else:
            items += [public(item) for item in shown]
    return _listed(items, prefixes)


def _listed(items: list[Resource], prefixes: list[str]) -> Resource:
    answer: Resource = {"kind": "storage#objects"}
    return answer | ({"items": items} if items else {}) | ({"prefixes": prefixes} if prefixes else {})


@serves("storage.objects.delete", permission="storage.objects.delete", resources=_of_bucket)
def _delete_object(call: Call) -> Any:
    bucket, name, generation = _bucket_name(call), call.parameters["object"], call.parameters.get("generation")
    found = _object(call, bucket, name, generation)
    _check_generation(call, found)
    _check_retained(call, bucket, found)
    if generation is None and _versioned(call, bucket):
        found["timeDeleted"] = now()
    else:
        _purge(call.state, bucket, name, found)


def _versioned(call: Call, bucket: str) -> bool:
    return bool(_need(call, bucket).get("versioning", {}).get("enabled"))


def _check_retained(call: Call, bucket: str, version: Resource) -> None:
    """Raises `ApiError` 403 while the bucket's retention policy keeps an object."""
    policy = _need(call, bucket).get("retentionPolicy")
    if policy and float(version["generation"]) / 1e6 + int(policy["retentionPeriod"]) > time.time():
        raise ApiError(
            403,
            f"Object '{bucket}/{version['name']}' is subject to bucket's retention policy or object retention and "
            "cannot be deleted or overwritten until its retention period has passed.",
            reason="retentionPolicyNotMet",
        )


def _purge(state: State, bucket: str, name: str, version: Resource) -> None:
    state.objects[bucket][name].remove(version)
    if not state.objects[bucket][name]:
        del state.objects[bucket][name]
    state.blob(version["_blob"]).unlink(missing_ok=True)


@serves("storage.objects.patch", "storage.objects.update", permission="storage.objects.update", resources=_of_bucket)
def _change_object(call: Call) -> Resource:
    found = _object(call, _bucket_name(call), call.parameters["object"], call.parameters.get("generation"))
    _check_generation(call, found)
    fields = {
        "metadata",
        "contentType",
        "contentEncoding",
        "contentDisposition",
        "contentLanguage",
        "cacheControl",
        "customTime",
    }
    sent = {field: value for field, value in (call.body or {}).items() if field in fields}
    changed = patched(found, sent)
    found.clear()
    found |= changed | {"metageneration": str(int(changed["metageneration"]) + 1), "updated": now()}
    return public(found)


@serves("storage.objects.insert", permission="storage.objects.create", resources=_of_bucket)
async def _insert_object(call: Call) -> Resource | web.StreamResponse:
    """Takes an upload of any kind; see https://cloud.google.com/storage/docs/uploads-downloads."""
    kind = call.request.query.get("uploadType")
    if call.request.query.get("upload_id"):
        return await _continue_upload(call, call.request.query["upload_id"])
    if kind == "resumable":
        metadata = media.parse_json(await call.request.read())
        return _begin_upload(call, metadata)
    if kind not in ("media", "multipart"):
        raise ApiError(400, f"uploadType must be media, multipart or resumable, not {kind}.")
    blob = uuid.uuid4().hex
    metadata = {}
    chunks: AsyncIterator[bytes] = call.request.content.iter_chunked(1 << 20)
    if kind == "media":
        metadata = {"contentType": call.request.content_type}
    else:
        whole = b"".join([chunk async for chunk in chunks])
        metadata, content = media.parse_multipart(whole, call.request.headers.get("Content-Type", ""))
        chunks = media.one(content)
    await media.append(call.state.blob(blob), chunks)
    return await _store(call, _bucket_name(call), blob, metadata)


def _begin_upload(call: Call, metadata: Resource) -> web.Response:
    identity = uuid.uuid4().hex
    metadata.setdefault("contentType", call.request.headers.get("X-Upload-Content-Type", "application/octet-stream"))
    name = metadata.get("name") or call.parameters.get("name")
    if not name:
        raise ApiError(400, "Required", reason="required")
    call.state.blob(identity).touch()
    call.state.uploads[identity] = metadata | {"name": name}
    query = f"uploadType=resumable&name={_quoted(name)}&upload_id={identity}"
    for parameter in ("ifGenerationMatch", "ifGenerationNotMatch"):
        if parameter in call.parameters:
            query += f"&{parameter}={call.parameters[parameter]}"
    location = f"https://{call.host}/upload/storage/v1/b/{_bucket_name(call)}/o?{query}"
    return web.Response(headers={"Location": location, "X-GUploader-UploadID": identity})


async def _continue_upload(call: Call, identity: str) -> Resource | web.StreamResponse:
    """Appends a chunk; 308 with the range held so far until the last byte is there."""
    metadata = call.state.uploads.get(identity)
    if metadata is None:
        raise ApiError(404, "There is no such upload: it was finished, cancelled, or never begun.")
    file = call.state.blob(identity)
    if call.request.method == "DELETE":
        del call.state.uploads[identity]
        file.unlink()
        return web.Response(status=499)
    held = file.stat().st_size
    content_range = call.request.headers.get("Content-Range", f"bytes {held}-*/*")
    span = re.fullmatch(r"bytes (?:\*|(\d+)-(?:\d+|\*))/(\*|\d+)", content_range)
    if span is None:
        raise ApiError(400, "Failed to parse Content-Range header.")
    first, total = span[1], span[2]
    if first is not None:
        if int(first) > held:
            raise ApiError(503, f"The upload holds {held} bytes; a chunk cannot begin at {first}.")
        await media.append(file, call.request.content.iter_chunked(1 << 20), int(first))
        held = file.stat().st_size
    whole = "Content-Range" not in call.request.headers
    if not whole and (total == "*" or held < int(total)):
        headers = {"Range": f"bytes=0-{held - 1}"} if held else {}
        return web.Response(status=308, reason="Resume Incomplete", headers=headers)
    stored = await _store(call, _bucket_name(call), identity, metadata)
    del call.state.uploads[identity]
    return stored


async def _store(call: Call, bucket: str, blob: str, metadata: Resource) -> Resource:
    """Makes a new generation from bytes already in their file; raises `ApiError`, and removes them, otherwise."""
    file = call.state.blob(blob)
    try:
        call.cloud.directory.documents["storage.v1"].check_value("Object", metadata)
        name = metadata.get("name") or call.parameters.get("name")
        if not name or len(name.encode()) > 1024:
            raise ApiError(400, f"Invalid object name: {name}.")
        size, md5, crc = await asyncio.to_thread(media.checksums, file)
        for field, found in (("md5Hash", md5), ("crc32c", crc)):
            if metadata.get(field, found) != found:
                raise ApiError(400, f"Provided {field} '{metadata[field]}' doesn't match calculated {field} '{found}'.")
        current = live(call, bucket, name)
        _check_generation(call, current)
        if current:
            # Replacing is deleting, as far as permissions go.
            call.cloud.access.require(call.principal, "storage.objects.delete", _of_bucket(call))
            _check_retained(call, bucket, current)
    except ApiError:
        file.unlink()
        raise
    return keep(call.state, bucket, {**metadata, "name": name}, blob, (size, md5, crc))


def keep(state: State, bucket: str, metadata: Resource, blob: str, sums: tuple[int, str, str]) -> Resource:
    """Makes a new generation of an object, live from now on; `sums` are size, MD5 and CRC32C of the blob."""
    name, (size, md5, crc) = metadata["name"], sums
    settings = state.resources[f"storage/{bucket}"]
    versions = state.objects[bucket].setdefault(name, [])
    current = versions[-1] if versions and "timeDeleted" not in versions[-1] else None
    generation = str(max(int(_generation()), *(int(item["generation"]) + 1 for item in versions), 0))
    link = f"{_ROOT}b/{bucket}/o/{_quoted(name)}"
    stored: Resource = {
        "contentType": "application/octet-stream",
        **{field: value for field, value in metadata.items() if not field.startswith("_")},
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{generation}",
        "selfLink": link,
        "mediaLink": f"https://storage.googleapis.com/download/storage/v1/b/{bucket}/o/{_quoted(name)}?generation={generation}&alt=media",
        "name": name,
        "bucket": bucket,
        "generation": generation,
        "metageneration": "1",
        "storageClass": metadata.get("storageClass", settings["storageClass"]),
        "size": str(size),
        "md5Hash": md5,
        "crc32c": crc,
        "etag": fingerprint(generation),
        **dict.fromkeys(("timeCreated", "updated", "timeStorageClassUpdated", "timeFinalized"), now()),
        "_blob": blob,
    }
    if current and settings.get("versioning", {}).get("enabled"):
        current["timeDeleted"] = now()
    elif current:
        _purge(state, bucket, name, current)
        versions = state.objects[bucket].setdefault(name, [])
    versions.append(stored)
    return public(stored)


async def _copied(call: Call, sources: list[tuple[str, Resource]], metadata: Resource) -> Resource:
    """Stores the bytes of some objects, one after the other, as the call's destination."""
    for bucket, _ in sources:
        where = [f"buckets/{bucket}", f"projects/{_need(call, bucket)['_project']}"]
        call.cloud.access.require(call.principal, "storage.objects.get", where)
    blob = uuid.uuid4().hex
    for _, source in sources:
        await media.append(call.state.blob(blob), media.read(call.state.blob(source["_blob"])))
    described = {
        field: value for field, value in sources[0][1].items() if field in ("contentType", "metadata", "cacheControl")
    }
    name = call.parameters["destinationObject"]
    return await _store(call, call.parameters.get("destinationBucket", ""), blob, described | metadata | {"name": name})


@serves("storage.objects.compose", permission="storage.objects.create", resources=_of_bucket)
async def _compose(call: Call) -> Resource:
    bucket, asked = call.parameters["destinationBucket"], (call.body or {}).get("sourceObjects", [])
    if not 1 <= len(asked) <= 32:
        raise ApiError(400, "The number of source components must be between 1 and 32.")
    sources = [(bucket, _object(call, bucket, item["name"], int(item.get("generation") or 0))) for item in asked]
    return await _copied(call, sources, (call.body or {}).get("destination") or {})


def _to_destination(call: Call) -> list[str]:
    name = call.parameters["destinationBucket"]
    return [f"buckets/{name}", f"projects/{_need(call, name)['_project']}"]


@serves(
    "storage.objects.copy", "storage.objects.rewrite", permission="storage.objects.create", resources=_to_destination
)
async def _copy(call: Call) -> Resource:
    bucket = call.parameters["sourceBucket"]
    _need(call, bucket)
    source = _object(call, bucket, call.parameters["sourceObject"], call.parameters.get("sourceGeneration"))
    _check_generation(call, source, "ifSource")
    stored = await _copied(call, [(bucket, source)], call.body or {})
    if call.verb == "copy":
        return stored
    size = stored["size"]
    answer = {"kind": "storage#rewriteResponse", "totalBytesRewritten": size, "objectSize": size, "done": True}
    return answer | {"resource": stored}
