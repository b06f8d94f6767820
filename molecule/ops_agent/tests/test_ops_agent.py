import json
import re
import time

import pytest
import yaml
from testinfra.host import Host

CONFIG = "/etc/google-cloud-ops-agent/config.yaml"
PARTS = ("google-cloud-ops-agent-fluent-bit", "google-cloud-ops-agent-opentelemetry-collector")


def started(host: Host) -> str:
    return host.check_output("systemctl show -P ActiveEnterTimestampMonotonic google-cloud-ops-agent")


def shipped(host: Host, part: str, text: str) -> bool:
    """Wait until a part of the stand-in notes something with `text`."""
    deadline = time.monotonic() + 20
    while host.run(f"grep --quiet --fixed-strings '{text}' /var/lib/google-cloud-ops-agent/{part}/shipped.jsonl").rc:
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


@pytest.mark.parametrize("unit", PARTS)
def test_every_part_runs(host: Host, unit: str) -> None:
    assert host.service(unit).is_running
    assert host.service("google-cloud-ops-agent").is_enabled
    # However often it fails.
    assert host.check_output(f"systemctl show -P StartLimitIntervalUSec {unit}") == "0"


def test_what_the_parts_tell_of_themselves_stays_on_the_machine(host: Host) -> None:
    ports = {"20201", "20202"}
    listening = host.check_output("ss --no-header --listening --tcp --numeric").splitlines()
    found = {line.split()[3] for line in listening if line.split()[3].rpartition(":")[2] in ports}
    assert found == {f"127.0.0.1:{port}" for port in ports}
    assert {host.run(f"curl --fail --silent 127.0.0.1:{port}/metrics").rc for port in ports} == {0}


def test_another_environment_starts_the_agent_anew(host: Host, converge) -> None:
    before = started(host)
    variable = {"https_proxy": "http://proxy.test:3128"}
    check = converge("--check", ops_agent_environment=variable)
    assert check.returncode == 0, check.stdout
    assert started(host) == before
    assert "changed=2 " in check.stdout
    changed = converge(ops_agent_environment=variable)
    assert "changed=2 " in changed.stdout, changed.stdout
    assert started(host) != before
    for part in PARTS:
        environment = host.check_output(f"tr '\\0' '\\n' </proc/$(systemctl show -P MainPID {part})/environ")
        assert "https_proxy=http://proxy.test:3128" in environment.splitlines()
    assert converge().returncode == 0


def test_the_repository_is_trusted_by_its_own_key_alone(host: Host) -> None:
    release = host.check_output(". /etc/os-release; echo $VERSION_CODENAME")
    sources = host.file("/etc/apt/sources.list.d/google-cloud-ops-agent.sources").content_string
    assert f"Suites: google-cloud-ops-agent-{release}-2" in sources
    assert "Signed-By: /etc/apt/keyrings/google-cloud-ops-agent-" in sources
    assert host.check_output("apt-get update 2>&1 | grep -i -E 'warn|error|not signed' || true") == ""


def test_the_configuration_names_what_is_collected(host: Host) -> None:
    config = yaml.safe_load(host.file(CONFIG).content_string)
    logging, metrics = config["logging"], config["metrics"]
    assert logging["service"]["pipelines"]["services"] == {"receivers": ["journal"], "processors": ["services_only"]}
    assert metrics["receivers"]["nginx"]["stub_status_url"] == "http://127.0.0.1:8090/nginx_status"
    assert set(metrics["service"]["pipelines"]) == {"default_pipeline", "nginx", "prometheus"}


def test_of_the_journal_services_what_systemd_says_of_them_and_drills_are_sent(host: Host) -> None:
    config = yaml.safe_load(host.file(CONFIG).content_string)
    (rule,) = config["logging"]["processors"]["services_only"]["match_any"]
    asked = re.fullmatch(r"NOT \((.+)\)", rule)
    assert asked, rule
    conditions = [re.fullmatch(r'jsonPayload\.(\w+) =~ "([^"]+)"', one) for one in asked[1].split(" OR ")]
    since = host.check_output("date +%s")
    for unit in ("certbot", "mlflow-3.17.2-0123456789", "another"):
        host.run(f"systemd-run --quiet --wait --unit={unit} sh -c 'echo said by {unit}; exit 3'")
    host.check_output("logger --tag mlflow-drill Drill failed; logger --tag cron said by cron")
    journal = host.check_output(f"journalctl --since=@{since} --output=json --no-pager").splitlines()
    sent = [
        entry["MESSAGE"]
        for entry in map(json.loads, journal)
        if any(re.search(one[2], str(entry.get(one[1], ""))) for one in conditions if one)
    ]
    assert {"said by certbot", "said by mlflow-3.17.2-0123456789", "Drill failed"} <= {*sent}
    assert "certbot.service: Failed with result 'exit-code'." in sent
    assert [one for one in sent if "another" in one or "cron" in one] == []


def test_access_log_and_endpoints_are_collected(host: Host) -> None:
    host.check_output("mkdir --parents /var/log/nginx; echo '{\"status\": 299}' >>/var/log/nginx/access.log")
    assert shipped(host, "fluent-bit", "299")
    assert shipped(host, "opentelemetry-collector", "http://127.0.0.1:9090/metrics")


def test_a_configuration_that_the_agent_refuses_is_not_written(host: Host, converge) -> None:
    before, content = started(host), host.file(CONFIG).content_string
    # Passes the preflight, and the file is YAML: only the agent itself knows that an empty name is none.
    done = converge(ops_agent_prometheus_targets=[{"name": "", "address": "127.0.0.1:9090"}])
    assert done.returncode != 0
    assert "The agent config file is not valid" in done.stdout
    assert host.file(CONFIG).content_string == content
    assert started(host) == before
    assert "changed=0 " in converge("--check").stdout


def test_a_change_restarts_the_agent_also_after_an_interruption(host: Host, converge) -> None:
    before = started(host)
    host.check_output(f"touch {CONFIG}")
    assert "changed=1 " in converge().stdout
    assert started(host) != before


def test_health_names_the_part_that_does_not_run(host: Host, converge) -> None:
    host.check_output(f"systemctl stop {PARTS[0]}")
    try:
        done = converge(entry_point="health")
    finally:
        host.check_output(f"systemctl start {PARTS[0]}")
    assert done.returncode != 0
    assert f"{PARTS[0]}.service: inactive" in done.stdout
