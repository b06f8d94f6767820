"""What a server's own programs say, as they say it."""

from __future__ import annotations

import subprocess
import types

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import server

SHOWN = """\
Result=success
NRestarts=0
Names=mlflow.service mlflow-3.17.2-fa71f5f013.service
ActiveState=active
SubState=running
ActiveEnterTimestamp=Wed 2026-11-25 03:34:29 UTC
InactiveEnterTimestamp=

Result=exit-code
NRestarts=4
Names=nginx.service
ActiveState=failed
SubState=failed
ActiveEnterTimestamp=Wed 2026-11-25 03:34:34 UTC
InactiveEnterTimestamp=Wed 2026-11-25 04:00:00 UTC

Names=certbot.timer
ActiveState=inactive
SubState=dead
ActiveEnterTimestamp=n/a
InactiveEnterTimestamp=
"""
# Debian 12's words; a package that comes new has no old version, and needs no update.
PLANNED = """\
NOTE: This is only a simulation!
Inst libssl3 [3.0.15-1~deb12u1] (3.0.17-1~deb12u2 Debian-Security:12/oldstable-security [amd64])
Inst base-files [12.4+deb12u9] (12.4+deb12u11 Debian:12.11/oldstable [amd64]) []
Inst linux-image-6.1.0-40-amd64 (6.1.153-1 Debian-Security:12/oldstable-security [amd64])
Conf libssl3 (3.0.17-1~deb12u2 Debian-Security:12/oldstable-security [amd64])
"""


def test_units_are_known_by_the_name_that_was_asked_for():
    found = server.units(SHOWN)
    assert found["mlflow.service"] == {
        "state": "active",
        "result": "success",
        "restarts": 0,
        "since": "2026-11-25T03:34:29+00:00",
    }
    assert found["nginx.service"]["since"] == "2026-11-25T04:00:00+00:00"
    assert found["nginx.service"]["restarts"] == 4
    assert found["certbot.timer"] == {"state": "inactive", "result": "", "restarts": 0, "since": None}
    assert len(found) == 3


def test_updates_are_counted_and_those_for_security_named():
    assert server.updates(PLANNED) == {"count": 2, "security": ["libssl3"]}
    assert server.updates("0 upgraded, 0 newly installed") == {"count": 0, "security": []}


def test_memory_that_can_be_given_back_is_not_used():
    text = "MemTotal:       8000 kB\nMemFree:         100 kB\nMemAvailable:   6000 kB\nHugePages_Total:       0\n"
    assert server.memory(text) == {"total_bytes": 8000 * 1024, "used_bytes": 2000 * 1024}


def test_a_disk_is_as_full_as_df_says(monkeypatch):
    seen = types.SimpleNamespace(f_blocks=100, f_bfree=70, f_bavail=60, f_frsize=4096)
    monkeypatch.setattr(server.os, "statvfs", lambda _path: seen)
    assert server.disk() == {"total_bytes": 90 * 4096, "used_bytes": 30 * 4096}


def test_the_proxys_version_is_a_number():
    assert server.proxy_version("cloud-sql-proxy version 2.25.2+linux.amd64\n") == "2.25.2"


def test_a_link_that_is_not_there_is_no_generation(tmp_path):
    assert server.generation(tmp_path / "live") == ""
    (tmp_path / "live").symlink_to("generations/mlflow-3.17.2-fa71f5f013")
    assert server.generation(tmp_path / "live") == "mlflow-3.17.2-fa71f5f013"


def test_a_restore_that_has_not_ended_is_known_by_its_set(tmp_path):
    assert server.restoring(tmp_path / "restoring") == ""
    (tmp_path / "restoring").write_text("20261125T020000Z\n")
    assert server.restoring(tmp_path / "restoring") == "20261125T020000Z"


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda: server.run("sh", "-c", "echo no way >&2; exit 3"), "no way"),
        (lambda: server.run("no-such-program"), "no-such-program"),
        (lambda: server.memory("nothing"), "MemTotal"),
        (lambda: server.ready("http://127.0.0.1:1/readiness"), "refused"),
    ],
)
def test_a_part_that_cannot_be_read_says_why(ask, error):
    assert error in server.part(ask)["error"]


def test_a_program_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(server, "COMMAND_SECONDS", 0.1)
    assert server.part(lambda: server.run("sleep", "5")) == {"error": "sleep gave no answer in 0 s"}


def test_every_part_is_there_on_a_machine_without_any_of_it(monkeypatch):
    def missing(*command: str, given: str = "") -> str:
        raise subprocess.CalledProcessError(1, command, stderr=f"{command[0]}: broken")

    monkeypatch.setattr(server, "run", missing)
    found = server.read("http://127.0.0.1:1/readiness")
    assert found["units"] == {"error": "systemctl: broken"}
    assert "error" in found["database"]
    assert found["disk"]["total_bytes"] > 0
