"""Datasets, as a place that logs go to."""

from typing import Any

import pytest

from tests.unit.emulator.conftest import PROJECT
from tests.unit.emulator.test_logs import SINK, SINKS

DATASETS = f"https://bigquery.googleapis.com/bigquery/v2/projects/{PROJECT}/datasets"
DATASET: dict[str, Any] = {"datasetReference": {"datasetId": "logs"}, "location": "EU"}
OWNERS = {"role": "OWNER", "specialGroup": "projectOwners"}


@pytest.fixture(autouse=True)
def _enabled(cloud: Any) -> None:
    cloud.server.cloud.state.services[PROJECT].append("bigquery.googleapis.com")


def test_a_sink_may_write_to_it(cloud: Any) -> None:
    made = cloud.call("POST", DATASETS, DATASET)
    assert {entry["role"] for entry in made["access"]} == {"OWNER", "WRITER", "READER"}
    sink = SINK | {"destination": f"bigquery.googleapis.com/projects/{PROJECT}/datasets/logs"}
    options = {"bigqueryOptions": {"usePartitionedTables": True}}
    email = cloud.call("POST", f"{SINKS}?uniqueWriterIdentity=true", sink | options)["writerIdentity"]
    writer = {"role": "WRITER", "userByEmail": email.removeprefix("serviceAccount:")}
    changed = cloud.call("PATCH", f"{DATASETS}/logs", {"access": [OWNERS, writer]})
    assert changed["access"] == [OWNERS, writer]
    assert changed["etag"] != made["etag"]
    assert [one["id"] for one in cloud.call("GET", DATASETS)["datasets"]] == [f"{PROJECT}:logs"]
    cloud.call("DELETE", f"{DATASETS}/logs?deleteContents=true")
    assert cloud.refused("GET", f"{DATASETS}/logs")["code"] == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"datasetReference": {"datasetId": "my-logs"}},
        {"datasetReference": {"datasetId": "logs", "projectId": "other"}},
        {"location": "nowhere"},
        {"defaultPartitionExpirationMs": "1000"},
        {"access": []},
        {"access": [{"role": "OWNER"}]},
        {"access": [OWNERS, {"role": "KING", "specialGroup": "projectReaders"}]},
        {"access": [OWNERS, {"role": "READER", "specialGroup": "everybody"}]},
        {"access": [OWNERS, {"role": "WRITER", "userByEmail": "x@demo-project.iam.gserviceaccount.com"}]},
    ],
)
def test_a_dataset_that_is_wrong_is_refused(cloud: Any, changes: dict[str, Any]) -> None:
    assert cloud.refused("POST", DATASETS, DATASET | changes)["code"] == 400


def test_its_place_is_fixed_and_its_name_taken(cloud: Any, server_account: Any) -> None:
    cloud.call("POST", DATASETS, DATASET)
    assert cloud.refused("POST", DATASETS, DATASET)["code"] == 409
    assert cloud.refused("PATCH", f"{DATASETS}/logs", {"location": "US"})["code"] == 400
    assert cloud.refused("DELETE", f"{DATASETS}/logs", session=server_account)["code"] == 403
