"""What a server of the deployment says about itself. Reads only, and runs on the server with the standard library."""

from __future__ import annotations

import datetime
import functools
import json
import os
import pathlib
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

UNITS = (
    "mlflow.service",
    "nginx.service",
    "iap-verifier.service",
    "cloud-sql-proxy.service",
    "google-cloud-ops-agent.service",
    "google-cloud-ops-agent-fluent-bit.service",
    "google-cloud-ops-agent-opentelemetry-collector.service",
    "certbot.timer",
    "certbot.service",
    "mlflow-backup.timer",
    "mlflow-backup.service",
    "mlflow-gc.timer",
    "mlflow-gc.service",
    "mlflow-cleanup.service",
)
PACKAGES = ("nginx", "certbot", "google-cloud-ops-agent")
CONFIG = pathlib.Path("/etc/mlflow")
# What mlflow-backup writes when it has succeeded.
LAST_SET = pathlib.Path("/var/lib/mlflow-backup/last.json")
# What drill.yml leaves.
LAST_DRILL = pathlib.Path("/var/lib/mlflow-drill/last.json")
# What mlflow-gc writes when it has removed all that it should.
LAST_GC = pathlib.Path("/var/lib/mlflow/gc.json")
# What mlflow-switch --clean writes when it has removed all that it should.
LAST_CLEANUP = pathlib.Path("/var/lib/mlflow-cleanup/last.json")
COMMAND_SECONDS = 45
# Run by the release's own Python, which has the drivers. The password is read there, so it is in no command line.
# numbackends is visible to every user; what it counts in PostgreSQL counts against max_connections.
DATABASE_PROGRAM = """
import json, pathlib, sys, sqlalchemy
url = sqlalchemy.make_url(sys.stdin.read())
# Those of before are there while the password is replaced.
passwords = [
    password
    for name in ("mlflow.database-password", "mlflow.database-password.previous")
    for path in [pathlib.Path("/etc/credstore", name)] if path.exists()
    for password in path.read_text().splitlines()
]
urls = [url.difference_update_query(["read_default_file"]).set(password=one) for one in passwords] or [url]
statements = {
    "postgresql": ["SELECT pg_database_size(current_database())", "SELECT sum(numbackends) FROM pg_stat_database",
                   "SELECT current_setting('max_connections')"],
    "mysql": ["SELECT coalesce(sum(data_length + index_length), 0) FROM information_schema.tables"
              " WHERE table_schema = database()",
              "SHOW GLOBAL STATUS LIKE 'Threads_connected'", "SELECT @@max_connections"],
}[url.get_backend_name()]
for url in urls:
    try:
        with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect() as connection:
            values = [int(connection.exec_driver_sql(statement).one()[-1]) for statement in statements]
    except sqlalchemy.exc.DBAPIError as error:
        problem = str(error.orig)
    else:
        print(json.dumps(dict(zip(["size_bytes", "connections", "max_connections"], values))))
        sys.exit()
sys.exit(problem)
"""


def run(*command: str, given: str = "") -> str:
    """Standard output of a command; raises OSError or subprocess.SubprocessError."""
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, input=given, check=True, capture_output=True, text=True, timeout=COMMAND_SECONDS, env=environment
    ).stdout


def read(proxy_readiness_url: str) -> dict[str, Any]:
    """Return every part by name; a part that cannot be read is `{"error": why}`, and the others are there."""
    return {
        "system": part(system),
        "units": part(lambda: units(run(*SHOW, *UNITS))),
        "packages": {name: part(functools.partial(package, name)) for name in PACKAGES},
        "proxy": part(lambda: {"version": proxy_version(run("/usr/local/bin/cloud-sql-proxy", "--version"))}),
        "proxy_ready": part(lambda: ready(proxy_readiness_url)),
        "generations": {name: generation(CONFIG / name) for name in ("live", "previous")},
        "restoring": restoring(CONFIG / "restoring"),
        "mlflow_ready": part(lambda: {"text": run("/opt/mlflow/bin/mlflow-ready").strip()}),
        "disk": part(disk),
        "memory": part(lambda: memory(pathlib.Path("/proc/meminfo").read_text())),
        "database": part(database),
        "updates": part(pending_updates),
        "last_set": part(last_set),
        "last_drill": part(last_drill),
        "last_gc": part(last_gc),
        "last_cleanup": part(last_cleanup),
    }


def part(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `ask` returns, or why it could not."""
    try:
        return ask()
    except subprocess.CalledProcessError as error:
        return {"error": (error.stderr or error.stdout or str(error)).strip()[-500:]}
    except subprocess.TimeoutExpired as error:
        return {"error": f"{pathlib.Path(error.cmd[0]).name} gave no answer in {error.timeout:.0f} s"}
    except (OSError, ValueError, LookupError) as error:
        return {"error": str(error)}


def system() -> dict[str, Any]:
    """Return `os`, `booted` (RFC 3339), `load` (1, 5, 15 minutes), `cpus`, `reboot_required`."""
    release = pathlib.Path("/etc/os-release").read_text()
    seconds = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    now = datetime.datetime.now(datetime.UTC)
    return {
        "os": re.findall(r'^PRETTY_NAME="?([^"\n]*)', release, re.MULTILINE)[0],
        "booted": (now - datetime.timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        "load": list(os.getloadavg()),
        "cpus": os.cpu_count() or 1,
        "reboot_required": pathlib.Path("/run/reboot-required").exists(),
    }


SHOW = (
    "systemctl",
    "show",
    "--timestamp=utc",
    "--property=Names,ActiveState,SubState,Result,NRestarts,ActiveEnterTimestamp,InactiveEnterTimestamp",
)


def units(shown: str) -> dict[str, Any]:
    """Return `state`, `result`, `restarts` and `since` of each unit that was asked for, from systemctl's answer.

    `since` (RFC 3339) is when it became active, or stopped being so; None for one that never was.
    """
    found = {}
    for block in shown.strip().split("\n\n"):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        active = fields["ActiveState"] in ("active", "reloading")
        stamp = fields.get("ActiveEnterTimestamp" if active else "InactiveEnterTimestamp", "")
        entry = {
            "state": fields["ActiveState"],
            "result": fields.get("Result", ""),
            "restarts": int(fields.get("NRestarts") or 0),
            "since": timestamp(stamp),
        }
        # mlflow.service is another name of the live generation's unit.
        found.update({name: entry for name in fields["Names"].split() if name in UNITS})
    return found


def timestamp(text: str) -> str | None:
    """Return systemd's time, such as `Wed 2026-11-25 03:34:29 UTC`, as RFC 3339; None for none."""
    if not text or text == "n/a":
        return None
    return datetime.datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S UTC").isoformat() + "+00:00"


def package(name: str) -> dict[str, Any]:
    """Return the installed version of a Debian package."""
    return {"version": run("dpkg-query", "--show", "--showformat=${Version}", name).strip()}


def proxy_version(text: str) -> str:
    """Return 2.25.2 of `cloud-sql-proxy version 2.25.2+linux.amd64`."""
    return re.findall(r"version ([0-9.]+)", text)[0] if "version " in text else text.strip()


def ready(url: str) -> dict[str, Any]:
    """Return the answer of a readiness page on this machine; raises ValueError with its text when it is not 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as response:
            return {"text": response.read(500).decode(errors="replace").strip()}
    except urllib.error.HTTPError as error:
        said = error.read(500).decode(errors="replace").strip()
        raise ValueError(f"{url} answered {error.code}: {said}") from error


def generation(link: pathlib.Path) -> str:
    """Return the name of the generation a link names; empty where there is no such link."""
    return link.readlink().name if link.is_symlink() else ""


def restoring(path: pathlib.Path) -> str:
    """Return the name of the backup set whose restore has not ended; empty where there is none."""
    return path.read_text().strip() if path.exists() else ""


def disk() -> dict[str, int]:
    """Return `total_bytes` and `used_bytes` of the root file system as df counts: without what is kept for root."""
    seen = os.statvfs("/")
    used = (seen.f_blocks - seen.f_bfree) * seen.f_frsize
    return {"total_bytes": used + seen.f_bavail * seen.f_frsize, "used_bytes": used}


def memory(meminfo: str) -> dict[str, int]:
    """Return `total_bytes` and `used_bytes` from /proc/meminfo; what the kernel can give back is not used."""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", meminfo, re.MULTILINE)}
    return {"total_bytes": kib["MemTotal"] * 1024, "used_bytes": (kib["MemTotal"] - kib["MemAvailable"]) * 1024}


def database() -> dict[str, Any]:
    """Return `size_bytes` of the tracking database, and `connections` against `max_connections` of its server."""
    settings = (CONFIG / "live/mlflow.env").read_text()
    uri = re.findall(r'^MLFLOW_BACKEND_STORE_URI="(.*)"$', settings, re.MULTILINE)[0]
    answer = run(str(CONFIG / "live/release/bin/python"), "-I", "-c", DATABASE_PROGRAM, given=uri)
    return dict(json.loads(answer))


def last_set() -> dict[str, Any]:
    """Return `name` and `ended` of the last backup set that the server took by itself; nothing where it took none."""
    return dict(json.loads(LAST_SET.read_text())) if LAST_SET.exists() else {}


def last_drill() -> dict[str, Any]:
    """Return `set`, `passed`, `problem`, `begun` and `ended` of the last drill; nothing where there was none."""
    return dict(json.loads(LAST_DRILL.read_text())) if LAST_DRILL.exists() else {}


def last_gc() -> dict[str, Any]:
    """Return `removed` (by kind), `kept`, `unknown` and `ended` of the last whole removal of what was deleted."""
    return dict(json.loads(LAST_GC.read_text())) if LAST_GC.exists() else {}


def last_cleanup() -> dict[str, Any]:
    """Return `removed` (how many) and `ended` of the last removal of old releases; nothing where there was none."""
    return dict(json.loads(LAST_CLEANUP.read_text())) if LAST_CLEANUP.exists() else {}


def pending_updates() -> dict[str, Any]:
    """Return updates() of what apt would do with the lists it has, and when those were fetched."""
    lists = list(pathlib.Path("/var/lib/apt/lists").glob("*InRelease"))
    if not lists:
        raise ValueError("apt has no package lists: apt-get update")
    fetched = max(path.stat().st_ctime for path in lists)
    planned = run("apt-get", "--simulate", "--quiet", "-o", "Debug::NoLocking=1", "dist-upgrade")
    at = datetime.datetime.fromtimestamp(fetched, datetime.UTC).isoformat(timespec="seconds")
    return {**updates(planned), "lists_fetched": at}


def updates(planned: str) -> dict[str, Any]:
    """Return `count` and `security` (names) of the upgrades in apt-get's plan: `Inst name [old] (new origins)`."""
    lines = re.findall(r"^Inst (\S+) \[[^\]]*\] \(([^)]*)\)", planned, re.MULTILINE)
    return {"count": len(lines), "security": [name for name, origin in lines if "-Security:" in origin]}
