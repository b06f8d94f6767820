"""The first process of a Cloud SQL container: a PostgreSQL cluster, kept across restarts, and its proxy front.

Started as root with the files of `/etc/cloudsql` in place (written by `emulator.effects`): `instance.json` with
`{"flags": {name: value}, "archived": whether point-in-time recovery is on}`, the instance's `server-cert.pem` and
`server-key.pem`, and `client-ca.pem`.
Roles and rights follow https://cloud.google.com/sql/docs/postgres/users. Ends when PostgreSQL ends; the container's
restart policy brings both back. `mysql_instance` is the other engine's.
"""

import asyncio
import json
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import sys
from typing import Any

from emulator import sql_front

CONFIGURATION = pathlib.Path("/etc/cloudsql")
SOCKET_DIRECTORY = pathlib.Path("/run/cloudsql")
DATA = pathlib.Path("/var/lib/postgresql/17/main")
BINARIES = pathlib.Path("/usr/lib/postgresql/17/bin")
ARCHIVE = pathlib.Path("/var/lib/postgresql/archive")
IAM_FLAG = "cloudsql.iam_authentication"

_HBA = """\
# The Unix socket can be reached from inside the container alone.
local   all cloudsqladmin               trust
local   replication cloudsqladmin       trust
local   all +cloudsqliamserviceaccount  trust
local   all +cloudsqliamuser            trust
# Passwords: by the front, and directly with TLS. IAM users have none.
host    all +cloudsqliamserviceaccount  all           reject
host    all +cloudsqliamuser            all           reject
host    all cloudsqladmin               all           reject
host    all all                         127.0.0.1/32  scram-sha-256
hostssl all all                         all           scram-sha-256
"""
# One statement a line: PostgreSQL's single-user mode takes them so.
_ROLES = b"""\
CREATE ROLE cloudsqlsuperuser NOLOGIN CREATEROLE CREATEDB;
GRANT pg_monitor, pg_signal_backend TO cloudsqlsuperuser;
CREATE ROLE cloudsqliamuser NOLOGIN;
CREATE ROLE cloudsqliamserviceaccount NOLOGIN;
CREATE ROLE postgres LOGIN CREATEROLE CREATEDB IN ROLE cloudsqlsuperuser;
ALTER DATABASE postgres OWNER TO cloudsqlsuperuser;
"""


def take_files(user: str) -> None:
    """Hand what a database server must own to its user, then become that user."""
    owner = pwd.getpwnam(user)
    SOCKET_DIRECTORY.mkdir(exist_ok=True)
    SOCKET_DIRECTORY.chmod(0o700)
    for path in (CONFIGURATION, *CONFIGURATION.iterdir(), SOCKET_DIRECTORY, pathlib.Path(owner.pw_dir)):
        shutil.chown(path, owner.pw_uid, owner.pw_gid)
    os.setgroups([])
    os.setgid(owner.pw_gid)
    os.setuid(owner.pw_uid)
    os.chdir(owner.pw_dir)


def make_cluster() -> None:
    """Make the cluster and its roles once; an interrupted attempt leaves nothing that looks complete."""
    if DATA.exists():
        return
    unfinished = DATA.with_name("unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(exist_ok=True)
    subprocess.run(
        [
            BINARIES / "initdb",
            *("-D", unfinished, "-U", "cloudsqladmin", "--auth=trust"),  # the server gets an access file of its own
            # Small files of the log, of which each is archived whole.
            *("--encoding=UTF8", "--locale=C.UTF-8", "--wal-segsize=1"),
        ],
        check=True,
    )
    subprocess.run([BINARIES / "postgres", "--single", "-D", unfinished, "postgres"], input=_ROLES, check=True)
    unfinished.rename(DATA)


def postgres_command(flags: dict[str, str], *, archived: bool) -> list[str]:
    """Return the server's command line for an instance's database flags, and whether its log is kept."""
    hba = SOCKET_DIRECTORY / "pg_hba.conf"
    hba.write_text(_HBA)
    settings = {
        **{name: value for name, value in flags.items() if name != IAM_FLAG},
        "hba_file": hba,
        "listen_addresses": "*",
        "password_encryption": "scram-sha-256",
        "ssl": "on",
        "ssl_cert_file": CONFIGURATION / "server-cert.pem",
        "ssl_key_file": CONFIGURATION / "server-key.pem",
        "ssl_min_protocol_version": "TLSv1.2",
        "unix_socket_directories": SOCKET_DIRECTORY,
        # PostgreSQL's defaults, which initdb makes less for small files of the log.
        "min_wal_size": "80MB",
        "max_wal_size": "1GB",
        # A clone answers when it is what it should be.
        "hot_standby": "off",
        "archive_mode": "on" if archived else "off",
        "archive_command": f"gzip -1 <%p >{ARCHIVE}/new && mv {ARCHIVE}/new {ARCHIVE}/%f.gz",
    }
    options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
    return [str(BINARIES / "postgres"), "-D", str(DATA), *options]


async def run(command: list[str], stop: signal.Signals, front: sql_front.Front) -> int:
    """Run server and front until the server ends or the container is stopped; returns the server's status."""
    server = await asyncio.create_subprocess_exec(*command)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.send_signal, stop)
    context = sql_front.server_context(
        *(str(CONFIGURATION / name) for name in ("server-cert.pem", "server-key.pem", "client-ca.pem"))
    )
    await front.serve(context)
    return await server.wait()


def described() -> dict[str, Any]:
    """Return what `instance.json` says."""
    found: dict[str, Any] = json.loads((CONFIGURATION / "instance.json").read_text())
    return found


def main() -> int:
    """Run PostgreSQL; returns its exit code."""
    take_files("postgres")
    make_cluster()
    flags, archived = described()["flags"], described()["archived"]
    if archived:
        ARCHIVE.mkdir(exist_ok=True)
    iam_enabled = flags.get(IAM_FLAG) == "on"
    front = sql_front.Front(str(SOCKET_DIRECTORY / ".s.PGSQL.5432"), 5432, iam_enabled)
    # A fast shutdown: PostgreSQL's answer to SIGTERM would wait for every client to leave.
    return asyncio.run(run(postgres_command(flags, archived=archived), signal.SIGINT, front))


if __name__ == "__main__":
    sys.exit(main())
