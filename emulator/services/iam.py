"""IAM: service accounts, their keys and policies, and the roles that the emulator knows."""

import base64
import json
import re

from cryptography.hazmat.primitives.asymmetric import rsa

from emulator import oauth
from emulator.cloud import METHODS, Call, held_permissions, serves
from emulator.errors import ApiError
from emulator.iam import ROLES
from emulator.state import Resource, State, fingerprint, public

_ACCOUNT_ID = re.compile(r"[a-z]([-a-z0-9]{4,28}[a-z0-9])")
_ROLE_ID = re.compile(r"[A-Za-z0-9_.]{3,64}")
_ROLE_FIELDS = {"title", "description", "stage", "includedPermissions"}


def new_account(state: State, project: str, email: str, described: Resource) -> Resource:
    """Return a service account with what the server assigns."""
    unique = state.new_id()
    return {
        "name": f"projects/{project}/serviceAccounts/{email}",
        "projectId": project,
        "uniqueId": unique,
        "email": email,
        "etag": base64.b64encode(unique[-8:].encode()).decode(),
        "oauth2ClientId": unique,
        **described,
    }


def account_name(call: Call) -> str:
    """Return `projects/p/serviceAccounts/<email>`; clients may write `-` for the project."""
    parts = call.name.split("/")
    found = next((name for name in call.state.resources if name.endswith(f"/serviceAccounts/{parts[3]}")), None)
    return found.removeprefix("iam/") if found and parts[1] == "-" else "/".join(parts[:4])


def _account(call: Call) -> Resource:
    name = account_name(call)
    found = call.state.resources.get(f"iam/{name}")
    if found is None:
        raise ApiError(404, f"Unknown service account: {name}", status="NOT_FOUND")
    return found


def account_resources(call: Call) -> list[str]:
    """Return the account and its project: both policies count."""
    name = account_name(call)
    return [name, "/".join(name.split("/")[:2])]


@serves("iam.projects.serviceAccounts.create", permission="iam.serviceAccounts.create")
def _create(call: Call) -> Resource:
    project, identity = call.name.partition("/")[2], call.body.get("accountId", "")
    if not _ACCOUNT_ID.fullmatch(identity):
        raise ApiError(400, f"Invalid service account ID '{identity}': 6-30 lower-case letters, digits and dashes.")
    email = f"{identity}@{project}.iam.gserviceaccount.com"
    name = f"projects/{project}/serviceAccounts/{email}"
    if f"iam/{name}" in call.state.resources:
        raise ApiError(409, f"Service account {identity} already exists within project projects/{project}.")
    account = new_account(call.state, project, email, call.body.get("serviceAccount") or {})
    call.state.resources[f"iam/{name}"] = account
    return account


@serves("iam.projects.serviceAccounts.get", permission="iam.serviceAccounts.get", resources=account_resources)
def _get(call: Call) -> Resource:
    return _account(call)


@serves("iam.projects.serviceAccounts.list", permission="iam.serviceAccounts.list")
def _list(call: Call) -> Resource:
    found = [public(item) for _, item in call.state.under(f"iam/{call.name}/serviceAccounts/")]
    return call.page(found, "accounts", "pageSize")


@serves("iam.projects.serviceAccounts.patch", permission="iam.serviceAccounts.update", resources=account_resources)
def _patch(call: Call) -> Resource:
    account, changes = _account(call), call.body.get("serviceAccount", {})
    masked = [field.strip() for field in call.body.get("updateMask", "").split(",")]
    if not set(masked) <= {"displayName", "display_name", "description"}:
        raise ApiError(400, "updateMask must name displayName and description only.")
    for field in ("displayName", "description"):
        if field in masked or (field == "displayName" and "display_name" in masked):
            account[field] = changes.get(field, "")
    account["etag"] = fingerprint(account)
    return account


@serves("iam.projects.serviceAccounts.delete", permission="iam.serviceAccounts.delete", resources=account_resources)
def _delete(call: Call) -> Resource:
    account = _account(call)
    del call.state.resources[f"iam/{account['name']}"]
    call.state.policies.pop(account["name"], None)
    member, gone = (
        f"serviceAccount:{account['email']}",
        f"deleted:serviceAccount:{account['email']}?uid={account['uniqueId']}",
    )
    for policy in call.state.policies.values():
        for binding in policy.get("bindings", []):
            binding["members"] = [gone if item == member else item for item in binding["members"]]
    for identity in [key for key, value in call.state.keys.items() if value["email"] == account["email"]]:
        del call.state.keys[identity]
    return {}


@serves(
    "iam.projects.serviceAccounts.getIamPolicy",
    permission="iam.serviceAccounts.getIamPolicy",
    resources=account_resources,
)
def _get_policy(call: Call) -> Resource:
    return call.cloud.access.get_policy(_account(call)["name"])


@serves(
    "iam.projects.serviceAccounts.setIamPolicy",
    permission="iam.serviceAccounts.setIamPolicy",
    resources=account_resources,
)
def _set_policy(call: Call) -> Resource:
    return call.cloud.access.set_policy(_account(call)["name"], call.body["policy"], call.body.get("updateMask"))


serves("iam.projects.serviceAccounts.testIamPermissions", resources=account_resources)(held_permissions)


@serves(
    "iam.projects.serviceAccounts.keys.create", permission="iam.serviceAccountKeys.create", resources=account_resources
)
def _create_key(call: Call) -> Resource:
    account = _account(call)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    content = oauth.credentials(call.cloud.access, account["email"], key)
    return {
        "name": f"{account['name']}/keys/{content['private_key_id']}",
        "privateKeyType": "TYPE_GOOGLE_CREDENTIALS_FILE",
        "privateKeyData": base64.b64encode(json.dumps(content).encode()).decode(),
        "keyAlgorithm": "KEY_ALG_RSA_2048",
        "keyOrigin": "GOOGLE_PROVIDED",
        "keyType": "USER_MANAGED",
    }


def _role(name: str) -> Resource:
    title = re.sub(r"([a-z])([A-Z])", r"\1 \2", name.rpartition(".")[2] or name).title()
    return {"name": name, "title": title, "stage": "GA", "etag": "AA==", "includedPermissions": ROLES[name]}


@serves("iam.roles.get", resources=lambda _call: [])
def _get_role(call: Call) -> Resource:
    if call.name not in ROLES:
        raise ApiError(404, f"The role named {call.name} was not found.")
    return _role(call.name)


@serves("iam.roles.list", resources=lambda _call: [])
def _list_roles(call: Call) -> Resource:
    return call.page([_role(name) for name in sorted(ROLES)], "roles", "pageSize")


def _own_role(call: Call) -> Resource:
    found = call.state.resources.get(f"iam/{call.name}")
    if found is None:
        raise ApiError(404, f"The role named {call.name} was not found.", status="NOT_FOUND")
    return found


def _check_role(role: Resource) -> None:
    """Raise `ApiError` 400 for a permission that nothing here asks for: a real one, or it would grant nothing."""
    known = {entry.permission for entry in METHODS.values()}
    for permission in role.get("includedPermissions", []):
        if permission not in known:
            raise ApiError(400, f"Permission {permission} is not valid.", status="INVALID_ARGUMENT")


@serves("iam.projects.roles.create", permission="iam.roles.create")
def _create_role(call: Call) -> Resource:
    identity, role = call.body.get("roleId", ""), call.body.get("role") or {}
    if not _ROLE_ID.fullmatch(identity):
        raise ApiError(400, f"The role ID {identity} is not valid: 3-64 letters, digits, underscores and periods.")
    name = f"{call.name}/roles/{identity}"
    there = call.state.resources.get(f"iam/{name}")
    if there and there.get("deleted"):
        # https://cloud.google.com/iam/docs/creating-custom-roles#deleting-custom-role
        message = f"You can't create a role with role_id ({identity}) where there is an existing role with that role_id"
        raise ApiError(400, f"{message} in a deleted state.", status="FAILED_PRECONDITION")
    if there:
        raise ApiError(409, f"A role named {identity} in {call.name} already exists.", status="ALREADY_EXISTS")
    _check_role(role)
    made = {"name": name, "stage": "ALPHA", **{key: role[key] for key in _ROLE_FIELDS & set(role)}}
    call.state.resources[f"iam/{name}"] = {**made, "etag": fingerprint(made)}
    return call.state.resources[f"iam/{name}"]


@serves("iam.projects.roles.get", permission="iam.roles.get")
def _get_own_role(call: Call) -> Resource:
    return _own_role(call)


@serves("iam.projects.roles.patch", permission="iam.roles.update")
def _patch_role(call: Call) -> Resource:
    role, changes = _own_role(call), call.body or {}
    masked = set(call.parameters.get("updateMask", "").split(",")) - {""} or _ROLE_FIELDS & set(changes)
    if role.get("deleted") or not masked <= _ROLE_FIELDS:
        raise ApiError(400, f"The role is deleted, or one of {sorted(masked)} cannot be changed.")
    if changes.get("etag", role["etag"]) != role["etag"]:
        raise ApiError(409, "There were concurrent changes to the role.", reason="aborted", status="ABORTED")
    _check_role(changes)
    for field in masked:
        role.pop(field, None)
        role |= {field: changes[field]} if field in changes else {}
    role["etag"] = fingerprint(role)
    return role


@serves("iam.projects.roles.delete", permission="iam.roles.delete")
def _delete_role(call: Call) -> Resource:
    """Marks it: for a week it can be had back, and for a month more its name stays taken."""
    role = _own_role(call)
    role["deleted"] = True
    return role


@serves("iam.projects.roles.undelete", permission="iam.roles.undelete")
def _undelete_role(call: Call) -> Resource:
    role = _own_role(call)
    role.pop("deleted", None)
    return role


@serves("iamcredentials.projects.serviceAccounts.getAllowedLocations", resources=lambda _call: [])
def _locations(_call: Call) -> Resource:
    return {"locations": [], "encodedLocations": "0x0"}


@serves(
    "iamcredentials.projects.serviceAccounts.generateIdToken",
    permission="iam.serviceAccounts.getOpenIdToken",
    resources=account_resources,
)
def _identity_token(call: Call) -> Resource:
    if not call.name.startswith("projects/-/"):
        raise ApiError(400, "The project of the service account's name must be -.")
    if not call.body.get("audience"):
        raise ApiError(400, "Required field 'audience' not specified", reason="required")
    if call.body.get("delegates") or call.body.get("organizationNumberIncluded"):
        raise ApiError(501, "The emulated cloud has neither delegates nor organization numbers in ID tokens.")
    email, audience = _account(call)["email"], call.body["audience"]
    return {"token": oauth.IdentityKey(call.cloud).token(email, audience, bool(call.body.get("includeEmail")))}
