from __future__ import annotations

import base64

import pytest
import requests
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import PartialError
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.secret import ALPHABET, REPLACES, ensure_secrets
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError

SECRET = "/v1/projects/demo/secrets/a"
GENERATED = {"name": "a", "generate": {"length": 24, "alphabet": ALPHABET}}


@pytest.fixture
def versions(google):
    """Values of the versions, oldest first; a state in the place of a value for those that have none."""
    values: list[str] = []

    def listed(_):
        return {
            "versions": [
                {"name": f"{SECRET[4:]}/versions/{n}", "state": v if v in {"DISABLED", "DESTROYED"} else "ENABLED"}
                for n, v in reversed(list(enumerate(values, 1)))
            ]
        }

    def add(call):
        values.append(base64.b64decode(call.body["payload"]["data"]).decode())
        return {"name": f"{SECRET[4:]}/versions/{len(values)}"}

    def disable(call):
        values[int(call.path.removesuffix(":disable").rsplit("/", 1)[1]) - 1] = "DISABLED"
        return {}

    def access(call):
        number = int(call.path.removesuffix(":access").rsplit("/", 1)[1])
        return {"payload": {"data": base64.b64encode(values[number - 1].encode()).decode()}}

    google.special[":addVersion$"] = add
    google.special[":disable$"] = disable
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


@pytest.mark.parametrize("state", ["DISABLED", "DESTROYED"])
def test_a_latest_version_that_nobody_can_read_is_not_replaced_in_silence(cloud, google, versions, state):
    google.store[SECRET] = {}
    versions += ["value", state]
    with pytest.raises(PartialError, match=f"secret a: its latest version 2 is {state.lower()}"):
        ensure_secrets(cloud, [GENERATED])
    assert google.written() == []


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


BEGIN = {**GENERATED, "rotation": "begin"}


def end(used_version):
    return {**GENERATED, "rotation": "end", "used_version": used_version}


@pytest.fixture
def rotatable(google, versions):
    """A secret with a version disabled long ago, and the one in use; returns the versions."""
    secret = google.store[SECRET] = {"annotations": {"other": "1"}, "etag": "e"}

    def secret_call(call):
        if call.verb == "PATCH":
            # A map that the mask names is replaced whole.
            assert (call.query["updateMask"], call.body["etag"]) == ("annotations", "e")
            secret["annotations"] = call.body["annotations"]
        return secret

    google.special[f"{SECRET}$"] = secret_call
    versions += ["DISABLED", "second"]
    return versions


def test_the_old_versions_of_every_page_are_disabled(cloud, google, versions):
    google.store[SECRET] = {}
    versions += ["x", "y", "z"]
    listed = google.special["/versions$"]

    def page(call):
        number = int(call.query.get("pageToken", 0))
        rest = {"nextPageToken": str(number + 1)} if number < 2 else {}
        return {"versions": listed(call)["versions"][number : number + 1], **rest}

    google.special["/versions$"] = page
    ensure_secrets(cloud, [end("3")])
    assert versions == ["DISABLED", "DISABLED", "z"]


def test_a_rotation_makes_one_version_until_it_ends_then_another(cloud, google, rotatable):
    for is_new in (True, False, False):
        (member,) = ensure_secrets(cloud, [BEGIN])["secrets"]
        assert (member["changed"], member["version"], member["replaces"]) == (is_new, "3", "2")
    assert google.store[SECRET]["annotations"] == {"other": "1", REPLACES: "2"}
    assert len(rotatable) == 3

    for is_changed in (True, False):
        assert ensure_secrets(cloud, [end("3")])["changed"] is is_changed
    assert rotatable[:2] == ["DISABLED", "DISABLED"]
    assert google.store[SECRET]["annotations"] == {"other": "1"}
    assert not any(call.path.endswith((":access", ":destroy")) for call in google.calls)

    assert ensure_secrets(cloud, [BEGIN])["secrets"][0]["version"] == "4"
    assert len(rotatable) == 4


def test_no_value_of_a_rotation_is_shown(cloud, rotatable):
    begun = ensure_secrets(cloud, [BEGIN])
    new = rotatable[-1]
    assert begun["diff"][0]["before"] == {"version": "version 2"}
    ended = ensure_secrets(cloud, [end("3")])
    assert [one["field"] for one in ended["secrets"][0]["differences"]] == ["versions.2", f"annotations.{REPLACES}"]
    for told in (begun, ended):
        assert new not in repr(told)
        assert "second" not in repr(told)


def test_a_rotation_takes_several_enabled_versions_for_old_and_not_for_its_own(cloud, rotatable):
    rotatable.append("added by hand")
    assert ensure_secrets(cloud, [BEGIN])["secrets"][0]["replaces"] == "3"
    ensure_secrets(cloud, [end("4")])
    assert rotatable[:3] == ["DISABLED"] * 3


@pytest.mark.parametrize("noted", [False, True])
def test_a_check_of_a_rotation_writes_nothing(checking, google, rotatable, noted):
    if noted:
        google.store[SECRET]["annotations"][REPLACES] = "2"
    result = ensure_secrets(checking, [BEGIN])
    assert (result["changed"], result["secrets"][0]["version"]) == (True, "2")
    assert ensure_secrets(checking, [end("2")])["changed"] is noted
    assert google.written() == []


@pytest.mark.parametrize(
    ("verb", "path", "lands"),
    [
        ("PATCH", f"{SECRET}$", False),
        ("PATCH", f"{SECRET}$", True),
        ("POST", ":addVersion", False),
        ("POST", ":addVersion", True),
        ("POST", ":disable", False),
        ("POST", ":disable", True),
    ],
)
def test_a_call_of_a_rotation_without_an_answer_is_read_back(cloud, google, rotatable, fault, verb, path, lands):
    google.faults.append(fault(verb, path, raises=requests.ConnectionError("reset"), lands=lands))
    assert ensure_secrets(cloud, [BEGIN])["changed"] is True
    google.faults.append(fault(verb, path, raises=requests.ConnectionError("reset"), lands=lands))
    assert ensure_secrets(cloud, [end("3")])["changed"] is True
    assert [value == "DISABLED" for value in rotatable] == [True, True, False]
    assert google.store[SECRET]["annotations"] == {"other": "1"}


def test_who_was_slower_joins_the_rotation_of_the_faster(cloud, google, rotatable, fault):
    stale = fault("PATCH", f"{SECRET}$", 400, "FAILED_PRECONDITION", "The etag does not match.", lands=True)
    google.faults.append(stale)
    answered = google.request

    def request(verb, url, **arguments):
        response = answered(verb, url, **arguments)
        if verb == "PATCH" and response.status_code == 400:
            rotatable.append("third")
        return response

    google.request = request
    (member,) = ensure_secrets(cloud, [BEGIN])["secrets"]
    assert (member["version"], member["replaces"]) == ("3", "2")
    assert rotatable[2:] == ["third"]


def test_a_version_that_is_not_the_latest_ends_nothing(cloud, google, rotatable):
    ensure_secrets(cloud, [BEGIN])
    rotatable.append("added by hand")
    with pytest.raises(PartialError, match=r"version 3 is in use, the latest is 4 ENABLED\. No version was disabled"):
        ensure_secrets(cloud, [end("3")])
    assert rotatable.count("DISABLED") == 1


def test_a_secret_without_a_version_gets_its_first_by_a_rotation(cloud, google, versions):
    (member,) = ensure_secrets(cloud, [BEGIN])["secrets"]
    assert member["changed"] is True
    assert (member["version"], member["replaces"], len(versions)) == ("1", "", 1)
    with pytest.raises(PartialError, match="secret b: does not exist"):
        ensure_secrets(cloud, [{**end("1"), "name": "b"}])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "a", "value": "x", "rotation": "begin"}, "rotation makes a value of its own"),
        ({**GENERATED, "rotation": "end"}, "rotation end needs used_version"),
    ],
)
def test_a_rotation_that_cannot_be_is_refused_before_the_first_call(cloud, google, wrong, message):
    with pytest.raises(CloudError, match=message):
        ensure_secrets(cloud, [wrong])
    assert google.calls == []
