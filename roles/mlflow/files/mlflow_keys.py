"""The keys that MLflow encrypts rows of its database with, while others take their place.

A server encrypts with the keys of now, and reads with those before as well. When none runs any more that knows only
those before, `reencrypt` encrypts with the keys of now what is left, and says whether all is.
"""

import base64
import contextlib
import hashlib
import os
import pathlib
import sys

import sqlalchemy
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.dbmodels.models import EncryptedString, SqlWebhook
from mlflow.store.tracking.dbmodels.models import SqlGatewaySecret
from mlflow.utils import crypto
from mlflow.utils.crypto import DEFAULT_KEK_PASSPHRASE, KEKManager, rotate_secret_encryption, unwrap_dek

# The credentials.
GATEWAY = "crypto-kek-passphrase"
WEBHOOK = "webhook-secret-encryption-key"


def credential(name: str) -> str | None:
    """Text of a systemd credential without its final newline; None where the unit loads none of that name."""
    path = pathlib.Path(os.environ["CREDENTIALS_DIRECTORY"], f"mlflow.{name}")
    return path.read_text().rstrip("\n") if path.exists() else None


def previous(name: str) -> list[str]:
    """What a credential was before, newest first, while something may be encrypted with it."""
    return (credential(f"{name}.previous") or "").splitlines()


def fernet_key(secret: str) -> str:
    """The Fernet key that a secret stands for: 32 bytes in url-safe base64, whatever the secret's own letters are."""
    return base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest()).decode()


def read_with_keys_before() -> None:
    """Let MLflow decrypt with the keys before as well, in this process; it encrypts with those of now alone."""
    if previous(WEBHOOK):
        cipher = MultiFernet([Fernet(fernet_key(one)) for one in [credential(WEBHOOK) or "", *previous(WEBHOOK)]])
        # Of the class, since SQLAlchemy makes copies of what the column has.
        EncryptedString.cipher = property(lambda _: cipher)
    if keks := [KEKManager(one).get_kek() for one in previous(GATEWAY)]:

        def unwrap_with_any(wrapped_dek: bytes, kek: bytes) -> bytes:
            for before in keks:
                with contextlib.suppress(MlflowException):
                    return unwrap_dek(wrapped_dek, before)
            return unwrap_dek(wrapped_dek, kek)

        crypto.unwrap_dek = unwrap_with_any


def reencrypt_gateway_secrets(connection: sqlalchemy.Connection, kept: list[str], others: list[str]) -> list[str]:
    """Encrypts the AI gateway's secrets with the first of `kept`, of those that only one of `others` decrypts.

    Returns the names of those that no passphrase decrypts. `kek_version` stays, by which `mlflow crypto rotate-kek`
    finds them.
    """
    table = SqlGatewaySecret.__table__
    rows = connection.execute(sqlalchemy.select(table)).all()
    if not rows:
        return []
    readers, writers = ([KEKManager(one) for one in passphrases] for passphrases in (kept, others))
    taken, unreadable = [], []
    for row in rows:
        if any(is_unwrapped(row.wrapped_dek, one) for one in readers):
            continue
        writer = next((one for one in writers if is_unwrapped(row.wrapped_dek, one)), None)
        if writer is None:
            unreadable.append(row.secret_name)
            continue
        rotated = rotate_secret_encryption(row.encrypted_value, row.wrapped_dek, writer, readers[0])
        # Unless a server beside this one has written it since.
        unchanged = (table.c.secret_id == row.secret_id) & (table.c.wrapped_dek == row.wrapped_dek)
        connection.execute(sqlalchemy.update(table).where(unchanged).values(wrapped_dek=rotated.wrapped_dek))
        taken.append(row.secret_name)
    if taken:
        print(f"mlflow.{GATEWAY} now encrypts {', '.join(taken)}.", flush=True)
    return unreadable


def is_unwrapped(wrapped_dek: bytes, manager: KEKManager) -> bool:
    """Whether a passphrase is the one that a secret of the gateway is encrypted with."""
    try:
        unwrap_dek(wrapped_dek, manager.get_kek())
    except MlflowException:
        return False
    return True


def reencrypt_webhooks(connection: sqlalchemy.Connection, kept: list[str], others: list[str]) -> list[str]:
    """The same for webhooks; returns the identities of those whose secret no key decrypts, unless they are deleted."""
    readers, writers = ([Fernet(fernet_key(one)) for one in secrets] for secrets in (kept, others))
    # As it is stored: MLflow's own type would decrypt and encrypt.
    names = ("webhook_id", "secret", "deleted_timestamp")
    table = sqlalchemy.table(SqlWebhook.__tablename__, *(sqlalchemy.column(name) for name in names))
    taken, unreadable = [], []
    for row in connection.execute(sqlalchemy.select(table).where(table.c.secret.is_not(None))).all():
        if decrypted(row.secret, readers) is not None:
            continue
        secret = decrypted(row.secret, writers)
        if secret is not None:
            unchanged = (table.c.webhook_id == row.webhook_id) & (table.c.secret == row.secret)
            anew = readers[0].encrypt(secret).decode()
            connection.execute(sqlalchemy.update(table).where(unchanged).values(secret=anew))
            taken.append(row.webhook_id)
        elif row.deleted_timestamp is None:
            unreadable.append(row.webhook_id)
    if taken:
        print(f"mlflow.{WEBHOOK} now encrypts {', '.join(taken)}.", flush=True)
    return unreadable


def decrypted(token: str, keys: list[Fernet]) -> bytes | None:
    """What a webhook's secret is by the first key that decrypts it, None where none does."""
    for key in keys:
        with contextlib.suppress(InvalidToken):
            return key.decrypt(token)
    return None


# What encrypts rows of the tracking database, by the credential.
REENCRYPT = {
    GATEWAY: reencrypt_gateway_secrets,
    WEBHOOK: reencrypt_webhooks,
}


def encrypt_anew(uri: str, kept: dict[str, list[str]], others: dict[str, list[str]]) -> bool:
    """Encrypts with the first of `kept` what none of those decrypts, and one of `others` does, in one transaction.

    Names what nothing decrypts; returns whether there is no such.
    """
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        found = {name: verb(connection, kept[name], others.get(name, [])) for name, verb in REENCRYPT.items()}
    for name, unreadable in found.items():
        if unreadable:
            print(
                f"mlflow.{name} does not decrypt the secrets of {', '.join(unreadable)}: they are left as they are. "
                "docs/rotation.md says what to do.",
                file=sys.stderr,
            )
    return not any(found.values())


def ensure_readable(uri: str) -> None:
    """Takes what is encrypted with the passphrase that everybody knows, and names what cannot be decrypted.

    What keys before encrypted is left, for the server that knows no others.
    """
    kept = {name: [credential(name) or "", *previous(name)] for name in REENCRYPT}
    encrypt_anew(uri, kept, {GATEWAY: [DEFAULT_KEK_PASSPHRASE]})


def reencrypt(uri: str) -> bool:
    """Encrypts with the keys of now what others encrypted; returns whether those of now alone decrypt all there is."""
    now = {name: [credential(name) or ""] for name in REENCRYPT}
    before = {name: previous(name) for name in REENCRYPT}
    before[GATEWAY].append(DEFAULT_KEK_PASSPHRASE)
    encrypt_anew(uri, now, before)
    return encrypt_anew(uri, now, {})
