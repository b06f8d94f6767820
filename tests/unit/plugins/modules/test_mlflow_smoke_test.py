"""What the operator reads when the smoke test fails, and that the password is nowhere in it."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import requests
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.mlflow_smoke_test import SmokeTestError
from ansible_collections.mlops.mlflow_gcp.plugins.modules import mlflow_smoke_test

Login = tuple[str, tuple[str, str] | None, bool]
PASSWORD = "correct horse battery staple"
OPTIONS = {
    "url": "https://mlflow.example.com",
    "project": "demo-project",
    "admin_password_secret": "mlflow-admin-password",
    "server": "mlflow-1",
}


def run_module(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    with patch_module_args({**OPTIONS, **options}), pytest.raises(SystemExit):
        mlflow_smoke_test.main()
    printed = capsys.readouterr().out
    assert PASSWORD not in printed
    return dict(json.loads(printed))


@pytest.fixture
def logins(monkeypatch: pytest.MonkeyPatch) -> list[Login]:
    """Return the list of (url, (username, password), whether a user is made) that the server was tested with."""
    seen: list[Login] = []
    monkeypatch.setattr(mlflow_smoke_test, "read_secret", lambda _project, _secret: PASSWORD)
    monkeypatch.setattr(
        mlflow_smoke_test.mlflow_smoke_test, "run", lambda *login: seen.append(login) or {"experiment": "verify-1"}
    )
    return seen


def test_uses_the_password_of_the_secret_and_reports_no_change(
    logins: list[Login], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_module(capsys)
    assert logins == [("https://mlflow.example.com", ("admin", PASSWORD), True)]
    assert (result["changed"], result["used"]) == (False, {"experiment": "verify-1"})


def test_on_the_server_itself_a_file_has_the_password_and_a_socket_leads_to_it(
    logins: list[Login],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "password").write_text("of the file\n")
    sockets: list[str] = []
    monkeypatch.setattr(mlflow_smoke_test.mlflow_smoke_test, "connect_to", sockets.append)
    there = {"url": "http://localhost", "socket": "/run/live.sock", "admin_password_path": str(tmp_path / "password")}
    with patch_module_args(there), pytest.raises(SystemExit):
        mlflow_smoke_test.main()
    assert "of the file" not in capsys.readouterr().out
    assert logins == [("http://localhost", ("admin", "of the file"), True)]
    assert sockets == ["/run/live.sock"]


def test_where_there_are_no_users_no_password_is_read(
    logins: list[Login],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mlflow_smoke_test, "read_secret", lambda _project, _secret: pytest.fail("read"))
    run_module(capsys, work_as="anybody")
    assert logins == [("https://mlflow.example.com", None, False)]


def test_where_the_users_are_elsewhere_the_administrator_does_the_work(
    logins: list[Login], capsys: pytest.CaptureFixture[str]
) -> None:
    run_module(capsys, work_as="administrator")
    assert logins == [("https://mlflow.example.com", ("admin", PASSWORD), False)]


def test_check_mode_does_nothing(logins: list[Login], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_module(capsys, _ansible_check_mode=True)["changed"] is False
    assert logins == []


@pytest.mark.usefixtures("logins")
def test_a_failure_names_the_component_and_the_command_on_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_login: str) -> None:
        raise SmokeTestError("Upload an artifact", "mlflow", "403 Forbidden")

    monkeypatch.setattr(mlflow_smoke_test.mlflow_smoke_test, "run", fail)
    result = run_module(capsys)
    assert result["failed"]
    next_step = "Next, on mlflow-1: journalctl -u 'mlflow-*' -n 50"
    more = "More: docs/failures.md#the-service-cannot-be-used"
    assert result["msg"] == f"mlflow: Upload an artifact: 403 Forbidden. {next_step}\n{more}"


def test_a_secret_that_cannot_be_read_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_project: str, _secret: str) -> str:
        raise requests.HTTPError("404 Not Found")

    monkeypatch.setattr(mlflow_smoke_test, "read_secret", refuse)
    result = run_module(capsys)
    assert result["component"] == "Secret Manager"
    assert "Next: gcloud secrets versions list mlflow-admin-password --project demo-project\n" in result["msg"]
