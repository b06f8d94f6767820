"""The rules an inventory must satisfy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import preflight

from emulator.certificates import make_authority

AUTHORITY, KEY_OF_AUTHORITY = make_authority("A company's own authority")
KEY = "projects/keys/locations/europe-west1/keyRings/mlflow/cryptoKeys/mlflow"
GOOD: dict[str, Any] = {
    "platform_project": "demo-project",
    "platform_region": "europe-west1",
    "platform_zone": "europe-west1-b",
    "platform_domain": "mlflow.example.com",
    "platform_email": "ops@example.com",
    "platform_name": "mlflow",
    "platform_server_name": "mlflow-1",
    "platform_bucket": "demo-project-mlflow-artifacts",
    "platform_backup_bucket": "demo-project-mlflow-backups",
    "platform_backup_enabled": True,
    "platform_backup_hour": 1,
    "platform_gc_days": 0,
    "platform_backup_retention_days": 30,
    "platform_log_destination": "bucket",
    "platform_log_store": "demo-project-mlflow-logs",
    "platform_service_account_email": "mlflow-server@demo-project.iam.gserviceaccount.com",
    "platform_labels": {"team": "research"},
    "platform_acme_directory_url": "https://acme-v02.api.letsencrypt.org/directory",
    "platform_https_source_ranges": ["0.0.0.0/0"],
    "platform_http_source_ranges": ["0.0.0.0/0"],
    "platform_operators": ["group:ops@example.com"],
    "platform_kms_key": KEY,
    "platform_profile": "small",
    "platform_machine_type": "e2-standard-2",
    "platform_sql_tier": "db-custom-1-3840",
    "platform_sql_connections": 100,
    "platform_request_timeout_seconds": 3600,
    "platform_artifact_access": "server",
    "platform_gateway_enabled": False,
    "platform_artifact_users": [],
    "platform_vm_image_family": "debian-12",
    "platform_sql_availability_type": "REGIONAL",
    "platform_sql_login": "iam",
    "platform_sql_private_service_connect_enabled": False,
    "platform_deletion_protection_enabled": True,
    "platform_stop_enabled": "true",
    "platform_disk_size_gib": 50,
    "platform_mlflow_workers": 2,
    "platform_sql_pool_size": 2,
    "platform_subnetwork_cidr": "10.10.0.0/24",
    "platform_sql_database_version": "POSTGRES_17",
    "platform_existing_network": "",
    "platform_existing_subnetwork": "",
    "platform_existing_bucket": "",
    "platform_existing_sql_instance": "",
    "platform_existing_service_account": "",
    "platform_existing_certificate": "",
    "platform_dns_zone": "",
    "platform_acme_dns_zone": "",
    "platform_external_address_enabled": True,
    "platform_https_proxy": "http://proxy.example.com:3128",
    "platform_no_proxy": [".googleapis.com", "10.0.0.0/8"],
    "platform_ca_certificates": AUTHORITY,
    "platform_network_name": "mlflow",
    "platform_sql_instance": "mlflow",
    "mlflow_version": "3.17.2",
    "mlflow_admin_username": "admin",
    "platform_mlflow_users": [{"name": "ann", "experiments": [{"name": "churn", "permission": "EDIT"}]}],
    "platform_mlflow_authentication": "basic",
    "platform_iap_audience": "",
    "platform_oidc_issuer": "",
    "platform_oidc_client_id": "",
    "platform_oidc_client_secret_name": "",
    "platform_oidc_groups": [],
    "platform_oidc_admin_groups": [],
    "platform_mlflow_unauthenticated_acknowledged": False,
    "platform_upgrade_confirmed_version": "",
    "platform_upgrade_backup_enabled": "false",
    "platform_upgrade_rehearsal_enabled": False,
}


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
        ("platform_domain", "203.0.113.5"),
        ("platform_domain", "mlflow.example.123"),
        ("platform_domain", "mlflow.example."),
        ("platform_email", "ops"),
        ("platform_name", "MLflow"),
        ("platform_name", "m" * 24),
        ("platform_server_name", "server_1"),
        ("platform_bucket", "Artifacts"),
        ("platform_bucket", "a" * 64),
        ("platform_bucket", "my-google-artifacts"),
        ("platform_log_store", "Logs"),
        ("platform_backup_bucket", "Backups"),
        ("platform_backup_hour", 24),
        ("platform_backup_hour", "two"),
        ("platform_gc_days", -1),
        ("platform_gc_days", "30d"),
        ("platform_backup_retention_days", -1),
        ("platform_log_destination", "pubsub"),
        ("platform_labels", {"Team": "research"}),
        ("platform_labels", ["team"]),
        ("platform_acme_directory_url", "http://acme.example.com/dir"),
        ("platform_https_source_ranges", "0.0.0.0/0"),
        ("platform_https_source_ranges", ["10.0.0.1/8"]),
        ("platform_https_source_ranges", ["0.0.0.0/0", "::/0"]),
        ("platform_http_source_ranges", ["everyone"]),
        ("platform_http_source_ranges", ["0.0.0.0/0", "2001:db8::/32"]),
        ("platform_operators", ["ann@example.com"]),
        ("platform_kms_key", "my-key"),
        ("platform_kms_key", f"{KEY}/cryptoKeyVersions/1"),
        ("platform_kms_key", KEY.replace("europe-west1", "europe")),
        ("platform_profile", "huge"),
        # As profile custom leaves them.
        ("platform_machine_type", ""),
        ("platform_sql_tier", ""),
        ("platform_sql_connections", 0),
        ("platform_request_timeout_seconds", 30),
        ("platform_artifact_access", "proxied"),
        ("platform_gateway_enabled", "yes"),
        ("platform_artifact_users", ["ann@example.com"]),
        # Who would be named for nothing.
        ("platform_artifact_users", ["user:ann@example.com"]),
        ("platform_vm_image_family", "debian-11"),
        ("platform_sql_availability_type", "regional"),
        ("platform_sql_login", "none"),
        ("platform_deletion_protection_enabled", "yes"),
        ("platform_backup_enabled", "false"),
        ("platform_stop_enabled", "tomorrow"),
        ("platform_disk_size_gib", 10),
        ("platform_disk_size_gib", "50"),
        ("platform_mlflow_workers", 0),
        ("platform_sql_pool_size", 1),
        ("platform_subnetwork_cidr", "10.10.0.0/30"),
        ("platform_subnetwork_cidr", "8.8.8.0/24"),
        ("platform_subnetwork_cidr", "0.0.0.0/8"),
        ("platform_subnetwork_cidr", "127.0.0.0/24"),
        ("platform_subnetwork_cidr", "169.254.0.0/24"),
        ("platform_subnetwork_cidr", "224.0.0.0/24"),
        ("platform_subnetwork_cidr", "255.255.255.0/24"),
        # Two that are valid, each alone.
        ("platform_subnetwork_cidr", "192.0.0.0/22"),
        ("platform_subnetwork_cidr", ""),
        ("platform_subnetwork_cidr", "172.17.4.0/24"),
        ("platform_mlflow_users", None),
        ("platform_existing_network", "global/networks/shared"),
        ("platform_existing_network", None),
        ("platform_existing_subnetwork", "shared"),
        ("platform_existing_bucket", "gs://shared"),
        ("platform_existing_sql_instance", "demo-project:europe-west1:shared"),
        ("platform_existing_service_account", "mlflow@demo-project.iam.gserviceaccount.com"),
        ("platform_existing_certificate", "projects/demo-project/secrets/certificate"),
        ("platform_dns_zone", "example.com"),
        ("platform_https_proxy", "proxy.example.com:3128"),
        ("platform_https_proxy", "https://proxy.example.com:3128"),
        ("platform_https_proxy", None),
        ("platform_no_proxy", ".googleapis.com,10.0.0.0/8"),
        ("platform_no_proxy", ["a host"]),
        ("platform_sql_database_version", "POSTGRES_16"),
        ("platform_sql_database_version", "MYSQL_8_0"),
        ("platform_sql_database_version", "SQLSERVER_2022_STANDARD"),
        ("mlflow_version", "3.16.1"),
        ("mlflow_version", "latest"),
        ("platform_upgrade_confirmed_version", "3.17.1"),
        ("platform_upgrade_rehearsal_enabled", "yes"),
        # Of a set that is not taken.
        ("platform_upgrade_rehearsal_enabled", "true"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_fix(inventory_dir: Path, variable: str, value: object) -> None:
    problems = preflight.check_inventory({**GOOD, variable: value}, inventory_dir)

    about = [problem for problem in problems if problem.variable == variable]
    assert about
    assert about[0].value == repr(value)
    assert about[0].problem
    assert str(inventory_dir) in about[0].fix


@pytest.mark.parametrize(
    "cidr",
    [
        *("10.128.0.0/9", "172.31.0.0/16", "192.168.1.0/29", "100.64.0.0/24", "192.0.0.0/24", "192.0.2.0/24"),
        *("192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/24"),
    ],
)
def test_a_subnetwork_may_have_any_range_that_google_gives(inventory_dir: Path, cidr: str) -> None:
    assert preflight.check_inventory({**GOOD, "platform_subnetwork_cidr": cidr}, inventory_dir) == []


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("platform_https_proxy", "http://ann:hunter2@proxy.example.com:3128", "without a login"),
        ("platform_ca_certificates", "company-ca.pem", "not certificates"),
        ("platform_ca_certificates", AUTHORITY.replace("M", "*"), "not certificates"),
        ("platform_ca_certificates", f"{KEY_OF_AUTHORITY}{AUTHORITY}", "private key"),
    ],
)
def test_what_may_be_secret_is_named_and_not_shown(
    inventory_dir: Path, variable: str, value: str, problem: str
) -> None:
    (found,) = preflight.check_inventory({**GOOD, variable: value}, inventory_dir)
    assert (found.variable, found.value) == (variable, "(hidden)")
    assert problem in found.problem


def test_artifacts_that_travel_directly_need_somebody_who_may(inventory_dir: Path) -> None:
    direct = {**GOOD, "platform_artifact_access": "direct"}
    (found,) = preflight.check_inventory(direct, inventory_dir)
    assert (found.variable, "nobody" in found.problem) == ("platform_artifact_users", True)
    named = {**direct, "platform_artifact_users": ["group:ml@example.com"]}
    assert preflight.check_inventory(named, inventory_dir) == []


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        ([], "nothing was chosen"),
        (["admin_password", "webhook_key"], "not something that this deployment has: webhook_key"),
        (["admin_password", "certificate"], None),
    ],
)
def test_what_is_rotated_is_one_of_what_there_is(chosen: list[str], problem: str | None) -> None:
    choices = {"certificate": "", "admin_password": "mlflow-admin-password"}
    variables = {
        "platform_rotate": ",".join(chosen),
        "platform_rotation": chosen,
        "platform_rotation_choices": choices,
    }
    found = preflight.check_rotation(variables)
    assert [one.problem for one in found] == ([problem] if problem else [])
    assert all("admin_password, certificate" in one.fix for one in found)


def assert_one_problem(inventory_dir: Path, variables: dict[str, Any], variable: str) -> None:
    """See that these values have one problem, of this variable, which says how to mend it in the inventory."""
    (found,) = preflight.check_inventory({**GOOD, **variables}, inventory_dir)
    assert found.variable == variable
    assert found.problem
    assert str(inventory_dir) in found.fix


AUDIENCE = "/projects/123456789012/global/backendServices/4567890123456789"
BY_PROXY = {
    "platform_mlflow_authentication": "iap",
    "platform_iap_audience": AUDIENCE,
    "platform_mlflow_users": [{"name": "ann@example.com"}, {"name": "bob", "state": "absent"}],
}


def test_users_may_sign_in_by_identity_aware_proxy(inventory_dir: Path) -> None:
    assert preflight.check_inventory({**GOOD, **BY_PROXY}, inventory_dir) == []


@pytest.mark.parametrize(
    ("variables", "variable"),
    [
        ({"platform_mlflow_authentication": "saml"}, "platform_mlflow_authentication"),
        ({"platform_iap_audience": AUDIENCE}, "platform_iap_audience"),
        ({**BY_PROXY, "platform_iap_audience": ""}, "platform_iap_audience"),
        ({**BY_PROXY, "platform_iap_audience": None}, "platform_iap_audience"),
        ({**BY_PROXY, "platform_iap_audience": "/projects/123/apps/mlflow"}, "platform_iap_audience"),
        ({**BY_PROXY, "platform_iap_audience": AUDIENCE + "/"}, "platform_iap_audience"),
        (
            {**BY_PROXY, "platform_iap_audience": AUDIENCE.replace("123456789012", "demo-project")},
            "platform_iap_audience",
        ),
        ({**BY_PROXY, "platform_mlflow_users": [{"name": "ann"}]}, "platform_mlflow_users[0].name"),
        ({**BY_PROXY, "platform_mlflow_users": [{"name": "Ann@example.com"}]}, "platform_mlflow_users[0].name"),
        ({**BY_PROXY, "platform_dns_zone": "example"}, "platform_dns_zone"),
    ],
)
def test_who_signs_in_how_is_said_without_contradiction(
    inventory_dir: Path, variables: dict[str, Any], variable: str
) -> None:
    assert_one_problem(inventory_dir, variables, variable)


def test_all_that_is_wrong_with_signing_in_is_said_at_once(inventory_dir: Path) -> None:
    wrong = {**BY_PROXY, "platform_iap_audience": "", "platform_mlflow_users": [{"name": "ann"}, {"name": "bob"}]}
    found = preflight.check_inventory({**GOOD, **wrong}, inventory_dir)
    assert len(found) == 3


PRIVATE = {"platform_external_address_enabled": False}
PROVEN = {**PRIVATE, "platform_acme_dns_zone": "example-com"}


@pytest.mark.parametrize(
    "variables",
    [
        {**PROVEN, "platform_dns_zone": "example-com"},
        {**PROVEN, "platform_dns_zone": "inside"},
        PROVEN,
        {**PRIVATE, "platform_existing_certificate": "certificate"},
        {**PRIVATE, **BY_PROXY},
    ],
)
def test_a_server_may_have_no_public_address(inventory_dir: Path, variables: dict[str, Any]) -> None:
    assert preflight.check_inventory({**GOOD, **variables}, inventory_dir) == []


@pytest.mark.parametrize(
    ("variables", "variable"),
    [
        (PRIVATE, "platform_acme_dns_zone"),
        ({**PROVEN, "platform_acme_dns_zone": "example.com"}, "platform_acme_dns_zone"),
        ({"platform_acme_dns_zone": "example-com"}, "platform_acme_dns_zone"),
        ({**PROVEN, "platform_existing_certificate": "certificate"}, "platform_acme_dns_zone"),
        ({"platform_external_address_enabled": "no"}, "platform_external_address_enabled"),
        ({"platform_dns_zone": "a.b", "platform_acme_dns_zone": "a.b"}, "platform_dns_zone"),
    ],
)
def test_how_the_domain_is_proven_is_said_without_contradiction(
    inventory_dir: Path, variables: dict[str, Any], variable: str
) -> None:
    (found,) = preflight.check_inventory({**GOOD, **variables}, inventory_dir)
    assert found.variable == variable
    assert str(inventory_dir) in found.fix


CLOSED = {"platform_http_source_ranges": []}


@pytest.mark.parametrize(
    "variables",
    [
        {"platform_http_source_ranges": ["0.0.0.0/1", "128.0.0.0/1"]},
        {**CLOSED, **PROVEN},
        {**CLOSED, **BY_PROXY},
        {**CLOSED, "platform_existing_certificate": "certificate"},
        {**CLOSED, "platform_acme_directory_url": "https://acme.emulator.internal:14000/dir"},
        {**CLOSED, "platform_acme_directory_url": "https://notletsencrypt.org/directory"},
    ],
)
def test_port_80_may_be_closed_where_lets_encrypt_does_not_come_to_it(
    inventory_dir: Path, variables: dict[str, Any]
) -> None:
    assert preflight.check_inventory({**GOOD, **variables}, inventory_dir) == []


@pytest.mark.parametrize(
    "variables",
    [
        CLOSED,
        {**CLOSED, "platform_acme_directory_url": "https://acme-staging-v02.api.letsencrypt.org/directory"},
        {"platform_http_source_ranges": ["203.0.113.0/24"]},
        # One problem is said of what is no range, and not this as well.
        {"platform_http_source_ranges": "0.0.0.0/0"},
        {"platform_http_source_ranges": ["203.0.113.5/24"]},
        {"platform_http_source_ranges": ["::/0"]},
    ],
)
def test_a_certificate_that_can_never_be_issued_is_refused(inventory_dir: Path, variables: dict[str, Any]) -> None:
    assert_one_problem(inventory_dir, variables, "platform_http_source_ranges")


BY_OPENID = {
    "platform_mlflow_authentication": "oidc",
    "platform_oidc_issuer": "https://login.example.com/realms/ours",
    "platform_oidc_client_id": "0oa1b2.apps.example.com",
    "platform_oidc_client_secret_name": "mlflow-client-secret",
    "platform_oidc_groups": ["/mlflow", "Data Science"],
    "platform_oidc_admin_groups": ["mlflow-admins"],
    "platform_mlflow_users": [],
}


@pytest.mark.parametrize(
    "variables", [{}, {"platform_oidc_groups": []}, {"platform_oidc_issuer": "https://ours.eu.auth0.com/"}]
)
def test_users_may_sign_in_at_an_openid_provider(inventory_dir: Path, variables: dict[str, Any]) -> None:
    assert preflight.check_inventory({**GOOD, **BY_OPENID, **variables}, inventory_dir) == []


@pytest.mark.parametrize(
    ("variables", "variable"),
    [
        *(({name: value}, name) for name, value in BY_OPENID.items() if name.startswith("platform_oidc_")),
        *(
            ({**BY_OPENID, "platform_oidc_issuer": issuer}, "platform_oidc_issuer")
            for issuer in (
                "",
                None,
                "http://login.example.com",
                "login.example.com",
                "https://login.example.com/?tenant=1",
                "https://login.example.com/.well-known/openid-configuration",
            )
        ),
        *(
            ({**BY_OPENID, name: value}, name)
            for name, value in (
                ("platform_oidc_client_id", ""),
                ("platform_oidc_client_id", 'mlflow"'),
                ("platform_oidc_client_secret_name", ""),
                ("platform_oidc_client_secret_name", "projects/demo-project/secrets/mlflow"),
                ("platform_oidc_groups", "mlflow"),
                ("platform_oidc_groups", ["one,two"]),
                ("platform_oidc_groups", [" mlflow"]),
                ("platform_oidc_groups", [7]),
                ("platform_oidc_admin_groups", []),
                ("platform_oidc_admin_groups", [""]),
                ("platform_oidc_admin_groups", ["*"]),
                ("platform_mlflow_users", [{"name": "ann"}]),
                ("platform_sql_database_version", "MYSQL_8_4"),
            )
        ),
    ],
)
def test_a_sign_in_at_an_openid_provider_that_cannot_work_is_refused(
    inventory_dir: Path, variables: dict[str, Any], variable: str
) -> None:
    assert_one_problem(inventory_dir, variables, variable)


ACKNOWLEDGED = "platform_mlflow_unauthenticated_acknowledged"
WITHOUT_USERS = {
    "platform_mlflow_authentication": "none",
    ACKNOWLEDGED: True,
    "platform_mlflow_users": [],
    "platform_https_source_ranges": ["10.0.0.0/8", "203.0.113.0/24", "198.51.0.0/16"],
}


def test_mlflow_may_be_without_users_in_a_network_of_ones_own(inventory_dir: Path) -> None:
    assert preflight.check_inventory({**GOOD, **WITHOUT_USERS}, inventory_dir) == []


@pytest.mark.parametrize(
    ("variables", "variable"),
    [
        ({ACKNOWLEDGED: True}, ACKNOWLEDGED),
        ({**BY_PROXY, ACKNOWLEDGED: True}, ACKNOWLEDGED),
        ({**WITHOUT_USERS, ACKNOWLEDGED: False}, ACKNOWLEDGED),
        ({**WITHOUT_USERS, ACKNOWLEDGED: "true"}, ACKNOWLEDGED),
        ({**WITHOUT_USERS, ACKNOWLEDGED: None}, ACKNOWLEDGED),
        ({**WITHOUT_USERS, "platform_mlflow_users": [{"name": "eve", "state": "absent"}]}, "platform_mlflow_users"),
        *(
            ({**WITHOUT_USERS, "platform_https_source_ranges": ranges}, "platform_https_source_ranges")
            for ranges in (
                ["0.0.0.0/0"],
                ["0.0.0.0/1", "128.0.0.0/1"],
                ["10.0.0.0/7"],
                ["203.0.0.0/15"],
                ["203.0.0.0/16", "203.1.0.0/16"],
            )
        ),
    ],
)
def test_without_users_strangers_are_kept_out_and_that_is_acknowledged(
    inventory_dir: Path, variables: dict[str, Any], variable: str
) -> None:
    assert_one_problem(inventory_dir, variables, variable)


def test_all_that_is_wrong_without_users_is_said_at_once(inventory_dir: Path) -> None:
    found = preflight.check_inventory({**GOOD, "platform_mlflow_authentication": "none"}, inventory_dir)
    assert [one.variable for one in found] == [ACKNOWLEDGED, "platform_mlflow_users", "platform_https_source_ranges"]


@pytest.mark.parametrize("version", ["POSTGRES_18", "MYSQL_8_4"])
def test_either_engine_may_be_chosen(inventory_dir: Path, version: str) -> None:
    assert preflight.check_inventory({**GOOD, "platform_sql_database_version": version}, inventory_dir) == []


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
    assert preflight.check_inventory(GOOD, inventory_dir, ["platform_regoin"]) == []


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


def test_logs_in_a_dataset_take_another_name(inventory_dir: Path) -> None:
    dataset = {**GOOD, "platform_log_destination": "dataset", "platform_log_store": "mlflow_logs"}
    assert preflight.check_inventory(dataset, inventory_dir) == []
    (wrong,) = preflight.check_inventory({**dataset, "platform_log_store": "mlflow-logs"}, inventory_dir)
    assert (wrong.variable, "dataset name" in wrong.problem) == ("platform_log_store", True)


@pytest.mark.parametrize(
    ("variable", "right"),
    [
        ("platform_destroy_bucket", GOOD["platform_bucket"]),
        ("platform_destroy_database", GOOD["platform_sql_instance"]),
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


def test_what_is_there_already_is_named_without_a_problem(inventory_dir: Path) -> None:
    names = {"network": "shared", "subnetwork": "shared-west", "sql_instance": "shared-db", "service_account": "runner"}
    existing = {f"platform_existing_{kind}": name for kind, name in names.items()}
    bucket = {"platform_existing_bucket": "shared.example.com", "platform_bucket": "shared.example.com"}

    assert preflight.check_inventory({**GOOD, **existing, **bucket}, inventory_dir) == []


@pytest.mark.parametrize(
    ("values", "variable", "expected"),
    [
        ({"platform_existing_bucket": "shared"}, "platform_bucket", "leave platform_bucket out"),
        (
            {"platform_existing_bucket": "shared", "platform_bucket": "shared", "platform_destroy_bucket": "shared"},
            "platform_destroy_bucket",
            "leave it out",
        ),
    ],
)
def test_a_bucket_that_was_there_is_not_made_nor_removed(
    inventory_dir: Path, values: dict[str, str], variable: str, expected: str
) -> None:
    (problem,) = preflight.check_inventory({**GOOD, **values}, inventory_dir)

    assert problem.variable == variable
    assert expected in problem.fix
