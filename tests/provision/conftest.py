"""Provisioning against the emulated cloud in this process: nothing here needs Docker."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOCAL = ROOT / "inventories" / "local"


@pytest.fixture(scope="session")
def make_inventory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., pathlib.Path]:
    """Return a function that copies the local inventory with other values."""

    def make(**values: Any) -> pathlib.Path:
        inventory = tmp_path_factory.mktemp("inventory") / "inventory"
        shutil.copytree(LOCAL, inventory)
        variables = inventory / "group_vars" / "platform" / "main.yml"
        variables.write_text(yaml.safe_dump({**yaml.safe_load(variables.read_text()), **values}))
        return inventory

    return make
