"""An import between real MLflow stores: what comes over, and what a second run does."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import mlflow_import
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.mlflow_import import (
    Importer,
    ImportStoppedError,
    Login,
    Site,
    Source,
)
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, LoggedModelOutput, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import UNAUTHENTICATED

NAME = 'größe & "100%" / #1'


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the test's own clients open a folder, reach servers on loopback, and leave MLflow's global address alone."""
    for name, value in mlflow_import.CLIENT_SETTINGS.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with MLflow's tables: making them takes seconds, copying them none."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def make_target(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Site]:
    def make(name: str = "target") -> Site:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(empty_database, folder / "mlflow.db")
        monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(folder / "artifacts"))
        site = Site("the deployment", f"sqlite:///{folder / 'mlflow.db'}", Login())
        site.client.search_experiments()
        monkeypatch.delenv("_MLFLOW_SERVER_ARTIFACT_ROOT")
        return site

    return make


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Return a folder of MLflow's file store with a bit of everything."""
    source = tmp_path / "mlruns"
    fill(mlflow.MlflowClient(source.as_uri(), source.as_uri()), tmp_path)
    return str(source)


@pytest.fixture
def database(tmp_path: Path, make_target: Callable[..., Site]) -> str:
    """Return the same as an sqlite file."""
    site = make_target("source")
    fill(site.client, tmp_path)
    return site.uri


def serve(folder: str, port: int) -> None:
    """Be an MLflow server, in a process of its own."""
    os.environ.update(
        _MLFLOW_SERVER_FILE_STORE=f"sqlite:///{folder}/mlflow.db",
        _MLFLOW_SERVER_ARTIFACT_ROOT="mlflow-artifacts:/",
        _MLFLOW_SERVER_ARTIFACT_DESTINATION=f"{folder}/artifacts",
        _MLFLOW_SERVER_SERVE_ARTIFACTS="true",
    )
    import uvicorn
    from mlflow.server.fastapi_app import app

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[str]:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked: MLflow is imported here already, which takes longest.
    process = multiprocessing.get_context("fork").Process(target=serve, args=(str(folder), port))
    process.start()
    url = f"http://127.0.0.1:{port}"
    for _attempt in range(600):
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{url}/health", timeout=5).ok:
                break
        time.sleep(0.1)
    yield url
    process.kill()
    process.join()


def fill(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(client.tracking_uri)
    experiment = client.create_experiment(NAME, tags={"team": "größe"})
    client.create_experiment("empty")
    parent = client.create_run(experiment, 1_000, {"mlflow.user": "ann"}, "parent")
    child = client.create_run(experiment, 2_000, {"mlflow.parentRunId": parent.info.run_id}, "child")
    run_id = parent.info.run_id
    many = [Metric("loss", 1 / (step + 1), 1_000 + step, step) for step in range(1_100)]
    odd = [Metric("odd", value, 1_000, 0) for value in (math.nan, math.inf, -math.inf)]
    client.log_batch(run_id, many[:1000], [Param("alpha", "0.5"), Param("long", "x" * 6000)], [RunTag("note", "ü")])
    client.log_batch(run_id, many[1000:] + odd)
    (tmp_path / "ä b.txt").write_text("one")
    (tmp_path / "model.bin").write_bytes(os.urandom(100_000))
    client.log_artifact(run_id, str(tmp_path / "ä b.txt"), "plots/deep")
    client.log_artifact(run_id, str(tmp_path / "model.bin"), "model")
    dataset = MetaDataset(HTTPDatasetSource("https://example.com/data.csv"), name="train", digest="d1")
    client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), [])])
    model = client.create_logged_model(experiment, "m", run_id, {"k": "v"}, {"depth": "3"})
    client.log_model_artifact(model.model_id, str(tmp_path / "model.bin"), "data")
    client.log_batch(run_id, [Metric("accuracy", 0.9, 5, 0, model_id=model.model_id)])
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    client.set_terminated(run_id, "FAILED", 9_000)
    client.set_terminated(child.info.run_id, "FINISHED", 8_000)
    client.create_registered_model("iris (ü)", {"owner": "ann"}, "flowers")
    uri = client.get_run(run_id).info.artifact_uri
    client.create_model_version("iris (ü)", f"{uri}/model", run_id, {"t": "1"}, description="first")
    client.create_model_version("iris (ü)", f"models:/{model.model_id}", model_id=model.model_id)
    client.set_registered_model_alias("iris (ü)", "champion", "1")


def bring(source: str, target: Site, **options: Any) -> dict[str, Any]:
    """Import as the playbook does: an importer for each batch."""
    there = Source(source, **options)
    found = mlflow_import.survey(there, target)
    outcomes = [Importer(there, target).bring(batch) for batch in found["batches"]]
    return mlflow_import.summary(found, outcomes, foretold=False)


def history(site: Site, run_id: str, key: str) -> list[tuple[str, int, int]]:
    return sorted(mlflow_import.point(one) for one in site.client.get_metric_history(run_id, key))


def runs_of(site: Site, name: str = NAME) -> dict[str, Any]:
    experiment = site.client.get_experiment_by_name(name)
    found = site.client.search_runs([experiment.experiment_id], "", ViewType.ALL)
    return {run.info.run_name: site.client.get_run(run.info.run_id) for run in found}


def files(site: Site, uri: str) -> dict[str, bytes]:
    root = mlflow_import.local_path(uri)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def everything(site: Site) -> dict[str, Any]:
    """Return all rows of a target's database but those of its own migrations, and its files."""
    path = Path(site.uri.removeprefix("sqlite:///"))
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {table: sorted(map(repr, database.execute(f'SELECT * FROM "{table}"'))) for table in tables}
    stored = {str(one): one.stat().st_mtime_ns for one in (path.parent / "artifacts").rglob("*")}
    return {"rows": rows, "files": stored}


def assert_same(source: str, target: Site) -> None:
    there = Source(source)
    old, new = runs_of(there), runs_of(target)
    assert len(target.client.search_runs([target.client.get_experiment_by_name(NAME).experiment_id])) == 2
    for name in ("parent", "child"):
        for attribute in ("status", "start_time", "end_time", "run_name", "user_id"):
            assert getattr(new[name].info, attribute) == getattr(old[name].info, attribute), attribute
        assert new[name].data.params == old[name].data.params
        assert new[name].data.tags["import.source_run_id"] == old[name].info.run_id
        for key in old[name].data.metrics:
            assert history(target, new[name].info.run_id, key) == history(there, old[name].info.run_id, key), key
    assert new["parent"].data.tags["note"] == "ü"
    assert new["child"].data.tags["mlflow.parentRunId"] == new["parent"].info.run_id
    assert files(target, new["parent"].info.artifact_uri) == files(there, old["parent"].info.artifact_uri)
    assert len(files(target, new["parent"].info.artifact_uri)) == 2
    (dataset,) = new["parent"].inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("train", "d1")
    experiment = target.client.get_experiment_by_name(NAME)
    assert experiment.tags["team"] == "größe"
    assert target.client.get_experiment_by_name("empty") is not None
    (model,) = target.client.search_logged_models([experiment.experiment_id])
    (model_there,) = there.client.search_logged_models([there.client.get_experiment_by_name(NAME).experiment_id])
    assert (model.name, model.params, model.status) == ("m", {"depth": "3"}, model_there.status)
    assert model.source_run_id == new["parent"].info.run_id
    assert [(one.key, one.value, one.run_id) for one in model.metrics] == [("accuracy", 0.9, model.source_run_id)]
    assert files(target, model.artifact_location) == files(there, model_there.artifact_location)
    assert [one.model_id for one in new["parent"].outputs.model_outputs] == [model.model_id]
    registered = target.client.get_registered_model("iris (ü)")
    assert (registered.description, registered.tags, registered.aliases) == (
        "flowers",
        {"owner": "ann"},
        {"champion": 1},
    )
    first, second = (target.client.get_model_version("iris (ü)", number) for number in ("1", "2"))
    assert (first.run_id, first.description, first.tags["t"]) == (new["parent"].info.run_id, "first", "1")
    assert first.source == f"{new['parent'].info.artifact_uri}/model"
    assert second.source == f"models:/{model.model_id}"
    assert len(target.client.search_model_versions()) == 2


@pytest.mark.parametrize("kind", ["folder", "database"])
def test_all_of_it_comes_over_and_a_second_run_changes_nothing(
    kind: str, request: pytest.FixtureRequest, make_target: Callable[..., Site]
) -> None:
    source, target = request.getfixturevalue(kind), make_target()
    empty = everything(target)
    foretold = mlflow_import.summary(mlflow_import.survey(Source(source), target), [], foretold=True)
    assert everything(target) == empty
    report = bring(source, target)
    assert report["missing"] == []
    assert report["imported"] == {
        "experiments": 2, "runs": 2, "params": 2, "tags": report["imported"]["tags"], "metrics": 1104, "datasets": 1,
        "artifacts": 3, "logged_models": 1, "registered_models": 1, "model_versions": 2, "aliases": 1,
    }  # fmt: skip
    assert foretold["imported"] == {kind: report["imported"][kind] for kind in foretold["imported"]}
    assert foretold["text"].startswith("Would come over: 2 experiments, 2 runs, 1 logged models,")
    assert_same(source, target)
    before = everything(target)
    again = bring(source, target)
    assert (again["imported"], again["missing"]) == ({}, [])
    assert everything(target) == before


class Killed(BaseException):
    """What ends a process in the middle."""


def test_a_run_killed_anywhere_is_finished_by_the_next_and_makes_nothing_twice(
    folder: str, make_target: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, deaths = make_target(), 0
    ask = Site.ask

    def dying(site: Site, question: Callable[..., Any]) -> Any:
        nonlocal left
        answer = ask(site, question)
        left -= site is target
        if left == 0:
            # The call has landed, and nobody heard so.
            raise Killed
        return answer

    monkeypatch.setattr(Site, "ask", dying)
    while True:
        left = 10 + 2 * deaths
        try:
            report = bring(folder, target)
            break
        except Killed:
            deaths += 1
    assert deaths > 5
    assert report["missing"] == []
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert_same(folder, target)
    assert bring(folder, target)["imported"] == {}


def test_what_cannot_be_read_or_is_refused_is_reported_and_everything_else_comes_over(
    folder: str, make_target: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, there = make_target(), Source(folder)
    old = runs_of(there)["parent"]
    artifacts = mlflow_import.local_path(old.info.artifact_uri)
    (artifacts / "plots" / "lost.png").symlink_to("nowhere")
    broken = Path(folder, old.info.experiment_id, "0" * 32)
    broken.mkdir()
    log_batch = mlflow.MlflowClient.log_batch

    def refusing(client: mlflow.MlflowClient, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        if any(one.key == "alpha" for one in params) or any(one.step == 700 for one in metrics):
            raise MlflowException.invalid_parameter_value("refused")
        log_batch(client, run_id, metrics, params, tags)

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "log_batch", refusing)
        report = bring(folder, target)
    whats = [one["what"] for one in report["missing"]]
    title = f"run {old.info.run_id}"
    assert whats == [
        f"run {'0' * 32} of experiment {NAME}",
        f"param alpha of {title}",
        f"metric loss of {title}",
        f"artifact plots/lost.png of {title}",
    ]
    assert "No such file" in report["missing"][-1]["why"]
    assert "Did not come over: " + whats[-1] in report["text"]
    new = runs_of(target)["parent"]
    assert new.data.tags["import.complete"] == "false"
    assert new.data.params == {"long": "x" * 6000}
    assert len(history(target, new.info.run_id, "loss")) == 1099
    assert set(files(target, new.info.artifact_uri)) == {"plots/deep/ä b.txt", "model/model.bin"}
    assert runs_of(target)["child"].data.tags["import.complete"] == "true"
    assert len(target.client.search_model_versions()) == 2

    (artifacts / "plots" / "lost.png").unlink()
    broken.rmdir()
    report = bring(folder, target)
    assert report["missing"] == []
    assert report["imported"] == {"params": 1, "metrics": 1, "runs": 1}
    assert_same(folder, target)


def test_artifacts_that_lie_elsewhere_are_asked_for_and_found_in_the_folder_that_is_named(
    database: str, tmp_path: Path, make_target: Callable[..., Site]
) -> None:
    target = make_target()
    client, recorded = Source(database).client, tmp_path / "source" / "artifacts"
    client.register_prompt("greeting", "hello")
    client.delete_run(client.create_run("0").info.run_id)
    recorded.rename(tmp_path / "moved")
    with pytest.raises(ImportStoppedError, match=f"recorded in {recorded}, which is not on this machine"):
        bring(database, target)
    report = bring(database, target, artifact_dir=str(tmp_path / "moved"))
    assert report["missing"] == []
    assert report["imported"]["artifacts"] == 3
    assert report["left_out"] == ["1 prompts", "1 deleted runs"]
    assert [one.name for one in target.client.search_registered_models()] == ["iris (ü)"]


def test_a_server_gives_and_takes_the_same(
    database: str, server: str, tmp_path: Path, make_target: Callable[..., Site]
) -> None:
    middle = Site("the deployment", server, Login())
    run = runs_of(Source(database))["child"]
    (mlflow_import.local_path(run.info.artifact_uri)).mkdir(parents=True)
    (mlflow_import.local_path(run.info.artifact_uri) / "a#b.txt").write_text("would land as `a`")
    report = bring(database, middle)
    assert [one["what"] for one in report["missing"]] == [f"artifact a#b.txt of run {run.info.run_id}"]
    assert middle.client.list_artifacts(runs_of(middle)["child"].info.run_id) == []

    target = make_target()
    assert bring(server, target)["missing"] == []
    old, new = runs_of(Source(database)), runs_of(target)
    there, here = (files(site, runs["parent"].info.artifact_uri) for site, runs in ((middle, old), (target, new)))
    assert here == there
    assert len(here) == 2
    key = (old["parent"].info.run_id, "loss")
    assert history(target, new["parent"].info.run_id, "loss") == history(Source(database), *key)
    assert target.client.get_model_version_by_alias("iris (ü)", "champion").version == 1


# What is there already, and what changed since.


def test_what_the_deployment_has_of_its_own_stays(folder: str, make_target: Callable[..., Site]) -> None:
    target = make_target()
    target.client.create_experiment(NAME, tags={"team": "ours"})
    target.client.create_registered_model("iris (ü)", {"owner": "bob"}, "ours")
    own = target.client.create_model_version("iris (ü)", "s3://ours/model")
    target.client.set_registered_model_alias("iris (ü)", "champion", own.version)
    report = bring(folder, target)
    assert report["missing"] == []
    assert target.client.get_experiment_by_name(NAME).tags["team"] == "ours"
    model = target.client.get_registered_model("iris (ü)")
    assert (model.description, model.tags, model.aliases) == ("ours", {"owner": "bob"}, {"champion": 1})
    assert report["notes"] == [
        "version 1 of registered model iris (ü) is version 2 in the deployment",
        "alias champion of registered model iris (ü) stays at version 1 of the deployment",
        "version 2 of registered model iris (ü) is version 3 in the deployment",
    ]
    # Deleted here: not wanted, so not made again.
    target.client.delete_run(runs_of(target)["child"].info.run_id)
    assert bring(folder, target)["imported"] == {}


# What is refused before anything is asked.


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "nothing was named"),
        ("/nowhere/mlruns", "not a folder"),
        ("sqlite:////nowhere/mlflow.db", "not a file"),
        ("postgresql://db/mlflow", "not a kind of source"),
        ("https://ann:secret@other.example.com", "carries a login"),
        ("http://other.example.com", "unencrypted"),
        ("https://mlflow.example.com/", "the deployment itself"),
    ],
)
def test_a_source_that_cannot_be_is_refused(source: str, problem: str) -> None:
    (found,) = mlflow_import.problems(source, "", "/report.json", "https://mlflow.example.com", {})
    assert problem in found.problem
    assert found.variable == "platform_import_source"
    assert "secret" not in repr(found)


def test_a_path_that_begins_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns" / "1").mkdir(parents=True)
    (tmp_path / "mlruns" / "1" / "meta.yaml").touch()
    found = mlflow_import.problems("mlruns", "mlruns", "report.json", "https://mlflow.example.com", {})
    assert [(one.variable, one.fix) for one in found] == [
        ("platform_import_source", "write the whole path, such as $PWD/mlruns"),
        ("platform_import_artifact_dir", "write the whole path, such as $PWD/mlruns"),
        ("platform_import_report_path", "write the whole path, such as $PWD/report.json"),
    ]
    (found_file,) = mlflow_import.problems("sqlite:///m.db", "", "/report.json", "https://mlflow.example.com", {})
    assert found_file.fix == "write the whole path, such as sqlite:///$PWD/m.db"


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path, empty_database: Path) -> None:
    environment = {"MLFLOW_IMPORT_USERNAME": "ann", "MLFLOW_IMPORT_TOKEN": "secret"}
    found = mlflow_import.problems(str(tmp_path), "/no", "/no/report.json", "https://mlflow.example.com", environment)
    assert [one.variable for one in found] == [
        "platform_import_source",
        "platform_import_artifact_dir",
        "platform_import_report_path",
        "MLFLOW_IMPORT_PASSWORD",
        "MLFLOW_IMPORT_TOKEN",
    ]
    assert "secret" not in repr(found)
    assert mlflow_import.problems(f"sqlite:///{empty_database}", "", "/r.json", "https://mlflow.example.com", {}) == []


def test_a_database_of_another_version_is_refused_and_not_touched(tmp_path: Path, empty_database: Path) -> None:
    path = tmp_path / "old.db"
    shutil.copy(empty_database, path)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'older'")
    before = path.read_bytes()
    (found,) = mlflow_import.problems(f"sqlite:///{path}", "", "/r.json", "https://mlflow.example.com", {})
    assert "its schema is older" in found.problem
    assert "db upgrade" in found.fix
    assert path.read_bytes() == before


def test_no_login_gets_to_the_other_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    options = {
        "source": "https://there.example.com",
        "artifact_dir": "",
        "url": "https://here.example.com",
        "admin_username": "admin",
    }
    environment = {"MLFLOW_IMPORT_TOKEN": "theirs"}
    source, target = mlflow_import.sides(options, "ours", environment)
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

    def login(_client: object) -> list[str | None]:
        return [os.environ.get(name) for name in names]

    assert source.ask(login) == [None, None, "theirs"]
    assert target.ask(lambda client: [login(client), source.ask(login), login(client)]) == [
        ["admin", "ours", None],
        [None, None, "theirs"],
        ["admin", "ours", None],
    ]
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "somebody"
    assert "ours" not in repr(target.login)
    folder, _target = mlflow_import.sides({**options, "source": str(tmp_path)}, "ours", environment)
    assert folder.ask(login) == [None, None, None]


def test_a_refused_login_names_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source("https://there.example.com")

    def refuse(**_options: object) -> None:
        raise MlflowException("not authenticated", error_code=UNAUTHENTICATED)

    monkeypatch.setattr(source.client, "search_experiments", refuse)
    with pytest.raises(
        ImportStoppedError, match="the source refuses the login; a source's is MLFLOW_IMPORT_USERNAME and"
    ):
        source.see_that_it_answers()


def test_a_source_that_stops_answering_ends_the_batch_and_is_named(
    folder: str, make_target: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, target = Source(folder), make_target()
    found = mlflow_import.survey(there, target)

    def gone(*_arguments: object, **_options: object) -> None:
        raise requests.ConnectionError("gone")

    monkeypatch.setattr(there.client, "get_metric_history", gone)
    monkeypatch.setattr(there.client, "search_experiments", gone)
    (outcome,) = [Importer(there, target).bring(one) for one in found["batches"] if one.get("run_ids")]
    assert [one["why"] for one in outcome["missing"]] == ["the source does not answer: ConnectionError: gone"]
