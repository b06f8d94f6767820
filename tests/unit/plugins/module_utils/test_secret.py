from __future__ import annotations

import base64

import pytest
import requests
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import PartialError
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.secret import ALPHABET, ensure_secrets
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError

SECRET = "/v1/projects/demo/secrets/a"
GENERATED = {"name": "a", "generate": {"length": 24, "alphabet": ALPHABET}}


@pytest.fixture
def versions(google):
    """Values of the versions, oldest first; a state in the place of a value for those that have none."""
    values: list[str] = []

    def listed(_):
        newest_first = reversed(list(enumerate(values, 1)))
        return {
            "versions": [
                {"name": f"{SECRET[4:]}/versions/{n}", "state": v if v in {"DISABLED", "DESTROYED"} else "ENABLED"}
                for n, v in newest_first
            ]
        }

    def access(call):
        number = int(call.path.removesuffix(":access").rsplit("/", 1)[1])
        return {"payload": {"data": base64.b64encode(values[number - 1].encode()).decode()}}

    google.special[":addVersion$"] = lambda call: (
        values.append(base64.b64decode(call.body["payload"]["data"]).decode()) or {}
    )
    google.special["/versions$"] = listed
    google.special[":access$"] = access
    return values


def test_a_value_is_generated_once(cloud, google, versions):
    first = ensure_secrets(cloud, [{**GENERATED, "labels": {"a": "b"}}])
    assert first["changed"] is True
    assert len(versions) == 1
    assert len(versions[0]) == 24
    assert set(versions[0]) <= set(ALPHABET)
    assert google.store[SECRET] == {"replication": {"automatic": {}}, "labels": {"a": "b"}}
    assert versions[0] not in repr(first)
    assert ensure_secrets(cloud, [{**GENERATED, "labels": {"a": "b"}}])["changed"] is False
    assert len(versions) == 1
    assert not any(call.path.endswith(":access") for call in google.calls)


def test_two_generated_values_differ(cloud, google, versions):
    google.special["/secrets$"] = lambda _: {}
    ensure_secrets(cloud, [GENERATED, {**GENERATED, "name": "b"}])
    assert versions[0] != versions[1]


@pytest.mark.parametrize("left_behind", [[], ["DESTROYED"]])
def test_a_secret_without_a_version_gets_one(cloud, google, versions, left_behind):
    google.store[SECRET] = {}
    versions += left_behind
    assert ensure_secrets(cloud, [GENERATED])["secrets"][0]["differences"] == [
        {"field": "version", "before": None, "after": "generated"}
    ]
    assert len(versions) == len(left_behind) + 1


def test_a_given_value_adds_a_version_only_when_it_differs(cloud, versions):
    changed = [ensure_secrets(cloud, [{"name": "a", "value": value}])["changed"] for value in ("x", "x", "y", "y")]
    assert changed == [True, False, True, False]
    assert versions == ["x", "y"]


def test_no_value_is_shown(cloud, versions):
    ensure_secrets(cloud, [{"name": "a", "value": "hunter2-old"}])
    assert versions == ["hunter2-old"]
    result = ensure_secrets(cloud, [{"name": "a", "value": "hunter2-new"}])
    assert "hunter2" not in repr(result)
    assert result["diff"][0]["before"] == {"version": "version 1, another value"}


@pytest.mark.parametrize("exists", [True, False])
def test_check_mode_predicts_and_writes_nothing(checking, google, versions, exists):
    if exists:
        google.store[SECRET] = {}
    result = ensure_secrets(checking, [GENERATED])
    assert result["changed"] is True
    assert google.written() == []
    assert versions == []


def test_a_disabled_latest_version_is_not_replaced_in_silence(cloud, google, versions):
    google.store[SECRET] = {}
    versions.append("DISABLED")
    with pytest.raises(PartialError, match="secret a: its latest version 1 is disabled"):
        ensure_secrets(cloud, [GENERATED])


def test_labels_are_kept_up(cloud, google, versions):
    google.store[SECRET] = {"labels": {"other": "1"}, "etag": "e"}
    versions.append("x")
    result = ensure_secrets(cloud, [{**GENERATED, "labels": {"a": "b"}}])
    assert result["secrets"][0]["differences"] == [{"field": "labels.a", "before": None, "after": "b"}]
    assert google.store[SECRET]["labels"] == {"other": "1", "a": "b"}


def test_an_addition_without_an_answer_is_not_made_twice(cloud, google, versions, fault):
    google.faults.append(fault("POST", ":addVersion", raises=requests.ConnectionError("reset"), lands=True))
    assert ensure_secrets(cloud, [GENERATED])["changed"] is True
    assert len(versions) == 1


def test_an_addition_that_did_not_land_is_made_again(cloud, google, versions, fault):
    google.faults.append(fault("POST", ":addVersion", 503))
    ensure_secrets(cloud, [GENERATED])
    assert len(versions) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "a", "value": ""}, "secret a: value is empty"),
        ({"name": "a", "generate": {"length": 8, "alphabet": ALPHABET}}, "generate.length is 8, write 16 or more"),
        ({"name": "a", "generate": {"length": 20, "alphabet": "ab"}}, "generate.alphabet has fewer than 16"),
        ({"name": "a", "value": "x", "labels": {"a": 1}}, "labels.a: 1 is not of the type string"),
    ],
)
def test_wrong_input_is_refused_before_the_first_call(cloud, google, wrong, message):
    with pytest.raises(CloudError, match=message):
        ensure_secrets(cloud, [GENERATED, wrong])
    assert google.calls == []
