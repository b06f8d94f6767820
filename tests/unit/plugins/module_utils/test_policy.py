from __future__ import annotations

import pytest
import requests
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.policy import (
    desired_policy,
    ensure_policies,
    policy_differences,
)
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import PartialError
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError
from hypothesis import given
from hypothesis import strategies as st

KEY = "projects/keys/locations/r/keyRings/ring/cryptoKeys/key"
SERVER = "serviceAccount:server@demo.iam.gserviceaccount.com"
CONDITION = {"title": "office hours", "expression": "request.time.getHours() < 18"}


def entry(role="roles/a", members=(SERVER,), mode="additive", kind="project", name=None, **options):
    bindings = [{"role": role, "members": list(members), **{k: v for k, v in options.items() if k == "condition"}}]
    return {"resource": {"kind": kind, "name": name}, "mode": mode, "bindings": bindings}


def bindings(*pairs):
    return {"bindings": [{"role": role, "members": list(members)} for role, members in pairs]}


class Policies:
    """Policies by resource as IAM keeps them, with etags; written by other hands `rivals` times."""

    def __init__(self, google, rivals=0):
        self.stored: dict[str, dict] = {}
        self.rivals = rivals
        self.masks: list = []
        google.special["[:/](getIamPolicy|setIamPolicy|iam)$"] = self.answer

    def answer(self, call):
        resource = call.path.rsplit(":", 1)[0].removesuffix("/iam")
        policy = self.stored.setdefault(resource, {"etag": "0"})
        if call.verb == "GET" or call.path.endswith(":getIamPolicy"):
            return policy
        sent = call.body if call.verb == "PUT" else call.body["policy"]
        self.masks.append(call.body.get("updateMask"))
        assert sent["version"] == 3
        assert sent["etag"] == policy["etag"]
        self.stored[resource] = {**sent, "etag": policy["etag"] + "1"}
        return self.stored[resource]


PROJECT = "/v1/projects/demo"


def test_members_are_added_once(cloud, google):
    policies = Policies(google)
    policies.stored[PROJECT] = {"etag": "0", **bindings(("roles/a", ["user:x@y.z"]), ("roles/b", ["user:x@y.z"]))}
    first = ensure_policies(cloud, [entry()])
    assert policies.stored[PROJECT]["bindings"] == [
        {"role": "roles/a", "members": [SERVER, "user:x@y.z"]},
        {"role": "roles/b", "members": ["user:x@y.z"]},
    ]
    assert first["policies"][0]["differences"] == [
        {"field": "roles/a", "before": ["user:x@y.z"], "after": [SERVER, "user:x@y.z"]}
    ]
    assert ensure_policies(cloud, [entry()])["changed"] is False
    assert len(google.written()) == 1


def test_exclusive_members_are_exact_and_other_roles_stay():
    policy = bindings(("roles/a", ["user:x@y.z"]), ("roles/b", ["user:x@y.z"]))
    policy["bindings"].append({"role": "roles/a", "members": ["user:c@y.z"], "condition": CONDITION})
    desired = desired_policy(policy, [entry(mode="exclusive")])
    assert desired["bindings"] == [
        {"role": "roles/a", "members": [SERVER]},
        {"role": "roles/b", "members": ["user:x@y.z"]},
    ]


def test_confined_members_keep_what_the_entry_gives_them_and_others_keep_theirs():
    policy = bindings(("roles/a", [SERVER, "user:x@y.z"]), ("roles/b", [SERVER, "user:x@y.z"]), ("roles/c", [SERVER]))
    policy["bindings"].append({"role": "roles/a", "members": [SERVER], "condition": CONDITION})
    spelled = {"confined_members": [SERVER.replace("server@", "Server@")]}
    desired = desired_policy(policy, [entry() | spelled])
    assert desired["bindings"] == bindings(("roles/a", [SERVER, "user:x@y.z"]), ("roles/b", ["user:x@y.z"]))["bindings"]
    nothing = desired_policy(policy, [{"resource": {"kind": "project"}, **spelled}])
    assert nothing["bindings"] == bindings(("roles/a", ["user:x@y.z"]), ("roles/b", ["user:x@y.z"]))["bindings"]


def test_no_exclusive_members_take_the_role_away():
    desired = desired_policy(bindings(("roles/a", ["user:x@y.z"])), [entry(members=[], mode="exclusive")])
    assert desired["bindings"] == []


def test_a_condition_makes_a_binding_of_its_own():
    desired = desired_policy(bindings(("roles/a", [SERVER])), [entry(condition={**CONDITION, "description": None})])
    assert desired["bindings"][1] == {"role": "roles/a", "members": [SERVER], "condition": CONDITION}
    assert policy_differences(bindings(("roles/a", [SERVER])), desired)[0].field == "roles/a if office hours"


def test_addresses_are_compared_in_lower_case():
    policy = bindings(("roles/a", [SERVER]))
    assert desired_policy(policy, [entry(members=["serviceAccount:Server@demo.iam.gserviceaccount.com"])]) == policy


def test_audit_logs_are_set_per_service_with_their_mask(cloud, google):
    policies = Policies(google)
    policies.stored[PROJECT] = {
        "etag": "0",
        "auditConfigs": [
            {"service": "s", "auditLogConfigs": [{"logType": "DATA_READ", "exemptedMembers": ["user:x@y.z"]}]},
            {"service": "other", "auditLogConfigs": [{"logType": "DATA_READ"}]},
        ],
    }
    audit = {**entry(), "bindings": [], "audit_configs": [{"service": "s", "log_types": ["DATA_WRITE", "DATA_READ"]}]}
    result = ensure_policies(cloud, [audit])
    assert policies.masks == ["bindings,etag,auditConfigs"]
    assert policies.stored[PROJECT]["auditConfigs"] == [
        {
            "service": "s",
            "auditLogConfigs": [{"logType": "DATA_READ", "exemptedMembers": ["user:x@y.z"]}, {"logType": "DATA_WRITE"}],
        },
        {"service": "other", "auditLogConfigs": [{"logType": "DATA_READ"}]},
    ]
    assert result["policies"][0]["differences"] == [
        {"field": "audit logs of s", "before": ["DATA_READ"], "after": ["DATA_READ", "DATA_WRITE"]}
    ]
    assert ensure_policies(cloud, [audit])["changed"] is False


@pytest.mark.parametrize(
    ("mode", "wanted", "logged"),
    [
        ("additive", ["DATA_WRITE"], {"s": ["ADMIN_READ", "DATA_READ", "DATA_WRITE"], "other": ["DATA_READ"]}),
        ("exclusive", ["DATA_WRITE"], {"s": ["DATA_WRITE"], "other": ["DATA_READ"]}),
        ("exclusive", [], {"other": ["DATA_READ"]}),
        ("absent", ["DATA_READ", "DATA_WRITE"], {"s": ["ADMIN_READ"], "other": ["DATA_READ"]}),
        ("absent", ["ADMIN_READ", "DATA_READ"], {"other": ["DATA_READ"]}),
    ],
)
def test_only_exclusive_and_absent_take_what_others_log(mode, wanted, logged):
    present = {"s": ["DATA_READ", "ADMIN_READ"], "other": ["DATA_READ"]}
    configs = [{"service": s, "auditLogConfigs": [{"logType": t} for t in types]} for s, types in present.items()]
    audit = {"mode": mode, "bindings": [], "audit_configs": [{"service": "s", "log_types": wanted}]}
    after = desired_policy({"auditConfigs": configs}, [audit])["auditConfigs"]
    assert {one["service"]: [log["logType"] for log in one["auditLogConfigs"]] for one in after} == logged


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("storage.buckets", "/storage/v1/b/a"),
        ("secretmanager.secrets", "/v1/projects/demo/secrets/a"),
        ("iam.serviceAccounts", "/v1/projects/demo/serviceAccounts/a@demo.iam.gserviceaccount.com"),
        ("cloudkms.cryptoKeys", f"/v1/{KEY}"),
        ("dns.managedZones", "/dns/v1/projects/demo/managedZones/a"),
    ],
)
def test_each_kind_has_its_own_way(cloud, google, kind, path):
    policies = Policies(google)
    ensure_policies(cloud, [entry(kind=kind, name=KEY if kind == "cloudkms.cryptoKeys" else "a")])
    assert policies.stored[path]["bindings"] == [{"role": "roles/a", "members": [SERVER]}]
    asked = google.calls[0]
    assert 3 in (asked.query or asked.body["options"]).values()


def test_entries_of_one_resource_are_written_together(cloud, google):
    Policies(google)
    result = ensure_policies(
        cloud, [entry("roles/a"), entry("roles/b"), entry("roles/c", kind="storage.buckets", name="b")]
    )
    assert len(google.written()) == 2
    assert [member["name"] for member in result["policies"]] == ["demo", "b"]


@pytest.mark.parametrize("status", [409, 412])
def test_a_faster_writer_is_not_overwritten(cloud, google, fault, status):
    policies = Policies(google)
    google.faults.append(fault("POST", "setIamPolicy", status, "ABORTED", times=7))
    ensure_policies(cloud, [entry()])
    assert policies.stored[PROJECT]["bindings"] == [{"role": "roles/a", "members": [SERVER]}]
    assert sum(call.path.endswith(":getIamPolicy") for call in google.calls) == 8


def test_a_write_without_an_answer_is_looked_for(cloud, google, fault):
    Policies(google)
    google.faults.append(fault("POST", "setIamPolicy", raises=requests.ConnectionError("reset"), lands=True))
    assert ensure_policies(cloud, [entry()])["changed"] is True
    assert len(google.written()) == 1


def test_a_new_service_account_is_waited_for(cloud, google, fault, clock):
    Policies(google)
    message = "Service account server@demo.iam.gserviceaccount.com does not exist."
    google.faults.append(fault("POST", "setIamPolicy", 400, "badRequest", message, times=6))
    ensure_policies(cloud, [entry()])
    assert clock.now > 5


def test_waiting_for_a_service_account_ends(cloud, google, fault, clock):
    Policies(google)
    message = "Service account server@demo.iam.gserviceaccount.com does not exist."
    google.faults.append(fault("POST", "setIamPolicy", 400, "badRequest", message, times=999))
    with pytest.raises(
        PartialError, match=r"Writing the IAM policy of project demo: Service account .* does not exist"
    ):
        ensure_policies(cloud, [entry()])
    assert 120 < clock.now < 200


def test_check_mode_writes_nothing_and_takes_what_is_missing_for_empty(checking, google):
    result = ensure_policies(checking, [entry(kind="storage.buckets", name="missing")])
    assert result["changed"] is True
    assert google.written() == []
    assert "storage.buckets missing counts as empty" in checking.warnings[0]


def test_a_missing_resource_fails_outside_check_mode(cloud):
    with pytest.raises(PartialError, match=r"Reading the IAM policy of storage.buckets missing"):
        ensure_policies(cloud, [entry(kind="storage.buckets", name="missing")])


AGENTS = ["serviceAgent:storage.googleapis.com", "serviceAgent:sqladmin.googleapis.com"]


def test_agents_of_services_are_made_and_go_by_their_addresses(cloud, google):
    policies = Policies(google)
    google.store["/v1/projects/demo"] = {"projectNumber": "17"}
    google.store["/storage/v1/projects/demo/serviceAccount"] = {}
    google.special[":generateServiceIdentity$"] = lambda _call: {"name": "operations/1", "done": True}
    wish = entry(kind="cloudkms.cryptoKeys", name=KEY, members=AGENTS)

    assert ensure_policies(cloud, [wish])["changed"] is True

    assert policies.stored[f"/v1/{KEY}"]["bindings"][0]["members"] == [
        "serviceAccount:service-17@gcp-sa-cloud-sql.iam.gserviceaccount.com",
        "serviceAccount:service-17@gs-project-accounts.iam.gserviceaccount.com",
    ]
    made = [call.path for call in google.calls if "service" in call.path]
    assert made == [
        "/v1beta1/projects/17/services/sqladmin.googleapis.com:generateServiceIdentity",
        "/storage/v1/projects/demo/serviceAccount",
    ]
    google.calls.clear()
    assert ensure_policies(cloud, [wish])["changed"] is False
    # The project's number is known from before.
    assert [call.path for call in google.calls] == [f"/v1/{KEY}:getIamPolicy"]


def test_agents_of_a_project_that_does_not_tell_its_number_are_predicted(checking, google, fault):
    Policies(google)
    google.faults.append(fault("GET", "projects/demo$", 403, "accessNotConfigured", times=9))
    result = ensure_policies(checking, [entry(kind="cloudkms.cryptoKeys", name=KEY, members=AGENTS[:1])])
    members = result["policies"][0]["differences"][0]["after"]
    assert members == ["serviceAccount:service-project-number@gs-project-accounts.iam.gserviceaccount.com"]
    assert google.written() == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            entry(members=["serviceAgent:run.googleapis.com"]),
            "serviceAgent:run.googleapis.com: no such agent",
        ),
        (entry(kind="storage.buckets"), "resource.name is missing"),
        ({**entry(kind="storage.buckets", name="b"), "audit_configs": []}, "audit_configs belong to the project"),
    ],
)
def test_a_wrong_entry_is_refused_before_the_first_call(cloud, google, wrong, message):
    with pytest.raises(CloudError, match=message):
        ensure_policies(cloud, [entry(), wrong])
    assert google.calls == []


ROLES = st.sampled_from(["roles/a", "roles/b"])
MEMBERS = st.lists(st.sampled_from(["user:a@x.y", "user:b@x.y", SERVER, "allUsers"]), max_size=3)
BINDINGS = st.lists(
    st.fixed_dictionaries({"role": ROLES, "members": MEMBERS}, optional={"condition": st.just(CONDITION)}), max_size=4
)
ENTRIES = st.lists(
    st.fixed_dictionaries({"bindings": BINDINGS, "mode": st.sampled_from(["additive", "exclusive"])}), max_size=1
)


@given(BINDINGS, ENTRIES)
def test_a_policy_applied_twice_is_the_same(current, entries):
    once = desired_policy({"bindings": current}, entries)
    assert policy_differences(once, desired_policy(once, entries)) == []


@given(BINDINGS, BINDINGS)
def test_additive_takes_nothing_away(current, added):
    before = {"bindings": current}
    after = desired_policy(before, [{"bindings": added, "mode": "additive"}])
    assert all(set(difference.before) <= set(difference.after) for difference in policy_differences(before, after))


def test_members_are_taken_away_also_under_the_name_of_the_deleted(cloud, google):
    policies = Policies(google)
    before = bindings(("roles/a", [SERVER, f"deleted:{SERVER}?uid=17", "user:x@y.z"]), ("roles/b", [SERVER]))
    policies.stored[PROJECT] = {"etag": "0", **before}
    first = ensure_policies(cloud, [entry(mode="absent")])
    assert policies.stored[PROJECT]["bindings"] == [
        {"role": "roles/a", "members": ["user:x@y.z"]},
        {"role": "roles/b", "members": [SERVER]},
    ]
    assert first["changes"] == [f"update IAM policy of project demo: roles/a -deleted:{SERVER}?uid=17 -{SERVER}"]
    assert ensure_policies(cloud, [entry(mode="absent")])["changed"] is False


def test_nothing_has_to_be_taken_away_from_what_is_not_there(cloud, google):
    done = ensure_policies(cloud, [entry(mode="absent", kind="storage.buckets", name="gone")])
    assert (done["changed"], cloud.warnings) == (False, [])
