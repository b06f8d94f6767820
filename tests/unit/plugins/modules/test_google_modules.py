"""Arguments, documentation and results of the Google Cloud modules; their work is tested with module_utils."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
import yaml
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_gcp.plugins.doc_fragments import google_cloud, policies
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import module as module_util
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import KINDS, READABLE

NAMES = [
    "gcp_action",
    "gcp_resource",
    "gcp_resource_info",
    "gcp_iam",
    "gcp_secret",
    "gcp_sql_user",
    "gcp_vm",
    "deployment_status",
]
PLUGINS = "ansible_collections.mlops.mlflow_gcp.plugins.modules"


class EndedError(Exception):
    """The module has ended."""


def imported(name: str) -> Any:
    return importlib.import_module(f"{PLUGINS}.{name}")


@pytest.fixture
def run(monkeypatch, google, clock, capsys):
    """Run a module against the fake Google and return what it prints."""
    session = module_util.Session

    def connected(project, **options):
        return session(project, transport=google, sleep=clock.sleep, clock=clock, **options)

    monkeypatch.setattr(module_util, "Session", connected)

    def run_module(module: str, /, **arguments: Any) -> dict:
        with patch_module_args({"project": "demo", **arguments}), pytest.raises(SystemExit):
            imported(module).main()
        printed: dict = json.loads(capsys.readouterr().out)
        return printed

    return run_module


@pytest.mark.parametrize("name", NAMES)
def test_the_documentation_and_the_arguments_agree(monkeypatch, name):
    caught: dict[str, Any] = {}

    def catch(_self, argument_spec, **_):
        caught.update(argument_spec)
        raise EndedError

    monkeypatch.setattr(basic.AnsibleModule, "__init__", catch)
    with pytest.raises(EndedError):
        imported(name).main()
    assert described(documented(name), "suboptions") == described(caught, "options")


def documented(name: str) -> dict:
    """The options of a module's documentation, those of its fragments among them."""
    documentation = yaml.safe_load(imported(name).DOCUMENTATION)
    options: dict = documentation["options"]
    for fragment in (google_cloud, policies):
        if (
            f"mlops.mlflow_gcp.{fragment.__name__.rpartition('.')[2]}"
            in documentation["extends_documentation_fragment"]
        ):
            options |= yaml.safe_load(fragment.ModuleDocFragment.DOCUMENTATION)["options"]
    return options


def described(options: dict, nested: str) -> dict:
    """What documentation and argument specification have in common."""
    return {
        name: {
            "type": option.get("type"),
            "elements": option.get("elements"),
            "required": option.get("required", False),
            "default": option.get("default"),
            "choices": option.get("choices") and sorted(option["choices"]),
            "nested": described(option.get(nested) or {}, nested),
        }
        for name, option in options.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_examples_use_documented_options(name):
    options = documented(name).keys()
    tasks = [task for task in yaml.safe_load(imported(name).EXAMPLES) if f"mlops.mlflow_gcp.{name}" in task]
    assert tasks
    for task in tasks:
        assert task[f"mlops.mlflow_gcp.{name}"].keys() <= options


def test_every_kind_is_documented():
    for name, kinds in (("gcp_resource", KINDS), ("gcp_resource_info", READABLE), ("gcp_action", READABLE)):
        options = yaml.safe_load(imported(name).DOCUMENTATION)["options"]
        assert options["kind"]["choices"] == sorted(kinds)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gcp_resource", {}, "one of the following is required: resources, kind"),
        ("gcp_resource", {"kind": "compute.networks"}, "required together: kind, name"),
        ("gcp_resource", {"kind": "compute.networkz", "name": "a"}, "value of kind must be one of"),
        (
            "gcp_resource",
            {"kind": "compute.networks", "name": "a", "resources": []},
            "mutually exclusive: resources|kind",
        ),
        ("gcp_resource", {"resources": [{"kind": "compute.networks"}]}, "missing required arguments: name"),
        ("gcp_action", {"kind": "sqladmin.instances"}, "missing required arguments: action"),
        ("gcp_action", {"kind": "compute.networkz", "action": "a"}, "value of kind must be one of"),
        ("gcp_vm", {"zone": "z", "name": "a"}, "missing required arguments: disk_size_gib, machine_type"),
        ("gcp_iam", {}, "one of the following is required: policies, resource"),
        ("gcp_iam", {"policies": [], "resource": {"kind": "project"}}, "mutually exclusive: policies|resource"),
        ("gcp_secret", {"secrets": [{"name": "a"}]}, "one of the following is required: generate, value"),
        (
            "gcp_secret",
            {"secrets": [{"name": "a", "generate": {}, "value": "hunter2"}]},
            "mutually exclusive: generate|value",
        ),
        ("gcp_sql_user", {"instance": "i"}, "missing required arguments: users"),
        (
            "gcp_sql_user",
            {"instance": "i", "users": [{"name": "u", "password": "hunter2", "password_secret": "s"}]},
            "mutually exclusive: password|password_secret",
        ),
    ],
)
def test_wrong_arguments_are_refused(run, google, name, arguments, message):
    result = run(name, **arguments)
    assert result["failed"] is True
    assert message in result["msg"]
    assert google.calls == []


def test_the_single_form_is_a_batch_of_one(run, google):
    result = run("gcp_resource", kind="storage.buckets", name="a", body={"versioning": {"enabled": True}})
    assert result["changed"] is True
    assert result["resources"][0]["action"] == "create"
    assert google.store["/storage/v1/b/a"]["versioning"] == {"enabled": True}


def test_check_mode_reaches_the_session(run, google):
    result = run("gcp_resource", kind="storage.buckets", name="a", _ansible_check_mode=True, _ansible_diff=True)
    assert result["changed"] is True
    assert result["diff"][0]["after"] == {"state": "present"}
    assert google.written() == []


def test_a_failure_is_told_with_what_was_done(run, google, fault):
    google.faults.append(fault("GET", "/b/a$", 403, "forbidden", "no access"))
    buckets = [{"kind": "storage.buckets", "name": name} for name in ("a", "b")]
    result = run("gcp_resource", resources=buckets)
    assert result["failed"] is True
    more = "More: docs/failures.md#google-does-not-allow-it"
    assert result["msg"] == f"Reading storage.buckets a: no access (HTTP 403 forbidden)\n{more}"
    assert [member["name"] for member in result["resources"]] == ["b"]


def test_secrets_stay_out_of_every_result(run, google):
    google.special["/versions$|:addVersion$"] = lambda _: {}
    results = [
        run("gcp_secret", secrets=[{"name": "a", "value": "hunter2"}]),
        run(
            "gcp_resource",
            kind="sqladmin.instances",
            name="i",
            body={"region": "r"},
            sensitive_body={"rootPassword": "hunter2"},
        ),
        run("gcp_sql_user", instance="none", users=[{"name": "u", "password": "hunter2"}]),
    ]
    assert "hunter2" not in json.dumps(results)
    assert google.store["/v1/projects/demo/instances/i"]["rootPassword"] == "hunter2"


def test_resources_are_read(run, google):
    google.store["/storage/v1/b/a"] = {"name": "a"}
    assert run("gcp_resource_info", kind="storage.buckets", name="a")["resources"] == [{"name": "a"}]
    assert run("gcp_resource_info", kind="storage.buckets", name="b")["resources"] == []


def test_a_policy_is_written(run, google):
    google.special[":(get|set)IamPolicy$"] = lambda _: {"etag": "0"}
    result = run("gcp_iam", resource={"kind": "project"}, bindings=[{"role": "roles/a", "members": ["user:x@y.z"]}])
    assert result["changed"] is True
    assert google.written()[0].body["policy"]["bindings"] == [{"role": "roles/a", "members": ["user:x@y.z"]}]


@pytest.mark.parametrize("check", [True, False])
def test_policies_follow_what_they_belong_to_in_one_result(run, google, check):
    google.special["/iam$"] = lambda _: {"etag": "0"}
    grant = {"role": "roles/a", "members": ["user:x@y.z"]}
    policy = {"resource": {"kind": "storage.buckets", "name": "b"}, "bindings": [grant]}
    result = run("gcp_resource", kind="storage.buckets", name="b", policies=[policy], _ansible_check_mode=check)
    assert result["changes"] == [
        "create storage.buckets b",
        "update IAM policy of storage.buckets b: roles/a +user:x@y.z",
    ]
    assert [one["after_header"] for one in result["diff"]] == ["storage.buckets b", "IAM policy of storage.buckets b"]
    assert [call.verb for call in google.written()] == ([] if check else ["POST", "PUT"])


@pytest.mark.parametrize(("check", "member"), [(True, "user:(known after create)@y.z"), (False, "user:b@y.z")])
def test_policies_refer_to_what_was_made_before(run, google, check, member):
    google.special["/iam$"] = lambda _: {"etag": "0"}
    grant = {"role": "roles/a", "members": ["user:$(ref.storage.buckets/b:name)@y.z"]}
    policy = {"resource": {"kind": "storage.buckets", "name": "b"}, "bindings": [grant]}
    result = run("gcp_resource", kind="storage.buckets", name="b", policies=[policy], _ansible_check_mode=check)
    assert result["changes"][1] == f"update IAM policy of storage.buckets b: roles/a +{member}"
    alone = run("gcp_secret", secrets=[], policies=[policy])
    more = "More: docs/failures.md#problems-found"
    assert alone["msg"] == f"There is no storage.buckets b beside what refers to it\n{more}"


def test_no_policy_is_touched_after_a_resource_that_failed(run, google, fault):
    google.faults.append(fault("POST", "/b$", 403, "forbidden", "No."))
    policy = {"resource": {"kind": "project"}, "bindings": [{"role": "roles/a", "members": ["user:x@y.z"]}]}
    members = [{"kind": "storage.buckets", "name": "b"}, {"kind": "compute.addresses", "name": "a", "location": "r"}]
    result = run("gcp_resource", resources=members, policies=[policy])
    assert result["failed"]
    assert "Creating storage.buckets b: No." in result["msg"]
    assert result["changes"] == ["create compute.addresses a"]
    assert "policies" not in result
    assert not any("IamPolicy" in call.path for call in google.calls)


def test_an_action_is_done(run, google):
    google.special["/reset$"] = lambda _: {"name": "o", "status": "DONE"}
    arguments = {"kind": "compute.instances", "location": "z", "name": "a", "action": "reset"}
    assert run("gcp_action", **arguments, _ansible_check_mode=True)["changed"] is True
    assert google.written() == []
    assert run("gcp_action", **arguments)["changes"] == ["reset compute.instances a: action"]
    assert google.written()[0].path.endswith("/zones/z/instances/a/reset")


def test_warnings_are_told_with_a_failure(run, google, fault):
    google.store["/v1/projects/demo/instances/a"] = {"state": "RUNNABLE", "settings": {"tier": "a"}}
    error = {"errors": [{"code": "INTERNAL_ERROR", "message": "No such machine."}]}
    ended = {"name": "o", "status": "DONE", "operationType": "UPDATE", "error": error}
    operations = iter([{"items": [{**ended, "status": "RUNNING"}]}])
    google.special = {"/operations$": lambda _: next(operations, {}), "/operations/o$": lambda _: ended}
    google.faults.append(fault("PATCH", "/a$", 409, "operationInProgress"))
    google.faults.append(fault("PATCH", "/a$", 400, "invalid", "Invalid tier."))
    result = run("gcp_resource", kind="sqladmin.instances", name="a", body={"settings": {"tier": "b"}})
    assert "Invalid tier." in result["msg"]
    assert "waiting for the UPDATE begun before: No such machine. (INTERNAL_ERROR)" in json.dumps(result["warnings"])


def test_a_missing_library_is_named(run, google, monkeypatch):
    monkeypatch.setattr(module_util, "MISSING_LIBRARY", "google.auth")
    assert "google.auth" in run("gcp_resource_info", kind="storage.buckets", name="a")["msg"]
    assert google.calls == []
