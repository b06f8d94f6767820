import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from cryptography.fernet import Fernet, InvalidToken
from mlflow.exceptions import MlflowException
from mlflow.utils.crypto import DEFAULT_KEK_PASSPHRASE, KEKManager, _decrypt_secret, _encrypt_secret, unwrap_dek
from testinfra.host import Host

Converge = Callable[..., "subprocess.CompletedProcess[str]"]
Begin = Callable[..., "subprocess.Popen[str]"]
PASSWORD = "admin-secret-5c3e"
PASSPHRASE = "passphrase-secret-e07c"
WEBHOOK_SECRET = "webhook-secret-44b8"


def fernet_key(secret: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest()).decode()


FERNET_KEY = fernet_key(WEBHOOK_SECRET)
SECRETS = (PASSWORD, "flask-secret-91d2", "database-secret-7a", PASSPHRASE, WEBHOOK_SECRET, FERNET_KEY)
LIVE = "/run/mlflow/live.sock"
READY = "/opt/mlflow/bin/mlflow-ready"
TRACKING_SCHEMA = "SELECT version_num FROM alembic_version"
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
REQUEST_ID = "0123456789abcdef0123456789abcdef"
OLDER_REVISION = "f5a4f2784254"

FOREIGN = [
    "http://169.254.169.254/computeMetadata/v1",
    "https://metadata.google.internal/computeMetadata/v1",
    "ftp://127.0.0.1/x",
    "hdfs://127.0.0.1:9090/x",
    "mlflow-artifacts://127.0.0.1:9090/x",
]


def call(
    host: Host,
    path: str,
    body: object = None,
    *,
    method: str = "",
    login: str = f"admin:{PASSWORD}",
    request_id: str = "",
):
    """Status and JSON answer of one API call over the live socket."""
    command = f"curl --silent --unix-socket {LIVE} --write-out '\\n%{{http_code}}' "
    if login:
        header = base64.b64encode(login.encode()).decode()
        command += f"--header 'Authorization: Basic {header}' "
    if body is not None:
        command += f"--header 'Content-Type: application/json' --data '{json.dumps(body)}' "
    if request_id:
        command += f"--header 'X-Request-ID: {request_id}' "
    if method:
        command += f"--request {method} "
    answer, _, status = host.check_output(f"{command} 'http://mlflow.test{path}'").rpartition("\n")
    return int(status), json.loads(answer) if answer.startswith("{") else answer


def test_metrics_of_all_workers_are_told_on_this_machine_alone(host: Host) -> None:
    def counted() -> float:
        status, metrics = call(host, "/metrics", login="")
        assert status == 200
        lines = re.findall(r'^mlflow_http_request_total\{method="GET",status="200"\} (\S+)$', metrics, re.MULTILINE)
        return sum(map(float, lines))

    before = counted()
    for _ in range(10):
        assert call(host, "/api/2.0/mlflow/experiments/search?max_results=1")[0] == 200
    assert counted() >= before + 10
    # As NGINX passes a request on from elsewhere.
    asked = (
        f"curl --silent --unix-socket {LIVE} --output /dev/null --write-out '%{{http_code}}' http://mlflow.test/metrics"
    )
    assert host.check_output(f"{asked} --header 'X-Real-IP: 192.0.2.1'") == "401"


def wait_until_ready(host: Host) -> None:
    assert host.run(f"{READY} --wait 120").rc == 0


def sql(host: Host, statement: str, database: str = "mlflow") -> str:
    command = f'runuser -u postgres -- psql --quiet --tuples-only --no-align --command "{statement}" {database}'
    return host.check_output(command).strip()


def journal(host: Host) -> str:
    return host.check_output("journalctl --unit='mlflow-*' --no-pager --output=cat --boot")


def test_the_service_runs_at_boot(host: Host) -> None:
    service = host.service("mlflow")
    assert service.is_running
    # As another name of the live generation's unit, which no boot starts by itself.
    assert host.check_output("systemctl is-enabled mlflow") == "alias"
    name = host.check_output("systemctl show -P Id mlflow")
    assert name in host.check_output("systemctl show -P Wants multi-user.target").split()


def test_only_the_socket_group_reaches_the_server(host: Host) -> None:
    directory = host.file("/run/mlflow")
    assert (directory.user, directory.group, directory.mode) == ("root", "mlflow-socket", 0o750)
    generation = host.check_output("systemctl show -P Id mlflow.service").removesuffix(".service")
    assert host.check_output(f"readlink {LIVE}") == f"{generation}/server.sock"
    own = host.file(f"/run/mlflow/{generation}")
    assert (own.user, own.group, own.mode) == ("mlflow", "mlflow-socket", 0o750)
    assert "LISTEN" not in host.check_output("ss -Hltnp | grep -E 'python|uvicorn' || true")


def test_secrets_stay_secret(host: Host) -> None:
    places = [
        host.check_output("ps -eo args"),
        host.check_output("systemctl cat mlflow; systemctl show mlflow"),
        host.check_output("find /etc/mlflow /opt/mlflow/bin /run/mlflow -type f -perm /o+r -exec cat {} +"),
        journal(host),
    ]
    assert not [secret for secret in SECRETS if any(secret in place for place in places)]
    # The administrator's password is not even in the server's environment, and nobody else reads the others there.
    environment = "/proc/$(systemctl show -P MainPID mlflow)/environ"
    assert PASSWORD not in host.check_output(f"cat {environment} | tr '\\0' '\\n'")
    assert host.run(f"runuser -u nobody -- cat {environment}").rc != 0


def test_release_belongs_to_root_and_its_page_is_compressed(host: Host) -> None:
    assert host.check_output("find -L /opt/mlflow /etc/mlflow -not -user root -print -quit") == ""
    main = host.check_output("find -L /etc/mlflow/live/release/static/static/js -name 'main.*.js'")
    assert host.check_output(f"gzip --decompress --stdout {main}.gz | cmp - {main} && echo same") == "same"


@pytest.mark.parametrize("unit", ["mlflow", "mlflow-gc", "mlflow-cleanup"])
def test_unit_is_confined(host: Host, unit: str) -> None:
    unit = host.check_output(f"systemctl show -P Id {unit}.service")
    report = host.check_output(f"systemd-analyze security --no-pager {unit} | tail -1")
    assert float(report.split(f"{unit}:")[1].split()[0]) <= 1.5


def test_a_worker_goes_first_where_memory_runs_out(host: Host) -> None:
    main = host.check_output("systemctl show -P MainPID mlflow")
    supervisor = host.check_output(f"pgrep --parent {main} --full uvicorn")
    workers = host.check_output(f"pgrep --parent {supervisor} --full spawn_main").split()
    assert len(workers) == 2
    assert {host.check_output(f"cat /proc/{worker}/oom_score_adj") for worker in workers} == {"500"}
    assert host.check_output("cat /proc/$(pidof -s systemd-journald)/oom_score_adj") != "500"
    assert host.check_output("systemctl show -P OOMPolicy mlflow") == "continue"


@pytest.mark.parametrize("path", [SEARCH, "/api/3.0/mlflow/server-info"])
def test_the_api_wants_a_login(host: Host, path: str) -> None:
    for login in ("", "admin:wrong-password-1", "nobody:wrong-password-1"):
        assert call(host, path, login=login)[0] == 401, login
    assert call(host, path)[0] == 200


def logins(host: Host, address: str, user: str, passwords: str) -> list[str]:
    """Status of one call for each password, from one address as NGINX would say."""
    curl = f"curl --silent --output /dev/null --unix-socket {LIVE} --write-out '%{{http_code}}\\n'"
    call = f"{curl} --header 'X-Real-IP: {address}' --user {user}:$password 'http://mlflow.test{SEARCH}'"
    return host.check_output(f"for password in {passwords}; do {call}; done").split()


def test_who_guesses_passwords_waits_and_nobody_else(host: Host) -> None:
    guesser, other = "203.0.113.9", "203.0.113.10"
    # Ten by each of the two workers, and one more by each in six seconds.
    answers = logins(host, guesser, "bob", "$(seq 100)")
    assert set(answers) == {"401", "429"}
    assert answers.count("429") >= 60
    refused = host.check_output(
        f"for guess in $(seq 200 220); do curl --silent --include --unix-socket {LIVE} --user bob:$guess"
        f" --header 'X-Real-IP: {guesser}' 'http://mlflow.test{SEARCH}'; done"
    ).lower()
    assert "http/1.1 429" in refused
    told = next(answer for answer in refused.split("http/1.1 ") if answer.startswith("429"))
    assert "retry-after: 6" in told
    assert "www-authenticate" not in told
    assert f"Too many passwords for one user from {guesser}" in journal(host)
    assert set(logins(host, guesser, "admin", PASSWORD)) == {"200"}
    assert set(logins(host, other, "bob", "$(cat /etc/credstore/mlflow.user-bob-password)")) == {"200"}
    # A program with the password of yesterday.
    assert set(logins(host, other, "bob", "$(yes yesterday | head -60)")) == {"401"}


def test_a_host_that_is_not_allowed_is_refused(host: Host) -> None:
    command = f"curl --silent --unix-socket {LIVE} --output /tmp/answer --write-out '%{{http_code}}'"
    assert host.check_output(f"{command} --header 'Host: other.test' http://mlflow.test/") == "403"


def test_a_run_and_its_artifact_are_read_back(host: Host) -> None:
    name = f"testinfra-{time.time_ns()}"
    status, experiment = call(host, "/api/2.0/mlflow/experiments/create", {"name": name})
    assert status == 200
    _, created = call(host, "/api/2.0/mlflow/runs/create", {"experiment_id": experiment["experiment_id"]})
    run_id = created["run"]["info"]["run_id"]
    assert created["run"]["info"]["artifact_uri"].startswith("mlflow-artifacts:/")
    call(host, "/api/2.0/mlflow/runs/log-parameter", {"run_id": run_id, "key": "depth", "value": "7"})
    artifact = f"/api/2.0/mlflow-artifacts/artifacts/{experiment['experiment_id']}/{run_id}/artifacts/note.json"
    assert call(host, artifact, {"kept": True}, method="PUT")[0] == 200

    _, read = call(host, f"/api/2.0/mlflow/runs/get?run_id={run_id}")
    assert read["run"]["data"]["params"] == [{"key": "depth", "value": "7"}]
    assert call(host, artifact) == (200, {"kept": True})
    assert "note.json" in host.check_output("find /var/lib/mlflow/artifacts -type f")


def test_every_route_but_the_open_ones_wants_a_login(walk, open_paths: set[str]) -> None:
    walked, answered = walk()
    assert {
        "/v1/traces",
        "/graphql",
        "/get-artifact",
        "/api/2.0/mlflow/runs/create",
        "/api/2.0/mlflow/users/create",
    } <= walked
    assert {(path, status) for path, status in answered if path not in open_paths} == set()


@pytest.mark.parametrize("location", FOREIGN)
def test_the_server_is_sent_to_no_other_host(host: Host, location: str) -> None:
    name = f"attack-{time.time_ns()}"
    status, answer = call(host, "/api/2.0/mlflow/experiments/create", {"name": name, "artifact_location": location})
    assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert call(host, "/api/2.0/mlflow/registered-models/create", {"name": name})[0] == 200
    source = {"name": name, "source": location}
    assert call(host, "/api/2.0/mlflow/model-versions/create", source)[0] == 400


@pytest.mark.parametrize("source", ["file:///etc", "/etc", "file:///run/credentials"])
def test_no_model_is_made_of_the_servers_files(host: Host, source: str) -> None:
    name = f"attack-{time.time_ns()}"
    assert call(host, "/api/2.0/mlflow/registered-models/create", {"name": name})[0] == 200
    assert call(host, "/api/2.0/mlflow/model-versions/create", {"name": name, "source": source})[0] == 400


@pytest.mark.parametrize("url", ["http://169.254.169.254/x", "https://169.254.169.254/x", "https://127.0.0.1/x"])
def test_webhooks_reach_neither_metadata_nor_loopback(host: Host, url: str) -> None:
    webhook = {"name": "attack", "url": url, "events": [{"entity": "REGISTERED_MODEL", "action": "CREATED"}]}
    assert call(host, "/api/2.0/mlflow/webhooks", webhook)[0] == 400


@pytest.mark.parametrize(
    "path",
    ["../../../../etc/passwd", "%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "..%252f..%252f..%252f..%252fetc/passwd"],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_artifact_paths_stay_below_their_root(host: Host, path: str, method: str) -> None:
    passwd = host.file("/etc/passwd").sha256sum
    status = host.check_output(
        f"curl --silent --path-as-is --unix-socket {LIVE} --request {method} --user admin:admin-secret-5c3e --data x"
        f" --output /tmp/answer --write-out '%{{http_code}}' 'http://mlflow.test/api/2.0/mlflow-artifacts/artifacts/{path}'"
    )
    assert status in ("400", "404")
    assert host.file("/etc/passwd").sha256sum == passwd


def test_many_at_once_are_served_by_few_connections_to_the_database(host: Host) -> None:
    request = (
        "curl --silent --output /dev/null --write-out '%{http_code}\\n'"
        f" --user admin:{PASSWORD} --unix-socket {LIVE} 'http://mlflow.test{SEARCH}'"
    )
    count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'mlflow@test'"
    most = host.check_output(
        f"seq 600 | xargs -P 60 -I@ {request} >/srv/answers & load=$!; most=0;"
        " while kill -0 $load 2>/dev/null; do"
        f' now=$(runuser -u postgres -- psql --quiet --tuples-only --no-align --command "{count}");'
        " test $now -le $most || most=$now; done; echo $most"
    )
    assert host.check_output("sort /srv/answers | uniq --count").split() == ["600", "200"]
    # Two workers with three pools of five.
    assert 2 <= int(most) <= 30


def test_readiness_follows_the_database(host: Host) -> None:
    assert host.run(READY).rc == 0
    host.check_output("systemctl stop postgresql")
    try:
        away = host.run(READY)
        call(host, SEARCH, request_id=REQUEST_ID)
        constant, _ = call(host, "/health", login="")
    finally:
        host.check_output("systemctl start postgresql")
    # Which request it was; NGINX gives the id.
    assert f"ERROR mlflow.server.handlers: request_id={REQUEST_ID} " in journal(host)
    assert away.rc == 1
    assert "is the database there?" in away.stderr
    assert constant == 200
    wait_until_ready(host)


@pytest.mark.parametrize("victim", ["main process", "uvicorn"])
def test_a_killed_process_comes_back(host: Host, victim: str) -> None:
    main = host.check_output("systemctl show -P MainPID mlflow")
    pid = main if victim == "main process" else host.check_output(f"pgrep --parent {main} --full uvicorn")
    host.check_output(f"kill -9 {pid}")
    deadline = time.monotonic() + 60
    while host.check_output("systemctl show -P MainPID mlflow") in (main, "0"):
        assert time.monotonic() < deadline
        time.sleep(1)
    wait_until_ready(host)


def test_the_secret_decides_the_administrators_password(host: Host) -> None:
    changed = {"username": "admin", "current_password": PASSWORD, "password": "changed-in-the-page-1"}
    assert call(host, "/api/2.0/mlflow/users/update-password", changed, method="PATCH")[0] == 200
    host.check_output("systemctl restart mlflow")
    assert host.run(READY).rc == 0
    assert call(host, SEARCH)[0] == 200


@pytest.mark.parametrize(
    ("revision", "remedy"), [(OLDER_REVISION, "run playbooks/upgrade.yml"), ("ffffffffffff", "a newer MLflow wrote it")]
)
def test_another_schema_is_refused_and_left_alone(host: Host, revision: str, remedy: str) -> None:
    current = sql(host, TRACKING_SCHEMA)
    sql(host, f"UPDATE alembic_version SET version_num = '{revision}'")
    try:
        assert host.run("systemctl restart mlflow").rc != 0
        time.sleep(5)  # longer than RestartSec
        assert host.check_output("systemctl show -P ActiveState mlflow") == "failed"
        assert sql(host, TRACKING_SCHEMA) == revision
    finally:
        sql(host, f"UPDATE alembic_version SET version_num = '{current}'")
    assert remedy in journal(host)
    host.check_output("systemctl start mlflow")
    assert host.run(READY).rc == 0


def insert_gateway_secret(host: Host, passphrase: str) -> str:
    """Name of a new secret of the AI gateway, encrypted as an MLflow with another passphrase does."""
    name, identity, now = f"by-sql-{time.time_ns()}", f"s-{uuid.uuid4().hex}", time.time_ns() // 1_000_000
    made = _encrypt_secret(json.dumps({"api_key": name}), KEKManager(passphrase), identity, name)
    value, key = made.encrypted_value.hex(), made.wrapped_dek.hex()
    sql(
        host,
        "INSERT INTO secrets (secret_id, secret_name, encrypted_value, wrapped_dek, kek_version, masked_value,"
        " created_at, last_updated_at, workspace)"
        f" VALUES ('{identity}', '{name}', decode('{value}', 'hex'), decode('{key}', 'hex'), 1, '{{}}',"
        f" {now}, {now}, 'default')",
    )
    return name


def stored_gateway_secret(host: Host, name: str) -> tuple[str, bytes, bytes]:
    columns = "secret_id, encode(encrypted_value, 'hex'), encode(wrapped_dek, 'hex')"
    identity, value, key = sql(host, f"SELECT {columns} FROM secrets WHERE secret_name = '{name}'").split("|")
    return identity, bytes.fromhex(value), bytes.fromhex(key)


def test_what_mlflow_encrypts_is_read_after_a_restart_and_by_our_keys_alone(host: Host) -> None:
    events = [{"entity": "REGISTERED_MODEL", "action": "CREATED"}]
    webhook = {"name": "kept", "url": "https://8.8.8.8/x", "events": events, "secret": "signs-7", "status": "DISABLED"}
    status, made = call(host, "/api/2.0/mlflow/webhooks", webhook)
    assert status == 200, made
    of_before = Fernet(Fernet.generate_key()).encrypt(b"of a process that is gone").decode()
    lost = uuid.uuid4()
    sql(
        host,
        "INSERT INTO webhooks (webhook_id, name, url, status, secret, workspace)"
        f" VALUES ('{lost}', 'lost', 'https://8.8.8.8/x', 'DISABLED', '{of_before}', 'default')",
    )
    name = f"by-api-{time.time_ns()}"
    provider = {"secret_name": name, "secret_value": {"api_key": name}, "provider": "openai"}
    status, answer = call(host, "/api/3.0/mlflow/gateway/secrets/create", provider)
    assert status == 200, answer
    public, foreign = insert_gateway_secret(host, DEFAULT_KEK_PASSPHRASE), insert_gateway_secret(host, "of another one")
    as_it_was = stored_gateway_secret(host, foreign)

    host.check_output("systemctl restart mlflow")
    assert host.run(READY).rc == 0

    # By more than one worker.
    path = f"/api/2.0/mlflow/webhooks/{made['webhook']['webhook_id']}"
    assert {call(host, path)[0] for _ in range(10)} == {200}
    stored = sql(host, "SELECT secret FROM webhooks WHERE name = 'kept' ORDER BY creation_timestamp DESC LIMIT 1")
    assert Fernet(FERNET_KEY).decrypt(stored.encode()) == b"signs-7"
    ours = KEKManager(PASSPHRASE)
    for known in (name, public):
        identity, value, key = stored_gateway_secret(host, known)
        assert _decrypt_secret(value, key, ours, identity, known) == {"api_key": known}
        with pytest.raises(MlflowException):
            unwrap_dek(key, KEKManager(DEFAULT_KEK_PASSPHRASE).get_kek())
    config = "/ajax-api/3.0/mlflow/gateway/secrets/config"
    assert call(host, config)[1]["using_default_passphrase"] is False
    # What nobody opens is named, and left for the one who has the key.
    assert stored_gateway_secret(host, foreign) == as_it_was
    for credential, what in (("crypto-kek-passphrase", foreign), ("webhook-secret-encryption-key", lost)):
        assert f"mlflow.{credential} does not decrypt the secrets of" in journal(host)
        assert str(what) in journal(host)
    assert not [one for one in (*SECRETS, "signs-7") if one in journal(host)]
    sql(host, f"DELETE FROM secrets WHERE secret_name = '{foreign}'; DELETE FROM webhooks WHERE webhook_id = '{lost}'")


def add_webhook(host: Host, secret: str, key: str = FERNET_KEY) -> str:
    """Identity of a new webhook, whose secret is encrypted as by a server with that key."""
    identity, token = str(uuid.uuid4()), Fernet(key).encrypt(secret.encode()).decode()
    sql(
        host,
        "INSERT INTO webhooks (webhook_id, name, url, status, secret, workspace)"
        f" VALUES ('{identity}', 'by-sql', 'https://8.8.8.8/x', 'DISABLED', '{token}', 'default')",
    )
    return identity


def opened(host: Host, passphrase: str, webhook_key: str) -> set[str]:
    """What these two keys decrypt: names of the gateway's secrets, and what webhooks sign with."""
    kek, found = KEKManager(passphrase).get_kek(), set()
    for row in sql(host, "SELECT secret_name, encode(wrapped_dek, 'hex') FROM secrets WHERE kek_version = 1").split():
        name, key = row.split("|")
        with contextlib.suppress(MlflowException):
            unwrap_dek(bytes.fromhex(key), kek)
            found.add(name)
    for token in sql(host, "SELECT secret FROM webhooks WHERE secret IS NOT NULL").split():
        with contextlib.suppress(InvalidToken):
            found.add(Fernet(fernet_key(webhook_key)).decrypt(token.encode()).decode())
    return found


def replace_keys(host: Host, passphrase: str, webhook_key: str) -> None:
    """Leave in the credentials' directory what server_secrets leaves there when it replaces both keys."""
    for name, value in (("crypto-kek-passphrase", passphrase), ("webhook-secret-encryption-key", webhook_key)):
        path = f"/etc/credstore/mlflow.{name}"
        host.check_output(
            f"(cat {path}; echo) >{path}.previous && chmod 0600 {path}.previous && printf {value} >{path}"
        )


@pytest.mark.long
def test_new_keys_take_the_place_of_the_old_ones_and_nothing_is_lost(host: Host, converge: Converge) -> None:
    new_passphrase, new_key = "passphrase-secret-of-now-51f0", "webhook-secret-of-now-8d13"
    webhook = {"name": "before", "url": "https://8.8.8.8/x", "status": "DISABLED", "secret": f"signs-{time.time_ns()}"}
    webhook["events"] = [{"entity": "REGISTERED_MODEL", "action": "CREATED"}]
    status, made = call(host, "/api/2.0/mlflow/webhooks", webhook)
    assert status == 200, made
    path = f"/api/2.0/mlflow/webhooks/{made['webhook']['webhook_id']}"
    name = f"by-api-{time.time_ns()}"
    provider = {"secret_name": name, "secret_value": {"api_key": name}, "provider": "openai"}
    assert call(host, "/api/3.0/mlflow/gateway/secrets/create", provider)[0] == 200
    by_sql, deleted = insert_gateway_secret(host, PASSPHRASE), f"deleted-{time.time_ns()}"
    sql(host, f"UPDATE webhooks SET deleted_timestamp = 1 WHERE webhook_id = '{add_webhook(host, deleted)}'")
    before = opened(host, PASSPHRASE, WEBHOOK_SECRET)
    assert {name, by_sql, webhook["secret"], deleted} <= before

    replace_keys(host, new_passphrase, new_key)
    replaced = converge("-vvv")
    assert replaced.returncode == 0, replaced.stdout
    # What the server before may still write is read with its keys; what is written now, with those of now.
    assert {call(host, path)[0] for _ in range(10)} == {200}
    later = {**webhook, "name": "later", "secret": f"later-{time.time_ns()}"}
    assert call(host, "/api/2.0/mlflow/webhooks", later)[0] == 200
    assert opened(host, PASSPHRASE, WEBHOOK_SECRET) == before
    assert opened(host, new_passphrase, new_key) == {later["secret"]}

    foreign = insert_gateway_secret(host, "of another one")
    lost = add_webhook(host, "x", Fernet.generate_key().decode())
    as_it_was = stored_gateway_secret(host, foreign)
    check = converge("--check", "--diff", entry_point="reencrypt")
    assert check.returncode == 0, check.stdout
    assert "changed=0 " not in check.stdout
    assert opened(host, PASSPHRASE, WEBHOOK_SECRET) == before

    refused = converge(entry_point="reencrypt")
    assert refused.returncode != 0
    assert f"mlflow.crypto-kek-passphrase does not decrypt the secrets of {foreign}:" in refused.stdout
    assert f"mlflow.webhook-secret-encryption-key does not decrypt the secrets of {lost}:" in refused.stdout
    assert stored_gateway_secret(host, foreign) == as_it_was
    assert opened(host, new_passphrase, new_key) == before | {later["secret"]}
    assert host.file("/etc/credstore/mlflow.crypto-kek-passphrase.previous").exists
    sql(host, f"DELETE FROM secrets WHERE secret_name = '{foreign}'; DELETE FROM webhooks WHERE webhook_id = '{lost}'")
    finished = converge("-vvv", entry_point="reencrypt")
    assert finished.returncode == 0, finished.stdout
    assert opened(host, new_passphrase, new_key) == before | {later["secret"]}
    assert opened(host, PASSPHRASE, WEBHOOK_SECRET) == set()
    assert host.check_output("find /etc/credstore -name '*.previous'") == ""
    assert "changed=0 " in converge(entry_point="reencrypt").stdout
    host.check_output("systemctl restart mlflow")
    assert {call(host, path)[0] for _ in range(10)} == {200}
    test_unit_is_confined(host, "mlflow-reencrypt")
    values = [*SECRETS, new_passphrase, new_key, fernet_key(new_key), webhook["secret"]]
    places = [journal(host), host.check_output("ps -eo args"), replaced.stdout, refused.stdout, finished.stdout]
    assert not [value for value in values if any(value in place for place in places)]

    # Back: the keys that the other tests know.
    replace_keys(host, PASSPHRASE, WEBHOOK_SECRET)
    assert converge().returncode == 0
    assert converge(entry_point="reencrypt").returncode == 0
    assert before <= opened(host, PASSPHRASE, WEBHOOK_SECRET)


@pytest.mark.long
def test_an_encryption_that_was_killed_is_finished_by_the_next(host: Host, begin: Begin, converge: Converge) -> None:
    older = "older-secret-77c1"
    for name in ("crypto-kek-passphrase", "webhook-secret-encryption-key"):
        path = f"/etc/credstore/mlflow.{name}.previous"
        host.check_output(f"echo {older} >{path} && chmod 0600 {path}")
    made = {insert_gateway_secret(host, older), "signs-older"}
    add_webhook(host, "signs-older", fernet_key(older))
    locked = "BEGIN; LOCK TABLE webhooks IN EXCLUSIVE MODE; SELECT pg_sleep(600)"
    host.check_output(f"systemd-run --quiet --collect --uid=postgres psql --quiet --command '{locked}' mlflow")
    run = begin(entry_point="reencrypt")
    # In the middle of its transaction: the gateway's secret is written, the webhook's waits.
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'UPDATE webhooks%'"
    try:
        deadline = time.monotonic() + 300
        while sql(host, waiting) != "1":
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        host.run("systemctl kill --signal=SIGKILL mlflow-reencrypt")
        sleeping = "FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()"
        sql(host, f"SELECT pg_terminate_backend(pid) {sleeping}")
    assert opened(host, older, older) == made

    finished = converge(entry_point="reencrypt")
    assert finished.returncode == 0, finished.stdout
    assert made <= opened(host, PASSPHRASE, WEBHOOK_SECRET)
    assert opened(host, older, older) == set()
    assert "changed=0 " in converge(entry_point="reencrypt").stdout


def test_the_databases_password_is_replaced_without_a_failed_request(host: Host, converge: Converge) -> None:
    new, path = "database-secret-of-now-31c9", "/etc/credstore/mlflow.database-password"
    old = host.check_output(f"cat {path}")
    others = "FROM pg_stat_activity WHERE usename = 'mlflow@test'"
    latest = "SELECT coalesce(max(backend_start), '-infinity') " + others

    def take(password: str) -> None:
        sql(host, f"ALTER ROLE \\\"mlflow@test\\\" PASSWORD '{password}'")

    def answers_by_new_connections() -> set[int]:
        before = sql(host, latest)
        sql(host, f"SELECT pg_terminate_backend(pid) {others}")
        found = {call(host, SEARCH)[0] for _ in range(20)}
        assert sql(host, f"SELECT ({latest}) > '{before}'") == "t"
        return found

    try:
        host.check_output(f"(cat {path}; echo) >{path}.previous && chmod 0600 {path}.previous && printf {new} >{path}")
        host.check_output("systemctl restart mlflow")
        assert answers_by_new_connections() == {200}
        # The database does not know it yet: what is known of before stays.
        refused = converge(entry_point="reencrypt")
        assert refused.returncode != 0
        assert "password authentication failed" in refused.stdout
        assert host.file(f"{path}.previous").exists

        take(new)
        assert answers_by_new_connections() == {200}
        assert converge(entry_point="reencrypt").returncode == 0
        assert not host.file(f"{path}.previous").exists
        assert answers_by_new_connections() == {200}
        assert not [value for value in (old, new) if value in journal(host) + host.check_output("ps -eo args")]
    finally:
        take(old)
        host.check_output(f"printf {old} >{path} && rm -f {path}.previous && systemctl restart mlflow")
    assert "changed=0 " in converge().stdout


@pytest.mark.usefixtures("once")
def test_a_start_may_take_longer_than_the_watchdog_waits(host: Host) -> None:
    unit = host.check_output("systemctl show -P Id mlflow.service")
    shorter = f"/run/systemd/system/{unit}.d"
    host.check_output(f"mkdir -p {shorter} && printf '[Service]\\nWatchdogSec=30\\n' >{shorter}/watchdog.conf")
    host.check_output("systemctl daemon-reload")
    locked = "BEGIN; LOCK TABLE alembic_version; SELECT pg_sleep(45); COMMIT"
    host.check_output(f"systemd-run --quiet --collect --uid=postgres psql --quiet --command '{locked}' mlflow")
    try:
        assert host.run("systemctl restart mlflow").rc == 0
    finally:
        host.check_output(f"rm -r {shorter} && systemctl daemon-reload")
    assert "Watchdog timeout" not in host.check_output(f"journalctl --unit={unit} --since=-2min --no-pager")
    assert host.run(READY).rc == 0


def test_a_build_waits_for_one_that_goes_on(host: Host) -> None:
    assert host.run("systemctl is-active another-build").stdout.strip() == "inactive"
    (release,) = host.check_output("ls -d /opt/mlflow/releases/3.17.2-*").split()
    assert not host.file(f"{release}/of-another-build").exists
    assert host.file(f"{release}/.complete").exists


def api(host: Host, path: str, body: object):
    """Answer of a call that has to succeed."""
    status, answer = call(host, f"/api/2.0/mlflow/{path}", body)
    assert status == 200, answer
    return answer


def run_with_artifact(host: Host, experiment: str) -> str:
    """Id of a new run with a file in the artifacts."""
    run = api(host, "runs/create", {"experiment_id": experiment})["run"]["info"]["run_id"]
    path = f"/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/note.json"
    assert call(host, path, {"kept": True}, method="PUT")[0] == 200
    return run


def test_while_a_restore_has_not_ended_nothing_starts_it(host: Host, converge: Converge) -> None:
    host.check_output("echo 20300101T020000Z >/etc/mlflow/restoring && systemctl stop mlflow")
    try:
        assert host.run("systemctl start mlflow").rc != 0
        for options in ((), ("--check",)):
            refused = converge(*options)
            assert refused.returncode != 0
            assert "a part of the backup set 20300101T020000Z" in " ".join(refused.stdout.split())
        assert not host.service("mlflow").is_running
        # Nor is half of it taken for what is there, or removed for good.
        assert host.run("systemctl start mlflow-gc").rc != 0
        refused = converge(entry_point="describe")
        assert refused.returncode != 0
        assert "a restore has not ended here" in " ".join(refused.stdout.split())
    finally:
        host.check_output("rm /etc/mlflow/restoring && systemctl start mlflow")
    assert "changed=0 " in converge("--check").stdout


@contextlib.contextmanager
def migrated_for_another(host: Host) -> Iterator[str]:
    """As an upgrade leaves it whose migration is done and whose server did not start: name of what a boot starts."""
    now = host.check_output("basename $(readlink /etc/mlflow/live)")
    name, units = "mlflow-9.9.9-0123456789", "/etc/systemd/system"
    host.check_output(
        f"cp --archive /etc/mlflow/generations/{now} /etc/mlflow/generations/{name}"
        f" && sed s/{now}/{name}/g {units}/{now}.service >{units}/{name}.service"
        f" && ln --symbolic --force --no-dereference {name}.service {units}/mlflow.service && systemctl daemon-reload"
    )
    try:
        yield name
    finally:
        host.check_output(
            f"ln --symbolic --force --no-dereference {now}.service {units}/mlflow.service"
            f" && rm -r /etc/mlflow/generations/{name} {units}/{name}.service && systemctl daemon-reload"
            f" && systemctl start {now} && {READY} --wait 120"
        )


def test_what_serves_behind_a_migration_is_not_taken_for_right_and_a_restore_stops_it(
    host: Host, converge: Converge
) -> None:
    now = host.check_output("basename $(readlink /etc/mlflow/live)")
    with migrated_for_another(host) as name:
        refused = converge()
        assert refused.returncode != 0
        assert f"a migration has made {name} the one that starts from now on" in " ".join(refused.stdout.split())
        assert host.run(f"systemctl is-active {now}").stdout.strip() == "active"

        stopped = converge(entry_point="stop", mlflow_restored_set="20300101T020000Z")
        assert stopped.returncode == 0, stopped.stdout
        assert host.run(f"systemctl is-active {now}").stdout.strip() == "inactive"
        assert "changed=0 " in converge(entry_point="stop", mlflow_restored_set="20300101T020000Z").stdout
        host.check_output("rm /etc/mlflow/restoring")
    assert "changed=0 " in converge("--check").stdout


def test_the_live_server_is_tried_again_where_a_run_could_not_start_it(host: Host) -> None:
    now = host.check_output("basename $(readlink /etc/mlflow/live)")
    drop_in = f"/run/systemd/system/{now}.service.d"
    host.check_output(f"systemctl stop {now} && mkdir -p {drop_in}")
    # As where its database is away.
    host.check_output(f"printf '[Service]\nExecStartPre=/bin/false\n' >{drop_in}/away.conf && systemctl daemon-reload")
    failed = host.run(f"/opt/mlflow/bin/mlflow-switch {now}")
    assert failed.rc != 0
    assert "nothing serves now" in failed.stderr
    host.check_output(f"rm -r {drop_in} && systemctl daemon-reload")
    host.check_output(f"until {READY} --wait 60; do sleep 1; done")


def test_another_operators_upgrade_that_waits_is_left_alone(host: Host, converge: Converge) -> None:
    left = "/etc/mlflow/generations/mlflow-9.9.9-0123456789"
    host.check_output(f"mkdir {left} && ln -s /opt/mlflow/releases/9.9.9-01234567 {left}/release")
    try:
        assert "changed=0 " in converge().stdout
        assert host.file(left).exists
    finally:
        host.check_output(f"rm -r {left}")


def test_what_no_switch_came_to_goes_after_a_week_and_nothing_else(host: Host) -> None:
    generations, releases, units = "/etc/mlflow/generations", "/opt/mlflow/releases", "/etc/systemd/system"
    name, stamp = "mlflow-9.9.9-0123456789", "/var/lib/mlflow-cleanup/last.json"
    left = (f"{generations}/{name}", f"{releases}/9.9.9-01234567", f"{units}/{name}.service")
    listed = f"ls -d {generations}/* {releases}/* {units}/mlflow*"
    # As if a week had passed.
    clean = "systemd-run --quiet --wait --property=StateDirectory=mlflow-cleanup"
    program = "/opt/mlflow/bin/mlflow-switch --clean 0"
    before = host.check_output(listed)

    # By an upgrade that was not agreed to.
    host.check_output(f"mkdir {left[0]} {left[1]} && ln -s {left[1]} {left[0]}/release && echo '[Unit]' >{left[2]}")
    host.check_output("systemctl start mlflow-cleanup")
    assert {host.file(path).exists for path in left} == {True}
    young = json.loads(host.file(stamp).content_string)
    assert young["removed"] == 0
    assert host.run(f"{clean} --property=ReadOnlyPaths=/opt/mlflow {program}").rc != 0
    assert json.loads(host.file(stamp).content_string) == young

    host.check_output(f"{clean} {program}")
    assert host.check_output(listed) == before
    assert json.loads(host.file(stamp).content_string)["removed"] >= 1
    assert host.service("mlflow-cleanup.timer").is_enabled
    assert host.service("mlflow-cleanup.timer").is_running
    assert host.run(READY).rc == 0


def test_what_was_deleted_long_ago_goes_and_nothing_else(host: Host) -> None:
    name = f"gc-{time.time_ns()}"
    kept, gone = (api(host, "experiments/create", {"name": f"{name}-{n}"})["experiment_id"] for n in (1, 2))
    active, recent, old, registered, stuck = (run_with_artifact(host, kept) for _ in range(5))
    run_with_artifact(host, gone)
    api(host, "registered-models/create", {"name": name})
    source = f"mlflow-artifacts:/{kept}/{registered}/artifacts"
    api(host, "model-versions/create", {"name": name, "source": source, "run_id": registered})
    for run in (recent, old, registered, stuck):
        api(host, "runs/delete", {"run_id": run})
    # Who may make an experiment may not have another's artifacts removed with it.
    victim = {"name": f"{name}-thief", "artifact_location": f"mlflow-artifacts:/{kept}/{active}"}
    thief = api(host, "experiments/create", victim)["experiment_id"]
    for experiment in (gone, thief):
        api(host, "experiments/delete", {"experiment_id": experiment})
    month = "(extract(epoch FROM now() - interval '31 days') * 1000)::bigint"
    ids = ",".join(f"'{run}'" for run in (old, registered, stuck))
    sql(host, f"UPDATE runs SET deleted_time = {month} WHERE run_uuid IN ({ids}) OR experiment_id = {gone}")
    sql(host, f"UPDATE experiments SET last_update_time = {month} WHERE experiment_id IN ({gone}, {thief})")
    artifacts = f"/var/lib/mlflow/artifacts/{kept}"
    host.check_output(
        f"install -d {artifacts}/{stuck}/artifacts/roots && touch {artifacts}/{stuck}/artifacts/roots/one"
    )
    nobodys = "0" * 32
    host.check_output(f"install -d {artifacts}/{nobodys}/artifacts && touch {artifacts}/{nobodys}/artifacts/one")

    assert host.run("systemctl start mlflow-gc").rc == 1

    told = host.check_output("journalctl --unit=mlflow-gc --output=cat --no-pager")
    assert f"Could not remove run {stuck}: PermissionError" in told
    assert "Not all was removed that was deleted: exit-code" in told
    assert not host.file("/var/lib/mlflow/gc.json").exists
    rows = sql(host, f"SELECT run_uuid FROM runs WHERE experiment_id IN ({kept}, {gone})").split()
    assert set(rows) == {active, recent, registered, stuck}
    assert sql(host, f"SELECT count(*) FROM experiments WHERE experiment_id IN ({gone}, {thief})") == "0"
    assert not host.file(f"/var/lib/mlflow/artifacts/{gone}").exists
    assert f"Kept run {registered}: version 1 of {name} is made of it" in told

    host.check_output(f"rm -r {artifacts}/{stuck}/artifacts/roots")
    assert host.run("systemctl start mlflow-gc").rc == 0

    summary = json.loads(host.file("/var/lib/mlflow/gc.json").content_string)
    assert (summary["removed"], summary["kept"], summary["unknown"]) == ({"runs": 1}, 1, 1)
    for run in (active, recent, registered, nobodys):
        assert host.check_output(f"find {artifacts}/{run} -type f")
    for run in (old, stuck):
        assert not host.check_output(f"find {artifacts}/{run} -type f 2>/dev/null || true")
    assert f"Nobody knows /var/lib/mlflow/artifacts/{kept}/{nobodys}" in host.check_output(
        "journalctl --unit=mlflow-gc --output=cat --no-pager"
    )
    host.check_output(f"rm -r {artifacts}/{nobodys}")
    assert host.service("mlflow-gc.timer").is_enabled

    # Where platform_gc_days is 0 the unit is there as well, for whoever starts it.
    host.check_output(
        "sed 's/--days [0-9]*/--days 0/' /etc/systemd/system/mlflow-gc.service >/run/systemd/system/never.service"
    )
    host.check_output("systemctl daemon-reload && systemctl start never")
    assert sql(host, f"SELECT count(*) FROM runs WHERE run_uuid = '{recent}'") == "1"
    assert host.service("mlflow-gc.timer").is_running
