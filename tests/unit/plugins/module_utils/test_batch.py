from __future__ import annotations

import time

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.batch import Batch, ensure_all
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.reference import among
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import PartialError
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Wanted, resource_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError

COMPUTE = "/compute/v1/projects/demo"
NETWORK_LINK = "projects/demo/global/networks/n"
NETWORK = Wanted("compute.networks", "n", body={"autoCreateSubnetworks": False})
SUBNETWORK = Wanted("compute.subnetworks", "s", "r", body={"network": NETWORK_LINK, "ipCidrRange": "10.0.0.0/24"})
ADDRESS = Wanted("compute.addresses", "a", "r", body={"addressType": "EXTERNAL"})
BUCKET = Wanted("storage.buckets", "b", body={})
INTERFACE = {
    "subnetwork": "projects/demo/regions/r/subnetworks/s",
    "accessConfigs": [{"natIP": "projects/demo/regions/r/addresses/a"}],
}
VM = Wanted("compute.instances", "v", "z", body={"networkInterfaces": [INTERFACE]})


def order(cloud, wanted, present=()):
    """Names in the order of their dependencies."""
    batch = Batch(cloud, [resource_of(cloud, one) for one in wanted])
    batch.state = {resource: dict(present).get(resource.wanted.name) for resource in batch.resources}
    needs = batch.dependencies()
    done: list = []
    while len(done) < len(needs):
        done += [resource for resource in needs if resource not in done and needs[resource] <= set(done)]
    return [resource.wanted.name for resource in done]


def absent(wanted: Wanted) -> Wanted:
    return Wanted(wanted.kind, wanted.name, wanted.location, wanted.parent, state="absent")


def test_what_is_referred_to_comes_first(cloud, google):
    google.special["/addresses$"] = lambda call: (
        google.store.update({f"{COMPUTE}/regions/r/addresses/a": {**call.body, "address": "203.0.113.9"}})
        or {"name": "o", "status": "DONE"}
    )
    result = ensure_all(cloud, [VM, SUBNETWORK, ADDRESS, NETWORK])
    created = [call.body["name"] for call in google.written()]
    assert created.index("n") < created.index("s") < created.index("v")
    assert created.index("a") < created.index("v")
    assert google.store[f"{COMPUTE}/zones/z/instances/v"]["networkInterfaces"][0]["accessConfigs"] == [
        {"natIP": "203.0.113.9"}
    ]
    assert [member["name"] for member in result["resources"]] == ["v", "s", "a", "n"]


LABELLED = Wanted(
    "compute.networks",
    "n",
    body={"description": "reached at $(ref.compute.addresses/a:address), $(ref.compute.addresses/a:id)"},
)


def test_what_google_chose_is_known_to_those_that_refer_to_it(cloud, google, checking):
    chosen = {"name": "a", "addressType": "EXTERNAL", "address": "203.0.113.9"}
    google.special["/addresses$"] = lambda call: (
        google.store.update({f"{COMPUTE}/regions/r/addresses/a": chosen}) or {"name": "o", "status": "DONE"}
    )
    batch = [LABELLED, ADDRESS]
    (foretold, _) = ensure_all(checking, batch)["resources"]
    assert foretold["resource"]["description"] == "reached at (known after create), (known after create)"

    ensure_all(cloud, batch)

    assert [call.body["name"] for call in google.written()] == ["a", "n"]
    assert google.store[f"{COMPUTE}/global/networks/n"]["description"] == "reached at 203.0.113.9, a"
    assert ensure_all(cloud, batch)["changed"] is False
    google.store[f"{COMPUTE}/regions/r/addresses/a"]["address"] = "203.0.113.10"
    (foretold, _) = ensure_all(checking, [Wanted("compute.routers", "x", "r", body=LABELLED.body), ADDRESS])[
        "resources"
    ]
    assert foretold["resource"]["description"] == "reached at 203.0.113.10, a"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("$(ref.compute.addresses/b:address)", "refers to compute.addresses b, which the batch has not"),
        ("$(ref.compute.addresses/a:address)", "refers to compute.addresses a, which the batch has more than once"),
        ("$(ref.compute.addresses/gone:address)", "refers to compute.addresses gone, which the batch has not"),
    ],
)
def test_a_reference_to_what_is_not_there_once_is_refused_before_any_call(cloud, google, text, problem):
    twice = [ADDRESS, Wanted("compute.addresses", "a", "other", body={})]
    twice.append(Wanted("compute.addresses", "gone", "r", state="absent"))
    network = Wanted("compute.networks", "n", body={"description": text})
    with pytest.raises(CloudError, match=f"compute.networks n: {problem}"):
        ensure_all(cloud, [network, *twice])
    policies = [{"resource": {"kind": "project"}, "bindings": [{"role": "roles/a", "members": [text]}]}]
    with pytest.raises(CloudError, match=f"IAM policies: {problem}"):
        ensure_all(cloud, twice, policies)
    assert google.calls == []


def test_a_reference_to_a_field_that_is_not_there_is_refused(cloud, google):
    network = Wanted("compute.networks", "n", body={"description": "$(ref.compute.addresses/a:nothing)"})
    with pytest.raises(PartialError, match=r"ref.compute.addresses/a:nothing.*has no text of this name"):
        ensure_all(cloud, [network, ADDRESS])
    assert f"{COMPUTE}/global/networks/n" not in google.store


def test_nobody_is_sent_the_placeholder_of_what_google_does_not_show_yet():
    made = {"kind": "compute.addresses", "name": "a", "action": "create", "resource": None}
    assert among([made], check_mode=True)("compute.addresses", "a") is None
    with pytest.raises(CloudError, match=r"does not show compute\.addresses a yet"):
        among([made], check_mode=False)("compute.addresses", "a")


def test_those_that_refer_in_a_circle_are_refused(cloud, google):
    first = Wanted("compute.networks", "n", body={"description": "$(ref.compute.networks/m:name)"})
    then = Wanted("compute.networks", "m", body={"description": "$(ref.compute.networks/n:name)"})
    with pytest.raises(CloudError, match="refer to each other in a circle"):
        ensure_all(cloud, [first, then])
    assert google.written() == []


def test_what_refers_goes_first_when_both_go(cloud):
    present = {"n": {"subnetworks": ["projects/demo/regions/r/subnetworks/s"]}, "s": {"network": NETWORK_LINK}}
    assert order(cloud, [absent(NETWORK), absent(SUBNETWORK)], present) == ["s", "n"]


def test_an_address_goes_after_the_instance_that_uses_it(cloud):
    user = "https://www.googleapis.com/compute/v1/projects/demo/zones/z/instances/v"
    present = {"a": {"users": [user]}, "v": {"networkInterfaces": [{"accessConfigs": [{"natIP": "203.0.113.9"}]}]}}
    assert order(cloud, [absent(ADDRESS), absent(VM)], present) == ["v", "a"]


def test_one_that_goes_waits_for_those_that_stop_referring(cloud):
    vm = Wanted("compute.instances", "v", "z", body={"networkInterfaces": []})
    present = {"v": {"networkInterfaces": [INTERFACE]}}
    assert order(cloud, [absent(ADDRESS), vm], present) == ["v", "a"]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (Wanted("sqladmin.instances", "i"), Wanted("sqladmin.databases", "d", parent="i")),
        (Wanted("compute.networks", "n"), Wanted("servicenetworking.connections", "c.googleapis.com", parent="n")),
        (
            Wanted("compute.globalAddresses", "g"),
            Wanted("servicenetworking.connections", "c.googleapis.com", parent="n"),
        ),
        (Wanted("servicenetworking.connections", "c.googleapis.com", parent="n"), Wanted("sqladmin.instances", "i")),
        (Wanted("serviceusage.services", "compute.googleapis.com"), Wanted("compute.networks", "n")),
        (
            Wanted("iam.serviceAccounts", "account"),
            Wanted(
                "compute.instances",
                "v",
                "z",
                body={"serviceAccounts": [{"email": "account@demo.iam.gserviceaccount.com"}]},
            ),
        ),
    ],
)
def test_what_nothing_in_a_body_says_is_ordered_too(cloud, first, then):
    assert order(cloud, [then, first]) == [first.name, then.name]
    if first.kind != "iam.serviceAccounts":
        assert order(cloud, [absent(first), absent(then)]) == [then.name, first.name]


def test_namesakes_of_different_kinds_are_told_apart(cloud):
    wanted = [
        Wanted("sqladmin.databases", "same", parent="same"),
        Wanted("sqladmin.instances", "same"),
        Wanted("servicenetworking.connections", "c.googleapis.com", parent="same"),
        Wanted("compute.networks", "same"),
    ]
    batch = Batch(cloud, [resource_of(cloud, one) for one in wanted])
    kinds = {
        resource.wanted.kind: sorted(other.wanted.kind for other in others)
        for resource, others in batch.dependencies().items()
    }
    assert kinds == {
        "sqladmin.databases": ["sqladmin.instances"],
        "sqladmin.instances": ["servicenetworking.connections"],
        "servicenetworking.connections": ["compute.networks"],
        "compute.networks": [],
    }


def test_a_no_op_reads_each_member_once(cloud, google):
    wanted = [NETWORK, SUBNETWORK, BUCKET]
    ensure_all(cloud, wanted)
    google.calls.clear()
    result = ensure_all(cloud, wanted)
    assert result["changed"] is False
    assert result["diff"] == []
    assert [call.verb for call in google.calls] == ["GET"] * 3


def test_everything_is_checked_before_the_first_call(cloud, google):
    wrong = [
        Wanted("compute.networks", "n", body={"mtuu": 1}),
        Wanted("storage.buckets", "b", body={"labels": {"a": 1}}),
    ]
    with pytest.raises(CloudError, match="mtuu: no such field") as raised:
        ensure_all(cloud, [NETWORK, *wrong])
    assert "labels.a" in str(raised.value)
    assert google.calls == []


def test_a_member_given_twice_is_refused(cloud, google):
    with pytest.raises(CloudError, match=r"compute\.networks n: is in the batch twice"):
        ensure_all(cloud, [NETWORK, NETWORK])
    assert google.calls == []


def test_members_that_refer_to_each_other_in_a_circle_are_named_before_any_change(cloud, google):
    a = Wanted("compute.addresses", "a", "r", body={"subnetwork": "projects/demo/regions/r/subnetworks/s"})
    b = Wanted("compute.subnetworks", "s", "r", body={"network": "projects/demo/regions/r/addresses/a"})
    with pytest.raises(CloudError, match=r"in a circle: compute\.\w+ [as], compute\.\w+ [as]$"):
        ensure_all(cloud, [BUCKET, a, b])
    assert google.written() == []


def test_one_failure_leaves_the_others_finished(cloud, google, fault):
    google.faults.append(fault("POST", "/global/networks$", 403, "quotaExceeded", "no more networks"))
    with pytest.raises(PartialError) as raised:
        ensure_all(cloud, [SUBNETWORK, NETWORK, BUCKET])
    assert str(raised.value).splitlines() == [
        "compute.subnetworks s: not attempted, as it needs compute.networks n",
        "Creating compute.networks n: no more networks (HTTP 403 quotaExceeded)",
    ]
    assert [member["name"] for member in raised.value.result["resources"]] == ["b"]
    assert raised.value.result["changed"] is True
    assert "/storage/v1/b/b" in google.store
    assert not any("subnetworks" in call.path for call in google.written())


def test_a_second_run_finishes_what_an_interrupted_one_began(cloud, google, fault):
    google.faults.append(fault("POST", "/subnetworks$", 400, "invalid", "not now"))
    with pytest.raises(PartialError):
        ensure_all(cloud, [NETWORK, SUBNETWORK])
    actions = [member["action"] for member in ensure_all(cloud, [NETWORK, SUBNETWORK])["resources"]]
    assert actions == ["none", "create"]


def test_an_empty_project_is_predicted(checking, google, fault):
    google.faults.append(fault("GET", "/compute/", 403, "SERVICE_DISABLED", times=99))
    service = Wanted("serviceusage.services", "compute.googleapis.com")
    result = ensure_all(checking, [service, NETWORK, SUBNETWORK, ADDRESS, VM])
    assert {member["action"] for member in result["resources"]} == {"create"}
    assert google.written() == []


def test_members_of_a_service_enabled_in_the_batch_are_read_afterwards(cloud, google):
    service = "/v1/projects/demo/services/compute.googleapis.com"
    google.special[":enable$"] = lambda _: (
        google.store.update({service: {"state": "ENABLED"}}) or {"name": "o", "done": True}
    )
    ensure_all(cloud, [NETWORK, Wanted("serviceusage.services", "compute.googleapis.com")])
    paths = [call.path for call in google.calls]
    assert paths.index(f"{service}:enable") < paths.index(f"{COMPUTE}/global/networks/n")


def test_the_diff_names_each_member_and_its_fields(checking, google):
    google.store[f"{COMPUTE}/global/networks/n"] = {"routingConfig": {"routingMode": "REGIONAL"}}
    result = ensure_all(checking, [Wanted("compute.networks", "n", body={"routingConfig": {"routingMode": "GLOBAL"}})])
    assert result["diff"] == [
        {
            "before_header": "compute.networks n",
            "after_header": "compute.networks n",
            "before": {"routingConfig.routingMode": "REGIONAL"},
            "after": {"routingConfig.routingMode": "GLOBAL"},
        }
    ]


def test_an_address_outside_the_batch_is_looked_up(cloud, google):
    google.store[f"{COMPUTE}/regions/r/addresses/a"] = {"address": "203.0.113.9"}
    ensure_all(cloud, [VM])
    assert google.written()[0].body["networkInterfaces"][0]["accessConfigs"] == [{"natIP": "203.0.113.9"}]


def test_what_google_names_is_changed_by_one_call_after_the_other(cloud, google):
    under_way, most = 0, 0
    made: list = []

    def answer(call):
        nonlocal under_way, most
        if call.verb == "GET":
            found = [one for one in made if call.path.endswith(one["name"])]
            return found[0] if found else {"alertPolicies": list(made)}
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.02)
        under_way -= 1
        made.append({**call.body, "name": f"projects/demo/alertPolicies/{len(made)}"})
        return made[-1]

    google.special = {"/alertPolicies": answer}
    result = ensure_all(cloud, [Wanted("monitoring.alertPolicies", name) for name in "abcd"])
    assert (len(result["changes"]), len(made), most) == (4, 4, 1)
