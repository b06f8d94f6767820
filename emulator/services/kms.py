"""Cloud KMS: key rings, keys, their policies, and whether a service may encrypt with a key. Nothing is encrypted.

A service uses a key through its own agent, never through the caller:
https://cloud.google.com/kms/docs/cmek#cmek_integrations
"""

import re

from emulator.cloud import Call, Cloud, held_permissions, serves
from emulator.errors import ApiError
from emulator.services.iam import new_account
from emulator.state import Resource, State, now, public

# https://cloud.google.com/iam/docs/service-agents
AGENT_DOMAINS = {
    "compute.googleapis.com": "compute-system",
    "secretmanager.googleapis.com": "gcp-sa-secretmanager",
    "sqladmin.googleapis.com": "gcp-sa-cloud-sql",
    "storage.googleapis.com": "gs-project-accounts",
}
_NAME = re.compile(r"projects/([^/]+)/locations/([^/]+)/keyRings/[^/]+/cryptoKeys/[^/]+")
_USE = ("cloudkms.cryptoKeyVersions.useToEncrypt", "cloudkms.cryptoKeyVersions.useToDecrypt")
_IDENTITY = re.compile(r"[a-zA-Z0-9_-]{1,63}")


def agent_email(state: State, project: str, service: str) -> str:
    """Return the address of a service's agent, whether it was made or not."""
    return f"service-{state.projects[project]}@{AGENT_DOMAINS[service]}.iam.gserviceaccount.com"


def make_agent(state: State, project: str, service: str) -> Resource:
    """Return the agent of a service, made if need be. It belongs to Google: the project's list does not have it."""
    email = agent_email(state, project, service)
    key = f"iam/projects/{AGENT_DOMAINS[service]}/serviceAccounts/{email}"
    return state.resources.setdefault(key, new_account(state, AGENT_DOMAINS[service], email, {}))


def fault_of(cloud: Cloud, key: str, project: str, service: str, locations: set[str]) -> str | None:
    """Return why a service of a project cannot use a key in one of the locations; None when it can.

    One of `malformed`, `location`, `missing`, `disabled` and `denied`.
    """
    found = _NAME.fullmatch(key)
    if not found:
        return "malformed"
    if found[2] not in locations:
        return "location"
    resource = cloud.state.resources.get(f"kms/{key}")
    if resource is None:
        return "missing"
    if resource["primary"]["state"] != "ENABLED":
        return "disabled"
    agent = agent_email(cloud.state, project, service)
    parts = key.split("/")
    places = ["/".join(parts[:length]) for length in range(len(parts), 1, -2)]
    held = cloud.access.account_exists(agent) and all(cloud.access.allowed(agent, one, places) for one in _USE)
    return None if held else "denied"


def _need(call: Call, name: str) -> Resource:
    found = call.state.resources.get(f"kms/{name}")
    if found is None:
        what = "CryptoKey" if "/cryptoKeys/" in name else "KeyRing"
        raise ApiError(404, f"{what} {name} not found.")
    return found


def _made(call: Call, kind: str, identity: str, body: Resource) -> Resource:
    name = f"{call.name}/{kind}/{identity}"
    if not _IDENTITY.fullmatch(identity):
        raise ApiError(400, f"The id '{identity}' must be 1-63 letters, digits, dashes and underscores.")
    if f"kms/{name}" in call.state.resources:
        raise ApiError(409, f"{name} already exists.")
    resource = {**body, "name": name, "createTime": now()}
    call.state.resources[f"kms/{name}"] = resource
    return resource


_RINGS = "cloudkms.projects.locations.keyRings"
_KEYS = f"{_RINGS}.cryptoKeys"


@serves(f"{_RINGS}.create", permission="cloudkms.keyRings.create")
def _create_ring(call: Call) -> Resource:
    return _made(call, "keyRings", call.parameters.get("keyRingId", ""), {})


@serves(f"{_KEYS}.create", permission="cloudkms.cryptoKeys.create")
def _create_key(call: Call) -> Resource:
    _need(call, call.name)
    body = call.body or {}
    if body.get("purpose") != "ENCRYPT_DECRYPT":
        raise ApiError(501, "The emulated cloud has keys of the purpose ENCRYPT_DECRYPT only.")
    key = _made(call, "cryptoKeys", call.parameters.get("cryptoKeyId", ""), body)
    algorithm = {"algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION", "protectionLevel": "SOFTWARE"}
    version = {"name": f"{key['name']}/cryptoKeyVersions/1", "state": "ENABLED", "createTime": now()}
    key |= {"versionTemplate": algorithm, "primary": version | algorithm, "destroyScheduledDuration": "2592000s"}
    return key


@serves(f"{_RINGS}.get", permission="cloudkms.keyRings.get")
@serves(f"{_KEYS}.get", permission="cloudkms.cryptoKeys.get")
def _get(call: Call) -> Resource:
    return public(_need(call, call.name))


@serves(f"{_KEYS}.cryptoKeyVersions.patch", permission="cloudkms.cryptoKeyVersions.update")
def _change_version(call: Call) -> Resource:
    """Enables or disables a key's only version."""
    key = _need(call, call.name.partition("/cryptoKeyVersions/")[0])
    state = (call.body or {}).get("state")
    if call.parameters.get("updateMask") != "state" or state not in ("ENABLED", "DISABLED"):
        raise ApiError(400, "updateMask must be state, and the state ENABLED or DISABLED.")
    key["primary"] = {**key["primary"], "state": state}
    return dict(key["primary"])


@serves(f"{_KEYS}.getIamPolicy", permission="cloudkms.cryptoKeys.getIamPolicy")
def _get_policy(call: Call) -> Resource:
    _need(call, call.name)
    return call.cloud.access.get_policy(call.name, call.parameters.get("options.requestedPolicyVersion", 1))


@serves(f"{_KEYS}.setIamPolicy", permission="cloudkms.cryptoKeys.setIamPolicy")
def _set_policy(call: Call) -> Resource:
    _need(call, call.name)
    return call.cloud.access.set_policy(call.name, call.body["policy"], call.body.get("updateMask"))


serves(f"{_KEYS}.testIamPermissions")(held_permissions)
