"""Tokens, permissions, enabled services, policies, and the metadata server."""

import json
from typing import Any

import google.auth.exceptions
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import compute_engine
from google.auth.compute_engine import _metadata
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2 import service_account

from emulator.certificates import key_pem
from tests.unit.emulator.conftest import PROJECT, SCOPE
from tests.unit.emulator.test_compute import ACCOUNT, BASE, ZONE, insert, machine, network, subnetwork

__all__ = ["network", "subnetwork"]
POLICY = f"https://cloudresourcemanager.googleapis.com/v3/projects/{PROJECT}"
NETWORKS = f"{BASE}/global/networks"


def grant(cloud: Any, role: str, member: str = f"serviceAccount:{ACCOUNT}") -> None:
    policy = cloud.call("POST", f"{POLICY}:getIamPolicy", {"options": {"requestedPolicyVersion": 3}})
    policy["bindings"].append({"role": role, "members": [member]})
    cloud.call("POST", f"{POLICY}:setIamPolicy", {"policy": policy})


def test_a_call_without_a_token_is_401(cloud: Any) -> None:
    error = cloud.refused("GET", NETWORKS, session=requests.Session())
    assert (error["code"], error["status"]) == (401, "UNAUTHENTICATED")
    answer = requests.get(NETWORKS, headers={"Authorization": "Bearer ya29.e30.00"}, timeout=5)
    assert answer.status_code == 401


def test_a_key_that_is_not_the_accounts_gets_no_token(cloud: Any) -> None:
    content = json.loads((cloud.state / "credentials.json").read_text())
    content["private_key"] = key_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    credentials = service_account.Credentials.from_service_account_info(content, scopes=[SCOPE])
    with pytest.raises(google.auth.exceptions.RefreshError, match="invalid_grant"):
        credentials.refresh(Request())


def test_a_self_signed_jwt_is_a_token_too(cloud: Any) -> None:
    file = cloud.state / "credentials.json"
    credentials = service_account.Credentials.from_service_account_file(file, always_use_jwt_access=True)
    scoped = credentials.with_scopes([SCOPE])
    scoped._create_self_signed_jwt(None)
    cloud.call("GET", NETWORKS, session=AuthorizedSession(scoped))


def test_a_narrow_scope_does_not_reach_another_service(cloud: Any) -> None:
    file = cloud.state / "credentials.json"
    scopes = ["https://www.googleapis.com/auth/devstorage.read_write"]
    session = AuthorizedSession(service_account.Credentials.from_service_account_file(file, scopes=scopes))
    assert "insufficient authentication scopes" in cloud.refused("GET", NETWORKS, session=session)["message"]
    cloud.call("GET", f"https://storage.googleapis.com/storage/v1/b?project={PROJECT}", session=session)


def test_a_service_must_be_enabled_first(cloud: Any) -> None:
    cloud.server.cloud.state.services[PROJECT].remove("compute.googleapis.com")
    error = cloud.refused("GET", NETWORKS)
    assert error["code"] == 403
    assert error["details"][0]["reason"] == "SERVICE_DISABLED"
    usage = f"https://serviceusage.googleapis.com/v1/projects/{PROJECT}/services"
    asked = cloud.call("POST", f"{usage}:batchEnable", {"serviceIds": ["compute.googleapis.com"]})
    cloud.done(asked, "https://serviceusage.googleapis.com")
    assert cloud.call("GET", f"{usage}/compute.googleapis.com")["state"] == "ENABLED"
    cloud.call("GET", NETWORKS)
    assert cloud.refused("POST", f"{usage}/nonsense.googleapis.com:enable")["code"] == 403


def test_permission_comes_from_a_role(cloud: Any, server_account: Any) -> None:
    error = cloud.refused("GET", NETWORKS, session=server_account)
    assert "Required 'compute.networks.list' permission" in error["message"]
    grant(cloud, "roles/compute.viewer")
    cloud.call("GET", NETWORKS, session=server_account)
    body = {"name": "n", "autoCreateSubnetworks": False}
    assert cloud.refused("POST", NETWORKS, body, server_account)["code"] == 403


def test_a_conditional_grant_is_not_taken_for_an_unconditional_one(cloud: Any, server_account: Any) -> None:
    condition = {"title": "never", "expression": "false"}
    binding = {"role": "roles/compute.viewer", "members": [f"serviceAccount:{ACCOUNT}"], "condition": condition}
    policy = cloud.call("POST", f"{POLICY}:getIamPolicy")
    policy["bindings"].append(binding)
    assert "version 3" in cloud.refused("POST", f"{POLICY}:setIamPolicy", {"policy": policy})["message"]
    cloud.call("POST", f"{POLICY}:setIamPolicy", {"policy": policy | {"version": 3}})
    assert cloud.refused("GET", NETWORKS, session=server_account)["code"] == 403
    shown = cloud.call("POST", f"{POLICY}:getIamPolicy")
    assert any("_withcond_" in item["role"] for item in shown["bindings"])


def test_a_policy_write_with_a_stale_etag_is_a_conflict(cloud: Any, server_account: Any) -> None:
    del server_account
    stale = cloud.call("POST", f"{POLICY}:getIamPolicy")
    grant(cloud, "roles/cloudsql.client")
    error = cloud.refused("POST", f"{POLICY}:setIamPolicy", {"policy": stale})
    assert (error["code"], error["status"]) == (409, "ABORTED")
    held = cloud.call("POST", f"{POLICY}:getIamPolicy")["bindings"]
    assert {binding["role"] for binding in held} == {"roles/owner", "roles/cloudsql.client"}


def test_a_policy_names_known_roles_and_existing_accounts(cloud: Any) -> None:
    for role, member in (("roles/king", f"serviceAccount:{ACCOUNT}"), ("roles/viewer", f"serviceAccount:{ACCOUNT}")):
        policy = {"bindings": [{"role": role, "members": [member]}]}
        assert cloud.refused("POST", f"{POLICY}:setIamPolicy", {"policy": policy})["code"] == 400


def test_audit_configs_change_only_when_named_in_the_mask(cloud: Any) -> None:
    policy = cloud.call("POST", f"{POLICY}:getIamPolicy")
    policy["auditConfigs"] = [{"service": "allServices", "auditLogConfigs": [{"logType": "DATA_READ"}]}]
    assert "auditConfigs" not in cloud.call("POST", f"{POLICY}:setIamPolicy", {"policy": policy})
    policy["etag"] = cloud.call("POST", f"{POLICY}:getIamPolicy")["etag"]
    body = {"policy": policy, "updateMask": "bindings,etag,auditConfigs"}
    assert cloud.call("POST", f"{POLICY}:setIamPolicy", body)["auditConfigs"] == policy["auditConfigs"]
    for wrong in ([{"service": "allServices", "auditLogConfigs": []}], policy["auditConfigs"] * 2):
        body["policy"] = {"bindings": policy["bindings"], "auditConfigs": wrong}
        assert cloud.refused("POST", f"{POLICY}:setIamPolicy", body)["code"] == 400


def test_the_metadata_server_knows_its_caller_by_address(
    cloud: Any, server_account: Any, subnetwork: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    del server_account, subnetwork
    accounts = [{"email": ACCOUNT, "scopes": [SCOPE]}]
    items = [{"key": "enable-oslogin", "value": "TRUE"}]
    insert(cloud, f"{ZONE}/instances", machine(serviceAccounts=accounts, metadata={"items": items}))
    address = f"127.0.0.1:{cloud.server.settings.metadata_port}"
    root = f"http://{address}/computeMetadata/v1/instance"
    flavor = {"Metadata-Flavor": "Google"}
    assert requests.get(f"{root}/name", timeout=5, headers=flavor).status_code == 404
    cloud.server.cloud.state.resources[f"compute/projects/{PROJECT}/zones/us-central1-b/instances/mlflow-1"]["_ip"] = (
        "127.0.0.1"
    )
    assert requests.get(f"{root}/name", timeout=5).status_code == 403
    cloud.server.faults.append({"method": "metadata", "times": 1, "status": 503})
    assert requests.get(f"{root}/name", timeout=5, headers=flavor).status_code == 503
    assert requests.get(f"{root}/name", timeout=5, headers=flavor).text == "mlflow-1"
    assert requests.get(f"{root}/attributes/enable-oslogin", timeout=5, headers=flavor).text == "TRUE"
    assert requests.get(f"{root}/service-accounts/", timeout=5, headers=flavor).text.splitlines()[0] == "default/"
    # Debian 12's google-auth takes JSON by no other name.
    for path in ("service-accounts/default/token", "?recursive=true", "name?alt=json"):
        answer = requests.get(f"{root}/{path}", timeout=5, headers=flavor)
        assert (answer.headers["Content-Type"], answer.ok) == ("application/json", True), path
        assert answer.json()
    monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", address)
    credentials = compute_engine.Credentials()
    session = AuthorizedSession(credentials)
    assert cloud.refused("GET", NETWORKS, session=session)["code"] == 403
    assert credentials.service_account_email == ACCOUNT
    grant(cloud, "roles/compute.viewer")
    cloud.call("GET", NETWORKS, session=session)


def test_the_proxy_leads_nowhere_else(cloud: Any) -> None:
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get("https://pubsub.googleapis.com/", timeout=5)
    assert requests.get("http://example.test/", timeout=5).status_code == 403
    assert cloud.call("GET", "https://www.googleapis.com/oauth2/v1/certs")


def test_a_projects_own_role_grants_what_it_holds_until_it_is_deleted(
    cloud: Any, network: str, subnetwork: str
) -> None:
    roles, permission = f"https://iam.googleapis.com/v1/projects/{PROJECT}/roles", "cloudsql.instances.export"
    body = {"roleId": "exporter", "role": {"title": "Exporter", "includedPermissions": [permission]}}

    def may() -> bool:
        return bool(cloud.server.cloud.access.allowed("ann@example.com", permission, [f"projects/{PROJECT}"]))

    wrong = {**body, "role": {"includedPermissions": ["cloudsql.instances.exports"]}}
    assert "is not valid" in cloud.refused("POST", roles, wrong)["message"]
    own = f"projects/{PROJECT}/roles/exporter"
    assert (
        "is not supported"
        in cloud.refused(
            "POST",
            f"{POLICY}:setIamPolicy",
            {"policy": {"bindings": [{"role": own, "members": ["user:ann@example.com"]}]}},
        )["message"]
    )
    cloud.call("POST", roles, body)
    assert not may()
    grant(cloud, own, "user:ann@example.com")
    assert may()
    cloud.call("PATCH", f"{roles}/exporter?updateMask=includedPermissions", {"includedPermissions": []})
    assert not may()
    cloud.call("PATCH", f"{roles}/exporter", {"includedPermissions": [permission]})
    cloud.call("DELETE", f"{roles}/exporter")
    assert not may()
    assert "in a deleted state" in cloud.refused("POST", roles, body)["message"]
    cloud.call("POST", f"{roles}/exporter:undelete", {})
    assert may()
