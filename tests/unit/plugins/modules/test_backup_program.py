"""The program for the server is one file, the same each time, that needs nothing of Ansible."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[4]
ALONE = """
import runpy, sys
sys.modules["ansible"] = None
sys.path.insert(0, sys.argv[1])
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import discovery
assert discovery.__file__.startswith(sys.argv[1])
assert discovery.method("sqladmin.v1", "instances", "export").verb == "POST"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def built(path: pathlib.Path) -> bytes:
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": {"path": str(path)}})
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".collections")}
    command = [sys.executable, str(ROOT / "plugins/modules/backup_program.py")]
    subprocess.run(command, input=arguments, env=environment, check=True, capture_output=True, text=True, timeout=60)
    return path.read_bytes()


def test_it_is_the_same_each_time_and_runs_alone(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "new" / "mlflow-backup.pyz"
    assert built(program) == built(tmp_path / "again.pyz")
    command = [sys.executable, "-I", "-c", ALONE, str(program), str(tmp_path / "settings.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.endswith(f"No such file or directory: '{tmp_path}/settings.json'\n"), done.stderr
