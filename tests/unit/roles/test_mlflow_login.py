"""While the database's password is replaced a connection opens with whichever it takes."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import sqlalchemy

ROOT = pathlib.Path(__file__).resolve().parents[3]


class RefusedError(Exception):
    """What a driver raises of a login that is refused, or a server that is away."""


class Database:
    """Stands for a driver: takes one password, and notes all that it is given."""

    def __init__(self, password: str) -> None:
        self.password = password
        self.asked: list[str] = []
        self.loaded_dbapi = SimpleNamespace(OperationalError=RefusedError)

    def connect(self, *arguments: Any, **options: Any) -> str:
        assert (arguments, options.pop("user")) == (("place",), "mlflow")
        self.asked.append(options.pop("password"))
        assert not options
        if self.asked[-1] != self.password:
            raise RefusedError(f"not {self.asked[-1]}")
        return f"connection by {self.password}"


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> ModuleType:
    """Return the module, whose credentials are files in `tmp_path`."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    files = ROOT / "roles/mlflow/files"
    for name in ("mlflow_keys", "mlflow_login"):
        spec = importlib.util.spec_from_file_location(name, files / f"{name}.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


def connect(listener: Any, database: Database) -> Any:
    return listener(database, None, ("place",), {"user": "mlflow"})


def test_the_one_that_is_taken_is_asked_with_first(login: ModuleType) -> None:
    database, listener = Database("before"), login.Login(["now", "before", "long before"])
    assert [connect(listener, database) for _ in range(2)] == ["connection by before"] * 2
    assert database.asked == ["now", "before", "before"]

    database.password, database.asked = "now", []
    assert [connect(listener, database) for _ in range(2)] == ["connection by now"] * 2
    assert database.asked == ["before", "now", "now"]


def test_what_is_wrong_is_said_where_none_is_taken(login: ModuleType) -> None:
    database, listener = Database("another"), login.Login(["now", "before"])
    with pytest.raises(RefusedError, match="not before"):
        connect(listener, database)
    assert database.asked == ["now", "before"]


@pytest.mark.parametrize(
    ("files", "options", "passwords"),
    [
        ({}, {}, None),
        ({"": "now\n"}, {}, ["now"]),
        ({"": "now", ".previous": "before\nlong before\n"}, {}, ["now", "before", "long before"]),
        ({"": "now", ".previous": "before\n"}, {"passwords_before": False}, ["now"]),
    ],
)
def test_a_process_knows_those_of_its_credentials(
    login: ModuleType, tmp_path: pathlib.Path, files: dict[str, str], options: Any, passwords: list[str] | None
) -> None:
    for suffix, content in files.items():
        (tmp_path / f"mlflow.database-password{suffix}").write_text(content)
    with mock.patch.object(sqlalchemy.event, "listen") as listen:
        login.log_in(**options)
    given = [call.args[2]._passwords for call in listen.call_args_list]
    assert given == ([] if passwords is None else [passwords])


def test_every_engine_of_the_process_asks_with_it(login: ModuleType, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mlflow.database-password").write_text("now")
    listen, listeners = sqlalchemy.event.listen, []

    def remembered(*arguments: Any) -> None:
        listeners.append(arguments)
        listen(*arguments)

    with mock.patch.object(sqlalchemy.event, "listen", remembered):
        login.log_in()
    try:
        # Which knows no passwords, so it was given one.
        with pytest.raises(TypeError, match="password"):
            sqlalchemy.create_engine("sqlite://").connect()
    finally:
        for one in listeners:
            sqlalchemy.event.remove(*one)
