from __future__ import annotations

import pytest
import requests
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.action import WantedAction, actions, do
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import READABLE
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import ApiError, CloudError

INSTANCE = "/v1/projects/demo/instances/a"
VM = "/compute/v1/projects/demo/zones/z/instances/a"
FAILOVER = {"kind": "sqladmin.instances", "name": "a", "action": "failover"}
ZONE_B = {"fields": {"gceZone": "b"}}


def ended(google, effect=lambda: None):
    """Let verbs of the instance end at once, with an effect."""
    google.special["/instances/a/(failover|restart|promoteReplica)$"] = lambda _: (
        effect() or {"name": "o", "status": "DONE", "targetId": "a"}
    )


def fail_over(google):
    google.store[INSTANCE] = {"state": "RUNNABLE", "gceZone": "a"}
    ended(google, lambda: google.store[INSTANCE].update(gceZone="b"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"action": "failovr"}, "sqladmin.instances: has no action failovr; it has RotateEntraIdCertificate,"),
        ({"kind": "sqladmin.databases", "parent": "i"}, "sqladmin.databases: has no action failover; it has none"),
        ({"kind": "sqladmin.backupRuns", "parent": "i"}, "has no action failover; it has delete, insert"),
        ({"action": "patch"}, "sqladmin.instances: has no action patch"),
        ({"action": "get"}, "sqladmin.instances: has no action get"),
        ({"name": None}, "failover of sqladmin.instances: name is missing"),
        ({"body": {"failovrContext": {}}}, "failovrContext: no such field; did you mean failoverContext?"),
        ({"body": {"failoverContext": {"settingsVersion": "x"}}}, "settingsVersion: 'x' is not a whole number"),
        ({"action": "promoteReplica", "body": {"a": 1}}, "takes no body, leave it out"),
        ({"location": "r"}, "location 'r' has no place in its URL"),
        ({"unless": {"fields": {"zone": "b"}}}, "unless.fields.zone: no such field"),
        ({"unless": {"kind": "sqladmin.databases", "name": "d"}}, "unless: sqladmin.databases d: parent is missing"),
        ({"kind": "sqladmin.backupRuns", "action": "insert", "name": None}, "parent is missing, the instance it"),
        (
            {"kind": "sqladmin.backupRuns", "action": "insert", "parent": "a"},
            "name 'a' has no place in its URL, leave it out",
        ),
        (
            {
                "action": "restoreBackup",
                "body": {"restoreInstanceSettings": {"rootPassword": "hunter2"}},
            },
            "restoreInstanceSettings.rootPassword: is a secret",
        ),
        (
            {"kind": "compute.disks", "action": "resize", "location": "z", "body": {"size_gb": 1}},
            "size_gb: no such field; did you mean sizeGb?",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(cloud, google, options, problem):
    with pytest.raises(CloudError) as caught:
        do(cloud, WantedAction(**{**FAILOVER, **options}))
    assert problem in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert google.calls == []


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("sqladmin.instances", {"clone", "failover", "promoteReplica", "restart", "restoreBackup"}),
        ("sqladmin.backupRuns", {"insert", "delete"}),
        ("compute.instances", {"reset", "start", "stop"}),
        ("compute.disks", {"createSnapshot"}),
    ],
)
def test_a_kind_has_the_verbs_that_google_has(kind, some):
    assert some <= actions(kind)


@pytest.mark.parametrize("kind", READABLE)
def test_no_verb_reads_or_does_the_work_of_another_module(kind):
    assert not {"get", "list", "setIamPolicy", "getIamPolicy"} & actions(kind)


def test_it_is_done_once(cloud, google):
    fail_over(google)
    result = do(cloud, WantedAction(**FAILOVER, unless=ZONE_B))
    assert result["changed"] is True
    assert result["changes"] == ["failover sqladmin.instances a: gceZone"]
    assert result["differences"] == [{"field": "gceZone", "before": "a", "after": "b"}]
    assert result["answer"]["targetId"] == "a"
    google.calls.clear()
    result = do(cloud, WantedAction(**FAILOVER, unless=ZONE_B))
    assert (result["changed"], result["answer"], result["diff"]) == (False, None, [])
    assert [call.verb for call in google.calls] == ["GET"]


def test_check_mode_predicts_and_sends_nothing(cloud, checking, google):
    fail_over(google)
    predicted = do(checking, WantedAction(**FAILOVER, unless=ZONE_B))
    assert google.written() == []
    done = do(cloud, WantedAction(**FAILOVER, unless=ZONE_B))
    for part in ("changed", "changes", "differences", "diff"):
        assert predicted[part] == done[part]
    assert checking.warnings == []


def test_check_mode_says_what_does_not_exist_yet(checking, google):
    google.store["/v1/projects/demo/instances"] = {}
    assert do(checking, WantedAction(**FAILOVER, unless=ZONE_B))["changed"] is True
    assert checking.warnings == ["failover of sqladmin.instances a: sqladmin.instances a does not exist yet"]


def test_without_a_condition_it_is_always_done(cloud, google):
    fail_over(google)
    for _ in range(2):
        result = do(cloud, WantedAction(**FAILOVER, body={"failoverContext": {"settingsVersion": 3}}))
        assert result["changed"] is True
        assert result["differences"] == [
            {"field": "body", "before": None, "after": {"failoverContext": {"settingsVersion": "3"}}}
        ]
    assert len(google.written()) == 2


def test_a_verb_of_a_machine_goes_to_its_zone(cloud, google):
    google.store[VM] = {"status": "RUNNING"}
    google.special["/reset$"] = lambda _: {"name": "o", "zone": "zones/z", "status": "RUNNING"}
    result = do(cloud, WantedAction("compute.instances", "reset", "a", "z"))
    assert result["changes"] == ["reset compute.instances a: action"]
    assert google.written()[0].path == f"{VM}/reset"


def test_a_snapshot_of_a_disk_is_there_or_not(cloud, google):
    snapshot = "/compute/v1/projects/demo/global/snapshots/s"
    google.special["/createSnapshot$"] = lambda call: google.store.update({snapshot: call.body}) or {"status": "DONE"}
    wanted = WantedAction(
        "compute.disks",
        "createSnapshot",
        "d",
        "z",
        body={"name": "s"},
        unless={"kind": "compute.snapshots", "name": "s"},
    )
    assert do(cloud, wanted)["changes"] == ["createSnapshot compute.disks d: compute.snapshots s, body"]
    assert do(cloud, wanted)["changed"] is False


def test_what_is_gone_already_is_not_deleted_again(cloud, google):
    google.store[f"{INSTANCE}/backupRuns/7"] = {"id": "7"}
    wanted = WantedAction("sqladmin.backupRuns", "delete", "7", parent="a", unless={"state": "absent"})
    assert do(cloud, wanted)["changes"] == ["delete sqladmin.backupRuns 7"]
    assert do(cloud, wanted)["changed"] is False
    assert len(google.written()) == 1


def test_any_of_a_list_will_do(cloud, google):
    runs = [{"description": "daily", "status": "SUCCESSFUL"}, {"description": "b", "status": "FAILED"}]
    google.special["/backupRuns$"] = lambda call: (
        {"items": runs}
        if call.verb == "GET"
        else runs.append({**call.body, "status": "SUCCESSFUL"}) or {"status": "DONE"}
    )
    fields = {"description": "b", "status": "SUCCESSFUL"}
    wanted = WantedAction(
        "sqladmin.backupRuns", "insert", parent="a", body={"description": "b"}, unless={"fields": fields}
    )
    assert do(cloud, wanted)["changes"] == ["insert sqladmin.backupRuns a: body"]
    assert do(cloud, wanted)["changed"] is False


# When Google is busy, slow or silent


@pytest.mark.parametrize("failure", [{"status": 503}, {"raises": requests.ReadTimeout()}])
def test_what_may_have_landed_is_not_sent_again(cloud, google, fault, failure):
    fail_over(google)
    google.faults.append(fault("POST", "/failover$", **failure, times=9))
    for unless in (None, ZONE_B):
        google.calls.clear()
        with pytest.raises(CloudError, match="may have been carried out, so it was not repeated"):
            do(cloud, WantedAction(**FAILOVER, unless=unless))
        assert len(google.written()) == 1


def test_what_landed_without_an_answer_is_seen_by_its_effect(cloud, google, fault):
    fail_over(google)
    google.faults.append(fault("POST", "/failover$", raises=requests.ReadTimeout(), lands=True))
    result = do(cloud, WantedAction(**FAILOVER, unless=ZONE_B))
    assert (result["changed"], result["answer"]) == (True, {})
    assert len(google.written()) == 1


def test_what_an_interrupted_run_began_is_waited_for_and_not_repeated(cloud, google):
    fail_over(google)
    google.special["/projects/demo/operations$"] = lambda call: {
        "items": [{"name": "o", "status": "RUNNING", "operationType": "FAILOVER"}]
    }

    def end(_):
        google.store[INSTANCE]["gceZone"] = "b"
        return {"name": "o", "status": "DONE"}

    google.special["/operations/o$"] = end
    assert do(cloud, WantedAction(**FAILOVER, unless=ZONE_B))["changed"] is False
    assert google.written() == []


def test_what_an_interrupted_run_began_and_failed_is_told_and_done(cloud, google):
    fail_over(google)
    answers = iter([{"items": [{"name": "o", "status": "RUNNING", "operationType": "FAILOVER"}]}])
    google.special["/projects/demo/operations$"] = lambda call: next(answers, {})
    error = {"errors": [{"code": "INTERNAL_ERROR", "message": "No standby."}]}
    google.special["/operations/o$"] = lambda _: {"name": "o", "status": "DONE", "error": error}
    assert do(cloud, WantedAction(**FAILOVER, unless=ZONE_B))["changed"] is True
    assert cloud.warnings == [
        "failover of sqladmin.instances a, waiting for the FAILOVER begun before: No standby. (INTERNAL_ERROR)"
    ]


def test_somebody_elses_operation_is_waited_for(cloud, google, fault, clock):
    fail_over(google)
    google.faults.append(fault("POST", "/failover$", 409, "operationInProgress", times=3))
    assert do(cloud, WantedAction(**FAILOVER, unless=ZONE_B))["changed"] is True
    assert clock.now > 2


def test_a_refusal_is_told_in_googles_words(cloud, google, fault):
    fail_over(google)
    google.faults.append(fault("POST", "/failover$", 400, "invalid", "No high availability."))
    with pytest.raises(ApiError, match=r"failover of sqladmin.instances a: No high availability\."):
        do(cloud, WantedAction(**FAILOVER, unless=ZONE_B))


def test_an_operation_that_fails_is_told_in_googles_words(cloud, google):
    fail_over(google)
    error = {"errors": [{"code": "INTERNAL_ERROR", "message": "No standby."}]}
    google.special = {"/failover$": lambda _: {"name": "o", "status": "DONE", "error": error}}
    with pytest.raises(CloudError, match=r"failover of sqladmin.instances a: No standby\."):
        do(cloud, WantedAction(**FAILOVER, unless=ZONE_B))


def test_an_effect_that_does_not_show_is_warned_of(cloud, google, clock):
    fail_over(google)
    ended(google)
    assert do(cloud, WantedAction(**FAILOVER, unless=ZONE_B))["changed"] is True
    assert cloud.warnings == [
        "failover of sqladmin.instances a: done, but unless still lacks gceZone; the next run would repeat it"
    ]
    assert clock.now > 60
