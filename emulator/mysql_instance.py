"""The first process of a Cloud SQL container for MySQL: MariaDB, kept across restarts, and its proxy front.

Started as `sql_instance` is, whose files and ways it shares. Users and rights follow
https://cloud.google.com/sql/docs/mysql/users. Clients come by the front alone: MariaDB's port is on loopback.
"""

import asyncio
import pathlib
import shutil
import signal
import subprocess
import sys

from emulator import mysql_front, sql_instance
from emulator.sql_instance import SOCKET_DIRECTORY

SOCKET = SOCKET_DIRECTORY / "mysql.sock"
DATA = pathlib.Path("/var/lib/mysql/data")
IAM_FLAG = "cloudsql_iam_authentication"

# Done at every start, a statement a line. MariaDB makes an account for its own user, under which the front runs.
_USERS = """\
DROP USER IF EXISTS mysql@localhost;
CREATE USER IF NOT EXISTS cloudsqladmin@localhost IDENTIFIED VIA unix_socket AS 'root';
GRANT ALL PRIVILEGES ON *.* TO cloudsqladmin@localhost WITH GRANT OPTION;
CREATE ROLE IF NOT EXISTS cloudsqlsuperuser WITH ADMIN cloudsqladmin@localhost;
GRANT {privileges} ON *.* TO cloudsqlsuperuser WITH GRANT OPTION;
CREATE USER IF NOT EXISTS root@'%' IDENTIFIED VIA mysql_native_password USING 'invalid';
GRANT {privileges} ON *.* TO root@'%' WITH GRANT OPTION;
"""
# All but FILE, SUPER and SHUTDOWN: https://cloud.google.com/sql/docs/mysql/users#cloudsqlsuperuser
_PRIVILEGES = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, RELOAD, PROCESS, REFERENCES, INDEX, ALTER, SHOW DATABASES, "
    "CREATE TEMPORARY TABLES, LOCK TABLES, EXECUTE, REPLICATION SLAVE, REPLICATION CLIENT, CREATE VIEW, SHOW VIEW, "
    "CREATE ROUTINE, ALTER ROUTINE, CREATE USER, EVENT, TRIGGER"
)


def make_data_directory() -> None:
    """Make the system tables once; an interrupted attempt leaves nothing that looks complete."""
    if DATA.exists():
        return
    unfinished = DATA.with_name("unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    root = ("--auth-root-authentication-method=socket", "--auth-root-socket-user=root")
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", f"--datadir={unfinished}", "--skip-test-db", *root],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    unfinished.rename(DATA)


def mariadb_command(flags: dict[str, str]) -> list[str]:
    """Return the server's command line for an instance's database flags."""
    users = SOCKET_DIRECTORY / "users.sql"
    users.write_text(_USERS.format(privileges=_PRIVILEGES))
    settings = {
        **{name: value for name, value in flags.items() if name != IAM_FLAG},
        "bind_address": "127.0.0.1",
        "datadir": DATA,
        "init_file": users,
        "pid_file": SOCKET_DIRECTORY / "mysql.pid",
        "skip_name_resolve": "on",
        "socket": SOCKET,
        "ssl": "off",
    }
    return ["mariadbd", "--no-defaults", *(f"--{name}={value}" for name, value in settings.items())]


def main() -> int:
    """Run MariaDB; returns its exit code."""
    sql_instance.take_files("mysql")
    make_data_directory()
    flags = sql_instance.described()["flags"]
    front = mysql_front.MySqlFront(str(SOCKET), 3306, flags.get(IAM_FLAG) == "on")
    return asyncio.run(sql_instance.run(mariadb_command(flags), signal.SIGTERM, front))


if __name__ == "__main__":
    sys.exit(main())
