#!/opt/mlflow/current/bin/python -I
"""Starts the MLflow server for systemd: checks both schemas, applies the admin password, then serves.

The environment holds MLFLOW_BACKEND_STORE_URI, MLFLOW_AUTH_CONFIG_PATH, MLFLOW_WORKERS and MLflow's other settings,
`$CREDENTIALS_DIRECTORY` one file per secret. Exit status 78 (EX_CONFIG) means that starting again cannot help.
"""

import dataclasses
import os
import pathlib
import sys

import alembic.command
import alembic.config
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from mlflow.server import auth
from mlflow.server.auth.db.utils import _get_alembic_config as auth_alembic_config
from mlflow.store.db.utils import _get_alembic_config as tracking_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase

EX_CONFIG = 78
# There from before the first table of a schema until after its last migration, so nobody's data is beside it.
UNFINISHED = sqlalchemy.Table(
    "mlflow_schema_unfinished", sqlalchemy.MetaData(), sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True)
)


@dataclasses.dataclass(frozen=True)
class Schema:
    """One of MLflow's two databases; `initial` are the tables that exist before the first Alembic revision."""

    name: str
    uri: str
    version_table: str
    config: alembic.config.Config
    initial: sqlalchemy.MetaData


def credential(name: str) -> str | None:
    """Text of a systemd credential without its final newline; None where the unit loads none of that name."""
    path = pathlib.Path(os.environ["CREDENTIALS_DIRECTORY"], f"mlflow.{name}")
    return path.read_text().rstrip("\n") if path.exists() else None


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


def ensure_schema(schema: Schema) -> None:
    """Creates the schema in a fresh database; exits with EX_CONFIG when an existing one is not this release's."""
    engine = sqlalchemy.create_engine(schema.uri, poolclass=sqlalchemy.NullPool)
    scripts = ScriptDirectory.from_config(schema.config)
    head = scripts.get_current_head()
    remove_unfinished(engine, schema)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.version_table})
        current = context.get_current_revision()
        fresh = current is None and is_fresh(connection, schema)
    if fresh:
        print(f"The {schema.name} database is empty: creating schema {head}.", flush=True)
        UNFINISHED.create(engine)
        schema.initial.create_all(engine)
        alembic.command.upgrade(schema.config, "head")
        UNFINISHED.drop(engine)
    elif current != head:
        known = current is None or current in {script.revision for script in scripts.walk_revisions()}
        remedy = (
            "an older MLflow wrote it: set mlflow_version to that release, no playbook migrates it yet"
            if known
            else "a newer MLflow wrote it: set mlflow_version to that release, or restore a backup of this one"
        )
        print(
            f"Refusing to start: the {schema.name} database has schema {current}, this MLflow needs {head}. "
            f"Nothing was changed; {remedy}.",
            file=sys.stderr,
        )
        sys.exit(EX_CONFIG)


def ensure_admin(username: str, password: str) -> None:
    """Creates the administrator, or gives them the credential's password when it was changed in either place."""
    auth.store.init_db(auth.auth_config.database_uri)
    if not auth.store.has_user(username):
        auth.store.create_user(username, password, is_admin=True)
    elif not auth.store.authenticate_user(username, password):
        auth.store.update_user(username, password=password)
        print(f"Applied the password of the credential mlflow.admin-password to the user {username}.", flush=True)


def give_database_password(password: str) -> None:
    """Puts the password where the drivers look: PostgreSQL's in a variable, PyMySQL in the file its URI names."""
    os.environ["PGPASSWORD"] = password
    options = pathlib.Path(os.environ["RUNTIME_DIRECTORY"], "my.cnf")
    options.touch(mode=0o600)
    options.write_text(f'[client]\npassword = "{password}"\n')


def main() -> None:
    """Runs `mlflow server` in this process, on a Unix socket named after the release."""
    tracking_uri, auth_uri = os.environ["MLFLOW_BACKEND_STORE_URI"], auth.auth_config.database_uri
    secret_key, password = credential("flask-secret-key"), credential("admin-password")
    if not secret_key or not password:
        print("Refusing to start: mlflow.flask-secret-key or mlflow.admin-password is empty.", file=sys.stderr)
        sys.exit(EX_CONFIG)
    os.environ["MLFLOW_FLASK_SERVER_SECRET_KEY"] = secret_key
    if database_password := credential("database-password"):
        give_database_password(database_password)

    tracking_config = tracking_alembic_config(tracking_uri)
    ensure_schema(Schema("tracking", tracking_uri, "alembic_version", tracking_config, InitialBase.metadata))
    auth_config = auth_alembic_config(auth_uri)
    ensure_schema(Schema("auth", auth_uri, "alembic_version_auth", auth_config, sqlalchemy.MetaData()))
    ensure_admin(str(auth.auth_config.admin_username), password)

    release = pathlib.Path(sys.prefix).resolve().name
    socket = pathlib.Path(os.environ["RUNTIME_DIRECTORY"], f"{release}.sock")
    socket.unlink(missing_ok=True)
    # NGINX writes the access log.
    uvicorn = f"--uds {socket} --no-access-log --timeout-graceful-shutdown 30"
    options = ["--app-name", "basic-auth", "--workers", os.environ["MLFLOW_WORKERS"], "--uvicorn-opts", uvicorn]

    from mlflow.cli import cli

    cli.main(["server", "--serve-artifacts", *options], prog_name="mlflow")


if __name__ == "__main__":
    main()
