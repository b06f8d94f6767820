"""ID tokens, by each way that Google gives them out, as its own clients ask for them."""

import json
import pathlib
import time
from typing import Any

import google.auth.exceptions
import jwt
import pytest
import requests
from google.auth import compute_engine, impersonated_credentials
from google.auth.compute_engine import _metadata
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2 import id_token, service_account

from tests.unit.emulator.conftest import PROJECT, SCOPE, new_account
from tests.unit.emulator.test_compute import ACCOUNT, ZONE, insert, machine, network, subnetwork

__all__ = ["network", "subnetwork"]
AUDIENCE = "100000000001-mlflow.apps.googleusercontent.com"
ACCOUNTS = f"https://iam.googleapis.com/v1/projects/{PROJECT}/serviceAccounts"


def verified(token: str) -> dict[str, Any]:
    """Return a token's claims, checked against both of Google's documents of keys."""
    client = jwt.PyJWKClient("https://www.googleapis.com/oauth2/v3/certs")
    client.jwk_set = jwt.PyJWKSet.from_dict(requests.get(client.uri, timeout=5).json())
    client.get_jwk_set = lambda refresh=False: client.jwk_set
    claims = jwt.decode(token, client.get_signing_key_from_jwt(token), algorithms=["RS256"], audience=AUDIENCE)
    assert id_token.verify_oauth2_token(token, Request(), AUDIENCE) == claims
    assert claims["exp"] - claims["iat"] == 3600
    assert abs(claims["iat"] - time.time()) < 60
    return claims


def unique_id(cloud: Any, email: str) -> str:
    return str(cloud.call("GET", f"{ACCOUNTS}/{email}")["uniqueId"])


def test_a_service_accounts_key_gets_an_id_token(cloud: Any) -> None:
    content = new_account(cloud, "trainer")
    credentials = service_account.IDTokenCredentials.from_service_account_info(content, target_audience=AUDIENCE)
    credentials.refresh(Request())
    claims = verified(credentials.token)
    unique = unique_id(cloud, content["client_email"])
    assert (claims["email"], claims["email_verified"]) == (content["client_email"], True)
    assert (claims["sub"], claims["azp"], claims["iss"]) == (unique, unique, "https://accounts.google.com")
    with pytest.raises(ValueError, match="audience"):
        id_token.verify_oauth2_token(credentials.token, Request(), "another")


@pytest.mark.parametrize("claims", [{"target_audience": ""}, {"target_audience": AUDIENCE, "scope": SCOPE}])
def test_an_assertion_asks_for_one_audience_and_no_scope(cloud: Any, claims: dict[str, str]) -> None:
    content = json.loads((cloud.state / "credentials.json").read_text())
    times = {"iat": int(time.time()), "exp": int(time.time()) + 3600}
    signed = {"iss": content["client_email"], "aud": content["token_uri"], **times, **claims}
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"}
    form["assertion"] = jwt.encode(signed, content["private_key"], algorithm="RS256")
    answer = requests.post(content["token_uri"], data=form, timeout=5)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


@pytest.fixture
def metadata(
    cloud: Any, server_account: Any, subnetwork: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, dict[str, Any]]:
    """The metadata server's address for an instance that stands for this process, and that instance."""
    accounts = [{"email": ACCOUNT, "scopes": [SCOPE]}]
    insert(cloud, f"{ZONE}/instances", machine(serviceAccounts=accounts))
    name = f"compute/projects/{PROJECT}/zones/us-central1-b/instances/mlflow-1"
    instance: dict[str, Any] = cloud.server.cloud.state.resources[name]
    instance["_ip"] = "127.0.0.1"
    address = f"127.0.0.1:{cloud.server.settings.metadata_port}"
    monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", address)
    return address, instance


def test_a_machine_gets_an_id_token_that_says_where_it_runs(cloud: Any, metadata: tuple[str, dict[str, Any]]) -> None:
    credentials = compute_engine.IDTokenCredentials(Request(), AUDIENCE, use_metadata_identity_endpoint=True)
    credentials.refresh(Request())
    claims = verified(credentials.token)
    assert (claims["email"], claims["sub"]) == (ACCOUNT, unique_id(cloud, ACCOUNT))
    described = claims["google"]["compute_engine"]
    created = described.pop("instance_creation_timestamp")
    assert abs(created - time.time()) < 60
    assert described == {
        "project_id": PROJECT,
        "project_number": 100000000001,
        "zone": "us-central1-b",
        "instance_id": metadata[1]["id"],
        "instance_name": "mlflow-1",
    }


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 400),
        ({"audience": AUDIENCE, "format": "long"}, 400),
        ({"audience": AUDIENCE, "colour": "red"}, 400),
        ({"audience": AUDIENCE, "format": "full", "licenses": "TRUE"}, 501),
        ({"audience": AUDIENCE, "licenses": "FALSE"}, 200),
    ],
)
def test_the_metadata_server_is_strict_and_its_standard_form_has_no_email(
    metadata: tuple[str, Any], query: dict[str, str], status: int, direct: requests.Session
) -> None:
    url = f"http://{metadata[0]}/computeMetadata/v1/instance/service-accounts/default/identity"
    answer = direct.get(url, params=query, headers={"Metadata-Flavor": "Google"}, timeout=5)
    assert answer.status_code == status
    if status == 200:
        assert not {"email", "email_verified", "google"} & set(verified(answer.text))


def test_impersonation_takes_a_role_on_the_account_even_from_a_projects_owner(cloud: Any) -> None:
    email = new_account(cloud, "trainer")["client_email"]
    source = cloud.operator.credentials
    target = impersonated_credentials.Credentials(source, email, [SCOPE])

    def token(include_email: bool) -> str:
        credentials = impersonated_credentials.IDTokenCredentials(target, AUDIENCE, include_email)
        credentials.refresh(Request())
        return str(credentials.token)

    with pytest.raises(google.auth.exceptions.RefreshError, match=r"iam\.serviceAccounts\.getOpenIdToken"):
        token(True)
    role = "roles/iam.serviceAccountOpenIdTokenCreator"
    binding = {"role": role, "members": [f"serviceAccount:{source.service_account_email}"]}
    cloud.call("POST", f"{ACCOUNTS}/{email}:setIamPolicy", {"policy": {"bindings": [binding]}})
    assert verified(token(True))["email"] == email
    assert "email" not in verified(token(False))
    base = "https://iamcredentials.googleapis.com/v1/projects"
    for project, body, code in (
        ("-", {}, 400),
        (PROJECT, {"audience": AUDIENCE}, 400),
        ("-", {"audience": AUDIENCE, "delegates": [f"projects/-/serviceAccounts/{email}"]}, 501),
        ("-", {"audience": AUDIENCE, "colour": "red"}, 400),
    ):
        url = f"{base}/{project}/serviceAccounts/{email}:generateIdToken"
        assert cloud.refused("POST", url, body, AuthorizedSession(source))["code"] == code, body


def test_the_key_outlives_a_restart_and_differs_between_clouds(cloud: Any, tmp_path: pathlib.Path) -> None:
    from emulator.effects import NoEffects
    from emulator.oauth import IdentityKey
    from emulator.server import Server, Settings

    first = IdentityKey(cloud.server.cloud).jwk_set()
    assert IdentityKey(cloud.server.cloud).jwk_set() == first
    other = IdentityKey(Server(Settings(tmp_path / "other"), NoEffects()).cloud).jwk_set()
    assert other["keys"][0]["kid"] != first["keys"][0]["kid"]
