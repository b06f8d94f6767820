import datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.unit.emulator.test_access import grant
from tests.unit.emulator.test_compute import ACCOUNT, BASE, NETWORK, insert, network

__all__ = ["network"]
SQL = "https://sqladmin.googleapis.com/v1/projects/demo-project"
INSTANCE = f"{SQL}/instances/mlflow"
NETWORKING = "https://servicenetworking.googleapis.com"
CONNECTIONS = f"{NETWORKING}/v1/services/servicenetworking.googleapis.com/connections"
DENIED = {"startDate": "12-15", "endDate": "01-07", "time": "00:00:00"}
AXION = {"edition": "ENTERPRISE_PLUS", "tier": "db-c4a-highmem-4"}
USER = ACCOUNT.removesuffix(".gserviceaccount.com")


def settings(**changes: Any) -> dict[str, Any]:
    address = {"ipv4Enabled": False, "privateNetwork": NETWORK, "sslMode": "ENCRYPTED_ONLY"}
    flags = [{"name": "cloudsql.iam_authentication", "value": "on"}]
    common = {"tier": "db-custom-1-3840", "edition": "ENTERPRISE", "ipConfiguration": address, "databaseFlags": flags}
    return common | changes


def wanted(**changes: Any) -> dict[str, Any]:
    return {
        "name": "mlflow",
        "region": "us-central1",
        "databaseVersion": "POSTGRES_17",
        "settings": settings(**changes),
    }


@pytest.fixture
def peering(cloud: Any, network: dict[str, Any]) -> dict[str, Any]:
    reserved = {"name": "services", "addressType": "INTERNAL", "purpose": "VPC_PEERING", "prefixLength": 20}
    insert(cloud, f"{BASE}/global/addresses", reserved | {"network": network["selfLink"]})
    body = {"network": NETWORK, "reservedPeeringRanges": ["services"]}
    cloud.done(cloud.call("POST", CONNECTIONS, body), NETWORKING)
    found: dict[str, Any] = cloud.call("GET", f"{CONNECTIONS}?network={NETWORK}")["connections"][0]
    return found


@pytest.fixture
def instance(cloud: Any, peering: dict[str, Any]) -> dict[str, Any]:
    assert peering["peering"] == "servicenetworking-googleapis-com"
    operation = cloud.done(cloud.call("POST", f"{SQL}/instances", wanted()))
    assert "error" not in operation
    made: dict[str, Any] = cloud.call("GET", INSTANCE)
    return made


def test_a_private_address_needs_the_connection_first(cloud: Any, network: dict[str, Any]) -> None:
    assert network["name"] == "mlflow"
    assert "Service Networking connection" in cloud.refused("POST", f"{SQL}/instances", wanted())["message"]
    body = {"network": NETWORK, "reservedPeeringRanges": ["absent"]}
    assert "'absent' is not a VPC_PEERING address" in cloud.refused("POST", CONNECTIONS, body)["message"]


def test_a_connection_and_its_network_outlive_their_users(cloud: Any, instance: dict[str, Any]) -> None:
    link = f"{CONNECTIONS}/servicenetworking-googleapis-com"
    # Google takes the request, and its operation fails.
    error = cloud.done(cloud.call("POST", link, {"consumerNetwork": NETWORK}), NETWORKING)["error"]
    assert (error["code"], "are still using this connection.\n" in error["message"]) == (9, True)
    assert cloud.call("GET", f"{CONNECTIONS}?network={NETWORK}")["connections"]
    cloud.done(cloud.call("DELETE", instance["selfLink"]))
    assert "error" not in cloud.done(cloud.call("POST", link, {"consumerNetwork": NETWORK}), NETWORKING)
    assert cloud.call("GET", f"{NETWORKING}/v1/services/-/connections?network={NETWORK}") == {}


def test_what_was_done_to_an_instance_takes_more_than_to_read_it(
    cloud: Any, instance: dict[str, Any], server_account: Any
) -> None:
    assert instance
    done = f"{SQL}/operations?instance=mlflow"
    grant(cloud, "roles/cloudsql.client")
    assert server_account.get(INSTANCE).status_code == 200
    assert server_account.get(done).status_code == 403
    grant(cloud, "roles/cloudsql.viewer")
    (operation,) = server_account.get(done).json()["items"]
    assert operation["operationType"] == "CREATE"


def test_an_instance_has_googles_defaults_and_keeps_its_secrets(cloud: Any, instance: dict[str, Any]) -> None:
    assert instance["connectionName"] == "demo-project:us-central1:mlflow"
    assert instance["ipAddresses"][0]["type"] == "PRIVATE"
    assert instance["settings"]["settingsVersion"] == "1"
    assert "PRIVATE KEY" not in str(instance)
    older = "https://sqladmin.googleapis.com/sql/v1beta4/projects/demo-project/instances/mlflow"
    assert cloud.call("GET", older)["name"] == "mlflow"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"edition": "ENTERPRISE_PLUS"}, "Invalid Tier"),
        ({"tier": None}, "tier"),
        ({"ipConfiguration": {"ipv4Enabled": False}}, "At least one of Public IP"),
        ({"backupConfiguration": {"pointInTimeRecoveryEnabled": True}}, "needs backups"),
        ({"databaseFlags": [{"name": "nonsense", "value": "1"}]}, "Invalid flag name: nonsense"),
        ({"dataDiskSizeGb": "ten"}, "TYPE_INT64"),
        ({"dataDiskSizeGb": "9"}, "10 to 65536"),
        (AXION, "HYPERDISK_BALANCED"),
        ({"dataDiskType": "HYPERDISK_BALANCED"}, "HYPERDISK_BALANCED"),
        (AXION | {"dataDiskType": "HYPERDISK_BALANCED"}, "20 to 65536"),
        ({"dataDiskSizeGb": "50", "storageAutoResizeLimit": "20"}, "no less than the disk"),
        ({"dataCacheConfig": {"dataCacheEnabled": True}}, "Enterprise Plus"),
        ({"backupConfiguration": {"enabled": True, "transactionLogRetentionDays": 8}}, "from 1 to 7"),
        ({"maintenanceWindow": {"hour": 24}}, "hour 24"),
        ({"insightsConfig": {"queryInsightsEnabled": True, "queryStringLength": 100}}, "from 256 to 4500"),
        ({"insightsConfig": {"queryInsightsEnabled": True, "queryPlansPerMinute": 21}}, "from 0 to 20"),
        ({"denyMaintenancePeriods": [DENIED, DENIED]}, "one deny maintenance period"),
        ({"denyMaintenancePeriods": [DENIED | {"time": None}]}, "needs a time"),
        ({"denyMaintenancePeriods": [DENIED | {"endDate": "January"}]}, "yyyy-mm-dd"),
        ({"denyMaintenancePeriods": [DENIED | {"startDate": "2027-01-01", "endDate": "2027-05-01"}]}, "1 to 90 days"),
        ({"storageAutoResize": "yes"}, "TYPE_BOOLEAN"),
    ],
)
def test_settings_that_google_refuses_are_refused(
    cloud: Any, peering: Any, changes: dict[str, Any], reason: str
) -> None:
    assert peering
    error = cloud.refused("POST", f"{SQL}/instances", wanted(**changes))
    assert (error["code"], reason in error["message"]) == (400, True), error


def test_the_larger_edition_has_a_cache_and_longer_logs(cloud: Any, instance: dict[str, Any]) -> None:
    assert "dataCacheConfig" not in instance["settings"]
    larger = {
        "edition": "ENTERPRISE_PLUS",
        "tier": "db-perf-optimized-N-2",
        "dataCacheConfig": {"dataCacheEnabled": True},
    }
    error = cloud.refused("PATCH", INSTANCE, {"settings": larger | {"pricingPlan": "PER_USE"}})
    assert "edition cannot be changed together with pricingPlan" in error["message"]
    assert cloud.refused("PATCH", INSTANCE, {"settings": larger, "maintenanceVersion": "x"})["code"] == 400
    cloud.done(cloud.call("PATCH", INSTANCE, {"settings": larger}))
    settings = cloud.call("GET", INSTANCE)["settings"]
    assert (settings["tier"], settings["dataCacheConfig"]) == ("db-perf-optimized-N-2", {"dataCacheEnabled": True})
    logs = {"backupConfiguration": {"enabled": True, "transactionLogRetentionDays": 35}}
    cloud.done(cloud.call("PATCH", INSTANCE, {"settings": logs}))


def test_insights_and_denied_maintenance_are_kept(cloud: Any, instance: dict[str, Any]) -> None:
    assert "insightsConfig" not in instance["settings"]
    asked = {"insightsConfig": {"queryInsightsEnabled": True}, "denyMaintenancePeriods": [DENIED]}
    cloud.done(cloud.call("PATCH", INSTANCE, {"settings": asked}))
    settings = cloud.call("GET", INSTANCE)["settings"]
    assert settings["insightsConfig"]["queryStringLength"] == 1024
    assert settings["denyMaintenancePeriods"] == [DENIED]
    cloud.done(cloud.call("PATCH", INSTANCE, {"settings": {"insightsConfig": {"queryInsightsEnabled": False}}}))
    assert "insightsConfig" not in cloud.call("GET", INSTANCE)["settings"]


def test_a_patch_merges_and_what_is_fixed_stays(cloud: Any, instance: dict[str, Any]) -> None:
    assert instance["settings"]["deletionProtectionEnabled"] is False
    cloud.done(cloud.call("PATCH", INSTANCE, {"settings": {"deletionProtectionEnabled": True}}))
    changed = cloud.call("GET", INSTANCE)["settings"]
    assert (changed["deletionProtectionEnabled"], changed["settingsVersion"]) == (True, "2")
    assert changed["databaseFlags"] == instance["settings"]["databaseFlags"]
    assert cloud.refused("PATCH", INSTANCE, {"region": "europe-west1"})["code"] == 400
    assert cloud.refused("PATCH", INSTANCE, {"settings": {"settingsVersion": "1"}})["code"] == 412
    assert "protected" in cloud.refused("DELETE", INSTANCE)["message"]


def test_a_deleted_instances_name_cannot_be_used_again(cloud: Any, instance: dict[str, Any]) -> None:
    cloud.done(cloud.call("DELETE", instance["selfLink"]))
    assert cloud.refused("GET", INSTANCE)["code"] == 404
    error = cloud.refused("POST", f"{SQL}/instances", wanted())
    assert (error["code"], error["errors"][0]["reason"]) == (409, "instanceAlreadyExists")


@pytest.mark.usefixtures("instance")
def test_one_operation_at_a_time(cloud: Any, direct: Any) -> None:
    direct.post(f"{cloud.admin}/faults", json={"method": "sql.databases.insert", "delay_seconds": 0.5})
    slow = cloud.call("POST", f"{INSTANCE}/databases", {"name": "mlflow"})
    error = cloud.refused("POST", f"{INSTANCE}/databases", {"name": "mlflow_auth"})
    assert error["errors"][0]["reason"] == "operationInProgress"
    cloud.done(slow)
    cloud.done(cloud.call("POST", f"{INSTANCE}/databases", {"name": "mlflow_auth"}))
    found = [item["name"] for item in cloud.call("GET", f"{INSTANCE}/databases")["items"]]
    assert found == ["mlflow", "mlflow_auth", "postgres"]


@pytest.mark.usefixtures("instance", "server_account")
def test_database_users(cloud: Any) -> None:
    users = f"{INSTANCE}/users"
    kind = "CLOUD_IAM_SERVICE_ACCOUNT"
    assert "without the ending" in cloud.refused("POST", users, {"name": ACCOUNT, "type": kind})["message"]
    assert "does not exist" in cloud.refused("POST", users, {"name": "nobody@p.iam", "type": kind})["message"]
    assert (
        "password or hostname" in cloud.refused("POST", users, {"name": USER, "type": kind, "password": "x"})["message"]
    )
    assert "password" in cloud.refused("POST", users, {"name": "mlflow"})["message"]
    cloud.done(cloud.call("POST", users, {"name": USER, "type": kind, "databaseRoles": ["cloudsqlsuperuser"]}))
    cloud.done(cloud.call("POST", users, {"name": "mlflow", "password": "hunter2"}))
    assert "hunter2" not in str(cloud.call("GET", users))
    cloud.done(
        cloud.call("PUT", f"{users}?name=mlflow&databaseRoles=reader&revokeExistingRoles=true", {"name": "mlflow"})
    )
    assert cloud.call("GET", f"{users}/mlflow")["databaseRoles"] == ["reader"]
    cloud.done(cloud.call("DELETE", f"{users}?name=mlflow"))
    assert {item["name"] for item in cloud.call("GET", users)["items"]} == {USER, "postgres"}


@pytest.mark.usefixtures("instance")
def test_connecting_takes_roles_and_the_certificate_says_who(cloud: Any, server_account: Any) -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    request = f"{INSTANCE}:generateEphemeralCert"
    assert cloud.refused("GET", f"{INSTANCE}/connectSettings", session=server_account)["code"] == 403
    assert cloud.refused("POST", request, {"public_key": pem}, server_account)["code"] == 403
    grant(cloud, "roles/cloudsql.client")
    settings = cloud.call("GET", f"{INSTANCE}/connectSettings", session=server_account)
    token = {"public_key": pem, "access_token": server_account.credentials.token}
    assert cloud.refused("POST", request, token, server_account)["code"] == 403
    grant(cloud, "roles/cloudsql.instanceUser")
    authority = x509.load_pem_x509_certificate(settings["serverCaCert"]["cert"].encode())
    for body, name in (({"public_key": pem}, "user"), (token, ACCOUNT)):
        answer = cloud.call("POST", request, body, server_account)
        certificate = x509.load_pem_x509_certificate(answer["ephemeralCert"]["cert"].encode())
        certificate.verify_directly_issued_by(authority)
        assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == name
        assert certificate.public_key() == public
        lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        assert lifetime == datetime.timedelta(hours=1)
    assert cloud.refused("POST", request, {"public_key": "no key"}, server_account)["code"] == 400


def mysql_wanted(**changes: Any) -> dict[str, Any]:
    flags = [{"name": "cloudsql_iam_authentication", "value": "on"}]
    return wanted(databaseFlags=flags, **changes) | {"databaseVersion": "MYSQL_8_4"}


@pytest.fixture
def mysql(cloud: Any, peering: Any) -> dict[str, Any]:
    assert peering
    log = {"enabled": True, "binaryLogEnabled": True}
    cloud.done(cloud.call("POST", f"{SQL}/instances", mysql_wanted(backupConfiguration=log)))
    made: dict[str, Any] = cloud.call("GET", INSTANCE)
    return made


def test_mysql_has_its_own_users_databases_and_charset(cloud: Any, mysql: dict[str, Any]) -> None:
    assert mysql["databaseInstalledVersion"].startswith("MYSQL_8_4")
    assert [(user["name"], user["host"]) for user in cloud.call("GET", f"{INSTANCE}/users")["items"]] == [("root", "%")]
    cloud.done(cloud.call("POST", f"{INSTANCE}/databases", {"name": "mlflow", "charset": "utf8mb4"}))
    assert cloud.call("GET", f"{INSTANCE}/databases/mlflow")["collation"] == "utf8mb4_0900_ai_ci"
    refusal = cloud.refused("POST", f"{INSTANCE}/databases", {"name": "other", "charset": "UTF8"})
    assert (refusal["code"], "utf8mb4" in refusal["message"]) == (501, True)


@pytest.mark.parametrize(
    ("version", "changes", "reason"),
    [
        (
            "MYSQL_8_4",
            {"backupConfiguration": {"enabled": True, "pointInTimeRecoveryEnabled": True}},
            "binaryLogEnabled",
        ),
        ("MYSQL_8_4", {"backupConfiguration": {"enabled": False, "binaryLogEnabled": True}}, "needs backups"),
        ("MYSQL_8_4", {"backupConfiguration": {"enabled": True}, "availabilityType": "REGIONAL"}, "the binary log"),
        ("MYSQL_8_4", {"databaseFlags": [{"name": "cloudsql.iam_authentication", "value": "on"}]}, "Invalid flag"),
        ("POSTGRES_17", {"backupConfiguration": {"enabled": True, "binaryLogEnabled": True}}, "pointInTimeRecovery"),
        ("POSTGRES_17", {"databaseFlags": [{"name": "cloudsql_iam_authentication", "value": "on"}]}, "Invalid flag"),
    ],
)
@pytest.mark.usefixtures("peering")
def test_settings_of_the_other_engine_are_refused(
    cloud: Any, version: str, changes: dict[str, Any], reason: str
) -> None:
    body = {**mysql_wanted(), "databaseVersion": version, "settings": {**mysql_wanted()["settings"], **changes}}
    error = cloud.refused("POST", f"{SQL}/instances", body)
    assert (error["code"], reason in error["message"]) == (400, True), error


@pytest.mark.usefixtures("mysql", "server_account")
def test_mysqls_users_are_names_and_hosts(cloud: Any) -> None:
    users = f"{INSTANCE}/users"
    kind = "CLOUD_IAM_SERVICE_ACCOUNT"
    refused = {
        "does not exist": {"name": USER, "type": kind},
        "hostname should not be specified": {"name": ACCOUNT, "type": kind, "host": "%"},
        "needs a host": {"name": "mlflow", "password": "hunter2"},
        "longer than 32": {"name": "m" * 33, "password": "hunter2", "host": "%"},
    }
    for words, body in refused.items():
        assert words in cloud.refused("POST", users, body)["message"]
    cloud.done(cloud.call("POST", users, {"name": ACCOUNT, "type": kind}))
    cloud.done(cloud.call("POST", users, {"name": "mlflow", "password": "hunter2", "host": "%"}))
    short = ACCOUNT.partition("@")[0]
    found = {item["name"]: item for item in cloud.call("GET", users)["items"]}
    assert {name: (item["host"], item.get("iamEmail")) for name, item in found.items()} == {
        "root": ("%", None),
        short: ("%", ACCOUNT),
        "mlflow": ("%", None),
    }
    clash = {"name": short, "password": "hunter2", "host": "%"}
    assert cloud.refused("POST", users, clash)["errors"][0]["reason"] == "userAlreadyExists"
    # Without its host a user is another one, and an IAM user is known by its address.
    assert cloud.refused("DELETE", f"{users}?name=mlflow")["code"] == 404
    assert cloud.refused("DELETE", f"{users}?name={short}&host=%25")["code"] == 404
    roles = f"{users}?name={ACCOUNT}&host=%25&databaseRoles=cloudsqlsuperuser"
    cloud.done(cloud.call("PUT", roles, {"name": ACCOUNT, "host": "%"}))
    assert cloud.call("GET", f"{users}/{ACCOUNT}?host=%25")["databaseRoles"] == ["cloudsqlsuperuser"]
    cloud.done(cloud.call("DELETE", f"{users}?name={ACCOUNT}&host=%25"))
    assert short not in {item["name"] for item in cloud.call("GET", users)["items"]}
