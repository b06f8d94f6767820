"""Backup sets: what is in one, whether it is whole, whether it fits a deployment, and the artifacts of its moment.

A set is the objects under one prefix of a bucket. Its manifest is written last: what has none is not a set. Files of a
set are described as `{size, crc32c, generation, sha256}`, size and generation being int64 strings as Google has them.
"""

from __future__ import annotations

import base64
import datetime
import gzip
import hashlib
import hmac
import io
import json
import os
import pathlib
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.action import Action, WantedAction
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json, method
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import find
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import (
    THREADS,
    AmbiguousError,
    ApiError,
    CloudError,
    Session,
)

FORMAT = 1
MANIFEST = "manifest.json"
ARTIFACTS = "artifacts.ndjson.gz"
# So that a guess at a secret costs as much as OWASP asks for: a person may have chosen it.
ITERATIONS = 600_000
# What MLflow encrypts rows with, and which rows those are.
ENCRYPTED = {
    "mlflow.webhook-secret-encryption-key": "the secrets of webhooks",
    "mlflow.crypto-kek-passphrase": "the providers' keys of the AI gateway",
}
NOT_TAKEN = "docs/failures.md#no-backup-set-was-taken"
UPLOAD_ATTEMPTS = 5
# How long one export may take.
TIMEOUT_SECONDS = 7200
DUMP = ".sql.gz"
# Tracking comes first: a permission of something that is not there yet harms nobody, while something whose permissions
# are missing would be closed to its owner.
DATABASES = ("tracking", "auth")
# What names each.
NAMED_BY = {"tracking": "platform_sql_database", "auth": "platform_sql_auth_database"}
# Where Alembic keeps the schema's revision: MLflow's tracking database has the first, that of users the other.
VERSION_TABLES = frozenset({"alembic_version", "alembic_version_auth"})
_COPY = re.compile(rb'COPY \w+\.(?:"(?P<quoted>[^"]+)"|(?P<plain>\w+)) .*FROM stdin;')
_REVISION = re.compile(rb"INSERT INTO `(\w+)` VALUES \('(\w+)'\);")
_USE = re.compile(rb"USE `((?:[^`]|``)+)`;")


class SetError(CloudError):
    """A set that is damaged, not all there, or none."""

    more = "docs/failures.md#the-backup-set-is-not-whole"


def stat(cloud: Session, bucket: str, name: str) -> Json | None:
    """Return what Cloud Storage says of an object, None where there is none."""
    get = method("storage.v1", "objects", "get")
    try:
        return cloud.call(get, {"bucket": bucket, "object": name}, f"Reading gs://{bucket}/{name}")
    except ApiError as error:
        if error.status != 404:
            raise
        return None


def pages(cloud: Session, bucket: str, **query: Any) -> Iterator[Json]:
    """Return the pages of a bucket's list of objects."""
    listing = method("storage.v1", "objects", "list")
    return cloud.pages(listing, {"bucket": bucket}, f"Listing the objects of gs://{bucket}", query)


def objects(cloud: Session, bucket: str, **query: Any) -> Iterator[Json]:
    """Yield a bucket's objects."""
    for page in pages(cloud, bucket, **query):
        yield from page.get("items", [])


@dataclass
class Contents:
    """What reading a file back tells: `rows` by table, for a dump of PostgreSQL; `data` where it is asked for.

    `schema` is the revision of MLflow's schema that a dump has, empty where it tells of none; `database` the one that a
    dump of MySQL fills, whichever an import asks for, empty where it names none.
    """

    size: int = 0
    sha256: str = ""
    md5: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    schema: str = ""
    database: str = ""
    data: bytes = b""


def read_back(chunks: Iterable[bytes], name: str, *, keep: bool = False) -> Contents:
    """Read a file whole; raises CloudError when it is compressed and ends too early."""
    found = Contents()
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    unpacked = zlib.decompressobj(wbits=31) if name.endswith(".gz") else None
    data, table, rest = bytearray(), "", b""
    for chunk in chunks:
        found.size += len(chunk)
        sha256.update(chunk)
        md5.update(chunk)
        try:
            plain = unpacked.decompress(chunk) if unpacked else chunk
        except zlib.error as error:
            raise SetError(f"{name}: is damaged ({error})") from error
        if keep:
            data += plain
        *lines, rest = (rest + plain).split(b"\n")
        for line in lines:
            if not table:
                if begun := _COPY.fullmatch(line):
                    table = (begun["quoted"] or begun["plain"]).decode()
                    found.rows[table] = 0
                elif (row := _REVISION.fullmatch(line)) and row[1].decode() in VERSION_TABLES:
                    found.schema = row[2].decode()
                elif not found.database and (named := _USE.fullmatch(line)):
                    found.database = named[1].replace(b"``", b"`").decode()
            elif line == b"\\.":
                table = ""
            else:
                found.rows[table] += 1
                found.schema = line.decode() if table in VERSION_TABLES else found.schema
    if unpacked and not unpacked.eof:
        raise SetError(f"{name}: is damaged (it ends too early)")
    found.sha256, found.data = sha256.hexdigest(), bytes(data)
    found.md5 = base64.b64encode(md5.digest()).decode()
    return found


def fetch(cloud: Session, bucket: str, described: Json, *, keep: bool = False) -> Contents:
    """Read an object of that generation back; raises CloudError when it is not what Cloud Storage says it keeps."""
    name, generation = described["name"], described["generation"]
    found: Contents = cloud.download(bucket, name, generation, lambda chunks: read_back(chunks, name, keep=keep))
    # An object put together from parts has no MD5.
    if found.size != int(described["size"]) or described.get("md5Hash", found.md5) != found.md5:
        raise SetError(f"{name}: what was read differs from what is kept")
    return found


def write(cloud: Session, bucket: str, name: str, content: bytes | pathlib.Path) -> None:
    """Make an object that is not there yet; raises CloudError when it is, with other content."""
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    wanted = base64.b64encode(md5).decode()
    for attempt in range(UPLOAD_ATTEMPTS):
        try:
            cloud.upload(bucket, name, content)
        except AmbiguousError:
            if attempt == UPLOAD_ATTEMPTS - 1:
                raise
        except ApiError as error:
            if error.status != 412:
                raise
        # There by an attempt whose answer was lost, or by somebody else.
        described = stat(cloud, bucket, name)
        if described and described.get("md5Hash") != wanted:
            raise CloudError(f"gs://{bucket}/{name}: exists already, with other content", NOT_TAKEN)
        if described:
            return


def fingerprint(value: str, salt: bytes) -> str:
    """Return what tells whether a secret is still the same, and not what it is."""
    return hashlib.pbkdf2_hmac("sha256", value.encode(), salt, ITERATIONS).hex()


def secret_state(cloud: Session, credential: str, secret: str, salt: bytes, version: str = "latest") -> Json:
    """Return name, version and fingerprint of a version of a secret; the value stays here."""
    access = method("secretmanager.v1", "projects.secrets.versions", "access")
    name = f"projects/{cloud.project}/secrets/{secret}/versions/{version}"
    answer = cloud.call(access, {"+name": name}, f"Reading the value of secret {secret}")
    value = base64.b64decode(answer["payload"]["data"]).decode()
    version = answer["name"].rsplit("/", 1)[-1]
    return {"credential": credential, "name": secret, "version": version, "pbkdf2_sha256": fingerprint(value, salt)}


def secret_state_at(cloud: Session, credential: str, secret: str, salt: bytes, moment: str) -> Json | None:
    """Return the same of the version that was the latest at a moment, None where there was none.

    One that cannot be read any more has no fingerprint, and is no other's equal.
    """
    listing = method("secretmanager.v1", "projects.secrets.versions", "list")
    parent = {"+parent": f"projects/{cloud.project}/secrets/{secret}"}
    answers = cloud.pages(listing, parent, f"Listing the versions of secret {secret}")
    made = [one for page in answers for one in page.get("versions", []) if at(one["createTime"]) <= at(moment)]
    if not made:
        return None
    latest = max(made, key=lambda one: int(one["name"].rpartition("/")[2]))
    version = latest["name"].rpartition("/")[2]
    if latest["state"] != "ENABLED":
        return {"credential": credential, "name": secret, "version": version, "pbkdf2_sha256": ""}
    return secret_state(cloud, credential, secret, salt, version)


def secret_states(cloud: Session, secrets: Mapping[str, str], salt: bytes, moment: str = "") -> list[Json]:
    """Return the states of secrets, given by the credential that each becomes on the server, of now or of a moment."""

    def state(one: tuple[str, str]) -> Json | None:
        return secret_state_at(cloud, *one, salt, moment) if moment else secret_state(cloud, *one, salt)

    with ThreadPoolExecutor(THREADS) as pool:
        return [found for found in pool.map(state, secrets.items()) if found]


def at(text: str) -> datetime.datetime:
    """Return the time of an RFC 3339 text."""
    return datetime.datetime.fromisoformat(text)


def live_at(versions: Iterable[Json], moment: str) -> list[Json]:
    """Return the generations that were live at a moment, by name; `versions` are all that a bucket keeps.

    Google calls the time at which a generation was replaced or deleted `timeDeleted`.
    """
    latest: dict[str, Json] = {}
    for one in versions:
        before = latest.get(one["name"])
        if at(one["timeCreated"]) <= at(moment) and (not before or int(before["generation"]) < int(one["generation"])):
            latest[one["name"]] = one
    found = [one for one in latest.values() if "timeDeleted" not in one or at(moment) < at(one["timeDeleted"])]
    return sorted(found, key=lambda one: str(one["name"]))


@dataclass(frozen=True)
class WantedSet:
    """A set whose dumps are there, by name of file; `about` goes into the manifest as it is.

    With `moment` artifacts and secrets are those of then; `served` returns what served, by the schemas of the dumps.
    """

    bucket: str
    name: str
    dumps: list[str]
    artifacts_bucket: str
    artifacts_prefix: str
    secrets: dict[str, str]
    about: Json
    moment: str = ""
    served: Callable[[Mapping[str, str]], Json] | None = None


def complete(cloud: Session, wanted: WantedSet, now: Callable[[], str]) -> Json:
    """Add the list of artifacts and the manifest, read everything back, and return the module's result."""
    name = f"{wanted.name}/{MANIFEST}"
    present = None if cloud.check_mode else stat(cloud, wanted.bucket, name)
    if present:
        return {"changed": False, "manifest": json.loads(fetch(cloud, wanted.bucket, present, keep=True).data)}
    if cloud.check_mode:
        return {"changed": True, "manifest": {}}
    salt = os.urandom(16)
    secrets = secret_states(cloud, wanted.secrets, salt, wanted.moment)
    found_there = objects(cloud, wanted.artifacts_bucket, prefix=wanted.artifacts_prefix, versions=bool(wanted.moment))
    live = live_at(found_there, wanted.moment) if wanted.moment else found_there
    listed = [{key: one[key] for key in ("name", "generation", "crc32c", "size")} for one in live]
    lines = "".join(f"{json.dumps(one)}\n" for one in listed)
    write(cloud, wanted.bucket, f"{wanted.name}/{ARTIFACTS}", gzip.compress(lines.encode(), mtime=0))
    files, rows, schemas = {}, {}, {}
    for file in [*wanted.dumps, ARTIFACTS]:
        described = stat(cloud, wanted.bucket, f"{wanted.name}/{file}")
        if described is None:
            raise SetError(f"gs://{wanted.bucket}/{wanted.name}/{file}: is not there")
        found = fetch(cloud, wanted.bucket, described)
        files[file] = {key: described[key] for key in ("size", "crc32c", "generation")} | {"sha256": found.sha256}
        if file in wanted.dumps:
            rows[file] = found.rows
            schemas[file.removesuffix(DUMP)] = found.schema
    manifest = {
        "format": FORMAT,
        "name": wanted.name,
        "ended": now(),
        "project": cloud.project,
        **wanted.about,
        "mlflow": {**(wanted.served(schemas) if wanted.served else wanted.about["mlflow"]), "schemas": schemas},
        "artifacts": {
            "bucket": wanted.artifacts_bucket,
            "prefix": wanted.artifacts_prefix,
            "objects": len(listed),
            "bytes": sum(int(one["size"]) for one in listed),
        },
        "files": files,
        "rows": rows,
        "secrets": {"salt": salt.hex(), "iterations": ITERATIONS, "latest": secrets},
    }
    write(cloud, wanted.bucket, name, json.dumps(manifest, indent=2, sort_keys=True).encode())
    return {"changed": True, "manifest": manifest}


@dataclass(frozen=True)
class Deployment:
    """What a set is taken of: `databases` by what each is, `mlflow` and `certificate` as the manifest has them.

    `instance_backup` is whether the instance is backed up as well. Google keeps such a backup until somebody deletes
    it, so what is taken every night names the latest of Google's own instead.
    """

    bucket: str
    instance: str
    databases: dict[str, str]
    user: str
    artifacts_bucket: str
    artifacts_prefix: str
    secrets: dict[str, str]
    mlflow: Json
    certificate: Json
    instance_backup: bool


def take(cloud: Session, source: Deployment, now: Callable[[], str]) -> Json:
    """Take a whole set, named by the time, and return the module's result. `now` tells it as RFC 3339, in UTC.

    Artifacts come last, as the rows that name them are written after them.
    """
    if cloud.check_mode:
        return {"changed": True, "manifest": {}}
    begun = now()
    name = compact(begun)
    instance = next(iter(find(cloud, "sqladmin.instances", source.instance)), None)
    if instance is None:
        missing = f"There is no Cloud SQL instance {source.instance} in project {cloud.project}"
        raise CloudError(missing, NOT_TAKEN)
    dumps = export(cloud, source.instance, source.databases, f"gs://{source.bucket}/{name}")
    held = {
        "instance": source.instance,
        "version": instance["databaseVersion"],
        "installed_version": instance.get("databaseInstalledVersion", ""),
        "user": source.user,
        "backup_run": _own_backup(cloud, source, name),
    }
    about = {"begun": begun, "mlflow": source.mlflow, "certificate": source.certificate, "database": held}
    places = (source.artifacts_bucket, source.artifacts_prefix)
    return complete(cloud, WantedSet(source.bucket, name, dumps, *places, source.secrets, about), now)


def export(cloud: Session, instance: str, databases: Mapping[str, str], place: str) -> list[str]:
    """Write the dumps of an instance's databases, and return the names of the files."""
    files = [f"{one}{DUMP}" for one in DATABASES]
    for one, file in zip(DATABASES, files, strict=True):
        context = {"uri": f"{place}/{file}", "databases": [databases[one]], "fileType": "SQL"}
        act(cloud, WantedAction("sqladmin.instances", "export", instance, body={"exportContext": context}))
    return files


def _own_backup(cloud: Session, source: Deployment, name: str) -> str:
    """Return the id of a backup on the instance, made now or the latest there is, empty where there is none.

    It restores the whole instance in minutes, however large, and goes when the instance goes.
    """
    if source.instance_backup:
        unless = {"fields": {"description": name, "status": "SUCCESSFUL"}}
        wanted = WantedAction(
            "sqladmin.backupRuns", "insert", parent=source.instance, body={"description": name}, unless=unless
        )
        return str(act(cloud, wanted).get("backupContext", {}).get("backupId", ""))
    runs = [run for run in find(cloud, "sqladmin.backupRuns", parent=source.instance) if run["status"] == "SUCCESSFUL"]
    return str(max(runs, key=lambda run: str(run["endTime"]))["id"]) if runs else ""


def act(cloud: Session, wanted: WantedAction) -> Json:
    """Do an action and return Google's answer."""
    action = Action(cloud, wanted)
    if action.problems:
        raise CloudError("\n".join(action.problems))
    return action.ensure()[1] or {}


def manifest_of(cloud: Session, bucket: str, name: str, version: str = "") -> Json:
    """Return the manifest of a set, `latest` being the newest that is whole, of a release of MLflow where one is given.

    Raises CloudError where there is none.
    """
    for one in newest_first(cloud, bucket) if name == "latest" else [name]:
        if described := stat(cloud, bucket, f"{one}/{MANIFEST}"):
            manifest: Json = json.loads(fetch(cloud, bucket, described, keep=True).data)
            if manifest["name"] != one:
                raise SetError(f"gs://{bucket}/{one}: has the manifest of {manifest['name']}")
            if name == "latest" and version not in ("", manifest["mlflow"]["version"]):
                continue
            return manifest
    if version:
        raise SetError(f"gs://{bucket}: has no backup set of MLflow {version}")
    raise SetError(f"gs://{bucket}/{name}: is not a backup set, for it has no {MANIFEST}")


def compact(moment: str) -> str:
    """Return a moment as it is in the names of sets."""
    return re.sub("[-:]", "", moment)


def newest_first(cloud: Session, bucket: str) -> list[str]:
    """Return the names of what may be sets."""
    found = [prefix for page in pages(cloud, bucket, delimiter="/") for prefix in page.get("prefixes", [])]
    return [prefix.rstrip("/") for prefix in sorted(found, reverse=True)]


def read_files(cloud: Session, bucket: str, manifest: Json) -> tuple[list[str], dict[str, str]]:
    """Return what is wrong with the files of a set, read whole, and the databases that its dumps name, by dump."""
    problems: list[str] = []
    named: dict[str, str] = {}
    for file, wanted in manifest["files"].items():
        name = f"{manifest['name']}/{file}"
        described = stat(cloud, bucket, name)
        if described is None:
            problems.append(f"{name}: is not there any more")
            continue
        changed = [key for key in ("size", "crc32c", "generation") if described[key] != wanted[key]]
        if changed:
            problems.append(f"{name}: is not the file that was written, by its {' and '.join(changed)}")
            continue
        try:
            found = fetch(cloud, bucket, described)
            named |= {file.removesuffix(DUMP): found.database} if found.database else {}
            if found.sha256 != wanted["sha256"]:
                problems.append(f"{name}: is not the file that was written, by its sha256")
        except ApiError:
            raise
        except CloudError as error:
            problems.append(str(error))
    return problems, named


@dataclass(frozen=True)
class Target:
    """The deployment that a set is to be restored to.

    `user` is empty where the dumps are given to its own; `mlflow_version` where any will do; `schemas` are the
    revisions `{database: head}` that its release of MLflow needs, as far as they are known; `occupied` whether its
    databases hold anything; `changed_secrets` credentials that may differ; `databases` their names, by dump.
    """

    database_version: str
    user: str
    mlflow_version: str
    schemas: dict[str, str]
    occupied: bool
    confirmed_set: str
    secrets: dict[str, str]
    changed_secrets: list[str]
    databases: dict[str, str]


def misfits(manifest: Json, target: Target, secrets: list[Json], named: Mapping[str, str]) -> list[str]:
    """Return why a set must not be restored to a deployment.

    `secrets` are its own, by the salt of the set; `named` the databases that the set's dumps fill by themselves.
    """
    problems = []
    name, ours, theirs = manifest["name"], target.database_version, manifest["database"]["version"]
    if _engine(ours) != _engine(theirs):
        problems.append(f"the set is of {theirs} and the deployment has {ours}: a dump of one is no use to the other")
    elif _version(ours) < _version(theirs):
        problems.append(f"the set is of {theirs}, newer than the deployment's {ours}")
    owner = manifest["database"]["user"]
    if _engine(ours) == "POSTGRES" and target.user not in ("", owner):
        problems.append(
            f"what is in the set belongs to the database user {owner}, and the deployment's is {target.user}: the "
            "dumps can be given to that one where the deployment has a bucket for sets, platform_backup_enabled: true"
        )
    # What the dump says comes before what an import asks for, as Google's reference of ImportContext.database has it.
    astray = [one for one in DATABASES if one in named and named[one] != target.databases[one]]
    if _engine(ours) == "MYSQL" and astray:
        filled, own = (", ".join(names[one] for one in astray) for names in (named, target.databases))
        stated = ", ".join(f"{NAMED_BY[one]}: {named[one]}" for one in astray)
        problems.append(
            f"a dump of MySQL fills the database that it names: the set would overwrite {filled}, and the deployment "
            f"has {own}. Restore it into one that has an instance of its own and says in its inventory, before it is "
            f"made, {stated}"
        )
    version = manifest["mlflow"]["version"]
    differing = [
        f"{database} {held} there, {target.schemas.get(database, 'unknown')} here"
        for database, held in manifest["mlflow"]["schemas"].items()
        if target.schemas.get(database) != held
    ]
    if target.mlflow_version not in ("", version) and differing and not version:
        problems.append(
            f"no set tells which version of MLflow served then, and the inventory's {target.mlflow_version} has other "
            f"schemas ({'; '.join(differing)}): restore a set of before, by platform_restore_set"
        )
    elif target.mlflow_version not in ("", version) and differing:
        problems.append(
            f"the set is of MLflow {version} and the inventory says {target.mlflow_version}, with other schemas "
            f"({'; '.join(differing)}): give -e platform_mlflow_version={version}, and upgrade afterwards"
        )
    held = {one["credential"]: one for one in manifest["secrets"]["latest"]}
    for one in secrets:
        then, credential = held.get(one["credential"]), one["credential"]
        if then is None or credential in target.changed_secrets:
            continue
        if not hmac.compare_digest(then["pbkdf2_sha256"], one["pbkdf2_sha256"]):
            may_differ = f"platform_restore_changed_secrets: [{credential}]"
            rotated = (
                f"If it was rotated since, say that it may differ by {may_differ}, and MLflow starts with the one of "
                "now; if nobody rotated it, what it protects could not be read: add the old value as a version"
            )
            encrypts = (
                f"With it {ENCRYPTED.get(credential)} could not be read: add the old value as a version. If that is "
                f"lost, so are they, and {may_differ} restores everything else"
            )
            problems.append(
                f"{credential} is another secret than in the set (version {then['version']} of {then['name']} there, "
                f"version {one['version']} of {one['name']} here). {encrypts if credential in ENCRYPTED else rotated}"
            )
    if target.confirmed_set not in ("", name):
        problems.append(f"platform_restore_confirmed_set is {target.confirmed_set} and the set is {name}")
    elif target.occupied and not target.confirmed_set:
        problems.append(
            "the databases are not empty: all that they hold now would be replaced. If that is meant, give "
            f"-e platform_restore_confirmed_set={name}"
        )
    return problems


def examine(
    cloud: Session,
    bucket: str,
    name: str,
    target: Target | None,
    rows: Mapping[str, Mapping[str, int]] | None,
    *,
    migrated: bool = False,
    version: str = "",
) -> Json:
    """Return the result of gcp_backup_set_info."""
    manifest = manifest_of(cloud, bucket, name, version)
    if manifest["format"] != FORMAT:
        problems = [f"{manifest['name']}: has format {manifest['format']}, known is {FORMAT}"]
    elif rows is not None:
        problems = miscounts(manifest, rows, migrated=migrated)
    else:
        problems, named = read_files(cloud, bucket, manifest)
        if target:
            secrets = secret_states(cloud, target.secrets, bytes.fromhex(manifest["secrets"]["salt"]))
            problems += misfits(manifest, target, secrets, named)
    return {"changed": False, "manifest": manifest, "problems": problems}


def _engine(version: str) -> str:
    return version.partition("_")[0]


def _version(version: str) -> list[int]:
    return [int(part) for part in version.split("_")[1:]]


def miscounts(manifest: Json, counts: Mapping[str, Mapping[str, int]], *, migrated: bool) -> list[str]:
    """Return the tables whose rows are not as many as in the dumps, `counts` being by dump and table.

    A migration may add and remove tables, and add rows: after one, only those with fewer rows are wrong.
    """

    def wrong(rows: int, counted: int | None) -> bool:
        return counted is not None and counted < rows if migrated else counted != rows

    return [
        f"{table} of {file} has {counts.get(file, {}).get(table, 'no')} rows, {rows} in the set"
        for file, tables in manifest["rows"].items()
        for table, rows in tables.items()
        if wrong(rows, counts.get(file, {}).get(table))
    ]


def owned(lines: Iterable[bytes], old: str, new: str) -> Iterator[bytes]:
    """Yield the lines of a dump of PostgreSQL whose objects and grants go to another user; rows stay as they are."""
    quoted = b'"' + old.replace('"', '""').encode() + b'"'
    role = b"(?:" + re.escape(quoted) + b"|" + re.escape(old.encode()) + b")"
    owner = re.compile(
        b"((?:ALTER .+ OWNER TO|GRANT .+ TO|REVOKE .+ FROM|ALTER DEFAULT PRIVILEGES FOR ROLE) )"
        + role
        + b"(?=[; ])(.*)",
        re.DOTALL,
    )
    name = b'"' + new.replace('"', '""').encode() + b'"'
    in_table = False
    for line in lines:
        if in_table:
            in_table = line.rstrip(b"\n") != b"\\."
        elif _COPY.fullmatch(line.rstrip(b"\n")):
            in_table = True
        elif found := owner.fullmatch(line):
            yield found[1] + name + found[2]
            continue
        yield line


def give(cloud: Session, bucket: str, manifest: Json, here: str, user: str) -> Json:
    """Write the dumps of a set of PostgreSQL once more, into another bucket and for another database user.

    Returns the module's result; raises CloudError when one is there already, and is another.
    """
    changed, dumps = False, {}
    for one in DATABASES:
        name = f"{manifest['name']}-for-{user}/{one}{DUMP}"
        dumps[one] = f"gs://{here}/{name}"
        present = stat(cloud, here, name)
        changed = changed or present is None
        if cloud.check_mode:
            continue
        theirs = f"{manifest['name']}/{one}{DUMP}"
        generation = manifest["files"][f"{one}{DUMP}"]["generation"]
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "dump.gz")

            def rewrite(chunks: Iterator[bytes], path: pathlib.Path = path) -> str:
                digest = hashlib.sha256()
                with gzip.GzipFile(path, "wb") as given:
                    for line in owned(_lines(chunks), manifest["database"]["user"], user):
                        digest.update(line)
                        given.write(line)
                return digest.hexdigest()

            wanted = cloud.download(bucket, theirs, generation, rewrite)
            if present is None:
                write(cloud, here, name, path)
            elif cloud.download(here, name, present["generation"], _plain_sha256) != wanted:
                raise CloudError(f"gs://{here}/{name}: exists already, with other content", NOT_TAKEN)
    return {"changed": changed, "dumps": dumps}


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines of what is compressed; raises CloudError when it ends too early."""
    unpacked, rest = zlib.decompressobj(wbits=31), b""
    for chunk in chunks:
        *lines, rest = (rest + unpacked.decompress(chunk)).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if not unpacked.eof:
        raise SetError("A dump is damaged (it ends too early)")
    if rest:
        yield rest


def _plain_sha256(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for line in _lines(chunks):
        digest.update(line)
    return digest.hexdigest()


def artifact_list(cloud: Session, bucket: str, manifest: Json) -> list[Json]:
    """Return a set's list of artifacts."""
    name = f"{manifest['name']}/{ARTIFACTS}"
    described = stat(cloud, bucket, name)
    if described is None:
        raise SetError(f"gs://{bucket}/{name}: is not there")
    return [json.loads(line) for line in fetch(cloud, bucket, described, keep=True).data.splitlines()]


@dataclass
class Plan:
    """What brings artifacts to a moment: `copies` are `(name there, generation there, name here, generation here)`."""

    kept: int = 0
    newer: int = 0
    copies: list[tuple[str, str, str, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def plan(
    listed: Iterable[Json], live: Mapping[str, Json], generations: set[tuple[str, str]], prefixes: tuple[str, str]
) -> Plan:
    """Compare a set's artifacts with the live objects here, by name, and the generations that there still are there.

    `prefixes` are those of the artifacts there and here.
    """
    found, wanted = Plan(), set()
    for one in listed:
        name = prefixes[1] + one["name"].removeprefix(prefixes[0])
        wanted.add(name)
        now = live.get(name)
        if now and (now["crc32c"], now["size"]) == (one["crc32c"], one["size"]):
            found.kept += 1
        elif (one["name"], one["generation"]) in generations:
            found.copies.append((one["name"], one["generation"], name, now["generation"] if now else "0"))
        else:
            found.lost.append(one["name"])
    found.newer = len(set(live) - wanted)
    return found


def bring_artifacts(cloud: Session, bucket: str, manifest: Json, here: str, prefix: str) -> Json:
    """Copy back what was deleted or replaced since a set was made, and return the module's result.

    What was made since stays: a restored database does not know it, and nothing is lost.
    """
    there, there_prefix = manifest["artifacts"]["bucket"], manifest["artifacts"]["prefix"]
    versions = list(objects(cloud, there, prefix=there_prefix, versions=True))
    own = versions if (there, there_prefix) == (here, prefix) else objects(cloud, here, prefix=prefix)
    live = {one["name"]: one for one in own if "timeDeleted" not in one}
    generations = {(one["name"], one["generation"]) for one in versions}
    found = plan(artifact_list(cloud, bucket, manifest), live, generations, (there_prefix, prefix))
    if not cloud.check_mode:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda copy: _copy(cloud, there, here, copy), found.copies))
    return {
        "changed": bool(found.copies),
        "kept": found.kept,
        "copied": len(found.copies),
        "newer": found.newer,
        "lost": found.lost,
    }


def _copy(cloud: Session, there: str, here: str, copy: tuple[str, str, str, str]) -> None:
    """Copy one object, unless somebody was faster; large ones take several calls."""
    source, generation, name, replaced = copy
    rewrite = method("storage.v1", "objects", "rewrite")
    place = {"sourceBucket": there, "sourceObject": source, "destinationBucket": here, "destinationObject": name}
    query = {"sourceGeneration": generation, "ifGenerationMatch": replaced}
    purpose = f"Copying generation {generation} of gs://{there}/{source} back"
    for pause in cloud.pauses():
        try:
            answer = cloud.call(rewrite, place, purpose, {}, query)
        except AmbiguousError:
            # It may have been made: then the condition says so.
            cloud.sleep(pause)
            continue
        except ApiError as error:
            if error.status != 412:
                raise
            return
        if answer["done"]:
            return
        query["rewriteToken"] = answer["rewriteToken"]
