"""Which versions of its secrets an MLflow server takes: asked as a user would, with values that stay in here."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import itsdangerous
import requests
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.secret import list_versions, read_version
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError, Session

SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
# The one page of MLflow's that begins a session, whose cookie is signed with Flask's secret key.
SIGN_UP = "/signup"
COOKIE = "session"
TIMEOUT_SECONDS = 30
ATTEMPTS = 4
PAUSE_SECONDS = 2


@dataclass(frozen=True)
class Server:
    """An MLflow server by its address, and the administrator's name; `sleep` waits for seconds."""

    url: str
    username: str
    sleep: Callable[[float], None] = time.sleep

    def _get(self, path: str, password: str) -> requests.Response:
        """Return an answer that is 200 or 401; raises CloudError for any other, once it has lasted for some seconds."""
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self.sleep(PAUSE_SECONDS)
            try:
                response = requests.get(
                    f"{self.url}{path}",
                    auth=(self.username, password),
                    timeout=TIMEOUT_SECONDS,
                    allow_redirects=False,
                )
            except requests.RequestException as error:
                problem = f"does not answer ({error})"
                continue
            if response.status_code in {200, 401}:
                return response
            problem = f"answered {response.status_code} to {path}"
        raise CloudError(f"{self.url} {problem}", "docs/failures.md#the-address-does-not-answer")

    def logs_in(self, password: str) -> bool:
        """Whether the administrator is let in with a password."""
        return self._get(SEARCH, password).status_code == 200

    def cookie(self, password: str) -> str:
        """Return the cookie of a new session, empty where there is none."""
        return str(self._get(SIGN_UP, password).cookies.get(COOKIE, ""))


def is_signed(cookie: str, key: str) -> bool:
    """Whether Flask has signed a session's cookie with a key.

    https://flask.palletsprojects.com/en/stable/api/#flask.sessions.SecureCookieSessionInterface
    """
    signer = itsdangerous.TimestampSigner(key, salt="cookie-session", key_derivation="hmac", digest_method=hashlib.sha1)
    return bool(cookie) and signer.validate(cookie)


def judge(values: dict[str, str], takes: Callable[[str], bool]) -> Json:
    """Return which versions are `taken` and which `refused`, `values` being by number and the latest first.

    An older one of the same value as the latest cannot be told from it, and is in neither.
    """
    latest = next(iter(values.values()), None)
    told = {number: takes(value) for n, (number, value) in enumerate(values.items()) if n == 0 or value != latest}
    return {
        "taken": [number for number, is_taken in told.items() if is_taken],
        "refused": [number for number, is_taken in told.items() if not is_taken],
    }


def _enabled(cloud: Session, name: str) -> dict[str, str]:
    """Return the values of a secret's enabled versions by number, newest first."""
    return {n: read_version(cloud, name, n) for n, state in list_versions(cloud, name) if state == "ENABLED"}


def ask(cloud: Session, server: Server, password_secret: str, key_secret: str) -> Json:
    """Return the result of mlflow_secrets_info."""
    passwords, keys = _enabled(cloud, password_secret), _enabled(cloud, key_secret)
    logins = judge(passwords, server.logs_in)
    members = [{"name": password_secret, **logins}]
    # Without a login there is no session to look at.
    cookie = server.cookie(passwords[logins["taken"][0]]) if logins["taken"] else ""
    members.append({"name": key_secret, **judge(keys, lambda key: is_signed(cookie, key))})
    return {"changed": False, "secrets": members}
