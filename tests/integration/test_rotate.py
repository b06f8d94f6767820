"""Secrets are replaced by one run while clients work, and the certificate by the operator's own."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import secrets
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from cryptography.fernet import Fernet, InvalidToken
from mlflow.exceptions import MlflowException
from mlflow.utils.crypto import KEKManager, _encrypt_secret, unwrap_dek

from emulator.certificates import issue_server, make_authority
from tests.integration.conftest import Deployment, interrupted, not_as_foretold, removed_afterwards, results

VERSIONS = "https://secretmanager.googleapis.com/v1/projects/demo-project/secrets/{}/versions"
CHOICES = ("admin_password", "flask_secret_key", "webhook_secret_encryption_key", "crypto_kek_passphrase")
SECRETS = tuple(f"mlflow-{choice.replace('_', '-')}" for choice in CHOICES)
ROTATE = ("playbooks/rotate.yml", "-e", f"platform_rotate={','.join(CHOICES)}")
NAME = f"rotate-{secrets.token_hex(3)}"
WEBHOOK = {
    "name": NAME,
    "url": "https://8.8.8.8/x",
    "events": [{"entity": "REGISTERED_MODEL", "action": "CREATED"}],
    "status": "DISABLED",
}
PAUSE_SECONDS = 0.1
EMPTY = "empty-project"
Play = Callable[..., Any]


def states(cloud: Any, name: str) -> list[tuple[str, str]]:
    """Return number and state of a secret's versions, newest first."""
    found = cloud.get(VERSIONS.format(name))["versions"]
    return [(one["name"].rpartition("/")[2], one["state"]) for one in found]


class Clients(threading.Thread):
    """A user at work: one run after the other, read back, and webhooks; what went wrong is in `failures`."""

    def __init__(self, deployment: Any, login: tuple[str, str]) -> None:
        super().__init__()
        self.url, self.proxy, self.ca = deployment.url, deployment.environment["HTTPS_PROXY"], deployment.ca_bundle
        self.login = login
        self.stopping = threading.Event()
        self.requests = 0
        self.failures: list[str] = []

    def ask(self, session: requests.Session, verb: str, path: str, body: Any) -> Any:
        self.requests += 1
        try:
            response = session.request(verb, f"{self.url}/api/2.0/mlflow/{path}", json=body, timeout=30)
        except requests.RequestException as error:
            self.failures.append(f"{path}: {error}")
            return {}
        if response.status_code != 200:
            self.failures.append(f"{path}: {response.status_code} {response.text[:200]}")
            return {}
        return response.json()

    def run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.proxies, session.verify, session.auth = {"https": self.proxy}, str(self.ca), self.login
            experiment = self.ask(session, "POST", "experiments/create", {"name": self.login[0]}).get("experiment_id")
            while not self.stopping.wait(PAUSE_SECONDS):
                self.ask(session, "POST", "runs/create", {"experiment_id": experiment})
                self.ask(session, "POST", "runs/search", {"experiment_ids": [experiment], "max_results": 1})
                # MLflow decrypts the secrets of all it lists.
                self.ask(session, "GET", "webhooks", None)


@contextlib.contextmanager
def at_work(deployment: Any, tracking: Callable[..., requests.Response]) -> Iterator[Clients]:
    """Let a user of their own work until the context ends."""
    login = (f"{NAME}-{secrets.token_hex(2)}", secrets.token_urlsafe(24))
    tracking("POST", "users/create", json={"username": login[0], "password": login[1]}).raise_for_status()
    # Whom MLflow gives webhooks.
    tracking("PATCH", "users/update-admin", json={"username": login[0], "is_admin": True}).raise_for_status()
    clients = Clients(deployment, login)
    clients.start()
    try:
        yield clients
    finally:
        clients.stopping.set()
        clients.join(timeout=60)
        tracking("DELETE", "users/delete", json={"username": login[0]}).raise_for_status()


def stored(statement: str) -> list[list[str]]:
    """Return what the tracking database answers."""
    database = ["docker", "exec", "--user", "postgres", "cloudsql-mlflow", "psql", "--host=/run/cloudsql"]
    command = [
        *database,
        "--username=cloudsqladmin",
        "--dbname=mlflow",
        "--no-align",
        "--tuples-only",
        f"--command={statement}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [line.split("|") for line in done.stdout.splitlines()]


def unread(keys: dict[str, str]) -> tuple[list[str], int]:
    """Return what these keys alone do not decrypt, webhooks and secrets of the gateway, and how many they do."""
    key = hashlib.sha256(keys["mlflow-webhook-secret-encryption-key"].encode()).digest()
    cipher, kek = Fernet(base64.urlsafe_b64encode(key)), KEKManager(keys["mlflow-crypto-kek-passphrase"]).get_kek()
    failed = []
    webhooks = stored("SELECT webhook_id, secret FROM webhooks WHERE secret IS NOT NULL")
    for identity, token in webhooks:
        try:
            assert cipher.decrypt(token).startswith(b"signs-")
        except InvalidToken:
            failed.append(identity)
    gateway = stored("SELECT secret_name, encode(wrapped_dek, 'hex') FROM secrets")
    for name, wrapped in gateway:
        try:
            unwrap_dek(bytes.fromhex(wrapped), kek)
        except MlflowException:
            failed.append(name)
    return failed, len(webhooks) + len(gateway) - len(failed)


def keep_providers_key(passphrase: str) -> None:
    """Keep a key as MLflow's AI gateway does, which is closed here."""
    identity, now = f"s-{uuid.uuid4().hex}", time.time_ns() // 1_000_000
    made = _encrypt_secret(json.dumps({"api_key": NAME}), KEKManager(passphrase), identity, NAME)
    stored(
        "INSERT INTO secrets (secret_id, secret_name, encrypted_value, wrapped_dek, kek_version, masked_value,"
        " created_at, last_updated_at, workspace)"
        f" VALUES ('{identity}', '{NAME}', decode('{made.encrypted_value.hex()}', 'hex'),"
        f" decode('{made.wrapped_dek.hex()}', 'hex'), 1, '{{}}', {now}, {now}, 'default')"
    )


def log_in(deployment: Any, password: str) -> int:
    response = requests.get(
        f"{deployment.url}/api/2.0/mlflow/experiments/search?max_results=1",
        auth=("admin", password),
        proxies={"https": deployment.environment["HTTPS_PROXY"]},
        verify=str(deployment.ca_bundle),
        timeout=60,
    )
    return response.status_code


SEARCH = """
import pathlib, subprocess, sys
value = sys.stdin.buffer.read()
journal = subprocess.run(["journalctl", "--no-pager", "--output=cat"], capture_output=True, check=True).stdout
# A program may end meanwhile.
arguments = subprocess.run("cat /proc/[0-9]*/cmdline", shell=True, capture_output=True, check=False).stdout
files = [path.read_bytes() for path in pathlib.Path("/etc/mlflow").rglob("*") if path.is_file()]
assert len(value) > 20 and journal and arguments and files
print([value in text for text in [journal, arguments, *files]].count(True))
"""


def said_on_server(deployment: Any, value: str) -> str:
    """Return how often a value is in the journal, in programs' arguments and in MLflow's settings."""
    command = ["docker", "exec", "--interactive", deployment.server, "python3", "-c", SEARCH]
    done = subprocess.run(command, input=value, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_passwords_and_keys_are_replaced_under_load(
    deployment: Any, cloud: Any, play: Play, tracking: Callable[..., requests.Response]
) -> None:
    old = {name: cloud.secret(name) for name in SECRETS}
    numbers = {name: states(cloud, name)[0][0] for name in SECRETS}
    kept = tracking("POST", "webhooks", json={**WEBHOOK, "secret": "signs-before"}).json()["webhook"]["webhook_id"]
    keep_providers_key(old["mlflow-crypto-kek-passphrase"])
    assert unread(old)[0] == []

    with at_work(deployment, tracking) as clients:
        begun = time.monotonic()
        done = play(*ROTATE, "--diff", "-vvv")
        took = time.monotonic() - begun
        # Whoever serves now has to serve for a while.
        time.sleep(3)

    assert done.code == 0, done.output
    assert clients.failures == []
    assert clients.requests > 50
    print(f"{clients.requests} requests, none failed; rotated in {took:.0f} s")
    new = {name: cloud.secret(name) for name in SECRETS}
    for name in SECRETS:
        assert new[name] != old[name]
        (latest, state), (replaced, replaced_state), *_ = states(cloud, name)
        assert (state, replaced, replaced_state) == ("ENABLED", numbers[name], "DISABLED")
        assert f"{name}: version {latest} takes the place of version {replaced}" in done.output
    failed, read = unread(new)
    assert failed == []
    assert read >= 2
    assert unread(old)[1] == 0
    assert tracking("GET", f"webhooks/{kept}").status_code == 200
    assert log_in(deployment, new["mlflow-admin-password"]) == 200
    assert log_in(deployment, old["mlflow-admin-password"]) == 401
    for value in (*old.values(), *new.values()):
        assert value not in done.output
        assert said_on_server(deployment, value) == "0"

    after = play("playbooks/configure.yml", "--tags", "server_secrets,mlflow")
    assert after.code == 0, after.output
    assert after.changed == 0, after.output


@pytest.mark.long
def test_the_service_works_with_no_other_role_than_the_inventory_states(cloud: Any, play: Play) -> None:
    project = "https://cloudresourcemanager.googleapis.com/v1/projects/demo-project"
    member = "serviceAccount:mlflow-server@demo-project.iam.gserviceaccount.com"

    def policy() -> Any:
        return cloud.call("POST", f"{project}:getIamPolicy", {}).json()

    before = policy()
    wider = {**before, "bindings": [*before["bindings"], {"role": "roles/viewer", "members": [member]}]}
    cloud.call("POST", f"{project}:setIamPolicy", {"policy": wider}).raise_for_status()

    done = play("playbooks/rotate.yml", "-e", "platform_rotate=service_account_bindings", "--diff")

    assert (done.code, done.changed) == (0, 1), done.output
    assert "roles/viewer" in done.output
    assert "Use the service as its users do" in done.output
    assert policy()["bindings"] == before["bindings"]


@pytest.mark.long
def test_a_certificate_of_the_operators_own_takes_the_place_of_the_issued_one(
    deployment: Any, cloud: Any, play: Play, tmp_path: pathlib.Path
) -> None:
    secret = VERSIONS.format("company-certificate").removesuffix("/versions")
    collection, _, name = secret.rpartition("/")
    cloud.call("POST", f"{collection}?secretId={name}", {"replication": {"automatic": {}}}).raise_for_status()
    authority, authority_key = make_authority("A company's own authority")
    trusted = tmp_path / "authority.pem"
    trusted.write_text(authority)
    own = ("-e", f"platform_existing_certificate={name}")
    tags = ("--tags", "server_secrets,nginx,certbot")

    def served(bundle: pathlib.Path) -> int:
        proxies = {"https": deployment.environment["HTTPS_PROXY"]}
        return requests.get(f"{deployment.url}/health", proxies=proxies, verify=str(bundle), timeout=30).status_code

    def add(*names: str) -> None:
        certificate, key = issue_server(authority, authority_key, names[0], list(names))
        data = base64.b64encode(f"{key}{certificate}".encode()).decode()
        cloud.call("POST", f"{secret}:addVersion", {"payload": {"data": data}}).raise_for_status()

    add("another.localhost")
    granted = play("playbooks/provision.yml", "--tags", "gcp_secret", *own)
    assert (granted.code, granted.changed) == (0, 1), granted.output
    refused = play("playbooks/configure.yml", *tags, *own)
    assert refused.code != 0
    assert "is not a certificate of mlflow.localhost with its key" in refused.output
    assert served(deployment.ca_bundle) == 200

    add("mlflow.localhost")
    taken = play("playbooks/configure.yml", *tags, *own, "-vvv")
    assert taken.code == 0, taken.output
    assert "PRIVATE KEY" not in taken.output
    assert served(trusted) == 200

    assert play("playbooks/configure.yml", *tags).code == 0
    assert served(deployment.ca_bundle) == 200
    cloud.call("DELETE", secret).raise_for_status()
    after = play("playbooks/configure.yml", *tags)
    assert (after.code, after.changed) == (0, 0), after.output


@dataclasses.dataclass(frozen=True)
class ByPassword(Deployment):
    """A deployment in the empty project whose server logs in to its database by a password."""

    name: str
    inventory: pathlib.Path

    @property
    def admin_password(self) -> str:
        return self.cloud.secret(f"{self.name}-admin-password", project=EMPTY)

    def database_password(self, version: str = "latest") -> str:
        return self.cloud.secret(f"{self.name}-database-password", version, project=EMPTY)

    def versions(self) -> list[str]:
        """Return the states of the password's versions, newest first."""
        secret = f"https://secretmanager.googleapis.com/v1/projects/{EMPTY}/secrets/{self.name}-database-password"
        return [one["state"] for one in self.cloud.get(f"{secret}/versions")["versions"]]

    def tracking(self, verb: str, path: str, **options: Any) -> requests.Response:
        """Call MLflow's REST API over HTTPS as the administrator."""
        proxies, auth = {"https": self.environment["HTTPS_PROXY"]}, ("admin", self.admin_password)
        url = f"{self.url}/api/2.0/mlflow/{path}"
        return requests.request(
            verb, url, proxies=proxies, auth=auth, verify=str(self.ca_bundle), timeout=60, **options
        )

    def keeps_the_one_before(self) -> bool:
        command = ["docker", "exec", self.server, "test", "-e", "/etc/credstore/mlflow.database-password.previous"]
        return subprocess.run(command, timeout=60, check=False).returncode == 0


@pytest.fixture(scope="module", params=["POSTGRES_17", "MYSQL_8_4"])
def by_password(
    request: pytest.FixtureRequest,
    environment: dict[str, str],
    cloud: Any,
    play: Play,
    make_inventory: Callable[..., pathlib.Path],
) -> Iterator[ByPassword]:
    name = f"login-{secrets.token_hex(2)}"
    inventory = make_inventory(
        [EMPTY],
        platform_name=name,
        platform_domain=f"{name}.localhost",
        platform_sql_login="password",
        platform_sql_database_version=request.param,
    )
    with removed_afterwards(inventory, EMPTY, name, play):
        made = play("site.yml", inventory=inventory)
        assert made.code == 0, made.output
        yield ByPassword(
            url=f"https://{name}.localhost",
            ca_bundle=pathlib.Path(environment["REQUESTS_CA_BUNDLE"]),
            environment=environment,
            server=f"gce-{name}-1",
            cloud=cloud,
            name=name,
            inventory=inventory,
        )


DATABASE_PASSWORD = ("playbooks/rotate.yml", "-e", "platform_rotate=database_password")


@pytest.mark.long
def test_the_databases_password_is_replaced_under_load(by_password: ByPassword, play: Play) -> None:
    old = by_password.database_password()
    # More than have a connection of their own, so that some are opened all the time.
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(at_work(by_password, by_password.tracking)) for _ in range(6)]
        done = play(*DATABASE_PASSWORD, "--diff", "-vvv", inventory=by_password.inventory)
        # Until no connection is used any more that is older.
        time.sleep(65)

    assert done.code == 0, done.output
    assert [failure for one in clients for failure in one.failures] == []
    asked = sum(one.requests for one in clients)
    assert asked > 500
    print(f"{asked} requests, none failed; rotated in {done.seconds:.0f} s")
    new = by_password.database_password()
    assert new != old
    assert by_password.versions()[:2] == ["ENABLED", "DISABLED"]
    assert not by_password.keeps_the_one_before()
    for value in (old, new):
        assert value not in done.output
        assert said_on_server(by_password, value) == "0"
    after = play("site.yml", inventory=by_password.inventory)
    assert (after.code, after.changed) == (0, 0), after.output


@pytest.mark.long
def test_a_password_left_half_way_serves_and_the_next_run_ends_it(
    by_password: ByPassword, play: Play, tmp_path: pathlib.Path
) -> None:
    begun = len(by_password.versions())
    log = tmp_path / "log"

    def killed(condition: Callable[[], bool]) -> None:
        arguments = (*DATABASE_PASSWORD, "-v")
        interrupted(by_password.environment, by_password.inventory, condition, *arguments, log=log)

    def serves() -> bool:
        # By new connections alone.
        subprocess.run(
            ["docker", "exec", by_password.server, "systemctl", "restart", "mlflow"], timeout=300, check=True
        )
        return by_password.tracking("GET", "experiments/search?max_results=1").status_code == 200

    with at_work(by_password, by_password.tracking) as clients:
        # The server knows both, and the database the one before.
        killed(by_password.keeps_the_one_before)
        killed(lambda: "Give the user the password" in log.read_text())
    assert clients.failures == []
    assert serves()
    # The database takes the new one, or is about to.
    killed(lambda: "Look what was replaced" in log.read_text())
    assert serves()

    status = play("playbooks/status.yml", inventory=by_password.inventory)
    assert "password authentication failed" not in status.output
    done = play(*DATABASE_PASSWORD, inventory=by_password.inventory)
    assert done.code == 0, done.output
    assert "the rotation that began before is finished" in done.output
    assert len(by_password.versions()) == begun + 1
    assert by_password.versions()[:2] == ["ENABLED", "DISABLED"]
    assert not by_password.keeps_the_one_before()
    assert serves()


@pytest.mark.long
def test_a_version_added_by_hand_is_brought_by_site(by_password: ByPassword, play: Play) -> None:
    secret = f"https://secretmanager.googleapis.com/v1/projects/{EMPTY}/secrets/{by_password.name}-database-password"
    data = base64.b64encode(secrets.token_urlsafe(30).encode()).decode()
    by_password.cloud.call("POST", f"{secret}:addVersion", {"payload": {"data": data}}).raise_for_status()

    # Without the outage that it makes to see it told.
    whole = ("site.yml", "-e", "verify_database_outage_enabled=false")
    with at_work(by_password, by_password.tracking) as clients:
        checked, brought = (
            play(*whole, *mode, inventory=by_password.inventory, ANSIBLE_STDOUT_CALLBACK="ansible.posix.json")
            for mode in (["--check"], [])
        )
    for run in (checked, brought):
        assert run.code == 0, run.output
    assert not_as_foretold(results(checked.output), results(brought.output)) == set()
    assert clients.failures == []
    assert not by_password.keeps_the_one_before()
    again = play(*whole, inventory=by_password.inventory)
    assert (again.code, again.changed) == (0, 0), again.output
