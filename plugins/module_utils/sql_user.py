"""Users of a Cloud SQL instance.

https://cloud.google.com/sql/docs/mysql/admin-api/rest/v1/users
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import operations
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json, method
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.drift import Difference
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import batch_result
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Wanted, resource_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.secret import read_version
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import (
    AmbiguousError,
    ApiError,
    CloudError,
    Session,
)

TYPES = ("BUILT_IN", "CLOUD_IAM_SERVICE_ACCOUNT", "CLOUD_IAM_USER")
ENGINES = ("POSTGRES", "MYSQL")
# The options of gcp_sql_user, which are those of one instance in gcp_resource.
USERS: dict[str, dict[str, Any]] = {
    "instance": {"type": "str", "required": True},
    "engine": {"type": "str", "choices": list(ENGINES), "default": "POSTGRES"},
    "users": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "type": {"type": "str", "choices": list(TYPES), "default": "BUILT_IN"},
            "password": {"type": "str", "no_log": True},
            # The name of a secret, not its value.
            "password_secret": {"type": "str", "no_log": False},
            "password_secret_version": {"type": "str", "default": "latest", "no_log": False},
            "update_password": {
                "type": "str",
                "choices": ["on_create", "always"],
                "default": "on_create",
                "no_log": False,
            },
            "database_roles": {"type": "list", "elements": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        "mutually_exclusive": [("password", "password_secret")],
    },
}
ATTEMPTS = 5
# Google gives IAM users roles by which they log in, cloudsqliamserviceaccount for one; they stay:
# https://github.com/cyrilgdn/terraform-provider-postgresql/issues/233
OWN_ROLES = "cloudsqliam"
# In MySQL a user is a name and the hosts it may come from; behind the proxy that is any host.
ANY_HOST = "%"

Plan = tuple[str, list[Difference]]


def database_name(name: str, kind: str, engine: str) -> str:
    """Return the name as the database knows the user.

    https://cloud.google.com/sql/docs/postgres/add-manage-iam-users#creating-a-database-user
    https://cloud.google.com/sql/docs/mysql/add-manage-iam-users#creating-a-database-user
    """
    if kind == "BUILT_IN":
        return name
    if engine == "MYSQL":
        return name.lower().partition("@")[0]
    return name.lower().removesuffix(".gserviceaccount.com") if kind == "CLOUD_IAM_SERVICE_ACCOUNT" else name.lower()


def plan_user(wanted: Json, actual: Json | None) -> Plan:
    """Return the action and the differences for one user; CloudError when it cannot be done."""
    name = wanted["name"]
    if wanted["state"] == "absent":
        return ("delete", [Difference("state", "present", "absent")]) if actual else ("none", [])
    roles = wanted.get("database_roles")
    has_password = bool(wanted.get("password") or wanted.get("password_secret"))
    if actual is None:
        if wanted["type"] == "BUILT_IN" and not has_password:
            raise CloudError(f"Cloud SQL user {name}: a new built-in user needs password or password_secret")
        return "create", [Difference("type", None, wanted["type"])] + (
            [Difference("databaseRoles", None, sorted(roles))] if roles else []
        )
    if actual.get("type", "BUILT_IN") != wanted["type"]:
        raise CloudError(
            f"Cloud SQL user {name}: is {actual.get('type', 'BUILT_IN')}, wanted {wanted['type']}."
            " Google cannot change the type; delete the user yourself before the next run",
            "docs/failures.md#google-cannot-change-this-in-place",
        )
    # MySQL's short names are the same for accounts of several projects.
    address = actual.get("iamEmail") or wanted["address"]
    if address.lower() != wanted["address"].lower():
        raise CloudError(
            f"Cloud SQL user {name}: is {address}, wanted {wanted['address']}, which has the same name."
            " Delete that user yourself before the next run, or name an account that is called otherwise",
            "docs/failures.md#google-cannot-change-this-in-place",
        )
    found = []
    # Roles that the list leaves out are none, but unknown of an IAM user, who has one of Google's own at least.
    present = actual.get("databaseRoles", [] if wanted["type"] == "BUILT_IN" else None)
    if roles is not None and present is not None:
        after = {*roles, *(role for role in present if role.startswith(OWN_ROLES))}
        if after != set(present):
            found.append(Difference("databaseRoles", sorted(present), sorted(after)))
    if wanted.get("update_password") == "always" and has_password:
        found.append(Difference("password", None, "set again"))
    return ("update" if found else "none"), found


class Users:
    """The users of one instance."""

    def __init__(self, cloud: Session, instance: str, engine: str) -> None:
        self.cloud = cloud
        self.instance = instance
        self.engine = engine
        self.parameters = {"project": cloud.project, "instance": instance}

    def read(self) -> dict[str, Json]:
        """Return the users by name; in check mode none while the instance does not exist."""
        listing = method("sqladmin.v1", "users", "list")
        try:
            answer = self.cloud.call(
                listing, self.parameters, f"Listing the users of Cloud SQL instance {self.instance}"
            )
        except ApiError as error:
            resource = resource_of(self.cloud, Wanted("sqladmin.instances", self.instance))
            if not self.cloud.check_mode or resource.read() is not None:
                raise
            self.cloud.warnings.append(f"Cloud SQL instance {self.instance} has no users yet: {error.message}")
            return {}
        users = answer.get("items", [])
        return {user["name"]: user for user in users if self.engine != "MYSQL" or user.get("host") == ANY_HOST}

    def _identity(self, wanted: Json, action: str) -> Json:
        """Return how a request names a user: for IAM users MySQL takes the whole address, and no host when creating.

        https://cloud.google.com/sql/docs/mysql/reference/mcp/tools_list/update_user
        """
        if self.engine != "MYSQL":
            return {"name": wanted["name"]}
        if wanted["type"] == "BUILT_IN":
            return {"name": wanted["name"], "host": ANY_HOST}
        return {"name": wanted["address"].lower()} | ({} if action == "create" else {"host": ANY_HOST})

    def ensure(self, wanted: Json, users: dict[str, Json]) -> Plan:
        """Bring one user to the wanted state and return what was done."""
        first = plan = plan_user(wanted, users.get(wanted["name"]))
        deadline = self.cloud.clock() + self.cloud.timeout_seconds
        attempt = 0
        for pause in self.cloud.pauses(1.0):
            if self.cloud.check_mode or plan[0] == "none":
                break
            try:
                self._write(plan, wanted)
                break
            except (ApiError, AmbiguousError) as error:
                is_busy = isinstance(error, ApiError) and error.busy
                attempt += not is_busy
                if isinstance(error, ApiError) and not error.conflict:
                    raise
                if attempt >= ATTEMPTS or self.cloud.clock() > deadline:
                    raise
            if is_busy:
                operations.settle(self.cloud, self.instance, f"Changing user {wanted['name']} of {self.instance}")
            self.cloud.sleep(min(pause, 10.0))
            plan = plan_user(wanted, self.read().get(wanted["name"]))
        return first

    def _write(self, plan: Plan, wanted: Json) -> None:
        action, differences = plan
        name = wanted["name"]
        verb, purpose = {
            "create": ("insert", "Creating"),
            "update": ("update", "Changing"),
            "delete": ("delete", "Deleting"),
        }[action]
        identity = self._identity(wanted, action)
        query: Json = {} if action == "create" else dict(identity)
        body: Json | None = None if action == "delete" else dict(identity)
        fields = {difference.field: difference.after for difference in differences}
        if body is not None and wanted["type"] == "BUILT_IN" and (action == "create" or "password" in fields):
            body["password"] = wanted.get("password") or read_version(
                self.cloud, wanted["password_secret"], wanted["password_secret_version"]
            )
        if body is not None and action == "create":
            body["type"] = wanted["type"]
            if wanted.get("database_roles"):
                body["databaseRoles"] = wanted["database_roles"]
        elif "databaseRoles" in fields:
            # In an update roles go by the query, the body's are ignored.
            query |= {"databaseRoles": fields["databaseRoles"], "revokeExistingRoles": "true"}
        purpose = f"{purpose} user {name} of Cloud SQL instance {self.instance}"
        answer = self.cloud.call(method("sqladmin.v1", "users", verb), self.parameters, purpose, body, query)
        operations.wait(self.cloud, "sqladmin.v1", answer, purpose)


def ensure_users(cloud: Session, instance: str, engine: str, users: list[Json]) -> Json:
    """Bring all users to the wanted state and return the module's result.

    The arguments are the options of gcp_sql_user. An instance does one operation at a time, so the users go one by one.
    """
    named = [
        {**user, "name": database_name(user["name"], user["type"], engine), "address": user["name"]} for user in users
    ]
    problems = [
        f"Cloud SQL user {user['name']}: an IAM user has no password, leave it out"
        for user in named
        if user["type"] != "BUILT_IN" and (user.get("password") or user.get("password_secret"))
    ] + [
        f"Cloud SQL user {user['address']}: MySQL needs an IAM user's whole address"
        for user in named
        if engine == "MYSQL" and user["type"] != "BUILT_IN" and "@" not in user["address"]
    ]
    if problems:
        raise CloudError("\n".join(problems))
    present = Users(cloud, instance, engine)
    known = present.read()
    members: list[Json] = []
    failures: list[CloudError] = []
    for user in named:
        try:
            action, found = present.ensure(user, known)
        except CloudError as error:
            failures.append(error)
            continue
        differences = [difference._asdict() for difference in found]
        members.append(
            {"name": user["name"], "changed": action != "none", "action": action, "differences": differences}
        )
    return batch_result("users", members, failures, lambda member: f"Cloud SQL user {member['name']}")


def users_step(sql_users: Json | None) -> list[Callable[[Session], Json]]:
    """Return what a module does after its own work, for its option `sql_users`."""
    return [lambda cloud: ensure_users(cloud, **sql_users)] if sql_users else []
