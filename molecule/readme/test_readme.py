"""The playbook in a role's README, with what its scenario gives to the role in place of its own values."""

import json
import os
import pathlib
import re

import pytest
import yaml
from testinfra.host import Host

SCENARIO = pathlib.Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
README = SCENARIO.parents[1] / "roles" / SCENARIO.name / "README.md"


def values() -> dict[str, object]:
    """What converge.yml gives to the role."""
    found: dict[str, object] = {"ansible_become": False}
    for play in yaml.safe_load((SCENARIO / "converge.yml").read_text()):
        for file in play.get("vars_files", []):
            found |= yaml.safe_load((SCENARIO / file).read_text())
        for vars_ in [play.get("vars", {}), *(role.get("vars", {}) for role in play.get("roles", []))]:
            found |= vars_
    return found


@pytest.mark.long
@pytest.mark.skipif(not README.exists(), reason="the scenario is of no role")
def test_the_playbook_of_the_readme_runs_alone_and_again_without_a_change(host: Host, converge, tmp_path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "playbook.yml").write_text(text)
    (tmp_path / "inventory.ini").write_text(f"[servers]\n{host.backend.get_hostname()}\n")
    options = ("--inventory", str(tmp_path / "inventory.ini"), "--extra-vars", json.dumps(values()))
    try:
        first = converge(*options, playbook=tmp_path / "playbook.yml")
        assert first.returncode == 0, first.stdout
        again = converge(*options, playbook=tmp_path / "playbook.yml")
        assert again.returncode == 0, again.stdout
        assert "changed=0 " in again.stdout, again.stdout
    finally:
        back = converge()
    assert back.returncode == 0, back.stdout
