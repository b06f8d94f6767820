"""MLflow's users and what each may do, brought to what was declared, through the API of the live server.

`problems` judges a declaration by itself; `plan` compares one with the server and returns the changes still to be made.
Needs nothing but Python: it runs on the server, and in the preflight on the control host.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

Json = dict[str, Any]

# Grants that mlflow.server.auth.permissions stores, and NO_PERMISSIONS, which is the absence of one.
NONE = "NO_PERMISSIONS"
PERMISSIONS = ("READ", "USE", "EDIT", "MANAGE", "DENY", NONE)
STATES = ("present", "absent")
# The user's key in the declaration, and MLflow's name of the type.
RESOURCE_TYPES = {"experiments": "experiment", "registered_models": "registered_model"}
# Of a resource's name: all there are and will be.
ALL = "*"
KEYS = ("name", "is_admin", "state", *RESOURCE_TYPES)
# Addresses of e-mail are names too; MLflow itself takes any text.
NAME = re.compile(r"[A-Za-z0-9._@+-]{1,100}")
# MLflow's own rule, mlflow.utils.validation._validate_password.
SHORTEST_PASSWORD = 12
# The role in which MLflow keeps the grants of one user.
OWN_ROLE = re.compile(r"__user_\d+__")
# A prompt is kept as a model, but its permissions are of another type.
PROMPT = {"key": "mlflow.prompt.is_prompt", "value": "true"}
ADMIN_CREDENTIAL = "mlflow.admin-password"
TIMEOUT_SECONDS = 60
# MLflow spends some tenths of a second of a core on each password.
LOGINS_AT_A_TIME = 4
JOURNAL = "journalctl -u 'mlflow-*' -n 50"


class UsersError(Exception):
    """What went wrong, and what to do next."""


@dataclass(frozen=True)
class Difference:
    """One field of a user, an experiment or a model; None is its absence."""

    field: str
    before: Any
    after: Any


@dataclass
class Change:
    """What is still to be done about one user, experiment or model, and the calls that do it."""

    action: str
    title: str
    differences: list[Difference]
    steps: list[Callable[[], None]] = field(default_factory=list)

    def line(self) -> str:
        """Return what happens, in a line."""
        fields = [one.field for one in self.differences if self.action == "update"]
        return f"{self.action} {self.title}" + (f": {', '.join(fields)}" if fields else "")

    def diff(self) -> Json:
        """Return Ansible's form of the differences."""
        return {
            "before_header": self.title,
            "after_header": self.title,
            "before": {one.field: one.before for one in self.differences if one.before is not None},
            "after": {one.field: one.after for one in self.differences if one.after is not None},
        }


def problem(variable: str, value: Any, wrong: str, fix: str) -> dict[str, str]:
    """Return one thing to mend, as messages show it."""
    return {"variable": variable, "value": repr(value), "problem": wrong, "fix": fix}


def report(problems: list[dict[str, str]]) -> str:
    """Return the problems as text for a person to read."""
    lines = [f"{one['variable']} = {one['value']}: {one['problem']}. Fix: {one['fix']}." for one in problems]
    return "\n".join(["No user was changed.", *lines])


def spelled(name: str) -> str:
    """Return a user's name as the id of a secret may hold it, as platform_user_credentials has it."""
    return re.sub("[^A-Za-z0-9_-]", "-", name)


def credential(name: str) -> str:
    """Return the name of the file that holds a user's password."""
    return f"mlflow.user-{spelled(name)}-password"


# The declaration by itself.


def problems(users: Any, admin_username: str, variable: str) -> list[dict[str, str]]:
    """Return what is wrong with the declared users, all at once; `variable` is where they were declared."""
    if not isinstance(users, list):
        return [problem(variable, users, "not a list", "write users such as [{name: ann}], or leave it out")]
    found = [one for number, user in enumerate(users) for one in _of_user(user, f"{variable}[{number}]")]
    names = [user["name"] for user in users if isinstance(user, dict) and isinstance(user.get("name"), str)]
    # MySQL takes names that differ in case alone for the same.
    counts = Counter(name.lower() for name in names)
    secrets: dict[str, str] = {}
    for number, user in enumerate(users):
        name = user.get("name") if isinstance(user, dict) else None
        if not isinstance(name, str):
            continue
        where = f"{variable}[{number}].name"
        if name.lower() == admin_username.lower():
            wrong = "the administrator, whose password is a secret of its own"
            found.append(problem(where, name, wrong, "leave the entry out; other administrators need other names"))
        if counts[name.lower()] > 1:
            wrong = "declared more than once; upper and lower case count as the same"
            found.append(problem(where, name, wrong, "keep one entry, or choose another name"))
        elif (other := secrets.setdefault(spelled(name).lower(), name)) != name:
            wrong = (
                f"its password's secret would be that of {other}: only letters, digits, - and _ are told apart there"
            )
            found.append(problem(where, name, wrong, "choose another name"))
    return found


def _of_user(user: Any, where: str) -> Iterator[dict[str, str]]:
    if not isinstance(user, dict):
        yield problem(where, user, "not a mapping", "write a user such as {name: ann}")
        return
    if unknown := [key for key in user if key not in KEYS]:
        yield problem(where, unknown, "unknown keys", f"write only {', '.join(KEYS)}")
    name = user.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        wrong = "not a name: 1 to 100 letters, digits, and . _ @ + -"
        yield problem(
            f"{where}.name", name, wrong, "write one such as ann or ann@example.com, quoted if it is a number"
        )
    if not isinstance(user.get("is_admin", False), bool):
        yield problem(f"{where}.is_admin", user["is_admin"], "not a boolean", "write true or false, without quotes")
    if user.get("state", "present") not in STATES:
        yield problem(f"{where}.state", user["state"], "not one of the states known", f"write {' or '.join(STATES)}")
    for key in RESOURCE_TYPES:
        yield from _of_grants(user.get(key, []), f"{where}.{key}")


def _of_grants(grants: Any, where: str) -> Iterator[dict[str, str]]:
    if not isinstance(grants, list):
        yield problem(where, grants, "not a list", "write permissions such as [{name: churn, permission: READ}]")
        return
    names = []
    for number, grant in enumerate(grants):
        at = f"{where}[{number}]"
        if not isinstance(grant, dict) or set(grant) != {"name", "permission"}:
            yield problem(at, grant, "not a name and a permission", "write {name: churn, permission: READ}")
            continue
        name, permission = grant["name"], grant["permission"]
        if not isinstance(name, str) or not name.strip():
            yield problem(
                f"{at}.name", name, "not a name", f'write one such as churn, quoted if it is a number or "{ALL}"'
            )
        elif name in names:
            yield problem(f"{at}.name", name, "named more than once for this user", "keep one entry")
        names.append(name)
        if permission not in PERMISSIONS:
            yield problem(f"{at}.permission", permission, "not a permission", f"write one of {', '.join(PERMISSIONS)}")


# The server.


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self.path = path

    def connect(self) -> None:
        """Open the socket; raises `OSError` when nobody listens."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Server:
    """MLflow's API as the administrator. Every method raises `UsersError`, without anything secret in it."""

    def __init__(self, path: str, username: str, password: str) -> None:
        self.path = path
        self.login = (username, password)

    def ask(self, verb: str, path: str, content: Json, login: tuple[str, str] | None = None) -> tuple[int, Json]:
        """Return status and answer of one call; `path` begins with the API's version."""
        username, password = login or self.login
        token = base64.b64encode(f"{username}:{password}".encode()).decode()
        headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        url, _, body = f"/api/{path}", None, None
        if verb == "GET":
            url += f"?{urlencode(content)}"
        else:
            body = json.dumps(content)
        connection = UnixConnection(self.path)
        try:
            connection.request(verb, url, body=body, headers=headers)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise UsersError(
                f"MLflow does not answer on {self.path} ({error}). Next: systemctl status mlflow; {JOURNAL}"
            ) from None
        finally:
            connection.close()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {}
        return response.status, answer if isinstance(answer, dict) else {}

    def call(self, verb: str, path: str, **content: Any) -> Json:
        """Return the answer of a call that must succeed."""
        return self.expect(path, *self.ask(verb, path, content))

    def find(self, path: str, **content: Any) -> Json | None:
        """Return what a call reads; None where that does not exist."""
        status, answer = self.ask("GET", path, content)
        if status == 404 and answer.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
            return None
        return self.expect(path, status, answer)

    def expect(self, path: str, status: int, answer: Json) -> Json:
        """Return the answer when the status is 200."""
        if status == 200:
            return answer
        if status == 401:
            raise UsersError(
                f"MLflow refuses {self.login[0]} with the password in {ADMIN_CREDENTIAL}. "
                "Next: systemctl restart mlflow, which applies it"
            )
        # Its longer messages may hold what a database was asked, hashes of passwords as well.
        said = str(answer.get("message", "")).partition(" Error: ")[0][:300]
        raise UsersError(f"MLflow answered {status} to {path}: {answer.get('error_code', '')} {said}. Next: {JOURNAL}")

    def logs_in(self, name: str, password: str) -> bool:
        """Return whether this is the user's password now, past what the server's processes remember for a while.

        MLflow compares the current password anew before it changes one, and refuses a new one that is the same.
        """
        path = "2.0/mlflow/users/update-password"
        content = {"username": name, "current_password": password, "password": password}
        status, answer = self.ask("PATCH", path, content, login=(name, password))
        said = str(answer.get("message", ""))
        if status == 401 or (status == 400 and "does not match" in said):
            return False
        if status == 200 or (status == 400 and "must differ" in said):
            return True
        self.expect(path, status, answer)
        return False


# The comparison.


def read_password(directory: str, name: str) -> str | None:
    """Return what the file of this name holds, None without one; raises `UsersError`."""
    path = os.path.join(directory, name)
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().rstrip("\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsersError(f"{path} cannot be read ({type(error).__name__}). Next: ls -l {directory}") from None


def passwords(users: list[Json], directory: str, unwritten: list[str], *, foretell: bool) -> dict[str, str | None]:
    """Return the password of each user that is to be there; raises `UsersError` about all that cannot be used.

    Where it is not written yet, because this only foretells, it is None.
    """
    found: dict[str, str | None] = {}
    wrong = []
    for name in [user["name"] for user in users if user["state"] == "present"]:
        path = os.path.join(directory, credential(name))
        password = None if credential(name) in unwritten else read_password(directory, credential(name))
        found[name] = password
        if password is None and not foretell:
            fix = "run the role server_secrets before, or write the file, owned by root with mode 0600"
            wrong.append(problem(f"the password of {name}", path, "the file is not there", fix))
        elif password is not None and len(password) < SHORTEST_PASSWORD:
            fix = "give the secret a version that is longer, and run site.yml"
            wrong.append(problem(f"the password of {name}", path, f"shorter than {SHORTEST_PASSWORD} characters", fix))
    if wrong:
        raise UsersError(report(wrong))
    return found


def plan(server: Server | None, users: list[Json], secrets: dict[str, str | None]) -> list[Change]:
    """Return the changes still to be made; without a server, those of one that has no users yet.

    `users` have every key; the names in `secrets` are those that are to be present.
    """
    accounts = (
        {user["username"]: user for user in server.call("GET", "2.0/mlflow/users/list")["users"]} if server else {}
    )
    known = [name for name in secrets if name in accounts]
    with ThreadPoolExecutor(LOGINS_AT_A_TIME) as pool:
        answers = pool.map(lambda name: _is_current(server, name, secrets[name]), known)
        current = dict(zip(known, answers, strict=True))
    resources = Resources(server)
    leaving = [_removal(server, accounts[user["name"]]) for user in users if user["name"] in {*accounts} - {*secrets}]
    staying = []
    for user in users:
        if user["state"] == "present":
            name = user["name"]
            staying.append(_presence(server, resources, user, accounts.get(name), secrets[name], current.get(name)))
    if resources.problems:
        raise UsersError(report(resources.problems))
    # Who is to go goes first, whatever else may fail.
    return [*leaving, *resources.changes, *(change for change in staying if change.differences)]


def _is_current(server: Server | None, name: str, password: str | None) -> bool:
    return server is not None and password is not None and server.logs_in(name, password)


def _removal(server: Server | None, account: Json) -> Change:
    name = account["username"]
    fields = [Difference("state", "present", "absent"), Difference("is_admin", account["is_admin"], None)]
    return Change("delete", f"user {name}", fields, [_step(server, "DELETE", "2.0/mlflow/users/delete", username=name)])


class Resources:
    """Experiments and models by name; those that are not there are to be made."""

    def __init__(self, server: Server | None) -> None:
        self.server = server
        self.changes: list[Change] = []
        self.problems: list[dict[str, str]] = []
        self._ids: dict[tuple[str, str], str | None] = {}
        # Why nobody can be given a permission on it, and what to do.
        self._unfit: dict[tuple[str, str], tuple[str, str]] = {}

    def id_of(self, kind: str, name: str) -> str | None:
        """Return what MLflow's grants call it; None where it is not there."""
        if (kind, name) not in self._ids:
            self._ids[kind, name] = ALL if name == ALL else self._find(kind, name)
        return self._ids[kind, name]

    def demand(self, kind: str, name: str, username: str) -> None:
        """See to it that it will be there for the user's permission."""
        title, found = f"{kind} {name}", self.id_of(kind, name)
        if (kind, name) in self._unfit:
            self.problems.append(problem(f"{kind} of user {username}", name, *self._unfit[kind, name]))
        elif found is None and title not in [change.title for change in self.changes]:
            self.changes.append(
                Change("create", title, [Difference("state", None, "present")], [lambda: self._create(kind, name)])
            )

    def _find(self, kind: str, name: str) -> str | None:
        if self.server is None:
            return None
        if kind == "registered_model":
            found = self.server.find("2.0/mlflow/registered-models/get", name=name)
            if found is None:
                return None
            if PROMPT in found["registered_model"].get("tags", []):
                self._unfit[kind, name] = "it is a prompt", "take the entry out, it would not count"
            return name
        found = self.server.find("2.0/mlflow/experiments/get-by-name", experiment_name=name)
        if found is None:
            return None
        experiment = found["experiment"]
        if experiment["lifecycle_stage"] == "deleted":
            fix = f"restore it (mlflow experiments restore -x {experiment['experiment_id']}), or take the entry out"
            self._unfit[kind, name] = "it is there, but deleted", fix
        return str(experiment["experiment_id"])

    def _create(self, kind: str, name: str) -> None:
        if self.server is None:
            return
        if kind == "registered_model":
            self.server.call("POST", "2.0/mlflow/registered-models/create", name=name)
            self._ids[kind, name] = name
        else:
            made = self.server.call("POST", "2.0/mlflow/experiments/create", name=name)
            self._ids[kind, name] = str(made["experiment_id"])


def _presence(
    server: Server | None,
    resources: Resources,
    user: Json,
    account: Json | None,
    password: str | None,
    is_current: bool | None,
) -> Change:
    """Return what is to be done about a user that is to be there."""
    name, wanted = user["name"], user["is_admin"]
    change = Change("update" if account else "create", f"user {name}", [])
    if account is None:
        change.differences.append(Difference("state", None, "present"))
        change.steps.append(_step(server, "POST", "2.0/mlflow/users/create", username=name, password=password))
    elif not is_current:
        change.differences.append(Difference("password", "(another)", "(the secret's)"))
        path = "2.0/mlflow/users/update-password"
        change.steps.append(_step(server, "PATCH", path, username=name, password=password))
    if wanted != (account or {}).get("is_admin", False):
        change.differences.append(Difference("is_admin", account["is_admin"] if account else None, wanted))
        change.steps.append(_step(server, "PATCH", "2.0/mlflow/users/update-admin", username=name, is_admin=wanted))
    grants = _grants(server, name) if server and account else {}
    for key, kind in RESOURCE_TYPES.items():
        for grant in user[key]:
            _bring(server, resources, change, grants, name, kind, grant["name"], grant["permission"])
    return change


def _grants(server: Server, name: str) -> dict[tuple[str, str], Json]:
    """Return what the user was given personally, not by a role, by type and id."""
    rows = server.call("GET", "3.0/mlflow/users/permissions/list", username=name)["permissions"]
    return {
        (row["resource_type"], row["resource_pattern"]): row for row in rows if OWN_ROLE.fullmatch(row["role_name"])
    }


def _bring(
    server: Server | None,
    resources: Resources,
    change: Change,
    grants: dict[tuple[str, str], Json],
    username: str,
    kind: str,
    name: str,
    permission: str,
) -> None:
    """Add what is to be done about one grant to the user's change."""
    if permission != NONE:
        resources.demand(kind, name, username)
    row = grants.get((kind, resources.id_of(kind, name) or ""))
    before, after = row["permission"] if row else None, None if permission == NONE else permission
    if before == after:
        return
    change.differences.append(Difference(f"{kind} {name}", before, after))

    def step() -> None:
        if server is None:
            return
        target = {"username": username, "resource_type": kind, "resource_id": resources.id_of(kind, name)}
        if row is None:
            server.call("POST", "3.0/mlflow/users/permissions/grant", permission=permission, **target)
        elif after is None:
            server.call("POST", "3.0/mlflow/users/permissions/revoke", **target)
        else:
            _replace(server, row, permission)

    change.steps.append(step)


def _replace(server: Server, row: Json, permission: str) -> None:
    """Change a grant in place: between taking and giving, a run at work would be refused."""
    listed = server.call("GET", "3.0/mlflow/roles/permissions/list", role_id=row["role_id"])["role_permissions"]
    keys = ("resource_type", "resource_pattern")
    number = next(one["id"] for one in listed if all(one[key] == row[key] for key in keys))
    server.call("PATCH", "3.0/mlflow/roles/permissions/update", role_permission_id=number, permission=permission)


def _step(server: Server | None, verb: str, path: str, **content: Any) -> Callable[[], None]:
    def step() -> None:
        if server is not None:
            server.call(verb, path, **content)

    return step
