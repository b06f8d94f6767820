"""Takes a backup set on the server itself, every night: what mlflow-backup.service runs, as one file with all it needs.

Its argument names a file of settings, JSON: `project`, and those of backup.Deployment that no server has to tell.
The account of the machine is who asks Google. No secret is in the settings, and none comes out.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import pathlib
import subprocess
import sys

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.backup import TIMEOUT_SECONDS, Deployment, take
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError, Session

RELEASE = pathlib.Path("/etc/mlflow/live/release")
# In the service's state directory: the set that succeeded last, by `name` and `ended`.
STAMP = "last.json"


def now() -> str:
    """Return the time, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def live_release(link: pathlib.Path = RELEASE) -> Json:
    """Return what serves: its version, and the hash of its lock."""
    release = link.resolve(strict=True)
    lock = hashlib.sha256((release / "requirements.txt").read_bytes()).hexdigest()
    return {"version": release.name.rpartition("-")[0], "lock_sha256": lock}


def certificate(path: pathlib.Path) -> Json:
    """Return fingerprint and expiry of the server's certificate."""
    command = ["openssl", "x509", "-in", str(path), "-noout", "-fingerprint", "-sha256", "-enddate"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    fingerprint, not_after = (line.partition("=")[2] for line in told)
    return {"sha256": fingerprint.replace(":", "").lower(), "not_after": not_after}


def main() -> None:
    """Take a set; ends with a message on standard error where that fails."""
    settings = json.loads(pathlib.Path(sys.argv[1]).read_text())
    project = settings.pop("project")
    credentials = pathlib.Path(os.environ["CREDENTIALS_DIRECTORY"])
    try:
        source = Deployment(
            **settings,
            mlflow=live_release(),
            certificate=certificate(credentials / "certificate"),
            instance_backup=False,
        )
        manifest = take(Session(project, timeout_seconds=TIMEOUT_SECONDS), source, now)["manifest"]
    except CloudError as error:
        sys.exit(error.told())
    stamp = {"name": manifest["name"], "ended": manifest["ended"]}
    pathlib.Path(os.environ["STATE_DIRECTORY"], STAMP).write_text(json.dumps(stamp))
    # gcp_observability counts these lines.
    print(f"Backup set gs://{source.bucket}/{manifest['name']} is whole")
