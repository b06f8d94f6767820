from __future__ import annotations

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.operations import wait
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError

ZONE = "https://www.googleapis.com/compute/v1/projects/demo/zones/europe-west1-b"
REGION = "https://www.googleapis.com/compute/v1/projects/demo/regions/europe-west1"


@pytest.mark.parametrize(
    ("api", "operation", "path"),
    [
        ("compute.v1", {"zone": ZONE}, "/compute/v1/projects/demo/zones/europe-west1-b/operations/o/wait"),
        ("compute.v1", {"region": REGION}, "/compute/v1/projects/demo/regions/europe-west1/operations/o/wait"),
        ("compute.v1", {}, "/compute/v1/projects/demo/global/operations/o/wait"),
        ("sqladmin.v1", {}, "/v1/projects/demo/operations/o"),
    ],
)
def test_it_is_asked_where_it_runs(cloud, google, api, operation, path):
    wait(cloud, api, {"name": "o", "status": "RUNNING", **operation}, "Making a")
    assert [call.path for call in google.calls] == [path]


@pytest.mark.parametrize("api", ["serviceusage.v1", "servicenetworking.v1"])
def test_a_long_running_operation_has_its_name_in_the_url(cloud, google, api):
    wait(cloud, api, {"name": "operations/acf.1"}, "Enabling a")
    assert [call.path for call in google.calls] == ["/v1/operations/acf.1"]


def test_what_is_done_already_is_not_asked_for(cloud, google):
    wait(cloud, "serviceusage.v1", {"name": "operations/noop.DONE_OPERATION", "done": True}, "Enabling a")
    assert google.calls == []


@pytest.mark.parametrize(
    ("api", "error"),
    [
        ("compute.v1", {"errors": [{"code": "QUOTA_EXCEEDED", "message": "Quota exceeded."}]}),
        ("sqladmin.v1", {"errors": [{"code": "QUOTA_EXCEEDED", "message": "Quota exceeded."}]}),
        ("servicenetworking.v1", {"code": 9, "message": "Quota exceeded."}),
    ],
)
def test_a_failed_operation_is_told_in_googles_words(cloud, api, error):
    with pytest.raises(CloudError, match=r"Making a: Quota exceeded\."):
        wait(cloud, api, {"name": "o", "status": "DONE", "done": True, "error": error}, "Making a")


def test_waiting_ends_with_what_to_do(cloud, google, clock):
    google.special["/operations/"] = lambda _: {"name": "o", "status": "RUNNING"}
    with pytest.raises(CloudError, match=r"Making a: not done after 60 s .*timeout_seconds"):
        wait(cloud, "sqladmin.v1", {"name": "o", "status": "PENDING"}, "Making a")
    assert 60 < clock.now < 70
