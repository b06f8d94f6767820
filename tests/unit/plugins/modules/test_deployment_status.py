"""The page's module: whatever Google and the network answer, there is a page."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

import pytest
import requests
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import module as module_util
from ansible_collections.mlops.mlflow_gcp.plugins.modules import deployment_status

DOOR = {"status": 401, "certificate": {"names": ["mlflow.example.com"], "days_left": 80, "issuer": "An authority"}}


@pytest.fixture
def options(tmp_path):
    options = yaml.safe_load(deployment_status.EXAMPLES)[0]["mlops.mlflow_gcp.deployment_status"]
    return {**options, "servers": [], "page_path": str(tmp_path / "new" / "status.html")}


@pytest.fixture
def run(monkeypatch, google, clock, capsys, options):
    """Run the module against the fake Google and return what it prints."""
    session = module_util.Session
    monkeypatch.setattr(
        module_util,
        "Session",
        lambda project, **o: session(project, transport=google, sleep=clock.sleep, clock=clock, **o),
    )
    monkeypatch.setattr(deployment_status.https_endpoint, "read", lambda domain, path: DOOR)

    def run_module(**changed: Any) -> dict:
        with patch_module_args({**options, **changed}), pytest.raises(SystemExit):
            deployment_status.main()
        printed: dict = json.loads(capsys.readouterr().out)
        return printed

    return run_module


@pytest.mark.parametrize("check", [False, True])
def test_the_page_is_its_owners_alone_and_no_change(run, google, options, check):
    os.umask(0)
    result = run(_ansible_check_mode=check)

    assert result["changed"] is False
    assert google.written() == []
    assert result["verdict"] == "down"
    assert result["reasons"][0].startswith("VM mlflow-1 is down: there is no such VM")
    assert stat.S_IMODE(os.stat(options["page_path"]).st_mode) == 0o600
    assert os.listdir(os.path.dirname(options["page_path"])) == ["status.html"]


def test_a_page_that_is_there_is_replaced_whole(run, options):
    os.mkdir(os.path.dirname(options["page_path"]))
    with open(options["page_path"], "w") as file:
        file.write("x" * 100_000)
    run()
    with open(options["page_path"]) as file:
        assert file.read().endswith("</html>\n")


def test_a_server_says_what_its_users_see_where_nobody_else_reaches_it(run, monkeypatch):
    monkeypatch.setattr(deployment_status.https_endpoint, "read", None)
    assert "answers and asks for a login" in run(door=DOOR)["text"]
    said = {"failed": True, "msg": "nginx: m does not answer: refused\nMore: docs/failures.md#x", "component": "nginx"}
    assert "does not answer: refused" in run(door=said)["text"]
    assert "no server could be asked" in run(door={})["text"]


def test_what_google_refuses_is_on_the_page(run, google):
    google.special = {r"/instances/mlflow-1$": lambda call: {"name": "mlflow-1", "status": "RUNNING"}}
    google.faults = [deny("storage"), deny("sql")]
    result = run()
    assert "Bucket my-project-mlflow-artifacts" in result["text"]
    assert any("Cloud Storage could not be asked" in reason and "not for you" in reason for reason in result["reasons"])
    assert any("Cloud SQL could not be asked" in reason for reason in result["reasons"])


def deny(path: str) -> Any:
    from tests.unit.plugins.conftest import Fault

    return Fault("GET", path, 403, "forbidden", "not for you", times=9)


@pytest.mark.parametrize(
    ("error", "row"),
    [
        (
            requests.exceptions.SSLError("certificate has expired"),
            "Certificate is down: its certificate is not accepted",
        ),
        (requests.ConnectionError("refused"), "Front door is down: https://mlflow.example.com/: it does not answer"),
    ],
)
def test_a_closed_door_is_on_the_page(run, monkeypatch, error, row):
    def broken(domain, path):
        raise error

    monkeypatch.setattr(deployment_status.https_endpoint, "read", broken)
    assert any(reason.startswith(row) for reason in run()["reasons"])


def test_a_page_that_cannot_be_written_says_which_variable(run, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(page_path=str(tmp_path / "file" / "status.html"))
    assert result["failed"] is True
    assert "status_page_path" in result["msg"]
