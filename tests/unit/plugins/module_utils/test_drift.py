from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Node
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.drift import Comparison, Difference, Rules, mask
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import KINDS
from hypothesis import given
from hypothesis import strategies as st


def comparison(kind: str) -> Comparison:
    row = KINDS[kind]
    return Comparison(Node.of(row.api, row.schema), row.rules, "demo")


def differences(kind: str, wanted: dict, actual: dict) -> list[Difference]:
    return comparison(kind).differences(wanted, actual)


@pytest.mark.parametrize(
    ("kind", "wanted", "actual"),
    [
        ("compute.networks", {}, {"mtu": 1460}),
        ("compute.networks", {"mtu": None}, {}),
        ("compute.networks", {"autoCreateSubnetworks": False}, {}),
        ("sqladmin.instances", {"settings": {"storageAutoResizeLimit": "0"}}, {"settings": {}}),
        (
            "sqladmin.instances",
            {"settings": {"storageAutoResizeLimit": None}},
            {"settings": {"storageAutoResizeLimit": "0"}},
        ),
        ("compute.networks", {"routingConfig": {"routingMode": None}}, {"routingConfig": {}}),
        (
            "compute.subnetworks",
            {"network": "global/networks/a"},
            {"network": "https://www.googleapis.com/compute/v1/projects/demo/global/networks/a"},
        ),
        (
            "compute.subnetworks",
            {"network": "projects/demo/global/networks/a"},
            {"network": "https://compute.googleapis.com/compute/v1/projects/demo/global/networks/a"},
        ),
        ("compute.firewalls", {"sourceRanges": ["1.1.1.1", "2.2.2.2"]}, {"sourceRanges": ["2.2.2.2", "1.1.1.1"]}),
        (
            "compute.firewalls",
            {"allowed": [{"IPProtocol": "tcp", "ports": ["80", "443"]}, {"IPProtocol": "udp"}]},
            {"allowed": [{"IPProtocol": "udp"}, {"IPProtocol": "tcp", "ports": ["443", "80"]}]},
        ),
        ("compute.routers", {"nats": [{"name": "a"}]}, {"nats": [{"name": "a", "type": "PUBLIC"}]}),
        (
            "compute.instances",
            {"disks": [{"boot": True, "initializeParams": {"diskSizeGb": "50"}}]},
            {"disks": [{"boot": True, "source": "projects/demo/zones/z/disks/d", "diskSizeGb": "50"}]},
        ),
        (
            "compute.instances",
            {"metadata": {"items": [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}]}},
            {"metadata": {"fingerprint": "f", "items": [{"key": "b", "value": "2"}, {"key": "a", "value": "1"}]}},
        ),
        ("sqladmin.instances", {"settings": {"dataDiskSizeGb": "10"}}, {"settings": {"dataDiskSizeGb": "25"}}),
        ("storage.buckets", {"location": "europe-west1"}, {"location": "EUROPE-WEST1"}),
        (
            "storage.buckets",
            {"softDeletePolicy": {"retentionDurationSeconds": "604800"}},
            {"softDeletePolicy": {"retentionDurationSeconds": 604800}},
        ),
        ("secretmanager.secrets", {"versionDestroyTtl": "86400s"}, {"versionDestroyTtl": "86400.000s"}),
        ("secretmanager.secrets", {"ttl": "60s"}, {"expireTime": "2030-01-01T00:00:00Z"}),
    ],
)
def test_the_same_thing_spelled_otherwise_is_no_drift(kind, wanted, actual):
    assert differences(kind, wanted, actual) == []


@pytest.mark.parametrize(
    ("kind", "wanted", "actual", "field"),
    [
        (
            "compute.firewalls",
            {"sourceRanges": ["1.1.1.1"]},
            {"sourceRanges": ["1.1.1.1", "0.0.0.0/0"]},
            "sourceRanges",
        ),
        ("compute.firewalls", {"sourceRanges": []}, {"sourceRanges": ["0.0.0.0/0"]}, "sourceRanges"),
        (
            "compute.networks",
            {"autoCreateSubnetworks": False},
            {"autoCreateSubnetworks": True},
            "autoCreateSubnetworks",
        ),
        ("compute.networks", {"autoCreateSubnetworks": True}, {}, "autoCreateSubnetworks"),
        ("compute.networks", {"mtu": 1}, {"mtu": True}, "mtu"),
        (
            "compute.subnetworks",
            {"network": "projects/a/global/networks/n"},
            {"network": "global/networks/n"},
            "network",
        ),
        (
            "compute.routers",
            {"nats": [{"name": "a", "logConfig": {"enable": True}}]},
            {"nats": [{"name": "a", "logConfig": {"enable": False}}]},
            "nats[a].logConfig.enable",
        ),
        ("compute.routers", {"nats": [{"name": "a"}]}, {"nats": [{"name": "a"}, {"name": "b"}]}, "nats[b]"),
        ("compute.routers", {"nats": [{"name": "a"}, {"name": "b"}]}, {"nats": [{"name": "a"}]}, "nats[b]"),
        (
            "compute.instances",
            {"networkInterfaces": [{"accessConfigs": [{"natIP": "1.1.1.1"}]}]},
            {"networkInterfaces": [{"name": "nic0", "accessConfigs": [{"natIP": "2.2.2.2"}]}]},
            "networkInterfaces[0].accessConfigs[0].natIP",
        ),
        (
            "compute.instances",
            {"networkInterfaces": [{"accessConfigs": [{"natIP": "1.1.1.1"}]}]},
            {"networkInterfaces": [{"name": "nic0"}]},
            "networkInterfaces[0].accessConfigs",
        ),
        (
            "sqladmin.instances",
            {"settings": {"dataDiskSizeGb": "30"}},
            {"settings": {"dataDiskSizeGb": "25"}},
            "settings.dataDiskSizeGb",
        ),
        (
            "sqladmin.instances",
            {"settings": {"ipConfiguration": {"ipv4Enabled": False}}},
            {"settings": {"ipConfiguration": {"ipv4Enabled": True}}},
            "settings.ipConfiguration.ipv4Enabled",
        ),
        # A rule that lost `isLive: false` deletes live objects.
        (
            "storage.buckets",
            {"lifecycle": {"rule": [{"action": {"type": "Delete"}, "condition": {"age": 1, "isLive": False}}]}},
            {"lifecycle": {"rule": [{"action": {"type": "Delete"}, "condition": {"age": 1}}]}},
            "lifecycle.rule",
        ),
        (
            "storage.buckets",
            {"cors": [{"maxAgeSeconds": 1}, {"maxAgeSeconds": 2}]},
            {"cors": [{"maxAgeSeconds": 2}, {"maxAgeSeconds": 1}]},
            "cors",
        ),
        ("storage.buckets", {"labels": {"a": None}}, {"labels": {"a": "b"}}, "labels.a"),
        ("storage.buckets", {"lifecycle": None}, {"lifecycle": {"rule": [{}]}}, "lifecycle"),
    ],
)
def test_drift_is_seen_and_named(kind, wanted, actual, field):
    assert [difference.field for difference in differences(kind, wanted, actual)] == [field]


def test_a_difference_tells_before_and_after():
    found = differences(
        "compute.networks", {"routingConfig": {"routingMode": "GLOBAL"}}, {"routingConfig": {"routingMode": "REGIONAL"}}
    )
    assert found == [Difference("routingConfig.routingMode", "REGIONAL", "GLOBAL")]


def test_changes_hold_no_more_than_the_drift():
    wanted = {"settings": {"tier": "b", "edition": "ENTERPRISE", "userLabels": {"gone": None, "kept": "1"}}}
    actual = {
        "settings": {"tier": "a", "edition": "ENTERPRISE", "userLabels": {"gone": "1", "kept": "1", "other": "1"}}
    }
    changes = comparison("sqladmin.instances").changes(wanted, actual)
    assert changes == {"settings": {"tier": "b", "userLabels": {"gone": None}}}


def test_a_changed_keyed_list_keeps_what_was_not_stated():
    wanted = {"nats": [{"name": "a", "minPortsPerVm": 64}]}
    actual = {"nats": [{"name": "a", "minPortsPerVm": 32, "type": "PUBLIC"}]}
    changes = comparison("compute.routers").changes(wanted, actual)
    assert changes == {"nats": [{"name": "a", "minPortsPerVm": 64, "type": "PUBLIC"}]}


def test_an_empty_list_is_laid_over_an_absent_one():
    assert comparison("compute.instances").merged({"disks": []}, {}) == {"disks": []}


def test_a_null_in_a_new_element_is_not_sent():
    wanted = {"secondaryIpRanges": [{"rangeName": "a", "ipCidrRange": None}]}
    assert comparison("compute.subnetworks").merged(wanted, {}) == {"secondaryIpRanges": [{"rangeName": "a"}]}


def test_a_least_size_can_be_unset():
    compare = comparison("sqladmin.instances")
    wanted, actual = ({"settings": {"dataDiskSizeGb": size}} for size in (None, "25"))
    assert compare.changes(wanted, actual) == wanted


def test_secrets_are_masked_wherever_they_are():
    value = {"rootPassword": "x", "disks": [{"diskEncryptionKey": {"rawKey": "y", "sha256": "z"}}], "password": None}
    assert mask(value) == {
        "rootPassword": "VALUE_NOT_SHOWN",
        "disks": [{"diskEncryptionKey": {"rawKey": "VALUE_NOT_SHOWN", "sha256": "z"}}],
        "password": None,
    }


NAMES = st.sampled_from("abcd")
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "x", "global/networks/n", "5"])
KEYED = st.lists(st.fixed_dictionaries({"key": NAMES}, optional={"value": SCALARS}), unique_by=lambda e: e["key"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
# `keyed`, `set` and `list` hold lists always, as a schema would have it.
RESOURCES = st.fixed_dictionaries(
    {},
    optional={
        "plain": st.dictionaries(NAMES, SCALARS, max_size=4),
        "nested": st.dictionaries(NAMES, st.dictionaries(NAMES, SCALARS, max_size=3), max_size=3),
        "scalar": SCALARS,
        "list": st.lists(VALUES, max_size=3),
        "keyed": KEYED,
        "set": st.lists(st.sampled_from(["x", "y", "z"]), max_size=3),
        "secret": st.text(max_size=3),
    },
)
GENERAL = Comparison(
    Node("compute.v1", {}),
    Rules(keyed={"keyed": "key"}, sets=frozenset({"set"}), write_only=frozenset({"secret"})),
    "demo",
)


@given(RESOURCES)
def test_nothing_differs_from_itself(resource):
    assert GENERAL.differences(resource, resource) == []


@given(RESOURCES, RESOURCES)
def test_what_is_brought_to_the_wanted_shape_has_no_drift(wanted, actual):
    assert GENERAL.differences(wanted, GENERAL.merged(wanted, actual)) == []


@given(RESOURCES, RESOURCES)
def test_a_merge_patch_of_the_changes_leaves_no_drift(wanted, actual):
    assert GENERAL.differences(wanted, merge_patch(actual, GENERAL.changes(wanted, actual))) == []


@given(RESOURCES, RESOURCES)
def test_there_are_changes_exactly_when_there_is_drift(wanted, actual):
    assert bool(GENERAL.changes(wanted, actual)) == bool(GENERAL.differences(wanted, actual))


@given(RESOURCES, RESOURCES)
def test_fields_that_are_not_stated_stay(wanted, actual):
    merged = GENERAL.merged(wanted, actual)
    assert {k: v for k, v in merged.items() if k not in wanted} == {k: v for k, v in actual.items() if k not in wanted}


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396, as Google's APIs apply a patch."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged
