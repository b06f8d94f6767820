"""Starts the MLflow server for systemd, and reads or migrates the schemas of its two databases.

`serve` checks both schemas, applies the admin password and MLflow's keys, then serves; `schema` says as JSON what is
there and what this release needs, `count` how many rows each table has; `migrate` makes the one schema the other;
`reencrypt` encrypts with the keys of now what those before encrypted, and needs no password before; `gc` removes for
good what was deleted days ago. Run by the Python of the release.

The environment holds MLFLOW_BACKEND_STORE_URI, MLFLOW_AUTH_CONFIG_PATH, MLFLOW_AUTHENTICATION, MLFLOW_WORKERS and
MLflow's other settings, `$CREDENTIALS_DIRECTORY` one file per secret. Exit status 78 (EX_CONFIG) means that starting
again cannot help.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import socket
import sys
import threading
import time

import alembic.command
import alembic.config
import mlflow.server
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from mlflow.server import auth
from mlflow.server.auth.db.utils import _get_alembic_config as auth_alembic_config
from mlflow.store.db.utils import _get_alembic_config as tracking_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase

# Which Python's -I leaves out.
sys.path.append(str(pathlib.Path(__file__).parent))
from mlflow_keys import credential, ensure_readable, fernet_key, reencrypt
from mlflow_login import log_in

# Of a release that has the plugin; its users are in a database of their own, with the plugin's schema.
if WITH_OIDC := os.environ["MLFLOW_AUTHENTICATION"] == "oidc":
    import mlflow_oidc

EX_CONFIG = 78
# What the server cannot do without, and under which names MLflow looks for it.
SECRETS = {
    "admin-password": None,
    "flask-secret-key": "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "webhook-secret-encryption-key": "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
    "crypto-kek-passphrase": "MLFLOW_CRYPTO_KEK_PASSPHRASE",
}
# By how users log in: the app's name, and the app. Under basic-auth's name alone does MLflow prepare the login.
APPS = {
    "basic": ("basic-auth", "mlflow_app:create_app"),
    "iap": ("basic-auth", "mlflow_app:create_app"),
    "none": ("basic-auth", "mlflow_app:create_app_without_users"),
    "oidc": ("oidc-auth", "mlflow_app:create_app_with_oidc"),
}
# There from before the first table of a schema until after its last migration, so nobody's data is beside it.
UNFINISHED = sqlalchemy.Table(
    "mlflow_schema_unfinished", sqlalchemy.MetaData(), sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True)
)
# Below PostgreSQL's deadlock_timeout of 1 s: where both wait for each other, the migration gives way and not a request.
# https://www.postgresql.org/docs/current/runtime-config-locks.html
LOCK_TIMEOUT_MILLISECONDS = 800
LOCK_TRIES = 60
# lock_not_available, deadlock_detected: https://www.postgresql.org/docs/current/errcodes-appendix.html
LOCK_STATES = {"55P03", "40P01"}


@dataclasses.dataclass(frozen=True)
class Schema:
    """One of MLflow's two databases; `initial` are the tables that exist before the first Alembic revision."""

    name: str
    uri: str
    version_table: str
    config: alembic.config.Config
    initial: sqlalchemy.MetaData


def is_fresh(connection: sqlalchemy.Connection, schema: Schema) -> bool:
    """True for a database without tables, or with what an interrupted first start leaves: initial tables, no rows."""
    tables = set(sqlalchemy.inspect(connection).get_table_names()) - {schema.version_table}
    return tables <= set(schema.initial.tables) and not any(
        connection.execute(sqlalchemy.select(sqlalchemy.literal(1)).select_from(schema.initial.tables[table])).first()
        for table in tables
    )


@sqlalchemy.event.listens_for(sqlalchemy.Table, "before_create")
def tell_foreign_keys_apart(table: sqlalchemy.Table, connection: sqlalchemy.Connection, **_: object) -> None:
    """MySQL wants the names of foreign keys unique; MLflow's first auth revision has one twice (mlflow #10964)."""
    if connection.dialect.name == "mysql" and table.name == "registered_model_permissions":
        for constraint in table.foreign_key_constraints:
            constraint.name = f"fk_{table.name}_user_id"


def remove_unfinished(engine: sqlalchemy.Engine, schema: Schema) -> None:
    """Removes what an interrupted creation left, which MySQL, unlike PostgreSQL, cannot take back by itself."""
    if not sqlalchemy.inspect(engine).has_table(UNFINISHED.name):
        return
    print(f"The {schema.name} database has what an interrupted creation left: removing it.", flush=True)
    left = sqlalchemy.MetaData()
    left.reflect(engine)
    left.remove(left.tables[UNFINISHED.name])
    left.drop_all(engine)
    UNFINISHED.drop(engine)


@dataclasses.dataclass(frozen=True)
class State:
    """What a database has against what this release needs; `known` when this release can migrate it, or need not."""

    current: str | None
    head: str | None
    fresh: bool
    known: bool


def read_state(schema: Schema) -> State:
    """The state of one database; raises `sqlalchemy.exc.SQLAlchemyError` when it cannot be read."""
    engine = sqlalchemy.create_engine(schema.uri, poolclass=sqlalchemy.NullPool)
    scripts = ScriptDirectory.from_config(schema.config)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.version_table})
        current = context.get_current_revision()
        fresh = current is None and is_fresh(connection, schema)
    known = current is None or current in {script.revision for script in scripts.walk_revisions()}
    return State(current, scripts.get_current_head(), fresh, known)


def count_rows(schema: Schema) -> dict[str, int]:
    """Rows by table."""
    engine = sqlalchemy.create_engine(schema.uri, poolclass=sqlalchemy.NullPool)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    count = sqlalchemy.select(sqlalchemy.func.count())
    with engine.connect() as connection:
        return {
            name: connection.execute(count.select_from(table)).scalar_one() for name, table in tables.tables.items()
        }


def refuse(schema: Schema, state: State, verb: str, remedy: str) -> None:
    """Exits with EX_CONFIG and says why."""
    print(
        f"Refusing to {verb}: the {schema.name} database has schema {state.current}, this MLflow needs {state.head}. "
        f"Nothing was changed; {remedy}.\nMore: docs/failures.md#mlflow-refuses-to-start",
        file=sys.stderr,
    )
    sys.exit(EX_CONFIG)


NEWER = "a newer MLflow wrote it: set mlflow_version to that release, or restore a backup of this one"


def ensure_schema(schema: Schema) -> None:
    """Creates the schema in a fresh database; exits with EX_CONFIG when an existing one is not this release's."""
    engine = sqlalchemy.create_engine(schema.uri, poolclass=sqlalchemy.NullPool)
    remove_unfinished(engine, schema)
    state = read_state(schema)
    if state.fresh:
        print(f"The {schema.name} database is empty: creating schema {state.head}.", flush=True)
        UNFINISHED.create(engine)
        schema.initial.create_all(engine)
        alembic.command.upgrade(schema.config, "head")
        UNFINISHED.drop(engine)
    elif state.current != state.head:
        remedy = "run playbooks/upgrade.yml, which migrates it" if state.known else NEWER
        refuse(schema, state, "start", remedy)


def migrate(schema: Schema) -> None:
    """Brings an existing schema to this release's head: in PostgreSQL in one transaction, whole or not at all.

    MySQL has no such transactions. Waits for no lock longer than LOCK_TIMEOUT_MILLISECONDS, since requests queue behind
    it, and tries again.
    """
    state = read_state(schema)
    if state.current == state.head:
        return
    if not state.known:
        refuse(schema, state, "migrate", NEWER)
    os.environ["PGOPTIONS"] = f"-c lock_timeout={LOCK_TIMEOUT_MILLISECONDS}"
    print(f"Migrating the {schema.name} database from schema {state.current} to {state.head}.", flush=True)
    for last in [False] * (LOCK_TRIES - 1) + [True]:
        try:
            alembic.command.upgrade(schema.config, "head")
        except sqlalchemy.exc.OperationalError as error:
            if last or getattr(error.orig, "sqlstate", None) not in LOCK_STATES:
                raise
            time.sleep(1)
        else:
            print(f"Migrated the {schema.name} database to schema {state.head}.", flush=True)
            return


def ensure_admin(username: str, password: str) -> None:
    """Creates the administrator, or gives them the credential's password when it was changed in either place."""
    auth.store.init_db(auth.auth_config.database_uri)
    if not auth.store.has_user(username):
        auth.store.create_user(username, password, is_admin=True)
    elif not auth.store.authenticate_user(username, password):
        auth.store.update_user(username, password=password)
        print(f"Applied the password of the credential mlflow.admin-password to the user {username}.", flush=True)


def tell_systemd_while_alive(path: pathlib.Path) -> None:
    """Asks the server over and over, and passes each answer on: where none comes for WatchdogSec=, systemd restarts.

    What it asks needs no database and no free thread: a busy server, and one whose database is away, answer. Until the
    unit's ExecStartPost= says that it has started, it may take what it takes on a busy machine: TimeoutStartSec= ends
    that. The answers do not tell: a server that hung between the first two times it is asked was never heard.
    https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
    """
    seconds = int(os.environ["WATCHDOG_USEC"]) / 1_000_000 / 4
    started = path.with_name("started")
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.settimeout(seconds)
            try:
                server.connect(str(path))
                server.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                is_alive = server.recv(12) == b"HTTP/1.1 200"
            except OSError:
                is_alive = False
        if is_alive or not started.exists():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.sendto(b"WATCHDOG=1", os.environ["NOTIFY_SOCKET"])
        time.sleep(seconds)


def serve(schemas: list[Schema]) -> None:
    """Runs `mlflow server` in this process, on a Unix socket in the generation's own directory."""
    secrets = {name: credential(name) or "" for name in [*SECRETS, *(["oidc-client-secret"] if WITH_OIDC else [])]}
    if missing := [f"mlflow.{name}" for name, value in secrets.items() if not value]:
        said = f"Refusing to start: {', '.join(missing)}: empty, or not loaded by the unit."
        print(f"{said}\nMore: docs/failures.md#mlflow-refuses-to-start", file=sys.stderr)
        sys.exit(EX_CONFIG)
    secrets["webhook-secret-encryption-key"] = fernet_key(secrets["webhook-secret-encryption-key"])
    os.environ |= {variable: secrets[name] for name, variable in SECRETS.items() if variable}
    path = pathlib.Path(os.environ["RUNTIME_DIRECTORY"], "server.sock")
    path.unlink(missing_ok=True)
    threading.Thread(target=tell_systemd_while_alive, args=[path], daemon=True).start()
    for schema in schemas:
        ensure_schema(schema)
    give_password = mlflow_oidc.ensure_admin if WITH_OIDC else ensure_admin
    give_password(str(auth.auth_config.admin_username), secrets["admin-password"])
    if WITH_OIDC:
        threading.Thread(target=mlflow_oidc.sweep, daemon=True).start()
    # Last, since a server beside this one that knows no passphrase reads the gateway's secrets until then.
    ensure_readable(schemas[0].uri)
    # NGINX writes the access log.
    own = pathlib.Path(__file__).parent
    uvicorn = f"--uds {path} --no-access-log --timeout-graceful-shutdown 30 --app-dir {own}"
    name, app = APPS[os.environ["MLFLOW_AUTHENTICATION"]]
    options = ["--app-name", name, "--workers", os.environ["MLFLOW_WORKERS"], "--uvicorn-opts", uvicorn]
    # Of this start alone: systemd makes the directory anew.
    options += ["--expose-prometheus", str(path.with_name("metrics"))]

    from mlflow.cli import cli

    # Only a package could name an app of its own.
    mlflow.server._find_app = lambda app_name: {name: app}[app_name]
    cli.main(["server", "--serve-artifacts", *options], prog_name="mlflow")


def remove_deleted(schema: Schema, days: int) -> None:
    """Removes what was deleted so many days ago; exits with 1 where something could not be removed."""
    if days < 1:
        print("Nothing is removed: no number of days says when.", flush=True)
        return
    state = read_state(schema)
    if state.current != state.head:
        refuse(schema, state, "remove anything", "run playbooks/upgrade.yml first")
    from mlflow_gc import collect

    stamp = pathlib.Path(os.environ["STATE_DIRECTORY"], "gc.json")
    sys.exit(min(1, collect(schema.uri, os.environ["MLFLOW_ARTIFACTS_DESTINATION"], days, stamp)))


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["serve", "schema", "count", "migrate", "reencrypt", "gc"])
    parser.add_argument("--days", type=int, help="for gc: how long ago")
    arguments = parser.parse_args()
    verb = arguments.verb
    # Where that is done, nothing of before is needed any more.
    log_in(passwords_before=verb != "reencrypt")
    tracking_uri, auth_uri = os.environ["MLFLOW_BACKEND_STORE_URI"], auth.auth_config.database_uri
    tracking_config = tracking_alembic_config(tracking_uri)
    if WITH_OIDC:
        version_table, auth_config = "alembic_version", mlflow_oidc.alembic_config(auth_uri)
    else:
        version_table, auth_config = "alembic_version_auth", auth_alembic_config(auth_uri)
    schemas = [
        Schema("tracking", tracking_uri, "alembic_version", tracking_config, InitialBase.metadata),
        Schema("auth", auth_uri, version_table, auth_config, sqlalchemy.MetaData()),
    ]
    if verb == "serve":
        serve(schemas)
    elif verb == "schema":
        print(json.dumps({schema.name: dataclasses.asdict(read_state(schema)) for schema in schemas}))
    elif verb == "reencrypt":
        sys.exit(0 if reencrypt(schemas[0].uri) else 1)
    elif verb == "gc":
        remove_deleted(schemas[0], arguments.days)
    elif verb == "count":
        print(json.dumps({schema.name: count_rows(schema) for schema in schemas}))
    else:
        for schema in schemas:
            migrate(schema)


if __name__ == "__main__":
    main()
