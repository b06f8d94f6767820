import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from testinfra.host import Host

AUDIENCE = "/projects/123456789012/global/backendServices/4567890123456789"
URL = "https://mlflow.test"
CURL = "curl --silent --show-error --insecure"
STATUS = f"{CURL} --output /tmp/answer --write-out '%{{http_code}}'"
ASSERTION = "X-Goog-IAP-JWT-Assertion"
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
PASSWORD = "admin-secret-5c3e"
LIVE = "/run/mlflow/live.sock"
MAIN = "/static-files/index.html"


class Google:
    """Signs assertions, and has the document of its keys on the machine."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.keys = {"first": ec.generate_private_key(ec.SECP256R1())}

    def publish(self) -> None:
        listed = [
            {**jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": "ES256"}
            for kid, key in self.keys.items()
        ]
        self.host.check_output("printf %%s %s >/srv/keys/document", json.dumps({"keys": listed}))

    def claims(self, **claims: Any) -> dict[str, Any]:
        now = int(time.time())
        usual = {"iss": "https://cloud.google.com/iap", "aud": AUDIENCE, "iat": now, "exp": now + 600}
        whole = {**usual, "sub": "accounts.google.com:1", "email": "Ann@example.com", **claims}
        return {name: value for name, value in whole.items() if value is not None}

    def sign(self, kid: str = "first", **claims: Any) -> str:
        return jwt.encode(self.claims(**claims), self.keys[kid], "ES256", headers={"kid": kid})

    def fetches(self) -> int:
        return int(self.host.check_output("wc -l </srv/keys/fetches"))


@pytest.fixture(scope="module")
def google(host: Host) -> Iterator[Google]:
    """The keys of this run, known to the service since its start."""
    google = Google(host)
    google.publish()
    host.check_output("systemctl restart iap-verifier")
    wait_for(lambda: status(host, SEARCH, google.sign()) == 200)
    return google


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(50):
        if holds():
            return
        time.sleep(0.2)
    pytest.fail("waited in vain")


def status(host: Host, path: str, assertion: str = "", options: str = "") -> int:
    header = f"--header '{ASSERTION}: {assertion}'" if assertion else ""
    return int(host.check_output(f"{STATUS} {header} {options} '{URL}{path}'"))


def body(host: Host, path: str, assertion: str, content: object = None, method: str = ""):
    """Status and JSON answer, as whoever the assertion is of."""
    command = f"{CURL} --header '{ASSERTION}: {assertion}' --write-out '\\n%{{http_code}}' "
    if content is not None:
        command += f"--header 'Content-Type: application/json' --data '{json.dumps(content)}' "
    if method:
        command += f"--request {method} "
    answer, _, code = host.check_output(f"{command} '{URL}{path}'").rpartition("\n")
    return int(code), json.loads(answer) if answer.startswith("{") else answer


def known_as(host: Host, assertion: str, options: str = "") -> str:
    """Return whom MLflow takes the caller for."""
    assert status(host, "/api/2.0/mlflow/users/current", assertion, options) == 200
    return json.loads(host.file("/tmp/answer").content_string)["user"]["username"]


def users(host: Host, google: Google) -> list[str]:
    code, answer = body(host, "/api/2.0/mlflow/users/list", google.sign(email="carol@example.com"))
    assert code == 200
    return [user["username"] for user in answer["users"]]


def journal(host: Host) -> str:
    return host.check_output("journalctl --unit=iap-verifier --unit='mlflow-*' --no-pager --output=cat --boot")


def test_the_service_runs_at_boot(host: Host) -> None:
    for unit in ("iap-verifier.service", "iap-verifier.socket"):
        assert host.service(unit).is_running
        assert host.service(unit).is_enabled


def test_only_nginx_may_ask(host: Host) -> None:
    socket = host.file("/run/iap-verifier.sock")
    assert (socket.user, socket.group, socket.mode) == ("root", "www-data", 0o660)


def test_the_service_is_confined(host: Host) -> None:
    report = host.check_output("systemd-analyze security --no-pager iap-verifier.service | tail -1")
    assert float(report.split("iap-verifier.service:")[1].split()[0]) <= 2.0


def test_an_assertion_signs_in_as_the_user_of_that_address(host: Host, google: Google) -> None:
    assert known_as(host, google.sign(email="New.One@example.com")) == "new.one@example.com"
    entry = json.loads(host.check_output("tail -1 /var/log/nginx/access.log"))
    assert (entry["user"], entry["status"]) == ("new.one@example.com", 200)


def test_who_comes_with_eight_first_requests_is_one_user(host: Host, google: Google) -> None:
    for number in range(4):
        name = f"first-{number}@example.com"
        ask = f"{STATUS} --header '{ASSERTION}: {google.sign(email=name)}' '{URL}{SEARCH}'"
        answers = host.check_output(f"for i in 1 2 3 4 5 6 7 8; do {ask} & done; wait")
        assert answers == "200" * 8
        assert users(host, google).count(name) == 1


def test_the_inventory_says_what_somebody_may_do(host: Host, google: Google) -> None:
    ann, carol = google.sign(), google.sign(email="carol@example.com")
    code, churn = body(host, "/api/2.0/mlflow/experiments/get-by-name?experiment_name=churn", ann)
    assert code == 200
    run = {"experiment_id": churn["experiment"]["experiment_id"]}
    assert body(host, "/api/2.0/mlflow/runs/create", ann, run)[0] == 403
    assert body(host, "/api/2.0/mlflow/runs/create", carol, run)[0] == 200
    assert body(host, "/api/2.0/mlflow/experiments/search?max_results=9", google.sign(email="eve@example.com")) == (
        200,
        {},
    )
    # Nobody makes themselves an administrator, or a password.
    me = "/api/2.0/mlflow/users/update-admin"
    assert body(host, me, ann, {"username": "ann@example.com", "is_admin": True}, "PATCH")[0] == 403
    assert body(host, "/api/2.0/mlflow/users/create", ann, {"username": "mallory", "password": "x" * 12})[0] == 403
    assert status(host, "/api/2.0/mlflow/users/create-ui", ann, "--data 'username=mallory&password=xxxxxxxxxxxx'") in (
        403,
        405,
    )


def test_the_routes_of_fastapi_know_the_user_too(host: Host, google: Google) -> None:
    carol = google.sign(email="carol@example.com")
    _, experiment = body(host, "/api/2.0/mlflow/experiments/create", carol, {"name": f"upload-{time.time_ns()}"})
    path = f"/api/2.0/mlflow-artifacts/artifacts/{experiment['experiment_id']}/0fa1/artifacts/file"
    # Streamed, of a length that is not told before.
    host.check_output("head --bytes=20M /dev/urandom >/tmp/upload")
    upload = "--header 'Transfer-Encoding: chunked' --upload-file /tmp/upload"
    assert status(host, path, carol, upload) == 200
    assert status(host, path, carol) == 200
    assert host.file("/tmp/answer").sha256sum == host.file("/tmp/upload").sha256sum
    assert status(host, path, google.sign()) == 403
    assert status(host, path, google.sign(), upload) == 403
    assert status(host, "/v1/traces", carol, "--request POST") not in (401, 403)
    assert status(host, "/gateway/nothing/mlflow/invocations", google.sign(), "--json '{}'") == 403


def unsigned(google: Google, **header: str) -> str:
    parts = [json.dumps(header).encode(), json.dumps(google.claims()).encode()]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def public_key_as_secret(google: Google) -> str:
    secret = google.keys["first"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    token = unsigned(google, alg="HS256", kid="first")
    signature = hmac.digest(secret, token.encode(), hashlib.sha256)
    return f"{token}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def by_another_key(google: Google) -> str:
    return jwt.encode(google.claims(), ec.generate_private_key(ec.SECP256R1()), "ES256", headers={"kid": "first"})


FORGED: dict[str, Callable[[Google], str]] = {
    "another key": by_another_key,
    "the public key as a secret": public_key_as_secret,
    "no algorithm": lambda google: unsigned(google, alg="none", kid="first") + ".",
    "expired": lambda google: google.sign(exp=int(time.time()) - 40),
    "issued in the future": lambda google: google.sign(iat=int(time.time()) + 60),
    "another audience": lambda google: google.sign(aud=AUDIENCE[:-1]),
    "another issuer": lambda google: google.sign(iss="https://accounts.google.com"),
    "an unknown extension": lambda google: jwt.encode(
        google.claims(), google.keys["first"], "ES256", headers={"kid": "first", "crit": ["b64"]}
    ),
    "no address": lambda google: google.sign(email=None),
}


@pytest.mark.parametrize("kind", FORGED)
def test_what_is_forged_is_refused(host: Host, google: Google, kind: str) -> None:
    for path in (SEARCH, "/", MAIN, "/version"):
        assert status(host, path, FORGED[kind](google)) == 401


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["X-Authenticated-User: carol@example.com"],
        ["X_Authenticated_User: carol@example.com"],
        ["X-Goog-Authenticated-User-Email: accounts.google.com:carol@example.com"],
        ["X-Goog-IAP-JWT-Assertion2: {assertion}"],
        ["X_Goog_IAP_JWT_Assertion: {assertion}"],
        ["Authorization: Bearer {assertion}"],
        [f"{ASSERTION}: {{assertion}}", f"{ASSERTION}: {{assertion}}"],
        [f"{ASSERTION}: {{assertion}}, {{assertion}}"],
        [f"{ASSERTION}: x", f"{ASSERTION}: {{assertion}}"],
    ],
    ids=lambda headers: " and ".join(header.split(":")[0] for header in headers) or "none",
)
def test_nothing_but_one_assertion_under_its_name_signs_in(host: Host, google: Google, headers: list[str]) -> None:
    assertion = google.sign()
    options = " ".join(f"--header '{header.format(assertion=assertion)}'" for header in headers)
    assert status(host, SEARCH, options=options) == 401


def test_nobody_says_to_be_another_user(host: Host, google: Google) -> None:
    lies = "--header 'X-Authenticated-User: carol@example.com' --header 'X_Authenticated_User: carol@example.com'"
    assert known_as(host, google.sign(), lies) == "ann@example.com"


def test_a_password_opens_nothing_through_nginx(host: Host, google: Google) -> None:
    login = f"--user admin:{PASSWORD}"
    assert status(host, SEARCH, options=login) == 401
    assert status(host, "/gateway/x/mlflow/invocations", options=f"{login} --json '{{}}'") == 401
    # Nor does it make somebody else of who is signed in.
    assert known_as(host, google.sign(), login) == "ann@example.com"
    header = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    theirs = f"--header 'X-MLflow-Authorization: Basic {header}' --json '{{}}'"
    assert status(host, "/gateway/x/mlflow/invocations", google.sign(), theirs) == 403


def test_a_password_opens_the_servers_own_socket(host: Host) -> None:
    assert host.run("/opt/mlflow/bin/mlflow-ready").rc == 0
    straight = f"{STATUS} --unix-socket {LIVE} 'http://mlflow.test{SEARCH}'"
    assert host.check_output(f"{straight} --user admin:{PASSWORD}") == "200"
    assert host.check_output(f"{straight} --header 'X-Authenticated-User: carol@example.com'") == "401"


def test_health_is_for_everybody(host: Host) -> None:
    address = host.interface("eth0").addresses[0]
    for options, url in (
        ("", f"{URL}/health"),
        # As Google's health checks do: no name in the handshake, an address as Host.
        ("", f"https://{address}/health"),
        ("--http1.1", "https://127.0.0.1/health"),
    ):
        assert host.check_output(f"{STATUS} {options} {url}") == "200"
        assert host.file("/tmp/answer").content_string == "OK"


def test_without_a_name_in_the_handshake_only_the_right_host_is_served(host: Host, google: Google) -> None:
    header = f"--header '{ASSERTION}: {google.sign()}'"
    assert host.check_output(f"{STATUS} {header} --header 'Host: mlflow.test' https://127.0.0.1{SEARCH}") == "200"
    assert host.check_output(f"{STATUS} --header 'Host: mlflow.test' https://127.0.0.1{SEARCH}") == "401"
    for other in ("other.test", "127.0.0.1", "mlflow.test.other.test"):
        refused = host.run(f"{STATUS} --http1.1 {header} --header 'Host: {other}' https://127.0.0.1{SEARCH}")
        assert (refused.rc in (52, 56), refused.stdout) == (True, "000")
        assert host.run(f"{STATUS} --header 'Host: {other}' http://127.0.0.1/").rc == 52


def test_pages_of_other_sites_are_refused_and_our_own_are_not(host: Host, google: Google) -> None:
    create = "/api/2.0/mlflow/experiments/create"
    for origin in ("https://other.test", "http://mlflow.test", "http://localhost:8000", "null", f"{URL}.other.test"):
        for path, options in (
            (create, "--json '{}'"),
            ("/graphql", "--json '{}'"),
            (SEARCH, ""),
            ("/gateway/x", "--json '{}'"),
        ):
            assert status(host, path, google.sign(), f"--header 'Origin: {origin}' {options}") == 403
    own = f"--header 'Origin: {URL}' --json '{{\"name\": \"own-{time.time_ns()}\"}}'"
    assert status(host, create, google.sign(), own) == 200


@pytest.mark.parametrize("path", ["/ajax-api/3.0/mlflow/assistant/sessions", "/api/3.0/mlflow/assistant"])
def test_the_assistant_is_closed(host: Host, google: Google, path: str) -> None:
    assert status(host, path, google.sign(email="carol@example.com")) == 403


@pytest.mark.usefixtures("google")
def test_every_route_wants_an_assertion(walk) -> None:
    _, answered = walk(json.dumps({"X-Authenticated-User": "carol@example.com"}), "mlflow.test")
    assert {path for path, _ in answered if "/mlflow/assistant" not in path} == {"/health"}
    assert {status for path, status in answered if "/mlflow/assistant" in path} == {403}


def test_every_route_of_mlflow_wants_nginxs_word_and_takes_no_password(walk, open_paths: set[str]) -> None:
    login = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    told = {"X-Real-IP": "192.0.2.1", "X-Forwarded-For": "192.0.2.1", "Authorization": f"Basic {login}"}
    _, answered = walk(json.dumps({**told, "X-MLflow-Authorization": f"Basic {login}"}))
    assert {path for path, _ in answered} - open_paths == set()


def test_keys_are_renewed_kept_and_not_asked_for_by_a_flood(host: Host, google: Google) -> None:
    host.check_output("systemctl restart iap-verifier")
    begun, before = time.monotonic(), google.fetches()
    wait_for(lambda: google.fetches() >= before)
    before = google.fetches()
    google.keys["second"] = ec.generate_private_key(ec.SECP256R1())
    google.publish()
    unknown = " ".join(
        jwt.encode(google.claims(), google.keys["second"], "ES256", headers={"kid": f"unknown-{number}"})
        for number in range(100)
    )
    host.check_output("printf %%s %s | tr ' ' '\\n' >/srv/flood", unknown)
    flood = f"xargs -P 8 -I@ {STATUS} --header '{ASSERTION}: @' '{URL}{SEARCH}' </srv/flood"
    assert host.check_output(flood) == "401" * 100
    assert google.fetches() <= before + 1
    # A minute after the last fetch the new key is found, by a request that is let in at once.
    time.sleep(max(0, 61 - (time.monotonic() - begun)))
    before = google.fetches()
    assert status(host, SEARCH, google.sign("second")) == 200
    assert host.check_output(flood) == "401" * 100
    assert google.fetches() == before + 1
    host.check_output("systemctl stop key-server")
    try:
        assert status(host, SEARCH, google.sign("second", later=1)) == 200
        host.check_output("systemctl restart iap-verifier")
        assert status(host, SEARCH, google.sign("second", later=2)) == 200
        assert status(host, SEARCH, google.sign(later=3)) == 200
    finally:
        host.check_output("systemd-run --unit=key-server --property=Restart=always python3 /srv/keys/key_server.py")


def test_a_killed_verifier_comes_back(host: Host, google: Google) -> None:
    host.check_output("kill -9 $(systemctl show -P MainPID iap-verifier)")
    wait_for(lambda: status(host, SEARCH, google.sign()) == 200)


def test_logs_say_why_and_hold_no_assertion(host: Host, google: Google) -> None:
    refused = google.sign(aud="/projects/1/global/backendServices/1")
    assert status(host, SEARCH, refused) == 401
    said = journal(host) + host.check_output("cat /var/log/nginx/*.log")
    assert "request(s): no assertion" in said
    assert "request(s): an assertion that does not hold (InvalidAudienceError)" in said
    # Every assertion begins with the same letters.
    assert refused.split(".")[0] not in said
    assert PASSWORD not in said


@pytest.mark.long
def test_without_users_everybody_is_answered_and_users_come_back_as_they_were(
    host: Host, google: Google, converge, walk
) -> None:
    before = users(host, google)
    try:
        done = converge(authentication="none")
        assert done.returncode == 0, done.stdout
        again = converge(authentication="none")
        assert "changed=0" in again.stdout, again.stdout
        for options in ("", "--user admin:wrong", "--header 'Authorization: Bearer x'"):
            assert status(host, SEARCH, options=options) == 200
        # Nobody can make a user who would be there later on.
        user = """--header 'Content-Type: application/json' --data '{"username": "eve", "password": "long-enough-1"}'"""
        assert status(host, "/api/2.0/mlflow/users/create", options=user) == 404
        assert status(host, "/ajax-api/3.0/mlflow/assistant/config") == 403
        # Whoever looks at another site does nothing here by it.
        for origin, expected in {URL: 200, "https://evil.test": 403, "null": 403, "http://localhost": 403}.items():
            assert status(host, SEARCH, options=f"--header 'Origin: {origin}'") == expected
        assert host.run("/opt/mlflow/bin/mlflow-ready").rc == 0
        paths, answered = walk("{}", "mlflow.test")
        assert {path for path, status in answered if status == 403} == {one for one in paths if "/assistant" in one}
    finally:
        assert converge().returncode == 0
    wait_for(lambda: status(host, SEARCH, google.sign(email="carol@example.com")) == 200)
    assert users(host, google) == before
    assert status(host, SEARCH) == 401


@pytest.mark.long
def test_back_to_passwords_and_to_assertions_again(host: Host, google: Google, converge) -> None:
    foretold = converge("--check", authentication="basic")
    assert foretold.returncode == 0, foretold.stdout
    assert status(host, SEARCH, google.sign()) == 200
    for arguments in ({"authentication": "basic"}, {}):
        assert converge(**arguments).returncode == 0
        again = converge(**arguments)
        assert "changed=0" in again.stdout, again.stdout
        if arguments:
            assert not host.file("/etc/systemd/system/iap-verifier.service").exists
            assert not host.file("/run/iap-verifier.sock").exists
            assert status(host, SEARCH, options=f"--user admin:{PASSWORD}") == 200
            lies = "--header 'X-Authenticated-User: carol@example.com'"
            assert status(host, SEARCH, google.sign(), lies) == 401
            assert host.run(f"{CURL} https://127.0.0.1/health").rc == 35
        else:
            wait_for(lambda: status(host, SEARCH, google.sign(email="carol@example.com")) == 200)
