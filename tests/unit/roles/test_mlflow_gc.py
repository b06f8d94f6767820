"""What MLflow's users deleted is removed by what the database says at that moment, not by what it said before."""

from __future__ import annotations

import importlib.util
import pathlib
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def gc() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mlflow_gc", ROOT / "roles/mlflow/files/mlflow_gc.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_experiment_restored_in_between_keeps_what_is_left(
    gc: ModuleType, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = gc.Collector(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"), 30)
    store = collector.store
    experiment = store.create_experiment("restored")
    for name in ("first", "second"):
        store.create_logged_model(experiment, name)
    store.delete_experiment(experiment)
    aged = sqlalchemy.update(gc.EXPERIMENTS).values(last_update_time=0)
    with store.ManagedSessionMaker() as session:
        session.execute(aged.where(gc.EXPERIMENTS.c.experiment_id == int(experiment)))
    removed: list[Any] = []

    def remove_one(*thing: Any) -> None:
        removed.append(thing[0])
        if len(removed) == 1:
            store.restore_experiment(experiment)

    monkeypatch.setattr(collector, "remove_one", remove_one)

    collector.collect()

    assert removed == ["logged_model"]
