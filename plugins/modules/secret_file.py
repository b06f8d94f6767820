#!/usr/bin/python
"""Ansible module secret_file."""

from __future__ import annotations

DOCUMENTATION = r"""
module: secret_file
short_description: Keep secrets of Google Secret Manager in root-only files
version_added: 0.1.0
description:
  - Runs on a Compute Engine VM and reads a version of each secret, the latest by default, as the VM's service account.
  - Writes each value to a file of mode 0600 that belongs to root, atomically, and only when the value differs.
  - No value is ever returned, shown in a diff or logged.
  - Needs nothing but Python on the VM.
author:
  - The mlops.mlflow_gcp maintainers (@mlops)
options:
  files:
    description: The secrets and where each is kept. The directories must exist.
    type: list
    elements: dict
    required: true
    suboptions:
      project:
        description: Project of the secret.
        type: str
        required: true
      secret:
        description: ID of the secret.
        type: str
        required: true
      version:
        description:
          - Number of the version.
          - Google knows one that was just added by its number at once, while V(latest) may take minutes to be that.
        type: str
        default: latest
      path:
        description: Absolute path of the file.
        type: path
        required: true
      previous_kept:
        description:
          - Whether a value that is replaced is kept beside the file, under its path with C(.previous) at the end.
          - That has all values since somebody removed it, newest first, a line each; it is written before the file is.
        type: bool
        default: false
attributes:
  check_mode:
    description: >-
      Reads and compares, writes nothing. A secret that does not exist yet counts as a change, and
      so does one that may not be read yet, with a warning, where there is no file.
    support: full
  diff_mode:
    description: Says whether a file is absent, present or changed, never what is in it.
    support: full
"""

EXAMPLES = r"""
- name: Keep the administrator's password where systemd finds credentials
  mlops.mlflow_gcp.secret_file:
    files:
      - project: my-project
        secret: mlflow-admin-password
        path: /etc/credstore/mlflow.admin-password
"""

RETURN = r"""
files:
  description: What became of each file, in the order given.
  returned: success
  type: list
  elements: dict
  sample:
    - path: /etc/credstore/mlflow.admin-password
      secret: projects/my-project/secrets/mlflow-admin-password
      version: "4"
      changed: true
      before: absent
      after: present
"""

import base64
import json
import os
import tempfile
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

# https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys
METADATA_URL = "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default"
# https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.versions/access
API_URL = "https://secretmanager.googleapis.com/v1"
MORE = "More: docs/failures.md#a-secret-cannot-be-kept-on-the-server"
TIMEOUT_SECONDS = 10
PAUSES_SECONDS = (1, 2, 4)


class SecretError(Exception):
    """One secret that could not be kept; its text tells the operator what to do."""


class SecretAbsentError(SecretError):
    """The secret does not exist or has no version."""


class SecretDeniedError(SecretError):
    """The secret may not be read, or does not exist: Secret Manager says the same of both."""


def get(url: str, headers: dict[str, str], use_proxy: bool) -> bytes:
    """Return the body of `url`; tries again on 429, 5xx and broken connections, then raises what `open_url` raised."""
    for pause in (*PAUSES_SECONDS, None):
        try:
            return open_url(url, headers=headers, timeout=TIMEOUT_SECONDS, use_proxy=use_proxy).read()
        except HTTPError as error:
            if pause is None or (error.code != 429 and error.code < 500):
                raise
        except (URLError, HTTPException, OSError):
            if pause is None:
                raise
        time.sleep(pause)
    raise AssertionError("unreachable")


class VirtualMachine:
    """The service account of the VM this runs on, by its metadata server."""

    def _get(self, path: str) -> str:
        return get(f"{METADATA_URL}/{path}", {"Metadata-Flavor": "Google"}, use_proxy=False).decode()

    def email(self) -> str:
        """Return the service account's address, or a description where the metadata server does not tell."""
        try:
            return self._get("email")
        except (OSError, HTTPException):
            return "the VM's service account"

    def token(self) -> str:
        """Return an access token; raises `SecretError` where there is none."""
        try:
            return json.loads(self._get("token"))["access_token"]
        except HTTPError as error:
            raise SecretError(
                f"The metadata server gives no token ({error.code}): the VM has no service account. "
                "Attach one with the scope cloud-platform."
            ) from error
        except (OSError, HTTPException, ValueError, KeyError) as error:
            raise SecretError(
                f"No token from the metadata server ({METADATA_URL}/token): {error}. "
                "This module runs on a Compute Engine VM."
            ) from error


def explain(name: str, account: str, error: HTTPError) -> SecretError:
    """Return what to tell the operator about Secret Manager's refusal to give `name` (projects/P/secrets/S) away."""
    try:
        reason = json.loads(error.read())["error"]["message"]
    except (OSError, ValueError, KeyError, TypeError):
        reason = str(error.reason)
    _, project, _, secret = name.split("/")
    said = f"{name}: Secret Manager says {error.code}, {reason}"
    if error.code == 403:
        return SecretDeniedError(
            f"{said} Fix: grant roles/secretmanager.secretAccessor on this secret to {account} "
            f"(gcloud secrets add-iam-policy-binding {secret} --project={project} "
            f"--member=serviceAccount:{account} --role=roles/secretmanager.secretAccessor); "
            "a new grant may take some minutes to count."
        )
    if error.code == 404:
        return SecretAbsentError(f"{said} Fix: create the secret and a version of it, or correct its name.")
    return SecretError(
        f"{said} Fix: gcloud secrets versions list {secret} --project={project}; the latest must be enabled."
    )


def read_version(name: str, version: str, token: str, machine: VirtualMachine) -> tuple[str, bytes]:
    """Return number and value of a version of the secret `name` (projects/P/secrets/S); raises `SecretError`."""
    url = f"{API_URL}/{name}/versions/{version}:access"
    try:
        answer = json.loads(get(url, {"Authorization": f"Bearer {token}"}, use_proxy=True))
        return answer["name"].rpartition("/")[2], base64.b64decode(answer["payload"]["data"], validate=True)
    except HTTPError as error:
        raise explain(name, machine.email(), error) from error
    except (ValueError, KeyError, TypeError):
        # The answer may hold the value, and so might the error's text.
        raise SecretError(f"{name}: Secret Manager's answer cannot be read.") from None
    except (OSError, HTTPException) as error:
        raise SecretError(
            f"{name}: Secret Manager is out of reach: {error}. Fix: let the VM reach {API_URL}."
        ) from error


def current_value(path: str) -> bytes | None:
    """Return what the file holds, None without one; raises `SecretError` for anything but a regular file."""
    if not os.path.lexists(path):
        return None
    if os.path.islink(path) or not os.path.isfile(path):
        raise SecretError(f"{path} is not a regular file. Fix: remove it.")
    with open(path, "rb") as file:
        return file.read()


def write(path: str, value: bytes) -> None:
    """Replace the file atomically; at no time can anyone but its owner read the value."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".secret_file-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def keep_previous(path: str, current: bytes, value: bytes) -> None:
    """Put what `value` replaces before what was replaced earlier; a value that is back is none of them."""
    earlier = (current_value(path) or b"").splitlines()
    lines = [current.rstrip(b"\n"), *earlier]
    write(path, b"".join(line + b"\n" for line in dict.fromkeys(lines) if line != value.rstrip(b"\n")))


def keep(module: AnsibleModule, path: str, value: bytes | None, previous_kept: bool) -> dict[str, Any]:
    """Bring one file to `value`, mode 0600, owner root; None is a value that only a real run would know."""
    current = current_value(path)
    differs = value is None or current != value
    if value is not None and differs and not module.check_mode:
        if current and previous_kept:
            keep_previous(f"{path}.previous", current, value)
        write(path, value)
    changed = differs
    if os.path.exists(path):
        changed = module.set_mode_if_different(path, "0600", changed)
        changed = module.set_owner_if_different(path, "root", changed)
        changed = module.set_group_if_different(path, "root", changed)
    before = "absent" if current is None else "present"
    return {
        "path": path,
        "changed": changed,
        "before": before,
        "after": "changed" if current is not None and changed else "present",
    }


def run(module: AnsibleModule) -> None:
    """Keep every file; all that fail are reported at once, after the others are kept."""
    machine = VirtualMachine()
    results, diffs, problems = [], [], []
    token = ""
    try:
        token = machine.token()
    except SecretError as error:
        module.fail_json(msg=f"{error}\n{MORE}")
    for file in module.params["files"]:
        name = f"projects/{file['project']}/secrets/{file['secret']}"
        try:
            try:
                version, value = read_version(name, file["version"], token, machine)
            except SecretAbsentError:
                if not module.check_mode:
                    raise
                version, value = "", None
            except SecretDeniedError as error:
                if not module.check_mode:
                    raise
                # A run makes the secret, or gives the right to read it, before it comes here.
                module.warn(f"Before a run: {error}")
                version, value = "", current_value(file["path"])
            result = {"secret": name, "version": version, **keep(module, file["path"], value, file["previous_kept"])}
        except SecretError as error:
            problems.append(str(error))
            continue
        except OSError as error:
            problems.append(f"{file['path']}: {error.strerror}. Fix: create the directory, for root only.")
            continue
        results.append(result)
        if result["changed"]:
            diffs.append(
                {
                    "before_header": file["path"],
                    "after_header": file["path"],
                    "before": f"{result['before']}\n",
                    "after": f"{result['after']}\n",
                }
            )
    changed = any(result["changed"] for result in results)
    if problems:
        module.fail_json(msg="\n".join([*problems, MORE]), changed=changed, files=results)
    module.exit_json(changed=changed, files=results, diff=diffs)


def main() -> None:
    """Entry point."""
    suboptions = {
        "project": {"type": "str", "required": True},
        "secret": {"type": "str", "required": True, "no_log": False},
        "version": {"type": "str", "default": "latest"},
        "path": {"type": "path", "required": True},
        "previous_kept": {"type": "bool", "default": False},
    }
    spec = {"files": {"type": "list", "elements": "dict", "required": True, "options": suboptions}}
    run(AnsibleModule(argument_spec=spec, supports_check_mode=True))


if __name__ == "__main__":
    main()
