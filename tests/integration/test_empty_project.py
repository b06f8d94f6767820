"""What becomes of an empty project where site.yml is killed at every role, and where two operators run it at once.

Then a change that is exactly what its check foretold. On the cloud side alone all this is in tests/provision, in every
change.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
import secrets
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.integration.conftest import not_as_foretold, removed_afterwards, results, site_killed_at_every_role

pytestmark = pytest.mark.long
PROJECT = "empty-project"
# Each a single value, and each reaches something else: of the cloud, then of the servers.
CHANGED: dict[str, Any] = {
    "platform_labels": {"team": "research"},
    "platform_operators": ["user:bob@example.com"],
    "platform_email": "others@example.com",
    "platform_https_source_ranges": ["0.0.0.0/0", "203.0.113.0/24"],
    "platform_http_source_ranges": ["0.0.0.0/0", "203.0.113.0/24"],
    "platform_machine_type": "e2-standard-4",
    "platform_stop_enabled": True,
    "platform_disk_size_gib": 60,
    "platform_sql_tier": "db-custom-2-7680",
    "platform_sql_availability_type": "REGIONAL",
    "platform_backup_retention_days": 40,
    "gcp_bucket_storage_class": "NEARLINE",
    "gcp_bucket_soft_delete_days": 14,
    "gcp_identity_project_roles": ["roles/cloudsql.client", "roles/cloudsql.instanceUser", "roles/logging.logWriter"],
    "gcp_instance_snapshot_retention_days": 21,
    "gcp_network_flow_logs": {"enable": True},
    "gcp_observability_backup_hours": 48,
    "gcp_observability_certificate_days": 10,
    "gcp_observability_database_connections": 70,
    "gcp_observability_disk_percent": 80,
    "gcp_observability_error_percent": 10,
    "gcp_observability_log_days": 500,
    "gcp_observability_memory_percent": 80,
    "gcp_sql_backup_count": 30,
    "gcp_sql_backup_start_time": "04:00",
    "gcp_sql_database_flags": {"log_min_duration_statement": "500"},
    "gcp_sql_maintenance_day": 6,
    "gcp_sql_maintenance_hour": 5,
    "gcp_sql_transaction_log_days": 5,
    "platform_backup_hour": 3,
    "platform_gateway_enabled": True,
    "platform_gc_days": 30,
    "platform_mlflow_users": [{"name": "ann@example.com"}],
    "platform_mlflow_workers": 3,
    "platform_nginx_status_port": 8091,
    "platform_reboot_time": "03:30",
    "platform_sql_pool_size": 4,
    "mlflow_auth_cache_ttl_seconds": 30,
    "mlflow_default_permission": "READ",
    "mlflow_start_timeout_seconds": 240,
    "nginx_artifact_scripts_enabled": True,
    "platform_request_timeout_seconds": 1800,
    "ops_agent_journal_units": ["mlflow"],
    "upkeep_journal_mib": 512,
    "upkeep_ntp_servers": ["metadata.google.internal", "time.google.com"],
}
Play = Callable[..., Any]
Make = Callable[..., pathlib.Path]


def stated(kind: str) -> dict[str, Any]:
    """What an inventory says of a deployment with a name of its own: the emulated Cloud SQL takes none again."""
    name = f"{kind}-{secrets.token_hex(2)}"
    return {
        "platform_name": name,
        "platform_domain": f"{name}.localhost",
        "platform_operators": ["user:ann@example.com"],
        # It takes the database away from the other operator.
        "verify_database_outage_enabled": False,
    }


def test_site_killed_at_every_role_is_finished_by_the_next_run(
    play: Play, make_inventory: Make, environment: dict[str, str], tmp_path: pathlib.Path
) -> None:
    variables = stated("killed")
    inventory = make_inventory(projects=[PROJECT], **variables)
    with removed_afterwards(inventory, PROJECT, variables["platform_name"], play):
        site_killed_at_every_role(environment, inventory, tmp_path)

        finished, again = play("site.yml", inventory=inventory), play("site.yml", inventory=inventory)

        assert finished.code == 0, finished.output
        assert finished.changed > 0
        assert (again.code, again.changed) == (0, 0), again.output


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    return stated("shared")


@pytest.fixture(scope="module")
def inventory(make_inventory: Make, play: Play, variables: dict[str, Any]) -> Iterator[pathlib.Path]:
    """Return an inventory of an empty project. What the tests make there is removed afterwards."""
    made = make_inventory(projects=[PROJECT], **variables)
    with removed_afterwards(made, PROJECT, variables["platform_name"], play):
        yield made


@pytest.fixture(scope="module")
def shared(inventory: pathlib.Path, play: Play) -> list[Any]:
    """Two runs of site.yml at once."""
    with concurrent.futures.ThreadPoolExecutor() as operators:
        return [run.result() for run in [operators.submit(play, "site.yml", inventory=inventory) for _ in range(2)]]


def test_two_operators_at_once_end_in_the_right_state(
    shared: list[Any], inventory: pathlib.Path, play: Play, written: Callable[..., list[str]]
) -> None:
    for run in shared:
        assert run.code == 0, run.output
    runs: list[Any] = []
    assert written(lambda: runs.append(play("site.yml", inventory=inventory))) == []
    assert (runs[0].code, runs[0].changed) == (0, 0), runs[0].output


@pytest.mark.usefixtures("shared")
def test_a_check_tells_what_the_run_then_does(
    play: Play, make_inventory: Make, variables: dict[str, Any], written: Callable[..., Any]
) -> None:
    other = make_inventory(projects=[PROJECT], **{**variables, **CHANGED})

    def reported(*arguments: str) -> Any:
        run = play("site.yml", "--diff", *arguments, inventory=other, ANSIBLE_STDOUT_CALLBACK="ansible.posix.json")
        assert run.code == 0, run.output
        return results(run.output)

    checked: list[Any] = []
    assert written(lambda: checked.append(reported("--check"))) == []
    done = reported()

    assert [told for one in done if (told := difference(one))] == [
        told for one in checked[0] if (told := difference(one))
    ]
    assert not_as_foretold(checked[0], done) == set()
    assert sum(size(one) for one in done) >= 50
    assert not [one["named"] for one in reported("--check") if one.get("changed")]


@pytest.mark.usefixtures("shared")
def test_what_users_deleted_goes_from_the_bucket(
    play: Play, make_inventory: Make, variables: dict[str, Any], cloud: Any, environment: dict[str, str]
) -> None:
    name = variables["platform_name"]
    removing = make_inventory(projects=[PROJECT], **{**variables, "platform_gc_days": 30})
    configured = play("playbooks/configure.yml", "--tags", "mlflow", inventory=removing)
    assert configured.code == 0, configured.output
    password = cloud.secret(f"{name}-admin-password", project=PROJECT)
    with requests.Session() as session:
        session.trust_env = False
        session.proxies = {"https": environment["HTTPS_PROXY"]}
        session.verify = environment["REQUESTS_CA_BUNDLE"]
        session.auth = ("admin", password)

        def call(verb: str, path: str, body: Any) -> Any:
            url = f"https://{variables['platform_domain']}/api/2.0/{path}"
            answer = session.request(verb, url, json=body, timeout=60)
            assert answer.ok, answer.text
            return answer.json() if answer.content else {}

        experiment = call("POST", "mlflow/experiments/create", {"name": "removed"})["experiment_id"]
        runs = []
        for _run in range(2):
            made = call("POST", "mlflow/runs/create", {"experiment_id": experiment})
            runs.append(made["run"]["info"]["run_id"])
            call("PUT", f"mlflow-artifacts/artifacts/{experiment}/{runs[-1]}/artifacts/a/note.json", {"a": "note"})
        old, kept = runs
        call("POST", "mlflow/runs/delete", {"run_id": old})
    database = ["docker", "exec", "--user", "postgres", f"cloudsql-{name}", "psql", "--host=/run/cloudsql"]
    aged = f"UPDATE runs SET deleted_time = 0 WHERE run_uuid = '{old}'"
    subprocess.run([*database, "--username=cloudsqladmin", "--dbname=mlflow", f"--command={aged}"], check=True)

    subprocess.run(["docker", "exec", f"gce-{name}-1", "systemctl", "start", "mlflow-gc"], check=True)

    bucket = f"https://storage.googleapis.com/storage/v1/b/{PROJECT}-{name}-artifacts/o"
    left = [one["name"] for one in cloud.get(f"{bucket}?prefix={experiment}/").get("items", [])]
    assert left == [f"{experiment}/{kept}/artifacts/a/note.json"]


def differences(result: dict[str, Any]) -> list[dict[str, Any]]:
    found = result.get("diff") or []
    return [one for one in (found if isinstance(found, list) else [found]) if one]


def difference(result: dict[str, Any]) -> Any:
    """Return what a task shows of a change, without the names of its temporary files."""
    told = [{key: one.get(key) for key in ("before", "after", "prepared")} for one in differences(result)]
    return (result["named"], told) if told and result.get("changed") else None


def size(result: dict[str, Any]) -> int:
    """Return how many fields or lines a task changed."""
    count = 0
    for one in differences(result) if result.get("changed") else []:
        before, after = one.get("before"), one.get("after")
        if isinstance(before, dict) and isinstance(after, dict):
            count += len({**before, **after})
        else:
            count += len({*str(after or "").splitlines()} - {*str(before or "").splitlines()})
    return count
