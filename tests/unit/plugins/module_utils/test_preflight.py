"""The rules an inventory must satisfy, and how the cloud's answers are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import preflight

GOOD: dict[str, Any] = {
    "platform_project": "demo-project",
    "platform_region": "europe-west1",
    "platform_zone": "europe-west1-b",
    "platform_domain": "mlflow.example.com",
    "platform_email": "ops@example.com",
    "platform_name": "mlflow",
    "platform_server_name": "mlflow-1",
    "platform_bucket": "demo-project-mlflow-artifacts",
    "platform_log_destination": "bucket",
    "platform_log_store": "demo-project-mlflow-logs",
    "platform_service_account_email": "mlflow-server@demo-project.iam.gserviceaccount.com",
    "platform_labels": {"team": "research"},
    "platform_acme_directory_url": "https://acme-v02.api.letsencrypt.org/directory",
    "platform_https_source_ranges": ["0.0.0.0/0"],
    "platform_http_source_ranges": [],
    "platform_operators": ["group:ops@example.com"],
    "platform_vm_image_family": "debian-12",
    "platform_sql_login": "iam",
    "platform_deletion_protection_enabled": True,
    "platform_stop_enabled": "true",
    "platform_disk_size_gib": 50,
    "platform_subnetwork_cidr": "10.10.0.0/24",
    "platform_sql_database_version": "POSTGRES_17",
    "mlflow_version": "3.17.2",
}
DISABLED = {"error": {"message": "not used before", "details": [{"reason": "SERVICE_DISABLED"}]}}
DENIED = {"error": {"message": "The caller does not have permission", "status": "PERMISSION_DENIED"}}


@pytest.fixture
def inventory_dir(tmp_path: Path) -> Path:
    """Return an inventory in which everything stands where it belongs."""
    home = tmp_path / "group_vars" / "platform"
    home.mkdir(parents=True)
    (home / "main.yml").write_text("platform_region: europe-west1\nother: !vault |\n  abc\n")
    (tmp_path / "gcp.yml").write_text(
        "plugin: google.cloud.gcp_compute\nprojects: [demo-project]\nfilters: [labels.mlflow-deployment = mlflow]\n"
    )
    return tmp_path


def test_a_good_inventory_has_no_problem(inventory_dir: Path) -> None:
    assert preflight.check_inventory(GOOD, inventory_dir) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *((name, value) for name in ("platform_project", "platform_region", "platform_domain", "platform_email")
          for value in ("", None, "  ")),
        ("platform_project", "My Project"),
        ("platform_project", "123456789012"),
        ("platform_region", "europe-west1-b"),
        ("platform_zone", "us-central1-a"),
        ("platform_zone", "europe-west1"),
        ("platform_domain", "https://mlflow.example.com"),
        ("platform_domain", "mlflow.example.com:8443"),
        ("platform_domain", "localhost"),
        ("platform_domain", "Mlflow.example.com"),
        ("platform_email", "ops"),
        ("platform_name", "MLflow"),
        ("platform_name", "m" * 24),
        ("platform_server_name", "server_1"),
        ("platform_bucket", "Artifacts"),
        ("platform_bucket", "a" * 64),
        ("platform_bucket", "my-google-artifacts"),
        ("platform_log_store", "Logs"),
        ("platform_log_destination", "pubsub"),
        ("platform_labels", {"Team": "research"}),
        ("platform_labels", ["team"]),
        ("platform_acme_directory_url", "http://acme.example.com/dir"),
        ("platform_https_source_ranges", "0.0.0.0/0"),
        ("platform_https_source_ranges", ["10.0.0.1/8"]),
        ("platform_http_source_ranges", ["everyone"]),
        ("platform_operators", ["ann@example.com"]),
        ("platform_vm_image_family", "debian-11"),
        ("platform_sql_login", "none"),
        ("platform_deletion_protection_enabled", "yes"),
        ("platform_stop_enabled", "tomorrow"),
        ("platform_disk_size_gib", 10),
        ("platform_disk_size_gib", "50"),
        ("platform_subnetwork_cidr", "10.10.0.0/30"),
        ("platform_subnetwork_cidr", "8.8.8.0/24"),
        ("platform_subnetwork_cidr", ""),
        ("platform_sql_database_version", "POSTGRES_16"),
        ("platform_sql_database_version", "MYSQL_8_0"),
        ("mlflow_version", "3.16.1"),
        ("mlflow_version", "latest"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_fix(inventory_dir: Path, variable: str, value: object) -> None:
    problems = preflight.check_inventory({**GOOD, variable: value}, inventory_dir)

    about = [problem for problem in problems if problem.variable == variable]
    assert about
    assert about[0].value == repr(value)
    assert about[0].problem
    assert str(inventory_dir) in about[0].fix


def test_all_problems_are_found_at_once(inventory_dir: Path) -> None:
    bad = {**GOOD, "platform_domain": "", "platform_email": "ops", "mlflow_version": "3.16.1"}

    problems = preflight.check_inventory(bad, inventory_dir)

    assert [problem.variable for problem in problems] == ["platform_domain", "platform_email", "mlflow_version"]
    text = preflight.report(problems)
    assert text.startswith("3 problem(s)")
    assert all(problem.fix in text for problem in problems)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("group_vars/all.yml", "platform_domain: other.example.com\n"),
        ("group_vars/all/main.yml", "platform_domain: other.example.com\n"),
        ("group_vars/mlflow/main.yml", "platform_domain: other.example.com\n"),
        ("host_vars/localhost.yml", "platform_domain: other.example.com\n"),
        ("group_vars/all", "platform_domain: other.example.com\n"),
        ("hosts.yml", "all:\n  vars:\n    platform_domain: other.example.com\n"),
        ("hosts.yml", "platform:\n  hosts:\n    localhost:\n      platform_domain: other.example.com\n"),
        ("hosts.ini", "[all:vars]\nplatform_domain = other.example.com\n"),
        ("hosts", "localhost platform_domain=other.example.com\n"),
    ],
)
def test_a_value_that_cannot_win_is_refused(inventory_dir: Path, file: str, content: str) -> None:
    (inventory_dir / file).parent.mkdir(exist_ok=True)
    (inventory_dir / file).write_text(content)

    (problem,) = preflight.check_inventory(GOOD, inventory_dir)

    assert problem.variable == "platform_domain"
    assert "other.example.com" in problem.value
    assert file in problem.problem
    assert "group_vars/platform/main.yml" in problem.fix


def test_a_misspelt_name_is_refused(inventory_dir: Path) -> None:
    (inventory_dir / "group_vars" / "platform" / "more.yml").write_text("platform_regoin: europe-west1\n")

    (problem,) = preflight.check_inventory(GOOD, inventory_dir)

    assert (problem.variable, "platform_region?" in problem.fix) == ("platform_regoin", True)


def test_a_vaulted_file_is_left_alone(inventory_dir: Path) -> None:
    (inventory_dir / "group_vars" / "all.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    assert preflight.check_inventory(GOOD, inventory_dir) == []


def test_a_secret_is_not_shown(inventory_dir: Path) -> None:
    (inventory_dir / "group_vars" / "all.yml").write_text("platform_admin_password: hunter2\n")

    problems = preflight.check_inventory(GOOD, inventory_dir)

    assert len(problems) == 1
    assert "hunter2" not in preflight.report(problems)


@pytest.mark.parametrize(
    ("content", "variable"),
    [
        ("projects: [other-project]\nfilters: [labels.mlflow-deployment = mlflow]\n", "platform_project"),
        ("projects: [demo-project]\nfilters: [labels.mlflow-deployment = other]\n", "platform_name"),
        ("projects: [demo-project]\n", "platform_name"),
    ],
)
def test_servers_are_looked_for_where_they_are_made(inventory_dir: Path, content: str, variable: str) -> None:
    (inventory_dir / "gcp.yml").write_text(content)

    (problem,) = preflight.check_inventory(GOOD, inventory_dir)

    assert problem.variable == variable
    assert "gcp.yml" in problem.fix


def cloud(answers: dict[str, preflight.Response]) -> Any:
    """Return an `ask` of a good cloud but for these answers, by the ends of URLs."""
    known = {**GOOD_CLOUD, **answers}

    def ask(url: str, body: Any = None) -> preflight.Response:
        assert (body is None) != url.endswith(":testIamPermissions")
        return next(answer for end, answer in known.items() if url.endswith(end))

    return ask


ALL = {"permissions": [permission for permissions in preflight.PERMISSIONS.values() for permission in permissions]}
ZONE = "https://www.googleapis.com/compute/v1/projects/demo-project/zones/europe-west1-b"
PROJECT, REGION = "projects/demo-project", "regions/europe-west1"
HELD, HELD_ON_ACCOUNT = "demo-project:testIamPermissions", "gserviceaccount.com:testIamPermissions"
BUCKET, LOG_BUCKET = "b/demo-project-mlflow-artifacts", "b/demo-project-mlflow-logs"
GOOD_CLOUD: dict[str, preflight.Response] = {
    PROJECT: (200, {"lifecycleState": "ACTIVE", "projectNumber": "17"}),
    HELD: (200, ALL),
    HELD_ON_ACCOUNT: (404, {}),
    REGION: (200, {"zones": [ZONE]}),
    BUCKET: (404, {}),
    LOG_BUCKET: (404, {}),
}


def without(*permissions: str) -> preflight.Response:
    return 200, {"permissions": sorted(set(ALL["permissions"]) - set(permissions))}


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {BUCKET: (200, {"projectNumber": "17"})},
        {
            HELD: without("iam.serviceAccounts.actAs"),
            HELD_ON_ACCOUNT: (200, {"permissions": ["iam.serviceAccounts.actAs"]}),
        },
    ],
    ids=["empty", "our bucket", "act as the account alone"],
)
def test_a_good_cloud_has_no_problem(answers: dict[str, preflight.Response]) -> None:
    assert preflight.check_cloud(cloud(answers), GOOD, "inventories/prod") == ([], [])


@pytest.mark.parametrize(
    ("answers", "variable", "expected"),
    [
        ({PROJECT: (403, DENIED)}, "platform_project", "does not have permission"),
        ({PROJECT: (404, {})}, "platform_project", "HTTP 404"),
        ({PROJECT: (200, {"lifecycleState": "DELETE_REQUESTED"})}, "platform_project", "DELETE_REQ"),
        ({REGION: (404, {})}, "platform_region", "no such region"),
        ({REGION: (200, {"zones": []})}, "platform_zone", "no such"),
        ({BUCKET: (200, {"projectNumber": "18"})}, "platform_bucket", "somebody else's"),
        ({BUCKET: (403, DENIED)}, "platform_bucket", "somebody else's"),
        ({LOG_BUCKET: (403, DENIED)}, "platform_log_store", "somebody else's"),
    ],
)
def test_the_cloud_says_no(answers: dict[str, preflight.Response], variable: str, expected: str) -> None:
    (problem,), notes = preflight.check_cloud(cloud(answers), GOOD, "inventories/prod")

    assert problem.variable == variable
    assert expected in problem.problem
    assert "inventories/prod" in problem.fix
    assert notes == []


def test_all_that_the_cloud_says_is_said_at_once() -> None:
    answers = {HELD: without("cloudsql.instances.create"), REGION: (404, {}), BUCKET: (403, DENIED)}

    problems, _ = preflight.check_cloud(cloud(answers), GOOD, "inventories/prod")

    assert len(problems) == 3


def test_missing_permissions_are_named_with_the_roles_that_have_them() -> None:
    answers = {HELD: without("cloudsql.instances.create", "compute.networks.create", "compute.routers.create")}

    (problem,), _ = preflight.check_cloud(cloud(answers), GOOD, "inventories/prod")

    assert problem.problem.endswith("lack compute.networks.create, compute.routers.create, cloudsql.instances.create")
    assert problem.fix.endswith("or roles/compute.networkAdmin, roles/cloudsql.admin")


def test_logs_in_a_dataset_take_another_name_and_another_permission(inventory_dir: Path) -> None:
    dataset = {**GOOD, "platform_log_destination": "dataset", "platform_log_store": "mlflow_logs"}
    assert preflight.check_inventory(dataset, inventory_dir) == []
    (wrong,) = preflight.check_inventory({**dataset, "platform_log_store": "mlflow-logs"}, inventory_dir)
    assert (wrong.variable, "dataset name" in wrong.problem) == ("platform_log_store", True)
    (lacking,), _ = preflight.check_cloud(cloud({}), dataset, "inventories/prod")
    assert lacking.problem.endswith("lack bigquery.datasets.create")


def test_what_could_not_be_checked_is_a_note_and_not_a_problem() -> None:
    answers = dict.fromkeys(GOOD_CLOUD, (403, DISABLED))

    problems, notes = preflight.check_cloud(cloud(answers), GOOD, "inventories/prod")

    assert problems == []
    assert [word in note for word, note in zip(("credentials", "europe-west1"), notes, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("variable", "right"),
    [
        ("platform_destroy_bucket", GOOD["platform_bucket"]),
        ("platform_destroy_database", GOOD["platform_name"]),
        ("platform_destroy_logs", GOOD["platform_log_store"]),
        ("platform_destroy_project", GOOD["platform_project"]),
    ],
)
def test_only_the_deployments_own_names_can_be_destroyed(inventory_dir: Path, variable: str, right: str) -> None:
    for value in ("", right):
        assert preflight.check_inventory({**GOOD, variable: value}, inventory_dir) == []
    (problem,) = preflight.check_inventory({**GOOD, variable: "another"}, inventory_dir)
    assert (problem.variable, problem.value) == (variable, "'another'")
    assert f"give -e {variable}={right}" in problem.fix
