"""Cloud SQL Admin: instances, databases, users, and the certificates by which the Cloud SQL Auth Proxy connects."""

import dataclasses
import datetime
import gzip
import hashlib
import pathlib
import re
import shutil
import tempfile
import uuid

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from emulator import certificates, media, sql_engines
from emulator.cloud import Call, patched, serves
from emulator.effects import EffectError, check_database_flags
from emulator.errors import ApiError
from emulator.operations import Work
from emulator.services import kms, storage
from emulator.services.compute import BASE, path_of
from emulator.services.compute_catalog import ZONES
from emulator.services.iam import new_account
from emulator.state import Resource, State, fingerprint, now, public

_ROOT = "https://sqladmin.googleapis.com/v1/"

_AGENTS = "gcp-sa-cloud-sql"
# https://cloud.google.com/sql/docs/postgres/machine-series-overview
_TIERS = {
    "ENTERPRISE": re.compile(r"db-custom-\d+-\d+|db-f1-micro|db-g1-small"),
    "ENTERPRISE_PLUS": re.compile(r"db-perf-optimized-N-\d+|db-c4a-highmem-\d+"),
}
# Days of transaction logs that each edition keeps at most: https://cloud.google.com/sql/docs/postgres/backup-recovery/pitr
_LOG_DAYS = {"ENTERPRISE": 7, "ENTERPRISE_PLUS": 35}
_INSIGHTS = {"queryStringLength": 1024, "queryPlansPerMinute": 5}
_INSIGHTS_RANGES = {"queryStringLength": (256, 4500), "queryPlansPerMinute": (0, 20)}
_LARGEST_DISK_GB = 65536
_PEERING_SERVICE = "services/servicenetworking.googleapis.com"


@dataclasses.dataclass(frozen=True)
class _Engine:
    """What is spelt otherwise from one database version to the other; `log` is the field of point-in-time recovery."""

    iam_flag: str
    log: str
    charset: str
    collation: str
    databases: tuple[str, ...]
    administrator: str
    host: str


# https://cloud.google.com/sql/docs/mysql/users, https://cloud.google.com/sql/docs/mysql/backup-recovery/pitr
_ENGINES = {
    "POSTGRES_17": _Engine(
        iam_flag="cloudsql.iam_authentication",
        log="pointInTimeRecoveryEnabled",
        charset="UTF8",
        collation="en_US.UTF8",
        databases=("postgres",),
        administrator="postgres",
        host="",
    ),
    "MYSQL_8_4": _Engine(
        iam_flag="cloudsql_iam_authentication",
        log="binaryLogEnabled",
        charset="utf8mb4",
        collation="utf8mb4_0900_ai_ci",
        databases=("information_schema", "mysql", "performance_schema", "sys"),
        administrator="root",
        host="%",
    ),
}
# https://dev.mysql.com/doc/refman/8.4/en/user-names.html
_LONGEST_MYSQL_NAME = 32
_LOGS = {engine.log for engine in _ENGINES.values()}
_USE = re.compile(rb"USE `((?:[^`]|``)+)`;\n?")
_CERTIFICATE_LIFETIME = datetime.timedelta(hours=1)
_DEFAULTS: Resource = {
    "kind": "sql#settings",
    "activationPolicy": "ALWAYS",
    "availabilityType": "ZONAL",
    "connectorEnforcement": "NOT_REQUIRED",
    "dataDiskSizeGb": "10",
    "dataDiskType": "PD_SSD",
    "deletionProtectionEnabled": False,
    "pricingPlan": "PER_USE",
    "replicationType": "SYNCHRONOUS",
    "storageAutoResize": True,
    "storageAutoResizeLimit": "0",
    "backupConfiguration": {
        "kind": "sql#backupConfiguration",
        "enabled": False,
        "startTime": "03:00",
        "backupRetentionSettings": {"retentionUnit": "COUNT", "retainedBackups": 7},
        "transactionLogRetentionDays": 7,
    },
    "ipConfiguration": {
        "ipv4Enabled": True,
        "requireSsl": False,
        "serverCaMode": "GOOGLE_MANAGED_INTERNAL_CA",
        "sslMode": "ALLOW_UNENCRYPTED_AND_ENCRYPTED",
    },
}


def _name(call: Call) -> str:
    return f"projects/{call.parameters['project']}/instances/{call.parameters['instance']}"


def _need(call: Call) -> Resource:
    found = call.state.resources.get(f"sql/{_name(call)}")
    if found is None:
        raise ApiError(404, "The Cloud SQL instance does not exist.", reason="instanceDoesNotExist")
    return found


def _bad(message: str) -> ApiError:
    return ApiError(400, f"Invalid request: {message}")


def _start(
    call: Call,
    kind: str,
    instance: str,
    work: Work = lambda: None,
    finish: Work = lambda: None,
    creates: tuple[str, ...] = (),
) -> Resource:
    """Starts an operation on an instance; only one at a time runs there, as on the real cloud."""
    target = f"sql/projects/{call.parameters['project']}/instances/{instance}"
    _check_idle(call, target)
    name = str(uuid.uuid4())
    own = f"projects/{call.parameters['project']}/operations/{name}"
    body = {
        "kind": "sql#operation",
        "name": name,
        "operationType": kind,
        "status": "PENDING",
        "user": call.principal,
        "insertTime": now(),
        "targetId": instance,
        "targetProject": call.parameters["project"],
        "targetLink": _ROOT + target.partition("/")[2],
        "selfLink": _ROOT + own,
    }
    return call.cloud.operations.start(
        f"sql/{own}", "sql", body, target=target, work=work, finish=finish, creates=creates, fault=call.fault
    )


def _check_idle(call: Call, target: str) -> None:
    if call.cloud.operations.busy(target):
        raise ApiError(
            409,
            "Operation failed because another operation was already in progress. Try your request after the current "
            "operation is complete.",
            reason="operationInProgress",
            status="ABORTED",
        )


@serves("sql.operations.get", permission="cloudsql.instances.get")
def _operation(call: Call) -> Resource:
    record = call.state.operations.get(
        f"sql/projects/{call.parameters['project']}/operations/{call.parameters['operation']}"
    )
    if record is None:
        raise ApiError(404, "The Cloud SQL operation does not exist.", reason="operationDoesNotExist")
    body: Resource = record["body"]
    return body


# https://cloud.google.com/sql/docs/mysql/iam-permissions: what one operation takes is less.
@serves("sql.operations.list", permission="cloudsql.instances.list")
def _operations(call: Call) -> Resource:
    prefix = f"sql/projects/{call.parameters['project']}/operations/"
    wanted = call.parameters.get("instance")
    found = [item["body"] for name, item in call.state.operations.items() if name.startswith(prefix)]
    found = [item for item in found if wanted in (None, item["targetId"])]
    newest = sorted(found, key=lambda item: str(item["insertTime"]), reverse=True)
    return {"kind": "sql#operationsList", **call.page(newest)}


@serves("sql.instances.insert", permission="cloudsql.instances.create")
def _insert(call: Call) -> Resource:
    return _make(call, call.body or {}, "CREATE", {})


def _make(call: Call, body: Resource, operation: str, content: Resource, fill: Work = lambda: None) -> Resource:
    """Makes an instance; `content` is what a clone has from its source, see `_content`, and `fill` brings its data."""
    project = call.parameters["project"]
    name = body.get("name", "")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,96}[a-z0-9])?", name):
        raise _bad(f"Invalid instance name ({name}): lower-case letters, digits and dashes, beginning with a letter.")
    key = f"sql/projects/{project}/instances/{name}"
    # Stricter than Google, where a name is free at once, so that nothing relies on it:
    # https://cloud.google.com/sql/docs/postgres/delete-instance
    if key in call.state.resources or key in call.state.retired:
        raise ApiError(
            409,
            "The Cloud SQL instance already exists. When you delete an instance, you can't reuse the name of the "
            "deleted instance until one week from the deletion date.",
            reason="instanceAlreadyExists",
        )
    region = body.get("region", "us-central1")
    if region not in ZONES:
        raise _bad(f"Invalid region: {region}.")
    version = body.get("databaseVersion")
    if version not in _ENGINES:
        raise ApiError(501, f"The emulated cloud has {' and '.join(_ENGINES)} only, not {version}.")
    engine = _ENGINES[version]
    settings = _complete(call, body.get("settings") or {}, region, version)
    _check_key(call, body, region)
    authority, authority_key = certificates.make_authority(f"Google Cloud SQL Server CA {uuid.uuid4()}")
    endpoint = _endpoint(key, region) if _has_endpoint(settings) else {}
    # As whom the instance reaches buckets; it belongs to Google, and goes with the instance.
    email = f"p{call.state.projects[project]}-{uuid.uuid4().hex[:6]}@{_AGENTS}.iam.gserviceaccount.com"
    instance: Resource = {
        **{field: value for field, value in body.items() if field != "rootPassword"},
        "kind": "sql#instance",
        "project": project,
        "region": region,
        "settings": settings | {"settingsVersion": "1"},
        "state": "PENDING_CREATE",
        "backendType": "SECOND_GEN",
        "instanceType": "CLOUD_SQL_INSTANCE",
        "connectionName": f"{project}:{region}:{name}",
        "createTime": now(),
        "databaseInstalledVersion": f"{version}_6",
        **endpoint,
        "gceZone": settings["locationPreference"]["zone"],
        "serviceAccountEmailAddress": email,
        "selfLink": f"{_ROOT}projects/{project}/instances/{name}",
        "serverCaCert": _described(authority, name),
        "etag": fingerprint([key, now()]),
        "_authority": [authority, authority_key],
        "_network": _network(settings),
    }
    # Without a name of its own, clients know it by the certificate's subject.
    names = [endpoint.get("dnsName", f"{name}.internal").rstrip(".")]
    certificate = certificates.issue_server(authority, authority_key, f"{project}:{name}", names)
    instance["_server"] = list(certificate)
    owned = {"instance": name, "project": project}
    administrator = {"kind": "sql#user", "name": engine.administrator, "type": "BUILT_IN", "host": engine.host, **owned}
    children = {
        **{f"{key}/databases/{name}": _database(engine, owned, {"name": name}) for name in engine.databases},
        f"{key}/users/{_user_key(engine.administrator, engine.host)}": administrator,
    }
    children |= {f"{key}/{path}": {**child, **owned} for path, child in content.items()}
    children[f"iam/projects/{_AGENTS}/serviceAccounts/{email}"] = new_account(call.state, _AGENTS, email, {})
    call.state.resources |= {key: instance, **children}

    def work() -> None:
        fill()
        _apply(call, instance)

    def finish() -> None:
        instance["state"] = "RUNNABLE"
        _note(call.state, key)

    return _start(call, operation, name, work, finish, (key, *children))


def _has_endpoint(settings: Resource) -> bool:
    """Whether Private Service Connect is on."""
    return bool(settings["ipConfiguration"].get("pscConfig", {}).get("pscEnabled"))


def _endpoint(key: str, region: str) -> Resource:
    """Return by what networks reach an instance; https://cloud.google.com/sql/docs/postgres/about-private-service-connect."""
    attachment = f"a-{hashlib.sha256(key.encode()).hexdigest()[:12]}-psc-service-attachment-{uuid.uuid4().hex[:16]}"
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.{uuid.uuid4().hex[:12]}.{region}.sql.goog."
    return {
        "dnsName": name,
        "dnsNames": [
            {
                "name": name,
                "connectionType": "PRIVATE_SERVICE_CONNECT",
                "dnsScope": "INSTANCE",
                "recordManager": "CUSTOMER",
            }
        ],
        "pscServiceAttachmentLink": f"projects/emulated-tp/regions/{region}/serviceAttachments/{attachment}",
    }


def _check_key(call: Call, body: Resource, region: str) -> None:
    """https://cloud.google.com/sql/docs/postgres/configure-cmek; an instance has its key from the beginning."""
    encryption = body.get("diskEncryptionConfiguration")
    if not encryption:
        return
    key = encryption.get("kmsKeyName", "")
    fault = kms.fault_of(call.cloud, key, call.parameters["project"], "sqladmin.googleapis.com", {region})
    if fault == "malformed":
        raise _bad(f"Invalid KMS key name: {key}.")
    if fault == "location":
        raise _bad(f"The KMS key {key} must be in the region of the instance, {region}.")
    if fault:
        agent = kms.agent_email(call.state, call.parameters["project"], "sqladmin.googleapis.com")
        raise _bad(
            f"The service account {agent} cannot use the KMS key: Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' "
            f"denied on resource '{key}' (or it may not exist, or be disabled)."
        )
    body["diskEncryptionConfiguration"] = {"kind": "sql#diskEncryptionConfiguration", **encryption}


def _apply(call: Call, instance: Resource) -> None:
    """Makes the database server, or brings it to its settings."""
    certificate, key = instance["_server"]
    made = call.cloud.effects.create_sql_instance(
        instance["project"], public(instance), certificate, key, instance["_authority"][0]
    )
    configuration = instance["settings"]["ipConfiguration"]
    kinds = ["PRIMARY"] * configuration["ipv4Enabled"] + ["PRIVATE"] * bool(configuration.get("privateNetwork"))
    instance["ipAddresses"] = [{"type": kind, "ipAddress": made["ip"]} for kind in kinds]


def _complete(call: Call, sent: Resource, region: str, version: str) -> Resource:
    """Return settings with Google's defaults; raises `ApiError` 400 for those that Google refuses."""
    log = _ENGINES[version].log
    settings = patched(_DEFAULTS, sent)
    # Google's default for PostgreSQL from 16 and MySQL from 8.4 on.
    edition = settings.setdefault("edition", "ENTERPRISE_PLUS")
    tier = settings.get("tier")
    if not tier:
        raise _bad("Missing parameter: tier.")
    if edition not in _TIERS or not _TIERS[edition].fullmatch(tier):
        raise _bad(f"Invalid Tier ({tier}) for ({edition}) Edition.")
    # https://cloud.google.com/sql/docs/postgres/storage-options-overview
    is_hyperdisk = settings["dataDiskType"] == "HYPERDISK_BALANCED"
    if is_hyperdisk != tier.startswith("db-c4a-"):
        raise _bad(f"The tier {tier} does not go with {settings['dataDiskType']}: C4A alone has HYPERDISK_BALANCED.")
    zone = settings.get("locationPreference", {}).get("zone") or f"{region}-{ZONES[region][0]}"
    if zone.rpartition("-")[0] != region:
        raise _bad(f"Zone {zone} is not in region {region}.")
    settings["locationPreference"] = {"kind": "sql#locationPreference", "zone": zone} | settings.get(
        "locationPreference", {}
    )
    backup = settings["backupConfiguration"]
    if any(backup.get(field) for field in _LOGS - {log}):
        raise _bad(f"{version} has {log} alone of {', '.join(sorted(_LOGS))}.")
    if backup.get(log) and not backup["enabled"]:
        raise _bad("Point-in-time recovery needs backups to be enabled.")
    # https://cloud.google.com/sql/docs/mysql/configure-ha
    is_logged = backup.get(log) or log != "binaryLogEnabled"
    if settings["availabilityType"] == "REGIONAL" and not (backup["enabled"] and is_logged):
        raise _bad("High availability needs backups to be enabled, and in MySQL the binary log.")
    size, limit = int(settings["dataDiskSizeGb"]), int(settings["storageAutoResizeLimit"])
    smallest = 20 if is_hyperdisk else 10
    if not smallest <= size <= _LARGEST_DISK_GB:
        raise _bad(f"The disk must have {smallest} to {_LARGEST_DISK_GB} GB.")
    if limit and limit < size:
        raise _bad("storageAutoResizeLimit must be 0, or no less than the disk.")
    _complete_edition(settings)
    _complete_insights(settings)
    _check_deny_periods(settings.get("denyMaintenancePeriods", []))
    try:
        check_database_flags(settings, version)
    except EffectError as error:
        raise ApiError(400, str(error)) from error
    configuration = settings["ipConfiguration"]
    configuration["requireSsl"] = configuration["sslMode"] == "TRUSTED_CLIENT_CERTIFICATE_REQUIRED"
    network = _network(settings)
    if not (configuration["ipv4Enabled"] or network or _has_endpoint(settings)):
        raise _bad("At least one of Public IP or Private IP or PSC connectivity must be enabled.")
    if _has_endpoint(settings) and configuration["ipv4Enabled"]:
        raise _bad("Public IP cannot be enabled on an instance with Private Service Connect.")
    if _has_endpoint(settings) and network:
        raise ApiError(501, "The emulated cloud has no instance with a private address and Private Service Connect.")
    _check_endpoint(configuration.get("pscConfig", {}))
    if network:
        path = network.removeprefix(BASE)
        if f"compute/{path}" not in call.state.resources:
            raise _bad(f"The network {configuration['privateNetwork']} does not exist.")
        if f"servicenetworking/{path}/{_PEERING_SERVICE}" not in call.state.resources:
            raise ApiError(
                400,
                "Failed to create subnetwork. Please create Service Networking connection with service "
                f"'servicenetworking.googleapis.com' from consumer project '{call.parameters['project']}' network "
                f"'{path.rpartition('/')[2]}' again.",
            )
        configuration["privateNetwork"] = path
    return settings


def _check_endpoint(config: Resource) -> None:
    if set(config) - {"pscEnabled", "allowedConsumerProjects"}:
        raise ApiError(501, "Of Private Service Connect, the emulated cloud has endpoints that are made by hand only.")
    if config.get("allowedConsumerProjects") and not config.get("pscEnabled"):
        raise _bad("allowedConsumerProjects goes with pscEnabled only.")


def _complete_edition(settings: Resource) -> None:
    edition = settings["edition"]
    if edition == "ENTERPRISE_PLUS":
        settings["dataCacheConfig"] = {"dataCacheEnabled": False} | settings.get("dataCacheConfig", {})
    elif settings.pop("dataCacheConfig", {}).get("dataCacheEnabled"):
        raise _bad("Data cache is only supported for Cloud SQL Enterprise Plus edition.")
    days = settings["backupConfiguration"]["transactionLogRetentionDays"]
    if not 1 <= days <= _LOG_DAYS[edition]:
        raise _bad(f"transactionLogRetentionDays must be from 1 to {_LOG_DAYS[edition]} in {edition}.")
    hour = settings.get("maintenanceWindow", {}).get("hour", 0)
    if not 0 <= hour <= 23:
        raise _bad(f"Invalid maintenance window: hour {hour}.")


def _complete_insights(settings: Resource) -> None:
    """https://cloud.google.com/sql/docs/postgres/using-query-insights."""
    insights = settings.get("insightsConfig", {})
    if not insights.get("queryInsightsEnabled"):
        settings.pop("insightsConfig", None)
        return
    settings["insightsConfig"] = insights = _INSIGHTS | insights
    for field, (lowest, highest) in _INSIGHTS_RANGES.items():
        if not lowest <= insights[field] <= highest:
            raise _bad(f"{field} must be from {lowest} to {highest}.")


def _check_deny_periods(periods: list[Resource]) -> None:
    """https://cloud.google.com/sql/docs/postgres/maintenance#deny: one period, of at most 90 days."""
    if len(periods) > 1:
        raise _bad("There can be one deny maintenance period only.")
    for period in periods:
        texts = [period.get("startDate", ""), period.get("endDate", "")]
        if not all(re.fullmatch(r"(\d{4}-)?\d\d?-\d\d?", text) for text in texts):
            raise _bad("A deny maintenance period needs startDate and endDate, as yyyy-mm-dd or mm-dd.")
        if not re.fullmatch(r"\d\d:\d\d:\d\d", period.get("time", "")):
            raise _bad("A deny maintenance period needs a time, as HH:MM:SS.")
        dated = [datetime.date(*map(int, text.split("-"))) for text in texts if text.count("-") == 2]
        if len(dated) == 2 and not 0 < (dated[1] - dated[0]).days <= 90:
            raise _bad("A deny maintenance period has 1 to 90 days.")


def _network(settings: Resource) -> str | None:
    """Return the full link of the private network."""
    link = settings["ipConfiguration"].get("privateNetwork")
    if not link:
        return None
    path = path_of(link, "")
    if path is None or "/networks/" not in path:
        raise _bad(f"Incorrect format for the network: {link}.")
    return BASE + path


@serves("sql.instances.get", permission="cloudsql.instances.get")
def _get(call: Call) -> Resource:
    return public(_need(call))


@serves("sql.instances.list", permission="cloudsql.instances.list")
def _list(call: Call) -> Resource:
    prefix = f"sql/projects/{call.parameters['project']}/instances/"
    found = [public(item) for name, item in call.state.under(prefix) if name.count("/") == prefix.count("/")]
    return {"kind": "sql#instancesList", **call.page(found)}


def _check_edition(body: Resource, sent: Resource, current: Resource) -> None:
    """https://github.com/GoogleCloudPlatform/k8s-config-connector/issues/2907."""
    beside = {*body, *sent} - {"settings", "settingsVersion", "edition", "tier", "dataCacheConfig"}
    if beside and sent.get("edition", current["edition"]) != current["edition"]:
        raise _bad(f"The edition cannot be changed together with {', '.join(sorted(beside))}.")


@serves("sql.instances.patch", "sql.instances.update", permission="cloudsql.instances.update")
def _change(call: Call) -> Resource:
    instance, body = _need(call), call.body or {}
    for field in ("name", "region", "databaseVersion", "project"):
        if field in body and body[field] != instance[field]:
            raise _bad(f"{field} cannot be changed from {instance[field]} to {body[field]}.")
    key = (body.get("diskEncryptionConfiguration") or {}).get("kmsKeyName")
    if "diskEncryptionConfiguration" in body and key != instance.get("diskEncryptionConfiguration", {}).get(
        "kmsKeyName"
    ):
        raise _bad("diskEncryptionConfiguration cannot be changed after the instance was made.")
    current, sent = instance["settings"], body.get("settings") or {}
    if sent.get("settingsVersion") and str(sent["settingsVersion"]) != current["settingsVersion"]:
        raise ApiError(412, "Condition does not match: settingsVersion is stale.", reason="staleData")
    _check_edition(body, sent, current)
    wanted = patched(current, sent) if call.verb == "patch" else sent
    settings = _complete(call, wanted, instance["region"], instance["databaseVersion"])
    if _has_endpoint(settings) != _has_endpoint(current):
        raise _bad("Private Service Connect can be enabled, or not, when the instance is made only.")
    if int(settings["dataDiskSizeGb"]) < int(current["dataDiskSizeGb"]):
        raise _bad("The disk cannot be made smaller.")
    settings["settingsVersion"] = str(int(current["settingsVersion"]) + 1)
    changed = {**instance, "settings": settings, "_network": _network(settings), "etag": fingerprint([settings, now()])}

    def finish() -> None:
        call.state.resources[f"sql/{_name(call)}"] = changed
        _note(call.state, f"sql/{_name(call)}")

    return _start(call, "UPDATE", call.parameters["instance"], lambda: _apply(call, changed), finish)


@serves("sql.instances.restart", permission="cloudsql.instances.restart")
def _restart(call: Call) -> Resource:
    name = _need(call)["name"]
    return _start(call, "RESTART", name, lambda: call.cloud.effects.restart_sql_instance(name))


@serves("sql.instances.delete", permission="cloudsql.instances.delete")
def _delete(call: Call) -> Resource:
    instance = _need(call)
    if instance["settings"]["deletionProtectionEnabled"]:
        raise ApiError(
            400,
            "The instance is protected. Please disable the deletion protection and try again. To disable deletion "
            "protection, update the instance settings with deletionProtectionEnabled set to false.",
        )
    key = f"sql/{_name(call)}"

    def finish() -> None:
        for name in [name for name in call.state.resources if name == key or name.startswith(f"{key}/")]:
            del call.state.resources[name]
        agent = f"iam/projects/{_AGENTS}/serviceAccounts/{instance['serviceAccountEmailAddress']}"
        call.state.resources.pop(agent, None)
        call.state.history.pop(key, None)
        call.state.retired.append(key)

    return _start(
        call, "DELETE", instance["name"], lambda: call.cloud.effects.delete_sql_instance(instance["name"]), finish
    )


def _database(engine: _Engine, owned: Resource, body: Resource) -> Resource:
    defaults = {"charset": engine.charset, "collation": engine.collation}
    database = {**defaults, **body, "kind": "sql#database", **owned}
    link = f"{_ROOT}projects/{owned['project']}/instances/{owned['instance']}/databases/{body['name']}"
    return database | {"selfLink": link, "etag": fingerprint(database)}


def _children(call: Call, kind: str) -> list[Resource]:
    _need(call)
    return [public(item) for _, item in call.state.under(f"sql/{_name(call)}/{kind}/")]


def _child(call: Call, kind: str, name: str) -> tuple[str, Resource]:
    _need(call)
    key = f"sql/{_name(call)}/{kind}/{name}"
    found = call.state.resources.get(key)
    if found is None:
        word = kind.removesuffix("s")
        raise ApiError(404, f"Not Found: {word} {name}", reason=f"{word}DoesNotExist")
    return key, found


@serves("sql.databases.list", permission="cloudsql.databases.list")
def _list_databases(call: Call) -> Resource:
    return {"kind": "sql#databasesList", "items": _children(call, "databases")}


@serves("sql.databases.get", permission="cloudsql.databases.get")
def _get_database(call: Call) -> Resource:
    return _child(call, "databases", call.parameters["database"])[1]


@serves("sql.databases.insert", permission="cloudsql.databases.create")
def _insert_database(call: Call) -> Resource:
    engine = _ENGINES[_need(call)["databaseVersion"]]
    instance, body = _need(call)["name"], call.body or {}
    name = body.get("name")
    if not name or len(name) > 63:
        raise _bad(f"Invalid database name: {name}.")
    if body.get("charset", engine.charset) != engine.charset:
        raise ApiError(501, f"The emulated cloud has databases of the charset {engine.charset} only.")
    key = f"sql/{_name(call)}/databases/{name}"
    if key in call.state.resources:
        raise _bad(f'failed to create database {name}. Detail: database "{name}" already exists')

    def finish() -> None:
        owned = {"instance": instance, "project": call.parameters["project"]}
        call.state.resources[key] = _database(engine, owned, body)
        _note(call.state, f"sql/{_name(call)}")

    return _start(
        call, "CREATE_DATABASE", instance, lambda: call.cloud.effects.create_sql_database(instance, name), finish
    )


@serves("sql.databases.delete", permission="cloudsql.databases.delete")
def _delete_database(call: Call) -> Resource:
    key, database = _child(call, "databases", call.parameters["database"])
    instance, name = database["instance"], database["name"]

    def finish() -> None:
        call.state.resources.pop(key, None)
        _note(call.state, f"sql/{_name(call)}")

    return _start(
        call, "DELETE_DATABASE", instance, lambda: call.cloud.effects.delete_sql_database(instance, name), finish
    )


@serves("sql.users.list", permission="cloudsql.users.list")
def _list_users(call: Call) -> Resource:
    return {"kind": "sql#usersList", "items": _children(call, "users")}


def _user_key(name: str, host: str) -> str:
    return f"{name}@{host}" if host else name


def _user(call: Call, name: str) -> tuple[str, Resource]:
    """Return a user by name and, in MySQL, host; an IAM user's name there is its whole address."""
    return _child(call, "users", _user_key(name, call.parameters.get("host") or ""))


@serves("sql.users.get", permission="cloudsql.users.get")
def _get_user(call: Call) -> Resource:
    return public(_user(call, call.parameters["name"])[1])


@serves("sql.users.insert", permission="cloudsql.users.create")
def _insert_user(call: Call) -> Resource:
    instance, body = _need(call), call.body or {}
    kind = body.get("type", "BUILT_IN")
    _check_user(call, instance, body, kind)
    roles = body.get("databaseRoles") or ([] if kind.startswith("CLOUD_IAM") else ["cloudsqlsuperuser"])
    owned = {"instance": instance["name"], "project": call.parameters["project"]}
    host = body.get("host") or _ENGINES[instance["databaseVersion"]].host
    user: Resource = {"kind": "sql#user", "type": kind, "host": host, "databaseRoles": roles, **owned}
    user["name"] = name = body["name"]
    if kind.startswith("CLOUD_IAM"):
        user["iamStatus"] = "ACTIVE"
        if instance["databaseVersion"].startswith("MYSQL"):
            user |= {"name": name.partition("@")[0], "iamEmail": name}
    if any((user["name"], host) == (other["name"], other["host"]) for other in _children(call, "users")):
        raise ApiError(409, f"User {user['name']} already exists.", reason="userAlreadyExists")
    user["etag"] = fingerprint(user)

    def finish() -> None:
        call.state.resources[f"sql/{_name(call)}/users/{_user_key(name, host)}"] = user
        _note(call.state, f"sql/{_name(call)}")

    asked = user | ({"password": body["password"]} if "password" in body else {})
    return _start(
        call,
        "CREATE_USER",
        instance["name"],
        lambda: call.cloud.effects.create_sql_user(instance["name"], asked),
        finish,
    )


def _check_user(call: Call, instance: Resource, user: Resource, kind: str) -> None:
    name, is_mysql = user.get("name", ""), instance["databaseVersion"].startswith("MYSQL")
    if kind not in ("BUILT_IN", "CLOUD_IAM_USER", "CLOUD_IAM_SERVICE_ACCOUNT"):
        raise ApiError(501, f"The emulated cloud has no database users of type {kind}.")
    if is_mysql and len(name.partition("@")[0]) > _LONGEST_MYSQL_NAME:
        raise _bad(f"The user name {name} is longer than {_LONGEST_MYSQL_NAME} characters.")
    if kind == "BUILT_IN":
        if not name or "@" in name or not user.get("password"):
            raise _bad("A built-in user needs a name without @, and a password.")
        if is_mysql and not user.get("host"):
            raise _bad("A user of MySQL needs a host.")
        if user.get("host", "%") != "%":
            raise ApiError(501, "The emulated cloud has database users of any host (%) only.")
        return
    if user.get("password") or user.get("host"):
        raise _bad("For IAM users, password or hostname should not be specified.")
    ending = ".gserviceaccount.com"
    account = name if is_mysql else f"{name}{ending}"
    if "@" not in name or (not is_mysql and name.endswith(ending)):
        raise _bad(f"The IAM user {name} must be an e-mail address, for PostgreSQL without the ending {ending}.")
    flags = {flag["name"]: flag.get("value") for flag in instance["settings"].get("databaseFlags", [])}
    flag = _ENGINES[instance["databaseVersion"]].iam_flag
    if flags.get(flag) != "on":
        raise _bad(f"IAM users need the database flag {flag} to be on.")
    if kind == "CLOUD_IAM_SERVICE_ACCOUNT" and not call.cloud.access.account_exists(account):
        raise _bad(f"The service account {account} does not exist.")


@serves("sql.users.update", permission="cloudsql.users.update")
def _update_user(call: Call) -> Resource:
    body = call.body or {}
    key, user = _user(call, call.parameters.get("name") or body.get("name", ""))
    if body.get("password") and user["type"] != "BUILT_IN":
        raise _bad("An IAM user has no password.")
    asked = call.parameters.get("databaseRoles") or body.get("databaseRoles")
    changed = dict(user)
    if asked is not None:
        kept = [] if call.parameters.get("revokeExistingRoles") else user.get("databaseRoles", [])
        changed["databaseRoles"] = list(dict.fromkeys([*kept, *asked]))
    changed["etag"] = fingerprint([changed, now()])

    def finish() -> None:
        call.state.resources[key] = changed
        _note(call.state, f"sql/{_name(call)}")

    instance = user["instance"]
    effect = public(changed) | ({"password": body["password"]} if body.get("password") else {})
    return _start(call, "UPDATE_USER", instance, lambda: call.cloud.effects.update_sql_user(instance, effect), finish)


@serves("sql.users.delete", permission="cloudsql.users.delete")
def _delete_user(call: Call) -> Resource:
    key, user = _user(call, call.parameters.get("name", ""))
    instance, name = user["instance"], user["name"]

    def finish() -> None:
        call.state.resources.pop(key, None)
        _note(call.state, f"sql/{_name(call)}")

    return _start(call, "DELETE_USER", instance, lambda: call.cloud.effects.delete_sql_user(instance, name), finish)


def _described(pem: str, instance: str) -> Resource:
    """Return a certificate as an SslCert."""
    certificate = x509.load_pem_x509_certificate(pem.encode())
    der = certificate.public_bytes(serialization.Encoding.DER)
    return {
        "kind": "sql#sslCert",
        "cert": pem,
        "certSerialNumber": str(certificate.serial_number),
        "commonName": str(certificate.subject.rdns[0].rfc4514_string().partition("=")[2]),
        "createTime": certificate.not_valid_before_utc.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "expirationTime": certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "instance": instance,
        "sha1Fingerprint": hashlib.sha1(der, usedforsecurity=False).hexdigest(),
    }


@serves("sql.connect.get", permission="cloudsql.instances.connect")
def _connect_settings(call: Call) -> Resource:
    instance = _need(call)
    copied = ("serverCaCert", "region", "databaseVersion", "backendType", "connectionName", "dnsName", "dnsNames")
    return {
        "kind": "sql#connectSettings",
        **{field: instance[field] for field in copied if field in instance},
        "ipAddresses": instance.get("ipAddresses", []),
        "serverCaMode": instance["settings"]["ipConfiguration"]["serverCaMode"],
        "pscEnabled": _has_endpoint(instance["settings"]),
    }


@serves("sql.connect.generateEphemeral", permission="cloudsql.instances.connect")
def _ephemeral_certificate(call: Call) -> Resource:
    """Signs a client's key; an access token in the request makes it a certificate for IAM login."""
    instance, body = _need(call), call.body or {}
    if instance["state"] != "RUNNABLE":
        raise ApiError(400, "The instance is not running.", reason="invalidState")
    common_name = "user"
    if body.get("access_token"):
        try:
            common_name = call.cloud.access.read_token(body["access_token"])["email"]
        except ApiError as error:
            raise ApiError(400, "Invalid request: the access token for IAM login is not valid.") from error
        call.cloud.access.require(common_name, "cloudsql.instances.login", [f"projects/{call.parameters['project']}"])
    authority, key = instance["_authority"]
    public_key = body.get("public_key", "")
    try:
        pem = certificates.issue_client(authority, key, common_name, public_key, _CERTIFICATE_LIFETIME)
    except ValueError as error:
        raise _bad(f"Provided public key was in an invalid or unsupported format. {error}") from error
    return {"ephemeralCert": _described(pem, instance["name"])}


def _content(state: State, key: str) -> Resource:
    """Return the databases and users of an instance, by their path in it: all that is known of its data."""
    prefix = f"{key}/"
    return {
        name.removeprefix(prefix): item
        for kind in ("databases", "users")
        for name, item in state.under(f"{prefix}{kind}/")
    }


def _has_log(instance: Resource) -> bool:
    """Whether point-in-time recovery is on."""
    return bool(instance["settings"]["backupConfiguration"].get(_ENGINES[instance["databaseVersion"]].log))


def _note(state: State, key: str) -> None:
    """Remembers from when on an instance holds what it does now, as far back as it can be recovered."""
    if not _has_log(state.resources[key]):
        state.history.pop(key, None)
        return
    state.history.setdefault(key, []).append({"since": now(), "content": _content(state, key)})


def _recoverable(call: Call, instance: Resource) -> tuple[str, str]:
    """Return the earliest and the latest moment to which an instance can be recovered."""
    noted = call.state.history.get(f"sql/{_name(call)}")
    if not _has_log(instance) or not noted:
        raise _bad(f"Point-in-time recovery is not enabled for instance {instance['name']}.")
    days = instance["settings"]["backupConfiguration"]["transactionLogRetentionDays"]
    kept = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    return max(noted[0]["since"], _written(kept)), now()


def _written(moment: datetime.datetime) -> str:
    """Return a moment as `now` writes it, so that the two compare as text."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _content_at(call: Call, instance: Resource, asked: str) -> tuple[str, Resource]:
    """Return a moment in UTC, and what an instance held then; raises `ApiError` 400 where that cannot be recovered."""
    try:
        moment = datetime.datetime.fromisoformat(asked)
    except ValueError as error:
        raise _bad(f"Invalid value for pointInTime: {asked}.") from error
    if moment.tzinfo is None:
        raise _bad(f"Invalid value for pointInTime: {asked}.")
    earliest, latest = _recoverable(call, instance)
    if not earliest <= _written(moment) <= latest:
        raise _bad(f"pointInTime {asked} is not between the recovery times {earliest} and {latest}.")
    noted = [one for one in call.state.history[f"sql/{_name(call)}"] if one["since"] <= _written(moment)]
    return moment.astimezone(datetime.UTC).isoformat(), noted[-1]["content"]


@serves("sql.projects.instances.getLatestRecoveryTime", permission="cloudsql.instances.get")
def _recovery_time(call: Call) -> Resource:
    earliest, latest = _recoverable(call, _need(call))
    return {"kind": "sql#getLatestRecoveryTime", "earliestRecoveryTime": earliest, "latestRecoveryTime": latest}


def _need_ready(call: Call) -> Resource:
    """Return an instance whose data can be copied."""
    instance = _need(call)
    if instance["state"] != "RUNNABLE":
        raise ApiError(400, "The instance is not running.", reason="invalidState")
    return instance


@serves("sql.backupRuns.insert", permission="cloudsql.backupRuns.create")
def _back_up(call: Call) -> Resource:
    instance, identity = _need_ready(call), call.state.new_id()
    own = f"{_name(call)}/backupRuns/{identity}"
    continent = instance["region"].partition("-")[0]
    run = {
        "kind": "sql#backupRun",
        "id": identity,
        "instance": instance["name"],
        "type": "ON_DEMAND",
        "backupKind": "SNAPSHOT",
        "databaseVersion": instance["databaseVersion"],
        # Kept in the nearest multi-region where nothing else is asked for.
        "location": instance["settings"]["backupConfiguration"].get("location", continent.replace("europe", "eu")),
        "enqueuedTime": now(),
        "startTime": now(),
        "selfLink": _ROOT + own,
        "_disk": int(instance["settings"]["dataDiskSizeGb"]),
        "_content": _content(call.state, f"sql/{_name(call)}"),
    }
    if (call.body or {}).get("description"):
        run["description"] = call.body["description"]
    call.state.resources[f"sql/{own}"] = run
    name, effects = instance["name"], call.cloud.effects
    operation = _start(call, "BACKUP_VOLUME", name, lambda: effects.back_up_sql_instance(name, identity))
    run["_operation"] = operation["selfLink"].removeprefix(_ROOT)
    context = {"kind": "sql#backupContext", "backupId": identity}
    call.state.operations[f"sql/{run['_operation']}"]["body"]["backupContext"] = context
    return operation | {"backupContext": context}


def _backup_run(call: Call, run: Resource) -> Resource:
    """Return a backup run as the API shows it: what became of it is told by its operation."""
    operation = call.state.operations[f"sql/{run['_operation']}"]["body"]
    if operation["status"] != "DONE":
        return {**public(run), "status": "RUNNING"}
    ended = {**public(run), "endTime": operation["endTime"]}
    if "error" in operation:
        return {**ended, "status": "FAILED", "error": operation["error"]["errors"][0]}
    return {**ended, "status": "SUCCESSFUL"}


@serves("sql.backupRuns.list", permission="cloudsql.backupRuns.list")
def _list_backups(call: Call) -> Resource:
    _need(call)
    found = [_backup_run(call, run) for _, run in call.state.under(f"sql/{_name(call)}/backupRuns/")]
    newest = sorted(found, key=lambda run: (run["enqueuedTime"], run["id"]), reverse=True)
    return {"kind": "sql#backupRunsList", **call.page(newest)}


def _need_backup(call: Call, instance: str, identity: object) -> tuple[str, Resource]:
    key = f"sql/projects/{call.parameters['project']}/instances/{instance}/backupRuns/{identity}"
    run = call.state.resources.get(key)
    if run is None:
        raise ApiError(404, "The Backup Run does not exist.", reason="backupRunDoesNotExist")
    return key, run


@serves("sql.backupRuns.get", permission="cloudsql.backupRuns.get")
def _get_backup(call: Call) -> Resource:
    return _backup_run(call, _need_backup(call, _need(call)["name"], call.parameters["id"])[1])


@serves("sql.backupRuns.delete", permission="cloudsql.backupRuns.delete")
def _delete_backup(call: Call) -> Resource:
    instance = _need(call)["name"]
    key, run = _need_backup(call, instance, call.parameters["id"])
    if _backup_run(call, run)["status"] == "RUNNING":
        raise _bad("The backup run has not ended.")

    def finish() -> None:
        call.state.resources.pop(key, None)

    effects, identity = call.cloud.effects, call.parameters["id"]
    return _start(call, "DELETE_BACKUP", instance, lambda: effects.delete_sql_backup(instance, identity), finish)


@serves("sql.instances.restoreBackup", permission="cloudsql.instances.restoreBackup")
def _restore(call: Call) -> Resource:
    instance, body = _need_ready(call), call.body or {}
    context = body.get("restoreBackupContext") or {}
    if set(body) - {"restoreBackupContext"} or context.get("project", instance["project"]) != instance["project"]:
        raise ApiError(501, "The emulated cloud restores by restoreBackupContext alone, within a project.")
    if not context.get("backupRunId") or not context.get("instanceId"):
        raise _bad("Missing parameter: backupRunId and instanceId.")
    _, run = _need_backup(call, context["instanceId"], context["backupRunId"])
    if _backup_run(call, run)["status"] != "SUCCESSFUL":
        raise _bad("The backup run did not succeed.")
    if run["databaseVersion"] != instance["databaseVersion"]:
        raise _bad("The backup is of another database version.")
    if run["_disk"] > int(instance["settings"]["dataDiskSizeGb"]):
        raise _bad("The disk is smaller than that of the backup's instance.")
    key, owned = f"sql/{_name(call)}", {"instance": instance["name"]}

    def finish() -> None:
        for path in _content(call.state, key):
            del call.state.resources[f"{key}/{path}"]
        call.state.resources |= {f"{key}/{path}": {**child, **owned} for path, child in run["_content"].items()}
        # The log begins anew: what was before cannot be recovered any more.
        call.state.history.pop(key, None)
        _note(call.state, key)

    name, effects = instance["name"], call.cloud.effects
    copy = (context["instanceId"], context["backupRunId"])
    return _start(call, "RESTORE_VOLUME", name, lambda: effects.restore_sql_instance(name, *copy), finish)


@serves("sql.instances.clone", permission="cloudsql.instances.clone")
def _clone(call: Call) -> Resource:
    """https://cloud.google.com/sql/docs/postgres/backup-recovery/pitr, and cloning as of now."""
    instance, context = _need_ready(call), (call.body or {}).get("cloneContext") or {}
    if call.cloud.effects.holds_data and instance["databaseVersion"].startswith("MYSQL"):
        raise ApiError(501, "The emulated cloud has no sql.instances.clone of MySQL where databases are real.")
    if set(context) - {"destinationInstanceName", "pointInTime", "kind"}:
        raise ApiError(501, "Of a clone, the emulated cloud has its name and a point in time.")
    moment, content = None, _content(call.state, f"sql/{_name(call)}")
    if context.get("pointInTime"):
        moment, content = _content_at(call, instance, context["pointInTime"])
    _check_idle(call, f"sql/{_name(call)}")
    copied = ("databaseVersion", "region", "settings", "diskEncryptionConfiguration")
    body = {field: instance[field] for field in copied if field in instance}
    source, name = instance["name"], context.get("destinationInstanceName", "")

    def fill() -> None:
        call.cloud.effects.clone_sql_instance(source, name, moment)

    return _make(call, {**body, "name": name}, "CLONE", content, fill)


@serves("sql.instances.failover", permission="cloudsql.instances.failover")
def _fail_over(call: Call) -> Resource:
    """Swaps the zones of an instance with a standby; a real server is killed and started on the same disk.

    https://cloud.google.com/sql/docs/postgres/high-availability
    """
    instance, settings = _need(call), _need(call)["settings"]
    version = ((call.body or {}).get("failoverContext") or {}).get("settingsVersion")
    if settings["availabilityType"] != "REGIONAL":
        raise _bad("The instance is not configured for high availability.")
    if version and str(version) != settings["settingsVersion"]:
        raise ApiError(412, "Condition does not match: settingsVersion is stale.", reason="staleData")
    zones = [f"{instance['region']}-{letter}" for letter in ZONES[instance["region"]]]
    before = instance["gceZone"]
    wanted = [instance.get("secondaryGceZone"), settings["locationPreference"].get("secondaryZone"), *zones]
    standby = next(zone for zone in wanted if zone and zone != before)

    def finish() -> None:
        instance.update(gceZone=standby, secondaryGceZone=before)

    name = instance["name"]
    return _start(call, "FAILOVER", name, lambda: call.cloud.effects.fail_over_sql_instance(name), finish)


def _stored_object(call: Call, instance: Resource, uri: str, permission: str) -> tuple[str, str]:
    """Return bucket and object of a `gs://` address that the instance's own account may use.

    https://cloud.google.com/sql/docs/postgres/import-export/import-export-sql
    """
    found = re.fullmatch(r"gs://([^/]+)/(.+[^/])", uri)
    if found is None:
        raise _bad(f"The uri {uri!r} is not of the form gs://bucketName/fileName.")
    bucket = call.state.resources.get(f"storage/{found[1]}")
    if bucket is None:
        raise ApiError(404, f"The bucket {found[1]} does not exist.")
    where = [f"buckets/{found[1]}", f"projects/{bucket['_project']}"]
    if not call.cloud.access.allowed(instance["serviceAccountEmailAddress"], permission, where):
        raise ApiError(403, "The service account does not have the required permissions for the bucket.")
    return found[1], found[2]


def _sql_transfer(call: Call, context: Resource, known: set[str], permission: str) -> tuple[str, str, str]:
    """Return the instance, bucket and object of an export or import of SQL."""
    instance = _need_ready(call)
    if set(context) - known or context.get("fileType") != "SQL":
        raise ApiError(501, f"The emulated cloud moves fileType SQL by {', '.join(sorted(known))} alone.")
    return instance["name"], *_stored_object(call, instance, context.get("uri", ""), permission)


def _heading(engine: str, database: str) -> bytes:
    """Return with what a dump begins: MySQL's names its database, as mysqldump --databases writes it."""
    if engine != "MYSQL":
        return b""
    name = f"`{database.replace('`', '``')}`"
    return f"CREATE DATABASE /*!32312 IF NOT EXISTS*/ {name};\n\nUSE {name};\n".encode()


def _named(engine: str, dump: pathlib.Path) -> str:
    """Return the database that a dump of MySQL names, empty where it names none."""
    if engine != "MYSQL":
        return ""
    with dump.open("rb") as lines:
        return next((used[1].replace(b"``", b"`").decode() for line in lines if (used := _USE.fullmatch(line))), "")


@serves("sql.instances.export", permission="cloudsql.instances.export")
def _export(call: Call) -> Resource:
    """Writes a dump into a bucket, for which `databases` names one database, as PostgreSQL has it."""
    context = (call.body or {}).get("exportContext") or {}
    known = {"databases", "fileType", "kind", "offload", "uri"}
    instance, bucket, name = _sql_transfer(call, context, known, "storage.objects.create")
    databases = context.get("databases", [])
    if len(databases) != 1:
        raise _bad("An export as SQL takes exactly one database.")
    _child(call, "databases", databases[0])
    heading = _heading(sql_engines.of(_need(call)["databaseVersion"]), databases[0])
    blob, sums = uuid.uuid4().hex, []
    file = call.state.blob(blob)

    def work() -> None:
        if storage.live(call, bucket, name):
            raise EffectError(f"The file gs://{bucket}/{name} already exists.")
        with tempfile.TemporaryDirectory(dir=call.state.directory) as directory:
            plain = pathlib.Path(directory, "dump.sql")
            call.cloud.effects.export_sql_database(instance, databases[0], plain)
            with plain.open("rb") as source, (gzip.open if name.endswith(".gz") else open)(file, "wb") as target:
                target.write(heading)
                shutil.copyfileobj(source, target)
        sums.append(media.checksums(file))

    def finish() -> None:
        storage.keep(call.state, bucket, {"name": name}, blob, sums[0])

    return _start(call, "EXPORT", instance, work, finish)


@serves("sql.instances.import", permission="cloudsql.instances.import")
def _import(call: Call) -> Resource:
    """Reads a dump from a bucket; the database that it names comes before the one that is asked for."""
    context = (call.body or {}).get("importContext") or {}
    known = {"database", "fileType", "kind", "uri"}
    instance, bucket, name = _sql_transfer(call, context, known, "storage.objects.get")
    database = _child(call, "databases", context.get("database", ""))[1]["name"]
    found = storage.live(call, bucket, name)
    if found is None:
        raise ApiError(404, f"The file gs://{bucket}/{name} does not exist.")
    file = call.state.blob(found["_blob"])
    version, filled = _need(call)["databaseVersion"], [database]

    def work() -> None:
        with tempfile.TemporaryDirectory(dir=call.state.directory) as directory:
            plain = pathlib.Path(directory, "dump.sql")
            with (gzip.open if name.endswith(".gz") else open)(file, "rb") as source, plain.open("wb") as target:
                shutil.copyfileobj(source, target)
            filled[0] = _named(sql_engines.of(version), plain) or database
            call.cloud.effects.import_sql_database(instance, filled[0], plain)

    def finish() -> None:
        key, owned = f"sql/{_name(call)}", {"instance": instance, "project": call.parameters["project"]}
        # The dump makes it where it is not there.
        made = _database(_ENGINES[version], owned, {"name": filled[0]})
        call.state.resources.setdefault(f"{key}/databases/{filled[0]}", made)
        _note(call.state, key)

    return _start(call, "IMPORT", instance, work, finish)
