"""The declared users: made, kept as declared, and let in to no more than they were given."""

import base64
import json
import re
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

ADMIN = ("admin", "admin-secret-5c3e")
ANN = ("ann", "ann-secret-2f61")
STRANGER = ("zoe", "zoe-secret-9d07")
BY_HAND = ("ann", "ann-secret-by-hand-5")
BOBS_FILE = "/etc/credstore/mlflow.user-bob-password"
# What every password here begins with.
SECRETS = ("admin-secret-", "ann-secret-", "bob-secret-")
HASHES = "runuser -u postgres -- psql -Atc 'SELECT username, password_hash FROM users ORDER BY 1' mlflow_auth"

Converge = Callable[..., "subprocess.CompletedProcess[str]"]


def call(host: Host, login: tuple[str, str], verb: str, path: str, **content: Any) -> tuple[int, Any]:
    """Status and JSON answer of one call over the live socket."""
    token = base64.b64encode(":".join(login).encode()).decode()
    command = (
        f"curl --silent --unix-socket /run/mlflow/live.sock --request {verb} --write-out '\\n%{{http_code}}'"
        f" --header 'Authorization: Basic {token}' --header 'Content-Type: application/json'"
    )
    if verb == "GET":
        command += " --get" + "".join(f" --data-urlencode '{key}={value}'" for key, value in content.items())
    else:
        command += f" --data '{json.dumps(content)}'"
    answer, _, status = host.check_output(f"{command} http://mlflow.test/api/{path}").rpartition("\n")
    return int(status), json.loads(answer) if answer.startswith("{") else answer


def bob(host: Host) -> tuple[str, str]:
    return "bob", host.file(BOBS_FILE).content_string


def experiment_id(host: Host, name: str) -> str:
    _, answer = call(host, ADMIN, "GET", "2.0/mlflow/experiments/get-by-name", experiment_name=name)
    return answer["experiment"]["experiment_id"]


def users(host: Host) -> dict[str, bool]:
    _, answer = call(host, ADMIN, "GET", "2.0/mlflow/users/list")
    return {user["username"]: user["is_admin"] for user in answer["users"]}


def grants(host: Host, username: str) -> dict[tuple[str, str], str]:
    _, answer = call(host, ADMIN, "GET", "3.0/mlflow/users/permissions/list", username=username)
    return {(row["resource_type"], row["resource_pattern"]): row["permission"] for row in answer["permissions"]}


def changes(run: "subprocess.CompletedProcess[str]") -> list[str]:
    """What the module says it did, or would do."""
    assert run.returncode == 0, run.stdout
    assert not [secret for secret in SECRETS if secret in run.stdout]
    told = re.search(r"^ +changes:(?: \[\])?\n((?: +- .*\n)*)", run.stdout, re.MULTILINE)
    assert told, run.stdout
    return [line.strip().removeprefix("- ").strip("'\"") for line in told[1].splitlines()]


@pytest.fixture
def stranger(host: Host):
    """Somebody whom nobody gave anything."""
    call(host, ADMIN, "POST", "2.0/mlflow/users/create", username=STRANGER[0], password=STRANGER[1])
    yield STRANGER
    call(host, ADMIN, "DELETE", "2.0/mlflow/users/delete", username=STRANGER[0])


def test_the_users_are_as_declared(host: Host) -> None:
    assert users(host).items() >= {"admin": True, "ann": False, "bob": True}.items()
    assert grants(host, "ann") == {
        ("experiment", experiment_id(host, "churn")): "READ",
        ("registered_model", "churn-model"): "EDIT",
    }


def test_a_reader_reads_and_nobody_else_sees_the_experiment(host: Host, stranger: tuple[str, str]) -> None:
    churn = experiment_id(host, "churn")
    seen = {}
    for login in (ANN, stranger, bob(host)):
        read, _ = call(host, login, "GET", "2.0/mlflow/experiments/get", experiment_id=churn)
        written, _ = call(host, login, "POST", "2.0/mlflow/runs/create", experiment_id=churn)
        _, found = call(host, login, "GET", "2.0/mlflow/experiments/search", max_results=1000)
        names = [experiment["name"] for experiment in found.get("experiments", [])]
        model, _ = call(
            host, login, "PATCH", "2.0/mlflow/registered-models/update", name="churn-model", description="x"
        )
        seen[login[0]] = (read, written, names if login[0] != "bob" else "churn" in names, model)
    assert seen == {"ann": (200, 403, ["churn"], 200), "zoe": (403, 403, [], 403), "bob": (200, 200, True, 200)}


def test_drift_and_a_new_password_are_foretold_mended_and_gone(host: Host, converge: Converge) -> None:
    churn = experiment_id(host, "churn")
    call(host, ADMIN, "PATCH", "2.0/mlflow/users/update-password", username="ann", password=BY_HAND[1])
    call(host, ADMIN, "PATCH", "2.0/mlflow/users/update-admin", username="ann", is_admin=True)
    call(host, ADMIN, "PATCH", "2.0/mlflow/users/update-admin", username="bob", is_admin=False)
    ann = {"username": "ann", "resource_type": "experiment", "resource_id": churn}
    call(host, ADMIN, "POST", "3.0/mlflow/users/permissions/revoke", **ann)
    call(host, ADMIN, "POST", "3.0/mlflow/users/permissions/grant", **ann, permission="MANAGE")
    ann |= {"resource_type": "registered_model", "resource_id": "churn-model"}
    call(host, ADMIN, "POST", "3.0/mlflow/users/permissions/revoke", **ann)
    call(host, ADMIN, "POST", "2.0/mlflow/users/create", username="eve", password="of-somebody-who-left")
    host.check_output(f"printf %s bob-secret-{time.time_ns()} >{BOBS_FILE}")
    kept = [
        {"name": "eve", "state": "absent"},
        {
            "name": "ann",
            "experiments": [{"name": "churn", "permission": "READ"}],
            "registered_models": [{"name": "churn-model", "permission": "EDIT"}],
        },
        {"name": "bob", "is_admin": True},
    ]
    before = users(host), grants(host, "ann"), host.check_output(HASHES)

    checked = converge("-vvv", "--check", "--diff", entry_point="users", mlflow_users=kept)

    assert before == (users(host), grants(host, "ann"), host.check_output(HASHES))
    done = converge("-vvv", "--diff", entry_point="users", mlflow_users=kept)
    again = converge("-vvv", "--diff", entry_point="users", mlflow_users=kept)
    expected = [
        "delete user eve",
        "update user ann: password, is_admin, experiment churn, registered_model churn-model",
        "update user bob: password, is_admin",
    ]
    assert [changes(run) for run in (checked, done, again)] == [expected, expected, []]
    assert users(host) == {"admin": True, "ann": False, "bob": True}
    assert grants(host, "ann") == {("experiment", churn): "READ", ("registered_model", "churn-model"): "EDIT"}
    logins = [call(host, login, "GET", "2.0/mlflow/users/current")[0] for login in (ANN, bob(host))]
    assert logins == [200, 200]
