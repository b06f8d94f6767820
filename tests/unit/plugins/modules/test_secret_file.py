"""The VM's secrets: read as its service account, written for root only, never shown."""

from __future__ import annotations

import base64
import io
import json
import os
import stat
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_gcp.plugins.modules import secret_file

ACCOUNT = "mlflow-server@demo-project.iam.gserviceaccount.com"
VALUE = "correct horse battery staple"
URL = "https://secretmanager.googleapis.com/v1/projects/demo-project/secrets/{}/versions/{}:access"


class Cloud:
    """What the metadata server and Secret Manager answer; an exception in `answers` is raised once."""

    def __init__(self) -> None:
        self.secrets: dict[str, bytes] = {"admin": VALUE.encode()}
        self.faults: list[Exception] = []
        self.denied: set[str] = set()
        self.account = True
        self.raw: bytes | None = None
        self.calls: list[tuple[str, dict[str, str], bool]] = []

    def open_url(self, url: str, headers: dict[str, str], timeout: int, use_proxy: bool) -> io.BytesIO:
        assert timeout > 0
        self.calls.append((url, headers, use_proxy))
        if self.faults:
            raise self.faults.pop(0)
        if url.startswith("http://metadata.google.internal/"):
            if not self.account:
                raise refusal(404, "no service account")
            body = {"access_token": "ya29.token"} if url.endswith("/token") else None
            return io.BytesIO(json.dumps(body).encode() if body else ACCOUNT.encode())
        *_, name, _, version = url.removesuffix(":access").split("/")
        if name in self.denied:
            raise refusal(403, "Permission 'secretmanager.versions.access' denied")
        if name not in self.secrets:
            raise refusal(404, f"Secret [{name}] not found or has no versions.")
        number = "7" if version == "latest" else version
        data = base64.b64encode(self.secrets[name]).decode()
        answer = {"name": f"projects/1/secrets/{name}/versions/{number}", "payload": {"data": data}}
        return io.BytesIO(json.dumps(answer).encode() if self.raw is None else self.raw)


def refusal(code: int, message: str) -> HTTPError:
    body = io.BytesIO(json.dumps({"error": {"code": code, "message": message}}).encode())
    return HTTPError("https://example.invalid", code, "refused", Message(), body)


@pytest.fixture(autouse=True)
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    fake = Cloud()
    monkeypatch.setattr(secret_file, "open_url", fake.open_url)
    monkeypatch.setattr(secret_file.time, "sleep", lambda _seconds: None)
    # Whoever runs the tests stands for root.
    for owner in ("owner", "group"):
        monkeypatch.setattr(
            secret_file.AnsibleModule, f"set_{owner}_if_different", lambda _self, _path, _name, changed: changed
        )
    return fake


def run(
    capsys: pytest.CaptureFixture[str], *files: tuple[str, Path], check: bool = False, **options: str
) -> dict[str, Any]:
    wanted = [{"project": "demo-project", "secret": secret, "path": str(path), **options} for secret, path in files]
    arguments = {"files": wanted, "_ansible_check_mode": check, "_ansible_diff": True}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        secret_file.main()
    printed = capsys.readouterr().out
    assert VALUE not in printed
    assert base64.b64encode(VALUE.encode()).decode() not in printed
    result: dict[str, Any] = json.loads(printed)
    return result


def test_writes_the_latest_version_for_its_owner_only(capsys, tmp_path):
    path = tmp_path / "admin"
    result = run(capsys, ("admin", path))
    assert result["changed"]
    assert (result["diff"][0]["before"], result["diff"][0]["after"]) == ("absent\n", "present\n")
    assert path.read_text() == VALUE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["admin"]


def test_authenticates_as_the_virtual_machine(cloud, capsys, tmp_path):
    run(capsys, ("admin", tmp_path / "admin"))
    (token_url, token_headers, token_proxy), (url, headers, proxy) = cloud.calls
    assert token_url.endswith("/instance/service-accounts/default/token")
    assert token_headers == {"Metadata-Flavor": "Google"}
    assert not token_proxy
    assert url == URL.format("admin", "latest")
    assert headers == {"Authorization": "Bearer ya29.token"}
    assert proxy


def test_a_second_run_changes_nothing(capsys, tmp_path):
    path = tmp_path / "admin"
    run(capsys, ("admin", path))
    before = path.stat()
    result = run(capsys, ("admin", path))
    assert not result["changed"]
    assert result["diff"] == []
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_new_version_replaces_the_file(cloud, capsys, tmp_path):
    path = tmp_path / "admin"
    run(capsys, ("admin", path))
    inode = path.stat().st_ino
    cloud.secrets["admin"] = b"rotated"
    result = run(capsys, ("admin", path))
    assert result["files"][0]["after"] == "changed"
    assert path.read_text() == "rotated"
    assert path.stat().st_ino != inode


def test_what_is_replaced_is_kept_for_its_owner_only_until_somebody_removes_it(cloud, capsys, tmp_path, monkeypatch):
    path, previous = tmp_path / "key", tmp_path / "key.previous"

    def keep(value: str, **options: Any) -> dict[str, Any]:
        cloud.secrets["key"] = value.encode()
        return run(capsys, ("key", path), previous_kept=True, **options)

    for _ in range(2):
        keep("first")
        assert not previous.exists()
    assert keep("second", check=True)["changed"]
    assert not previous.exists()
    # Ended before the file is written.
    original = secret_file.write

    def write(where: str, value: bytes) -> None:
        if where == str(path):
            raise OSError(28, "No space left on device")
        original(where, value)

    monkeypatch.setattr(secret_file, "write", write)
    assert keep("second")["failed"]
    assert (path.read_text(), previous.read_text()) == ("first", "first\n")
    monkeypatch.setattr(secret_file, "write", original)
    for _ in range(2):
        keep("second")
        assert (path.read_text(), previous.read_text()) == ("second", "first\n")
        assert stat.S_IMODE(previous.stat().st_mode) == 0o600
    keep("third")
    assert previous.read_text() == "second\nfirst\n"
    keep("first")
    assert (path.read_text(), previous.read_text()) == ("first", "third\nsecond\n")
    previous.unlink()
    cloud.secrets["key"] = b"fourth"
    run(capsys, ("key", path))
    assert not previous.exists()


def test_the_version_is_told_and_may_be_named(cloud, capsys, tmp_path):
    assert run(capsys, ("admin", tmp_path / "admin"))["files"][0]["version"] == "7"
    assert run(capsys, ("admin", tmp_path / "admin"), version="8")["files"][0]["version"] == "8"
    assert cloud.calls[-1][0] == URL.format("admin", "8")


def test_a_readable_file_is_closed_again(capsys, tmp_path):
    path = tmp_path / "admin"
    run(capsys, ("admin", path))
    path.chmod(0o644)
    assert run(capsys, ("admin", path), check=True)["changed"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert run(capsys, ("admin", path))["changed"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [None, "old"])
def test_check_mode_compares_and_leaves_the_file(capsys, tmp_path, content):
    path = tmp_path / "admin"
    if content:
        path.write_text(content)
    assert run(capsys, ("admin", path), check=True)["changed"]
    assert (path.read_text() if path.exists() else None) == content


def test_check_mode_without_the_secret_says_that_it_would_be_written(capsys, tmp_path):
    result = run(capsys, ("later", tmp_path / "later"), check=True)
    assert result["changed"]
    assert result["files"][0]["after"] == "present"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("there", [False, True])
def test_check_mode_without_the_right_says_that_only_a_missing_file_would_be_written(cloud, capsys, tmp_path, there):
    cloud.denied = {"admin"}
    path = tmp_path / "admin"
    if there:
        path.write_text(VALUE)
        path.chmod(0o600)
    result = run(capsys, ("admin", path), check=True)
    assert result["changed"] is not there
    assert "roles/secretmanager.secretAccessor" in json.dumps(result["warnings"])
    assert path.exists() is there


def test_every_missing_role_and_secret_is_named_at_once(cloud, capsys, tmp_path):
    cloud.secrets["flask"] = b"x"
    cloud.denied = {"flask"}
    result = run(capsys, ("flask", tmp_path / "flask"), ("absent", tmp_path / "absent"), ("admin", tmp_path / "admin"))
    assert result["failed"]
    assert "projects/demo-project/secrets/flask" in result["msg"]
    assert "roles/secretmanager.secretAccessor" in result["msg"]
    assert ACCOUNT in result["msg"]
    assert "projects/demo-project/secrets/absent" in result["msg"]
    assert "create the secret" in result["msg"]
    assert os.listdir(tmp_path) == ["admin"]


def test_a_disabled_version_is_explained(cloud, capsys, tmp_path, monkeypatch):
    original = cloud.open_url

    def disabled(url: str, **options: Any) -> io.BytesIO:
        if "secretmanager" in url:
            raise refusal(400, "Secret Version is in DISABLED state.")
        return original(url, **options)

    monkeypatch.setattr(secret_file, "open_url", disabled)
    result = run(capsys, ("admin", tmp_path / "admin"))
    assert "DISABLED" in result["msg"]
    assert "the latest must be enabled" in result["msg"]


def test_passing_faults_are_tried_again(cloud, capsys, tmp_path):
    cloud.faults = [URLError("refused"), refusal(503, "busy"), refusal(429, "slow down")]
    assert not run(capsys, ("admin", tmp_path / "admin")).get("failed")


def test_lasting_faults_are_reported(cloud, capsys, tmp_path):
    cloud.faults = [URLError("refused")] * 4
    assert "metadata server" in run(capsys, ("admin", tmp_path / "admin"))["msg"]


def test_a_machine_without_a_service_account_is_told_so(cloud, capsys, tmp_path):
    cloud.account = False
    assert "has no service account" in run(capsys, ("admin", tmp_path / "admin"))["msg"]


def test_an_unreadable_answer_never_shows_what_came(cloud, capsys, tmp_path):
    cloud.raw = VALUE.encode()
    result = run(capsys, ("admin", tmp_path / "admin"))
    assert result["failed"]
    assert "cannot be read" in result["msg"]


def test_a_link_is_refused(capsys, tmp_path):
    path = tmp_path / "admin"
    path.symlink_to(tmp_path / "elsewhere")
    result = run(capsys, ("admin", path))
    assert "not a regular file" in result["msg"]
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_directory_is_named(capsys, tmp_path):
    result = run(capsys, ("admin", tmp_path / "missing" / "admin"))
    assert "create the directory" in result["msg"]
