"""Whether a deployment is well: judges what servers, cloud and front door said, and shows it as text and as HTML.

Pure: nothing here reads anything. Whatever could not be read is `{"error": why}` in the place of what was asked for.
"""

from __future__ import annotations

import datetime
import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

Facts = Mapping[str, Any]

# From good to bad. `info` is stated and not judged, `notice` is worth doing and breaks nothing.
OK, INFO, NOTICE, UNKNOWN, DEGRADED, DOWN = "ok", "info", "notice", "unknown", "degraded", "down"
SEVERITY = [OK, INFO, NOTICE, UNKNOWN, DEGRADED, DOWN]
SIGNS = {OK: "✓", INFO: "·", NOTICE: "!", UNKNOWN: "?", DEGRADED: "▲", DOWN: "✗"}
GIB = 2**30
MIB = 2**20
# A machine may be busy without harm, so this is a notice only.
LOAD_PER_CPU_NOTICE = 2.0
# A drill a month, with some days to spare.
DRILL_DAYS_NOTICE = 35
# Of what is due every night.
REMOVAL_DAYS_NOTICE = 3
PACKAGE_LISTS_OLD_DAYS = 7


@dataclass(frozen=True)
class Limits:
    """From where on something is degraded; percentages are of what there is."""

    certificate_days_minimum: int = 20
    disk_percent_maximum: int = 85
    memory_percent_maximum: int = 95
    connections_percent_maximum: int = 80
    backup_age_hours_maximum: int = 48


@dataclass(frozen=True)
class Deployment:
    """Names by which the parts are known. `inventory` is as an operator writes it after -i."""

    name: str
    project: str
    region: str
    zone: str
    domain: str
    inventory: str
    server: str
    bucket: str
    database: str
    # Whether the servers take a backup set every night.
    sets_enabled: bool = True
    # The role that brings a new certificate to the server: certbot, or server_secrets where it is the operator's own.
    renewal_role: str = "certbot"
    # How users log in: basic; iap, where a load balancer is in front that has the certificate; oidc; none.
    authentication: str = "basic"

    def play(self, playbook: str, options: str = "") -> str:
        """Return the command line of a playbook."""
        return f"ansible-playbook playbooks/{playbook}.yml -i {self.inventory}" + (f" {options}" if options else "")


@dataclass(frozen=True)
class Row:
    """One line of the page. `since` is RFC 3339 or empty; `command` is what to do about it."""

    group: str
    name: str
    health: str
    text: str
    version: str = ""
    since: str = ""
    command: str = ""


@dataclass(frozen=True)
class Cost:
    """What a resource costs in USD a month; None where its price is not known here."""

    resource: str
    basis: str
    month: float | None


@dataclass(frozen=True)
class Report:
    """The page."""

    deployment: Deployment
    made: datetime.datetime
    rows: list[Row]
    costs: list[Cost] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Healthy, degraded or down, by the worst row; what is not known counts as degraded."""
        worst = max((SEVERITY.index(row.health) for row in self.rows), default=SEVERITY.index(UNKNOWN))
        if worst == SEVERITY.index(DOWN):
            return "down"
        return "degraded" if worst >= SEVERITY.index(UNKNOWN) else "healthy"

    @property
    def problems(self) -> list[Row]:
        """Rows that make the verdict. The page's order puts what others depend on first."""
        return [row for row in self.rows if SEVERITY.index(row.health) >= SEVERITY.index(UNKNOWN)]

    @property
    def next(self) -> Row | None:
        """The row whose command is to be run next; None when there is nothing to do."""
        notices = [row for row in self.rows if row.health == NOTICE]
        return next((row for row in [*self.problems, *notices] if row.command), None)

    @property
    def action(self) -> str:
        """The next command, with what it is for."""
        return f"{self.next.name}: {self.next.command}" if self.next else "nothing to do"

    @property
    def reasons(self) -> list[str]:
        """Why it is not healthy, one line each; what is only not known because of another row is left out."""
        return [f"{row.name} is {row.health}: {row.text}. Next: {row.command}" for row in self.problems if row.command]


# What the rows say


def judge(facts: Facts, limits: Limits, deployment: Deployment, now: datetime.datetime) -> Report:
    """Return the report.

    `facts` has `servers` (a list of `{"name", "server"}` with what server.read returned, or `{"name", "error"}`),
    `cloud` (by kind, a list of resources), `door` (of https_endpoint.read), `drift` (of drift) and `locked` (the
    MLflow releases there is a lock for).
    """
    servers = list(facts["servers"])
    if not servers:
        servers = [{"name": deployment.server, "error": "the inventory finds no server"}]
    rows: list[Row] = []
    for one in servers:
        rows.append(machine_row(one, facts["cloud"], deployment))
    rows.append(database_row(facts["cloud"], deployment))
    for one in servers:
        rows += component_rows(one, deployment, len(servers) > 1, SERVING)
    rows += door_rows(facts["door"], limits, deployment)
    rows.append(bucket_row(facts["cloud"], deployment))
    for one in servers:
        rows += component_rows(one, deployment, len(servers) > 1, WATCHING)
    for one in servers:
        rows += capacity_rows(one, limits, deployment, len(servers) > 1)
    rows.append(backup_row(facts["cloud"], limits, deployment, now))
    for one in servers:
        rows.append(set_row(one, limits, deployment, len(servers) > 1, now))
    rows.append(drill_row(servers, deployment, now))
    for one in servers:
        rows.append(removal_row("gc", "Deleted runs", one, deployment, len(servers) > 1, now))
        rows.append(removal_row("cleanup", "Old releases", one, deployment, len(servers) > 1, now))
    rows.append(drift_row(facts["drift"], deployment))
    for one in servers:
        rows += update_rows(one, facts["locked"], deployment, len(servers) > 1, now)
    return Report(deployment, now, rows, costs(facts["cloud"], deployment))


def resources(cloud: Facts, kind: str) -> tuple[list[Facts], str]:
    """Return the resources of a kind, and why there are none when they could not be read."""
    found = cloud.get(kind, {"error": "it was not asked for"})
    return ([], str(found["error"])) if isinstance(found, Mapping) else (list(found), "")


def named(cloud: Facts, kind: str, name: str) -> tuple[Facts | None, str]:
    """Return one resource, None when there is none, and why it could not be read."""
    found, error = resources(cloud, kind)
    return next((one for one in found if one.get("name") == name), None), error


def machine_row(server: Facts, cloud: Facts, deployment: Deployment) -> Row:
    """Return the row of a VM: what Compute Engine says, and whether it can be asked."""
    name = server["name"]
    title = f"VM {name}"
    mend = deployment.play("provision", "--tags gcp_instance")
    found, error = named(cloud, "compute.instances", name)
    if error:
        return Row(
            "Components", title, UNKNOWN, f"Compute Engine could not be asked: {shortened(error)}", command=SIGN_IN
        )
    if not found:
        return Row("Components", title, DOWN, "there is no such VM", command=deployment.play("provision"))
    machine = str(found.get("machineType", "")).rpartition("/")[2]
    since = str(found.get("lastStartTimestamp", ""))
    status = found.get("status", "UNKNOWN")
    if status != "RUNNING":
        return Row("Components", title, DOWN, f"it is {status}", machine, str(found.get("lastStopTimestamp", "")), mend)
    if "error" in server:
        look = (
            f"gcloud compute ssh {name} --project={deployment.project} --zone={deployment.zone} "
            "--tunnel-through-iap --troubleshoot"
        )
        return Row("Components", title, DEGRADED, f"it cannot be asked: {server['error']}", machine, since, look)
    system = server["server"]["system"]
    seen = system.get("os", "") if "error" not in system else f"system: {shortened(system['error'])}"
    return Row("Components", title, OK, f"running {seen}".strip(), machine, since or system.get("booted", ""))


SIGN_IN = "gcloud auth application-default login"


def database_row(cloud: Facts, deployment: Deployment) -> Row:
    """Return the row of the Cloud SQL instance."""
    title, mend = f"Cloud SQL {deployment.database}", deployment.play("provision", "--tags gcp_sql")
    found, error = named(cloud, "sqladmin.instances", deployment.database)
    if error:
        return Row("Components", title, UNKNOWN, f"Cloud SQL could not be asked: {shortened(error)}", command=SIGN_IN)
    if not found:
        return Row("Components", title, DOWN, "there is no such instance", command=mend)
    version = str(found.get("databaseInstalledVersion") or found.get("databaseVersion", ""))
    settings = found.get("settings", {})
    shape = f"{settings.get('tier', '')}, {settings.get('availabilityType', 'ZONAL')}"
    since = str(found.get("createTime", ""))
    if settings.get("activationPolicy") == "NEVER":
        return Row("Components", title, DOWN, f"it was stopped; {shape}", version, since, mend)
    if found.get("state") == "MAINTENANCE":
        return Row("Components", title, DEGRADED, f"in maintenance; {shape}", version, since, operations(deployment))
    if found.get("state") != "RUNNABLE":
        text = f"it is {found.get('state', 'UNKNOWN')}; {shape}"
        return Row("Components", title, DOWN, text, version, since, operations(deployment))
    return Row("Components", title, OK, f"runnable; {shape}", version, since)


def operations(deployment: Deployment) -> str:
    """Return the command that tells what Cloud SQL is doing."""
    return f"gcloud sql operations list --instance={deployment.database} --project={deployment.project} --limit=5"


def titled(name: str, server: Facts, several: bool) -> str:
    """Return a row's name, with the server's where there are several."""
    return f"{name} on {server['name']}" if several else name


# Name, role and units of the services on a server, what others depend on first.
Parts = list[tuple[str, str, list[str]]]
SERVING: Parts = [
    ("Cloud SQL Auth Proxy", "cloud_sql_proxy", ["cloud-sql-proxy.service"]),
    ("MLflow", "mlflow", ["mlflow.service"]),
    ("NGINX", "nginx", ["nginx.service"]),
    ("Verification for Identity-Aware Proxy", "iap_verifier", ["iap-verifier.service"]),
    ("Renewal of the certificate", "certbot", ["certbot.timer"]),
]
WATCHING: Parts = [
    (
        "Ops Agent",
        "ops_agent",
        [
            "google-cloud-ops-agent.service",
            "google-cloud-ops-agent-fluent-bit.service",
            "google-cloud-ops-agent-opentelemetry-collector.service",
        ],
    )
]
# Without these the service goes on.
NOT_VITAL = ("certbot", "ops_agent")


def component_rows(server: Facts, deployment: Deployment, several: bool, parts: Parts) -> list[Row]:
    """Return a row for each of these services of a server."""
    rows = []
    for name, role, units in parts:
        behind_proxy = deployment.authentication == "iap"
        if role == "certbot" and (deployment.renewal_role != role or behind_proxy):
            continue
        if role == "iap_verifier" and not behind_proxy:
            continue
        title = titled(name, server, several)
        if "error" in server:
            rows.append(Row("Components", title, UNKNOWN, f"{server['name']} cannot be asked"))
            continue
        facts = server["server"]
        mend = deployment.play("configure", f"--tags {role}")
        health, text, since = unit_health(facts["units"], units)
        health = DEGRADED if health == DOWN and role in NOT_VITAL else health
        check = {"cloud_sql_proxy": "proxy_ready", "mlflow": "mlflow_ready"}.get(role)
        if health == OK and check and "error" in facts[check]:
            health, text = DOWN, f"it runs and is not ready: {shortened(facts[check]['error'])}"
        elif role == "mlflow":
            previous = facts["generations"]["previous"] or "none"
            text = f"{text}, {facts['generations']['live'] or 'no generation'}; before it: {previous}"
        elif role == "certbot" and not succeeded(facts["units"], "certbot.service"):
            health, text = DEGRADED, "the last renewal failed, journalctl --unit=certbot says why"
        # Of its name the server says what it likes, and somebody pastes the command.
        if role == "mlflow" and (restored := re.sub(r"[^\w-]", "", facts["restoring"])):
            health, text = DOWN, f"the restore of {restored} has not ended; where rollback.yml began it, run that again"
            chosen = f"-e platform_restore_set={restored} -e platform_restore_confirmed_set={restored}"
            mend = deployment.play("restore", chosen)
        version = component_version(role, facts)
        rows.append(Row("Components", title, health, text, version, since, "" if health == OK else mend))
    return rows


def unit_health(units: Facts, names: list[str]) -> tuple[str, str, str]:
    """Return health, text and since of some units together; the first broken one speaks for all."""
    if "error" in units:
        return UNKNOWN, f"systemd could not be asked: {shortened(units['error'])}", ""
    for name in names:
        unit = units.get(name) or {"state": "not there", "result": "", "restarts": 0, "since": None}
        if unit["state"] in ("active", "reloading"):
            continue
        why = f", {unit['result']}" if unit["result"] not in ("", "success") else ""
        again = f", restarted {unit['restarts']} times" if unit["restarts"] else ""
        return DOWN, f"{name} is {unit['state']}{why}{again}", unit["since"] or ""
    first = units[names[0]]
    again = f", restarted {first['restarts']} times" if first["restarts"] else ""
    return OK, f"running{again}", first["since"] or ""


def succeeded(units: Facts, name: str) -> bool:
    """Return whether a unit that runs and ends did well the last time, or has not run."""
    return (units.get(name) or {"result": ""})["result"] in ("", "success")


def component_version(role: str, facts: Facts) -> str:
    """Return the version of a service; empty where it is not known."""
    if role == "mlflow":
        return live_version(facts)
    if role == "cloud_sql_proxy":
        return str(facts["proxy"].get("version", ""))
    if role == "iap_verifier":
        return ""
    package = {"nginx": "nginx", "certbot": "certbot", "ops_agent": "google-cloud-ops-agent"}[role]
    return str(facts["packages"][package].get("version", ""))


def live_version(facts: Facts) -> str:
    """Return 3.17.2 where the generation mlflow-3.17.2-fa71f5f013 is live."""
    found = re.fullmatch(r"mlflow-(.+)-[0-9a-f]+", facts["generations"]["live"])
    return found[1] if found else ""


def door_rows(door: Facts, limits: Limits, deployment: Deployment) -> list[Row]:
    """Return the rows of what users see: the answer over HTTPS, and the certificate."""
    url = f"https://{deployment.domain}/"
    tags = "certbot" if deployment.renewal_role == "certbot" else f"{deployment.renewal_role},nginx"
    renew = deployment.play("configure", f"--tags {tags}")
    if deployment.authentication == "iap":
        # The load balancer's.
        renew = f"gcloud compute ssl-certificates list --project={deployment.project}"
    if "error" in door:
        at_fault = door.get("component")
        mend = renew if at_fault == "certbot" else deployment.play("configure", "--tags nginx")
        certificate = Row("Components", "Certificate", UNKNOWN, "it could not be read")
        if at_fault == "certbot":
            certificate = Row("Components", "Certificate", DOWN, shortened(door["error"]), command=renew)
        return [Row("Components", "Front door", DOWN, f"{url}: {shortened(door['error'])}", command=mend), certificate]
    status = int(door["status"])
    # Identity-Aware Proxy sends browsers to Google's sign-in, and answers others 401.
    signing_in = deployment.authentication == "iap" and status == 302
    if signing_in and door["headers"].get("location", "").startswith("https://accounts.google.com/"):
        answer = Row("Components", "Front door", OK, f"{url} leads to Google's sign-in")
    elif deployment.authentication == "none" and status == 200:
        answer = Row("Components", "Front door", OK, f"{url} answers everybody, without a login")
    elif status == 401 and deployment.authentication != "none":
        answer = Row("Components", "Front door", OK, f"{url} answers and asks for a login")
    elif status >= 500:
        mend = deployment.play("configure", "--tags mlflow,nginx")
        answer = Row("Components", "Front door", DOWN, f"{url} answers {status}", command=mend)
    else:
        expected = 200 if deployment.authentication == "none" else 401
        text = f"{url} answers {status} without a login, not {expected}"
        answer = Row("Components", "Front door", DEGRADED, text, command=deployment.play("verify"))
    seen = door["certificate"]
    days = int(seen["days_left"])
    text = f"{days} days left, for {', '.join(seen['names'])}"
    health = DOWN if days < 0 else DEGRADED if days < limits.certificate_days_minimum else OK
    return [
        answer,
        Row("Components", "Certificate", health, text, seen["issuer"], command="" if health == OK else renew),
    ]


def bucket_row(cloud: Facts, deployment: Deployment) -> Row:
    """Return the row of the bucket of artifacts."""
    title, mend = f"Bucket {deployment.bucket}", deployment.play("provision", "--tags gcp_bucket")
    found, error = named(cloud, "storage.buckets", deployment.bucket)
    if error:
        return Row(
            "Components", title, UNKNOWN, f"Cloud Storage could not be asked: {shortened(error)}", command=SIGN_IN
        )
    if not found:
        return Row("Components", title, DOWN, "there is no such bucket: artifacts cannot be kept", command=mend)
    versions = "on" if found.get("versioning", {}).get("enabled") else "off"
    text = f"{found.get('location', '')}, versions {versions}"
    return Row("Components", title, OK, text, str(found.get("storageClass", "")), str(found.get("timeCreated", "")))


def capacity_rows(server: Facts, limits: Limits, deployment: Deployment, several: bool) -> list[Row]:
    """Return disk, memory, load, database size and connections as a server sees them."""
    if "error" in server:
        text = f"{server['name']} cannot be asked"
        return [Row("Capacity", titled(name, server, several), UNKNOWN, text) for name in CAPACITY]
    facts = server["server"]
    on_server = f"gcloud compute ssh {server['name']} --project={deployment.project} --zone={deployment.zone} "
    on_server += "--tunnel-through-iap --command="
    rows = [
        measured("Disk", facts["disk"], limits.disk_percent_maximum, on_server + "'sudo du -xhd2 / | sort -h | tail'"),
        measured("Memory", facts["memory"], limits.memory_percent_maximum, on_server + "'ps aux --sort=-rss | head'"),
        load_row(facts["system"]),
    ]
    database = facts["database"]
    if "error" in database:
        text = f"the database did not answer: {shortened(database['error'])}"
        look = operations(deployment)
        rows += [Row("Capacity", name, UNKNOWN, text, command=look) for name in ("Database size", "Connections")]
    else:
        rows.append(Row("Capacity", "Database size", OK, f"{size(database['size_bytes'])} of tracking data"))
        used, most = database["connections"], database["max_connections"]
        share = 100 * used / most
        health = DEGRADED if share > limits.connections_percent_maximum else OK
        text = f"{used} of {most} ({share:.0f} %)"
        command = "" if health == OK else on_server + "'systemctl status mlflow cloud-sql-proxy'"
        rows.append(Row("Capacity", "Connections", health, text, command=command))
    return [Row(**{**vars(row), "name": titled(row.name, server, several)}) for row in rows]


CAPACITY = ("Disk", "Memory", "Load", "Database size", "Connections")


def measured(name: str, facts: Facts, limit: int, command: str) -> Row:
    """Return the row of something of which a part is used."""
    if "error" in facts:
        return Row("Capacity", name, UNKNOWN, shortened(facts["error"]), command=command)
    share = 100 * facts["used_bytes"] / facts["total_bytes"]
    text = f"{size(facts['used_bytes'])} of {size(facts['total_bytes'])} used ({share:.0f} %)"
    return Row("Capacity", name, DEGRADED if share > limit else OK, text, command=command if share > limit else "")


def load_row(system: Facts) -> Row:
    """Return the row of the load averages."""
    if "error" in system:
        return Row("Capacity", "Load", NOTICE, shortened(system["error"]))
    text = " ".join(f"{one:.2f}" for one in system["load"]) + f" over 1, 5, 15 minutes on {system['cpus']} CPUs"
    busy = system["load"][2] > LOAD_PER_CPU_NOTICE * system["cpus"]
    return Row("Capacity", "Load", NOTICE if busy else OK, text)


def backup_row(cloud: Facts, limits: Limits, deployment: Deployment, now: datetime.datetime) -> Row:
    """Return the row of Cloud SQL's newest successful backup."""
    make = f"gcloud sql backups create --instance={deployment.database} --project={deployment.project}"
    instance, _error = named(cloud, "sqladmin.instances", deployment.database)
    runs, error = resources(cloud, "sqladmin.backupRuns")
    if error or instance is None:
        return Row(
            "Data",
            "Last backup",
            UNKNOWN,
            f"Cloud SQL could not be asked: {shortened(error or 'there is no instance')}",
            command=SIGN_IN if error else "",
        )
    if not instance.get("settings", {}).get("backupConfiguration", {}).get("enabled"):
        mend = deployment.play("provision", "--tags gcp_sql")
        return Row("Data", "Last backup", DEGRADED, "backups are switched off", command=mend)
    ended = [str(run["endTime"]) for run in runs if run.get("status") == "SUCCESSFUL" and run.get("endTime")]
    failed = [run for run in runs if run.get("status") == "FAILED"]
    more = f"; {len(failed)} of the {len(runs)} known runs failed" if failed else ""
    newest = max(ended, key=moment, default="")
    begun = newest or str(instance.get("createTime", ""))
    hours = (now - moment(begun)).total_seconds() / 3600 if begun else float("inf")
    late = hours > limits.backup_age_hours_maximum
    if newest:
        text = f"{age(newest, now)} ago, by Cloud SQL{more}"
    else:
        text = f"none yet; the instance was made {age(begun, now)} ago{more}" if begun else f"none yet{more}"
    health = DEGRADED if late else OK if newest else INFO
    return Row("Data", "Last backup", health, text, since=newest, command=make if late else "")


def set_row(server: Facts, limits: Limits, deployment: Deployment, several: bool, now: datetime.datetime) -> Row:
    """Return the row of the backup set that a server takes every night."""
    title, take = titled("Last nightly set", server, several), deployment.play("backup")
    mend = deployment.play("configure", "--tags server_backup")
    if not deployment.sets_enabled:
        return Row("Data", title, INFO, "the inventory has none taken by night")
    if "error" in server:
        return Row("Data", title, UNKNOWN, f"{server['name']} cannot be asked")
    units, last = server["server"]["units"], server["server"]["last_set"]
    health, text, since = unit_health(units, ["mlflow-backup.timer"])
    if health != OK:
        return Row("Data", title, min(health, DEGRADED, key=SEVERITY.index), text, since=since, command=mend)
    if "error" in last:
        return Row("Data", title, UNKNOWN, shortened(last["error"]), command=mend)
    ended = str(last.get("ended", ""))
    whole = f"{last['name']}, {age(ended, now)} ago" if ended else "none yet"
    result = units.get("mlflow-backup.service", {}).get("result", "")
    if result not in ("", "success"):
        return Row(
            "Data", title, DEGRADED, f"the last run failed ({result}); whole: {whole}", since=ended, command=take
        )
    begun = ended or since
    late = bool(begun) and (now - moment(begun)).total_seconds() / 3600 > limits.backup_age_hours_maximum
    health = DEGRADED if late else OK if ended else INFO
    return Row("Data", title, health, whole, since=ended, command=take if late else "")


def drill_row(servers: list[Facts], deployment: Deployment, now: datetime.datetime) -> Row:
    """Return the row of the last drill, which one of the servers was told of."""
    drill = deployment.play("drill")
    drills = [one["server"]["last_drill"] for one in servers if "error" not in one]
    problems = [str(one["error"]) for one in drills if "error" in one]
    if not drills or problems:
        why = shortened(problems[0]) if problems else "no server can be asked"
        return Row("Data", "Last drill", UNKNOWN, why, command=drill if problems else "")
    last = max(drills, key=lambda one: str(one.get("ended", "")))
    if not last:
        return Row(
            "Data", "Last drill", INFO, "none yet: no set was ever restored to see that it can be", command=drill
        )
    ended = str(last["ended"])
    if not last["passed"]:
        text = f"failed {age(ended, now)} ago with {last['set']}: {shortened(last['problem'])}"
        return Row("Data", "Last drill", DEGRADED, text, since=ended, command=drill)
    late = (now - moment(ended)).days >= DRILL_DAYS_NOTICE
    text = f"passed {age(ended, now)} ago with {last['set']}"
    return Row("Data", "Last drill", NOTICE if late else OK, text, since=ended, command=drill if late else "")


def removal_row(
    verb: str, name: str, server: Facts, deployment: Deployment, several: bool, now: datetime.datetime
) -> Row:
    """Return the row of what a server removes every night: users' deletions (`gc`), upgrades' leavings (`cleanup`)."""
    title, mend = titled(name, server, several), deployment.play("configure", "--tags mlflow")
    if "error" in server:
        return Row("Data", title, UNKNOWN, f"{server['name']} cannot be asked")
    units, last = server["server"]["units"], server["server"][f"last_{verb}"]
    if "error" in units or "error" in last:
        why = units["error"] if "error" in units else last["error"]
        return Row("Data", title, UNKNOWN, shortened(why), command=mend)
    timer = units.get(f"mlflow-{verb}.timer") or {"state": "inactive"}
    if verb == "gc" and timer["state"] != "active":
        others = ", or the first server removes them" if several else ""
        return Row("Data", title, INFO, f"kept: platform_gc_days is 0{others}")
    ended = str(last.get("ended", ""))
    done = f"all removed {age(ended, now)} ago" if ended else "none removed yet"
    if last.get("unknown"):
        done += f", {last['unknown']} directories of artifacts that nobody knows are left"
    if units.get(f"mlflow-{verb}.service", {}).get("result", "") not in ("", "success"):
        look = f"the last run failed; journalctl --unit=mlflow-{verb} on the server says why"
        return Row("Data", title, DEGRADED, f"{look}; {done}", since=ended, command=mend)
    if ended and (now - moment(ended)).days >= REMOVAL_DAYS_NOTICE:
        return Row("Data", title, NOTICE, f"{done}, and it is due every night", since=ended, command=mend)
    return Row("Data", title, OK if ended else INFO, done, since=ended)


def drift_row(drift: Facts, deployment: Deployment) -> Row:
    """Return the row of what provision.yml would change."""
    look = deployment.play("provision", "--check --diff")
    if "error" in drift:
        return Row("Change", "Drift", NOTICE, f"it could not be compared: {shortened(drift['error'])}", command=look)
    if "changes" not in drift:
        return Row("Change", "Drift", INFO, "not compared; the command below tells", command=look)
    changes = drift["changes"]
    if not changes:
        return Row("Change", "Drift", OK, "the cloud is what the inventory says")
    return Row("Change", "Drift", NOTICE, f"{len(changes)} to make: {'; '.join(changes)}", command=look)


def update_rows(
    server: Facts, locked: Iterable[str], deployment: Deployment, several: bool, now: datetime.datetime
) -> list[Row]:
    """Return pending updates of the operating system, and the newest MLflow there is a lock for."""
    titles = [titled(name, server, several) for name in ("System updates", "MLflow release")]
    if "error" in server:
        return [Row("Change", title, UNKNOWN, f"{server['name']} cannot be asked") for title in titles]
    return [
        system_updates_row(titles[0], server, deployment, now),
        release_row(titles[1], live_version(server["server"]), locked, deployment),
    ]


def system_updates_row(title: str, server: Facts, deployment: Deployment, now: datetime.datetime) -> Row:
    """Return the row of pending updates; it never makes the verdict, which would depend on Debian's day."""
    facts = server["server"]["updates"]
    command = (
        f"gcloud compute ssh {server['name']} --project={deployment.project} --zone={deployment.zone} "
        "--tunnel-through-iap --command='sudo apt-get update && sudo apt-get dist-upgrade'"
    )
    if "error" in facts:
        return Row("Change", title, NOTICE, shortened(facts["error"]), command=command)
    security = facts["security"]
    text = f"{facts['count']} pending, {len(security)} of them for security"
    text += f" ({', '.join(security)})" if security else ""
    text += f"; package lists of {age(facts['lists_fetched'], now)} ago"
    old = (now - moment(facts["lists_fetched"])).days >= PACKAGE_LISTS_OLD_DAYS
    reboot = server["server"]["system"].get("reboot_required", False)
    text += "; a restart is required" if reboot else ""
    due = facts["count"] or old or reboot
    return Row("Change", title, NOTICE if due else OK, text, command=command if due else "")


def release_row(title: str, live: str, locked: Iterable[str], deployment: Deployment) -> Row:
    """Return the row of the live MLflow against the newest lock of the collection."""
    newest = max(locked, key=version_key, default="")
    if not live or not newest:
        return Row("Change", title, INFO, f"live: {live or 'not known'}; newest lock: {newest or 'none'}")
    if version_key(live) >= version_key(newest):
        return Row("Change", title, OK, f"{live} is the newest this collection has a lock for")
    command = deployment.play("upgrade", f"-e platform_mlflow_version={newest}")
    return Row("Change", title, NOTICE, f"{live} is live, and there is a lock for {newest}", command=command)


def version_key(version: str) -> list[int]:
    """Return what versions are ordered by."""
    return [int(number) for number in re.findall(r"\d+", version)]


def shortened(text: object) -> str:
    """Return the beginning of what a program or library said, in one line."""
    return textwrap.shorten(str(text), 220, placeholder=" ...")


def asked(results: Iterable[Facts]) -> list[dict[str, Any]]:
    """Return `servers` as judge wants them, from the results of a loop of mlflow_server_info over names."""
    return [
        {"name": one["item"], "server": one["server"]}
        if "server" in one
        else {"name": one["item"], "error": shortened(one.get("msg") or "it gave no answer")}
        for one in results
    ]


def drift(result: Facts) -> dict[str, Any]:
    """Return `changes` (a line each) from a finished `ansible-playbook provision.yml --check -v` with results in JSON.

    `error` when it failed: then nobody knows. Empty when it was not asked for.
    """
    if "rc" not in result:
        return {"error": str(result["msg"])} if "msg" in result else {}
    output = str(result["stdout"])
    if result["rc"]:
        failed = re.search(r'^(?:fatal|failed): .*?"msg": ("(?:[^"\\]|\\.)*")', output, re.MULTILINE)
        last = (output or str(result.get("stderr", ""))).strip().splitlines()[-1:]
        return {"error": json.loads(failed[1]) if failed else " ".join(last) or f"exit code {result['rc']}"}
    changes: list[str] = []
    task = ""
    for line in output.splitlines():
        if begun := re.match(r"TASK \[(.*)\] \**$", line):
            task = begun[1]
        elif changed := re.match(r"changed: \[[^\]]*\](?:.*? => (\{.*\}))?$", line):
            found = json.loads(changed[1]) if changed[1] else {}
            changes += found.get("changes") or [task]
    return {"changes": changes}


# What it costs

HOURS_A_MONTH = 730
PRICES_REGION = "us-central1"
PRICES_DATE = "May to October 2026"
# List prices in USD, on demand, without tax, discount or free tier.
# e2-standard: Google's page of VM prices on 2026-10-07 (0.067006 an hour for two), linear in the number of vCPUs.
E2_STANDARD_VCPU_HOUR = 0.067006 / 2
# Google's page of network prices on 2026-10-16: in use, on a VM that is not preemptible.
ADDRESS_HOUR = 0.005
# Cloud SQL Enterprise, dedicated cores, in one zone, May 2026.
SQL_VCPU_HOUR = 0.0413
SQL_GIB_HOUR = 0.007


def costs(cloud: Facts, deployment: Deployment) -> list[Cost]:
    """Return what each resource costs in PRICES_REGION; what was not read is not listed."""
    found: list[Cost] = []
    for machine in resources(cloud, "compute.instances")[0]:
        kind = str(machine.get("machineType", "")).rpartition("/")[2]
        cores = re.fullmatch(r"e2-standard-(\d+)", kind)
        month = int(cores[1]) * E2_STANDARD_VCPU_HOUR * HOURS_A_MONTH if cores else None
        found.append(Cost(f"VM {machine['name']}", kind, month))
        access = [one for card in machine.get("networkInterfaces", []) for one in card.get("accessConfigs", [])]
        found += [Cost(f"Address of {machine['name']}", "external IPv4", ADDRESS_HOUR * HOURS_A_MONTH) for _ in access]
    for disk in resources(cloud, "compute.disks")[0]:
        kind, gib = str(disk.get("type", "")).rpartition("/")[2], int(disk.get("sizeGb", 0))
        found.append(Cost(f"Disk {disk['name']}", f"{gib} GiB {kind}", None))
    instance, _error = named(cloud, "sqladmin.instances", deployment.database)
    if instance:
        found += sql_costs(instance.get("settings", {}), deployment)
    found.append(Cost(f"Bucket {deployment.bucket}", "by what is stored and read", None))
    found.append(Cost("The rest", "NAT, traffic, snapshots, backups, logs, metrics, secrets", None))
    return found


def sql_costs(settings: Facts, deployment: Deployment) -> list[Cost]:
    """Return the costs of a Cloud SQL instance."""
    tier, title = str(settings.get("tier", "")), f"Cloud SQL {deployment.database}"
    regional = settings.get("availabilityType") == "REGIONAL"
    shape = re.fullmatch(r"db-custom-(\d+)-(\d+)", tier)
    month = None
    if shape and not regional and settings.get("edition", "ENTERPRISE") == "ENTERPRISE":
        hour = int(shape[1]) * SQL_VCPU_HOUR + int(shape[2]) / 1024 * SQL_GIB_HOUR
        month = hour * HOURS_A_MONTH
    storage = f"{settings.get('dataDiskSizeGb', '?')} GiB {settings.get('dataDiskType', '')}"
    return [
        Cost(title, tier + (", REGIONAL" if regional else ""), month),
        Cost(f"{title}, storage", storage, None),
    ]


# How it is shown


def size(count: float) -> str:
    """Return bytes as people say them."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def moment(text: str) -> datetime.datetime:
    """Return the time of an RFC 3339 text."""
    return datetime.datetime.fromisoformat(text)


def age(text: str, now: datetime.datetime) -> str:
    """Return how long ago something was, in its largest unit."""
    minutes = max(int((now - moment(text)).total_seconds() // 60), 0)
    for length, unit in ((1440, "d"), (60, "h")):
        if minutes >= 2 * length:
            return f"{minutes // length} {unit}"
    return f"{minutes} min"


def since(row: Row, now: datetime.datetime) -> str:
    """Return since when a row is as it is; empty when that is not known."""
    return f"{moment(row.since).astimezone(datetime.UTC):%Y-%m-%d %H:%M} ({age(row.since, now)})" if row.since else ""


def total(report: Report) -> str:
    """Return the sum of what is estimated."""
    return f"{sum(cost.month for cost in report.costs if cost.month is not None):.2f}"


def caveat(report: Report) -> str:
    """Return what the prices are not."""
    return (
        f"List prices in USD of {PRICES_REGION}, read from {PRICES_DATE}, {HOURS_A_MONTH} hours a month, without tax, "
        f"discounts and traffic. This deployment is in {report.deployment.region}: other regions have other prices."
    )


def groups(report: Report) -> dict[str, list[Row]]:
    """Return the rows by group, in order."""
    found: dict[str, list[Row]] = {}
    for row in report.rows:
        found.setdefault(row.group, []).append(row)
    return found


def render_text(report: Report, width: int = 110) -> str:
    """Return the page for a terminal."""
    lines = [
        f"{report.verdict.upper()}: {report.deployment.name} at https://{report.deployment.domain}, "
        f"{report.made:%Y-%m-%d %H:%M} UTC",
        f"Next: {report.action}",
    ]
    column = max(len(row.name) for row in report.rows) + 1
    for group, rows in groups(report).items():
        lines += ["", group]
        for row in rows:
            told = "; ".join(one for one in (row.version, row.text, since(row, report.made)) if one)
            head = f"{SIGNS[row.health]} {row.name:<{column}}{row.health:<9} "
            lines += textwrap.wrap(
                told, width, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
            ) or [head.rstrip()]
            if row.command:
                # On one line, so that it can be copied.
                lines.append(f"{' ' * len(head)}> {row.command}")
    lines += ["", "Cost a month"]
    column = max(len(cost.resource) for cost in report.costs) + 1
    for cost in report.costs:
        price = "not estimated" if cost.month is None else f"{cost.month:.2f} USD"
        lines.append(f"  {cost.resource:<{column}}{price:>13}  {cost.basis}")
    lines.append(f"  {'Sum of what is estimated':<{column}}{total(report) + ' USD':>13}")
    lines += textwrap.wrap(caveat(report), width, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --line: #d0d7de; --code: #eef1f4;
  --ok: #1a7f37; --notice: #0a5fc2; --unknown: #6e4fb5; --degraded: #9a5b00; --down: #b42318; --info: #57606a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa5b1; --paper: #0f141a; --line: #30363d;
  --code: #1c232c; --ok: #4ac26b; --notice: #6cb0ff; --unknown: #b69cff; --degraded: #eba941; --down: #ff7b72;
  --info: #9aa5b1; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
header { border-left: .5rem solid var(--tone); padding: .2rem 0 .2rem 1rem; margin-bottom: 1.5rem; }
h1 { margin: 0; font-size: 2rem; color: var(--tone); }
h2 { margin: 1.6rem 0 .4rem; font-size: 1.05rem; }
p { margin: .3rem 0; }
.soft, small { color: var(--soft); }
code { background: var(--code); padding: .1rem .35rem; border-radius: .25rem; font-size: .87em;
  overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0; border-top: 1px solid var(--line); }
th { font-weight: 600; width: 15rem; overflow-wrap: anywhere; }
td.health { width: 7rem; white-space: nowrap; font-weight: 600; color: var(--tone); }
td.what { overflow-wrap: anywhere; }
td.since { width: 12rem; color: var(--soft); white-space: nowrap; }
td.price { text-align: right; width: 8rem; white-space: nowrap; }
tr.command > * { border-top: 0; padding-top: 0; }
@media (max-width: 45rem) {
  table, tbody, tr, tr > *, td.health, td.since, td.price { display: block; width: auto; padding: 0; border: 0;
    text-align: left; }
  tr { border-top: 1px solid var(--line); padding: .35rem 0; }
  tr.command { border: 0; }
}
"""
TONES = {"healthy": OK, "degraded": DEGRADED, "down": DOWN}


def render_html(report: Report) -> str:
    """Return the page as one HTML file that needs nothing else; whatever was read is escaped."""
    deployment = report.deployment
    body = [
        f'<header style="--tone: var(--{TONES[report.verdict]})">',
        f"<h1>{SIGNS[TONES[report.verdict]]} {report.verdict}</h1>",
        f"<p><strong>Next:</strong> {html_action(report)}</p>",
        f'<p class="soft">{escape(deployment.name)} at https://{escape(deployment.domain)}, project '
        f"{escape(deployment.project)}, {report.made:%Y-%m-%d %H:%M} UTC</p>",
        "</header>",
    ]
    for group, rows in groups(report).items():
        body += [f"<h2>{escape(group)}</h2>", "<table>", *(html_row(row, report.made) for row in rows), "</table>"]
    body += ["<h2>Cost a month</h2>", "<table>", *(html_cost(cost) for cost in report.costs)]
    body += [
        "<tr><th>Sum of what is estimated</th><td></td>"
        f'<td class="price"><strong>{total(report)} USD</strong></td></tr>',
        "</table>",
        f"<p><small>{escape(caveat(report))}</small></p>",
    ]
    title = f"{report.verdict}: {deployment.name}"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def html_action(report: Report) -> str:
    """Return what is to be done next, the command so that it can be copied."""
    row = report.next
    return f"{escape(row.name)}: <code>{escape(row.command)}</code>" if row else escape(report.action)


def html_row(row: Row, now: datetime.datetime) -> str:
    """Return a row of the page, and one more for its command."""
    version = f"<strong>{escape(row.version)}</strong> · " if row.version else ""
    command = f'<tr class="command"><th></th><td></td><td colspan="2"><code>{escape(row.command)}</code></td></tr>'
    return (
        f'<tr style="--tone: var(--{row.health})"><th>{escape(row.name)}</th>'
        f'<td class="health">{SIGNS[row.health]} {row.health}</td>'
        f'<td class="what">{version}{escape(row.text)}</td>'
        f'<td class="since">{escape(since(row, now))}</td></tr>'
    ) + (command if row.command else "")


def html_cost(cost: Cost) -> str:
    """Return a cost's row of the page."""
    price = '<span class="soft">not estimated</span>' if cost.month is None else f"{cost.month:.2f} USD"
    return (
        f'<tr><th>{escape(cost.resource)}</th><td class="soft">{escape(cost.basis)}</td>'
        f'<td class="price">{price}</td></tr>'
    )
