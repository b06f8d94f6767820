from __future__ import annotations

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Node, method, validate


def checked(api: str, schema: str, body: dict) -> tuple[dict, list[str]]:
    problems: list[str] = []
    return validate(Node.of(api, schema), body, "", problems), problems


def test_urls_come_from_the_documents():
    get = method("compute.v1", "subnetworks", "get")
    url = get.url({"project": "demo", "region": "europe-west1", "subnetwork": "a"})
    assert url == "https://compute.googleapis.com/compute/v1/projects/demo/regions/europe-west1/subnetworks/a"
    assert get.verb == "GET"


def test_whole_names_keep_their_slashes():
    get = method("secretmanager.v1", "projects.secrets", "get")
    assert get.url({"+name": "projects/demo/secrets/a"}).endswith("/v1/projects/demo/secrets/a")


def test_plain_names_do_not_escape_their_place():
    get = method("storage.v1", "buckets", "get")
    assert get.url({"bucket": "a?b#c"}).endswith("/b/a%3Fb%23c")


@pytest.mark.parametrize(
    ("collection", "name", "is_repeatable"),
    [
        ("compute.v1 networks", "get", True),
        ("compute.v1 networks", "insert", True),
        ("compute.v1 globalAddresses", "setLabels", False),
        ("sqladmin.v1 instances", "insert", False),
        ("iam.v1 projects.serviceAccounts", "getIamPolicy", True),
        ("iam.v1 projects.serviceAccounts", "setIamPolicy", False),
    ],
)
def test_only_requests_that_google_recognises_are_repeatable(collection, name, is_repeatable):
    assert method(*collection.split(), name).repeatable is is_repeatable


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"autoCreateSubnetwork": True}, "autoCreateSubnetwork: no such field; did you mean autoCreateSubnetworks?"),
        ({"autoCreateSubnetworks": "yes"}, "autoCreateSubnetworks: 'yes' is not of the type boolean"),
        ({"mtu": True}, "mtu: True is not of the type integer"),
        ({"description": 1}, "description: 1 is not of the type string; write it in quotes"),
        ({"routingConfig": []}, "routingConfig: [] is not of the type object"),
        (
            {"routingConfig": {"routingMode": "REGONAL"}},
            "routingConfig.routingMode: 'REGONAL' is not one of its values; did you mean REGIONAL?",
        ),
        ({"selfLink": "x"}, "selfLink: is set by Google, leave it out"),
        ({"name": "UPPER"}, "name: 'UPPER' does not match [a-z](?:[-a-z0-9]{0,61}[a-z0-9])?"),
    ],
)
def test_a_wrong_field_is_named_with_what_to_write(body, problem):
    assert checked("compute.v1", "Network", body)[1] == [problem]


def test_problems_in_lists_carry_their_position():
    _, problems = checked("compute.v1", "Instance", {"tags": {"items": ["fine", "Wrong"]}})
    assert problems == ["tags.items[1]: 'Wrong' does not match [a-z](?:[-a-z0-9]{0,61}[a-z0-9])?"]


def test_all_problems_are_found_at_once():
    assert len(checked("compute.v1", "Network", {"a": 1, "mtu": "x", "routingConfig": {"b": 1}})[1]) == 3


def test_64_bit_integers_travel_as_text():
    body, problems = checked("sqladmin.v1", "DatabaseInstance", {"settings": {"dataDiskSizeGb": 10}})
    assert (body, problems) == ({"settings": {"dataDiskSizeGb": "10"}}, [])


def test_text_that_is_no_number_is_refused_for_64_bit_integers():
    _, problems = checked("sqladmin.v1", "DatabaseInstance", {"settings": {"dataDiskSizeGb": "ten"}})
    assert problems == ["settings.dataDiskSizeGb: 'ten' is not a whole number"]


def test_null_is_allowed_everywhere_and_labels_take_any_key():
    body = {"labels": {"a-b": "c"}, "versioning": None}
    assert checked("storage.v1", "Bucket", body) == (body, [])


def test_label_values_are_text():
    assert checked("storage.v1", "Bucket", {"labels": {"a": 1}})[1] == [
        "labels.a: 1 is not of the type string; write it in quotes"
    ]
