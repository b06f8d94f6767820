"""How each environment finds and reaches its servers."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Stands in for Google's program: it knows who is logged in.
GCLOUD = """#!/bin/sh
case "$*" in
  "compute os-login describe-profile --format=value(posixAccounts[0].username)") echo ann_example_com ;;
  *) exit 1 ;;
esac
"""


@pytest.mark.parametrize("name", ["prod", "staging"])
def test_ssh_goes_through_identity_aware_proxy(play: Callable[..., Any], tmp_path: pathlib.Path, name: str) -> None:
    inventory = tmp_path / name
    shutil.copytree(ROOT / "inventories" / name, inventory)
    variables = inventory / "group_vars" / "platform" / "main.yml"
    variables.write_text(yaml.safe_dump({"platform_region": "europe-west1"}))
    (inventory / "gcp.yml").write_text("projects: [my-project]\n")
    (inventory / "server.yml").write_text('mlflow: {hosts: {mlflow-1: {gce_id: "4711"}}}\n')
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)

    path = f"{tmp_path}:{os.environ['PATH']}"
    shown = play("tests/integration/show_connection.yml", inventory=inventory, PATH=path)

    assert shown.code == 0, shown.output
    assert "ansible.builtin.ssh ann_example_com@mlflow-1.europe-west1-b.my-project" in shown.output
    assert "HostKeyAlias=compute.4711" in shown.output
    assert "gcloud compute start-iap-tunnel mlflow-1 %p --listen-on-stdin" in shown.output
    assert "--project=my-project --zone=europe-west1-b" in shown.output


def test_the_dynamic_inventory_finds_the_server_and_no_other(
    play: Callable[..., Any], deployment: Any, make_inventory: Callable[..., pathlib.Path]
) -> None:
    found = play("tests/integration/show_server.yml")
    other = play("tests/integration/show_server.yml", inventory=make_inventory(platform_name="other"))

    assert f"{deployment.server} " in found.output
    assert "no hosts matched" in other.output
