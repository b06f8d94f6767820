"""What one MLflow holds, brought into another through MLflow's client, and nothing twice.

`problems` judges what the operator named; `survey` compares source and target and returns what is still to be brought,
in batches; `Importer` brings one. What is brought carries a tag that names what it was in the source, and another
that says whether it is all there: whatever ends a run of this, the next one goes on there. The source is only read.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import mlflow
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.preflight import Problem
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.utils import _get_latest_schema_revision
from mlflow.utils.uri import is_local_uri

Answer = TypeVar("Answer")
Entry = Metric | Param | RunTag

# Tags of what was brought: what it was in the source, and whether all of it is here.
OWN = "import."
SOURCE_RUN = "import.source_run_id"
SOURCE_MODEL = "import.source_model_id"
SOURCE_VERSION = "import.source_version"
COMPLETE = "import.complete"
PARENT = "mlflow.parentRunId"
RUN_NAME = "mlflow.runName"
USER = "mlflow.user"

# One batch is some seconds to some minutes of work, between two lines of the playbook's progress.
RUNS_A_BATCH = 50
MODELS_A_BATCH = 20
# Of a page of the source; a run of a page comes with its parameters, latest metrics and tags.
PAGE = 500
# Of what is only counted.
MANY = 1000
# What MLflow takes in one call: https://mlflow.org/docs/latest/api_reference/rest-api.html#log-batch
BATCH = {Metric: 1000, Param: 100, RunTag: 100}

LOGIN = ("MLFLOW_IMPORT_USERNAME", "MLFLOW_IMPORT_PASSWORD", "MLFLOW_IMPORT_TOKEN")
# The client reads its login here at every call, and these would change whom it is sent to or how.
CLIENT_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
CLIENT_OTHERS = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_INSECURE_TLS")
CLIENT_SETTINGS = {
    # Without it MLflow 3.17 refuses to open a folder.
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The client's own seven tries take minutes before they say what is wrong.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    # Standard output belongs to the module's result.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LOGGED_MODEL = re.compile(r"models:/(m-[^/]+)(/.*)?")
RUN_FOLDER = re.compile(r"[0-9a-f]{32}")
FINISHED = ("FINISHED", "FAILED", "KILLED")


class ImportStoppedError(Exception):
    """There is no going on: the source or the target does not answer, or what was recorded is not there."""


# What the operator named.


def problems(
    source: str, artifact_dir: str, report_path: str, target_url: str, environment: Mapping[str, str]
) -> list[Problem]:
    """Return what is wrong with the source, the paths and the login, all at once. Asks no server."""
    scheme, at = urlsplit(source).scheme, "platform_import_source"
    kinds = "a folder such as /home/ann/mlruns, sqlite:////home/ann/mlflow.db, or https://mlflow.example.com"
    found: list[Problem] = []
    if not source:
        found.append(Problem(at, "''", "nothing was named", f"give -e {at}= with {kinds}"))
    elif scheme in {"http", "https"}:
        found += _of_server(source, target_url)
    elif scheme == "sqlite":
        found += _of_sqlite(source)
    elif scheme:
        found.append(Problem(at, repr(source.split(":")[0]), "not a kind of source that is known", f"name {kinds}"))
    else:
        found += _of_folder(source)
    if artifact_dir and scheme in {"http", "https"}:
        fix = "leave it out: a server hands out its artifacts itself"
        found.append(Problem("platform_import_artifact_dir", repr(artifact_dir), "of no use with a server", fix))
    elif artifact_dir and not Path(artifact_dir).expanduser().is_dir():
        fix = "name the folder that has a folder for each experiment's id, often mlruns or mlartifacts"
        found.append(Problem("platform_import_artifact_dir", repr(artifact_dir), "not a folder on this machine", fix))
    folder = Path(report_path).expanduser().parent
    if not folder.is_dir():
        found.append(Problem("platform_import_report_path", repr(report_path), f"{folder} is not a folder", "make it"))
    paths = {
        at: str(sqlite_path(source)) if scheme == "sqlite" else source if source and not scheme else "",
        "platform_import_artifact_dir": artifact_dir,
        "platform_import_report_path": report_path,
    }
    for variable, path in paths.items():
        if path and not Path(path).expanduser().is_absolute():
            # What was looked for in another folder is no news.
            found = [one for one in found if one.variable != variable]
            wrong = "it begins nowhere, since Ansible works in the playbook's folder"
            fix = f"write the whole path, such as {'sqlite:///' if source.endswith(f':///{path}') else ''}$PWD/{path}"
            found.append(Problem(variable, repr(path), wrong, fix))
    username, password, token = (environment.get(name, "") for name in LOGIN)
    if bool(username) != bool(password):
        lacking = LOGIN[0] if password else LOGIN[1]
        found.append(Problem(lacking, "''", "one half of a login", f"export both {LOGIN[0]} and {LOGIN[1]}"))
    if token and (username or password):
        fix = f"unset it, or {LOGIN[0]} and {LOGIN[1]}"
        found.append(Problem(LOGIN[2], "(hidden)", "a second login beside the name and password", fix))
    return found


def _of_server(source: str, target_url: str) -> Iterator[Problem]:
    parts, at = urlsplit(source), "platform_import_source"
    shown = repr(f"{parts.scheme}://{parts.hostname or ''}{parts.path}")
    if parts.username or parts.password:
        wrong = "it carries a login, which everybody on this machine can read in the list of processes"
        yield Problem(at, shown, wrong, f"leave it out of the address, and export {LOGIN[0]} and {LOGIN[1]}")
    if not parts.hostname:
        yield Problem(at, shown, "it names no server", "write one such as https://mlflow.example.com")
    elif parts.hostname == urlsplit(target_url).hostname and parts.port == urlsplit(target_url).port:
        yield Problem(at, shown, "the deployment itself", "name the server to import from")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        fix = "write https://, or open a tunnel and name http://localhost:<port>"
        yield Problem(at, shown, "the login and all data would travel unencrypted", fix)


def _of_sqlite(source: str) -> Iterator[Problem]:
    path, at = sqlite_path(source), "platform_import_source"
    if not path.is_file():
        yield Problem(at, repr(source), f"{path} is not a file on this machine", "name one that is there")
        return
    try:
        # Read only: MLflow itself makes tables in a file that has none, and migrates one that lacks some.
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            revision = database.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    except (sqlite3.Error, TypeError) as error:
        yield Problem(
            at, repr(source), f"not MLflow's database ({error})", "name the file that MLflow was started with"
        )
        return
    if revision != _get_latest_schema_revision():
        wrong = f"its schema is {revision}, and MLflow {mlflow.__version__}, which reads it here, has another"
        fix = (
            f"copy the file, migrate the copy ({sys.prefix}/bin/mlflow db upgrade sqlite:///<copy>), and name the copy"
        )
        yield Problem(at, repr(source), wrong, fix)


def _of_folder(source: str) -> Iterator[Problem]:
    path, at = folder_path(source), "platform_import_source"
    if not path.is_dir():
        yield Problem(at, repr(source), f"{path} is not a folder on this machine", "name one that is there")
    elif not any(path.glob("*/meta.yaml")):
        wrong = "no experiment is in it (no <id>/meta.yaml)"
        fix = "name the folder mlruns itself; where it has artifacts alone, the runs are in an sqlite file: name that"
        yield Problem(at, repr(source), wrong, fix)


def sqlite_path(source: str) -> Path:
    """Return the file that a URI of SQLAlchemy's names: https://docs.sqlalchemy.org/en/20/dialects/sqlite.html."""
    return Path(source.removeprefix("sqlite:///")).expanduser()


def folder_path(source: str) -> Path:
    """Return the folder of a source without a scheme."""
    return Path(source).expanduser()


# The two sides.


@dataclass(frozen=True)
class Login:
    """How the client logs in: a name and a password, or a token, or none of them."""

    username: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Put it where MLflow's client looks at every call, and nobody else's."""
        values = dict(zip(CLIENT_LOGIN, (self.username, self.password, self.token), strict=True))
        wanted = {**CLIENT_SETTINGS, **dict.fromkeys(CLIENT_OTHERS, ""), **values}
        before = {name: os.environ.get(name, "") for name in wanted}
        try:
            _export(wanted)
            yield
        finally:
            _export(before)


def _export(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value


class Site:
    """One MLflow, with its login. Nothing is asked of it but through `ask`, so that no login gets to the other side."""

    def __init__(self, name: str, uri: str, login: Login) -> None:
        self.name, self.uri, self.login = name, uri, login
        with login.in_use():
            self.client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)

    def ask(self, question: Callable[[mlflow.MlflowClient], Answer]) -> Answer:
        """Return the client's answer; MLflow's and requests' errors."""
        with self.login.in_use():
            return question(self.client)

    def see_that_it_answers(self) -> None:
        """Raise `ImportStoppedError` where it does not."""
        try:
            self.ask(lambda client: client.search_experiments(max_results=1))
        except Exception as error:
            if isinstance(error, MlflowException) and error.get_http_status_code() == 401:
                names = f"{LOGIN[0]} and {LOGIN[1]}, or {LOGIN[2]}"
                raise ImportStoppedError(
                    f"{self.name} refuses the login; a source's is {names}, in the environment: {reason(error)}"
                ) from error
            raise ImportStoppedError(f"{self.name} does not answer: {reason(error)}") from error

    def pages(self, question: Callable[[mlflow.MlflowClient, str | None], Sequence[Answer]]) -> Iterator[Answer]:
        """Yield what the pages of a search hold."""
        token: str | None = None
        while True:
            page = self.ask(lambda client, at=token: question(client, at))  # type: ignore[misc]
            yield from page
            token = getattr(page, "token", None)
            if not token:
                return

    def listed(self, question: Callable[[mlflow.MlflowClient, str | None], Sequence[Answer]]) -> Iterator[Answer]:
        """Yield the same of a server, or nothing where it is older than what is searched for."""
        try:
            yield from self.pages(question)
        except MlflowException as error:
            if error.get_http_status_code() not in {404, 501}:
                raise

    def files(self, uri: str, path: str = "") -> Iterator[tuple[str, int | None]]:
        """Yield path and size of each file below a place, one folder after the other."""
        with self.login.in_use():
            entries = get_artifact_repository(uri, self.uri, self.uri).list_artifacts(path or None)
        for entry in entries:
            if entry.is_dir:
                yield from self.files(uri, entry.path)
            else:
                yield entry.path, entry.file_size


class Source(Site):
    """What is read: a folder, an sqlite file or a server."""

    def __init__(self, source: str, artifact_dir: str = "", login: Login | None = None) -> None:
        self.folder: Path | None = None
        # Where artifacts are looked for before the place that their run recorded, which may be another machine's.
        self.artifact_dir = Path(artifact_dir).expanduser() if artifact_dir else None
        scheme = urlsplit(source).scheme
        if scheme == "sqlite":
            uri = f"sqlite:///{sqlite_path(source)}"
        elif scheme:
            uri = source.rstrip("/")
        else:
            self.folder = folder_path(source)
            self.artifact_dir = self.artifact_dir or self.folder
            uri = self.folder.as_uri()
        local = sqlite_path(source) if scheme == "sqlite" else self.folder
        if local and not local.exists():
            # MLflow would make it.
            raise FileNotFoundError(f"{local} is not there")
        super().__init__("the source", uri, login or Login())

    def place(self, recorded: str, experiment_id: str, *parts: str) -> str:
        """Return where the artifacts are that were recorded in a place: a URI, or a path on this machine."""
        if not is_local_uri(recorded):
            return recorded
        path = local_path(recorded)
        if self.artifact_dir:
            moved = self.artifact_dir.joinpath(experiment_id, *parts, "artifacts")
            if moved.is_dir() and (any(moved.iterdir()) or not path.is_dir()):
                return str(moved)
        return str(path)

    def lacks_its_artifacts(self, experiment: Experiment) -> str:
        """Return the folder that the experiment recorded and that this machine does not have; else nothing."""
        if self.artifact_dir or not is_local_uri(experiment.artifact_location):
            return ""
        root = local_path(experiment.artifact_location).parent
        return "" if root.is_dir() else str(root)


def local_path(uri: str) -> Path:
    """Return the path of a URI on this machine."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)


def is_refusal(error: BaseException) -> bool:
    """Whether MLflow answered, and does not want this one thing."""
    return isinstance(error, MlflowException) and error.get_http_status_code() in {400, 403, 404, 409, 413, 501}


def reason(error: BaseException) -> str:
    """Return an error in a line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


# The comparison.


def survey(source: Source, target: Site) -> Json:
    """Return what is to be brought, in batches, and what cannot be; raises `ImportStoppedError`, and MLflow's own.

    `totals` is what the source holds and `pending` what of it is not here yet, by kind; `left_out` is what no import
    brings, a line each; `missing` is what should come over and cannot.
    """
    for site in (source, target):
        site.see_that_it_answers()
    result: Json = {"batches": [], "totals": Counter(), "pending": Counter(), "left_out": [], "missing": []}
    deleted: Counter[str] = Counter()
    every = source.pages(lambda client, at: client.search_experiments(ViewType.ALL, PAGE, page_token=at))
    experiments = sorted(every, key=lambda one: one.name)
    for experiment in experiments:
        if experiment.lifecycle_stage == "deleted":
            deleted["experiments"] += 1
        else:
            _survey_experiment(source, target, experiment, result, deleted)
    _survey_models(source, target, result)
    _survey_others(source, [one.experiment_id for one in experiments], result)
    result["left_out"] += [f"{number} deleted {kind}" for kind, number in deleted.items()]
    if source.folder:
        known = {one.experiment_id for one in experiments}
        for path in sorted(source.folder.iterdir()):
            if path.is_dir() and path.name.isdigit() and path.name not in known:
                why = "its meta.yaml is missing or damaged"
                result["missing"].append({"what": f"experiment in the folder {path.name}", "why": why})
    return {**result, "totals": dict(result["totals"]), "pending": dict(result["pending"])}


def _survey_experiment(
    source: Source, target: Site, experiment: Experiment, result: Json, deleted: Counter[str]
) -> None:
    title, id_ = f"experiment {experiment.name}", experiment.experiment_id
    here = target.ask(lambda client: client.get_experiment_by_name(experiment.name))
    result["totals"]["experiments"] += 1
    if here and here.lifecycle_stage == "deleted":
        why = f"the deployment has a deleted one of this name; mlflow experiments restore -x {here.experiment_id}"
        result["missing"].append({"what": title, "why": why})
        return
    done: set[str] = set()
    if here:
        brought = target.pages(
            lambda client, at: client.search_runs(
                [here.experiment_id], f"tags.`{SOURCE_RUN}` LIKE '%'", ViewType.ALL, PAGE, page_token=at
            )
        )
        done = {run.data.tags[SOURCE_RUN] for run in brought if _is_done(run)}
    runs = source.pages(
        lambda client, at: client.search_runs([id_], "", ViewType.ALL, PAGE, ["attributes.start_time ASC"], at)
    )
    known, run_ids = set(), []
    for run in runs:
        known.add(run.info.run_id)
        if run.info.lifecycle_stage == "deleted":
            deleted["runs"] += 1
            continue
        result["totals"]["runs"] += 1
        if run.info.run_id not in done:
            run_ids.append(run.info.run_id)
    if source.folder:
        for path in sorted((source.folder / id_).iterdir()):
            if RUN_FOLDER.fullmatch(path.name) and path.name not in known:
                why = "its meta.yaml is missing or damaged"
                result["missing"].append({"what": f"run {path.name} of {title}", "why": why})
    # Few enough to be listed with what they hold.
    models = [one.model_id for one in source.listed(lambda client, at: _models(client, [id_], at))]
    result["totals"]["logged_models"] += len(models)
    if models and here:
        brought_models = target.listed(lambda client, at: _models(client, [here.experiment_id], at))
        done = {one.tags.get(SOURCE_MODEL, "") for one in brought_models if one.tags.get(COMPLETE) == "true"}
        models = [one for one in models if one not in done]
    if (run_ids or models) and (lost := source.lacks_its_artifacts(experiment)):
        raise ImportStoppedError(
            f"the artifacts of {title} are recorded in {lost}, which is not on this machine. Name their folder "
            "with -e platform_import_artifact_dir=, or make that one where there never were any"
        )
    result["pending"].update(experiments=0 if here else 1, runs=len(run_ids), logged_models=len(models))
    if not here and not run_ids and not models:
        result["batches"].append({"title": title, "experiment_id": id_})
    for first, part in _parts(run_ids, RUNS_A_BATCH):
        shown = f"{title}, runs {first} to {first + len(part) - 1} of {len(run_ids)}"
        result["batches"].append({"title": shown, "experiment_id": id_, "run_ids": part})
    for first, part in _parts(models, MODELS_A_BATCH):
        shown = f"{title}, logged models {first} to {first + len(part) - 1} of {len(models)}"
        result["batches"].append({"title": shown, "experiment_id": id_, "model_ids": part})


def _survey_models(source: Source, target: Site, result: Json) -> None:
    registered = source.pages(lambda client, at: client.search_registered_models(None, 100, page_token=at))
    models: dict[str, list[ModelVersion]] = {one.name: [] for one in registered}
    for version in source.pages(lambda client, at: client.search_model_versions(None, PAGE, page_token=at)):
        # Those of prompts are listed too.
        if version.name in models:
            models[version.name].append(version)
    brought = target.pages(
        lambda client, at: client.search_model_versions(f"tags.`{SOURCE_VERSION}` LIKE '%'", PAGE, page_token=at)
    )
    done = {(one.name, one.tags[SOURCE_VERSION]) for one in brought if one.tags.get(COMPLETE) == "true"}
    for name, versions in sorted(models.items()):
        result["totals"].update(registered_models=1, model_versions=len(versions))
        left = sorted(int(one.version) for one in versions if (name, identity(one)) not in done)
        is_new = _registered_model(target, name) is None
        result["pending"].update(registered_models=int(is_new), model_versions=len(left))
        if left or is_new:
            shown = f"registered model {name}" + (f", versions {', '.join(map(str, left))}" if left else "")
            result["batches"].append({"title": shown, "registered_model": name, "versions": left})


def _survey_others(source: Source, experiment_ids: list[str], result: Json) -> None:
    """Name what MLflow's client can read and has no call to make elsewhere as it was."""
    searches: dict[str, Callable[[mlflow.MlflowClient, str | None], Sequence[object]]] = {
        "traces": lambda client, at: client.search_traces(
            max_results=100, page_token=at, include_spans=False, locations=experiment_ids
        ),
        "prompts": lambda client, at: client.search_prompts(max_results=100, page_token=at),
        "evaluation datasets": lambda client, at: client.search_datasets(
            experiment_ids=experiment_ids, max_results=50, page_token=at
        ),
    }
    for kind, search in searches.items():
        try:
            number = sum(1 for _one in itertools.islice(source.listed(search), MANY))
        except MlflowException as error:
            # A folder has no datasets, and an old server may answer this with anything.
            if not is_refusal(error) and "not supported" not in str(error).lower():
                result["left_out"].append(f"{kind}, which could not be counted: {reason(error)}")
            continue
        if number:
            result["left_out"].append(f"{number} {'or more ' if number == MANY else ''}{kind}")


def _is_done(run: Run) -> bool:
    # One that was deleted here was not wanted here.
    return run.data.tags.get(COMPLETE) == "true" or run.info.lifecycle_stage == "deleted"


def _models(client: mlflow.MlflowClient, ids: list[str], at: str | None) -> Sequence[LoggedModel]:
    return client.search_logged_models(ids, max_results=100, page_token=at)


def _parts(ids: list[str], size: int) -> Iterator[tuple[int, list[str]]]:
    for first in range(0, len(ids), size):
        yield first + 1, ids[first : first + size]


def _registered_model(site: Site, name: str) -> RegisteredModel | None:
    try:
        return site.ask(lambda client: client.get_registered_model(name))
    except MlflowException as error:
        if error.get_http_status_code() == 404:
            return None
        raise


def identity(version: ModelVersion) -> str:
    """Return what tells a version from one of the same number in another source."""
    return f"{version.version}@{version.creation_timestamp}"


# The work.


class Importer:
    """Brings a batch. What it brought is counted in `imported`, what it could not is in `missing`, with a reason."""

    def __init__(self, source: Source, target: Site) -> None:
        self.source, self.target = source, target
        self.imported: Counter[str] = Counter()
        self.missing: list[dict[str, str]] = []
        self.notes: list[str] = []
        self._experiments: dict[str, str] = {}
        self._model_ids: dict[str, str] = {}
        # Where no artifacts can be yet.
        self._new: set[str] = set()
        # A registry in a file of this machine finds logged models by this alone.
        with target.login.in_use():
            mlflow.set_tracking_uri(target.uri)

    def bring(self, batch: Json) -> Json:
        """Bring one batch of the survey, and return what came of it, errors as well."""
        try:
            with self._reporting(batch["title"]):
                if batch.get("experiment_id"):
                    self._experiment(batch["experiment_id"])
                for run_id in batch.get("run_ids", []):
                    with self._reporting(f"run {run_id}"):
                        self._bring_run(run_id)
                for model_id in batch.get("model_ids", []):
                    with self._reporting(f"logged model {model_id}"):
                        self._model(model_id)
                if batch.get("registered_model"):
                    self._bring_registered_model(batch["registered_model"], batch["versions"])
        except ImportStoppedError as error:
            self.missing.append({"what": f"the rest of: {batch['title']}", "why": str(error)})
        return {
            "title": batch["title"],
            "imported": {kind: number for kind, number in self.imported.items() if number},
            "missing": self.missing,
            "notes": self.notes,
        }

    @contextlib.contextmanager
    def _reporting(self, what: str) -> Iterator[None]:
        try:
            yield
        except ImportStoppedError:
            raise
        except Exception as error:
            if not is_refusal(error):
                self.source.see_that_it_answers()
                self.target.see_that_it_answers()
            self.missing.append({"what": what, "why": reason(error)})

    def _experiment(self, source_id: str) -> str:
        """Return the id here of an experiment of the source, made where there is none of its name."""
        if source_id not in self._experiments:
            there = self.source.ask(lambda client: client.get_experiment(source_id))
            here = self.target.ask(lambda client: client.get_experiment_by_name(there.name))
            if here is None:
                made = self.target.ask(lambda client: client.create_experiment(there.name, tags=there.tags))
                self.imported["experiments"] += 1
            self._experiments[source_id] = here.experiment_id if here else made
        return self._experiments[source_id]

    def _run(self, there: Run) -> Run:
        """Return the run here for one of the source; a new one has name, user, start and parent, and no more yet."""
        experiment_id, source_id = self._experiment(there.info.experiment_id), there.info.run_id
        found = self.target.ask(
            lambda client: client.search_runs([experiment_id], f"tags.`{SOURCE_RUN}` = '{source_id}'", ViewType.ALL, 1)
        )
        if found:
            return self.target.ask(lambda client: client.get_run(found[0].info.run_id))
        tags = {key: there.data.tags[key] for key in (USER, RUN_NAME) if key in there.data.tags}
        if parent_id := there.data.tags.get(PARENT):
            parent = self._source_run(parent_id)
            # Without a parent in the source the tag leads nowhere there as well.
            tags[PARENT] = self._run(parent).info.run_id if parent else parent_id
        tags |= {SOURCE_RUN: source_id, COMPLETE: "false"}
        made = self.target.ask(
            lambda client: client.create_run(experiment_id, there.info.start_time, tags, there.info.run_name)
        )
        self._new.add(made.info.artifact_uri)
        return made

    def _source_run(self, run_id: str) -> Run | None:
        """Return a run of the source, None where it is deleted or gone."""
        try:
            run = self.source.ask(lambda client: client.get_run(run_id))
        except MlflowException as error:
            if error.get_http_status_code() == 404:
                return None
            raise
        return None if run.info.lifecycle_stage == "deleted" else run

    def _bring_run(self, source_id: str) -> None:
        there = self.source.ask(lambda client: client.get_run(source_id))
        here = self._run(there)
        if _is_done(here):
            return
        run_id, title, before = here.info.run_id, f"run {source_id}", len(self.missing)
        self._log(run_id, title, [Param(*one) for one in there.data.params.items() - here.data.params.items()])
        skipped = {key for key in there.data.tags if key.startswith(OWN)} | {PARENT}
        tags = {key: value for key, value in there.data.tags.items() if key not in skipped}
        self._log(run_id, title, [RunTag(*one) for one in tags.items() - here.data.tags.items()])
        self._bring_metrics(there, here)
        with self._reporting(f"datasets of {title}"):
            self._bring_datasets(there, here)
        with self._reporting(f"logged models of {title}"):
            self._bring_links(there, here)
        place = self.source.place(there.info.artifact_uri, there.info.experiment_id, source_id)
        with self._reporting(f"artifacts of {title}"):
            self._bring_artifacts(
                title, place, here.info.artifact_uri, lambda client, *file: client.log_artifact(run_id, *file)
            )
        if len(self.missing) > before:
            return
        if there.info.status in FINISHED and there.info.end_time:
            self.target.ask(lambda client: client.set_terminated(run_id, there.info.status, there.info.end_time))
        else:
            self.target.ask(lambda client: client.update_run(run_id, there.info.status))
        if there.info.status not in FINISHED:
            self.notes.append(
                f"{title} is {there.info.status} in the source: what it still logs there does not come over"
            )
        # Last: what has this tag is not looked at again.
        self.target.ask(lambda client: client.set_tag(run_id, COMPLETE, "true"))
        self.imported["runs"] += 1

    def _log(self, run_id: str, title: str, entries: Sequence[Entry]) -> None:
        size = BATCH[type(entries[0])] if entries else 1
        for first in range(0, len(entries), size):
            self._log_batch(run_id, title, entries[first : first + size])

    def _log_batch(self, run_id: str, title: str, batch: Sequence[Entry]) -> None:
        """Log all at once, and where MLflow refuses it by halves, so that one bad entry costs no other."""
        metrics = [one for one in batch if isinstance(one, Metric)]
        params = [one for one in batch if isinstance(one, Param)]
        tags = [one for one in batch if isinstance(one, RunTag)]
        try:
            self.target.ask(lambda client: client.log_batch(run_id, metrics, params, tags))
        except MlflowException as error:
            if not is_refusal(error):
                raise
            if len(batch) == 1:
                kind = type(batch[0]).__name__.removeprefix("Run").lower()
                self.missing.append({"what": f"{kind} {batch[0].key} of {title}", "why": reason(error)})
                return
            middle = len(batch) // 2
            self._log_batch(run_id, title, batch[:middle])
            self._log_batch(run_id, title, batch[middle:])
        else:
            self.imported.update(metrics=len(metrics), params=len(params), tags=len(tags))

    def _bring_metrics(self, there: Run, here: Run) -> None:
        """Bring every value of every metric, those of several metrics in one call."""
        run_id, title = here.info.run_id, f"run {there.info.run_id}"
        waiting: list[Metric] = []
        for key in there.data.metrics:
            with self._reporting(f"metric {key} of {title}"):
                waiting += self._metrics_to_bring(there.info.run_id, here, key)
            if len(waiting) >= BATCH[Metric]:
                with self._reporting(f"metrics of {title}, {key} and those before"):
                    self._log(run_id, title, waiting)
                waiting = []
        with self._reporting(f"the last metrics of {title}"):
            self._log(run_id, title, waiting)

    def _metrics_to_bring(self, source_id: str, here: Run, key: str) -> list[Metric]:
        """Return a metric's whole history but what is here already; one metric at a time, for the sake of memory."""
        history = self.source.ask(lambda client: client.get_metric_history(source_id, key))
        known = set()
        if key in here.data.metrics:
            now = self.target.ask(lambda client: client.get_metric_history(here.info.run_id, key))
            known = {point(one) for one in now}
        return [Metric(one.key, one.value, one.timestamp, one.step) for one in history if point(one) not in known]

    def _bring_datasets(self, there: Run, here: Run) -> None:
        def key(dataset: Dataset) -> tuple[str, str]:
            return dataset.name, dataset.digest

        known = {key(one.dataset) for one in (here.inputs.dataset_inputs if here.inputs else [])}
        inputs = there.inputs.dataset_inputs if there.inputs else []
        new: list[DatasetInput] = [one for one in inputs if key(one.dataset) not in known]
        if new:
            self.target.ask(lambda client: client.log_inputs(here.info.run_id, datasets=new))
            self.imported["datasets"] += len(new)

    def _bring_links(self, there: Run, here: Run) -> None:
        """Link the run to the logged models that it read and made."""
        read = [self._model(one.model_id) for one in (there.inputs.model_inputs if there.inputs else [])]
        made = [(self._model(one.model_id), one.step) for one in (there.outputs.model_outputs if there.outputs else [])]
        read_here = {one.model_id for one in (here.inputs.model_inputs if here.inputs else [])}
        made_here = {(one.model_id, one.step) for one in (here.outputs.model_outputs if here.outputs else [])}
        inputs = [LoggedModelInput(one) for one in read if one not in read_here]
        outputs = [LoggedModelOutput(*one) for one in made if one not in made_here]
        if inputs:
            self.target.ask(lambda client: client.log_inputs(here.info.run_id, models=inputs))
        if outputs:
            self.target.ask(lambda client: client.log_outputs(here.info.run_id, outputs))

    def _bring_artifacts(
        self, title: str, place: str, target_uri: str, upload: Callable[[mlflow.MlflowClient, str, str | None], None]
    ) -> None:
        """Bring what lies in a place, one file at a time, and look afterwards whether it is there."""
        known = {} if target_uri in self._new else dict(self.target.files(target_uri))
        sent: dict[str, int | None] = {}
        for path, size in self._source_files(title, place):
            if path in known and size is not None and known[path] == size:
                continue
            what = f"artifact {path} of {title}"
            if self.target.uri.startswith("http") and (set(path) & {"#", "?"} or unquote(path) != path):
                # It would put the file in another place, in silence.
                why = "MLflow's client does not quote #, ? and % in the name of a file; rename it in the source"
                self.missing.append({"what": what, "why": why})
                continue
            with self._reporting(what):
                self._bring_file(place, path, upload)
                sent[path] = size
        now = dict(self.target.files(target_uri)) if sent else {}
        for path, size in sent.items():
            if path in now and (size is None or now[path] in (None, size)):
                self.imported["artifacts"] += 1
            else:
                why = f"after the upload it is not there with its {size} bytes"
                self.missing.append({"what": f"artifact {path} of {title}", "why": why})

    def _source_files(self, title: str, place: str) -> Iterator[tuple[str, int | None]]:
        """Yield path and size of each file in a place of the source."""
        if not is_local_uri(place):
            yield from self.source.files(place)
            return

        def report(error: OSError) -> None:
            self.missing.append({"what": f"folder {error.filename} of {title}", "why": reason(error)})

        onerror = report if os.path.lexists(place) else None
        # Not by MLflow's listing, which gives up a whole folder for one entry that cannot be read.
        for folder, _folders, names in os.walk(place, onerror=onerror, followlinks=True):
            for name in sorted(names):
                path = Path(folder, name)
                try:
                    size = path.stat().st_size
                except OSError:
                    # To be read, which says what is wrong.
                    size = None
                yield path.relative_to(place).as_posix(), size

    def _bring_file(
        self, place: str, path: str, upload: Callable[[mlflow.MlflowClient, str, str | None], None]
    ) -> None:
        folder = str(PurePosixPath(path).parent)
        into = None if folder == "." else folder
        if is_local_uri(place):
            self.target.ask(lambda client: upload(client, str(Path(place, path)), into))
            return
        with tempfile.TemporaryDirectory(prefix="mlflow-import-") as directory:
            with self.source.login.in_use():
                repository = get_artifact_repository(place, self.source.uri, self.source.uri)
                local = repository.download_artifacts(path, directory)
            self.target.ask(lambda client: upload(client, local, into))

    def _model(self, source_id: str) -> str:
        """Return the id here of a logged model of the source, brought whole unless it is here."""
        if source_id in self._model_ids:
            return self._model_ids[source_id]
        there = self.source.ask(lambda client: client.get_logged_model(source_id))
        experiment_id = self._experiment(there.experiment_id)
        found = self.target.ask(
            lambda client: client.search_logged_models(
                [experiment_id], f"tags.`{SOURCE_MODEL}` = '{source_id}'", max_results=1
            )
        )
        here = found[0] if found else self._make_model(there, experiment_id)
        self._model_ids[source_id] = here.model_id
        if here.tags.get(COMPLETE) == "true":
            return here.model_id
        title, before, model_id = f"logged model {source_id}", len(self.missing), here.model_id
        place = self.source.place(there.artifact_location, there.experiment_id, "models", source_id)
        with self._reporting(f"artifacts of {title}"):
            self._bring_artifacts(
                title, place, here.artifact_location, lambda client, *file: client.log_model_artifact(model_id, *file)
            )
        for metric in there.metrics or []:
            with self._reporting(f"metric {metric.key} of {title}"):
                self._bring_model_metric(title, metric, here)
        if len(self.missing) == before:
            if there.status in {LoggedModelStatus.READY, LoggedModelStatus.FAILED}:
                self.target.ask(lambda client: client.finalize_logged_model(model_id, there.status))
            self.target.ask(lambda client: client.set_logged_model_tags(model_id, {COMPLETE: "true"}))
            self.imported["logged_models"] += 1
        return model_id

    def _make_model(self, there: LoggedModel, experiment_id: str) -> LoggedModel:
        run = self._source_run(there.source_run_id) if there.source_run_id else None
        run_id = self._run(run).info.run_id if run else None
        tags = {key: value for key, value in there.tags.items() if not key.startswith((OWN, "mlflow.modelVersions"))}
        tags |= {SOURCE_MODEL: there.model_id, COMPLETE: "false"}
        return self.target.ask(
            lambda client: client.create_logged_model(
                experiment_id, there.name, run_id, tags, there.params, there.model_type
            )
        )

    def _bring_model_metric(self, title: str, metric: Metric, here: LoggedModel) -> None:
        """Bring one metric of a logged model, which MLflow keeps by the run that logged it."""
        run = self._source_run(metric.run_id) if metric.run_id else None
        if run is None:
            self.notes.append(f"metric {metric.key} of {title} was logged by a run that is deleted in the source")
            return
        run_id = self._run(run).info.run_id
        known = {(one.run_id, one.key, one.dataset_name, point(one)) for one in here.metrics or []}
        if (run_id, metric.key, metric.dataset_name, point(metric)) in known:
            return
        linked = Metric(
            metric.key,
            metric.value,
            metric.timestamp,
            metric.step,
            model_id=here.model_id,
            dataset_name=metric.dataset_name,
            dataset_digest=metric.dataset_digest,
        )
        self.target.ask(lambda client: client.log_batch(run_id, metrics=[linked]))

    def _bring_registered_model(self, name: str, versions: list[int]) -> None:
        there = self.source.ask(lambda client: client.get_registered_model(name))
        here = _registered_model(self.target, name)
        if here is None:
            here = self.target.ask(lambda client: client.create_registered_model(name, there.tags, there.description))
            self.imported["registered_models"] += 1
        for number in versions:
            with self._reporting(f"version {number} of registered model {name}"):
                self._bring_version(there, here, str(number))

    def _bring_version(self, model_there: RegisteredModel, model_here: RegisteredModel, number: str) -> None:
        name, title = model_there.name, f"version {number} of registered model {model_there.name}"
        there = self.source.ask(lambda client: client.get_model_version(name, number))
        brought = self.target.pages(
            lambda client, at: client.search_model_versions(
                f"tags.`{SOURCE_VERSION}` = '{identity(there)}'", PAGE, page_token=at
            )
        )
        here = next((one for one in brought if one.name == name), None)
        if here is None:
            here = self._make_version(there)
            if str(here.version) != number:
                self.notes.append(f"{title} is version {here.version} in the deployment")
        version = str(here.version)
        # A stage is what MLflow had before aliases.
        if there.current_stage not in {None, "None", here.current_stage}:
            self.target.ask(lambda client: client.transition_model_version_stage(name, version, there.current_stage))
        for alias in [alias for alias, at in model_there.aliases.items() if str(at) == number]:
            taken = model_here.aliases.get(alias)
            if taken is None:
                self._set_alias(name, alias, version)
            elif str(taken) != version:
                self.notes.append(
                    f"alias {alias} of registered model {name} stays at version {taken} of the deployment"
                )
        self.target.ask(lambda client: client.set_model_version_tag(name, version, COMPLETE, "true"))
        self.imported["model_versions"] += 1

    def _set_alias(self, name: str, alias: str, version: str) -> None:
        self.target.ask(lambda client: client.set_registered_model_alias(name, alias, version))
        self.imported["aliases"] += 1

    def _make_version(self, there: ModelVersion) -> ModelVersion:
        uri = self.source.ask(lambda client: client.get_model_version_download_uri(there.name, there.version))
        linked = LOGGED_MODEL.fullmatch(there.source or "")
        source_model = there.model_id or (linked[1] if linked else None)
        run = self._source_run(there.run_id) if there.run_id else None
        run_here = self._run(run) if run else None
        model_id = self._model(source_model) if source_model else None
        if model_id:
            place = f"models:/{model_id}"
        elif run and run_here and uri.startswith(f"{run.info.artifact_uri}/"):
            place = run_here.info.artifact_uri + uri.removeprefix(run.info.artifact_uri)
        else:
            raise ValueError(
                f"its files are in {uri}, not among those of a run that is there; where the run was deleted in the "
                "source, restore it there and import again"
            )
        tags = {key: value for key, value in there.tags.items() if not key.startswith(OWN)}
        tags |= {SOURCE_VERSION: identity(there), COMPLETE: "false"}
        return self.target.ask(
            lambda client: client.create_model_version(
                there.name,
                place,
                run_here.info.run_id if run_here else None,
                tags,
                description=there.description,
                model_id=model_id,
            )
        )


def point(metric: Metric) -> tuple[str, int, int]:
    """Return what tells one value of a history from another; a database keeps infinity as its largest number."""
    largest = sys.float_info.max
    value = metric.value if math.isnan(metric.value) else max(-largest, min(largest, float(metric.value)))
    return repr(value), metric.timestamp, metric.step


def summary(found: Json, outcomes: list[Json], *, foretold: bool) -> Json:
    """Return the report: what came over, or would, what did not and why, and what no import brings."""
    imported: Counter[str] = Counter(found["pending"] if foretold else {})
    for outcome in outcomes:
        imported.update(outcome["imported"])
    missing = [*found["missing"], *(one for outcome in outcomes for one in outcome["missing"])]
    notes = [one for outcome in outcomes for one in outcome["notes"]]
    already = {kind: found["totals"][kind] - found["pending"].get(kind, 0) for kind in found["totals"]}
    lines = [f"{'Would come over' if foretold else 'Came over'}: {_counted(imported)}."]
    lines += [f"There before: {_counted(already)}."]
    lines += ["Not brought by any import: " + "; ".join(found["left_out"]) + "."] if found["left_out"] else []
    lines += [f"Note: {note}." for note in notes]
    lines += [f"Did not come over: {one['what']}: {one['why']}." for one in missing]
    return {
        "imported": {kind: number for kind, number in imported.items() if number},
        "already": already,
        "left_out": found["left_out"],
        "missing": missing,
        "notes": notes,
        "text": "\n".join(lines),
    }


def _counted(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in numbers.items() if number) or "nothing"


def sides(options: Json, admin_password: str, environment: Mapping[str, str]) -> tuple[Source, Site]:
    """Return the source and the deployment that the modules' options name, each with its own login."""
    # A server's alone: nobody else is told.
    names = LOGIN if urlsplit(options["source"]).scheme in {"http", "https"} else ()
    login = Login(*(environment.get(name, "") for name in names))
    target = Site("the deployment", options["url"], Login(options["admin_username"], admin_password))
    return Source(options["source"], options["artifact_dir"], login), target
