"""The playbook in a role's README: short, of that role alone, with values that the role takes."""

import pathlib
import re

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

ROOT = pathlib.Path(__file__).resolve().parents[2]
READMES = sorted((ROOT / "roles").glob("*/README.md"))
# Without a playbook of this project they do nothing.
PARTS_OF_PLAYBOOKS = {"drill", "mlflow_import", "status", "verify"}


def playbook(role: pathlib.Path) -> str:
    """Return the playbook in a role's README."""
    (found,) = re.findall(r"^```yaml\n(.*?)^```$", (role / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return found


def test_every_role_that_can_be_used_alone_has_one():
    roles = {path.name for path in (ROOT / "roles").iterdir()}
    assert {path.parent.name for path in READMES} == roles - PARTS_OF_PLAYBOOKS


@pytest.mark.parametrize("role", [path.parent for path in READMES], ids=lambda role: role.name)
def test_its_playbook_is_short_and_gives_the_role_what_it_takes(role):
    text = playbook(role)
    assert len(text.splitlines()) <= 13
    (play,) = yaml.safe_load(text)
    assert play["roles"] == [f"mlops.mlflow_gcp.{role.name}"]
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    options = specs["main"].get("options", {})
    # What is not given may be an expression, which is no value yet.
    without_defaults = {name: {**option, "default": None} for name, option in options.items()}
    result = ArgumentSpecValidator(without_defaults).validate(play.get("vars", {}))
    assert result.error_messages == []
