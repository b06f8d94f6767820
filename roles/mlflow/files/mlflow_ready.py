#!/usr/bin/python3 -I
"""Says whether MLflow serves: an authenticated API call over its Unix socket that reads the tracking database.

Run as root: by systemd after a start, about the generation that started, and by hand at any time, about the live one.
Exit status 0: ready; 1: not ready, with the reason on standard error. `/health` is a constant and is not used. Only the
standard library, so that a check costs a fraction of a second.
"""

import argparse
import base64
import configparser
import http.client
import os
import pathlib
import socket
import sys
import time

CONFIG = pathlib.Path("/etc/mlflow")
PASSWORD = pathlib.Path("/etc/credstore/mlflow.admin-password")
RUNTIME = pathlib.Path("/run/mlflow")
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
CALL_TIMEOUT_SECONDS = 30


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__("localhost", timeout=CALL_TIMEOUT_SECONDS)
        self.path = path

    def connect(self) -> None:
        """Opens the socket; raises `OSError` when nobody listens."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def problem(path: pathlib.Path, authorization: str) -> str | None:
    """Why the server behind the socket is not ready; None when it is."""
    connection = UnixConnection(path)
    try:
        connection.request("GET", SEARCH, headers={"Authorization": authorization})
        response = connection.getresponse()
        body = response.read(500).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"{path} does not answer ({error}): systemctl status mlflow"
    finally:
        connection.close()
    if response.status == http.client.OK:
        return None
    if response.status == http.client.UNAUTHORIZED:
        return "the administrator's password is not the credential's: systemctl restart mlflow applies it"
    return f"the API answered {response.status}, is the database there? journalctl -u 'mlflow-*'\n{body}"


def authorization_header(settings: pathlib.Path) -> str:
    """Value of the Authorization header for the administrator, whose name is in a generation's settings."""
    config = configparser.ConfigParser()
    config.read_string((settings / "basic_auth.ini").read_text())
    password = PASSWORD.read_text().rstrip("\n")
    return "Basic " + base64.b64encode(f"{config['mlflow']['admin_username']}:{password}".encode()).decode()


def main_process_runs() -> bool:
    """False when systemd started this check for a main process that is gone."""
    try:
        os.kill(int(os.environ.get("MAINPID") or os.getpid()), 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    """Checks once, or until ready or out of time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="how long to wait for readiness")
    parser.add_argument("--generation", metavar="NAME", help="check this one, and not the live one")
    options = parser.parse_args()
    generation = options.generation
    path = RUNTIME / (f"{generation}/server.sock" if generation else "live.sock")
    authorization = authorization_header(CONFIG / (f"generations/{generation}" if generation else "live"))
    deadline = time.monotonic() + options.wait
    while reason := problem(path, authorization):
        if not main_process_runs():
            sys.exit("mlflow stopped before it was ready")
        if time.monotonic() >= deadline:
            sys.exit(f"mlflow is not ready: {reason}\nMore: docs/failures.md#mlflow-is-not-ready")
        time.sleep(0.5)
    print("mlflow is ready")


if __name__ == "__main__":
    main()
