"""How closed a server is, in figures; `make security` writes them to docs/security.md."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.integration.conftest import ROOT

pytestmark = pytest.mark.long
# Exposure as `systemd-analyze security` counts it, from 0 to 10, and how much of it each service may have.
SERVICES = {
    "mlflow": ("MLflow", 1.5),
    "mlflow-gc": ("removal of deleted runs", 1.5),
    "mlflow-cleanup": ("removal of old releases", 2.0),
    "mlflow-backup": ("backup sets", 2.0),
    "cloud-sql-proxy": ("Cloud SQL Auth Proxy", 2.0),
    "iap-verifier": ("verifier behind Identity-Aware Proxy", 2.0),
    "nginx": ("NGINX, whose master is root", 2.5),
}
# The second are the files of the page, which MLflow publishes.
OPEN_PATHS = {"/health", "/static-files/1"}
HEADERS = (
    "Strict-Transport-Security",
    "Content-Security-Policy",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "Referrer-Policy",
)
# Told the secrets as JSON, it says how many of what somebody else could read it has read, and which of it holds one.
SEARCH = """
import json, pathlib, pwd, stat, subprocess, sys
values = [value.encode() for value in json.load(sys.stdin)]
assert values and min(map(len, values)) > 20
read, found = 0, []
def look(name, text):
    global read
    read += 1
    if any(value in text for value in values):
        found.append(name)
look("journal", subprocess.run(["journalctl", "--no-pager", "--output=json"], capture_output=True, check=True).stdout)
own = {0, pwd.getpwnam("mlflow").pw_uid}
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        look(f"arguments of {process.name}", (process / "cmdline").read_bytes())
        if process.stat().st_uid not in own:
            look(f"environment of {process.name}", (process / "environ").read_bytes())
    except OSError:
        pass
for top in "etc home opt/mlflow/bin root run srv tmp usr/local var/lib var/log var/tmp".split():
    for path in pathlib.Path("/", top).rglob("*"):
        try:
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IROTH:
                look(str(path), path.read_bytes())
        except OSError:
            pass
print(json.dumps([read, found]))
"""
Measured = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def measured() -> Iterator[Measured]:
    """Yield a function that notes what was measured, and what may be, for the table."""
    rows = ["| figure | measured | may be |", "|---|---|---|"]
    yield lambda *cells: rows.append(f"| {' | '.join(cells)} |")
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "security.md").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def on_server(deployment: Any) -> Callable[..., str]:
    """Return a function that runs a shell command on the server."""

    def run(command: str, given: str = "") -> str:
        shell = ["docker", "exec", "--interactive", deployment.server, "sh", "-c", command]
        done = subprocess.run(shell, input=given, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture(scope="module")
def verifier(environment: dict[str, str], deployment: Any) -> Iterator[None]:
    """Let the verifier run beside what does not need it."""

    def role(**variables: Any) -> None:
        given = {f"iap_verifier_{name}": value for name, value in variables.items()}
        options = ("--become", "-m", "ansible.builtin.include_role", "-a", "name=mlops.mlflow_gcp.iap_verifier")
        command = ["ansible", "mlflow", "-i", "inventories/local", *options, "-e", json.dumps(given)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    assert deployment
    role(enabled=True, audience="/projects/1/global/backendServices/2")
    yield
    role(enabled=False)


@pytest.mark.usefixtures("verifier")
@pytest.mark.parametrize("unit", SERVICES)
def test_a_service_is_confined(on_server: Callable[..., str], measured: Measured, unit: str) -> None:
    what, most = SERVICES[unit]
    name = on_server(f"systemctl show --property=Id --value {unit}.service")
    said = on_server(f"systemd-analyze security --no-pager {name} | tail -1")
    (exposure,) = re.findall(r": ([0-9.]+) ", said)
    measured(f"`systemd-analyze security`: {what}", exposure, f"{most} at most")
    assert float(exposure) <= most


def test_tls_is_graded(deployment: Any, measured: Measured) -> None:
    # From another machine: the one of Debian 12 gives no grades.
    options = "--quiet --nodns=min --add-ca=/tmp/authorities.pem --jsonfile=/tmp/testssl.json"
    program = (
        "cat >/tmp/authorities.pem; export DEBIAN_FRONTEND=noninteractive; apt-get update --quiet=2;"
        " apt-get install --quiet=2 --no-install-recommends testssl.sh; "
        f"testssl {options} https://mlflow.localhost; cat /tmp/testssl.json >&2"
    )
    labels = ["--label", "mlops.mlflow_gcp=emulator", "--network", "mlflow-gcp"]
    command = ["docker", "run", "--rm", "--interactive", *labels, "mlflow-gcp/vm:debian-13", "sh", "-c", program]
    authorities = deployment.ca_bundle.read_text()
    done = subprocess.run(command, input=authorities, capture_output=True, text=True, timeout=600, check=False)
    found = {one["id"]: one for one in json.loads(done.stderr[done.stderr.index("[") :])}
    measured("grade of `testssl.sh`", found["overall_grade"]["finding"], "A+")
    assert found["overall_grade"]["finding"] == "A+", [
        one for one in found.values() if one["severity"] not in ("OK", "INFO")
    ]


def test_the_answer_says_what_a_browser_may_do(deployment: Any, measured: Measured) -> None:
    proxies = {"https": deployment.environment["HTTPS_PROXY"]}
    login = ("admin", deployment.admin_password)
    answer = requests.get(deployment.url, auth=login, proxies=proxies, verify=str(deployment.ca_bundle), timeout=60)
    assert answer.status_code == 200
    for name in HEADERS:
        measured(f"header `{name}`", f"`{answer.headers[name]}`", "")
    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe-eval" not in policy
    assert re.search(r"script-src [^;]*'unsafe-inline'", policy) is None


def test_nothing_else_listens(on_server: Callable[..., str], measured: Measured) -> None:
    lines = on_server("ss --no-header --listening --tcp --udp --numeric --processes").splitlines()
    sockets = [(line.split()[4], re.findall(r'"([^"]+)"', line)) for line in lines]
    # Docker's own name server is on loopback in every container.
    beyond = {
        f"{(programs or ['unknown'])[0]} at {place.rpartition(':')[2]}"
        for place, programs in sockets
        if not re.match(r"127\.|\[::1\]|\[::ffff:127\.", place)
    }
    measured("programs that listen beyond loopback, and ports", ", ".join(sorted(beyond)), "NGINX at 80 and 443, sshd")
    assert beyond == {"nginx at 80", "nginx at 443"}


def test_without_a_login_every_route_is_refused(on_server: Callable[..., str], measured: Measured) -> None:
    program = (ROOT / "molecule/mlflow/walk_routes.py").read_text()
    on_server("cat >/srv/walk_routes.py", program)
    elsewhere = json.dumps({"Host": "mlflow.localhost", "X-Forwarded-For": "192.0.2.1"})
    walk = f"/etc/mlflow/live/release/bin/python -B -W ignore /srv/walk_routes.py {shlex.quote(elsewhere)}"
    answers = json.loads(on_server(walk))
    paths = {path for _, _, path in answers}
    answered = {path for status, _, path in answers if status != 401}
    assert len(paths) > 400
    listed = ", ".join(f"`{path}`" for path in sorted(answered))
    measured(
        f"of {len(paths)} routes, answered without a login", listed, "the health check, and the files of MLflow's page"
    )
    assert answered == OPEN_PATHS


def test_nobody_else_can_read_a_secret(
    deployment: Any, cloud: Any, on_server: Callable[..., str], measured: Measured
) -> None:
    names = ("admin-password", "flask-secret-key", "webhook-secret-encryption-key", "crypto-kek-passphrase")
    values = [cloud.secret(f"mlflow-{name}") for name in names]
    on_server("cat >/srv/search.py && chmod 0600 /srv/search.py", SEARCH)
    read, found = json.loads(on_server("python3 /srv/search.py", json.dumps(values)))
    places = "the journal, arguments of all processes, environments of other users', files that anybody may read"
    measured(f"of {read} places with a secret in them ({places})", str(len(found)), "0")
    assert read > 500
    assert found == []
    # It finds what is there.
    on_server("cat >/srv/planted && chmod 0644 /srv/planted", values[0])
    _, planted = json.loads(on_server("python3 /srv/search.py", json.dumps(values)))
    on_server("rm /srv/planted /srv/search.py /srv/walk_routes.py")
    assert planted == ["/srv/planted"]
