"""What the three modules of an import say, and that no password is ever in it."""

from __future__ import annotations

import json
import pathlib
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import module as module_util
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError
from ansible_collections.mlops.mlflow_gcp.plugins.modules import (
    mlflow_import,
    mlflow_import_info,
    mlflow_import_report,
)

PASSWORD = "correct horse battery staple"
SERVER = {
    "url": "https://mlflow.example.com",
    "project": "demo-project",
    "admin_password_secret": "mlflow-admin-password",
}
BATCH = {"title": "experiment churn, runs 1 to 1 of 1", "experiment_id": "1", "run_ids": ["r"]}
MISSING = [{"what": "artifact a of run r", "why": "gone"}]
OUTCOME = {"title": "t", "imported": {"runs": 2}, "missing": MISSING, "notes": ["n"]}
SURVEY = {
    "batches": [BATCH],
    "totals": {"runs": 5},
    "pending": {"runs": 3},
    "left_out": ["30 traces"],
    "missing": [{"what": "experiment x", "why": "deleted"}],
}


def run_module(module: ModuleType, capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    with patch_module_args(options), pytest.raises(SystemExit):
        module.main()
    printed = capsys.readouterr().out
    assert PASSWORD not in printed
    return dict(json.loads(printed))


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_util, "Session", lambda *_arguments, **_options: type("Cloud", (), {"warnings": []})())
    for module in (mlflow_import, mlflow_import_info):
        monkeypatch.setattr(module, "read_version", lambda _cloud, _name, _number: PASSWORD)


def test_all_problems_are_told_at_once_before_anything_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    options = {**SERVER, "source": "/nowhere", "artifact_dir": "/no", "report_path": "/no/report.json"}
    result = run_module(mlflow_import_info, capsys, **options)
    assert result["msg"].startswith("3 problem(s) found, nothing was created or changed:")
    assert [one["variable"] for one in result["problems"]] == [
        "platform_import_source",
        "platform_import_artifact_dir",
        "platform_import_report_path",
    ]


def test_a_check_of_a_batch_asks_nobody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(mlflow_import, "bring", None)
    result = run_module(mlflow_import, capsys, **SERVER, source="/nowhere", batch=BATCH, _ansible_check_mode=True)
    assert result["changed"] is True
    assert result["outcome"]["imported"] == {}


def test_a_batch_that_cannot_begin_is_in_the_outcome_so_that_the_report_is_still_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_cloud: object, _name: str, _number: str) -> str:
        raise CloudError("Secret Manager answered 403")

    monkeypatch.setattr(mlflow_import, "read_version", refuse)
    result = run_module(mlflow_import, capsys, **SERVER, source="/nowhere", batch=BATCH)
    assert (result["changed"], result.get("failed", False)) == (False, False)
    assert result["outcome"]["missing"] == [
        {"what": BATCH["title"], "why": "CloudError: Secret Manager answered 403"},
    ]


def test_a_source_that_is_gone_is_not_made(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in (str(tmp_path / "mlruns"), f"sqlite:///{tmp_path}/mlflow.db"):
        result = run_module(mlflow_import, capsys, **SERVER, source=source, batch=BATCH)
        assert "is not there" in result["outcome"]["missing"][0]["why"]
    assert list(tmp_path.iterdir()) == []


def test_the_report_says_what_came_over_and_what_did_not_and_is_a_file(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    options = {"survey": SURVEY, "outcomes": [OUTCOME], "path": str(path), "source": "s", "url": SERVER["url"]}
    foretold = run_module(mlflow_import_report, capsys, **{**options, "outcomes": []}, _ansible_check_mode=True)
    assert not path.exists()
    assert foretold["text"].startswith("Would come over: 3 runs.\n")
    result = run_module(mlflow_import_report, capsys, **options)
    assert result["changed"] is False
    assert result["text"].splitlines() == [
        "Came over: 2 runs.",
        "There before: 2 runs.",
        "Not brought by any import: 30 traces.",
        "Note: n.",
        "Did not come over: experiment x: deleted.",
        "Did not come over: artifact a of run r: gone.",
    ]
    written = json.loads(path.read_text())
    assert written["missing"] == result["missing"] == [*SURVEY["missing"], *MISSING]
    assert (written["source"], written["imported"], written["left_out"]) == ("s", {"runs": 2}, ["30 traces"])
