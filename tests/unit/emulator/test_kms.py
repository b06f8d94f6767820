"""Keys of the operator's own: a service encrypts with one that exists, in its place, and lets the agent use it."""

from typing import Any

import pytest

from tests.unit.emulator.conftest import PROJECT
from tests.unit.emulator.test_compute import ZONE, insert, network
from tests.unit.emulator.test_sql import INSTANCE, SQL, peering, wanted
from tests.unit.emulator.test_storage import BUCKET, ROOT, new_bucket

__all__ = ["network", "peering"]
KMS = "https://cloudkms.googleapis.com/v1"
RING = f"projects/{PROJECT}/locations/us-central1/keyRings/mlflow"
KEY = f"{RING}/cryptoKeys/mlflow"
ELSEWHERE = f"projects/{PROJECT}/locations/europe-west1/keyRings/mlflow/cryptoKeys/mlflow"
ROLE = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
USAGE = "https://serviceusage.googleapis.com"
AGENT = "service-100000000001@{}.iam.gserviceaccount.com"
SECRETS = f"https://secretmanager.googleapis.com/v1/projects/{PROJECT}/secrets"
BUCKETS, DISKS = f"{ROOT}/storage/v1/b?project={PROJECT}", f"{ZONE}/disks"


@pytest.fixture
def key(cloud: Any) -> str:
    """Return a key that nobody may use yet."""
    cloud.server.cloud.state.services[PROJECT].append("cloudkms.googleapis.com")
    for location in ("us-central1", "europe-west1"):
        ring = f"projects/{PROJECT}/locations/{location}/keyRings"
        cloud.call("POST", f"{KMS}/{ring}?keyRingId=mlflow", {})
        cloud.call("POST", f"{KMS}/{ring}/mlflow/cryptoKeys?cryptoKeyId=mlflow", {"purpose": "ENCRYPT_DECRYPT"})
    return KEY


def agent(cloud: Any, service: str) -> str:
    """Make a service's agent, as whoever grants it something must, and return its address."""
    if service == "storage":
        return str(cloud.call("GET", f"{ROOT}/storage/v1/projects/{PROJECT}/serviceAccount")["email_address"])
    parent = f"projects/{PROJECT}/services/{service}.googleapis.com"
    made = cloud.call("POST", f"{USAGE}/v1beta1/{parent}:generateServiceIdentity")
    return str(cloud.done(made, USAGE)["response"]["email"])


def allow(cloud: Any, key: str, service: str) -> None:
    policy = cloud.call("GET", f"{KMS}/{key}:getIamPolicy")
    binding = {"role": ROLE, "members": [f"serviceAccount:{agent(cloud, service)}"]}
    policy["bindings"] = [*policy.get("bindings", []), binding]
    cloud.call("POST", f"{KMS}/{key}:setIamPolicy", {"policy": policy})


def disk(key: str) -> dict[str, Any]:
    return {"name": "mlflow-1", "sizeGb": "50", "diskEncryptionKey": {"kmsKeyName": key}}


def bucket(key: str) -> dict[str, Any]:
    return new_bucket(encryption={"defaultKmsKeyName": key})


def database(key: str) -> dict[str, Any]:
    return wanted() | {"diskEncryptionConfiguration": {"kmsKeyName": key}}


def secret(key: str) -> dict[str, Any]:
    replica = {"location": "us-central1", "customerManagedEncryption": {"kmsKeyName": key}}
    return {"replication": {"userManaged": {"replicas": [replica]}}}


USERS = pytest.mark.parametrize(
    ("service", "url", "body", "denied"),
    [
        ("storage", BUCKETS, bucket, "Permission denied on Cloud KMS key"),
        ("compute", DISKS, disk, f"Cloud KMS error when using key {KEY}: Permission"),
        ("sqladmin", f"{SQL}/instances", database, f"denied on resource '{KEY}'"),
        ("secretmanager", f"{SECRETS}?secretId=s", secret, f"Permission denied on {KEY}"),
    ],
    ids=["storage", "compute", "sqladmin", "secretmanager"],
)


@USERS
def test_a_key_is_used_where_it_lies_once_the_agent_may(
    cloud: Any, key: str, peering: Any, service: str, url: str, body: Any, denied: str
) -> None:
    assert peering
    assert denied in cloud.refused("POST", url, body(key))["message"]
    allow(cloud, key, service)
    missing = cloud.refused("POST", url, body(key.replace("mlflow", "absent")))["message"]
    assert "not found" in missing or "may not exist" in missing
    assert "denied" not in cloud.refused("POST", url, body(ELSEWHERE))["message"]
    cloud.call("PATCH", f"{KMS}/{key}/cryptoKeyVersions/1?updateMask=state", {"state": "DISABLED"})
    assert cloud.refused("POST", url, body(key))["code"] == 400
    cloud.call("PATCH", f"{KMS}/{key}/cryptoKeyVersions/1?updateMask=state", {"state": "ENABLED"})
    assert "error" not in cloud.done(cloud.call("POST", url, body(key)) | {"done": True})


def test_agents_are_made_on_demand_and_belong_to_google(cloud: Any, key: str) -> None:
    for service, domain in (("storage", "gs-project-accounts"), ("sqladmin", "gcp-sa-cloud-sql")):
        binding = {"role": ROLE, "members": [f"serviceAccount:{AGENT.format(domain)}"]}
        error = cloud.refused("POST", f"{KMS}/{key}:setIamPolicy", {"policy": {"bindings": [binding]}})
        assert "does not exist" in error["message"]
        assert agent(cloud, service) == agent(cloud, service) == AGENT.format(domain)
        cloud.call("POST", f"{KMS}/{key}:setIamPolicy", {"policy": {"bindings": [binding]}})
    accounts = cloud.call("GET", f"https://iam.googleapis.com/v1/projects/{PROJECT}/serviceAccounts")["accounts"]
    assert not [account for account in accounts if "service-" in account["email"]]


def test_enabling_compute_engine_makes_its_agent(cloud: Any) -> None:
    cloud.done(cloud.call("POST", f"{USAGE}/v1/projects/{PROJECT}/services/compute.googleapis.com:enable", {}), USAGE)
    assert cloud.server.cloud.access.account_exists(AGENT.format("compute-system"))


def test_google_names_the_version_that_a_disk_is_encrypted_with(cloud: Any, key: str) -> None:
    allow(cloud, key, "compute")
    assert insert(cloud, DISKS, disk(key))["diskEncryptionKey"]["kmsKeyName"] == f"{key}/cryptoKeyVersions/1"


def test_a_buckets_key_can_change_and_a_databases_cannot(cloud: Any, key: str, peering: Any) -> None:
    assert peering
    allow(cloud, key, "storage")
    cloud.call("POST", BUCKETS, new_bucket())
    changed = cloud.call("PATCH", BUCKET, {"encryption": {"defaultKmsKeyName": key}})
    assert changed["encryption"] == {"defaultKmsKeyName": key}
    assert "encryption" not in cloud.call("PATCH", BUCKET, {"encryption": {"defaultKmsKeyName": None}})
    cloud.done(cloud.call("POST", f"{SQL}/instances", wanted()))
    error = cloud.refused("PATCH", INSTANCE, {"diskEncryptionConfiguration": {"kmsKeyName": key}})
    assert "diskEncryptionConfiguration cannot be changed" in error["message"]


def test_a_secret_that_is_everywhere_takes_a_key_of_everywhere(cloud: Any, key: str) -> None:
    allow(cloud, key, "secretmanager")
    automatic = {"replication": {"automatic": {"customerManagedEncryption": {"kmsKeyName": key}}}}
    assert "location global" in cloud.refused("POST", f"{SECRETS}?secretId=s", automatic)["message"]
    assert cloud.refused("POST", f"{SECRETS}?secretId=s", {"replication": {"userManaged": {}}})["code"] == 400
    cloud.call("POST", f"{SECRETS}?secretId=s", secret(key))
    version = cloud.call("POST", f"{SECRETS}/s:addVersion", {"payload": {"data": "eA=="}})
    assert version["replicationStatus"] == {"userManaged": {"replicas": [{"location": "us-central1"}]}}


def test_keys_are_strict(cloud: Any, key: str) -> None:
    ring = f"{KMS}/{RING}"
    assert cloud.call("GET", f"{KMS}/{key}")["primary"]["state"] == "ENABLED"
    assert cloud.refused("GET", f"{ring}/cryptoKeys/absent")["code"] == 404
    assert cloud.refused("POST", f"{ring}/cryptoKeys?cryptoKeyId=mlflow", {"purpose": "ENCRYPT_DECRYPT"})["code"] == 409
    assert cloud.refused("POST", f"{ring}/cryptoKeys?cryptoKeyId=a%20b", {"purpose": "ENCRYPT_DECRYPT"})["code"] == 400
    wish = {"permissions": ["cloudkms.cryptoKeys.setIamPolicy", "cloudkms.cryptoKeys.getIamPolicy"]}
    assert cloud.call("POST", f"{KMS}/{key}:testIamPermissions", wish) == wish
