"""How the cloud's answers are read: what must be mended, and what is worth a note."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.preflight import (
    PERMISSIONS,
    PERMISSIONS_OF_KEY,
    Problem,
)
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.preflight_cloud import Response, check_cloud

VARIABLES: dict[str, Any] = {
    "platform_project": "demo-project",
    "platform_region": "europe-west1",
    "platform_zone": "europe-west1-b",
    "platform_domain": "mlflow.example.com",
    "platform_name": "mlflow",
    "platform_server_name": "mlflow-1",
    "platform_machine_type": "e2-standard-2",
    "platform_disk_size_gib": 50,
    "platform_bucket": "demo-project-mlflow-artifacts",
    "platform_backup_bucket": "demo-project-mlflow-backups",
    "platform_backup_enabled": True,
    "platform_log_destination": "bucket",
    "platform_log_store": "demo-project-mlflow-logs",
    "platform_network_name": "mlflow",
    "platform_subnetwork_name": "mlflow-europe-west1",
    "platform_subnetwork_cidr": "10.10.0.0/24",
    "platform_sql_instance": "mlflow",
    "platform_sql_database": "mlflow",
    "platform_sql_auth_database": "mlflow_auth",
    "platform_sql_user": "mlflow",
    "platform_sql_database_version": "POSTGRES_17",
    "platform_sql_login": "iam",
    "platform_sql_private_service_connect_enabled": False,
    "platform_service_account_email": "mlflow-server@demo-project.iam.gserviceaccount.com",
    "platform_https_source_ranges": ["0.0.0.0/0"],
    "platform_http_source_ranges": [],
    "platform_credentials": [{"secret": "mlflow-admin-password", "credential": "mlflow.admin-password"}],
    "platform_user_credentials": [{"secret": "mlflow-user-ann-password", "state": "absent"}],
    "platform_existing_network": "",
    "platform_existing_subnetwork": "",
    "platform_existing_bucket": "",
    "platform_existing_sql_instance": "",
    "platform_existing_service_account": "",
    "platform_existing_certificate": "",
    "platform_oidc_client_secret_name": "",
    "platform_dns_zone": "",
    "platform_acme_dns_zone": "",
    "platform_external_address_enabled": True,
    "platform_mlflow_authentication": "basic",
    "platform_kms_key": "",
    "gcp_instance_disk_type": "pd-balanced",
}
EXISTING = {
    "platform_existing_network": "shared",
    "platform_network_name": "shared",
    "platform_existing_subnetwork": "shared-west",
    "platform_subnetwork_name": "shared-west",
    "platform_existing_bucket": "shared-artifacts",
    "platform_bucket": "shared-artifacts",
    "platform_existing_sql_instance": "shared-db",
    "platform_sql_instance": "shared-db",
    "platform_existing_service_account": "mlflow-server",
    "platform_dns_zone": "example-com",
    "platform_existing_certificate": "certificate",
    "platform_oidc_client_secret_name": "client-secret",
}
GLOBAL = "https://www.googleapis.com/compute/v1/projects/demo-project/global/networks"
DISABLED = {"error": {"message": "not used before", "details": [{"reason": "SERVICE_DISABLED"}]}}
DENIED = {"error": {"message": "The caller does not have permission", "status": "PERMISSION_DENIED"}}
UNBILLED = {"error": {"message": "requires billing", "details": [{"reason": "BILLING_DISABLED"}]}}
ALL = [permission for permissions in PERMISSIONS.values() for permission in permissions]
PROJECT, COMPUTE = "cloudresourcemanager.googleapis.com/v1/projects/demo-project", "compute/v1/projects/demo-project"
REGION, ZONE = f"{COMPUTE}/regions/europe-west1", f"{COMPUTE}/zones/europe-west1-b"
HELD, HELD_ON_ACCOUNT = f"{PROJECT}:testIamPermissions", "gserviceaccount.com:testIamPermissions"
BUCKET, LOG_BUCKET = "b/demo-project-mlflow-artifacts", "b/demo-project-mlflow-logs"
BACKUP_BUCKET = "b/demo-project-mlflow-backups"
SERVER = "instances/mlflow-1"
DISK = "disks/mlflow-1"
BILLING, MACHINE_TYPE, SECRET = "/billingInfo", "machineTypes/e2-standard-2", "secrets/mlflow-admin-password"
RANGES, PEERING_RANGES = "aggregated/subnetworks", "global/addresses"


def quotas(**changed: tuple[float, float]) -> list[dict[str, Any]]:
    """Return quotas of 10, of which one is used, but for some with (limit, usage)."""
    names = ("NETWORKS", "FIREWALLS", "CPUS", "SSD_TOTAL_GB", "STATIC_ADDRESSES", "IN_USE_ADDRESSES")
    pairs: dict[str, tuple[float, float]] = dict.fromkeys(names, (100.0, 1.0)) | changed
    return [{"metric": metric, "limit": limit, "usage": usage} for metric, (limit, usage) in pairs.items()]


ZONES = [f"https://www.googleapis.com/{ZONE}"]
GOOD_CLOUD: dict[str, Response] = {
    HELD: (200, {"permissions": ALL}),
    HELD_ON_ACCOUNT: (404, {}),
    BILLING: (200, {"billingEnabled": True}),
    PROJECT: (200, {"lifecycleState": "ACTIVE", "projectNumber": "17"}),
    MACHINE_TYPE: (200, {"guestCpus": 2}),
    REGION: (200, {"zones": ZONES, "quotas": quotas()}),
    COMPUTE: (200, {"quotas": quotas()}),
}
GOOD_EXISTING: dict[str, Response] = {
    "networks/shared": (200, {"name": "shared", "peerings": []}),
    "subnetworks/shared-west": (
        200,
        {"name": "shared-west", "network": f"{GLOBAL}/shared", "privateIpGoogleAccess": True},
    ),
    "b/shared-artifacts": (
        200,
        {
            "location": "EU",
            "locationType": "multi-region",
            "projectNumber": "99",
            "iamConfiguration": {
                "uniformBucketLevelAccess": {"enabled": True},
                "publicAccessPrevention": "enforced",
            },
        },
    ),
    "instances/shared-db": (
        200,
        {
            "databaseVersion": "POSTGRES_17",
            "region": "europe-west1",
            "state": "RUNNABLE",
            "settings": {
                "ipConfiguration": {"privateNetwork": "projects/demo-project/global/networks/shared"},
                "databaseFlags": [{"name": "cloudsql.iam_authentication", "value": "on"}],
            },
        },
    ),
    "serviceAccounts/mlflow-server@demo-project.iam.gserviceaccount.com": (200, {}),
    "managedZones/example-com": (200, {"dnsName": "example.com.", "visibility": "public"}),
    "secrets/certificate/versions/latest": (200, {"state": "ENABLED"}),
    "secrets/client-secret/versions/latest": (200, {"state": "ENABLED"}),
}


def check(
    answers: dict[str, Response] | None = None,
    variables: dict[str, Any] | None = None,
    resolved: tuple[str, ...] = (),
    **options: bool,
) -> tuple[list[Problem], list[str]]:
    """Check a good cloud but for these answers, by the ends of URLs; what else is asked for is not there."""
    known = {**GOOD_CLOUD, **(answers or {})}

    def ask(url: str, body: Any = None) -> Response:
        assert (body is None) != url.endswith((":testIamPermissions", ":getEffectiveOrgPolicy"))
        asked = (body or {}).get("constraint") or url.partition("?")[0]
        end = next((end for end in known if asked.endswith(end)), None)
        return known[end] if end else (404, {"error": {"message": "was not found"}})

    return check_cloud(ask, {**VARIABLES, **(variables or {})}, "inventories/prod", lambda _: list(resolved), **options)


def existing(place: str, **changed: Any) -> dict[str, Response]:
    """Return what is there already and good, but for some fields of one thing."""
    return {**GOOD_EXISTING, place: (200, {**GOOD_EXISTING[place][1], **changed})}


def without(*permissions: str) -> Response:
    return 200, {"permissions": sorted(set(ALL) - set(permissions))}


LABELLED = {"labels": {"mlflow-deployment": "mlflow"}}
OURS: dict[str, Response] = {
    BUCKET: (200, {"projectNumber": "17", **LABELLED}),
    SERVER: (200, LABELLED),
    # Of a machine made before disks had labels.
    DISK: (200, {}),
    SECRET: (200, LABELLED),
    "instances/mlflow": (200, {"settings": {"userLabels": LABELLED["labels"]}}),
    "networks/mlflow": (200, {"autoCreateSubnetworks": False}),
    "subnetworks/mlflow-europe-west1": (200, {"name": "x", "network": f"{GLOBAL}/mlflow"}),
    "firewalls/mlflow-allow-https": (200, {"name": "x", "network": f"{GLOBAL}/mlflow"}),
    "addresses/mlflow": (200, {"address": "192.0.2.1", "users": ["zones/europe-west1-b/instances/mlflow-1"]}),
}
ACT_AS = (200, {"permissions": ["iam.serviceAccounts.actAs"]})


@pytest.mark.parametrize(
    "answers",
    [{}, OURS, {HELD: without("iam.serviceAccounts.actAs"), HELD_ON_ACCOUNT: ACT_AS}],
    ids=["empty", "ours", "act as the account alone"],
)
def test_a_good_cloud_has_no_problem(answers: dict[str, Response]) -> None:
    assert check(answers) == ([], [])


@pytest.mark.parametrize(
    ("answers", "variable", "expected"),
    [
        ({PROJECT: (403, DENIED)}, "platform_project", "does not have permission"),
        ({PROJECT: (404, {})}, "platform_project", "HTTP 404"),
        ({PROJECT: (200, {"lifecycleState": "DELETE_REQUESTED"})}, "platform_project", "DELETE_REQ"),
        ({BILLING: (200, {"billingEnabled": False})}, "platform_project", "no billing account"),
        ({REGION: (403, UNBILLED)}, "platform_project", "no billing account"),
        ({REGION: (404, {})}, "platform_region", "no such region"),
        ({REGION: (200, {"zones": []})}, "platform_zone", "no such"),
        ({MACHINE_TYPE: (404, {})}, "platform_machine_type", "no such"),
        ({MACHINE_TYPE: (200, {"guestCpus": 2, "architecture": "ARM64"})}, "platform_machine_type", "an Arm machine"),
        ({BUCKET: (200, {"projectNumber": "18", **LABELLED})}, "platform_bucket", "somebody else's"),
        ({BUCKET: (403, DENIED)}, "platform_bucket", "somebody else's"),
        ({LOG_BUCKET: (403, DENIED)}, "platform_log_store", "somebody else's"),
        ({BACKUP_BUCKET: (403, DENIED)}, "platform_backup_bucket", "somebody else's"),
    ],
)
def test_the_cloud_says_no(answers: dict[str, Response], variable: str, expected: str) -> None:
    (problem,), notes = check(answers)

    assert problem.variable == variable
    assert expected in problem.problem
    assert problem.fix
    assert notes == []


@pytest.mark.parametrize(
    ("place", "thing", "expected"),
    [
        (SERVER, {}, "the machine mlflow-1"),
        (SERVER, {"labels": {"mlflow-deployment": "other"}}, "the machine mlflow-1"),
        (DISK, {}, "the disk mlflow-1"),
        (SECRET, {}, "the secret mlflow-admin-password"),
        ("secrets/mlflow-user-ann-password", {}, "the secret mlflow-user-ann-password"),
        (BUCKET, {"projectNumber": "17"}, "the bucket demo-project-mlflow-artifacts"),
        (LOG_BUCKET, {"projectNumber": "17"}, "the bucket demo-project-mlflow-logs"),
        ("instances/mlflow", {"settings": {}}, "the Cloud SQL instance mlflow"),
        ("networks/mlflow", {"autoCreateSubnetworks": True}, "the network mlflow"),
        ("routers/mlflow", {"name": "mlflow", "network": f"{GLOBAL}/other"}, "in the network other"),
        ("firewalls/mlflow-allow-iap-ssh", {"name": "x", "network": f"{GLOBAL}/other"}, "in the network other"),
        ("addresses/mlflow", {"users": ["zones/z/instances/theirs"]}, "held by theirs"),
    ],
)
@pytest.mark.parametrize("for_removal", [False, True])
def test_what_has_our_name_and_is_not_ours_is_refused(
    place: str, thing: dict[str, Any], expected: str, for_removal: bool
) -> None:
    (problem,), _ = check({place: (200, thing)}, for_removal=for_removal)

    assert problem.variable == "platform_name"
    assert expected in problem.problem


def test_all_that_the_cloud_says_is_said_at_once() -> None:
    answers = {HELD: without("cloudsql.instances.create"), REGION: (404, {}), BUCKET: (403, DENIED), SERVER: (200, {})}

    problems, _ = check(answers)

    assert len(problems) == 4


def test_missing_permissions_are_named_with_the_roles_that_have_them() -> None:
    answers = {HELD: without("cloudsql.instances.create", "compute.networks.create", "compute.routers.create")}

    (problem,), _ = check(answers)

    assert problem.problem.endswith("lack compute.networks.create, compute.routers.create, cloudsql.instances.create")
    assert problem.fix.endswith("or roles/compute.networkAdmin, roles/cloudsql.admin")


def test_what_is_there_already_takes_no_permission_to_make_it() -> None:
    lacking = ("compute.networks.create", "storage.buckets.create", "cloudsql.instances.create")

    assert check({**GOOD_EXISTING, HELD: without(*lacking)}, EXISTING) == ([], [])
    (problem,), _ = check({**GOOD_EXISTING, HELD: without("dns.resourceRecordSets.create")}, EXISTING)
    assert "dns.resourceRecordSets.create" in problem.problem
    assert check({HELD: without("dns.resourceRecordSets.create")}) == ([], [])


def test_logs_in_a_dataset_take_another_permission_and_no_bucket() -> None:
    lacking = {HELD: without("bigquery.datasets.create"), LOG_BUCKET: (403, DENIED)}

    (problem,), _ = check(lacking, {"platform_log_destination": "dataset", "platform_log_store": "mlflow_logs"})
    assert problem.problem.endswith("lack bigquery.datasets.create")
    assert check({HELD: lacking[HELD]}) == ([], [])


def test_what_could_not_be_checked_is_a_note_and_not_a_problem() -> None:
    ends = (*GOOD_CLOUD, *OURS, RANGES, PEERING_RANGES)

    problems, notes = check(dict.fromkeys(ends, (403, DISABLED)))

    assert problems == []
    assert [word in note for word, note in zip(("credentials", "europe-west1"), notes, strict=True)] == [True, True]


KEY = "projects/keys/locations/europe-west1/keyRings/mlflow/cryptoKeys/mlflow"
HELD_ON_KEY = f"{KEY}:testIamPermissions"
ENABLED: Response = (200, {"purpose": "ENCRYPT_DECRYPT", "primary": {"state": "ENABLED"}})
GRANTABLE: Response = (200, {"permissions": ["cloudkms.cryptoKeys.getIamPolicy", "cloudkms.cryptoKeys.setIamPolicy"]})


@pytest.mark.parametrize(
    ("answers", "variable", "expected"),
    [
        ({KEY: (404, {})}, "platform_kms_key", "HTTP 404"),
        ({KEY: (200, {"purpose": "ASYMMETRIC_SIGN"})}, "platform_kms_key", "ASYMMETRIC_SIGN"),
        (
            {KEY: (200, {"purpose": "ENCRYPT_DECRYPT", "primary": {"state": "DISABLED"}})},
            "platform_kms_key",
            "its primary version is DISABLED",
        ),
        ({HELD_ON_KEY: (200, {})}, PERMISSIONS_OF_KEY, "cloudkms.cryptoKeys.setIamPolicy on the key"),
    ],
)
def test_a_key_that_cannot_be_used_is_refused(answers: dict[str, Response], variable: str, expected: str) -> None:
    good = {KEY: ENABLED, HELD_ON_KEY: GRANTABLE}
    with_key = {"platform_kms_key": KEY}

    (problem,), _ = check({**good, **answers}, with_key)

    assert problem.variable == variable
    assert expected in problem.problem
    assert check(good, with_key) == check(answers) == ([], [])
    assert check({**good, **answers}, with_key, for_removal=True) == ([], [])


def test_a_key_of_a_project_without_cloud_kms_is_a_note() -> None:
    problems, (note,) = check({KEY: (403, DISABLED)}, {"platform_kms_key": KEY})

    assert problems == []
    assert KEY in note


def test_what_is_there_already_and_fit_has_no_problem() -> None:
    assert check(GOOD_EXISTING, EXISTING) == ([], [])
    regional = existing("b/shared-artifacts", location="EUROPE-WEST1", locationType="region")
    assert check(regional, EXISTING) == ([], [])


@pytest.mark.parametrize(
    ("answers", "variable", "expected"),
    [
        *(
            ({**GOOD_EXISTING, place: (404, {})}, variable, "of this name")
            for place, variable in zip(
                GOOD_EXISTING,
                [name for name in EXISTING if name.startswith(("platform_existing", "platform_dns", "platform_oidc"))],
                strict=True,
            )
        ),
        (existing("subnetworks/shared-west", network=f"{GLOBAL}/other"), "platform_existing_subnetwork", "other"),
        (
            existing("subnetworks/shared-west", privateIpGoogleAccess=False),
            "platform_existing_subnetwork",
            "private Google access",
        ),
        (
            existing(
                "b/shared-artifacts",
                iamConfiguration={
                    "uniformBucketLevelAccess": {"enabled": False},
                    "publicAccessPrevention": "enforced",
                },
            ),
            "platform_existing_bucket",
            "not uniform",
        ),
        (
            existing("b/shared-artifacts", iamConfiguration={"uniformBucketLevelAccess": {"enabled": True}}),
            "platform_existing_bucket",
            "not prevented",
        ),
        (existing("b/shared-artifacts", location="US"), "platform_existing_bucket", "it is in US"),
        (
            existing("b/shared-artifacts", location="EUROPE-WEST4", locationType="region"),
            "platform_existing_bucket",
            "it is in EUROPE-WEST4",
        ),
        (existing("instances/shared-db", databaseVersion="MYSQL_8_4"), "platform_sql_database_version", "MYSQL_8_4"),
        (existing("instances/shared-db", region="us-east1"), "platform_existing_sql_instance", "us-east1"),
        (existing("instances/shared-db", state="SUSPENDED"), "platform_existing_sql_instance", "SUSPENDED"),
        (
            existing("serviceAccounts/mlflow-server@demo-project.iam.gserviceaccount.com", disabled=True),
            "platform_existing_service_account",
            "disabled",
        ),
        (
            existing("secrets/certificate/versions/latest", state="DISABLED"),
            "platform_existing_certificate",
            "not enabled",
        ),
        (
            existing("secrets/client-secret/versions/latest", state="DISABLED"),
            "platform_oidc_client_secret_name",
            "not enabled",
        ),
        (existing("managedZones/example-com", dnsName="example.org."), "platform_dns_zone", "example.org."),
        (existing("managedZones/example-com", dnsName="ample.com."), "platform_dns_zone", "ample.com."),
        (existing("managedZones/example-com", visibility="private"), "platform_dns_zone", "private"),
    ],
)
def test_what_is_there_already_and_not_fit_is_refused(
    answers: dict[str, Response], variable: str, expected: str
) -> None:
    (problem,), _ = check(answers, EXISTING)

    assert problem.variable == variable
    assert expected in problem.problem
    assert "inventories/prod" in problem.fix
    # It may go all the same.
    assert check(answers, EXISTING, for_removal=True) == ([], [])


WITHIN = {
    "platform_external_address_enabled": False,
    "platform_dns_zone": "inside",
    "platform_acme_dns_zone": "outside",
}
PRIVATE_ZONE = (200, {"name": "inside", "dnsName": "mlflow.example.com.", "visibility": "private"})
PUBLIC_ZONE = (200, {"name": "outside", "dnsName": "example.com.", "visibility": "public"})
GOOD_WITHIN: dict[str, Response] = {
    "managedZones/inside": PRIVATE_ZONE,
    "managedZones/outside": PUBLIC_ZONE,
    "managedZones": (200, {"managedZones": [PRIVATE_ZONE[1], PUBLIC_ZONE[1]]}),
    # Of no concern to a server that has none.
    REGION: (200, {"zones": ZONES, "quotas": quotas(STATIC_ADDRESSES=(0, 0), IN_USE_ADDRESSES=(0, 0))}),
    "compute.vmExternalIpAccess": (200, {"listPolicy": {"allValues": "DENY"}}),
    SERVER: (200, {**LABELLED, "networkInterfaces": [{"networkIP": "10.10.0.2"}]}),
    DISK: (200, {}),
}


def test_a_server_without_a_public_address_is_proven_by_a_public_zone_beside_a_private_one() -> None:
    assert check(GOOD_WITHIN, WITHIN, ("10.10.0.2",)) == ([], [])
    lacking = {**GOOD_WITHIN, HELD: without("dns.managedZones.setIamPolicy", "iam.roles.create")}
    (problem,), _ = check(lacking, {**WITHIN, "platform_backup_enabled": False})
    assert problem.problem == "these credentials lack iam.roles.create, dns.managedZones.setIamPolicy"
    assert "10.10.0.2" in check(GOOD_WITHIN, WITHIN, ("192.0.2.7",))[1][0]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"managedZones/outside": (404, {})}, "no public managed zone of this name"),
        ({"managedZones/outside": (200, {**PUBLIC_ZONE[1], "dnsName": "example.org."})}, "zone of example.org."),
        ({"managedZones/outside": (200, {**PUBLIC_ZONE[1], "visibility": "private"})}, "it is private"),
        (
            {"managedZones": (200, {"managedZones": [{"name": "nearer", "dnsName": "mlflow.example.com."}]})},
            "the public zone nearer as well",
        ),
    ],
)
def test_a_zone_that_cannot_prove_the_domain_is_refused(answers: dict[str, Response], expected: str) -> None:
    (problem,), _ = check({**GOOD_WITHIN, **answers}, WITHIN)
    assert problem.variable == "platform_acme_dns_zone"
    assert expected in problem.problem


def test_a_way_out_of_a_network_that_is_there_is_noted_where_it_is_not_seen() -> None:
    variables = {**EXISTING, **WITHIN, "platform_existing_certificate": "certificate"}
    routers = {"items": [{"network": f"{GLOBAL}/shared", "nats": [{}]}]}
    answers = {**GOOD_EXISTING, **GOOD_WITHIN}
    assert check({**answers, "regions/europe-west1/routers": (200, routers)}, variables) == ([], [])
    problems, (note,) = check(answers, variables)
    assert (problems, "has no Cloud NAT in europe-west1" in note) == ([], True)


def test_an_instance_in_another_network_or_without_iam_is_refused() -> None:
    instance = GOOD_EXISTING["instances/shared-db"][1]
    settings = {"ipConfiguration": {"privateNetwork": "projects/demo-project/global/networks/other"}}
    answers = {**GOOD_EXISTING, "instances/shared-db": (200, {**instance, "settings": settings})}

    problems, _ = check(answers, EXISTING)

    assert [problem.variable for problem in problems] == ["platform_existing_sql_instance"] * 2
    assert "platform_existing_network: other" in problems[0].fix
    assert "IAM authentication" in problems[1].fix
    assert len(check(answers, {**EXISTING, "platform_sql_login": "password"})[0]) == 1


SWITCH, EXISTING_SQL = "platform_sql_private_service_connect_enabled", "platform_existing_sql_instance"


@pytest.mark.parametrize(
    ("wanted", "configuration", "variable", "said"),
    [
        (True, {"pscConfig": {"pscEnabled": True, "allowedConsumerProjects": ["demo-project"]}}, "", ""),
        (True, {"pscConfig": {"pscEnabled": True, "allowedConsumerProjects": ["other"]}}, EXISTING_SQL, "not let this"),
        (True, {"privateNetwork": "projects/demo-project/global/networks/shared"}, SWITCH, "has no Private Service"),
        (False, {"pscConfig": {"pscEnabled": True}}, EXISTING_SQL, "by Private Service Connect alone"),
    ],
)
def test_an_instance_is_reached_as_it_can_be(wanted: bool, configuration: Any, variable: str, said: str) -> None:
    instance = GOOD_EXISTING["instances/shared-db"][1]
    settings = {**instance["settings"], "ipConfiguration": configuration}
    answers = {**GOOD_EXISTING, "instances/shared-db": (200, {**instance, "settings": settings})}
    problems, _ = check(answers, {**EXISTING, SWITCH: wanted})
    assert [one.variable for one in problems] == ([variable] if variable else [])
    assert all(said in one.problem for one in problems)


def test_a_network_without_private_services_access_will_do_for_private_service_connect() -> None:
    network = {**GOOD_EXISTING["networks/shared"][1], "peerings": []}
    answers = {**GOOD_EXISTING, "networks/shared": (200, network)}
    variables = {**EXISTING, "platform_existing_sql_instance": "", "platform_sql_instance": "mlflow"}
    assert "private services access" in check(answers, variables)[0][0].problem
    assert check(answers, {**variables, SWITCH: True})[0] == []


@pytest.mark.parametrize("place", ["databases/mlflow", "databases/mlflow_auth", "users/mlflow"])
def test_a_database_or_user_of_somebody_else_is_not_taken_over(place: str) -> None:
    there = {**GOOD_EXISTING, place: (200, {"name": "mlflow"})}
    variables = {**EXISTING, "platform_sql_login": "password"}

    (problem,), _ = check(there, variables)

    assert problem.variable == "platform_name"
    assert "is there in shared-db" in problem.problem
    assert check(there, variables, for_removal=True)[0] == [problem]
    # Ours are made after our secrets, and go before them.
    assert check({**there, SECRET: OURS[SECRET]}, variables) == ([], [])
    assert check({place: (200, {"name": "mlflow"})}) == ([], [])


def test_a_network_needs_private_services_access_for_a_database_of_ours() -> None:
    ours = {**EXISTING, "platform_existing_sql_instance": "", "platform_sql_instance": "mlflow"}
    peering = {"name": "servicenetworking-googleapis-com", "state": "ACTIVE"}

    (problem,), _ = check(GOOD_EXISTING, ours)

    assert problem.variable == "platform_existing_network"
    assert "no private services access" in problem.problem
    assert check(existing("networks/shared", peerings=[peering]), ours) == ([], [])


@pytest.mark.parametrize(
    ("place", "changed", "variable"),
    [
        (COMPUTE, {"NETWORKS": (5.0, 5.0)}, "platform_project"),
        # Two rules are made: nobody may come over port 80.
        (COMPUTE, {"FIREWALLS": (100.0, 99.0)}, "platform_project"),
        (REGION, {"CPUS": (8.0, 7.0)}, "platform_region"),
        (REGION, {"SSD_TOTAL_GB": (500.0, 451.0)}, "platform_region"),
        (REGION, {"STATIC_ADDRESSES": (8.0, 8.0)}, "platform_region"),
        (REGION, {"IN_USE_ADDRESSES": (8.0, 8.0)}, "platform_region"),
    ],
)
def test_a_quota_without_room_for_what_is_to_be_made_is_named(
    place: str, changed: dict[str, tuple[float, float]], variable: str
) -> None:
    full = {place: (200, {"zones": ZONES, "quotas": quotas(**changed)})}

    (problem,), _ = check(full)

    assert problem.variable == variable
    assert next(iter(changed)) in problem.problem
    assert "quotas?project=demo-project" in problem.fix
    made = {**OURS, "routers/mlflow": (200, {"name": "x", "network": f"{GLOBAL}/mlflow"})}
    rule = (200, {"name": "x", "network": f"{GLOBAL}/mlflow"})
    assert check({**full, **made, "firewalls/mlflow-allow-iap-ssh": rule}) == ([], [])
    assert check(full, for_removal=True) == ([], [])


OTHER_SERVER = "projects/demo-project/zones/europe-west1-b/instances/other"
OUR_SERVER = "projects/demo-project/zones/europe-west1-b/instances/mlflow-1"


@pytest.mark.parametrize(
    ("constraint", "policy", "is_refused"),
    [
        ("compute.vmExternalIpAccess", {"allValues": "ALLOW"}, False),
        ("compute.vmExternalIpAccess", {"allValues": "DENY"}, True),
        ("compute.vmExternalIpAccess", {"allowedValues": [OTHER_SERVER]}, True),
        ("compute.vmExternalIpAccess", {"allowedValues": [OUR_SERVER]}, False),
        ("compute.vmExternalIpAccess", {"deniedValues": [OUR_SERVER]}, True),
        ("compute.vmExternalIpAccess", {"deniedValues": [OTHER_SERVER]}, False),
        ("gcp.restrictServiceUsage", {"deniedValues": ["compute.googleapis.com"]}, True),
        ("gcp.restrictServiceUsage", {"allowedValues": ["in:some-group"]}, False),
    ],
)
def test_what_the_organization_forbids_is_named(constraint: str, policy: dict[str, Any], is_refused: bool) -> None:
    problems, notes = check({constraint: (200, {"listPolicy": policy})})

    assert [constraint in problem.problem for problem in problems] == [True] * is_refused
    assert notes == []
    assert check({constraint: (403, DENIED)}) == ([], [])


def test_families_of_machines_have_their_own_quota() -> None:
    full = {REGION: (200, {"zones": ZONES, "quotas": quotas(CPUS=(8.0, 8.0), N2_CPUS=(100.0, 0.0))})}
    n2 = {"machineTypes/n2-standard-2": (200, {"guestCpus": 2})}

    assert check({**full, **n2}, {"platform_machine_type": "n2-standard-2"}) == ([], [])


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (
            {RANGES: (200, {"items": {"regions/a": {"subnetworks": [{"name": "b", "ipCidrRange": "10.10.0.0/16"}]}}})},
            "the subnetwork b",
        ),
        (
            {
                PEERING_RANGES: (
                    200,
                    {
                        "items": [
                            {"name": "r", "address": "10.8.0.0", "prefixLength": 14, "network": f"{GLOBAL}/shared"},
                            {"name": "s", "address": "10.0.0.0", "prefixLength": 8, "network": f"{GLOBAL}/other"},
                        ]
                    },
                )
            },
            "the range r of private services",
        ),
    ],
)
def test_a_subnetwork_that_would_overlap_is_refused(answers: dict[str, Response], expected: str) -> None:
    ours = {**EXISTING, "platform_existing_subnetwork": "", "platform_subnetwork_name": "mlflow-europe-west1"}

    (problem,), _ = check({**GOOD_EXISTING, **answers}, ours)

    assert problem.variable == "platform_subnetwork_cidr"
    assert expected in problem.problem
    there = {"subnetworks/mlflow-europe-west1": (200, {"name": "x", "network": f"{GLOBAL}/shared"})}
    assert check({**GOOD_EXISTING, **answers, **there}, ours) == ([], [])


@pytest.mark.parametrize(
    ("resolved", "is_noted"),
    [
        ((), False),
        (("192.0.2.1",), False),
        (("127.0.0.1", "::1"), False),
        (("203.0.113.9",), True),
        (("192.0.2.1", "2001:db8::1"), True),
    ],
)
def test_a_domain_that_leads_elsewhere_is_a_note(resolved: tuple[str, ...], is_noted: bool) -> None:
    problems, notes = check(OURS, resolved=resolved)

    assert problems == []
    assert [resolved[-1] in note for note in notes] == [True] * is_noted
    # Before there is an address, a first run finds whatever the domain was.
    assert check(resolved=resolved) == ([], [])
