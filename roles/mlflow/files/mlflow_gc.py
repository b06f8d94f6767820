"""Removes for good what users deleted days ago: runs, logged models and experiments, with their artifacts.

What a version of a registered model is made of stays, and so do artifacts in places that users chose. Each
thing loses its artifacts first and its rows last, so that whoever is stopped in between is finished by the next. Names
also what nobody knows any more: directories of artifacts without a run or logged model. Those are left.
"""

import collections
import datetime
import json
import pathlib
from typing import Any

import sqlalchemy
from mlflow.entities import LifecycleStage
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

EXPERIMENTS, RUNS, MODELS, VERSIONS = (
    one.__table__ for one in (SqlExperiment, SqlRun, SqlLoggedModel, SqlModelVersion)
)
# How clients name what the server keeps for them, with one slash or with three.
PROXIED = "mlflow-artifacts:/"
# As many names of what nobody knows are told, of however many there are.
NAMED = 100


class Collector:
    """One pass over a tracking server's database and artifacts; `found` says what it did and how often it could not."""

    def __init__(self, uri: str, destination: str, days: int) -> None:
        self.store = SqlAlchemyStore(uri, destination)
        self.destination = destination.rstrip("/")
        self.before = int((datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)).timestamp() * 1000)
        self.found: dict[str, Any] = {"removed": collections.Counter(), "kept": 0, "failed": 0, "unknown": []}

    def rows(self, *columns: Any, where: Any = True) -> list[Any]:
        """Rows of a table, or of some of its columns."""
        with self.store.ManagedSessionMaker() as session:
            return list(session.execute(sqlalchemy.select(*columns).where(sqlalchemy.and_(where))).all())

    def collect(self) -> None:
        """Removes, then looks for what nobody knows."""
        # MLflow expects its own experiment.
        gone = deleted(EXPERIMENTS, EXPERIMENTS.c.last_update_time, self.before) & (EXPERIMENTS.c.experiment_id != 0)
        self.remove("run", RUNS.c.run_uuid, RUNS.c.artifact_uri, deleted(RUNS, RUNS.c.deleted_time, self.before))
        # With an experiment go its models, which MLflow does not mark.
        of_gone = MODELS.c.experiment_id.in_(sqlalchemy.select(EXPERIMENTS.c.experiment_id).where(gone))
        models = deleted(MODELS, MODELS.c.last_updated_timestamp_ms, self.before) | of_gone
        self.remove("logged_model", MODELS.c.model_id, MODELS.c.artifact_location, models)
        for table in (RUNS, MODELS):
            gone &= ~sqlalchemy.exists().where(table.c.experiment_id == EXPERIMENTS.c.experiment_id)
        self.remove("experiment", EXPERIMENTS.c.experiment_id, EXPERIMENTS.c.artifact_location, gone)
        self.find_unknown()

    def remove(self, kind: str, key: Any, place: Any, condition: Any) -> None:
        """Removes all of a kind that a condition is true for; what fails is told and left to the next pass."""
        for (name,) in self.rows(key, where=condition):
            # Read again for each, as a pass may take hours, in which somebody restores it or registers a model.
            for (artifacts,) in self.rows(place, where=(key == name) & condition):
                if users := self.rows(VERSIONS, where=uses(str(name), artifacts)):
                    self.found["kept"] += 1
                    print(
                        f"Kept {kind} {name}: version {users[0].version} of {users[0].name} is made of it", flush=True
                    )
                else:
                    self.remove_one(kind, str(name), artifacts)

    def remove_one(self, kind: str, name: str, artifacts: str) -> None:
        """Removes one, its rows last."""
        try:
            if own := self.own(kind, name, artifacts or ""):
                get_artifact_repository(own).delete_artifacts()
            else:
                print(f"Left the artifacts of {kind} {name}, in a place of their own: {artifacts}", flush=True)
            getattr(self.store, f"_hard_delete_{kind}")(name)
        except Exception as error:  # One that cannot be removed must not keep the others.
            self.found["failed"] += 1
            print(f"Could not remove {kind} {name}: {type(error).__name__}: {error}", flush=True)
        else:
            self.found["removed"][f"{kind}s"] += 1
            print(f"Removed {kind} {name}", flush=True)

    def own(self, kind: str, name: str, artifacts: str) -> str:
        """Directory that is one thing's alone, below the server's destination; empty where it may be others' too.

        Users choose where an experiment's artifacts are, which may be where another's are.
        """
        if artifacts.startswith(PROXIED):
            artifacts = f"{self.destination}/{artifacts.removeprefix(PROXIED).lstrip('/')}"
        if kind == "experiment":
            return artifacts if artifacts == f"{self.destination}/{name}" else ""
        below = artifacts.removeprefix(f"{self.destination}/")
        is_own = below != artifacts and below.endswith(f"/{name}/artifacts") and ".." not in below.split("/")
        return artifacts.removesuffix("/artifacts") if is_own else ""

    def find_unknown(self) -> None:
        """Notes each directory of a run or logged model that no row names, also in experiments that are gone."""
        highest = self.rows(sqlalchemy.func.max(EXPERIMENTS.c.experiment_id))[0][0] or 0
        there = [
            f"{experiment}/{path}"
            for experiment in range(highest + 1)
            for path in parts(get_artifact_repository(f"{self.destination}/{experiment}"))
        ]
        # Read after the list: what came meanwhile has a row.
        known = {name for column in (RUNS.c.run_uuid, MODELS.c.model_id) for (name,) in self.rows(column)}
        self.found["unknown"] = [path for path in there if path.rsplit("/", 1)[-1] not in known]


def deleted(table: Any, when: Any, before: int) -> Any:
    """The condition that a row was deleted before a moment, in milliseconds since 1970."""
    return (table.c.lifecycle_stage == LifecycleStage.DELETED) & (when <= before)


def uses(name: str, artifacts: str) -> Any:
    """The condition that a model's version is made of a run, a logged model, or what is at or below a place."""
    places = (VERSIONS.c.source, VERSIONS.c.storage_location)
    below = [place.startswith(f"{artifacts}/", autoescape=True) for place in places]
    made_of = sqlalchemy.or_(
        VERSIONS.c.run_id == name,
        *(place.in_([artifacts, f"models:/{name}"]) for place in places),
        *below,
    )
    return (VERSIONS.c.current_stage != STAGE_DELETED_INTERNAL) & made_of


def parts(repository: Any) -> list[str]:
    """Paths of the runs and logged models that have artifacts in an experiment."""
    found = [one.path for path in (None, "models") for one in repository.list_artifacts(path) if one.is_dir]
    return [path for path in found if path not in ("models", "traces")]


def collect(uri: str, destination: str, days: int, stamp: pathlib.Path) -> int:
    """Makes one pass, and leaves a stamp where all of it succeeded; returns how often it could not."""
    collector = Collector(uri, destination, days)
    collector.collect()
    found = collector.found
    unknown = found["unknown"]
    for path in unknown[:NAMED]:
        print(f"Nobody knows {destination}/{path}", flush=True)
    summary = {
        **found,
        "unknown": len(unknown),
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    print(f"Removed what was deleted {days} days ago: {json.dumps(summary)}", flush=True)
    if found["failed"]:
        print("More: docs/failures.md#deleted-runs-were-not-removed", flush=True)
    else:
        staged = stamp.with_suffix(".new")
        staged.write_text(json.dumps(summary))
        staged.replace(stamp)
    return int(found["failed"])
