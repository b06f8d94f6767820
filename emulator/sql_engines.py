"""How the database servers of Cloud SQL's containers are run and told things: a row for each engine.

Scripts are read by the server's own client, with variables set before them. Users are in the shape of the REST API:
`{name, type?, password?, databaseRoles?}`; databaseRoles is the exact list.
"""

import base64
import dataclasses
import hashlib
import hmac
import os
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

IAM_ROLES = {"CLOUD_IAM_SERVICE_ACCOUNT": "cloudsqliamserviceaccount", "CLOUD_IAM_USER": "cloudsqliamuser"}
_SCRAM_ITERATIONS = 4096

_PG = ("--host=/run/cloudsql", "--username=cloudsqladmin")
_PSQL = ("psql", *_PG, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1")
_MARIADB = ("mariadb", "--skip-ssl", "--socket=/run/cloudsql/mysql.sock", "--user=cloudsqladmin", "--batch")

# Point-in-time recovery, in the volume: `base`, a copy of the cluster, and `archive`, all that was written since, which
# `sql_instance` has the server keep. Scripts of a shell.
_BEGIN_LOG = f"""
set -eu
cd /var/lib/postgresql
rm -rf recovery
if [ "$({" ".join(_PSQL)} --tuples-only --no-align --command='SHOW archive_mode' postgres)" = off ]; then
  rm -rf base archive
elif [ ! -d base ]; then
  rm -rf base.new
  pg_basebackup {" ".join(_PG)} --pgdata=base.new --format=tar --gzip --checkpoint=fast --wal-method=none
  mv base.new base
fi
"""
# PostgreSQL stops at the first commit after a moment, so there has to be one.
_END_LOG = f"""
set -eu
last=$({" ".join(_PSQL)} --tuples-only --no-align --command='SELECT pg_current_xact_id()' \
  --command='SELECT pg_walfile_name(pg_switch_wal())' postgres | tail -n 1)
for attempt in $(seq 300); do
  if [ -f "/var/lib/postgresql/archive/$last.gz" ]; then exit 0; fi
  sleep 0.1
done
echo "$last was not archived"
exit 1
"""
# Run where /from is the volume of the source and /to a new one, before its server starts.
_RECOVER = """
install -d -o postgres -g postgres -m 700 /to/17 /to/17/main
tar -xzf /from/base/base.tar.gz -C /to/17/main
cp --archive /from/archive /to/recovery
cat >/to/17/main/postgresql.auto.conf <<'END'
restore_command = 'gunzip --stdout /var/lib/postgresql/recovery/%f.gz >%p'
recovery_target_time = '{time}'
recovery_target_action = promote
END
install -o postgres -g postgres /dev/null /to/17/main/recovery.signal
"""

_CREATE_DATABASE = r"""
SELECT format('CREATE DATABASE %I OWNER cloudsqlsuperuser', :'name')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
"""
_CREATE_ROLE = r"""
SELECT format('CREATE ROLE %I LOGIN', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
"""
_MAKE_BUILT_IN = """
ALTER ROLE :"name" CREATEROLE CREATEDB PASSWORD :'verifier';
"""
_SET_ROLES = r"""
SELECT format('REVOKE %I FROM %I', granted.rolname, :'name')
  FROM pg_auth_members JOIN pg_roles granted ON granted.oid = roleid JOIN pg_roles holder ON holder.oid = member
  WHERE holder.rolname = :'name' AND granted.rolname <> ALL (string_to_array(:'roles', ',')) \gexec
SELECT format('GRANT %I TO %I', role, :'name') FROM unnest(string_to_array(:'roles', ',')) AS role \gexec
"""

_MYSQL_CREATE_DATABASE = """
SET @database = sys.quote_identifier(@name);
EXECUTE IMMEDIATE CONCAT('CREATE DATABASE IF NOT EXISTS ', @database, ' CHARACTER SET utf8mb4');
"""
_MYSQL_DROP_DATABASE = """
SET @database = sys.quote_identifier(@name);
EXECUTE IMMEDIATE CONCAT('DROP DATABASE IF EXISTS ', @database);
"""
_MYSQL_CREATE_USER = """
SET @account = CONCAT(QUOTE(@name), '@', QUOTE('%'));
EXECUTE IMMEDIATE CONCAT('CREATE USER IF NOT EXISTS ', @account, ' IDENTIFIED VIA ', @login);
"""
_MYSQL_CHANGE_LOGIN = """
EXECUTE IMMEDIATE CONCAT('ALTER USER ', @account, ' IDENTIFIED VIA ', @login);
"""
# MariaDB makes one role the default, where MySQL makes all: it is the last that is named.
_MYSQL_SET_ROLES = """
DELIMITER //
BEGIN NOT ATOMIC
  FOR held IN (SELECT Role AS name FROM mysql.roles_mapping
               WHERE User = @name AND Host = '%' AND NOT FIND_IN_SET(Role, @roles)) DO
    EXECUTE IMMEDIATE CONCAT('REVOKE ', QUOTE(held.name), ' FROM ', @account);
  END FOR;
  WHILE @roles <> '' DO
    SET @role = SUBSTRING_INDEX(@roles, ',', 1);
    SET @roles = SUBSTRING(@roles, CHAR_LENGTH(@role) + 2);
    EXECUTE IMMEDIATE CONCAT('GRANT ', QUOTE(@role), ' TO ', @account);
    EXECUTE IMMEDIATE CONCAT('SET DEFAULT ROLE ', QUOTE(@role), ' FOR ', @account);
  END WHILE;
END //
DELIMITER ;
"""
_MYSQL_DROP_USER = "EXECUTE IMMEDIATE CONCAT('DROP USER IF EXISTS ', QUOTE(@name), '@', QUOTE('%'));"

Script = tuple[str, dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Engine:
    """A database server: its container's program and volume, and its administrator's client, run as an OS user."""

    program: str
    volume: str
    user: str
    client: tuple[str, ...]
    dump: tuple[str, ...]  # these two take a database's name as their last word
    load: tuple[str, ...]
    ready: tuple[str, ...]
    begin_log: str
    end_log: str
    recover: str
    variable: str
    beginning: str
    create_database: str
    drop_database: str
    drop_user: str
    make_user: Callable[[Mapping[str, Any]], Script]

    def text(self, script: str, values: Mapping[str, str]) -> str:
        """Return what the client reads; nothing secret meets a command line or a file."""
        lines = [self.variable.format(name, quoted(value)) for name, value in values.items()]
        return "\n".join([*lines, self.beginning, script, "\\q", ""])


def of(version: str) -> str:
    """Return the engine's name of a `databaseVersion`."""
    return version.partition("_")[0]


def _postgres_user(user: Mapping[str, Any]) -> Script:
    iam_role = IAM_ROLES.get(user.get("type", ""))
    script, values = _CREATE_ROLE, {"name": user["name"]}
    if user.get("password") and not iam_role:
        script += _MAKE_BUILT_IN
        values["verifier"] = scram_verifier(user["password"])
    if user.get("databaseRoles") is not None:
        script += _SET_ROLES
        values["roles"] = ",".join([*user["databaseRoles"], *([iam_role] if iam_role else [])])
    return script, values


def _mysql_user(user: Mapping[str, Any]) -> Script:
    """Return how to make a user: the proxy's front, as whose user of the system it runs, stands for IAM users."""
    login = "unix_socket AS 'mysql'"
    script = _MYSQL_CREATE_USER
    if user.get("type") not in IAM_ROLES:
        login = f"mysql_native_password USING '{native_verifier(user.get('password'))}'"
        script += _MYSQL_CHANGE_LOGIN if user.get("password") else ""
    values = {"name": user["name"], "login": login}
    if user.get("databaseRoles") is not None:
        script += _MYSQL_SET_ROLES
        values["roles"] = ",".join(user["databaseRoles"])
    return script, values


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """Return what PostgreSQL stores for a password (RFC 5803), so that it never sees the password itself."""
    salt = salt or os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", unicodedata.normalize("NFKC", password).encode(), salt, _SCRAM_ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{salt64}${stored64}:{server64}"


def native_verifier(password: str | None) -> str:
    """Return what MariaDB stores for a password of the plugin mysql_native_password; without one nothing fits."""
    if not password:
        return "invalid"
    once = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
    return "*" + hashlib.sha1(once, usedforsecurity=False).hexdigest().upper()


def quoted(value: str) -> str:
    """Return a value as a literal that psql and MariaDB's client both take."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


ENGINES = {
    "POSTGRES": Engine(
        program="emulator.sql_instance",
        volume="/var/lib/postgresql",
        user="postgres",
        client=(*_PSQL, "postgres"),
        dump=("pg_dump", *_PG),
        load=_PSQL,
        ready=("pg_isready", "--quiet", *_PG, "--dbname=postgres"),
        begin_log=_BEGIN_LOG,
        end_log=_END_LOG,
        recover=_RECOVER,
        variable="\\set {} {}",
        beginning="SET client_min_messages = warning;",
        create_database=_CREATE_DATABASE,
        drop_database='DROP DATABASE IF EXISTS :"name";',
        drop_user='DROP ROLE IF EXISTS :"name";',
        make_user=_postgres_user,
    ),
    "MYSQL": Engine(
        program="emulator.mysql_instance",
        volume="/var/lib/mysql",
        user="root",  # whom MariaDB takes for its administrator
        client=_MARIADB,
        dump=(),  # the image has no mariadb-dump
        load=(),
        ready=(*_MARIADB, "--execute=DO 0"),
        begin_log="",
        end_log="",
        recover="",
        variable="SET @{} = {};",
        beginning="",
        create_database=_MYSQL_CREATE_DATABASE,
        drop_database=_MYSQL_DROP_DATABASE,
        drop_user=_MYSQL_DROP_USER,
        make_user=_mysql_user,
    ),
}
