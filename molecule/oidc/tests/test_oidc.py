import itertools
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from testinfra.host import Host

URL = "https://mlflow.test"
CURL = "curl --silent --show-error --insecure"
STATUS = f"{CURL} --output /tmp/answer --write-out '%{{http_code}} %{{redirect_url}}'"
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=50"
ME = "/api/2.0/mlflow/users/current"
PASSWORD, CLIENT_SECRET = "admin-secret-5c3e", "client-secret-77aa"
ADMIN = f"--user admin:{PASSWORD}"
LIVE = "/run/mlflow/live.sock"
ANN = {"sub": "1", "email": "Ann@example.com", "name": "Ann", "groups": ["mlflow-users", "others"]}
ADDRESSES = itertools.count(1)
CAROL = {"sub": "3", "email": "carol@example.com", "name": "Carol", "groups": ["mlflow-admins"]}


def ask(host: Host, path: str, options: str = "") -> tuple[int, str]:
    """Status, and where it leads to."""
    status, _, place = host.check_output(f"{STATUS} {options} '{path if '://' in path else URL + path}'").partition(" ")
    return int(status), place


def answer(host: Host) -> Any:
    return json.loads(host.file("/tmp/answer").content_string)


class Browser:
    """Somebody's browser, with its cookies; the provider signs in whoever it is told to."""

    def __init__(self, host: Host, name: str) -> None:
        self.host, self.jar = host, f"/tmp/cookies-{name}"
        # From an address of its own: how often one begins to sign in is limited.
        address = f"127.1.{next(ADDRESSES)}.1"
        self.cookies = f"--cookie {self.jar} --cookie-jar {self.jar} --interface {address}"
        host.check_output(f"rm -f {self.jar}")

    def ask(self, path: str, options: str = "") -> tuple[int, str]:
        return ask(self.host, path, f"{self.cookies} {options}")

    def come_back(self, person: dict[str, Any], start: str = "/login") -> str:
        """Go to the provider, be signed in there, and return where that leads back to."""
        self.host.check_output("printf %%s %s >/srv/provider/person", json.dumps(person))
        status, provider = self.ask(start)
        assert status == 302
        assert provider.startswith("https://provider.test:8443/authorize?")
        status, back = ask(self.host, provider)
        assert status == 302
        assert back.startswith(f"{URL}/callback?")
        return back

    def sign_in(self, person: dict[str, Any], start: str = "/login") -> str:
        """Sign in, and return where that leads to."""
        status, place = self.ask(self.come_back(person, start))
        assert status == 302
        return place

    def call(self, path: str, content: object = None, method: str = "") -> tuple[int, Any]:
        """Status and JSON answer."""
        options = f"--json '{json.dumps(content)}'" if content is not None else ""
        status, _ = self.ask(path, f"{options} {f'--request {method}' if method else ''}")
        text = self.host.file("/tmp/answer").content_string
        return status, json.loads(text) if text.startswith("{") else text


@pytest.fixture(scope="module")
def ann(host: Host) -> Browser:
    browser = Browser(host, "ann")
    assert browser.sign_in(ANN) == URL + "/"
    return browser


@pytest.fixture(scope="module")
def carol(host: Host) -> Browser:
    browser = Browser(host, "carol")
    assert browser.sign_in(CAROL) == URL + "/"
    return browser


def token(host: Host) -> str:
    """The last ID token that the provider gave."""
    return host.check_output("tail -1 /srv/provider/tokens")


def test_who_signs_in_is_known_by_the_address_and_is_no_administrator(ann: Browser) -> None:
    status, me = ann.call(ME)
    assert (status, me["username"], me["is_admin"]) == (200, "ann@example.com", False)
    assert {group["group_name"] for group in me["groups"]} == {"mlflow-users", "others"}


def test_a_browser_is_led_to_the_provider_and_back_to_the_page(host: Host) -> None:
    browser = Browser(host, "page")
    status, place = browser.ask("/?o=1", "--header 'Accept: text/html'")
    assert (status, place) == (302, f"{URL}/login?next={quote('/?o=1', safe='')}")
    assert browser.sign_in(ANN, place) == f"{URL}/?o=1"
    assert browser.ask("/")[0] == 200
    assert "<html" in host.file("/tmp/answer").content_string
    # But not to another site.
    for other in ("https://evil.test/", "//evil.test/", "/\\\\evil.test", "https:evil.test"):
        assert Browser(host, "page").sign_in(ANN, f"/login?next={quote(other, safe='')}").startswith(URL)


def test_the_cookie_is_for_this_host_over_tls_alone(host: Host) -> None:
    browser = Browser(host, "cookie")
    headers = host.check_output(f"{CURL} {browser.cookies} --head --request GET '{browser.come_back(ANN)}'").lower()
    (cookie,) = (line for line in headers.splitlines() if line.startswith("set-cookie: "))
    assert cookie.startswith("set-cookie: __host-mlflow=")
    for attribute in ("path=/", "httponly", "samesite=lax", "secure", "max-age=43200"):
        assert attribute in cookie
    assert "domain" not in cookie


def test_nobody_has_a_permission_that_was_not_given(ann: Browser, carol: Browser) -> None:
    name = f"carols-{time.time_ns()}"
    status, made = carol.call("/api/2.0/mlflow/experiments/create", {"name": name})
    assert status == 200
    one = made["experiment_id"]
    assert ann.call(f"/api/2.0/mlflow/experiments/get?experiment_id={one}")[0] == 403
    assert name not in json.dumps(ann.call(SEARCH)[1])
    assert ann.call("/api/2.0/mlflow/runs/create", {"experiment_id": one})[0] == 403
    given = f"/api/2.0/mlflow/permissions/groups/mlflow-users/experiments/{one}"
    assert ann.call(given, {"permission": "MANAGE"})[0] == 403
    assert carol.call(given, {"permission": "READ"})[0] in (200, 201)
    # Which each of the server's processes knows half a minute later.
    time.sleep(31)
    assert ann.call(f"/api/2.0/mlflow/experiments/get?experiment_id={one}")[0] == 200
    assert ann.call("/api/2.0/mlflow/runs/create", {"experiment_id": one})[0] == 403


def test_a_member_of_the_administrators_is_one_until_they_are_not(host: Host, carol: Browser) -> None:
    assert carol.call(ME)[1]["is_admin"] is True
    assert carol.call("/api/2.0/mlflow/users?service=false")[0] == 200
    frank = Browser(host, "frank")
    person = {"sub": "6", "email": "frank@example.com", "name": "Frank"}
    frank.sign_in({**person, "groups": ["mlflow-admins"]})
    assert frank.call(ME)[1]["is_admin"] is True
    frank.sign_in({**person, "groups": ["Data Science"]})
    assert frank.call(ME)[1]["is_admin"] is False
    # Nobody makes themselves one.
    assert frank.call("/api/2.0/mlflow/users/frank@example.com/admin", {"is_admin": True}, "PATCH")[0] in (
        403,
        404,
        405,
    )
    assert frank.call(ME)[1]["is_admin"] is False
    assert "error=User+is+not+allowed" in frank.sign_in({**person, "groups": []})


@pytest.mark.parametrize("wrong", ["expired", "audience", "issuer", "key", "nonce", "none", "hmac"])
def test_an_id_token_that_is_not_right_signs_nobody_in(host: Host, wrong: str) -> None:
    browser = Browser(host, "wrong")
    assert browser.sign_in({**ANN, "_": wrong}).startswith(f"{URL}/oidc/ui/auth?error=")
    assert browser.ask(SEARCH)[0] == 401
    # Nor without the flow, where there is no nonce to compare.
    if wrong != "nonce":
        assert ask(host, SEARCH, f"--header 'Authorization: Bearer {token(host)}'")[0] == 401


@pytest.mark.parametrize("groups", [["strangers"], [], None, "", ["mlflow"], ["mlflow-users2"], ["", "*"], {"a": 1}])
def test_who_is_in_none_of_the_groups_is_refused(host: Host, groups: object) -> None:
    browser = Browser(host, "stranger")
    stranger = {"sub": "9", "email": "stranger@example.com", "name": "Stranger", "groups": groups}
    assert browser.sign_in(stranger).startswith(f"{URL}/oidc/ui/auth?error=")
    assert browser.ask(SEARCH)[0] == 401
    # Nor is the token that the provider gave for MLflow worth anything by itself.
    assert ask(host, SEARCH, f"--header 'Authorization: Bearer {token(host)}'")[0] == 401


@pytest.mark.parametrize("email", ["admin", "Admin", None, "", 7])
def test_nobody_becomes_the_local_administrator(host: Host, email: object) -> None:
    browser = Browser(host, "admin")
    assert browser.sign_in({**CAROL, "sub": "7", "email": email, "preferred_username": "admin"}).startswith(
        f"{URL}/oidc/ui/auth?error="
    )
    assert browser.ask(SEARCH)[0] == 401


def test_what_leads_back_counts_once_and_in_the_same_browser(host: Host) -> None:
    browser, other = Browser(host, "once"), Browser(host, "other")
    back = browser.come_back(ANN)
    assert "error=" in other.ask(back)[1]
    assert other.ask(SEARCH)[0] == 401
    again = browser.come_back(ANN)
    assert browser.ask(again) == (302, URL + "/")
    assert "error=" in Browser(host, "replay").ask(again)[1]
    assert "error=" in browser.ask(again)[1]
    assert "error=" in Browser(host, "made-up").ask("/callback?code=x&state=y")[1]


def test_who_signs_out_is_out_with_each_copy_of_the_cookie(host: Host) -> None:
    browser = Browser(host, "out")
    browser.sign_in(ANN)
    host.check_output(f"cp {browser.jar} /tmp/cookies-copy")
    assert browser.ask("/logout") == (302, f"{URL}/oidc/ui/auth")
    assert ask(host, SEARCH, "--cookie /tmp/cookies-copy")[0] == 401


def test_a_session_ends_with_the_id_token(host: Host) -> None:
    browser = Browser(host, "short")
    # Half a minute before, for clocks that differ.
    browser.sign_in({**ANN, "_seconds": 45})
    assert browser.ask(SEARCH)[0] == 200
    time.sleep(17)
    assert browser.ask(SEARCH)[0] == 401


def test_a_script_has_a_token_of_its_own(host: Host, ann: Browser) -> None:
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    status, made = ann.call("/api/2.0/mlflow/users/access-token", {"expiration": until}, "PATCH")
    assert status == 200, made
    login = f"--user 'ann@example.com:{made['token']}'"
    assert ask(host, ME, login)[0] == 200
    assert answer(host)["username"] == "ann@example.com"
    assert ask(host, ME, "--user 'ann@example.com:mlf_00000000_x'")[0] == 401
    assert ask(host, ME, f"--user 'carol@example.com:{made['token']}'")[0] == 401


def test_the_providers_token_for_mlflow_signs_a_known_user_in_too(host: Host, ann: Browser) -> None:
    Browser(host, "bearer").sign_in(ANN)
    bearer = f"--header 'Authorization: Bearer {token(host)}'"
    assert ask(host, ME, bearer)[0] == 200
    assert answer(host)["username"] == "ann@example.com"


def test_the_administrator_has_a_password_for_the_checks(host: Host) -> None:
    assert host.run("/opt/mlflow/bin/mlflow-ready").rc == 0
    for options in (f"{ADMIN}", f"{ADMIN} --unix-socket {LIVE}"):
        url = f"http://mlflow.test{SEARCH}" if LIVE in options else SEARCH
        assert ask(host, url, options)[0] == 200
        assert ask(host, url, options.replace(PASSWORD, "wrong"))[0] == 401
    assert ask(host, f"http://mlflow.test{SEARCH}", f"--unix-socket {LIVE}")[0] == 401


def test_who_guesses_passwords_waits(host: Host, ann: Browser) -> None:
    guess = f"{STATUS} --user bob@example.com:guess-NUMBER '{URL}{SEARCH}'"
    answers = host.check_output(f"seq 40 | xargs -P 4 -INUMBER {guess}").split()
    assert set(answers) == {"401", "429"}
    # Of each of the two processes ten.
    assert answers.count("401") <= 22
    assert ann.ask(SEARCH)[0] == 200
    assert ask(host, SEARCH, ADMIN)[0] == 200


def test_files_of_any_size_go_both_ways_and_hold_up_nobody(host: Host, ann: Browser) -> None:
    _, experiment = ann.call("/api/2.0/mlflow/experiments/create", {"name": f"upload-{time.time_ns()}"})
    path = f"/api/2.0/mlflow-artifacts/artifacts/{experiment['experiment_id']}/0fa1/artifacts/file"
    host.check_output("head --bytes=20M /dev/urandom >/tmp/upload")
    upload = "--header 'Transfer-Encoding: chunked' --upload-file /tmp/upload"
    assert ann.ask(path, upload)[0] == 200
    # Downloads that take their time, more than the server has processes.
    slow = f"{CURL} --cookie {ann.jar} --limit-rate 2M --output /dev/null '{URL}{path}'"
    host.check_output(f"for i in 1 2 3 4 5 6; do {slow} >/dev/null 2>&1 & done")
    begun = time.monotonic()
    for _ in range(6):
        assert ann.ask(SEARCH)[0] == 200
    assert time.monotonic() - begun < 6
    assert ann.ask(path)[0] == 200
    assert host.file("/tmp/answer").sha256sum == host.file("/tmp/upload").sha256sum
    bob = Browser(host, "bob")
    bob.sign_in({**ANN, "sub": "2", "email": "bob@example.com"})
    assert bob.ask(path)[0] == 403
    assert bob.ask(path, upload)[0] == 403


def test_pages_of_other_sites_do_nothing(ann: Browser) -> None:
    create = "/api/2.0/mlflow/experiments/create"
    for origin in ("https://other.test", "http://localhost:8000", "null"):
        for path in (create, "/graphql", "/gateway/x", "/logout", ME):
            assert ann.ask(path, f"--header 'Origin: {origin}' --json '{{}}'")[0] == 403
    own = f"--header 'Origin: {URL}' --json '{{\"name\": \"own-{time.time_ns()}\"}}'"
    assert ann.ask(create, own)[0] == 200


# Of these the plugin would answer some before a login.
CLOSED = [
    "/health/ready",
    "/health/live",
    "/health/startup",
    "/healthx",
    "/metrics",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/scim/v2/Users",
    "/scim/v2/",
    "/slo/default",
    "/saml/metadata/default",
    "/saml/acs/default",
    "/login/other",
    "/login/default/x",
    "/callback/default",
    "/callback/other",
    "/loginx",
    "/callbackx",
    "/oidc/static/x",
    "/providers/x",
]
SIGN_IN = {"/login", "/login/default", "/callback", "/providers"}
OPEN = {"/health", *SIGN_IN, "/oidc/ui", "/oidc/ui/", "/oidc/ui/1", "/oidc/ui/config.json"}


@pytest.mark.parametrize("path", CLOSED)
def test_what_the_plugin_opens_and_no_sign_in_needs_is_not_there(host: Host, path: str) -> None:
    for method in ("GET", "POST", "HEAD --head"):
        assert ask(host, path, f"--request {method}")[0] in (401, 404)
    # As NGINX passes it on: /metrics is for who asks on the server.
    assert ask(host, f"http://mlflow.test{path}", f"--unix-socket {LIVE} --header 'X-Real-IP: 192.0.2.1'")[0] in (
        401,
        404,
    )
    # For an administrator neither.
    assert ask(host, path, ADMIN)[0] == 404


def test_every_route_wants_a_login(walk) -> None:
    for arguments in (("{}", "mlflow.test"), ()):
        paths, answered = walk(*arguments)
        assert {"/scim/v2/Users", "/oidc/trash/experiments", "/gateway/mlflow/v1/models", "/v1/traces"} <= paths
        # Refused without asking for a login.
        trash = {(path, status) for path, status in answered if path.startswith("/oidc/trash/") and status == 403}
        answered = {(path, status) for path, status in answered - trash if status != 405}
        if arguments:
            assert {status for path, status in answered if "/mlflow/assistant" in path} == {403}
        answered = {(path, status) for path, status in answered if "/mlflow/assistant" not in path}
        assert {path for path, status in answered if status != 404} - OPEN - {"/static-files/1"} == set()


def test_the_pages_before_a_login_tell_nothing(host: Host, carol: Browser) -> None:
    for path in (
        "/oidc/ui/",
        "/oidc/ui/auth",
        "/oidc/ui/config.json",
        "/oidc/ui/..%2f..%2fconfig.py",
        "/providers",
        "/health",
    ):
        assert ask(host, path)[0] in (200, 404)
        text = host.file("/tmp/answer").content_string
        for secret in ("mlflow-client", "provider.test", "mlflow-users", "example.com", CLIENT_SECRET, "SECRET"):
            assert secret not in text


def test_the_plugins_pages_have_a_policy_for_their_script_alone(host: Host) -> None:
    headers = host.check_output(f"{CURL} --dump-header - --output /dev/null {URL}/oidc/ui/").lower()
    assert headers.count("content-security-policy:") == 1
    assert "script-src 'self' 'sha256-" in headers
    assert "unsafe-inline'; img-src" in headers
    assert "frame-ancestors 'none'" in headers
    for path in ("/", "/oidc/uix"):
        headers = host.check_output(f"{CURL} --dump-header - --output /dev/null {URL}{path}").lower()
        assert headers.count("content-security-policy: default-src 'self'; script-src 'self';") == 1


def test_sign_ins_are_not_begun_without_end(host: Host) -> None:
    answers = host.check_output(f"seq 60 | xargs -P 4 -I@ {STATUS} --interface 127.2.0.1 '{URL}/login?@'")
    assert "429" in answers
    count = "runuser -u postgres -- psql --quiet --tuples-only --command 'SELECT count(*) FROM auth_state' mlflow_oidc"
    assert int(host.check_output(count)) < 150


def test_logs_and_process_lists_hold_no_secret(host: Host, ann: Browser) -> None:
    said = host.check_output("journalctl --unit='mlflow-*' --no-pager --output=cat --boot; cat /var/log/nginx/*.log")
    assert "Refusing login" in said or "not allowed to login" in said
    for secret in (PASSWORD, CLIENT_SECRET, "flask-secret-91d2", token(host).split(".")[1], "code="):
        assert secret not in said
    assert CLIENT_SECRET not in host.check_output("ps -eo args")
    assert CLIENT_SECRET not in host.check_output("find /etc/mlflow/live/ -type f -exec cat {} +")


def test_the_service_is_confined(host: Host) -> None:
    unit = host.check_output("basename $(readlink /etc/systemd/system/mlflow.service)")
    report = host.check_output(f"systemd-analyze security --no-pager {unit} | tail -1")
    assert float(report.split(f"{unit}:")[1].split()[0]) <= 1.5


def test_the_plugins_users_have_a_database_of_their_own(host: Host) -> None:
    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    ask_database = f'runuser -u postgres -- psql --quiet --tuples-only --no-align --command "{tables}"'
    assert {"users", "alembic_version"} <= set(host.check_output(f"{ask_database} mlflow_oidc").split())
    assert host.check_output(f"{ask_database} mlflow_auth") == ""
    assert "alembic_version_auth" not in host.check_output(f"{ask_database} mlflow")


@pytest.mark.long
def test_while_the_provider_is_away_who_is_signed_in_works_on(host: Host, ann: Browser) -> None:
    host.check_output("systemctl stop provider")
    try:
        assert ann.ask(SEARCH)[0] == 200
        host.check_output("systemctl restart mlflow")
        assert ann.ask(SEARCH)[0] == 200
        assert Browser(host, "away").ask("/login")[0] == 500
    finally:
        host.check_output("systemd-run --unit=provider --property=Restart=always python3 /srv/provider/provider.py")


@pytest.mark.long
def test_back_to_passwords_and_to_the_provider_again(host: Host, converge: Callable[..., Any]) -> None:
    foretold = converge("--check", authentication="basic")
    assert foretold.returncode == 0, foretold.stdout
    before = Browser(host, "before")
    before.sign_in(ANN)
    for arguments in ({"authentication": "basic"}, {}):
        done = converge(**arguments)
        assert done.returncode == 0, done.stdout
        again = converge(**arguments)
        assert "changed=0" in again.stdout, again.stdout
        if arguments:
            assert ask(host, SEARCH, ADMIN)[0] == 200
            assert before.ask(SEARCH)[0] == 401
            assert ask(host, "/login")[0] == 401
            assert ask(host, "/oidc/ui/")[0] == 401
    # Who was signed in still is, as who they were.
    assert before.call(ME)[1]["username"] == "ann@example.com"
