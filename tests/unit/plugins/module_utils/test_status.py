"""What is judged how, and that whatever was read is shown and never interpreted."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import html.parser
import json
import re
from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import status

NOW = datetime.datetime(2026, 11, 25, 12, tzinfo=datetime.UTC)
DEPLOYMENT = status.Deployment(
    name="mlflow",
    project="demo",
    region="europe-west1",
    zone="europe-west1-b",
    domain="mlflow.example.com",
    inventory="inventories/prod",
    server="mlflow-1",
    bucket="demo-artifacts",
    database="mlflow",
)


def hours_ago(hours: float) -> str:
    return (NOW - datetime.timedelta(hours=hours)).isoformat()


def unit(state: str = "active", **changed: Any) -> dict[str, Any]:
    return {"state": state, "result": "success", "restarts": 0, "since": hours_ago(50), **changed}


def healthy() -> dict[str, Any]:
    """Return the facts of a deployment that is well in everything."""
    server = {
        "system": {
            "os": "Debian GNU/Linux 12 (bookworm)",
            "booted": hours_ago(100),
            "load": [0.5, 0.4, 0.3],
            "cpus": 2,
            "reboot_required": False,
        },
        "units": {
            **{name: unit() for _title, _role, units in [*status.SERVING, *status.WATCHING] for name in units},
            "certbot.service": unit("inactive"),
            "mlflow-backup.timer": unit(),
            "mlflow-backup.service": unit("inactive"),
            "mlflow-gc.timer": unit(),
            "mlflow-gc.service": unit("inactive"),
            "mlflow-cleanup.service": unit("inactive"),
        },
        "last_cleanup": {"removed": 1, "ended": hours_ago(8)},
        "last_gc": {"removed": {"runs": 2}, "kept": 1, "unknown": 0, "ended": hours_ago(9)},
        "last_set": {"name": "20261125T020000Z", "ended": hours_ago(10)},
        "last_drill": {"set": "20261125T020000Z", "passed": True, "problem": "", "ended": hours_ago(24 * 20)},
        "packages": {name: {"version": "1.2"} for name in ("nginx", "certbot", "google-cloud-ops-agent")},
        "proxy": {"version": "2.25.2"},
        "proxy_ready": {"text": "ok"},
        "generations": {"live": "mlflow-3.17.2-fa71f5f013", "previous": "mlflow-3.16.1-0123456789"},
        "restoring": "",
        "mlflow_ready": {"text": "mlflow is ready"},
        "disk": {"total_bytes": 100 * status.GIB, "used_bytes": 85 * status.GIB},
        "memory": {"total_bytes": 8 * status.GIB, "used_bytes": 2 * status.GIB},
        "database": {"size_bytes": 9 * status.MIB, "connections": 80, "max_connections": 100},
        "updates": {"count": 0, "security": [], "lists_fetched": hours_ago(5)},
    }
    return {
        "servers": [{"name": "mlflow-1", "server": server}],
        "cloud": {
            "compute.instances": [
                {
                    "name": "mlflow-1",
                    "status": "RUNNING",
                    "machineType": "https://compute/zones/z/machineTypes/e2-standard-2",
                    "lastStartTimestamp": "2026-11-21T05:00:00.000-08:00",
                    "networkInterfaces": [{"accessConfigs": [{"natIP": "192.0.2.1"}]}],
                }
            ],
            "compute.disks": [{"name": "mlflow-1", "sizeGb": "50", "type": "zones/z/diskTypes/pd-balanced"}],
            "sqladmin.instances": [
                {
                    "name": "mlflow",
                    "state": "RUNNABLE",
                    "databaseInstalledVersion": "POSTGRES_17_6",
                    "createTime": "2026-01-01T00:00:00.123Z",
                    "settings": {
                        "tier": "db-custom-1-3840",
                        "edition": "ENTERPRISE",
                        "availabilityType": "REGIONAL",
                        "activationPolicy": "ALWAYS",
                        "dataDiskSizeGb": "10",
                        "dataDiskType": "PD_SSD",
                        "backupConfiguration": {"enabled": True},
                    },
                }
            ],
            "sqladmin.backupRuns": [{"status": "SUCCESSFUL", "endTime": hours_ago(10)}],
            "storage.buckets": [{"name": "demo-artifacts", "location": "EUROPE-WEST1", "storageClass": "STANDARD"}],
        },
        "door": {
            "status": 401,
            "certificate": {"names": ["mlflow.example.com"], "days_left": 20, "issuer": "Let's Encrypt"},
        },
        "drift": {"changes": []},
        "locked": ["3.17.2", "3.9.0"],
    }


def judged(**changes: Any) -> status.Report:
    """Return the report of a healthy deployment, changed at paths such as cloud__compute.instances__0__status."""
    facts = copy.deepcopy(healthy())
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: Any = facts
        for key in parents:
            place = place[int(key) if isinstance(place, list) else key]
        place[int(last) if isinstance(place, list) else last] = value
    return status.judge(facts, status.Limits(), DEPLOYMENT, NOW)


def row(report: status.Report, name: str) -> status.Row:
    return next(one for one in report.rows if one.name == name)


SERVER = "servers__0__server__"
SQL = "cloud__sqladmin.instances__0__"
VM = "cloud__compute.instances__0__"


def test_everything_well_is_healthy_and_leaves_nothing_to_do():
    report = judged()
    assert report.verdict == "healthy"
    assert report.action == "nothing to do"
    assert report.reasons == []
    assert {one.health for one in report.rows} == {"ok"}
    mlflow = row(report, "MLflow")
    assert mlflow.version == "3.17.2"
    assert "before it: mlflow-3.16.1-0123456789" in mlflow.text
    assert status.since(mlflow, NOW) == "2026-11-23 10:00 (2 d)"


@pytest.mark.parametrize(
    ("change", "name", "health", "text", "command"),
    [
        ({f"{VM}status": "TERMINATED"}, "VM mlflow-1", "down", "it is TERMINATED", "--tags gcp_instance"),
        ({"cloud__compute.instances": []}, "VM mlflow-1", "down", "there is no such VM", "provision"),
        ({"cloud__compute.instances": {"error": "HTTP 403"}}, "VM mlflow-1", "unknown", "HTTP 403", "gcloud auth"),
        ({f"{SQL}state": "SUSPENDED"}, "Cloud SQL mlflow", "down", "SUSPENDED", "gcloud sql operations list"),
        ({f"{SQL}state": "MAINTENANCE"}, "Cloud SQL mlflow", "degraded", "maintenance", "gcloud sql operations list"),
        ({f"{SQL}settings__activationPolicy": "NEVER"}, "Cloud SQL mlflow", "down", "stopped", "--tags gcp_sql"),
        ({"cloud__sqladmin.instances": []}, "Cloud SQL mlflow", "down", "no such instance", "--tags gcp_sql"),
        ({"cloud__sqladmin.instances": {"error": "HTTP 500"}}, "Cloud SQL mlflow", "unknown", "HTTP 500", "gcloud"),
        (
            {f"{SERVER}units__cloud-sql-proxy.service": unit("activating", restarts=7, result="exit-code")},
            "Cloud SQL Auth Proxy",
            "down",
            "cloud-sql-proxy.service is activating, exit-code, restarted 7 times",
            "--tags cloud_sql_proxy",
        ),
        (
            {f"{SERVER}proxy_ready": {"error": "answered 503: no dial"}},
            "Cloud SQL Auth Proxy",
            "down",
            "it runs and is not ready: answered 503",
            "--tags cloud_sql_proxy",
        ),
        ({f"{SERVER}units__mlflow.service": unit("failed")}, "MLflow", "down", "failed", "--tags mlflow"),
        (
            {f"{SERVER}mlflow_ready": {"error": "the API answered 500"}},
            "MLflow",
            "down",
            "answered 500",
            "--tags mlflow",
        ),
        ({f"{SERVER}units__nginx.service": unit("inactive")}, "NGINX", "down", "is inactive", "--tags nginx"),
        (
            {f"{SERVER}units__certbot.timer": unit("inactive")},
            "Renewal of the certificate",
            "degraded",
            "certbot.timer is inactive",
            "--tags certbot",
        ),
        (
            {f"{SERVER}units__certbot.service": unit("failed", result="exit-code")},
            "Renewal of the certificate",
            "degraded",
            "the last renewal failed",
            "--tags certbot",
        ),
        (
            {f"{SERVER}units__mlflow.service": unit("inactive"), f"{SERVER}restoring": "20261125T020000Z'; x"},
            "MLflow",
            "down",
            "the restore of 20261125T020000Zx has not ended",
            "restore.yml -i inventories/prod -e platform_restore_set=20261125T020000Zx -e platform_restore_confirmed_",
        ),
        (
            {f"{SERVER}units__google-cloud-ops-agent-fluent-bit.service": unit("failed")},
            "Ops Agent",
            "degraded",
            "fluent-bit.service is failed",
            "--tags ops_agent",
        ),
        ({f"{SERVER}units": {"error": "no bus"}}, "NGINX", "unknown", "no bus", "--tags nginx"),
        ({f"{SERVER}units": {}}, "NGINX", "down", "nginx.service is not there", "--tags nginx"),
        ({"door": {"error": "refused", "component": "nginx"}}, "Front door", "down", "refused", "--tags nginx"),
        ({"door": {"error": "expired", "component": "certbot"}}, "Certificate", "down", "expired", "--tags certbot"),
        ({"door__status": 502}, "Front door", "down", "answers 502", "--tags mlflow,nginx"),
        ({"door__status": 200}, "Front door", "degraded", "answers 200 without a login", "verify"),
        ({"door__certificate__days_left": 19}, "Certificate", "degraded", "19 days left", "--tags certbot"),
        ({"door__certificate__days_left": -1}, "Certificate", "down", "-1 days left", "--tags certbot"),
        ({"cloud__storage.buckets": []}, "Bucket demo-artifacts", "down", "no such bucket", "--tags gcp_bucket"),
        ({"cloud__storage.buckets": {"error": "HTTP 403"}}, "Bucket demo-artifacts", "unknown", "HTTP 403", "gcloud"),
        ({f"{SERVER}disk__used_bytes": 86 * status.GIB}, "Disk", "degraded", "(86 %)", "du -xhd2"),
        ({f"{SERVER}disk": {"error": "no such file"}}, "Disk", "unknown", "no such file", "du -xhd2"),
        ({f"{SERVER}memory__used_bytes": 7.7 * status.GIB}, "Memory", "degraded", "(96 %)", "ps aux"),
        ({f"{SERVER}database__connections": 81}, "Connections", "degraded", "81 of 100", "systemctl status"),
        ({f"{SERVER}database": {"error": "timeout"}}, "Database size", "unknown", "timeout", "gcloud sql operations"),
        (
            {"cloud__sqladmin.backupRuns": [{"status": "SUCCESSFUL", "endTime": hours_ago(49)}, {"status": "FAILED"}]},
            "Last backup",
            "degraded",
            "2 d ago, by Cloud SQL; 1 of the 2 known runs failed",
            "gcloud sql backups create",
        ),
        ({"cloud__sqladmin.backupRuns": []}, "Last backup", "degraded", "none yet", "gcloud sql backups create"),
        ({"cloud__sqladmin.backupRuns": {"error": "HTTP 500"}}, "Last backup", "unknown", "HTTP 500", "gcloud auth"),
        (
            {f"{SQL}settings__backupConfiguration": {}},
            "Last backup",
            "degraded",
            "backups are switched off",
            "--tags gcp_sql",
        ),
        (
            {f"{SERVER}units__mlflow-backup.timer": unit("inactive")},
            "Last nightly set",
            "degraded",
            "mlflow-backup.timer is inactive",
            "configure.yml -i inventories/prod --tags server_backup",
        ),
        (
            {f"{SERVER}units__mlflow-backup.service": unit("failed", result="exit-code")},
            "Last nightly set",
            "degraded",
            "the last run failed (exit-code); whole: 20261125T020000Z, 10 h ago",
            "playbooks/backup.yml",
        ),
        (
            {f"{SERVER}last_set__ended": hours_ago(49)},
            "Last nightly set",
            "degraded",
            "20261125T020000Z, 2 d ago",
            "playbooks/backup.yml",
        ),
        ({f"{SERVER}last_set": {}}, "Last nightly set", "degraded", "none yet", "playbooks/backup.yml"),
        ({f"{SERVER}last_set": {"error": "no JSON"}}, "Last nightly set", "unknown", "no JSON", "--tags server_backup"),
        (
            {f"{SERVER}last_drill__passed": False, f"{SERVER}last_drill__problem": "Import: no space"},
            "Last drill",
            "degraded",
            "failed 20 d ago with 20261125T020000Z: Import: no space",
            "playbooks/drill.yml",
        ),
        ({f"{SERVER}last_drill": {"error": "no JSON"}}, "Last drill", "unknown", "no JSON", "playbooks/drill.yml"),
        (
            {f"{SERVER}units__mlflow-gc.service": unit("failed", result="exit-code")},
            "Deleted runs",
            "degraded",
            "the last run failed; journalctl --unit=mlflow-gc on the server says why; all removed 9 h ago",
            "--tags mlflow",
        ),
        ({f"{SERVER}last_gc": {"error": "no JSON"}}, "Deleted runs", "unknown", "no JSON", "--tags mlflow"),
        (
            {f"{SERVER}units__mlflow-cleanup.service": unit("failed", result="exit-code")},
            "Old releases",
            "degraded",
            "the last run failed; journalctl --unit=mlflow-cleanup on the server says why; all removed 8 h ago",
            "--tags mlflow",
        ),
        ({f"{SERVER}last_cleanup": {"error": "no JSON"}}, "Old releases", "unknown", "no JSON", "--tags mlflow"),
    ],
)
def test_what_is_broken_makes_the_verdict_and_says_what_to_run(change, name, health, text, command):
    report = judged(**change)
    found = row(report, name)
    assert (found.health, text in found.text, command in found.command) == (health, True, True), found
    assert report.verdict == ("down" if health == "down" else "degraded")
    assert any(reason.startswith(f"{name} is {health}: ") for reason in report.reasons)


@pytest.mark.parametrize(
    ("change", "name", "health", "text"),
    [
        ({f"{SERVER}system__load": [9.0, 9.0, 4.1]}, "Load", "notice", "on 2 CPUs"),
        ({f"{SERVER}system": {"error": "unreadable"}}, "Load", "notice", "unreadable"),
        (
            {f"{SERVER}updates": {"count": 3, "security": ["libssl3"], "lists_fetched": hours_ago(5)}},
            "System updates",
            "notice",
            "3 pending, 1 of them for security (libssl3)",
        ),
        (
            {f"{SERVER}updates__lists_fetched": hours_ago(24 * 8)},
            "System updates",
            "notice",
            "package lists of 8 d ago",
        ),
        ({f"{SERVER}updates": {"error": "apt has no package lists"}}, "System updates", "notice", "no package lists"),
        ({f"{SERVER}system__reboot_required": True}, "System updates", "notice", "a restart is required"),
        ({"locked": ["3.17.2", "3.17.10"]}, "MLflow release", "notice", "there is a lock for 3.17.10"),
        ({"locked": []}, "MLflow release", "info", "newest lock: none"),
        ({f"{SERVER}generations": {"live": "", "previous": ""}}, "MLflow release", "info", "live: not known"),
        ({"drift": {"changes": ["create a", "update b"]}}, "Drift", "notice", "2 to make: create a; update b"),
        ({"drift": {"error": "no credentials"}}, "Drift", "notice", "could not be compared: no credentials"),
        (
            {"cloud__sqladmin.backupRuns": [], f"{SQL}createTime": hours_ago(47)},
            "Last backup",
            "info",
            "none yet; the instance was made 47 h ago",
        ),
        (
            {f"{SERVER}last_set": {}, f"{SERVER}units__mlflow-backup.timer__since": hours_ago(47)},
            "Last nightly set",
            "info",
            "none yet",
        ),
        ({f"{SERVER}units__mlflow-gc.timer": unit("inactive")}, "Deleted runs", "info", "platform_gc_days is 0"),
        ({f"{SERVER}last_gc": {}}, "Deleted runs", "info", "none removed yet"),
        ({f"{SERVER}last_cleanup": {}}, "Old releases", "info", "none removed yet"),
        (
            {f"{SERVER}last_cleanup__ended": hours_ago(73)},
            "Old releases",
            "notice",
            "3 d ago, and it is due every night",
        ),
        ({f"{SERVER}last_gc__unknown": 3}, "Deleted runs", "ok", "3 directories of artifacts that nobody knows"),
        ({f"{SERVER}last_drill": {}}, "Last drill", "info", "none yet: no set was ever restored"),
        ({f"{SERVER}last_drill__ended": hours_ago(24 * 36)}, "Last drill", "notice", "passed 36 d ago"),
    ],
)
def test_what_breaks_nothing_is_shown_and_does_not_make_the_verdict(change, name, health, text):
    report = judged(**change)
    assert (row(report, name).health, text in row(report, name).text) == (health, True), row(report, name)
    assert report.verdict == "healthy"


def test_limits_are_the_operators():
    facts = healthy()
    strict = status.Limits(21, 84, 24, 79, 9)
    report = status.judge(facts, strict, DEPLOYMENT, NOW)
    names = {one.name for one in report.rows if one.health == "degraded"}
    assert names == {"Certificate", "Disk", "Memory", "Connections", "Last backup", "Last nightly set"}


def test_a_certificate_of_the_operators_own_is_renewed_by_nobody_else():
    facts = healthy()
    facts["door"]["certificate"]["days_left"] = 5
    del facts["servers"][0]["server"]["units"]["certbot.timer"]
    own = dataclasses.replace(DEPLOYMENT, renewal_role="server_secrets")
    report = status.judge(facts, status.Limits(), own, NOW)
    (wrong,) = (one for one in report.rows if one.health == "degraded")
    assert (wrong.name, wrong.command.split()[-2:]) == ("Certificate", ["--tags", "server_secrets,nginx"])


def test_what_signs_users_in_is_part_of_the_deployment_where_they_sign_in_so():
    signing_in = dataclasses.replace(DEPLOYMENT, authentication="iap")
    name, facts = "Verification for Identity-Aware Proxy", healthy()
    assert name not in {one.name for one in judged().rows}
    facts["door"] |= {
        "status": 302,
        "headers": {"location": "https://accounts.google.com/o/oauth2/v2/auth?client_id=1"},
    }
    del facts["servers"][0]["server"]["units"]["certbot.timer"]
    del facts["servers"][0]["server"]["units"]["iap-verifier.service"]
    missing = row(status.judge(facts, status.Limits(), signing_in, NOW), name)
    assert (missing.health, missing.command.split()[-2:]) == ("down", ["--tags", "iap_verifier"])
    facts["servers"][0]["server"]["units"]["iap-verifier.service"] = unit("active")
    assert status.judge(facts, status.Limits(), signing_in, NOW).verdict == "healthy"
    # With passwords, or to another place, nothing is led anywhere.
    assert row(status.judge(facts, status.Limits(), DEPLOYMENT, NOW), "Front door").health == "degraded"
    facts["door"]["headers"]["location"] = "https://accounts.google.com.other.test/"
    assert row(status.judge(facts, status.Limits(), signing_in, NOW), "Front door").health == "degraded"
    facts["door"]["certificate"]["days_left"] = 5
    late = row(status.judge(facts, status.Limits(), signing_in, NOW), "Certificate")
    assert late.command == f"gcloud compute ssl-certificates list --project={DEPLOYMENT.project}"


def test_where_there_are_no_users_the_front_door_answers_everybody():
    without, facts = dataclasses.replace(DEPLOYMENT, authentication="none"), healthy()
    closed = row(status.judge(facts, status.Limits(), without, NOW), "Front door")
    assert (closed.health, closed.text) == (
        "degraded",
        f"https://{DEPLOYMENT.domain}/ answers 401 without a login, not 200",
    )
    facts["door"]["status"] = 200
    assert status.judge(facts, status.Limits(), without, NOW).verdict == "healthy"
    assert row(status.judge(facts, status.Limits(), DEPLOYMENT, NOW), "Front door").health == "degraded"


def test_nights_without_a_set_may_be_what_the_inventory_says():
    without = dataclasses.replace(DEPLOYMENT, sets_enabled=False)
    facts = {**healthy(), "servers": [{"name": "mlflow-1", "error": "ssh: timed out"}]}
    assert row(status.judge(facts, status.Limits(), without, NOW), "Last nightly set").health == "info"


def test_a_server_that_cannot_be_asked_is_the_reason_for_what_is_not_known():
    report = judged(servers=[{"name": "mlflow-1", "error": "ssh: timed out"}])
    assert report.verdict == "degraded"
    assert [reason.partition(":")[0] for reason in report.reasons] == ["VM mlflow-1 is degraded"]
    assert "--tunnel-through-iap --troubleshoot" in report.action
    for name in ("MLflow", "NGINX", "Cloud SQL Auth Proxy", "Ops Agent", "Disk", "System updates"):
        assert row(report, name).health == "unknown"


def test_an_inventory_without_a_server_shows_the_one_that_is_missing():
    report = judged(**{"servers": [], "cloud__compute.instances": []})
    assert report.verdict == "down"
    assert report.action == "VM mlflow-1: ansible-playbook playbooks/provision.yml -i inventories/prod"


def test_nothing_that_can_be_read_is_a_page_all_the_same():
    nothing = {"error": "no network"}
    report = judged(
        servers=[{"name": "mlflow-1", "error": "no network"}],
        cloud=dict.fromkeys(healthy()["cloud"], nothing),
        door={**nothing, "component": "nginx"},
        drift=nothing,
        locked=[],
    )
    assert report.verdict == "down"
    assert "no network" in status.render_text(report)
    assert "no network" in status.render_html(report)


def test_what_others_depend_on_is_mended_first():
    report = judged(
        **{
            f"{SQL}settings__activationPolicy": "NEVER",
            f"{SERVER}mlflow_ready": {"error": "the API answered 500"},
            "door__status": 502,
        }
    )
    assert report.action.startswith("Cloud SQL mlflow: ")


def test_a_notice_is_the_action_when_nothing_is_broken():
    assert judged(locked=["3.18.0"]).action == (
        "MLflow release: ansible-playbook playbooks/upgrade.yml -i inventories/prod -e platform_mlflow_version=3.18.0"
    )


def test_several_servers_are_told_apart():
    facts = healthy()
    second = copy.deepcopy(facts["servers"][0]) | {"name": "mlflow-2"}
    second["server"]["units"]["nginx.service"] = unit("failed")
    vm = facts["cloud"]["compute.instances"][0] | {"name": "mlflow-2"}
    report = judged(
        **{
            "servers": [facts["servers"][0], second],
            "cloud__compute.instances": [*facts["cloud"]["compute.instances"], vm],
        }
    )
    assert row(report, "NGINX on mlflow-1").health == "ok"
    assert row(report, "NGINX on mlflow-2").health == "down"


# Costs

# Whose price was looked up, as that of a standby was not.
ZONAL = {f"{SQL}settings__availabilityType": "ZONAL"}


def test_costs_are_list_prices_and_what_is_not_known_is_not_guessed():
    costs = {cost.resource: cost.month for cost in judged().costs}
    assert costs["VM mlflow-1"] == pytest.approx(48.91, abs=0.01)
    assert costs["Address of mlflow-1"] == pytest.approx(3.65)
    assert costs["Disk mlflow-1"] is None
    assert costs["Cloud SQL mlflow"] is None
    assert costs["Cloud SQL mlflow, storage"] is None
    assert costs["Bucket demo-artifacts"] is None
    assert status.total(judged()) == "52.56"
    zonal = {cost.resource: cost.month for cost in judged(**ZONAL).costs}
    assert zonal["Cloud SQL mlflow"] == pytest.approx(49.31, abs=0.01)


@pytest.mark.parametrize(
    ("change", "resource"),
    [
        ({f"{VM}machineType": "zones/z/machineTypes/n2d-standard-2"}, "VM mlflow-1"),
        ({}, "Cloud SQL mlflow"),
        ({**ZONAL, f"{SQL}settings__edition": "ENTERPRISE_PLUS"}, "Cloud SQL mlflow"),
        ({**ZONAL, f"{SQL}settings__tier": "db-f1-micro"}, "Cloud SQL mlflow"),
    ],
)
def test_a_shape_without_a_known_price_is_not_estimated(change, resource):
    report = judged(**change)
    assert {cost.resource: cost.month for cost in report.costs}[resource] is None
    assert re.search(rf"{resource} +not estimated", status.render_text(report))


# What Ansible gave


def test_servers_come_from_the_results_of_a_loop():
    results = [
        {"item": "a", "server": {"disk": {}}},
        {"item": "b", "unreachable": True, "msg": "ssh:\n refused " + "x" * 999},
        {"item": "c", "failed": True},
    ]
    a, b, c = status.asked(results)
    assert a == {"name": "a", "server": {"disk": {}}}
    assert b["error"].startswith("ssh: refused")
    assert len(b["error"]) <= 220
    assert c == {"name": "c", "error": "it gave no answer"}


def play(*tasks: tuple[str, str]) -> str:
    lines = "".join(f"TASK [{name}] *********\n{line}\n\n" for name, line in tasks)
    return f"PLAY [Make] ****\n\n{lines}PLAY RECAP ***\nlocalhost : ok=3 changed=1\n"


def test_drift_is_read_by_resource():
    ok = json.dumps({"changed": False, "changes": []})
    changed = json.dumps({"changed": True, "changes": ["update compute.firewalls a: sourceRanges", "create b"]})
    looped = json.dumps({"changed": True, "changes": ["create c"]})
    output = play(
        ("gcp_network : Make it", f"changed: [localhost] => {changed}"),
        ("gcp_dns : Make it", f"ok: [localhost] => {ok}"),
        ("gcp_iam : Grant", f"changed: [localhost] => (item=x) => {looped}"),
        ("gcp_vm : Resize", 'changed: [localhost] => {"changed": true}'),
    )
    assert status.drift({"rc": 0, "stdout": output}) == {
        "changes": ["update compute.firewalls a: sourceRanges", "create b", "create c", "gcp_vm : Resize"]
    }
    assert status.drift({"rc": 0, "stdout": play(("a", f"ok: [localhost] => {ok}"))}) == {"changes": []}


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (
            {
                "rc": 2,
                "stdout": play(("a", 'fatal: [localhost]: FAILED! => {"changed": false, "msg": "say \\"no\\""}')),
            },
            'say "no"',
        ),
        ({"rc": 4, "stdout": "", "stderr": "ERROR! no such file\n"}, "ERROR! no such file"),
        ({"rc": 1, "stdout": "", "stderr": ""}, "exit code 1"),
        ({"failed": True, "msg": "no such directory"}, "no such directory"),
    ],
)
def test_drift_that_nobody_knows_says_why(result, error):
    assert status.drift(result) == {"error": error}


@pytest.mark.parametrize("result", [{}, {"skipped": True, "skip_reason": "Conditional result was False"}])
def test_drift_that_was_not_asked_for_is_no_advice(result):
    report = judged(drift=status.drift(result))
    assert row(report, "Drift").health == "info"
    assert "--check --diff" in row(report, "Drift").command
    assert report.action == "nothing to do"


# What is shown


class Tags(html.parser.HTMLParser):
    """Collects tags, the attributes that could fetch something, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(report: status.Report) -> Tags:
    page = Tags()
    page.feed(status.render_html(report))
    return page


EVIL = "</td><script>alert('1')</script><img src=x onerror=\"y\">&amp;"


def test_whatever_was_read_is_escaped():
    report = judged(
        **{
            f"{SERVER}mlflow_ready": {"error": EVIL},
            f"{SERVER}packages__nginx": {"version": EVIL},
            f"{SERVER}system__os": EVIL,
            f"{SERVER}generations": {"live": EVIL, "previous": EVIL},
            f"{SERVER}updates__security": [EVIL],
            f"{VM}machineType": EVIL,
            f"{SQL}databaseInstalledVersion": EVIL,
            f"{SQL}settings__tier": EVIL,
            "cloud__storage.buckets__0__location": EVIL,
            "cloud__compute.disks__0__name": EVIL,
            "door__certificate__names": [EVIL],
            "door__certificate__issuer": EVIL,
            "drift": {"changes": [EVIL]},
            "locked": ["99", EVIL],
        }
    )
    page = parsed(report)
    assert set(page.tags) <= set(parsed(judged()).tags) | {"code"}
    assert page.text.count(EVIL) >= 10


def test_the_page_needs_nothing_else():
    page = parsed(judged())
    assert page.fetched == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in status.STYLE
    assert "@import" not in status.STYLE


@pytest.mark.parametrize("change", [{}, {"door__status": 502}, {"door__certificate__days_left": 5}])
def test_text_and_html_begin_with_verdict_and_action(change):
    report = judged(**change)
    first, second, *_rest = status.render_text(report, 100).splitlines()
    assert first.startswith(report.verdict.upper())
    assert second == f"Next: {report.action}"
    text = " ".join(parsed(report).text.split())
    assert text.index(report.verdict) < text.index("Next: " + report.action) < text.index("Components")


def test_text_is_no_wider_than_the_terminal_but_for_commands():
    report = judged(**{f"{SERVER}mlflow_ready": {"error": "long " * 100}})
    wide = [line for line in status.render_text(report, 100).splitlines()[2:] if len(line) > 100]
    assert all(line.lstrip().startswith("> ") for line in wide), wide
    assert [line for line in status.render_text(report, 100).splitlines() if line.endswith("--tags mlflow")]


@pytest.mark.parametrize(
    ("hours", "said"), [(0, "0 min"), (1.9, "114 min"), (2, "2 h"), (47.9, "47 h"), (48, "2 d"), (-1, "0 min")]
)
def test_ages_are_said_in_one_unit(hours, said):
    assert status.age(hours_ago(hours), NOW) == said
