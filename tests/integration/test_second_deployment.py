"""A second deployment, in an empty project, with MySQL behind Private Service Connect.

Checked, interrupted, finished, used, and taken away again without a trace.
"""

from __future__ import annotations

import base64
import pathlib
import secrets
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from emulator.server import METHODS
from tests.integration.conftest import interrupted

PROJECT = "empty-project"
COMPUTE = f"https://compute.googleapis.com/compute/v1/projects/{PROJECT}"
# Another each time: in the emulated cloud a Cloud SQL instance's name stays taken after the instance is deleted.
NAME = f"second-{secrets.token_hex(2)}"
BUCKET = f"{PROJECT}-{NAME}-artifacts"
SERVER = f"{COMPUTE}/zones/europe-west1-b/instances/{NAME}-1"
DATABASE = f"https://sqladmin.googleapis.com/v1/projects/{PROJECT}/instances/{NAME}"
STORAGE = "https://storage.googleapis.com/storage/v1/b"
POLICY = f"https://cloudresourcemanager.googleapis.com/v1/projects/{PROJECT}:getIamPolicy"
CONFIRMED = ("-e", f"platform_destroy_project={PROJECT}")
LOGS = f"{PROJECT}-{NAME}-logs"
# Outlives the deployment, with the sets in it.
SETS = f"{PROJECT}-{NAME}-backups"
NAMED = {"bucket": BUCKET, "database": NAME, "logs": LOGS}
WHOLE = (*CONFIRMED, *(part for what, name in NAMED.items() for part in ("-e", f"platform_destroy_{what}={name}")))
LISTS = [
    *(f"{COMPUTE}/global/{kind}" for kind in ("networks", "firewalls", "addresses")),
    *(
        f"{COMPUTE}/regions/europe-west1/{kind}"
        for kind in ("subnetworks", "routers", "addresses", "resourcePolicies", "forwardingRules")
    ),
    *(f"{COMPUTE}/zones/europe-west1-b/{kind}" for kind in ("instances", "disks")),
    f"https://dns.googleapis.com/dns/v1/projects/{PROJECT}/managedZones",
    f"https://sqladmin.googleapis.com/v1/projects/{PROJECT}/instances",
    f"https://secretmanager.googleapis.com/v1/projects/{PROJECT}/secrets",
    f"https://iam.googleapis.com/v1/projects/{PROJECT}/serviceAccounts",
    f"{STORAGE}?project={PROJECT}",
    *(f"https://logging.googleapis.com/v2/projects/{PROJECT}/{kind}" for kind in ("sinks", "metrics")),
    f"https://monitoring.googleapis.com/v1/projects/{PROJECT}/dashboards",
    *(
        f"https://monitoring.googleapis.com/v3/projects/{PROJECT}/{kind}"
        for kind in ("alertPolicies", "notificationChannels", "uptimeCheckConfigs")
    ),
]
Play = Callable[..., Any]
Make = Callable[..., pathlib.Path]
Written = Callable[..., list[str]]
ACCOUNT = f"{NAME}-server@{PROJECT}.iam.gserviceaccount.com"
VARIABLES: dict[str, Any] = {
    "platform_name": NAME,
    "platform_domain": f"{NAME}.localhost",
    "platform_operators": ["user:ann@example.com"],
    "platform_sql_database_version": "MYSQL_8_4",
    "platform_sql_private_service_connect_enabled": True,
    "platform_mlflow_users": [{"name": "ann@example.com", "experiments": [{"name": "churn", "permission": "READ"}]}],
}


def test_an_empty_project_is_checked_then_interrupted(
    play: Play,
    environment: dict[str, str],
    cloud: Any,
    before: tuple[list[str], Any],
    protected: pathlib.Path,
    written: Written,
) -> None:
    assert before
    checks = []
    assert written(lambda: checks.append(play("site.yml", "--check", "--diff", inventory=protected))) == []
    assert checks[0].code == 0, checks[0].output
    assert checks[0].changed > 0
    assert f"{NAME}-allow-https" in checks[0].output

    # Some of the network is there, and the rest under way.
    network = f"{COMPUTE}/global/networks/{NAME}"
    interrupted(environment, protected, lambda: status(cloud, network) == 200, "playbooks/provision.yml")
    assert status(cloud, SERVER) == 404


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize(
    ("method", "fault", "said"),
    [
        # For each method alone these two are in tests/provision.
        pytest.param(
            *("storage.buckets.insert", {"no_answer": "before", "times": 1000}, "no answer from"),
            marks=pytest.mark.long,
        ),
        pytest.param(
            *("secretmanager.projects.secrets.create", {"status": 503, "times": 1000}, "(HTTP 503"),
            marks=pytest.mark.long,
        ),
        ("sql.instances.insert", {"operation_error": "The zone has no room."}, "The zone has no room."),
        ("compute.instances.insert", {"operation_hangs": True}, None),
    ],
    ids=["never an answer", "away for long", "the operation fails", "the operation hangs"],
)
def test_what_fails_for_long_stops_site_with_a_clear_error(
    play: Play, faults: Faults, environment: dict[str, str], protected: pathlib.Path, method: str, fault: Any, said: str
) -> None:
    faults.ask([{"method": method, **fault}])
    if said is None:
        # Waited for as long as the module's timeout says: who gives up before that loses nothing.
        interrupted(environment, protected, lambda: not faults.left(), "site.yml")
        return
    stopped = play("site.yml", inventory=protected)
    assert stopped.code != 0
    assert said in stopped.output


def test_what_passes_stops_nobody_and_the_next_run_changes_nothing(
    play: Play, faults: Faults, cloud: Any, protected: pathlib.Path
) -> None:
    asked = passing_faults()
    faults.ask(asked)

    # Its last part is a user's work: a run, an artifact, a model, with the database away in between.
    finished = play("site.yml", inventory=protected)

    assert finished.code == 0, finished.output
    assert finished.changed > 0
    assert len(asked) - len(faults.left()) > 15
    faults.clear()
    assert cloud.get(SERVER)["status"] == "RUNNING"
    # What MySQL has other settings for.
    for again in (
        play("playbooks/provision.yml", inventory=protected),
        play("playbooks/configure.yml", "--tags", "cloud_sql_proxy,mlflow", inventory=protected),
    ):
        assert (again.code, again.changed) == (0, 0), again.output


@pytest.mark.usefixtures("before")
def test_the_database_is_mysql_that_only_its_endpoint_and_the_servers_account_reach(cloud: Any) -> None:
    instance = cloud.get(DATABASE)
    settings = instance["settings"]
    assert settings["backupConfiguration"]["binaryLogEnabled"] is True
    assert settings["databaseFlags"] == [{"name": "cloudsql_iam_authentication", "value": "on"}]
    assert not instance.get("ipAddresses")
    endpoint = cloud.get(f"{COMPUTE}/regions/europe-west1/forwardingRules/{NAME}-private-service-connect")
    assert endpoint["pscConnectionStatus"] == "ACCEPTED"
    (user,) = (user for user in cloud.get(f"{DATABASE}/users")["items"] if user["name"] == f"{NAME}-server")
    assert (user["host"], user["iamEmail"], user["databaseRoles"]) == ("%", ACCOUNT, ["cloudsqlsuperuser"])
    charsets = {item["name"]: item["charset"] for item in cloud.get(f"{DATABASE}/databases")["items"]}
    assert (charsets["mlflow"], charsets["mlflow_auth"]) == ("utf8mb4", "utf8mb4")
    shown = sql(f"SHOW GRANTS FOR '{NAME}-server'@'%'; SELECT count(*) > 50 FROM information_schema.tables")
    assert "IDENTIFIED VIA unix_socket USING 'mysql'" in shown
    assert shown.split()[-1] == "1"


@pytest.mark.usefixtures("before")
def test_a_declared_user_logs_in_with_a_secret_of_its_own(cloud: Any, environment: dict[str, str]) -> None:
    secret = f"https://secretmanager.googleapis.com/v1/projects/{PROJECT}/secrets/{NAME}-user-ann-example-com-password"
    payload = cloud.get(f"{secret}/versions/latest:access")["payload"]["data"]
    with requests.Session() as session:
        session.trust_env = False
        session.proxies = {"https": environment["HTTPS_PROXY"]}
        session.verify = environment["REQUESTS_CA_BUNDLE"]
        session.auth = ("ann@example.com", base64.b64decode(payload).decode())
        address = f"https://{NAME}.localhost/api/2.0/mlflow/experiments"
        found = session.get(f"{address}/search", params={"max_results": 1000}, timeout=60).json()
        (churn,) = found["experiments"]
        refused = session.post(f"{address}/delete", json={"experiment_id": churn["experiment_id"]}, timeout=60)
    assert churn["name"] == "churn"
    assert refused.status_code == 403


@pytest.mark.usefixtures("before")
def test_a_role_taken_away_by_hand_is_given_again(play: Play, cloud: Any, protected: pathlib.Path) -> None:
    sql("CREATE ROLE IF NOT EXISTS reader")
    revoke = f"{DATABASE}/users?name={ACCOUNT}&host=%25&databaseRoles=reader&revokeExistingRoles=true"
    assert cloud.call("PUT", revoke, {"name": ACCOUNT, "host": "%"}).status_code == 200

    mended = play("playbooks/provision.yml", "--tags", "gcp_sql", inventory=protected)

    assert (mended.code, mended.changed) == (0, 1), mended.output
    users = {user["name"]: user for user in cloud.get(f"{DATABASE}/users")["items"]}
    assert users[f"{NAME}-server"]["databaseRoles"] == ["cloudsqlsuperuser"]


@pytest.mark.usefixtures("before")
def test_the_engine_cannot_be_changed_behind_the_operators_back(
    play: Play, protected: pathlib.Path, written: Written
) -> None:
    other = ("playbooks/provision.yml", "--tags", "gcp_sql", "-e", "platform_sql_database_version=POSTGRES_17")
    runs = []
    assert written(lambda: runs.append(play(*other, inventory=protected))) == []
    assert runs[0].code != 0
    assert "databaseVersion" in runs[0].output


@pytest.mark.long
@pytest.mark.usefixtures("before")
def test_a_larger_machine_takes_a_stop_that_is_allowed(
    play: Play, cloud: Any, protected: pathlib.Path, written: Written
) -> None:
    larger = ("playbooks/provision.yml", "--tags", "gcp_instance", "-e", "platform_machine_type=e2-standard-4")
    refused = []
    assert written(lambda: refused.append(play(*larger, inventory=protected))) == []
    assert refused[0].code != 0
    assert "machineType is e2-standard-2, wanted e2-standard-4" in refused[0].output

    allowed = (*larger, "-e", "platform_stop_enabled=true")
    checks = []
    assert written(lambda: checks.append(play(*allowed, "--check", "--diff", inventory=protected))) == []
    changed = play(*allowed, inventory=protected)
    again = play(*allowed, inventory=protected)

    assert [(run.code, run.changed) for run in (checks[0], changed, again)] == [(0, 1), (0, 1), (0, 0)], changed.output
    machine = cloud.get(SERVER)
    assert (machine["machineType"].rsplit("/", 1)[-1], machine["status"]) == ("e2-standard-4", "RUNNING")
    assert play(*allowed[:3], "-e", "platform_stop_enabled=true", inventory=protected).changed == 1


@pytest.mark.usefixtures("before")
def test_what_is_protected_stays(
    play: Play, protected: pathlib.Path, unprotected: pathlib.Path, written: Written
) -> None:
    refused = []
    assert written(lambda: refused.append(play("playbooks/destroy.yml", *WHOLE, inventory=protected))) == []
    assert refused[0].code != 0
    assert "deletionProtection is on, so it was not deleted" in refused[0].output
    assert "set platform_deletion_protection_enabled to false" in refused[0].output

    off = play("playbooks/provision.yml", inventory=unprotected)
    # The server's, and the database's.
    assert (off.code, off.changed) == (0, 2), off.output


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((), f"is not the project's id. Run it again and type {PROJECT}"),
        (("-e", "platform_destroy_project=demo-project"), f"not this deployment's project, which is {PROJECT}"),
        ((*CONFIRMED, "-e", "platform_destroy_bucket=a-bucket"), f"not this deployment's bucket, which is {BUCKET}"),
        ((*CONFIRMED, "--check"), f"delete compute.instances {NAME}-1"),
    ],
    ids=["no answer", "another project", "another bucket", "check mode"],
)
def test_nothing_goes_unless_the_project_is_named(
    play: Play, unprotected: pathlib.Path, written: Written, answer: tuple[str, ...], said: str
) -> None:
    runs = []
    assert written(lambda: runs.append(play("playbooks/destroy.yml", *answer, inventory=unprotected))) == []
    assert (runs[0].code == 0) == ("--check" in answer)
    assert said in runs[0].output


@pytest.mark.usefixtures("before")
def test_bucket_and_database_stay_unless_named(play: Play, cloud: Any, unprotected: pathlib.Path) -> None:
    upload = f"https://storage.googleapis.com/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=1/model.pkl"
    for _version in range(2):
        assert cloud.call("POST", upload, {"a": "model"}).status_code == 200

    removed = play("playbooks/destroy.yml", *CONFIRMED, inventory=unprotected)

    assert removed.code == 0, removed.output
    kept = (
        f"keep the bucket {BUCKET}",
        f"keep the backup sets in the bucket {SETS}",
        f"keep the logs in the bucket {LOGS}",
        f"keep the Cloud SQL instance {NAME}",
    )
    for line in (*kept, f"delete compute.instances {NAME}-1"):
        assert line in removed.output
    assert status(cloud, SERVER) == 404
    assert status(cloud, f"{STORAGE}/{BUCKET}/o/1%2Fmodel.pkl") == 200
    assert cloud.get(DATABASE)["state"] == "RUNNABLE"
    again = play("playbooks/destroy.yml", *CONFIRMED, inventory=unprotected)
    assert (again.code, again.changed) == (0, 0), again.output


def test_an_interrupted_removal_is_finished_and_leaves_nothing(
    play: Play,
    environment: dict[str, str],
    cloud: Any,
    before: tuple[list[str], Any],
    unprotected: pathlib.Path,
) -> None:
    interrupted(environment, unprotected, lambda: status(cloud, DATABASE) != 200, "playbooks/destroy.yml", *WHOLE)

    finished = play("playbooks/destroy.yml", *WHOLE, inventory=unprotected)
    assert finished.code == 0, finished.output
    assert finished.changed > 0
    assert everything(cloud) == before

    again = play("playbooks/destroy.yml", *WHOLE, inventory=unprotected)
    assert (again.code, again.changed) == (0, 0), again.output


class Faults:
    """What Google is asked to do wrong."""

    def __init__(self, proxy: str) -> None:
        self._url = f"{proxy}/_emulator/faults"

    def ask(self, faults: list[dict[str, Any]]) -> None:
        requests.post(self._url, json=faults, timeout=30).raise_for_status()

    def left(self) -> list[dict[str, Any]]:
        """Return the faults that nobody has met yet."""
        found: list[dict[str, Any]] = requests.get(self._url, timeout=30).json()
        return found

    def clear(self) -> None:
        requests.delete(self._url, timeout=30).raise_for_status()


@pytest.fixture
def faults(environment: dict[str, str]) -> Iterator[Faults]:
    found = Faults(environment["HTTPS_PROXY"])
    yield found
    found.clear()


def passing_faults() -> list[dict[str, Any]]:
    """Return one fault of those that pass for the next call of every method, and all of them over all methods."""
    found: list[dict[str, Any]] = []
    for number, method in enumerate(sorted(METHODS)):
        maker = next((m for verb in ("insert", "create") if (m := f"{method[:-4]}.{verb}") in METHODS), None)
        if method.startswith("storage.objects.") or method == "compute.instances.list":
            # Called by MLflow's own client, and by the inventory of google.cloud, which try once.
            continue
        if method.endswith(".get") and maker:
            found.append({"method": method, "status": 404, "times": 2, "after": maker})
        elif number % 2:
            found.append({"method": method, "no_answer": "after" if number % 4 == 1 else "before"})
        else:
            found += [{"method": method, "status": code} for code in (429, 500, 503)]
    return found


@pytest.fixture(scope="module")
def before(cloud: Any) -> tuple[list[str], Any]:
    """Return what is in the project before anything is made."""
    return everything(cloud)


@pytest.fixture(scope="module")
def protected(make_inventory: Make) -> pathlib.Path:
    """Return the inventory of the second deployment, as production has it."""
    return make_inventory(projects=[PROJECT], **VARIABLES, platform_deletion_protection_enabled=True)


@pytest.fixture(scope="module")
def unprotected(play: Play, make_inventory: Make) -> Iterator[pathlib.Path]:
    """Return the same without deletion protection. Whatever the tests left is removed afterwards."""
    inventory = make_inventory(projects=[PROJECT], **VARIABLES)
    yield inventory
    play("playbooks/destroy.yml", *WHOLE, inventory=inventory)


def sql(statements: str) -> str:
    """Return what the database answers its administrator."""
    client = ["mariadb", "--skip-ssl", "--socket=/run/cloudsql/mysql.sock", "--user=cloudsqladmin"]
    command = ["docker", "exec", f"cloudsql-{NAME}", *client, "--skip-column-names", f"--execute={statements}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def status(cloud: Any, url: str) -> int:
    """Return the HTTP status of reading something."""
    code: int = cloud.call("GET", url).status_code
    return code


def everything(cloud: Any) -> tuple[list[str], Any]:
    """Return the names of all that is in the project, and who has which role on it."""
    names = []
    for url in LISTS:
        # A service that was never enabled keeps nothing.
        answer = cloud.call("GET", url).json()
        items = [item for key in ("items", "accounts", url.rsplit("/", 1)[-1]) for item in answer.get(key, [])]
        names += [f"{url.rsplit('/', 1)[-1]} {item['name']}" for item in items if item["name"] != SETS]
    bindings = cloud.call("POST", POLICY, {}).json().get("bindings", [])
    return names, sorted((binding["role"], sorted(binding["members"])) for binding in bindings)
