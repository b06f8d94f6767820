"""Sign-in by Identity-Aware Proxy, put together: MLflow's client, the stand-in before the server, and `site.yml`.

The stand-in is the load balancer: it takes any certificate of the server, and only its clients trust its own.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import pathlib
import secrets
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from emulator.certificates import issue_server, make_authority
from emulator.standins.identity_aware_proxy import IdentityAwareProxy, SigningKey
from tests.unit.client.test_mlflow_iap import ONE_CALL, TRAINING, python, wheel
from tests.unit.emulator.conftest import IAP_AUDIENCE, IAP_CLIENT_ID

__all__ = ["wheel"]
pytestmark = pytest.mark.long
DOMAIN = "mlflow.localhost"
TRAINER, GUEST = (f"{name}@demo-project.iam.gserviceaccount.com" for name in ("iap-trainer", "iap-guest"))
ACCOUNTS = "https://iam.googleapis.com/v1/projects/demo-project/serviceAccounts"
MONITORING = "https://monitoring.googleapis.com/v3/projects/demo-project"
# The domain's record, for one program.
RESOLVE = f"""
import socket
found = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **named: found(host.replace("{DOMAIN}", "127.0.0.1"), *rest, **named)
"""
NAME = f"iap-{secrets.token_hex(3)}"
Play = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Front:
    """The load balancer: its port on loopback, what its clients trust, the proxy, and the key that it signs with."""

    port: int
    ca_bundle: pathlib.Path
    proxy: IdentityAwareProxy
    key: SigningKey


def in_container(name: str, command: str) -> str:
    done = subprocess.run(["docker", "exec", name, "sh", "-c", command], capture_output=True, check=True, timeout=120)
    return done.stdout.decode()


def state(deployment: Any, cloud: Any) -> Any:
    """Return what is on the server and in the cloud for one way of signing in."""
    files = "/etc/nginx/nginx.conf /etc/systemd/system/*.service.d/*.conf /etc/mlflow/live/*"
    units = "systemctl is-active nginx.service certbot.timer iap-verifier.socket iap-verifier.service || true"
    checks = cloud.get(f"{MONITORING}/uptimeCheckConfigs").get("uptimeCheckConfigs", [])
    alerts = cloud.get(f"{MONITORING}/alertPolicies")["alertPolicies"]
    return {
        "files": in_container(deployment.server, f"sha256sum {files}; {units}"),
        "checks": sorted(one["displayName"] for one in [*checks, *alerts]),
    }


@pytest.fixture(scope="module")
def inventory(
    deployment: Any,
    cloud: Any,
    play: Play,
    make_inventory: Callable[..., pathlib.Path],
    tracking: Callable[..., requests.Response],
) -> Iterator[pathlib.Path]:
    """Sign users in by Identity-Aware Proxy while these tests run, and by passwords as before afterwards."""
    before = state(deployment, cloud)
    changed = make_inventory(platform_mlflow_authentication="iap", platform_iap_audience=IAP_AUDIENCE)
    try:
        there = play("site.yml", inventory=changed)
        assert there.code == 0, there.output
        assert state(deployment, cloud) != before
        yield changed
    finally:
        back = play("site.yml")
    assert back.code == 0, back.output
    assert state(deployment, cloud) == before
    again = play("site.yml")
    assert (again.code, again.changed) == (0, 0), again.output
    # Whom MLflow has known since.
    tracking("DELETE", "users/delete", json={"username": TRAINER}).raise_for_status()


@pytest.fixture(scope="module")
def front(
    inventory: pathlib.Path, environment: dict[str, str], cloud: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """Run the load balancer, with the key whose public half the emulated cloud gives out."""
    assert inventory
    directory = tmp_path_factory.mktemp("front")
    authority, authority_key = make_authority("The load balancer's")
    certificate, key = issue_server(authority, authority_key, DOMAIN, [DOMAIN, "127.0.0.1"])
    (directory / "front.pem").write_text(key + certificate)
    bundle = directory / "trusted.pem"
    bundle.write_text(pathlib.Path(environment["REQUESTS_CA_BUNDLE"]).read_text() + authority)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(directory / "front.pem")
    (directory / "iap.key").write_text(in_container("gcp-emulator", "cat /var/lib/emulator/iap.key"))
    google_keys = cloud.get("https://www.googleapis.com/oauth2/v3/certs")
    signing = SigningKey(directory)
    proxy = IdentityAwareProxy("https://127.0.0.1:8443", IAP_CLIENT_ID, IAP_AUDIENCE, {TRAINER}, google_keys, signing)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(proxy.start(tls), loop).result(30)
    yield Front(port, bundle, proxy, signing)
    asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture(scope="module")
def train(
    front: Front,
    environment: dict[str, str],
    cloud: Any,
    wheel: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Yield a function that runs a program of a service account's, by its key."""
    accounts = {}
    for email in (TRAINER, GUEST):
        cloud.call("POST", ACCOUNTS, {"accountId": email.partition("@")[0]}).raise_for_status()
        key = cloud.call("POST", f"{ACCOUNTS}/{email}/keys", {}).json()
        accounts[email] = tmp_path_factory.mktemp("account") / "key.json"
        accounts[email].write_bytes(base64.b64decode(key["privateKeyData"]))

    def run(program: str, email: str, **changed: str) -> subprocess.CompletedProcess[str]:
        variables = {
            **environment,
            "REQUESTS_CA_BUNDLE": str(front.ca_bundle),
            "NO_PROXY": DOMAIN,
            "no_proxy": DOMAIN,
            "GOOGLE_APPLICATION_CREDENTIALS": str(accounts[email]),
            "IAP_CLIENT_ID": IAP_CLIENT_ID,
            "MLFLOW_TRACKING_AUTH": "iap",
            **changed,
        }
        return python(RESOLVE + program, f"https://{DOMAIN}:{front.port}", wheel, **variables)

    yield run
    for email in accounts:
        cloud.call("DELETE", f"{ACCOUNTS}/{email}").raise_for_status()


def test_a_training_gets_through_all_of_it(front: Front, train: Any, deployment: Any) -> None:
    done = train(TRAINING.replace("churn", NAME), TRAINER)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"metrics": 13, "artifact": True, "spans": ["predict"]}
    assert {claims["email"] for claims in front.proxy.admitted} == {TRAINER}
    assert front.proxy.refused == []
    lines = in_container(deployment.server, f"grep --fixed-strings '{TRAINER}' /var/log/nginx/access.log").splitlines()
    logged = [one for one in map(json.loads, lines) if one["user"] == TRAINER]
    assert {one["status"] for one in logged} <= {200, 404}
    assert any(one["method"] == "PUT" and one["request_bytes"] > 2_000_000 for one in logged)


def test_without_the_role_or_a_token_nobody_gets_through(front: Front, train: Any) -> None:
    before = len(front.proxy.admitted)

    for told, email, provider in ((403, GUEST, "iap"), (401, TRAINER, "")):
        front.proxy.refused.clear()
        done = train(ONE_CALL, email, MLFLOW_TRACKING_AUTH=provider)
        assert done.returncode == 1
        assert str(told) in done.stderr
        assert {status for status, _ in front.proxy.refused} == {told}

    assert len(front.proxy.admitted) == before


# The load balancer takes any certificate as well.
@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_straight_to_the_server_only_health_is_served(front: Front, deployment: Any) -> None:
    foreign = front.key.assertion(TRAINER, "1", IAP_AUDIENCE.replace("7110", "7111"))
    right = front.key.assertion(TRAINER, "1", IAP_AUDIENCE)

    def ask(path: str, **options: Any) -> int:
        with requests.Session() as session:
            session.trust_env = False
            session.proxies, session.verify = {"https": deployment.environment["HTTPS_PROXY"]}, False
            return session.get(f"{deployment.url}{path}", timeout=30, **options).status_code

    api = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert ask("/health") == 200
    for path in ("/", api):
        assert ask(path) == 401
        assert ask(path, auth=("admin", deployment.admin_password)) == 401
        assert ask(path, headers={"X-Authenticated-User": TRAINER}) == 401
        assert ask(path, headers={"X-Goog-IAP-JWT-Assertion": foreign}) == 401
    # What all of these lack.
    assert ask(api, headers={"X-Goog-IAP-JWT-Assertion": right}) == 200


def test_a_second_run_changes_nothing_and_all_is_healthy(
    inventory: pathlib.Path, play: Play, tmp_path: pathlib.Path
) -> None:
    again = play("site.yml", inventory=inventory)
    assert (again.code, again.changed) == (0, 0), again.output
    verified = play("playbooks/verify.yml", inventory=inventory)
    assert (verified.code, verified.changed) == (0, 0), verified.output
    page = tmp_path / "status.html"
    status = play("playbooks/status.yml", "-e", f"status_page_path={page}", inventory=inventory)
    assert (status.code, status.changed) == (0, 0), status.output
    assert "Verification for Identity-Aware Proxy" in page.read_text()


def test_what_is_rotated_is_proven_on_the_server(
    inventory: pathlib.Path, play: Play, cloud: Any, deployment: Any, train: Any
) -> None:
    choices = ("admin_password", "flask_secret_key", "crypto_kek_passphrase")
    names = [f"mlflow-{choice.replace('_', '-')}" for choice in choices]
    with_certificate = play("playbooks/rotate.yml", "-e", "platform_rotate=certificate", inventory=inventory)
    assert "not something that this deployment has: certificate" in with_certificate.output
    before = {name: cloud.secret(name) for name in names}

    done = play("playbooks/rotate.yml", "-e", f"platform_rotate={','.join(choices)}", inventory=inventory)

    assert done.code == 0, done.output
    assert "Ask NGINX without an assertion" in done.output
    for name in names:
        versions = cloud.get(f"https://secretmanager.googleapis.com/v1/projects/demo-project/secrets/{name}/versions")
        assert [one["state"] for one in versions["versions"][:2]] == ["ENABLED", "DISABLED"]
        assert cloud.secret(name) != before[name]
    for value, told in ((before[names[0]], "401"), (deployment.admin_password, "200")):
        asked = "curl --silent --output /dev/null --write-out '%{http_code}' --unix-socket /run/mlflow/live.sock"
        api = "http://localhost/api/2.0/mlflow/experiments/search?max_results=1"
        assert in_container(deployment.server, f"{asked} --user 'admin:{value}' '{api}'") == told
    assert train(ONE_CALL, TRAINER).returncode == 0
    again = play("site.yml", inventory=inventory)
    assert (again.code, again.changed) == (0, 0), again.output
