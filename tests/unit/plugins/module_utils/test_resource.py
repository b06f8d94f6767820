from __future__ import annotations

import re

import pytest
import requests
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.operations import OperationError
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Wanted, find, resource_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import ApiError, CloudError

NETWORK = "/compute/v1/projects/demo/global/networks/a"
BUCKET = "/storage/v1/b/a"
INSTANCE = "/v1/projects/demo/instances/a"
VM = "/compute/v1/projects/demo/zones/z/instances/a"


def ensure(cloud, kind, body=None, name="a", **options):
    """Read and ensure; return the plan and the resource afterwards."""
    resource = resource_of(cloud, Wanted(kind, name, body=body or {}, **options))
    assert resource.problems == []
    return resource.ensure(resource.read(), lambda _: None)


def problems(cloud, kind, **options):
    return resource_of(cloud, Wanted(kind, **{"name": "a", **options})).problems


# Place and secrets


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        ("compute.subnetworks", {}, "location is missing, the region it belongs to"),
        ("compute.instances", {}, "location is missing, the zone it belongs to"),
        ("compute.networks", {"location": "r"}, "location 'r' has no place in its URL, leave it out"),
        ("sqladmin.databases", {}, "parent is missing, the instance it belongs to"),
        ("servicenetworking.connections", {}, "parent is missing, the network it belongs to"),
        ("storage.buckets", {"parent": "p"}, "parent 'p' has no place in its URL, leave it out"),
        ("storage.buckets", {"body": {"name": "b"}}, "body.name says 'b', leave it out"),
        (
            "sqladmin.instances",
            {"body": {"rootPassword": "hunter2"}},
            "rootPassword: is a secret, move it to sensitive_body, which is never logged",
        ),
        (
            "sqladmin.instances",
            {"sensitive_body": {"rootPasswort": "hunter2"}},
            "rootPasswort: not valid in sensitive_body",
        ),
    ],
)
def test_what_is_wrong_with_a_member_is_said(cloud, kind, options, problem):
    assert problems(cloud, kind, **options) == [f"{kind} a: {problem}"]


def test_a_secret_is_sent_once_and_shown_nowhere(cloud, google):
    plan, after = ensure(cloud, "sqladmin.instances", {"region": "r"}, sensitive_body={"rootPassword": "hunter2"})
    assert google.store[INSTANCE]["rootPassword"] == "hunter2"
    assert "hunter2" not in repr((plan, after))
    plan, _ = ensure(cloud, "sqladmin.instances", {"region": "r"}, sensitive_body={"rootPassword": "other"})
    assert plan.action == "none"


# Create, change, delete


def test_a_secret_joins_the_fields_beside_it(cloud, google):
    body = {"replicaConfiguration": {"mysqlReplicaConfiguration": {"username": "u"}}}
    secret = {"replicaConfiguration": {"mysqlReplicaConfiguration": {"password": "hunter2"}}}
    ensure(cloud, "sqladmin.instances", body, sensitive_body=secret)
    sent = google.written()[0].body["replicaConfiguration"]["mysqlReplicaConfiguration"]
    assert sent == {"username": "u", "password": "hunter2"}


def test_it_is_created_and_then_left_alone(cloud, google):
    body = {"autoCreateSubnetworks": False, "routingConfig": {"routingMode": "REGIONAL"}}
    plan, after = ensure(cloud, "compute.networks", body)
    assert plan.action == "create"
    assert after == google.store[NETWORK] == {"name": "a", **body}
    google.calls.clear()
    plan, _ = ensure(cloud, "compute.networks", body)
    assert plan.action == "none"
    assert [call.verb for call in google.calls] == ["GET"]


def test_only_what_differs_is_sent(cloud, google):
    google.store[NETWORK] = {
        "routingConfig": {"routingMode": "REGIONAL", "bgpBestPathSelectionMode": "LEGACY"},
        "mtu": 1460,
    }
    plan, after = ensure(cloud, "compute.networks", {"mtu": 1460, "routingConfig": {"routingMode": "GLOBAL"}})
    assert plan.action == "update"
    assert google.written()[0].body == {"routingConfig": {"routingMode": "GLOBAL"}}
    assert after["routingConfig"] == {"routingMode": "GLOBAL", "bgpBestPathSelectionMode": "LEGACY"}


def test_it_is_deleted_and_then_left_alone(cloud, google):
    google.store[NETWORK] = {}
    assert ensure(cloud, "compute.networks", state="absent")[0].action == "delete"
    assert NETWORK not in google.store
    assert ensure(cloud, "compute.networks", state="absent")[0].action == "none"


@pytest.mark.parametrize(
    ("kind", "path", "protected", "field", "options"),
    [
        ("compute.instances", VM, {"deletionProtection": True}, "deletionProtection", {"location": "z"}),
        (
            "sqladmin.instances",
            INSTANCE,
            {"settings": {"deletionProtectionEnabled": True}},
            "settings.deletionProtectionEnabled",
            {},
        ),
    ],
)
@pytest.mark.parametrize("session", ["cloud", "checking"])
def test_what_is_protected_is_not_deleted(request, google, kind, path, protected, field, options, session):
    google.store[path] = protected
    with pytest.raises(CloudError, match=f"{field} is on, so it was not deleted"):
        ensure(request.getfixturevalue(session), kind, state="absent", **options)
    assert google.written() == []


def objects(google, *names):
    """Put objects into the bucket, each with an old version."""
    for name in names:
        for generation in ("1", "2"):
            google.store[f"{BUCKET}/o/{name}#{generation}"] = {"name": name, "generation": generation}

    def answer(call):
        assert call.query["versions"] == "true"
        return {"items": [item for path, item in google.store.items() if path.startswith(f"{BUCKET}/o/")]}

    def delete(call):
        assert call.verb == "DELETE"
        del google.store[f"{call.path.replace('%2F', '/')}#{call.query['generation']}"]
        return {}

    google.special = {f"{BUCKET}/o$": answer, f"{BUCKET}/o/": delete}


@pytest.mark.parametrize("session", ["cloud", "checking"])
def test_a_bucket_with_objects_is_not_deleted_unasked(request, google, session):
    google.store[BUCKET] = {"metageneration": "1"}
    objects(google, "a/b")
    with pytest.raises(CloudError, match="is not empty, so it was not deleted; set delete_contents"):
        ensure(request.getfixturevalue(session), "storage.buckets", state="absent")
    assert google.written() == []


def test_a_bucket_goes_with_every_version_when_asked(cloud, checking, google):
    google.store[BUCKET] = {"metageneration": "1"}
    objects(google, "a/b", "c")
    predicted, _ = ensure(checking, "storage.buckets", state="absent", delete_contents=True)
    assert [tuple(one) for one in predicted.differences] == [("state", "present", "absent"), ("objects", "4", "0")]
    assert google.written() == []
    done, after = ensure(cloud, "storage.buckets", state="absent", delete_contents=True)
    assert (done.differences, after, google.store) == (predicted.differences, None, {})


@pytest.mark.parametrize("state", ["present", "absent"])
def test_check_mode_predicts_and_writes_nothing(cloud, checking, google, state):
    google.store[NETWORK] = {"name": "a", "routingConfig": {"routingMode": "REGIONAL"}}
    body = {"routingConfig": {"routingMode": "GLOBAL"}}
    predicted, predicted_after = ensure(checking, "compute.networks", body, state=state)
    assert google.written() == []
    done, after = ensure(cloud, "compute.networks", body, state=state)
    assert (predicted.action, predicted.differences) == (done.action, done.differences)
    assert predicted_after == after


def test_a_prediction_holds_no_secret_and_nothing_google_never_returns(checking, google):
    google.store[INSTANCE] = {"replicaConfiguration": {"mysqlReplicaConfiguration": {"password": "hunter2"}}}
    _, after = ensure(checking, "sqladmin.instances", {"settings": {"tier": "b"}})
    assert "hunter2" not in repr(after)
    google.store[VM] = {"disks": [{"boot": True}], "deletionProtection": True}
    body = {"disks": [{"boot": True, "initializeParams": {"diskSizeGb": "50"}}], "deletionProtection": False}
    _, after = ensure(checking, "compute.instances", body, location="z")
    assert after == {"disks": [{"boot": True}], "deletionProtection": False}


@pytest.mark.parametrize(
    ("kind", "path", "actual", "wanted", "field"),
    [
        (
            "compute.networks",
            NETWORK,
            {"autoCreateSubnetworks": False},
            {"autoCreateSubnetworks": True},
            "autoCreateSubnetworks",
        ),
        (
            "sqladmin.instances",
            INSTANCE,
            {"databaseVersion": "POSTGRES_17"},
            {"databaseVersion": "POSTGRES_18"},
            "databaseVersion",
        ),
        (
            "sqladmin.instances",
            INSTANCE,
            {"settings": {"dataDiskType": "PD_SSD"}},
            {"settings": {"dataDiskType": "PD_HDD"}},
            "settings.dataDiskType",
        ),
        ("storage.buckets", BUCKET, {"location": "EU"}, {"location": "US"}, "location"),
    ],
)
@pytest.mark.parametrize("session", ["cloud", "checking"])
def test_an_immutable_difference_fails_and_changes_nothing(request, google, kind, path, actual, wanted, field, session):
    google.store[path] = actual
    with pytest.raises(CloudError, match=f"{kind} a: {field} is .* Google cannot change this in place"):
        ensure(request.getfixturevalue(session), kind, wanted)
    assert google.written() == []


def test_an_immutable_difference_stops_the_changes_beside_it(cloud, google):
    google.store[NETWORK] = {"mtu": 1460, "routingConfig": {"routingMode": "REGIONAL"}}
    with pytest.raises(CloudError, match="mtu is 1460, wanted 1500"):
        ensure(cloud, "compute.networks", {"mtu": 1500, "routingConfig": {"routingMode": "GLOBAL"}})
    assert google.written() == []


# How each kind wants it


def test_a_bucket_is_guarded_by_its_metageneration(cloud, google):
    google.store[BUCKET] = {"metageneration": "7", "versioning": {"enabled": False}}
    ensure(cloud, "storage.buckets", {"versioning": {"enabled": True}})
    assert google.written()[0].query == {"ifMetagenerationMatch": "7"}


def test_a_field_that_google_requires_is_sent_with_the_change(cloud, google):
    firewall = "/compute/v1/projects/demo/global/firewalls/a"
    google.store[firewall] = {"name": "a", "sourceRanges": ["10.0.0.0/8", "192.0.2.0/24"]}
    ensure(cloud, "compute.firewalls", {"sourceRanges": ["10.0.0.0/8"]})
    assert google.written()[0].body == {"name": "a", "sourceRanges": ["10.0.0.0/8"]}


def test_a_subnetwork_is_guarded_by_its_fingerprint(cloud, google):
    google.store["/compute/v1/projects/demo/regions/r/subnetworks/a"] = {
        "fingerprint": "f",
        "logConfig": {"enable": False},
    }
    ensure(cloud, "compute.subnetworks", {"logConfig": {"enable": True}}, location="r")
    assert google.written()[0].body == {"logConfig": {"enable": True}, "fingerprint": "f"}


def test_a_cloud_sql_instance_is_guarded_by_its_settings_version(cloud, google):
    google.store[INSTANCE] = {"settings": {"tier": "a", "settingsVersion": "3"}}
    ensure(cloud, "sqladmin.instances", {"settings": {"tier": "b"}})
    assert google.written()[0].body == {"settings": {"tier": "b", "settingsVersion": "3"}}


def test_masked_fields_are_sent_whole(cloud, google):
    google.store["/v1/projects/demo/secrets/a"] = {
        "etag": "e",
        "labels": {"other": "1"},
        "replication": {"automatic": {}},
    }
    ensure(cloud, "secretmanager.secrets", {"labels": {"a": "b"}})
    patch = google.written()[0]
    assert patch.query == {"updateMask": "labels"}
    assert patch.body == {"labels": {"other": "1", "a": "b"}, "etag": "e"}


def test_a_service_account_is_wrapped(cloud, google):
    account = "/v1/projects/demo/serviceAccounts/a@demo.iam.gserviceaccount.com"
    google.special["/serviceAccounts$"] = lambda call: google.store.update({account: call.body["serviceAccount"]}) or {}
    ensure(cloud, "iam.serviceAccounts", {"displayName": "A"})
    assert google.written()[0].body == {"accountId": "a", "serviceAccount": {"displayName": "A"}}
    ensure(cloud, "iam.serviceAccounts", {"displayName": "B"})
    assert google.written()[1].body == {"serviceAccount": {"displayName": "B"}, "updateMask": "displayName"}


RULES = "/compute/v1/projects/demo/regions/r/forwardingRules"
ATTACHMENT = "projects/tp/regions/r/serviceAttachments/s"


def labelling(google):
    """Let the labels of a forwarding rule be set."""
    google.special["/setLabels$"] = lambda call: (
        google.store[f"{RULES}/a"].update(call.body | {"labelFingerprint": "2"}) or {"name": "o", "status": "DONE"}
    )


def test_an_endpoint_gets_its_labels_after_it_was_made(cloud, google):
    body = {"target": ATTACHMENT, "labels": {"a": "b"}}
    google.special[f"{RULES}$"] = lambda call: (
        google.store.update({f"{RULES}/a": call.body | {"labelFingerprint": "1"}}) or {"name": "o", "status": "DONE"}
    )
    labelling(google)
    plan, after = ensure(cloud, "compute.forwardingRules", body, location="r")
    inserted, labelled = google.written()
    assert inserted.body == {"name": "a", "target": ATTACHMENT}
    assert labelled.body == {"labels": {"a": "b"}, "labelFingerprint": "1"}
    assert (plan.action, after["labels"]) == ("create", {"a": "b"})
    assert ensure(cloud, "compute.forwardingRules", body, location="r")[0].action == "none"


def test_an_endpoint_that_is_seen_late_gets_its_labels(cloud, google, fault):
    google.faults.append(fault("GET", f"{RULES}/a", 404, "notFound", times=4))
    labelling(google)
    ensure(cloud, "compute.forwardingRules", {"target": ATTACHMENT, "labels": {"a": "b"}}, location="r")
    assert google.store[f"{RULES}/a"]["labels"] == {"a": "b"}
    assert len(google.written()) == 2


def test_an_endpoint_without_labels_and_any_other_rule_are_made_by_one_call(cloud, google):
    for body in ({"target": ATTACHMENT, "labels": {}}, {"target": "global/targetHttpProxies/p", "labels": {"a": "b"}}):
        google.store.clear()
        google.calls.clear()
        ensure(cloud, "compute.forwardingRules", body, location="r")
        (inserted,) = google.written()
        assert inserted.body.get("labels") == (body["labels"] or None)


PLUS = {"edition": "ENTERPRISE_PLUS", "tier": "db-perf-optimized-N-2", "dataCacheConfig": {"dataCacheEnabled": True}}
ENTERPRISE = {"edition": "ENTERPRISE", "tier": "db-custom-1-3840", "dataCacheConfig": {"dataCacheEnabled": False}}


@pytest.mark.parametrize(("present", "wanted", "is_first"), [(ENTERPRISE, PLUS, True), (PLUS, ENTERPRISE, False)])
def test_an_edition_changes_with_machine_and_cache_alone(cloud, google, present, wanted, is_first):
    google.store[INSTANCE] = {"settings": {**present, "settingsVersion": "3", "pricingPlan": "PER_USE"}}
    others = {"settings": {"pricingPlan": "PACKAGE", "settingsVersion": "3"}}
    ensure(cloud, "sqladmin.instances", {"settings": {**wanted, "pricingPlan": "PACKAGE"}})
    sent = [call.body for call in google.written()]
    assert sent == ([{"settings": wanted}, others] if is_first else [others, {"settings": wanted}])
    google.calls.clear()
    google.store[INSTANCE]["settings"].update(present)
    ensure(cloud, "sqladmin.instances", {"settings": wanted})
    assert [call.body for call in google.written()] == [{"settings": wanted}]


def test_a_vms_fields_are_set_one_by_one(cloud, google):
    google.store[VM] = {
        "labels": {"other": "1"},
        "labelFingerprint": "l",
        "tags": {"items": ["x"], "fingerprint": "t"},
        "metadata": {"kind": "compute#metadata", "fingerprint": "m", "items": [{"key": "a", "value": "1"}]},
        "deletionProtection": True,
    }
    body = {
        "labels": {"a": "b"},
        "tags": {"items": ["y"]},
        "metadata": {"items": [{"key": "a", "value": "2"}]},
        "deletionProtection": False,
    }
    google.special["/set"] = lambda _: {"name": "o", "status": "DONE"}
    ensure(cloud, "compute.instances", body, location="z")
    sent = {call.path.rsplit("/", 1)[1]: call for call in google.written()}
    assert sent["setLabels"].body == {"labels": {"other": "1", "a": "b"}, "labelFingerprint": "l"}
    assert sent["setTags"].body == {"items": ["y"], "fingerprint": "t"}
    assert sent["setMetadata"].body == {"items": [{"key": "a", "value": "2"}], "fingerprint": "m"}
    assert sent["setDeletionProtection"].query["deletionProtection"] == "false"
    assert len(sent) == 4


ACCESS = {"name": "External NAT", "type": "ONE_TO_ONE_NAT", "natIP": "203.0.113.9"}
OTHER_ACCESS = {"name": "external-nat", "type": "ONE_TO_ONE_NAT", "natIP": "203.0.113.10"}


@pytest.mark.parametrize(
    ("present", "wanted", "sent"),
    [
        ([], [ACCESS], [("addAccessConfig", "nic0", ACCESS)]),
        ([ACCESS], [], [("deleteAccessConfig", "nic0", "External NAT")]),
        (
            [OTHER_ACCESS],
            [ACCESS],
            [("deleteAccessConfig", "nic0", "external-nat"), ("addAccessConfig", "nic0", ACCESS)],
        ),
        ([{**ACCESS, "kind": "compute#accessConfig", "networkTier": "PREMIUM"}], [ACCESS], []),
        ([], [], []),
    ],
)
def test_a_vm_gets_its_external_address_and_loses_it_while_it_runs(cloud, google, present, wanted, sent):
    google.store[VM] = {
        "networkInterfaces": [{"name": "nic0", "accessConfigs": present}] if present else [{"name": "nic0"}]
    }
    google.special["AccessConfig"] = lambda _: {"name": "o", "status": "DONE"}
    plan, _ = ensure(cloud, "compute.instances", {"networkInterfaces": [{"accessConfigs": wanted}]}, location="z")
    calls = [
        (call.path.rsplit("/", 1)[1], call.query["networkInterface"], call.body or call.query["accessConfig"])
        for call in google.written()
    ]
    assert calls == sent
    assert plan.action == ("update" if sent else "none")


def test_a_check_takes_no_address(checking, google):
    google.store[VM] = {"networkInterfaces": [{"name": "nic0", "accessConfigs": [ACCESS]}]}
    plan, after = ensure(checking, "compute.instances", {"networkInterfaces": [{"accessConfigs": []}]}, location="z")
    assert [difference.field for difference in plan.differences] == ["networkInterfaces[0].accessConfigs"]
    assert after["networkInterfaces"] == [{"name": "nic0", "accessConfigs": []}]
    assert google.written() == []


def test_what_a_vm_cannot_change_while_it_runs_is_refused(cloud, google):
    google.store[VM] = {"canIpForward": False}
    with pytest.raises(CloudError, match="canIpForward is"):
        ensure(cloud, "compute.instances", {"canIpForward": True}, location="z")
    google.store[VM] = {"networkInterfaces": [{"name": "nic0", "networkIP": "10.0.0.2"}]}
    with pytest.raises(CloudError, match="networkIP is"):
        ensure(cloud, "compute.instances", {"networkInterfaces": [{"networkIP": "10.0.0.3"}]}, location="z")


def test_the_type_of_a_vm_is_left_to_gcp_vm(cloud, google):
    google.store[VM] = {"machineType": "projects/demo/zones/z/machineTypes/e2-small"}
    wanted = {"machineType": "zones/z/machineTypes/e2-medium"}
    plan, _ = ensure(cloud, "compute.instances", wanted, location="z")
    assert plan.action == "none"


def test_a_check_shows_the_type_that_a_vm_has(checking, google):
    google.store[VM] = {"machineType": "projects/demo/zones/z/machineTypes/e2-small", "labels": {}}
    wanted = {"machineType": "zones/z/machineTypes/e2-medium", "labels": {"a": "b"}}
    plan, foretold = ensure(checking, "compute.instances", wanted, location="z")
    assert (plan.action, foretold["labels"]) == ("update", {"a": "b"})
    assert foretold["machineType"].endswith("/e2-small")


def test_a_link_of_an_address_becomes_the_address(cloud, checking):
    link = "projects/demo/regions/r/addresses/a"
    body = {"networkInterfaces": [{"accessConfigs": [{"natIP": link}]}]}
    wanted = Wanted("compute.instances", "a", "z", body=body)
    plan = resource_of(cloud, wanted).plan(None, {link: {"address": "203.0.113.9"}}.get)
    assert plan.body == {"networkInterfaces": [{"accessConfigs": [{"natIP": "203.0.113.9"}]}]}
    plan = resource_of(checking, wanted).plan(None, lambda _: None)
    assert plan.body == {"networkInterfaces": [{"accessConfigs": [{"natIP": "(known after create)"}]}]}
    with pytest.raises(CloudError, match=r"the address .* does not exist"):
        resource_of(cloud, wanted).plan(None, lambda _: None)


def test_a_record_goes_by_its_name_and_type_and_is_sent_whole(cloud, google):
    kind, name, zone = "dns.resourceRecordSets", "a.example.com./A", {"parent": "z"}
    records = "/dns/v1/projects/demo/managedZones/z/rrsets"
    there = {"kind": "dns#resourceRecordSet", "name": "a.example.com.", "type": "A", "ttl": 60, "rrdatas": ["1.1.1.1"]}

    assert ensure(cloud, kind, {"rrdatas": ["1.1.1.1"]}, name, **zone)[0].action == "create"
    assert google.written()[-1].path == records
    assert google.written()[-1].body == {"name": "a.example.com.", "type": "A", "rrdatas": ["1.1.1.1"]}

    google.store[f"{records}/a.example.com./A"] = there
    plan, _ = ensure(cloud, kind, {"rrdatas": ["1.1.1.2"]}, name, **zone)
    assert [(one.field, one.before, one.after) for one in plan.differences] == [("rrdatas", ["1.1.1.1"], ["1.1.1.2"])]
    sent = {"name": "a.example.com.", "type": "A", "ttl": 60, "rrdatas": ["1.1.1.2"]}
    assert (google.written()[-1].verb, google.written()[-1].body) == ("PATCH", sent)
    assert ensure(cloud, kind, {"rrdatas": ["1.1.1.2"]}, name, **zone)[0].action == "none"
    assert ensure(cloud, kind, None, name, state="absent", **zone)[0].action == "delete"
    assert google.store.keys() == {f"{records}/a.example.com."}


def test_a_service_is_enabled_and_disabled(cloud, google):
    service = "/v1/projects/demo/services/a.googleapis.com"
    google.store[service] = {"state": "DISABLED"}
    google.special[":enable$"] = lambda _: (
        google.store.update({service: {"state": "ENABLED"}}) or {"name": "o", "done": True}
    )
    google.special[":disable$"] = lambda _: (
        google.store.update({service: {"state": "DISABLED"}}) or {"name": "o", "done": True}
    )
    for state, action in (("present", "create"), ("present", "none"), ("absent", "delete"), ("absent", "none")):
        plan, _ = ensure(cloud, "serviceusage.services", name="a.googleapis.com", state=state)
        assert plan.action == action


def test_a_connection_goes_by_the_projects_number(cloud, google):
    google.store["/v1/projects/demo"] = {"projectNumber": "42"}
    connections: list = []
    google.special["/connections$"] = lambda call: (
        {"connections": connections}
        if call.verb == "GET"
        else connections.append({**call.body, "service": "services/s.googleapis.com"}) or {"name": "o", "done": True}
    )
    body = {"network": "projects/demo/global/networks/n", "reservedPeeringRanges": ["r"]}
    options = {"name": "s.googleapis.com", "parent": "n"}
    plan, _ = ensure(cloud, "servicenetworking.connections", body, **options)
    assert plan.action == "create"
    assert connections[0]["network"] == "projects/42/global/networks/n"
    assert ensure(cloud, "servicenetworking.connections", body, **options)[0].action == "none"
    google.special["/s-googleapis-com$"] = lambda call: connections[0].update(call.body) or {"name": "o", "done": True}
    body["reservedPeeringRanges"] = ["r", "r2"]
    assert ensure(cloud, "servicenetworking.connections", body, **options)[0].action == "update"
    assert google.written()[-1].query == {"updateMask": "reservedPeeringRanges"}
    # Google wants to know of which network even where it stays.
    assert google.written()[-1].body["network"] == "projects/42/global/networks/n"
    other = Wanted("servicenetworking.connections", body={"network": "projects/demo/global/networks/other"}, **options)
    [problem] = resource_of(cloud, other).problems
    assert problem.endswith("body.network says 'projects/demo/global/networks/other', parent says 'n'")


# When Google is busy, slow or silent


def test_a_creation_without_an_answer_is_looked_for(cloud, google, fault):
    google.faults.append(fault("POST", "/b$", raises=requests.ConnectionError("reset"), lands=True))
    plan, after = ensure(cloud, "storage.buckets", {"versioning": {"enabled": True}})
    assert plan.action == "create"
    assert after["versioning"] == {"enabled": True}
    assert len(google.written()) == 1


def test_a_creation_that_did_not_land_is_made_again(cloud, google, fault):
    google.faults.append(fault("POST", "/b$", 503, times=2))
    ensure(cloud, "storage.buckets", {})
    assert BUCKET in google.store
    assert len(google.written()) == 3


def test_one_created_by_somebody_else_meanwhile_is_compared(cloud, google):
    resource = resource_of(cloud, Wanted("storage.buckets", "a", body={"versioning": {"enabled": True}}))
    actual = resource.read()
    google.store[BUCKET] = {"name": "a", "versioning": {"enabled": False}}
    _, after = resource.ensure(actual, lambda _: None)
    assert after["versioning"] == {"enabled": True}


def test_a_stale_token_leads_to_a_second_look(cloud, google, fault):
    google.store[BUCKET] = {"metageneration": "1", "versioning": {"enabled": False}}
    google.faults.append(fault("PATCH", BUCKET, 412, "conditionNotMet"))
    ensure(cloud, "storage.buckets", {"versioning": {"enabled": True}})
    assert google.store[BUCKET]["versioning"] == {"enabled": True}


def test_an_operation_in_progress_is_waited_for(cloud, google, fault):
    google.store[INSTANCE] = {"settings": {"tier": "a"}}
    google.faults.append(fault("PATCH", INSTANCE, 409, "operationInProgress", times=6))
    ensure(cloud, "sqladmin.instances", {"settings": {"tier": "b"}})
    assert google.store[INSTANCE]["settings"]["tier"] == "b"


def test_waiting_for_an_operation_in_progress_ends(cloud, google, fault, clock):
    google.store[INSTANCE] = {"settings": {"tier": "a"}}
    google.faults.append(fault("PATCH", INSTANCE, 409, "operationInProgress", "wait your turn", times=999))
    with pytest.raises(ApiError, match="wait your turn"):
        ensure(cloud, "sqladmin.instances", {"settings": {"tier": "b"}})
    assert clock.now > 60


BEING_ACTIVATED = "Another activation or deactivation is in progress for the following service(s): a and project demo."
SERVICE = "/v1/projects/demo/services/a.googleapis.com"


@pytest.fixture
def enabling(google):
    """A service and a connection, whose operations fail with the words in the list, one after the other."""
    failures, connections = [], []
    google.store |= {SERVICE: {"state": "DISABLED"}, "/v1/projects/demo": {"projectNumber": "42"}}

    def ended(make):
        error = {"code": 13, "message": failures.pop(0)} if failures else None
        if error is None:
            make()
        return {"name": "o", "done": True, **({"error": error} if error else {})}

    google.special[":enable$"] = lambda _: ended(lambda: google.store.update({SERVICE: {"state": "ENABLED"}}))
    google.special["/connections$"] = lambda call: (
        {"connections": connections} if call.verb == "GET" else ended(lambda: connections.append(call.body))
    )
    return failures


def enable(cloud):
    return ensure(cloud, "serviceusage.services", name="a.googleapis.com")


def connect(cloud):
    return ensure(
        cloud, "servicenetworking.connections", {"reservedPeeringRanges": ["r"]}, "s.googleapis.com", parent="n"
    )


@pytest.mark.usefixtures("enabling")
def test_a_service_that_another_one_brings_along_is_waited_for(cloud, google, fault):
    google.faults.append(fault("POST", ":enable$", 400, "failedPrecondition", BEING_ACTIVATED, times=9))
    assert enable(cloud)[0].action == "create"
    assert google.store[SERVICE]["state"] == "ENABLED"


INTERNAL = '[service a encountered internal error: type: "googleapis.com" subject: "160009" ] with failed services [a]'
PASSING = [
    (enable, BEING_ACTIVATED),
    (enable, INTERNAL),
    (connect, "Required 'compute.globalAddresses.list' permission for 'projects/demo'\nHelp Token: x"),
    (connect, "Request had invalid authentication credentials. Expected OAuth 2 access token"),
]


@pytest.mark.parametrize(("make", "words"), PASSING)
def test_an_operation_that_fails_for_the_time_being_is_begun_again(cloud, google, enabling, make, words):
    enabling += [words] * 9
    cloud.timeout_seconds = 1800
    assert make(cloud)[0].action == "create"
    assert len(google.written()) == 10
    assert cloud.warnings == []


@pytest.mark.parametrize(("make", "words"), PASSING)
def test_an_operation_that_goes_on_failing_is_told(cloud, enabling, clock, make, words):
    enabling += [words] * 999
    cloud.timeout_seconds = 1800
    with pytest.raises(OperationError, match=re.escape(words)):
        make(cloud)
    assert 300 < clock.now < 330


@pytest.mark.parametrize(
    ("make", "words"),
    [(enable, "Required 'compute.globalAddresses.list' permission"), (enable, "160009"), (connect, "No range left.")],
)
def test_an_operation_that_fails_for_good_is_told_at_once(cloud, google, enabling, make, words):
    enabling.append(words)
    with pytest.raises(OperationError, match=words):
        make(cloud)
    assert len(google.written()) == 1


def test_one_that_is_still_being_made_is_waited_for(cloud, google, clock):
    states = iter(["PENDING_CREATE", "PENDING_CREATE", "RUNNABLE"])
    google.special["/instances/a$"] = lambda _: {"state": next(states)}
    assert ensure(cloud, "sqladmin.instances")[0].action == "none"
    assert clock.now > 1


def test_one_that_failed_for_good_is_not_taken_for_fine(cloud, google):
    google.store[INSTANCE] = {"state": "FAILED"}
    with pytest.raises(CloudError, match="is in the state FAILED for good: delete it"):
        ensure(cloud, "sqladmin.instances")


def test_why_one_failed_for_good_is_told(cloud, google):
    google.store[INSTANCE] = {"state": "FAILED"}
    error = {"errors": [{"code": "INTERNAL_ERROR", "message": "No address left."}]}
    google.special["/operations$"] = lambda _: {"items": [{"name": "o", "status": "DONE", "error": error}]}
    with pytest.raises(CloudError, match=r"FAILED for good \(No address left\. \(INTERNAL_ERROR\)\): delete it"):
        ensure(cloud, "sqladmin.instances")


def test_a_deletion_that_is_waited_for_needs_no_explanation(cloud, google, fault):
    google.faults.append(fault("GET", "/operations$", 404, "notFound", times=9))
    resource = resource_of(cloud, Wanted("sqladmin.instances", "a"))
    states = iter([{"state": "PENDING_DELETE"}])
    resource.fetch = lambda _: next(states, None)
    assert resource.read() is None
    assert cloud.warnings == []


def test_a_cloud_sql_403_of_an_instance_that_is_not_listed_means_absent(cloud, google, fault):
    google.faults.append(fault("GET", f"{INSTANCE}/databases/d", 403, "notAuthorized"))
    google.store["/v1/projects/demo/instances"] = {"items": [{"name": "other"}]}
    assert resource_of(cloud, Wanted("sqladmin.databases", "d", parent="a")).read() is None


def test_a_cloud_sql_403_of_a_listed_instance_is_an_error(cloud, google, fault):
    google.faults.append(fault("GET", INSTANCE, 403, "notAuthorized", "not authorized"))
    google.store["/v1/projects/demo/instances"] = {"items": [{"name": "a"}]}
    with pytest.raises(ApiError, match="not authorized"):
        resource_of(cloud, Wanted("sqladmin.instances", "a")).read()


def test_a_service_that_is_not_enabled_counts_as_absent_in_check_mode(checking, google, fault):
    google.faults.append(fault("GET", NETWORK, 403, "SERVICE_DISABLED"))
    assert ensure(checking, "compute.networks", {"mtu": 1460})[0].action == "create"
    assert checking.warnings == ["compute.googleapis.com is not enabled: what it keeps counts as absent"]


def test_a_new_one_that_is_not_visible_yet_is_waited_for(cloud, google, fault, clock):
    google.faults.append(fault("GET", BUCKET, 404, "notFound", times=5))
    _, after = ensure(cloud, "storage.buckets")
    assert after == {"name": "a"}
    assert cloud.warnings == []
    assert clock.now > 1


def test_a_field_google_does_not_take_over_is_warned_about(cloud, google):
    google.special["/b$"] = lambda _: google.store.update({BUCKET: {"name": "a"}}) or {}
    ensure(cloud, "storage.buckets", {"storageClass": "NEARLINE"})
    assert cloud.warnings == [
        "storage.buckets a: Google did not take over storageClass; the next run will differ again"
    ]


# Finding


def test_all_of_a_kind_are_found_over_several_pages(cloud, google):
    pages = {None: {"items": [{"name": "a"}], "nextPageToken": "t"}, "t": {"items": [{"name": "b"}]}}
    google.special["/global/networks$"] = lambda call: pages[call.query.get("pageToken")]
    assert find(cloud, "compute.networks") == [{"name": "a"}, {"name": "b"}]


def test_one_is_found_by_name_or_not(cloud, google):
    google.store[NETWORK] = {"name": "a"}
    assert find(cloud, "compute.networks", "a") == [{"name": "a"}]
    assert find(cloud, "compute.networks", "b") == []


def test_buckets_are_listed_by_project(cloud, google):
    google.special["/b$"] = lambda call: {"items": [{"name": call.query["project"]}]}
    assert find(cloud, "storage.buckets") == [{"name": "demo"}]


# What Google names

CHANNELS = "/v3/projects/demo/notificationChannels"


class Channels:
    """Notification channels as Monitoring keeps them: it names them, and two may be alike in everything else."""

    def __init__(self, google, *labels):
        self.google = google
        self.rivals: list = []
        for label in labels:
            self.add({"userLabels": {"ansible-name": label}})
        google.special = {f"{CHANNELS}$": self.answer}

    def add(self, body):
        name = f"projects/demo/notificationChannels/{len(self.google.store) + 1}"
        self.google.store[f"/v3/{name}"] = {**body, "name": name}
        return self.google.store[f"/v3/{name}"]

    def answer(self, call):
        if call.verb == "GET":
            return {"notificationChannels": list(self.google.store.values())}
        made = self.add(call.body)
        if self.rivals:
            self.add(self.rivals.pop())
        return made


def test_what_google_names_is_found_by_its_label(cloud, google):
    channels = Channels(google, "other")
    body = {"type": "email", "labels": {"email_address": "a@b.c"}, "userLabels": {"team": "x"}}
    plan, after = ensure(cloud, "monitoring.notificationChannels", body)
    assert plan.action == "create"
    assert after["userLabels"] == {"team": "x", "ansible-name": "a"}
    assert after["name"].endswith("/2")
    google.calls.clear()
    session = resource_of(cloud, Wanted("monitoring.notificationChannels", "a")).cloud
    session._answers.clear()
    plan, _ = ensure(session, "monitoring.notificationChannels", {**body, "displayName": "A"})
    assert plan.action == "update"
    assert [(call.verb, call.path) for call in google.calls] == [
        ("GET", CHANNELS),
        ("PATCH", f"{CHANNELS}/2"),
        ("GET", f"{CHANNELS}/2"),
    ]
    assert google.written()[0].query == {"updateMask": "displayName"}
    del channels


def test_one_list_serves_all_of_a_kind(cloud, google):
    Channels(google, "a", "b")
    for name in ("a", "b"):
        assert ensure(cloud, "monitoring.notificationChannels", name=name)[0].action == "none"
    assert [call.path for call in google.calls] == [CHANNELS]


def test_two_of_one_label_are_both_named(cloud, google):
    Channels(google, "a", "a")
    with pytest.raises(CloudError, match=r"notificationChannels/1, .*notificationChannels/2 all have the label"):
        ensure(cloud, "monitoring.notificationChannels", state="absent")
    assert google.written() == []


def test_of_two_runs_at_once_one_gives_way(cloud, google):
    channels = Channels(google)
    body = {"userLabels": {"ansible-name": "a"}}
    channels.rivals = [body]
    ensure(cloud, "monitoring.notificationChannels")
    assert [one["name"] for one in google.store.values()] == ["projects/demo/notificationChannels/2"]


def test_a_create_without_an_answer_is_looked_for_in_a_new_list(cloud, google, fault):
    Channels(google)
    google.faults = [fault("POST", CHANNELS, raises=requests.exceptions.ReadTimeout(), lands=True)]
    ensure(cloud, "monitoring.notificationChannels")
    assert len(google.store) == 1


def test_a_name_that_no_label_can_carry_is_refused(cloud):
    assert problems(cloud, "monitoring.alertPolicies", name="A b") == [
        "monitoring.alertPolicies A b: name has other characters than lower-case letters, digits, _ and -"
    ]


# What is sent whole, and what has to be repeated


def test_a_metric_is_replaced_whole(cloud, google):
    path = "/v2/projects/demo/metrics/a"
    google.store[path] = {"name": "a", "filter": "x", "description": "by hand", "createTime": "now"}
    google.special = {path: lambda call: google.store.update({path: call.body}) if call.body else google.store[path]}
    ensure(cloud, "logging.metrics", {"filter": "y"})
    sent = google.written()[0]
    assert (sent.verb, sent.body) == ("PUT", {"name": "a", "filter": "y", "description": "by hand"})


def test_a_dashboard_is_replaced_whole_under_its_etag(cloud, google):
    path = "/v1/projects/demo/dashboards/a"
    stored = {"name": "projects/1/dashboards/a", "displayName": "x", "etag": "1", "labels": {"a": ""}}
    google.store[path] = stored
    ensure(cloud, "monitoring.dashboards", {"displayName": "y"})
    assert google.written()[0].body == {**stored, "displayName": "y"}


def test_the_writer_of_a_sink_stays_its_own(cloud, google):
    google.store["/v2/projects/demo/sinks/a"] = {"filter": "x"}
    ensure(cloud, "logging.sinks", {"filter": "y"})
    assert google.written()[0].query == {"uniqueWriterIdentity": "true", "updateMask": "filter"}


# Datasets

DATASET = "/bigquery/v2/projects/demo/datasets/a"
TABLES = {"tables": [{"id": "demo:a.t"}], "nextPageToken": "2"}


@pytest.mark.parametrize("session", ["cloud", "checking"])
def test_a_dataset_that_holds_tables_is_not_deleted(request, google, session):
    google.store[DATASET] = {}
    google.special = {f"{DATASET}/tables$": lambda _: TABLES}
    with pytest.raises(CloudError, match="is not empty, so it was not deleted"):
        ensure(request.getfixturevalue(session), "bigquery.datasets", state="absent")
    assert google.written() == []


def test_a_dataset_goes_with_its_tables_when_that_is_wanted(cloud, google):
    google.store[DATASET] = {}
    google.special = {f"{DATASET}/tables$": lambda _: TABLES}
    plan, _ = ensure(cloud, "bigquery.datasets", state="absent", delete_contents=True)
    assert ("tables", "1 or more", "0") in [tuple(one) for one in plan.differences]
    assert google.written()[0].query == {"deleteContents": "true"}
    assert DATASET not in google.store


def test_datasets_are_listed_in_their_short_form(cloud, google):
    google.special = {"/datasets$": lambda _: {"datasets": [{"id": "demo:a"}]}}
    assert find(cloud, "bigquery.datasets") == [{"id": "demo:a"}]


# Members of a list, one by one


DISK, POLICIES = "/compute/v1/projects/demo/zones/z/disks/a", "projects/demo/regions/r/resourcePolicies"


def test_a_full_list_is_emptied_before_it_is_filled(cloud, google):
    url = f"https://www.googleapis.com/compute/v1/{POLICIES}"
    google.store[DISK] = {"resourcePolicies": [f"{url}/theirs", f"{url}/kept"]}
    google.special["ResourcePolicies$"] = lambda _call: {"name": "operation-1", "status": "DONE"}
    ensure(cloud, "compute.disks", {"resourcePolicies": [f"{POLICIES}/kept", f"{POLICIES}/ours"]}, location="z")
    assert [(call.path.rpartition("/")[2], call.body["resourcePolicies"]) for call in google.written()] == [
        ("removeResourcePolicies", [f"{POLICIES}/theirs"]),
        ("addResourcePolicies", [f"{POLICIES}/ours"]),
    ]


def test_a_disk_keeps_size_and_image_and_its_key_cannot_change(cloud, google):
    key = "projects/keys/locations/r/keyRings/ring/cryptoKeys/key"
    google.store[DISK] = {"sizeGb": "80", "diskEncryptionKey": {"kmsKeyName": f"{key}/cryptoKeyVersions/2"}}
    body = {"sizeGb": "50", "sourceImage": "family/debian-12", "diskEncryptionKey": {"kmsKeyName": key}}
    plan, _ = ensure(cloud, "compute.disks", body, location="z")
    assert plan.action == "none"
    with pytest.raises(CloudError, match=r"diskEncryptionKey\.kmsKeyName is .*/2\", wanted .*other"):
        ensure(cloud, "compute.disks", {"diskEncryptionKey": {"kmsKeyName": f"{key}-other"}}, location="z")


def test_a_snapshot_schedule_is_sent_whole(cloud, google):
    place = "/compute/v1/projects/demo/regions/r/resourcePolicies/a"
    daily = {"dailySchedule": {"daysInCycle": 1, "startTime": "04:00", "duration": "PT14400S"}}
    google.store[place] = {"snapshotSchedulePolicy": {"schedule": daily, "retentionPolicy": {"maxRetentionDays": 14}}}
    wanted = {"snapshotSchedulePolicy": {"retentionPolicy": {"maxRetentionDays": 7}}}
    ensure(cloud, "compute.resourcePolicies", wanted, location="r")
    (sent,) = google.written()
    assert sent.query["updateMask"] == "snapshotSchedulePolicy"
    assert sent.body["snapshotSchedulePolicy"] == {
        "schedule": {"dailySchedule": {"daysInCycle": 1, "startTime": "04:00"}},
        "retentionPolicy": {"maxRetentionDays": 7},
    }


def test_a_database_that_somebody_else_made_meanwhile_is_read_again(cloud, google, fault):
    words = 'Invalid request: failed to create database d. Detail: database "d" already exists'
    google.faults.append(fault("POST", "/databases$", 400, "invalid", words, lands=True))
    plan, after = ensure(cloud, "sqladmin.databases", {"charset": "UTF8"}, name="d", parent="i")
    assert (plan.action, after["charset"]) == ("create", "UTF8")
    assert len(google.written()) == 1
