"""The cloud half of rotate.yml: one new version however often a run is killed, and the old ones disabled at the end."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest

from tests.provision.conftest import Json, Run, Task, World, writes
from tests.unit.emulator.conftest import PROJECT

ADMIN, FLASK, DATABASE = "mlflow-admin-password", "mlflow-flask-secret-key", "mlflow-database-password"
# What MLflow encrypts with.
WEBHOOK, GATEWAY = "mlflow-webhook-secret-encryption-key", "mlflow-crypto-kek-passphrase"
IAP_AUDIENCE = "/projects/1/global/backendServices/2"
UNAUTHENTICATED = {
    "platform_mlflow_authentication": "none",
    "platform_mlflow_unauthenticated_acknowledged": True,
    "platform_https_source_ranges": ["10.0.0.0/8"],
}
SECRETS = "secretmanager.projects.secrets"
Play = Callable[..., Run]


def rotate(play: Play, *what: str, uses: Json | None = None, arguments: tuple[str, ...] = ()) -> Run:
    """Run the playbook; `uses` is what the server, which is not real here, would say that it uses."""
    said = json.dumps({"gcp_secret_rotation_uses": {"mlflow-1": uses or {}}})
    choice = ("-e", f"platform_rotate={','.join(what)}") if what else ()
    return play("--limit", "localhost", *choice, "-e", said, *arguments, playbook="playbooks/rotate.yml")


def states(world: World, name: str) -> list[str]:
    """Return the states of a secret's versions, oldest first."""
    prefix = f"secretmanager/projects/{PROJECT}/secrets/{name}/versions/"
    found = {key: one["state"] for key, one in world.state.resources.items() if key.startswith(prefix)}
    return [found[f"{prefix}{number}"] for number in range(1, len(found) + 1)]


def value(world: World, name: str, number: int) -> str:
    key = f"secretmanager/projects/{PROJECT}/secrets/{name}/versions/{number}"
    return base64.b64decode(world.state.resources[key]["_data"]).decode()


def noted(world: World, name: str) -> Json:
    annotations = world.state.resources[f"secretmanager/projects/{PROJECT}/secrets/{name}"].get("annotations", {})
    return dict(annotations)


def called(world: World, since: int) -> list[str]:
    return [call["method"].rpartition(".")[2] for call in writes(world.calls(since)) if call["status"] == 200]


def test_without_a_choice_the_choices_are_named_and_nothing_is_done(world: World, play: Play) -> None:
    with world.untouched():
        refused = rotate(play)
        unknown = rotate(play, "crypto_kek_passphrase", "webhook_key")
    assert "not something that this deployment has: webhook_key" in unknown.output
    assert unknown.code != 0
    assert refused.code != 0
    assert (
        "or several with commas in between: admin_password, certificate, crypto_kek_passphrase, flask_secret_key,"
        " service_account_bindings, webhook_secret_encryption_key" in refused.output
    )


@pytest.mark.parametrize(
    ("authentication", "missing", "given"),
    [
        ({"platform_mlflow_authentication": "iap", "platform_iap_audience": IAP_AUDIENCE}, "certificate", "admin_"),
        (UNAUTHENTICATED, "admin_password", "certificate"),
        (UNAUTHENTICATED, "flask_secret_key", "certificate"),
    ],
)
def test_what_a_way_of_signing_in_does_not_have_is_no_choice(
    world: World, play: Play, authentication: Json, missing: str, given: str
) -> None:
    with world.untouched():
        refused = rotate(play, missing, arguments=("-e", json.dumps(authentication)))
    assert f"not something that this deployment has: {missing}" in refused.output
    assert f"with commas in between: {given}" in refused.output


def test_a_run_that_ends_before_the_servers_use_the_new_version_is_finished_by_the_next(
    world: World, play: Play
) -> None:
    choices = ("admin_password", "flask_secret_key", "webhook_secret_encryption_key", "crypto_kek_passphrase")
    names = (ADMIN, FLASK, WEBHOOK, GATEWAY)
    with world.untouched():
        check = rotate(play, *choices, arguments=("--check", "--diff"))
    assert check.code == 0, check.errors
    for name in names:
        assert (
            f"{name}: another version would take the place of version 1, which would then be disabled" in check.output
        )

    since = world.count
    ended = rotate(play, *choices, uses={**dict.fromkeys(names, "2"), GATEWAY: "1"})

    assert ended.code != 0
    assert f"not every server was seen to use the new ones in this run: {GATEWAY} on mlflow-1." in ended.output
    assert sorted(called(world, since)) == ["addVersion"] * 4 + ["patch"] * 4
    for name in names:
        assert states(world, name) == ["ENABLED", "ENABLED"]
        assert value(world, name, 1) != value(world, name, 2)

    since = world.count
    done = rotate(play, *choices, uses=dict.fromkeys(names, "2"))

    assert done.code == 0, done.errors
    assert "the rotation that began before is finished" in done.output
    assert sorted(called(world, since)) == ["disable"] * 4 + ["patch"] * 4
    for name in names:
        assert states(world, name) == ["DISABLED", "ENABLED"]
        assert noted(world, name) == {}
    for run in (check, ended, done):
        assert not [one for name in names for n in (1, 2) if (one := value(world, name, n)) in run.output]

    another = rotate(play, "admin_password", uses={ADMIN: "3"})

    assert another.code == 0, another.errors
    assert states(world, ADMIN) == ["DISABLED", "DISABLED", "ENABLED"]
    assert states(world, FLASK) == ["DISABLED", "ENABLED"]


# Where a run ends: the call from which on nothing goes any more, and the states of the versions that it leaves.
ENDS: dict[str, tuple[Json, list[str]]] = {
    "before the rotation is noted": ({"method": f"{SECRETS}.patch"}, ["ENABLED"]),
    "before there is a new version": ({"method": f"{SECRETS}.addVersion"}, ["ENABLED"]),
    "before the old version is disabled": ({"method": f"{SECRETS}.versions.disable"}, ["ENABLED", "ENABLED"]),
    "before the rotation is forgotten": (
        {"method": f"{SECRETS}.patch", "after": f"{SECRETS}.versions.disable"},
        ["DISABLED", "ENABLED"],
    ),
}


def attempt(world: World, wanted: Json) -> Json:
    """Do what the playbook does of a secret until something fails, with a server that takes the new version."""
    begun = world.module("gcp_secret", {"project": PROJECT, "secrets": [{**wanted, "rotation": "begin"}]})
    if begun.get("failed"):
        return begun
    ending = {**wanted, "rotation": "end", "used_version": begun["secrets"][0]["version"]}
    return world.module("gcp_secret", {"project": PROJECT, "secrets": [ending]})


@pytest.mark.parametrize("step", ENDS)
def test_a_rotation_that_ended_at_any_step_is_finished_by_the_next(world: World, tasks: list[Task], step: str) -> None:
    (stated,) = [task.arguments["secrets"] for task in tasks if task.module == "gcp_secret"]
    wanted = next(one for one in stated if one["name"] == ADMIN)
    fault, left = ENDS[step]
    world.running.server.faults.append({"times": 1000, "status": 403, **fault})

    ended = attempt(world, wanted)

    assert ended.get("failed"), ended
    assert states(world, ADMIN) == left
    world.running.server.clear_faults()
    for versions in (["DISABLED", "ENABLED"], ["DISABLED", "DISABLED", "ENABLED"]):
        finished = attempt(world, wanted)
        assert not finished.get("failed"), finished
        assert states(world, ADMIN) == versions
        assert noted(world, ADMIN) == {}


def test_calls_whose_answers_are_lost_make_no_other_version(world: World, tasks: list[Task]) -> None:
    (stated,) = [task.arguments["secrets"] for task in tasks if task.module == "gcp_secret"]
    for method in ("patch", "addVersion", "versions.disable"):
        world.running.server.faults.append({"times": 1, "method": f"{SECRETS}.{method}", "no_answer": "after"})
    finished = attempt(world, next(one for one in stated if one["name"] == ADMIN))
    assert not finished.get("failed"), finished
    assert states(world, ADMIN) == ["DISABLED", "ENABLED"]
    assert noted(world, ADMIN) == {}


def test_before_every_server_knows_the_new_password_the_databases_user_keeps_its_own(world: World, play: Play) -> None:
    login = ("-e", "platform_sql_login=password")
    generated = {"name": DATABASE, "labels": {"mlflow-deployment": "mlflow"}, "generate": {"length": 40}}
    world.done("gcp_secret", {"project": PROJECT, "secrets": [generated]})
    user = {"name": "mlflow", "type": "BUILT_IN", "password_secret": DATABASE}
    world.done("gcp_sql_user", {"project": PROJECT, "instance": "mlflow", "users": [user]})
    since = world.count

    # No server is in this run, as with --limit.
    done = rotate(play, "database_password", uses={DATABASE: "1"}, arguments=login)

    assert done.code != 0
    assert called(world, since) == ["patch", "addVersion"]
    assert states(world, DATABASE) == ["ENABLED", "ENABLED"]
    assert value(world, DATABASE, 2) not in done.output


def grant(world: World, resource: str, *members: str, role: str = "roles/viewer") -> None:
    bindings = world.state.policies.setdefault(resource, {"bindings": []}).setdefault("bindings", [])
    bindings.append({"role": role, "members": list(members)})


def roles_of(world: World, member: str) -> dict[str, set[str]]:
    """Return the roles of a member by the resource that it has them on."""
    found: dict[str, set[str]] = {}
    for resource, policy in world.state.policies.items():
        for binding in policy.get("bindings", []):
            if member in binding["members"]:
                found.setdefault(resource, set()).add(binding["role"])
    return found


def test_the_servers_account_keeps_the_roles_that_are_stated_and_others_keep_theirs(world: World, play: Play) -> None:
    email = f"mlflow-server@{PROJECT}.iam.gserviceaccount.com"
    account, other = f"serviceAccount:{email}", "user:ann@example.com"
    stated = roles_of(world, account)
    places = [
        *(f"projects/{PROJECT}", f"projects/{PROJECT}/secrets/{ADMIN}", f"projects/{PROJECT}/secrets/other"),
        *(f"buckets/{PROJECT}-mlflow-artifacts", f"buckets/{PROJECT}-mlflow-backups", f"buckets/{PROJECT}-other"),
    ]
    made = world.module("gcp_resource", {"project": PROJECT, "resources": [
        {"kind": "secretmanager.secrets", "name": "other"},
        {"kind": "storage.buckets", "name": f"{PROJECT}-other", "body": {"location": "EUROPE-WEST1"}},
    ]})  # fmt: skip
    assert not made.get("failed"), made
    for place in places:
        grant(world, place, account, other)
    of_account = f"projects/{PROJECT}/serviceAccounts/{email}"
    grant(world, of_account, other, role="roles/iam.serviceAccountTokenCreator")
    grant(world, of_account, other, role="roles/iam.serviceAccountAdmin")

    with world.untouched():
        check = rotate(play, "service_account_bindings", arguments=("--check", "--diff"))
    done = rotate(play, "service_account_bindings")
    again = rotate(play, "service_account_bindings")

    assert [check.code, done.code, again.code] == [0, 0, 0], check.errors + done.errors + again.errors
    assert check.outcomes == done.outcomes
    assert len(done.changes) == len(places) + 1
    assert again.changes == []
    assert roles_of(world, account) == stated
    assert roles_of(world, other) == {
        **{place: {"roles/viewer"} for place in places},
        of_account: {"roles/iam.serviceAccountAdmin"},
    }
