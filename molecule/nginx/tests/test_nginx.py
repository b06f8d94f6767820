import json
import re
import time

import pytest
from testinfra.host import Host

URL = "https://mlflow.test"
CURL = "curl --silent --show-error --insecure --resolve mlflow.test:443:127.0.0.1 --resolve mlflow.test:80:127.0.0.1"
MAIN = "/static-files/static/js/main.0a1b2c3d.js"


def head(host: Host, url: str, options: str = "") -> tuple[int, dict[str, str]]:
    """Status and headers of a GET; header names in lower case."""
    lines = host.check_output(f"{CURL} {options} --dump-header - --output /tmp/body '{url}'").splitlines()
    pairs = (line.split(": ", 1) for line in lines[1:] if ": " in line)
    return int(lines[0].split()[1]), {name.lower(): value.strip() for name, value in pairs}


def body(host: Host, url: str, options: str = ""):
    """JSON answer of the upstream."""
    return json.loads(host.check_output(f"{CURL} {options} '{url}'"))


def handshake(host: Host, options: str, name: str = "mlflow.test") -> str:
    command = f"openssl s_client -connect 127.0.0.1:443 -servername {name} {options} </dev/null 2>&1"
    return host.run(f"{command} | tr --complement --delete '[:print:]\\n'").stdout  # it prints session ids raw


def test_the_service_runs_at_boot(host: Host) -> None:
    assert host.service("nginx").is_running
    assert host.service("nginx").is_enabled


def test_http_is_redirected(host: Host) -> None:
    status, headers = head(host, "http://mlflow.test/some/path?x=1")
    assert (status, headers["location"]) == (308, f"{URL}/some/path?x=1")


def test_acme_challenges_are_answered_over_http(host: Host) -> None:
    directory = "/var/www/acme/.well-known/acme-challenge"
    host.check_output(f"mkdir -p {directory} && echo proof >{directory}/token")
    assert host.check_output(f"{CURL} http://mlflow.test/.well-known/acme-challenge/token") == "proof"
    assert head(host, "http://mlflow.test/.well-known/acme-challenge/other")[0] == 404


def test_security_headers_are_there_once(host: Host) -> None:
    raw = host.check_output(f"{CURL} --dump-header - --output /tmp/body {URL}/").lower()
    assert raw.count("x-frame-options: sameorigin") == 1
    for header in ("strict-transport-security: max-age=63072000", "x-content-type-options: nosniff", "referrer-policy"):
        assert raw.count(header) == 1
    assert raw.count("content-security-policy: default-src 'self'; script-src 'self'; ") == 1
    assert "; form-action 'self'; frame-ancestors 'self'" in raw
    assert "nginx/" not in raw


@pytest.mark.parametrize(("version", "works"), [("1_1", False), ("1_2", True), ("1_3", True)])
def test_tls_versions(host: Host, version: str, works: bool) -> None:
    # Security level 0 lets the client itself offer the old version.
    answer = handshake(host, f"-tls{version} -cipher DEFAULT@SECLEVEL=0")
    assert ("no peer certificate available" not in answer) is works


def test_only_forward_secret_authenticated_ciphers(host: Host) -> None:
    assert "Cipher is ECDHE" in handshake(host, "-tls1_2")
    for weak in ("ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "AES128-GCM-SHA256"):
        assert "Cipher is (NONE)" in handshake(host, f"-tls1_2 -cipher {weak}")
    assert "TLS session ticket:" not in handshake(host, "-tls1_2")


AUTHORITY = """
mkdir -p /etc/test-certificate && cd /etc/test-certificate
new="openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
$new -x509 -days 30 -subj /CN=authority -keyout ca.key -out ca.pem
$new -subj /CN=mlflow.test -keyout privkey.pem -out csr.pem
openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -days 30 -out fullchain.pem -extfile - <<'EOF'
subjectAltName=DNS:mlflow.test
extendedKeyUsage=serverAuth
EOF
systemctl reload nginx
"""


@pytest.mark.long
def test_testssl_grades_it_a_plus(host: Host, once: None) -> None:
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --no-install-recommends testssl.sh")
    host.check_output(AUTHORITY)
    try:
        time.sleep(1)
        options = "--quiet --nodns=min --ip=127.0.0.1 --add-ca=/etc/test-certificate/ca.pem --overwrite"
        host.run(f"testssl {options} --jsonfile=/tmp/testssl.json {URL}")
    finally:
        host.check_output("rm -r /etc/test-certificate /etc/nginx/tls/accepted.*; systemctl reload nginx")
    found = {one["id"]: one for one in json.loads(host.file("/tmp/testssl.json").content_string)}
    assert found["overall_grade"]["finding"] == "A+", [
        one for one in found.values() if one["severity"] not in ("OK", "INFO")
    ]


def test_http2_is_spoken(host: Host) -> None:
    assert "ALPN protocol: h2" in handshake(host, "-alpn h2,http/1.1")


def test_other_hosts_are_refused(host: Host) -> None:
    assert "no peer certificate available" in handshake(host, "", name="other.test")
    assert host.run("curl --silent --header 'Host: other.test' http://127.0.0.1/").rc == 52  # closed without an answer
    over_tls = host.run(f"{CURL} --http1.1 --header 'Host: other.test' {URL}/")
    assert over_tls.rc in (52, 56)  # nothing but the end of the connection, which curl versions name differently
    assert over_tls.stdout == ""


RAW = """
import socket, ssl, sys, time
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
begun = time.monotonic()
with context.wrap_socket(socket.create_connection(("127.0.0.1", 443), 40), server_hostname="mlflow.test") as client:
    client.sendall(sys.argv[1].encode().decode("unicode_escape").encode())
    answer = client.recv(65536)
print(int(time.monotonic() - begun), answer.split(b"\\r\\n")[0].decode() or "closed")
"""


def raw(host: Host, request: str) -> tuple[int, str]:
    """Seconds until the answer, and its first line, to what no decent client would send."""
    seconds, _, line = host.check_output("python3 -c %s %s", RAW, request).partition(" ")
    return int(seconds), line


@pytest.mark.parametrize(
    "request_head",
    [
        "GET /a b HTTP/1.1\\r\\nHost: mlflow.test",
        "POST / HTTP/1.1\\r\\nHost: mlflow.test\\r\\nContent-Length: 4\\r\\nTransfer-Encoding: chunked",
        "GET / HTTP/1.1\\r\\nHost: mlflow.test\\r\\nHost: other.test",
        "GET / HTTP/1.1\\r\\nHost: mlflow.test\\r\\nX-Large: " + "x" * 40_000,
    ],
    ids=["a space in the path", "two lengths", "two hosts", "an oversized header"],
)
def test_requests_that_servers_could_read_differently_are_refused(host: Host, request_head: str) -> None:
    assert raw(host, request_head + "\\r\\n\\r\\n")[1] == "HTTP/1.1 400 Bad Request"


def test_a_path_cannot_add_headers(host: Host) -> None:
    status, headers = head(host, "http://mlflow.test/%0d%0aX-Added:%20yes")
    assert (status, headers["location"]) == (308, f"{URL}/%0d%0aX-Added:%20yes")
    assert "x-added" not in headers


def test_a_slow_client_is_let_go(host: Host) -> None:
    seconds, answer = raw(host, "GET / HTTP/1.1\\r\\nHost: mlflow.test\\r\\nX-Slow: ")
    assert (answer, 5 < seconds < 20) == ("closed", True)


def test_mlflow_learns_who_calls_and_callers_cannot_lie(host: Host) -> None:
    lies = (
        "--header 'X-Forwarded-For: 127.0.0.1' --header 'X-Real-IP: 127.0.0.9' --header 'X-Authenticated-User: admin'"
    )
    address = host.interface("eth0").addresses[0]
    seen = json.loads(
        host.check_output(f"curl --silent --insecure {lies} --resolve mlflow.test:443:{address} {URL}/api/2.0/x?y=1")
    )
    assert seen["path"] == "/api/2.0/x?y=1"
    headers = seen["headers"]
    assert headers["Host"] == "mlflow.test"
    assert headers["X-Forwarded-For"] == headers["X-Real-IP"] == address
    assert headers["X-Forwarded-Proto"] == "https"
    assert "X-Authenticated-User" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/ajax-api/3.0/mlflow/assistant/sessions",
        "/api/3.0/mlflow/assistant",
        "/ajax-api/3.0/mlflow/gateway/secrets/create",
        "/ajax-api/2.0/mlflow/gateway-proxy",
        "/gateway/x/mlflow/invocations",
        "/x/..//gateway/openai/v1/models",
        "/ajax-api/3.0//mlflow/%61ssistant/x",
        "/x/../ajax-api/3.0/mlflow/assistant/x",
        "//gateway//proxy/x/y",
        "/gateway%2fproxy/x/y",
        "/gateway/proxy/x/;/y",
        # Somewhere else to NGINX, if it looked at them; to MLflow, which resolves no dots, the gateway's.
        "/gateway/proxy/x/../../../y",
        "/gateway/proxy/x/../../..",
        "/gateway/proxy/x/../../..?y",
        "/gateway/proxy/x/./../../../y",
        "/gateway/proxy/x/%2e%2e/.%2E/%2e./y",
        "/gateway/proxy/x/..%2f..%2F..%2fy",
        "/gateway/proxy/x%2f%2e%2e%2f%2e%2e%2f%2e%2e",
        "/gateway/proxy/x/../../../health",
        "/gateway/proxy/x/../../../static-files/y",
        "/ajax-api/3.0/mlflow/assistant/sessions/x/../../../../../../y",
    ],
)
def test_assistant_and_gateway_are_closed(host: Host, path: str) -> None:
    assert head(host, URL + path, "--path-as-is")[0] in (400, 403)


@pytest.mark.parametrize(
    "target",
    [
        "/gateway/proxy/x/../../..#y",
        "/gateway/proxy/x#/../../../y",
        "https://mlflow.test/gateway/proxy/x/../../../y",
        "https://mlflow.test//gateway/proxy/x/y",
    ],
)
def test_nor_are_they_open_to_what_no_client_sends(host: Host, target: str) -> None:
    answer = raw(host, f"GET {target} HTTP/1.1\\r\\nHost: mlflow.test\\r\\n\\r\\n")[1]
    assert answer in ("HTTP/1.1 400 Bad Request", "HTTP/1.1 403 Forbidden")


@pytest.mark.parametrize(
    "path",
    ["/a..b/x", "/x/..hidden", "/x/.hidden", "/x/...", "/x../y", "/x/..%20/y", "/x?path=../y", "/x?path=a%2f..%2fy"],
)
def test_dots_in_a_name_are_nothing_special(host: Host, path: str) -> None:
    assert body(host, URL + path, "--path-as-is")["path"] == path


def test_what_needs_no_login_leads_to_nothing_else(host: Host, converge) -> None:
    def asked(url: str) -> str:
        return str(json.loads(host.check_output(f"curl --silent --insecure --path-as-is {url}"))["path"])

    assert asked("http://127.0.0.1:8090/gateway/proxy/x/../../../metrics") == "/metrics"
    # As behind Google's front ends, where another server of NGINX's answers their health checks.
    try:
        done = converge(nginx_auth_request_socket="/run/upstream/live.sock")
        assert done.returncode == 0, done.stdout
        assert asked("https://127.0.0.1/health?x") == "/health?x"
        assert asked("https://127.0.0.1/gateway/proxy/x/../../../health") == "/health"
        assert head(host, f"{URL}/gateway/proxy/x/../../../health", "--path-as-is")[0] == 400
    finally:
        assert converge().returncode == 0


def test_static_files_are_compressed_and_immutable(host: Host) -> None:
    status, headers = head(host, URL + MAIN, "--header 'Accept-Encoding: gzip'")
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert headers["cache-control"] == "public, max-age=31536000, immutable"
    assert headers["content-type"].startswith("application/javascript")
    assert headers["vary"] == "Accept-Encoding"
    plain = host.check_output(f"{CURL} {URL}{MAIN}")
    assert plain == host.file("/srv/static/static/js/main.0a1b2c3d.js").content_string.rstrip("\n")


def test_static_files_keep_the_security_headers(host: Host) -> None:
    _, headers = head(host, URL + MAIN)
    assert headers["strict-transport-security"] == "max-age=63072000"
    assert headers["x-content-type-options"] == "nosniff"
    _, module = head(host, f"{URL}/static-files/static/js/worker.0a1b2c3d.mjs")
    assert module["content-type"].startswith("application/javascript")


def test_a_page_of_the_release_before_still_finds_its_files(host: Host) -> None:
    before = f"{URL}/static-files/static/js/main.00000000.js"
    status, headers = head(host, before)
    assert (status, headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
    assert host.check_output(f"{CURL} {before}") == "console.log(0);"
    assert "console.log(1);" in host.check_output(f"{CURL} {URL}{MAIN}")


def test_unnamed_static_files_are_neither_immutable_nor_missing_ones(host: Host) -> None:
    _, renderer = head(host, f"{URL}/static-files/lib/notebook-trace-renderer/index.html")
    assert "cache-control" not in renderer
    assert "x-frame-options" not in renderer
    status, missing = head(host, f"{URL}/static-files/static/js/missing.js")
    assert (status, "cache-control" in missing) == (404, False)


def test_files_beside_the_static_ones_are_not_served(host: Host) -> None:
    for path in ("/static-files/../upstream.py", "/static-files/%2e%2e/upstream.py"):
        assert head(host, URL + path, "--path-as-is")[0] == 400
    # Such a path is none of NGINX's, so the upstream answers.
    assert body(host, f"{URL}/static-files../upstream.py")["bytes"] == 0


def test_uploads_of_any_size_stream_through(host: Host) -> None:
    host.check_output("head --bytes=100M /dev/urandom >/tmp/upload")
    answer = body(host, f"{URL}/api/2.0/mlflow-artifacts/artifacts/x", "--upload-file /tmp/upload")
    assert answer["bytes"] == 100 * 1024 * 1024
    assert answer["sha256"] == host.file("/tmp/upload").sha256sum
    assert "buffered to a temporary file" not in host.file("/var/log/nginx/error.log").content_string


def test_a_switched_socket_is_followed(host: Host) -> None:
    assert body(host, f"{URL}/")["socket"] == "/run/upstream/release.sock"
    # As a switch of releases does it: the link is replaced, nothing reloads NGINX.
    host.check_output("ln -sfn ../upstream-next/release.sock /run/upstream/live.sock")
    try:
        time.sleep(3.5)  # longer than keepalive_time
        assert body(host, f"{URL}/")["socket"] == "/run/upstream-next/release.sock"
    finally:
        host.check_output("ln -sfn release.sock /run/upstream/live.sock")


def last_logged(host: Host) -> dict[str, object]:
    return json.loads(host.check_output("tail -1 /var/log/nginx/access.log"))


def test_the_access_log_is_json_without_secrets(host: Host) -> None:
    head(host, f"{URL}/api/2.0/mlflow/runs/get?token=secret", "--user 'a\"b:secret'")
    entry = last_logged(host)
    assert entry["uri"] == entry["route"] == "/api/2.0/mlflow/runs/get"
    assert entry["user"] == 'a"b'
    assert (entry["status"], entry["method"], entry["host"]) == (200, "GET", "mlflow.test")
    assert 0 <= float(str(entry["seconds"])) < 60 > float(str(entry["upstream_seconds"])) >= 0
    assert "secret" not in json.dumps(entry)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/", "/"),
        ("/api/2.0/mlflow-artifacts/artifacts/1/0fa1/artifacts/model/file", "/api/2.0/mlflow-artifacts/artifacts"),
        ("/ajax-api/3.0/mlflow/traces/tr-7c1a/tags", "/ajax-api/3.0/mlflow/traces"),
        ("/v1/traces", "/v1/traces"),
        ("/0fa1/secret", "/"),
    ],
)
def test_the_route_in_the_log_names_no_object(host: Host, path: str, route: str) -> None:
    head(host, URL + path)
    assert (last_logged(host)["uri"], last_logged(host)["route"]) == (path, route)


@pytest.mark.parametrize("given", ["", "0123456789abcdef0123456789abcdef"])
def test_a_request_has_one_id_in_answer_log_and_upstream_and_callers_cannot_choose_it(host: Host, given: str) -> None:
    options = f"--header 'X-Request-ID: {given}'" if given else ""
    answer = host.check_output(f"{CURL} {options} --include {URL}/x").lower()
    (told,) = (line.split(": ")[1] for line in answer.splitlines() if line.startswith("x-request-id: "))
    assert re.fullmatch(r"[0-9a-f]{32}", told)
    assert told != given
    assert f'"x-request-id": "{told}"' in answer
    assert last_logged(host)["request_id"] == told


@pytest.mark.parametrize("url", ["http://mlflow.test/x", f"{URL}/api/3.0/mlflow/assistant", URL + MAIN])
def test_what_nginx_answers_itself_has_an_id_too(host: Host, url: str) -> None:
    _, headers = head(host, url)
    assert headers["x-request-id"] == last_logged(host)["request_id"]


def test_the_state_is_told_on_loopback_only(host: Host) -> None:
    assert "Active connections" in host.check_output("curl --silent http://127.0.0.1:8090/nginx_status")
    assert host.run(f"curl --silent http://{host.interface('eth0').addresses[0]}:8090/nginx_status").rc == 7


def test_metrics_are_asked_for_on_loopback_without_a_callers_address(host: Host) -> None:
    asked = json.loads(host.check_output("curl --silent --header 'X-Real-IP: ' http://127.0.0.1:8090/metrics"))
    assert asked["path"] == "/metrics"
    assert "X-Real-IP" not in asked["headers"]
    from_elsewhere = body(host, f"{URL}/metrics", "--header 'X-Real-IP;'")
    assert from_elsewhere["headers"]["X-Real-IP"]


def test_a_killed_nginx_comes_back(host: Host) -> None:
    # However often that is in vain.
    assert host.check_output("systemctl show -P StartLimitIntervalUSec nginx") == "0"
    host.check_output("kill -9 $(cat /var/lib/nginx/nginx.pid)")
    time.sleep(4)
    assert head(host, f"{URL}/")[0] == 200


CLIENTS = """
import concurrent.futures, pathlib, ssl, urllib.request
context = ssl._create_unverified_context()
def ask(_):
    request = urllib.request.Request("https://mlflow.test/x")
    with urllib.request.urlopen(request, timeout=20, context=context) as answer:
        return answer.status
done = []
with concurrent.futures.ThreadPoolExecutor(4) as clients:
    while not pathlib.Path("/tmp/upgraded").exists():
        done += clients.map(ask, range(20))
print(len(done), *set(done))
"""
# Runs what an upgrade runs.
REINSTALL = "DEBIAN_FRONTEND=noninteractive apt-get install --reinstall nginx nginx-common >/tmp/reinstalled 2>&1"


def test_an_upgrade_of_the_package_fails_no_request(host: Host) -> None:
    upload = f"{CURL} --fail --limit-rate 4M --upload-file /tmp/upload {URL}/api/2.0/mlflow-artifacts/artifacts/x"
    before = host.check_output("cat /var/lib/nginx/nginx.pid")
    host.check_output("head --bytes=40M /dev/urandom >/tmp/upload && cp /etc/hosts /tmp/hosts && rm -f /tmp/upgraded")
    # Its name, for clients that have no --resolve.
    host.check_output("echo 127.0.0.1 mlflow.test >>/etc/hosts")
    try:
        answers = host.check_output(
            f"({upload} >/tmp/uploaded; echo $? >/tmp/upload.code) & (sleep 1; {REINSTALL}; echo $? >/tmp/upgraded) &"
            " python3 -c %s",
            CLIENTS,
        )
    finally:
        host.check_output("cat /tmp/hosts >/etc/hosts")
    assert host.check_output("cat /tmp/upgraded") == "0", host.check_output("cat /tmp/reinstalled")
    count, statuses = answers.split(maxsplit=1)
    assert (int(count) > 100, statuses) == (True, "200")
    # The upload outlives the upgrade.
    host.check_output("timeout 30 sh -c 'until test -s /tmp/upload.code; do sleep 0.2; done'")
    assert host.check_output("cat /tmp/upload.code") == "0"
    uploaded = json.loads(host.file("/tmp/uploaded").content_string)
    assert uploaded["sha256"] == host.file("/tmp/upload").sha256sum
    # What is new serves, and systemd knows it.
    after = host.check_output("cat /var/lib/nginx/nginx.pid")
    assert after != before
    assert host.check_output("systemctl show -P MainPID nginx") == after
    assert "using inherited sockets" in host.check_output("tail -5 /var/log/nginx/error.log")


def test_a_restart_waits_for_requests_while_a_load_balancer_is_told_to_send_no_more(host: Host, begin) -> None:
    upload = f"{CURL} --fail --limit-rate 1M --upload-file /tmp/upload {URL}/api/2.0/mlflow-artifacts/artifacts/x"
    before = host.check_output("cat /var/lib/nginx/nginx.pid")
    host.check_output("head --bytes=60M /dev/urandom >/tmp/upload && rm -f /tmp/upload.code")
    assert head(host, f"{URL}/health")[0] == 200
    host.check_output("touch /etc/systemd/system/nginx.service.d/hardening.conf")
    host.check_output(f"({upload}; echo $? >/tmp/upload.code) >/dev/null 2>&1 &")
    assert "keepalive_timeout 620s;" not in host.file("/etc/nginx/nginx.conf").content_string
    process = begin(nginx_drain_seconds=1)
    deadline = time.monotonic() + 120
    while head(host, f"{URL}/health")[0] != 503:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # Who is sent here all the same is served.
    assert head(host, f"{URL}/")[0] == 200
    assert not host.file("/tmp/upload.code").exists

    output, _ = process.communicate()

    assert process.returncode == 0, output
    assert host.check_output("cat /tmp/upload.code") == "0"
    assert host.check_output("cat /var/lib/nginx/nginx.pid") != before
    assert head(host, f"{URL}/health")[0] == 200
    assert "keepalive_timeout 620s;" in host.file("/etc/nginx/nginx.conf").content_string


def test_the_service_is_confined(host: Host) -> None:
    report = host.check_output("systemd-analyze security --no-pager nginx.service | tail -1")
    assert float(report.split("nginx.service:")[1].split()[0]) <= 2.5
    # Of the running processes, not only of the unit.
    pid = host.check_output("cat /var/lib/nginx/nginx.pid")
    assert host.check_output("systemctl show -P MainPID nginx") == pid
    confined = f"nsenter --target {pid} --mount"
    for place in ("/etc/nginx", "/run", "/usr/local/sbin"):
        assert host.run(f"{confined} touch {place}/made-by-a-test").rc != 0
    assert "Seccomp:\t2" in host.check_output(f"cat /proc/{pid}/status")


def test_rotated_logs_are_followed(host: Host) -> None:
    host.check_output(
        "cd /var/log/nginx && mv access.log access.log.1 && install -m 0640 -o www-data -g adm /dev/null access.log"
        " && invoke-rc.d nginx rotate && sleep 1"
    )
    head(host, f"{URL}/after-rotation")
    assert last_logged(host)["uri"] == "/after-rotation"


MAKE_CERTIFICATE = """
mkdir -p /etc/test-certificate && cd /etc/test-certificate
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
  -keyout privkey.pem -out fullchain.pem -subj /CN=%s -addext subjectAltName=DNS:%s
"""


def test_a_real_certificate_is_taken_up_and_a_wrong_one_is_not_by_a_restart_either(host: Host) -> None:
    def subject(action: str) -> str:
        host.check_output(f"systemctl {action} nginx && sleep 1")
        (found,) = re.findall(r"^subject=CN ?= ?(\S+)", handshake(host, ""), re.MULTILINE)
        return str(found)

    assert subject("reload") == "bootstrap"
    try:
        host.check_output(MAKE_CERTIFICATE, "real", "mlflow.test")
        assert subject("reload") == "real"
        host.check_output(MAKE_CERTIFICATE, "another", "other.test")
        assert subject("restart") == "real"
        host.check_output(MAKE_CERTIFICATE, "keyless", "mlflow.test")
        host.check_output("openssl genpkey -algorithm ed25519 -out /etc/test-certificate/privkey.pem")
        assert subject("restart") == "real"
        assert "is not taken" in host.check_output("journalctl --unit=nginx --output=cat --no-pager --lines=20")
        host.check_output(MAKE_CERTIFICATE, "mended", "mlflow.test")
        assert subject("reload") == "mended"
    finally:
        host.check_output("rm -r /etc/test-certificate /etc/nginx/tls/accepted.*; systemctl reload nginx")
