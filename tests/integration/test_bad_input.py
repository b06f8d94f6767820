"""Bad input is reported at once, with variable, value and fix, before anything is created."""

from __future__ import annotations

import base64
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PREFLIGHT = "playbooks/preflight.yml"
Play = Callable[..., Any]


def test_the_local_inventory_is_good(play: Play) -> None:
    good = play(PREFLIGHT)
    assert good.code == 0, good.output


@pytest.mark.parametrize("inventory", ["prod", "staging"])
def test_an_inventory_not_filled_in_names_what_is_missing(play: Play, inventory: str) -> None:
    refused = play("site.yml", inventory=pathlib.Path("inventories") / inventory)

    assert refused.code != 0
    assert "4 problem(s) found, nothing was created or changed" in refused.output
    for variable in ("platform_project", "platform_region", "platform_domain", "platform_email"):
        assert f"{variable} = ''" in refused.output
    assert "undefined" not in refused.output


def test_missing_variables_are_reported_together(play: Play, make_inventory: Callable[..., pathlib.Path]) -> None:
    inventory = make_inventory(projects=[])
    variables = inventory / "group_vars" / "platform" / "main.yml"
    kept = [
        line
        for line in variables.read_text().splitlines()
        if not line.startswith(("platform_domain", "platform_email"))
    ]
    variables.write_text("\n".join(kept) + "\n")

    refused = play(PREFLIGHT, inventory=inventory)

    assert refused.code != 0
    assert "3 problem(s)" in refused.output
    assert all(f"platform_{name} = ''" in refused.output for name in ("project", "domain", "email"))
    assert str(inventory / "gcp.yml") in refused.output


def test_bad_values_are_reported_together(play: Play, make_inventory: Callable[..., pathlib.Path]) -> None:
    inventory = make_inventory(
        platform_bucket="My_Bucket!",
        platform_server_name="Server 1",
        platform_mlflow_version="3.16.1",
        platform_https_source_ranges=["everybody"],
        platform_mlflow_users=[{"name": "ann lee"}, "bob", {"name": "admin"}],
    )

    refused = play(PREFLIGHT, inventory=inventory)

    assert refused.code != 0
    assert "7 problem(s) found, nothing was created or changed" in refused.output
    for found in (
        "platform_bucket = 'My_Bucket!'",
        "platform_server_name = 'Server 1'",
        "mlflow_version = '3.16.1'",
        "platform_https_source_ranges = ['everybody']",
        "platform_mlflow_users[0].name = 'ann lee'",
        "platform_mlflow_users[1] = 'bob'",
        "platform_mlflow_users[2].name = 'admin'",
    ):
        assert found in refused.output
    assert refused.output.count("fix:") >= 7


# Regions and zones can be asked for once the project's Compute Engine is enabled: hence the deployment.
@pytest.mark.usefixtures("deployment")
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"platform_zone": "europe-west1-a"}, "region europe-west1 has no such zone"),
        ({"platform_region": "mars-west1"}, "no such region"),
    ],
)
def test_a_place_that_does_not_exist_is_refused(
    play: Play, make_inventory: Callable[..., pathlib.Path], values: dict[str, Any], expected: str
) -> None:
    refused = play(PREFLIGHT, inventory=make_inventory(**values))

    assert refused.code != 0
    assert expected in refused.output
    assert "fix:" in refused.output


def test_a_project_that_is_not_there_is_refused(play: Play, make_inventory: Callable[..., pathlib.Path]) -> None:
    refused = play(PREFLIGHT, inventory=make_inventory(projects=["nobodys-project"]))

    assert refused.code != 0
    assert "the project cannot be reached with these credentials" in refused.output


@pytest.mark.parametrize("file", ["group_vars/all.yml", "host_vars/localhost.yml"])
def test_a_value_where_it_cannot_win_is_refused(
    play: Play, make_inventory: Callable[..., pathlib.Path], file: str
) -> None:
    inventory = make_inventory()
    (inventory / file).parent.mkdir(parents=True, exist_ok=True)
    (inventory / file).write_text("platform_domain: other.example.com\n")

    refused = play(PREFLIGHT, inventory=inventory)

    assert refused.code != 0
    assert "platform_domain = 'other.example.com'" in refused.output
    assert str(inventory / "group_vars/platform/main.yml") in refused.output


def test_values_beside_the_playbooks_lose_to_the_environments_own(
    play: Play, make_inventory: Callable[..., pathlib.Path]
) -> None:
    inventory = make_inventory(platform_domain="no domain")

    refused = play(PREFLIGHT, inventory=inventory)

    assert "platform_domain = 'no domain'" in refused.output


def test_missing_credentials_say_how_to_log_in(play: Play, tmp_path: pathlib.Path) -> None:
    refused = play(PREFLIGHT, GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "none.json"))

    assert refused.code != 0
    assert "gcloud auth application-default login" in refused.output


def test_wrong_credentials_say_how_to_log_in(play: Play, environment: dict[str, str], tmp_path: pathlib.Path) -> None:
    key = json.loads(pathlib.Path(environment["GOOGLE_APPLICATION_CREDENTIALS"]).read_text())
    stranger = tmp_path / "stranger.json"
    stranger.write_text(json.dumps({**key, "client_email": "stranger@demo-project.iam.gserviceaccount.com"}))

    refused = play(PREFLIGHT, GOOGLE_APPLICATION_CREDENTIALS=str(stranger))

    assert refused.code != 0
    assert "Google refused them" in refused.output
    assert "gcloud auth application-default login" in refused.output


@pytest.fixture
def viewer(cloud: Any, tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Return the key file of an account that may look at the project and change nothing."""
    accounts = "https://iam.googleapis.com/v1/projects/demo-project/serviceAccounts"
    email = "viewer@demo-project.iam.gserviceaccount.com"
    project = "https://cloudresourcemanager.googleapis.com/v1/projects/demo-project"
    made = cloud.call("POST", accounts, {"accountId": "viewer"})
    assert made.status_code == 200, made.text
    key = cloud.call("POST", f"{accounts}/{email}/keys", {}).json()
    file = tmp_path / "viewer.json"
    file.write_bytes(base64.b64decode(key["privateKeyData"]))
    policy = cloud.call("POST", f"{project}:getIamPolicy", {}).json()
    binding = {"role": "roles/viewer", "members": [f"serviceAccount:{email}"]}
    granted = cloud.call(
        "POST", f"{project}:setIamPolicy", {"policy": {**policy, "bindings": [*policy["bindings"], binding]}}
    )
    assert granted.status_code == 200, granted.text
    yield file
    policy = cloud.call("POST", f"{project}:getIamPolicy", {}).json()
    bindings = [binding for binding in policy["bindings"] if binding["role"] != "roles/viewer"]
    cloud.call("POST", f"{project}:setIamPolicy", {"policy": {**policy, "bindings": bindings}})
    cloud.call("DELETE", f"{accounts}/{email}")


def test_missing_permissions_are_refused_but_not_for_a_look(play: Play, viewer: pathlib.Path) -> None:
    refused = play(PREFLIGHT, GOOGLE_APPLICATION_CREDENTIALS=str(viewer))
    looked = play(PREFLIGHT, "--check", GOOGLE_APPLICATION_CREDENTIALS=str(viewer))

    assert refused.code != 0
    assert "these credentials lack" in refused.output
    assert "roles/cloudsql.admin" in refused.output
    assert looked.code == 0, looked.output
    assert "these credentials lack" in looked.output
