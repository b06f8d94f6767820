"""MySQL as the engine: one variable, and a real server of that protocol with the users and databases MLflow needs."""

from __future__ import annotations

import pathlib
import secrets
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PROJECT = "empty-project"
NAME = f"mysql-{secrets.token_hex(2)}"
INSTANCE = f"https://sqladmin.googleapis.com/v1/projects/{PROJECT}/instances/{NAME}"
ACCOUNT = f"{NAME}-server@{PROJECT}.iam.gserviceaccount.com"
# The database and what it stands on; its server would be the same as PostgreSQL's.
PROVISION = ("playbooks/provision.yml", "--tags", "gcp_project,gcp_identity,gcp_network,gcp_secret,gcp_sql")
DESTROY = (f"platform_destroy_project={PROJECT}", f"platform_destroy_database={NAME}")
Play = Callable[..., Any]


@pytest.fixture(scope="module")
def inventory(play: Play, make_inventory: Callable[..., pathlib.Path]) -> Iterator[pathlib.Path]:
    """Return the inventory of a deployment with MySQL. Whatever the tests left is removed afterwards."""
    made = make_inventory(projects=[PROJECT], platform_name=NAME, platform_sql_database_version="MYSQL_8_4")
    yield made
    removed = play("playbooks/destroy.yml", *(word for name in DESTROY for word in ("-e", name)), inventory=made)
    assert removed.code == 0, removed.output


@pytest.fixture(scope="module")
def provisioned(play: Play, inventory: pathlib.Path) -> Any:
    """Return the first run."""
    first = play(*PROVISION, inventory=inventory)
    assert first.code == 0, first.output
    return first


@pytest.mark.usefixtures("provisioned")
def test_a_second_run_changes_nothing(play: Play, inventory: pathlib.Path, written: Callable[..., list[str]]) -> None:
    runs = []
    assert written(lambda: runs.append(play(*PROVISION, inventory=inventory))) == []
    assert (runs[0].code, runs[0].changed) == (0, 0), runs[0].output


@pytest.mark.usefixtures("provisioned")
def test_the_instance_has_what_mysql_spells_otherwise(cloud: Any) -> None:
    settings = cloud.get(INSTANCE)["settings"]
    assert settings["backupConfiguration"]["binaryLogEnabled"] is True
    assert settings["databaseFlags"] == [{"name": "cloudsql_iam_authentication", "value": "on"}]
    users = {user["name"]: user for user in cloud.get(f"{INSTANCE}/users")["items"]}
    user = users[f"{NAME}-server"]
    assert (user["host"], user["iamEmail"], user["databaseRoles"]) == ("%", ACCOUNT, ["cloudsqlsuperuser"])
    charsets = {item["name"]: item["charset"] for item in cloud.get(f"{INSTANCE}/databases")["items"]}
    assert (charsets["mlflow"], charsets["mlflow_auth"]) == ("utf8mb4", "utf8mb4")


@pytest.mark.usefixtures("provisioned")
def test_the_server_lets_the_account_in_by_iam_alone() -> None:
    shown = sql(f"SHOW GRANTS FOR '{NAME}-server'@'%'; SHOW DATABASES LIKE 'mlflow%'")

    assert "IDENTIFIED VIA unix_socket USING 'mysql'" in shown
    assert f"SET DEFAULT ROLE `cloudsqlsuperuser` FOR `{NAME}-server`@`%`" in shown
    assert {"mlflow", "mlflow_auth"} <= set(shown.splitlines())


@pytest.mark.usefixtures("provisioned")
def test_a_role_taken_away_by_hand_is_given_again(play: Play, inventory: pathlib.Path, cloud: Any) -> None:
    sql("CREATE ROLE IF NOT EXISTS reader")
    revoke = f"{INSTANCE}/users?name={ACCOUNT}&host=%25&databaseRoles=reader&revokeExistingRoles=true"
    assert cloud.call("PUT", revoke, {"name": ACCOUNT, "host": "%"}).status_code == 200

    mended = play(*PROVISION, inventory=inventory)

    assert (mended.code, mended.changed) == (0, 1), mended.output
    users = {user["name"]: user for user in cloud.get(f"{INSTANCE}/users")["items"]}
    assert users[f"{NAME}-server"]["databaseRoles"] == ["cloudsqlsuperuser"]


@pytest.mark.usefixtures("provisioned")
def test_the_engine_cannot_be_changed_behind_the_operators_back(
    play: Play, inventory: pathlib.Path, written: Callable[..., list[str]]
) -> None:
    other = (*PROVISION, "-e", "platform_sql_database_version=POSTGRES_17")
    runs = []
    assert written(lambda: runs.append(play(*other, inventory=inventory))) == []
    assert runs[0].code != 0
    assert "databaseVersion" in runs[0].output


def sql(statements: str) -> str:
    """Return what the server answers its administrator."""
    client = [
        "mariadb",
        "--skip-ssl",
        "--socket=/run/cloudsql/mysql.sock",
        "--user=cloudsqladmin",
        "--skip-column-names",
    ]
    command = ["docker", "exec", f"cloudsql-{NAME}", *client, f"--execute={statements}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
