"""The password of the database, while another takes its place: both are tried, so no moment is wrong for the change."""

from typing import Any

import sqlalchemy
from mlflow_keys import credential, previous

CREDENTIAL = "database-password"


class Login:
    """Opens connections with the first of `passwords` that the database takes, and asks with that one first next time.

    A listener of SQLAlchemy's `do_connect`, for MySQL and PostgreSQL. No driver says of a refused login more than that
    it was no connection; so each is tried after any such error, and the last one's is raised.
    """

    def __init__(self, passwords: list[str]) -> None:
        self._passwords = passwords

    def __call__(self, dialect: Any, _: Any, arguments: Any, options: Any) -> Any:
        """Return a connection of the driver's."""
        for password in (tried := self._passwords):
            try:
                connection = dialect.connect(*arguments, **options, password=password)
            except dialect.loaded_dbapi.OperationalError:
                if password == tried[-1]:
                    raise
            else:
                self._passwords = [password, *(one for one in tried if one != password)]
                return connection
        return None


def log_in(*, passwords_before: bool = True) -> None:
    """Let this process use the credential's password, where there is one, and those before it while they are there."""
    now = credential(CREDENTIAL)
    if now:
        passwords = [now, *(previous(CREDENTIAL) if passwords_before else [])]
        sqlalchemy.event.listen(sqlalchemy.Engine, "do_connect", Login(passwords))
