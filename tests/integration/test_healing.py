"""Whatever fails while a client writes, everything serves again without a hand, and nothing acknowledged is lost.

`make faults` runs this alone, whole, and writes docs/faults.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import email.utils
import json
import pathlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from emulator.certificates import make_authority
from tests.integration.conftest import LOCAL, ROOT, site_killed_at_every_role

SQL = "https://sqladmin.googleapis.com/v1/projects/demo-project"
DATABASE = "cloudsql-mlflow"
LONGEST_WAIT_SECONDS = 300
# One answer may come from a worker or a connection that is about to go.
ANSWERS_IN_A_ROW = 20
AWAY_SECONDS = 15


def docker(*arguments: str) -> str:
    return subprocess.run(
        ["docker", *arguments], check=True, capture_output=True, text=True, timeout=LONGEST_WAIT_SECONDS
    ).stdout.strip()


class Writer(threading.Thread):
    """A client that writes and tries nothing twice: metrics to one run, and now and then an artifact."""

    def __init__(self, deployment: Any) -> None:
        super().__init__(daemon=True)
        self.url = deployment.url
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.proxies = {"https": deployment.environment["HTTPS_PROXY"]}
        self.http.verify = str(deployment.ca_bundle)
        self.http.auth = ("admin", deployment.admin_password)
        self.stop = threading.Event()
        self.metrics: set[int] = set()
        self.artifacts: set[int] = set()
        self.failures: list[tuple[float, str]] = []
        self.in_a_row = 0
        self.served_again = 0.0
        self.experiment = self.ask("POST", "mlflow/experiments/create", json={"name": f"healing-{time.time_ns()}"})[
            "experiment_id"
        ]
        run = self.ask("POST", "mlflow/runs/create", json={"experiment_id": self.experiment})
        self.run_id = run["run"]["info"]["run_id"]
        self.files = f"mlflow-artifacts/artifacts/{self.experiment}/{self.run_id}/artifacts"

    @property
    def acknowledged(self) -> int:
        return len(self.metrics) + len(self.artifacts)

    def ask(self, verb: str, path: str, **options: Any) -> Any:
        """Return the answer of one request; raises `requests.RequestException` when it fails."""
        response = self.http.request(verb, f"{self.url}/api/2.0/{path}", timeout=10, **options)
        response.raise_for_status()
        return response.json() if "json" in response.headers.get("Content-Type", "") else response.content

    def run(self) -> None:
        for number in range(1, 1_000_000):
            if self.stop.wait(0.05):
                return
            try:
                if number % 10:
                    metric = {"run_id": self.run_id, "key": "n", "value": number, "timestamp": 1, "step": number}
                    self.ask("POST", "mlflow/runs/log-metric", json=metric)
                    self.metrics.add(number)
                else:
                    self.ask("PUT", f"{self.files}/{number}.txt", data=f"{number}" * 1000)
                    self.artifacts.add(number)
            except requests.RequestException as error:
                self.failures.append((time.monotonic(), str(error)))
                self.in_a_row = 0
            else:
                if not self.in_a_row:
                    self.served_again = time.monotonic()
                self.in_a_row += 1

    def lost(self) -> list[str]:
        """Return what was acknowledged and is not there."""
        query = {"run_id": self.run_id, "metric_key": "n", "max_results": 25_000}
        kept: set[int] = set()
        while "page_token" not in query or query["page_token"]:
            page = self.ask("GET", "mlflow/metrics/get-history", params=query)
            kept |= {int(metric["step"]) for metric in page["metrics"]}
            query["page_token"] = page.get("next_page_token")
        lost = [f"metric {number}" for number in self.metrics - kept]
        for number in self.artifacts:
            answer = self.http.get(f"{self.url}/api/2.0/{self.files}/{number}.txt", timeout=30)
            if answer.text != f"{number}" * 1000:
                lost.append(f"artifact {number}: {answer.status_code}")
        return lost


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a fault is made: the server's container, the operator's calls, the emulated cloud's own address."""

    server: str
    cloud: Any
    emulator: str

    def shell(self, command: str) -> str:
        return docker("exec", self.server, "sh", "-c", command)


MAIN = "$(systemctl show -P MainPID mlflow)"
SUPERVISOR = f"$(pgrep --parent {MAIN} --full uvicorn)"
WORKERS = f"$(pgrep --parent {SUPERVISOR} --full spawn_main)"


def hang(place: Place) -> None:
    # As soon as it has started, which its watchdog may not have seen yet.
    place.shell("systemctl restart mlflow")
    # The supervisor as well: it would replace workers that stand still.
    place.shell(f"kill -STOP {SUPERVISOR} {WORKERS}")


def change_database(place: Place, verb: str, path: str, body: Any = None) -> None:
    response = place.cloud.call(verb, f"{SQL}/instances/mlflow{path}", body)
    assert response.status_code == 200, response.text
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while (operation := place.cloud.get(f"{SQL}/operations/{response.json()['name']}"))["status"] != "DONE":
        assert time.monotonic() < deadline, operation
        time.sleep(0.5)
    assert "error" not in operation


def database_restarts(place: Place) -> None:
    change_database(place, "POST", "/restart")


def database_fails_over(place: Place) -> None:
    change_database(place, "POST", "/failover")


@contextlib.contextmanager
def standby(place: Place) -> Iterator[None]:
    """Give the database a standby."""
    change_database(place, "PATCH", "", {"settings": {"availabilityType": "REGIONAL"}})
    try:
        yield
    finally:
        change_database(place, "PATCH", "", {"settings": {"availabilityType": "ZONAL"}})


def database_away(place: Place) -> None:
    docker("stop", DATABASE)
    time.sleep(AWAY_SECONDS)
    docker("start", DATABASE)


def database_away_at_boot(place: Place) -> None:
    docker("stop", DATABASE)
    docker("restart", place.server)
    time.sleep(AWAY_SECONDS)
    docker("start", DATABASE)


def database_killed(place: Place) -> None:
    # What a failover finds: the disk as it was, with nothing written at leisure.
    docker("kill", DATABASE)
    time.sleep(AWAY_SECONDS)
    docker("start", DATABASE)


@contextlib.contextmanager
def unavailable(place: Place, method: str) -> Iterator[None]:
    faults = f"{place.emulator}/_emulator/faults"
    fault = {"method": method, "status": 503, "times": 10_000}
    requests.post(faults, json=[fault], timeout=30).raise_for_status()
    try:
        yield
        time.sleep(AWAY_SECONDS)
    finally:
        requests.delete(faults, timeout=30).raise_for_status()


def bucket_unavailable(place: Place) -> None:
    with unavailable(place, "storage.objects.*"):
        pass


def metadata_unavailable_at_boot(place: Place) -> None:
    with unavailable(place, "metadata"):
        docker("restart", place.server)


def memory_runs_out(place: Place) -> None:
    """Another program takes all there is, until the kernel ends a worker, or what it is a worker of."""
    used = int(place.shell("ps -eo rss= | awk '{ sum += $1 } END { print sum }'")) * 1024
    docker("update", f"--memory={used}", f"--memory-swap={used}", place.server)
    try:
        place.shell(f"""python3 - {WORKERS} <<'EOF'
import os, sys, time
held = []
while all(os.path.exists("/proc/" + worker) for worker in sys.argv[1:]):
    held.append(b"x" * 2**22)
    time.sleep(0.02)
EOF""")
    finally:
        docker("update", "--memory=1024g", "--memory-swap=1024g", place.server)


def temporary_files_full(place: Place) -> None:
    # A disk of their own, in MLflow's eyes alone, that can be filled without filling this machine's.
    inside = "nsenter --mount --target $(systemctl show --property=MainPID --value mlflow)"
    place.shell(
        f"{inside} mount -t tmpfs -o size=4k,mode=1777 full /var/tmp; {inside} sh -c 'yes >/var/tmp/full' || true"
    )
    time.sleep(AWAY_SECONDS)
    place.shell(f"{inside} umount /var/tmp")


def certificate_expired(place: Place) -> None:
    place.shell("""/etc/mlflow/live/release/bin/python - /etc/letsencrypt/live/*/ <<'EOF'
import datetime, pathlib, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
directory = pathlib.Path(sys.argv[1])
old = x509.load_pem_x509_certificate((directory / "cert.pem").read_bytes())
key = serialization.load_pem_private_key((directory / "privkey.pem").read_bytes(), None)
now = datetime.datetime.now(datetime.UTC)
expired = (
    x509.CertificateBuilder(old.subject, old.subject, key.public_key(), x509.random_serial_number())
    .not_valid_before(now - datetime.timedelta(days=90))
    .not_valid_after(now - datetime.timedelta(minutes=1))
    .add_extension(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, critical=False)
    .sign(key, hashes.SHA256())
    .public_bytes(serialization.Encoding.PEM)
)
for name in ("cert.pem", "fullchain.pem"):
    (directory / name).write_bytes(expired)
EOF
systemctl reload nginx""")
    time.sleep(AWAY_SECONDS)
    # What certbot.timer starts twice a day.
    place.shell("systemctl start certbot.service")


SERVICES = "cloud-sql-proxy mlflow nginx"
READY = "/opt/mlflow/bin/mlflow-ready --wait 120"


@contextlib.contextmanager
def small_disk(place: Place) -> Iterator[None]:
    """Have what is written to the server's disk on one of its own, that can be filled without filling this machine's.

    Until the server starts anew; what was written meanwhile is gone then.
    """
    place.shell(f"""set -e
mkdir /run/disk
used=$(du --summarize --total --block-size=1M /etc /var | awk 'END {{ print $1 }}')
mount -t tmpfs -o size=$((used + 64))m disk /run/disk
cp --archive /etc /tmp /var /run/disk
mount --bind /run/disk/etc /etc
mount --bind /run/disk/tmp /tmp
mount --bind /run/disk/var /var
systemctl restart systemd-journald
systemctl restart {SERVICES}
{READY}""")
    try:
        yield
    finally:
        docker("restart", place.server)
        place.shell(f"until {READY}; do sleep 1; done")


@contextlib.contextmanager
def full(place: Place) -> Iterator[None]:
    """Leave no byte on the server's disk for a while, whatever is removed from it."""
    fill = "while :; do cat /dev/zero >>/var/full; sleep 0.05; done 2>/dev/null"
    place.shell(f"systemd-run --quiet --unit=filler sh -c '{fill}'")
    place.shell("while head --bytes=4096 /dev/zero >>/var/more; do sleep 0.1; done")
    try:
        yield
        time.sleep(AWAY_SECONDS)
    finally:
        place.shell("systemctl stop filler; rm /var/full /var/more")


def disk_full(place: Place) -> None:
    renew = "certbot renew --quiet --no-random-sleep-on-renew --force-renewal"
    with full(place):
        place.shell(READY)
        place.shell(f"! {renew}")
    place.shell(renew)
    look_for_logs(place)


def disk_full_at_start(place: Place) -> None:
    with full(place):
        place.shell(f"systemctl restart --no-block {SERVICES} systemd-journald")
    place.shell(f"until {READY} && systemctl is-active nginx; do sleep 1; done")
    look_for_logs(place)


def look_for_logs(place: Place) -> None:
    """See that the journal is kept on the disk, and that NGINX's log goes on."""
    place.shell("""set -e
logger --tag healing written
journalctl --sync
journalctl --directory=/var/log/journal --identifier=healing --quiet | grep written
until [ -n "$(find /var/log/nginx/access.log -newermt '-2 seconds')" ]; do sleep 1; done""")


@contextlib.contextmanager
def settable_clock(place: Place) -> Iterator[None]:
    """Tell MLflow, the proxy and NGINX a time that can be set; the clock of a container is this machine's."""
    source = pathlib.Path(__file__).with_name("settable_clock.c").read_text()
    # Not on the server, which would keep a compiler.
    library = docker(
        *("run", "--rm", docker("inspect", "--format={{.Config.Image}}", place.server), "sh", "-c"),
        f"""set -e
apt-get update -qq
apt-get install -qq -y --no-install-recommends gcc libc6-dev >/dev/null 2>&1
gcc -O2 -Wall -Werror -shared -fPIC -o /tmp/clock.so -x c - <<'END'
{source}
END
base64 /tmp/clock.so""",
    )
    units = "cloud-sql-proxy.service.d mlflow-.service.d nginx.service.d"
    restart = f"systemctl daemon-reload; systemctl restart {SERVICES}; {READY}"
    place.shell(f"""set -e
base64 --decode >/usr/local/lib/clock.so <<'END'
{library}
END
head --bytes=8 /dev/zero >/run/clock
cd /run/systemd/system
mkdir {units}
for unit in {units}; do
  printf '[Service]\\nEnvironment=LD_PRELOAD=/usr/local/lib/clock.so\\n' >$unit/clock.conf
done
{restart}""")
    try:
        yield
    finally:
        place.shell(f"""set -e
cd /run/systemd/system
rm -r {units} /run/clock /usr/local/lib/clock.so
{restart}""")


def clock_jumps(place: Place) -> None:
    # By MLflow's own clock, and by NGINX's.
    asked = ("--unix-socket /run/mlflow/live.sock http://localhost/health", "http://127.0.0.1:8090/nginx_status")
    for hours in (24, 0):
        # In its place, where it is mapped.
        set_clock = f"open('/run/clock', 'r+b').write(({hours} * 3600).to_bytes(8, sys.byteorder))"
        place.shell(f'python3 -c "import sys; {set_clock}"')
        time.sleep(AWAY_SECONDS)
        for one in asked:
            told = place.shell(f"curl --silent --include {one} | sed -n 's/^date: //ip'")
            ahead = email.utils.parsedate_to_datetime(told) - datetime.datetime.now(datetime.UTC)
            assert round(ahead.total_seconds() / 3600) == hours


FAULTS: dict[str, Callable[[Place], Any]] = {
    "a worker of MLflow is killed": lambda place: place.shell(f"set -- {WORKERS}; kill -9 $1"),
    "MLflow's main process is killed": lambda place: place.shell(f"kill -9 {MAIN}"),
    "the Cloud SQL Auth Proxy is killed": lambda place: place.shell("systemctl kill --signal=KILL cloud-sql-proxy"),
    "NGINX is killed": lambda place: place.shell("systemctl kill --signal=KILL nginx"),
    "the database restarts": database_restarts,
    "the virtual machine restarts": lambda place: docker("restart", place.server),
    "MLflow hangs as soon as it has started, its socket open": hang,
}
LONG_FAULTS: dict[str, Callable[[Place], Any]] = {
    f"the database is away for {AWAY_SECONDS} s": database_away,
    f"the database is away for {AWAY_SECONDS} s at boot": database_away_at_boot,
    f"the database is killed, and there again after {AWAY_SECONDS} s": database_killed,
    "the database fails over to its standby": database_fails_over,
    f"the bucket answers 503 for {AWAY_SECONDS} s": bucket_unavailable,
    f"the metadata server answers 503 for {AWAY_SECONDS} s at boot": metadata_unavailable_at_boot,
    "memory runs out, and the kernel ends a process of MLflow": memory_runs_out,
    f"/var/tmp is full for {AWAY_SECONDS} s": temporary_files_full,
    f"the server's disk is full for {AWAY_SECONDS} s": disk_full,
    f"everything restarts while the server's disk is full for {AWAY_SECONDS} s": disk_full_at_start,
    f"the clock jumps a day ahead, and back after {AWAY_SECONDS} s": clock_jumps,
    f"the certificate has expired, and certbot.timer comes after {AWAY_SECONDS} s": certificate_expired,
}
# What some of them need, for as long as they are tried.
NEEDS: dict[Callable[[Place], Any], Callable[[Place], contextlib.AbstractContextManager[None]]] = {
    database_fails_over: standby,
    disk_full: small_disk,
    disk_full_at_start: small_disk,
    clock_jumps: settable_clock,
}
# Nobody may notice these.
CHANGES: dict[str, Callable[[Place], Any]] = {
    "the Cloud SQL Auth Proxy is replaced by a new one": lambda place: place.shell(
        "touch /etc/systemd/system/cloud-sql-proxy.service; cloud-sql-proxy-handover 75"
    ),
}
# What a run brings that is killed. None of it restarts the database or the virtual machine.
OTHER_SETTINGS: dict[str, Any] = {
    "platform_labels": {"team": "research"},
    "platform_operators": ["user:bob@example.com"],
    "platform_email": "others@example.com",
    "platform_backup_hour": 3,
    "platform_backup_retention_days": 40,
    "platform_request_timeout_seconds": 1800,
    "gcp_bucket_soft_delete_days": 14,
    "gcp_network_flow_logs": {"enable": True},
    "gcp_observability_disk_percent": 80,
    "gcp_sql_backup_count": 30,
    "ops_agent_journal_units": ["mlflow"],
    "upkeep_journal_mib": 512,
}


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Yield the rows of the table, written when the tests are done."""
    rows = ["| fault | seconds to serve again | writes | failed | acknowledged and lost |", "|---|---|---|---|---|"]
    yield rows
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "faults.md").write_text("\n".join(rows) + "\n")


@contextlib.contextmanager
def under_load(deployment: Any, table: list[str], fault: str, *, unnoticed: bool) -> Iterator[None]:
    """Have a client write meanwhile and until it is served again, and add the row of what came of it to the table."""
    writer = Writer(deployment)
    writer.start()
    wait_for_answers(writer, fault)
    begun = time.monotonic()

    yield
    wait_for_answers(writer, fault)
    writer.stop.set()
    writer.join()

    seconds = writer.served_again - begun if writer.failures else 0
    writes = writer.acknowledged + len(writer.failures)
    lost = writer.lost()
    table.append(f"| {fault} | {seconds:.0f} | {writes} | {len(writer.failures)} | {len(lost)} |")
    assert lost == []
    assert not (unnoticed and writer.failures), writer.failures
    assert docker("exec", deployment.server, "systemctl", "list-units", "--failed", "--quiet", "--plain") == ""
    writer.ask("POST", "mlflow/experiments/delete", json={"experiment_id": writer.experiment})


@pytest.mark.parametrize(
    "fault", [*FAULTS, *(pytest.param(fault, marks=pytest.mark.long) for fault in LONG_FAULTS | CHANGES)]
)
def test_everything_serves_again_and_nothing_acknowledged_is_lost(
    deployment: Any, cloud: Any, table: list[str], fault: str
) -> None:
    place = Place(deployment.server, cloud, deployment.environment["HTTPS_PROXY"])
    make = (FAULTS | LONG_FAULTS | CHANGES)[fault]
    with (
        NEEDS.get(make, contextlib.nullcontext)(place),
        under_load(deployment, table, fault, unnoticed=fault in CHANGES),
    ):
        make(place)


@pytest.mark.long
def test_nobody_notices_that_site_is_killed_at_every_role(
    deployment: Any, play: Callable[..., Any], table: list[str], tmp_path: pathlib.Path
) -> None:
    changed = tmp_path / "changed.yml"
    # Something for every role, of the cloud and of the server; the authority has every service replaced.
    changed.write_text(json.dumps(OTHER_SETTINGS | {"platform_ca_certificates": make_authority("Another")[0]}))
    arguments = (f"--extra-vars=@{changed}", "--extra-vars=verify_database_outage_enabled=false")
    fault = "site.yml brings other settings and is killed as each of its roles begins, then run to its end"
    with under_load(deployment, table, fault, unnoticed=True):
        site_killed_at_every_role(deployment.environment, LOCAL, tmp_path, *arguments)
        finished = play("site.yml", *arguments)
        assert finished.code == 0, finished.output
        assert finished.changed > 0

    again = play("site.yml", *arguments)
    assert (again.code, again.changed) == (0, 0), again.output
    back = play("site.yml")
    assert back.code == 0, back.output


def wait_for_answers(writer: Writer, fault: str) -> None:
    """Wait until the writer has had good answers for a while from now on."""
    deadline, before = time.monotonic() + LONGEST_WAIT_SECONDS, writer.acknowledged
    while min(writer.in_a_row, writer.acknowledged - before) < ANSWERS_IN_A_ROW:
        assert time.monotonic() < deadline, f"not served {LONGEST_WAIT_SECONDS} s after {fault}: {writer.failures[-1:]}"
        time.sleep(0.2)
