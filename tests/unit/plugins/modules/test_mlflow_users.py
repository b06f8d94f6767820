"""Users brought to what is declared, against an MLflow of the tests on a Unix socket; no password is ever shown."""

from __future__ import annotations

import base64
import copy
import http.server
import json
import pathlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_gcp.plugins.modules import mlflow_users

ADMIN = "correct horse battery staple"
PASSWORDS = {"ann": "ann-password-of-test", "bob": "bob-password-of-test", "eve": "eve-password-of-test"}
SECRETS = (ADMIN, *PASSWORDS.values())
ANN: dict[str, Any] = {
    "name": "ann",
    "experiments": [{"name": "churn", "permission": "EDIT"}, {"name": "old", "permission": "NO_PERMISSIONS"}],
    "registered_models": [{"name": "*", "permission": "READ"}],
}
BOB: dict[str, Any] = {"name": "bob", "is_admin": True}
EVE: dict[str, Any] = {"name": "eve", "state": "absent"}


class RefusedError(Exception):
    """An answer of MLflow that is no 200."""


def missing(what: str) -> RefusedError:
    return RefusedError(404, "RESOURCE_DOES_NOT_EXIST", f"{what} not found")


ROUTES: dict[tuple[str, str], Callable[..., Any]] = {}


def route(verb: str, path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have a method answer these calls."""

    def note(method: Callable[..., Any]) -> Callable[..., Any]:
        ROUTES[verb, path] = method
        return method

    return note


class FakeMlflow:
    """Users, grants, experiments and models, with the rules of mlflow.server.auth 3.17."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, Any]] = {"admin": {"id": 1, "is_admin": True, "password": ADMIN}}
        # By user, type and id; the grants of another role beside them.
        self.grants: dict[tuple[str, str, str], str] = {}
        self.role_grants: dict[tuple[str, str, str], str] = {}
        self.experiments: dict[str, dict[str, str]] = {}
        self.models: set[str] = set()
        self.tags: list[dict[str, str]] = []
        # Passwords that a worker still takes, though they were changed.
        self.remembered: set[tuple[str, str]] = set()
        self.faults: dict[str, RefusedError] = {}
        self.writes: list[str] = []

    def state(self) -> Any:
        return copy.deepcopy([self.users, self.grants, self.experiments, self.models])

    def answer(self, verb: str, path: str, login: tuple[str, str], given: dict[str, Any]) -> Any:
        name, password = login
        if self.users.get(name, {}).get("password") != password and login not in self.remembered:
            raise RefusedError(401, "", "")
        if path in self.faults:
            raise self.faults[path]
        if path != "2.0/mlflow/users/update-password" or name != given["username"]:
            assert self.users[name]["is_admin"]
            if verb != "GET":
                self.writes.append(path.removeprefix("2.0/mlflow/").removeprefix("3.0/mlflow/"))
        return ROUTES[verb, path](self, login, **given)

    def user(self, name: str) -> dict[str, Any]:
        if name not in self.users:
            raise missing(name)
        return self.users[name]

    @route("GET", "2.0/mlflow/users/list")
    def list_users(self, _login):
        return {"users": [{"username": name, **user} | {"password": None} for name, user in self.users.items()]}

    @route("POST", "2.0/mlflow/users/create")
    def create_user(self, _login, username, password):
        assert username not in self.users
        assert len(password) >= 12
        self.users[username] = {"id": len(self.users) + 1, "is_admin": False, "password": password}

    @route("DELETE", "2.0/mlflow/users/delete")
    def delete_user(self, _login, username):
        self.user(username)
        del self.users[username]
        self.grants = {key: one for key, one in self.grants.items() if key[0] != username}

    @route("PATCH", "2.0/mlflow/users/update-admin")
    def update_admin(self, _login, username, is_admin):
        assert isinstance(is_admin, bool)
        self.user(username)["is_admin"] = is_admin

    @route("PATCH", "2.0/mlflow/users/update-password")
    def update_password(self, login, username, password, current_password=None):
        if login[0] == username:
            if self.user(username)["password"] != current_password:
                raise RefusedError(400, "INVALID_PARAMETER_VALUE", "Current password does not match.")
            if password == current_password:
                message = "New password must differ from the current password."
                raise RefusedError(400, "INVALID_PARAMETER_VALUE", message)
        self.user(username)["password"] = password

    @route("GET", "3.0/mlflow/users/permissions/list")
    def list_permissions(self, _login, username):
        number = self.user(username)["id"]
        kinds = ((f"__user_{number}__", 100 + number, self.grants), ("readers", 99, self.role_grants))
        return {
            "permissions": [
                {"role_id": role, "role_name": title, "workspace": "default"}
                | {"resource_type": kind, "resource_pattern": pattern, "permission": permission}
                for title, role, grants in kinds
                for (name, kind, pattern), permission in grants.items()
                if name == username
            ]
        }

    @route("POST", "3.0/mlflow/users/permissions/grant")
    def grant(self, _login, username, resource_type, resource_id, permission):
        self.user(username)
        if (username, resource_type, resource_id) in self.grants:
            raise RefusedError(400, "RESOURCE_ALREADY_EXISTS", "already exists")
        if permission == "NO_PERMISSIONS":
            raise RefusedError(400, "INVALID_PARAMETER_VALUE", "Invalid permission")
        self.grants[username, resource_type, resource_id] = permission

    @route("POST", "3.0/mlflow/users/permissions/revoke")
    def revoke(self, _login, username, resource_type, resource_id):
        if self.grants.pop((username, resource_type, resource_id), None) is None:
            raise missing("the permission")

    def rows(self) -> list[tuple[str, str, str]]:
        return list(self.grants)

    @route("GET", "3.0/mlflow/roles/permissions/list")
    def list_role_permissions(self, _login, role_id):
        owner = next(name for name, user in self.users.items() if user["id"] == int(role_id) - 100)
        return {
            "role_permissions": [
                {"id": number, "resource_type": kind, "resource_pattern": pattern}
                for number, (name, kind, pattern) in enumerate(self.rows())
                if name == owner
            ]
        }

    @route("PATCH", "3.0/mlflow/roles/permissions/update")
    def update_role_permission(self, _login, role_permission_id, permission):
        self.grants[self.rows()[role_permission_id]] = permission

    @route("GET", "2.0/mlflow/experiments/get-by-name")
    def get_experiment_by_name(self, _login, experiment_name):
        if experiment_name not in self.experiments:
            raise missing(experiment_name)
        return {"experiment": self.experiments[experiment_name]}

    @route("POST", "2.0/mlflow/experiments/create")
    def create_experiment(self, _login, name):
        assert name not in self.experiments
        self.experiments[name] = {"experiment_id": str(len(self.experiments) + 1), "lifecycle_stage": "active"}
        return {"experiment_id": self.experiments[name]["experiment_id"]}

    @route("GET", "2.0/mlflow/registered-models/get")
    def get_registered_model(self, _login, name):
        if name not in self.models:
            raise missing(name)
        return {"registered_model": {"name": name, "tags": self.tags}}

    @route("POST", "2.0/mlflow/registered-models/create")
    def create_registered_model(self, _login, name):
        assert name not in self.models
        self.models.add(name)


class Listener(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@pytest.fixture
def mlflow(tmp_path: pathlib.Path) -> Iterator[FakeMlflow]:
    """Yield an MLflow without users, that listens in the test's directory, where the passwords are too."""
    fake = FakeMlflow()
    for name, password in PASSWORDS.items():
        (tmp_path / f"mlflow.user-{name}-password").write_text(f"{password}\n")
    (tmp_path / "mlflow.admin-password").write_text(ADMIN)

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given = json.loads(body) if body else dict(parse_qsl(url.query))
            name, _, password = base64.b64decode(self.headers["Authorization"].split()[1]).decode().partition(":")
            try:
                status, answer = 200, fake.answer(self.command, url.path.removeprefix("/api/"), (name, password), given)
            except RefusedError as refused:
                status, code, message = refused.args
                answer = {"error_code": code, "message": message}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer or {}).encode())

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_arguments: Any) -> None:
            pass

    listener = Listener(str(tmp_path / "live.sock"), Handler)
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield fake
    listener.shutdown()
    listener.server_close()


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the module on these users, and sees to it that it shows no password."""

    def run_module(*users: dict[str, Any], check: bool = False, **others: Any) -> dict[str, Any]:
        options = {"users": list(users), "credentials_dir": str(tmp_path), "socket": str(tmp_path / "live.sock")}
        arguments = {**options, **others, "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            mlflow_users.main()
        printed = capsys.readouterr().out
        assert not [secret for secret in SECRETS if secret in printed]
        return dict(json.loads(printed))

    return run_module


@pytest.fixture
def kept(mlflow: FakeMlflow, run: Run) -> FakeMlflow:
    """Return an MLflow that is as declared."""
    run(ANN, BOB)
    mlflow.writes.clear()
    return mlflow


def test_what_is_missing_is_made(mlflow: FakeMlflow, run: Run) -> None:
    result = run(ANN, BOB)
    assert result["changes"] == ["create experiment churn", "create user ann", "create user bob"]
    assert {name: (user["is_admin"], user["password"]) for name, user in mlflow.users.items()} == {
        "admin": (True, ADMIN),
        "ann": (False, PASSWORDS["ann"]),
        "bob": (True, PASSWORDS["bob"]),
    }
    # What only takes a permission away makes nothing.
    assert list(mlflow.experiments) == ["churn"]
    assert mlflow.grants == {("ann", "experiment", "1"): "EDIT", ("ann", "registered_model", "*"): "READ"}
    after = {"state": "present", "experiment churn": "EDIT", "registered_model *": "READ"}
    assert result["diff"][1] == {"before_header": "user ann", "after_header": "user ann", "before": {}, "after": after}


def test_a_second_run_changes_nothing(kept: FakeMlflow, run: Run) -> None:
    result = run(ANN, BOB)
    assert (result["changed"], result["changes"], result["diff"], kept.writes) == (False, [], [], [])


def change_password(mlflow: FakeMlflow) -> None:
    mlflow.users["ann"]["password"] = "changed-by-hand"


def change_password_on_another_worker(mlflow: FakeMlflow) -> None:
    mlflow.remembered.add(("ann", PASSWORDS["ann"]))
    change_password(mlflow)


def make_admin(mlflow: FakeMlflow) -> None:
    mlflow.users["ann"]["is_admin"] = True


def take_admin(mlflow: FakeMlflow) -> None:
    mlflow.users["bob"]["is_admin"] = False


def widen(mlflow: FakeMlflow) -> None:
    mlflow.grants["ann", "experiment", "1"] = "MANAGE"


def narrow(mlflow: FakeMlflow) -> None:
    mlflow.grants["ann", "experiment", "1"] = "READ"


def revoke(mlflow: FakeMlflow) -> None:
    del mlflow.grants["ann", "registered_model", "*"]


def grant_what_was_taken(mlflow: FakeMlflow) -> None:
    mlflow.experiments["old"] = {"experiment_id": "2", "lifecycle_stage": "active"}
    mlflow.grants["ann", "experiment", "2"] = "READ"


def delete_user(mlflow: FakeMlflow) -> None:
    mlflow.delete_user(("admin", ADMIN), "bob")


def replace_experiment(mlflow: FakeMlflow) -> None:
    mlflow.experiments["churn"]["experiment_id"] = "7"


DRIFTS = [
    (change_password, "update user ann: password"),
    (change_password_on_another_worker, "update user ann: password"),
    (make_admin, "update user ann: is_admin"),
    (take_admin, "update user bob: is_admin"),
    (widen, "update user ann: experiment churn"),
    (narrow, "update user ann: experiment churn"),
    (revoke, "update user ann: registered_model *"),
    (grant_what_was_taken, "update user ann: experiment old"),
    (delete_user, "create user bob"),
    (replace_experiment, "update user ann: experiment churn"),
]


@pytest.mark.parametrize(("drift", "line"), DRIFTS, ids=[drift.__name__ for drift, _ in DRIFTS])
def test_drift_is_foretold_then_mended_then_gone(
    kept: FakeMlflow, run: Run, drift: Callable[[FakeMlflow], None], line: str
) -> None:
    wanted = {name: (user["is_admin"], user["password"]) for name, user in kept.users.items()}
    drift(kept)
    before = kept.state()
    foretold = run(ANN, BOB, check=True)
    assert (kept.state(), kept.writes) == (before, [])
    done = run(ANN, BOB)
    assert [foretold[key] for key in ("changed", "changes", "diff")] == [
        done[key] for key in ("changed", "changes", "diff")
    ]
    assert done["changes"] == [line]
    assert {name: (user["is_admin"], user["password"]) for name, user in kept.users.items()} == wanted
    assert kept.grants["ann", "experiment", kept.experiments["churn"]["experiment_id"]] == "EDIT"
    assert ("ann", "experiment", "2") not in kept.grants
    assert not run(ANN, BOB)["changed"]


def test_a_permission_is_changed_in_place(kept: FakeMlflow, run: Run) -> None:
    narrow(kept)
    result = run(ANN, BOB)
    assert kept.writes == ["roles/permissions/update"]
    assert (result["diff"][0]["before"], result["diff"][0]["after"]) == (
        {"experiment churn": "READ"},
        {"experiment churn": "EDIT"},
    )


def test_a_new_secret_is_the_new_password(kept: FakeMlflow, run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mlflow.user-ann-password").write_text("another-password")
    result = run(ANN, BOB)
    assert kept.users["ann"]["password"] == "another-password"
    assert result["changes"] == ["update user ann: password"]
    assert "another-password" not in json.dumps(result)


def test_an_absent_user_is_deleted_and_what_is_not_declared_stays(kept: FakeMlflow, run: Run) -> None:
    kept.users["eve"] = {"id": 9, "is_admin": False, "password": "of-eve"}
    kept.users["zoe"] = {"id": 10, "is_admin": False, "password": "of-zoe"}
    kept.grants["ann", "experiment", "5"] = "MANAGE"
    result = run(ANN, EVE)
    assert result["changes"] == ["delete user eve"]
    assert {"bob", "zoe"} <= set(kept.users)
    assert kept.grants["ann", "experiment", "5"] == "MANAGE"
    assert not run(ANN, EVE)["changed"]


def test_what_a_role_gives_does_not_count(kept: FakeMlflow, run: Run) -> None:
    kept.role_grants["ann", "experiment", "1"] = "READ"
    assert not run(ANN, BOB)["changed"]
    revoke(kept)
    kept.role_grants["ann", "registered_model", "*"] = "READ"
    assert run(ANN, BOB)["changes"] == ["update user ann: registered_model *"]


def test_a_model_that_is_named_is_made_once(mlflow: FakeMlflow, run: Run) -> None:
    grants = {"registered_models": [{"name": "m", "permission": "USE"}]}
    result = run({"name": "ann", **grants}, {"name": "bob", **grants})
    assert result["changes"] == ["create registered_model m", "create user ann", "create user bob"]
    assert mlflow.models == {"m"}
    assert [key[0] for key in mlflow.grants] == ["ann", "bob"]


def test_a_deleted_experiment_is_refused_and_nothing_is_changed(mlflow: FakeMlflow, run: Run) -> None:
    mlflow.experiments["churn"] = {"experiment_id": "4", "lifecycle_stage": "deleted"}
    result = run(BOB, ANN)
    assert result["failed"]
    deleted = (
        "experiment of user ann = 'churn': it is there, but deleted. Fix: restore it (mlflow experiments restore -x 4)"
    )
    assert deleted in result["msg"]
    assert mlflow.writes == []
    taken = {"name": "ann", "experiments": [{"name": "churn", "permission": "NO_PERMISSIONS"}]}
    assert run(taken)["changes"] == ["create user ann"]


def test_a_prompt_is_refused_and_nothing_is_changed(mlflow: FakeMlflow, run: Run) -> None:
    mlflow.models, mlflow.tags = {"greeting"}, [{"key": "mlflow.prompt.is_prompt", "value": "true"}]
    result = run({"name": "ann", "registered_models": [{"name": "greeting", "permission": "READ"}]})
    assert "registered_model of user ann = 'greeting': it is a prompt" in result["msg"]
    assert mlflow.writes == []


def test_every_password_that_cannot_be_used_is_named_at_once(
    mlflow: FakeMlflow, run: Run, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "mlflow.user-ann-password").write_text("short")
    (tmp_path / "mlflow.user-bob-password").unlink()
    result = run(ANN, BOB)
    assert "the password of ann" in result["msg"]
    assert "shorter than 12 characters" in result["msg"]
    assert "the password of bob" in result["msg"]
    assert "run the role server_secrets before" in result["msg"]
    assert mlflow.writes == []


def test_bad_users_are_refused_before_anything_is_asked(run: Run) -> None:
    result = run({"name": "ann"}, {"name": "Ann"}, {"name": "admin"})
    assert [word in result["msg"] for word in ("users[0].name", "users[1].name", "users[2].name")] == [True] * 3


@pytest.mark.parametrize("check", [False, True])
def test_a_server_that_is_away_is_told_with_the_next_step(
    mlflow: FakeMlflow, run: Run, tmp_path: pathlib.Path, check: bool
) -> None:
    (tmp_path / "live.sock").unlink()
    (tmp_path / "live.sock").symlink_to(tmp_path / "nothing")
    result = run(ANN, check=check)
    assert result["failed"]
    assert "MLflow does not answer" in result["msg"]
    assert "Next: systemctl status mlflow" in result["msg"]


def test_check_mode_before_the_first_start_foretells_all_users(
    mlflow: FakeMlflow, run: Run, tmp_path: pathlib.Path
) -> None:
    foretold = run(ANN, BOB, EVE, check=True)
    for path in tmp_path.iterdir():
        if path.name.startswith("mlflow."):
            path.rename(tmp_path / f"kept-{path.name}")
    (tmp_path / "live.sock").rename(tmp_path / "later.sock")
    assert run(ANN, BOB, EVE, check=True)["changes"] == foretold["changes"]
    assert "mlflow.admin-password is not there. Next: run the role server_secrets before" in run(EVE)["msg"]


def test_check_mode_takes_a_password_that_is_not_written_yet_for_another(
    kept: FakeMlflow, run: Run, tmp_path: pathlib.Path
) -> None:
    unwritten = ["mlflow.user-bob-password", "mlflow.admin-password"]
    (tmp_path / "mlflow.user-ann-password").unlink()
    assert run(ANN, BOB, check=True, unwritten=unwritten)["changes"] == [
        "update user ann: password",
        "update user bob: password",
    ]
    assert not run(BOB, unwritten=unwritten)["changed"]


def test_a_refused_administrator_is_told_with_the_next_step(mlflow: FakeMlflow, run: Run) -> None:
    mlflow.users["admin"]["password"] = "changed-by-hand"
    assert "Next: systemctl restart mlflow, which applies it" in run(ANN)["msg"]


def test_a_failure_says_what_was_begun_and_shows_no_hash(mlflow: FakeMlflow, run: Run) -> None:
    message = "User (username=bob) already exists. Error: [parameters: ('bob', 'scrypt:32768:8:1$salt$hash')]"
    mlflow.faults["2.0/mlflow/users/update-admin"] = RefusedError(400, "RESOURCE_ALREADY_EXISTS", message)
    mlflow.users["eve"] = {"id": 9, "is_admin": False, "password": "of-eve"}
    result = run(ANN, BOB, EVE)
    assert result["failed"]
    # Whoever is to go is gone, whatever else fails.
    assert result["changes"] == ["delete user eve", "create experiment churn", "create user ann", "create user bob"]
    assert "eve" not in mlflow.users
    assert result["msg"].startswith("user bob: MLflow answered 400 to 2.0/mlflow/users/update-admin")
    assert "scrypt" not in json.dumps(result)
    mlflow.faults.clear()
    assert run(ANN, BOB)["changes"] == ["update user bob: is_admin"]
