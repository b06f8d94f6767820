#!/usr/bin/python
"""Ansible module backup_program."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_program
short_description: Write the program that takes backup sets on a server
version_added: 0.1.0
description:
  - Puts what M(mlops.mlflow_gcp.gcp_backup_set) consists of, with Google's descriptions of the APIs it calls, into one
    file that Python runs.
  - What runs it needs Python 3.11 or newer with google-auth and requests, which every environment of MLflow has.
  - The file is the same each time, byte for byte, as long as its parts are. It is written in check mode too.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
options:
  path:
    description: The file. Its directory is made.
    type: path
    required: true
attributes:
  check_mode:
    description: What a check leaves alone.
    details: The file is written all the same, for others to compare.
    support: partial
"""

EXAMPLES = r"""
- name: Write the program
  mlops.mlflow_gcp.backup_program:
    path: build/mlflow-backup.pyz
  delegate_to: localhost
  changed_when: false
"""

RETURN = r""" # """

import importlib.resources
import inspect
import pathlib
import sys
import tempfile
import zipfile

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import backup_program
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import MISSING_LIBRARY

PACKAGE = backup_program.__name__.rpartition(".")[0]
DOCUMENTS = "googleapiclient/discovery_cache/documents"
# serviceusage tells why an API answers nothing.
APIS = ("secretmanager.v1", "serviceusage.v1", "sqladmin.v1", "storage.v1")
ALL_ALIKE = (1980, 1, 1, 0, 0, 0)


def parts() -> dict[str, str]:
    """Return the content of the files by their names: of this package, what the program has imported."""
    names = sorted(name for name in sys.modules if name.startswith(f"{PACKAGE}."))
    found = {f"{name.replace('.', '/')}.py": inspect.getsource(sys.modules[name]) for name in names}
    documents = importlib.resources.files("googleapiclient.discovery_cache") / "documents"
    found |= {f"{DOCUMENTS}/{api}.json": (documents / f"{api}.json").read_text("utf-8") for api in APIS}
    directories = {str(parent) for name in found for parent in pathlib.PurePosixPath(name).parents}
    for directory in directories - {".", DOCUMENTS}:
        found[f"{directory}/__init__.py"] = ""
    return {**found, "__main__.py": f"from {backup_program.__name__} import main\n\nmain()\n"}


def write(path: pathlib.Path) -> None:
    """Write the program; who reads it meanwhile gets the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file, zipfile.ZipFile(file, "w") as archive:
        for name, text in sorted(parts().items()):
            archive.writestr(zipfile.ZipInfo(name, ALL_ALIKE), text, zipfile.ZIP_DEFLATED)
    pathlib.Path(file.name).replace(path)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={"path": {"type": "path", "required": True}}, supports_check_mode=True)
    if MISSING_LIBRARY:
        module.fail_json(msg=missing_required_lib(MISSING_LIBRARY))
    write(pathlib.Path(module.params["path"]))
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
