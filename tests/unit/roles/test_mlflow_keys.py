"""What MLflow encrypts is encrypted anew with other keys, row by row, and read with both meanwhile."""

from __future__ import annotations

import importlib.util
import pathlib
import uuid
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy
from cryptography.fernet import Fernet
from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.dbmodels.models import EncryptedString
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.dbmodels.models import SqlGatewaySecret
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking
from mlflow.utils import crypto

ROOT = pathlib.Path(__file__).resolve().parents[3]
GATEWAY, WEBHOOK = "crypto-kek-passphrase", "webhook-secret-encryption-key"
GATEWAY_ROWS = SqlGatewaySecret.__table__
WEBHOOK_ROWS = sqlalchemy.table("webhooks", *map(sqlalchemy.column, ("webhook_id", "secret", "deleted_timestamp")))
EVENTS = [WebhookEvent(WebhookEntity.REGISTERED_MODEL, WebhookAction.CREATED)]


@pytest.fixture(scope="module")
def keys() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mlflow_keys", ROOT / "roles/mlflow/files/mlflow_keys.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Server:
    """MLflow's own stores over one database, and the keys that they are given."""

    def __init__(self, keys: ModuleType, directory: pathlib.Path, patch: pytest.MonkeyPatch) -> None:
        self.keys, self.patch, self.credentials = keys, patch, directory
        self.uri = f"sqlite:///{directory}/mlflow.db"
        self.tracking, self.registry = Tracking(self.uri, str(directory)), Registry(self.uri)
        self.engine = self.tracking.engine
        patch.setenv("CREDENTIALS_DIRECTORY", str(directory))

    def start(self, key: str, *before: str) -> None:
        """Give this process the keys of a server that starts."""
        for name in (GATEWAY, WEBHOOK):
            (self.credentials / f"mlflow.{name}").write_text(f"{key}\n")
            (self.credentials / f"mlflow.{name}.previous").write_text("".join(f"{one}\n" for one in before))
        self.patch.setenv("MLFLOW_CRYPTO_KEK_PASSPHRASE", key)
        # Both of which read_with_keys_before() replaces for the life of a process.
        self.patch.setattr(crypto, "unwrap_dek", self.keys.unwrap_dek)
        cipher = Fernet(self.keys.fernet_key(key))
        self.patch.setattr(EncryptedString, "cipher", property(lambda _: cipher), raising=False)
        self.keys.read_with_keys_before()

    def write(self) -> tuple[str, str]:
        """Make a secret of the gateway and a webhook; return the identities."""
        name = f"made-{uuid.uuid4().hex}"
        made = self.tracking.create_gateway_secret(name, {"api_key": name}, provider="openai")
        webhook = self.registry.create_webhook(name, "https://8.8.8.8/x", EVENTS, secret=f"signs-{name}")
        return made.secret_id, webhook.webhook_id

    def read(self, secret: str, webhook: str) -> bool:
        """Whether this server reads both, as its requests do."""
        try:
            value = self.tracking._get_decrypted_secret(secret)
            return value["api_key"] in self.registry.get_webhook(webhook).secret
        except (MlflowException, self.keys.InvalidToken):
            return False

    def rows(self) -> list[Any]:
        with self.engine.connect() as connection:
            return [tuple(row) for table in (GATEWAY_ROWS, WEBHOOK_ROWS) for row in connection.execute(table.select())]


@pytest.fixture
def server(keys: ModuleType, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(keys, tmp_path, monkeypatch)


def test_both_keys_read_until_all_is_encrypted_with_the_new_one_alone(server: Server) -> None:
    server.start("old-key")
    made = server.write()
    server.start("new-key")
    assert not server.read(*made)

    server.start("new-key", "old-key")
    assert server.read(*made)
    later = server.write()
    server.start("old-key")
    assert (server.read(*made), server.read(*later)) == (True, False)
    server.start("new-key", "older-key", "old-key")
    assert server.keys.reencrypt(server.uri)
    server.start("new-key")
    assert server.read(*made)
    assert server.read(*later)
    assert {row.kek_version for row in server.engine.connect().execute(GATEWAY_ROWS.select())} == {1}

    before = server.rows()
    assert server.keys.reencrypt(server.uri)
    assert server.rows() == before


def test_what_no_key_decrypts_is_named_and_left_unless_it_is_deleted(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.start("lost-key")
    secret, webhook = server.write()
    _, deleted = server.write()
    server.registry.delete_webhook(deleted)
    server.start("new-key", "old-key")
    before = server.rows()

    assert not server.keys.reencrypt(server.uri)

    assert server.rows() == before
    said = capsys.readouterr()
    name = server.tracking.get_secret_info(secret_id=secret).secret_name
    assert f"mlflow.{GATEWAY} does not decrypt the secrets of {name}," in said.err
    assert f"mlflow.{WEBHOOK} does not decrypt the secrets of {webhook}: they are left" in said.err
    assert not [key for key in ("old-key", "new-key", server.keys.fernet_key("new-key")) if key in str(said)]


@pytest.mark.parametrize("table", [GATEWAY_ROWS, WEBHOOK_ROWS], ids=["gateway", "webhook"])
def test_what_a_server_beside_writes_meanwhile_stays(server: Server, table: sqlalchemy.FromClause) -> None:
    server.start("old-key")
    made = server.write()
    server.start("new-key", "old-key")
    verb = server.keys.REENCRYPT[GATEWAY if table is GATEWAY_ROWS else WEBHOOK]
    column = table.c.wrapped_dek if table is GATEWAY_ROWS else table.c.secret
    key = table.c.secret_id if table is GATEWAY_ROWS else table.c.webhook_id
    written = b"by another" if table is GATEWAY_ROWS else "by another"

    class Beside:
        """A connection, and another that writes the row just before it does."""

        def __init__(self, connection: sqlalchemy.Connection) -> None:
            self.connection = connection

        def execute(self, statement: Any) -> Any:
            if statement.is_update:
                row = sqlalchemy.update(table).where(key.in_(made)).values({column: written})
                self.connection.execute(row)
            return self.connection.execute(statement)

    with server.engine.begin() as connection:
        verb(Beside(connection), ["new-key"], ["old-key"])
    with server.engine.connect() as connection:
        assert [row for (row,) in connection.execute(sqlalchemy.select(column))] == [written]
