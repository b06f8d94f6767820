"""IAM policies: which members have which role on a resource, and what is logged of their access.

Policies are read and written whole: https://cloud.google.com/iam/docs/policies. Conditions need policy version 3.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import operations
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json, Method, method
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.drift import Difference
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import KINDS
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.reference import among, resolved
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.report import batch_result
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import (
    THREADS,
    AmbiguousError,
    ApiError,
    CloudError,
    Session,
)

POLICY_VERSION = 3
ATTEMPTS = 10
# A new service account is unknown to IAM for a while:
# https://cloud.google.com/iam/docs/access-change-propagation
PROPAGATION_SECONDS = 120.0

RESOURCES = {
    "project": ("cloudresourcemanager.v1", "projects"),
    "storage.buckets": ("storage.v1", "buckets"),
    "secretmanager.secrets": ("secretmanager.v1", "projects.secrets"),
    "iam.serviceAccounts": ("iam.v1", "projects.serviceAccounts"),
    "cloudkms.cryptoKeys": ("cloudkms.v1", "projects.locations.keyRings.cryptoKeys"),
    "dns.managedZones": ("dns.v1", "managedZones"),
}

# How modules take policies.
CONDITION = {
    "title": {"type": "str", "required": True},
    "expression": {"type": "str", "required": True},
    "description": {"type": "str"},
}
BINDING = {
    "role": {"type": "str", "required": True},
    "members": {"type": "list", "elements": "str", "required": True},
    "condition": {"type": "dict", "options": CONDITION},
}
AUDIT_CONFIG = {
    "service": {"type": "str", "required": True},
    "log_types": {
        "type": "list",
        "elements": "str",
        "required": True,
        "choices": ["ADMIN_READ", "DATA_READ", "DATA_WRITE"],
    },
}
RESOURCE = {
    "kind": {"type": "str", "required": True, "choices": list(RESOURCES)},
    "name": {"type": "str"},
}
POLICY: dict[str, dict[str, Any]] = {
    "resource": {"type": "dict", "options": RESOURCE},
    "bindings": {"type": "list", "elements": "dict", "default": [], "options": BINDING},
    "mode": {"type": "str", "choices": ["additive", "exclusive", "absent"], "default": "additive"},
    "confined_members": {"type": "list", "elements": "str", "default": []},
    "audit_configs": {"type": "list", "elements": "dict", "options": AUDIT_CONFIG},
}
POLICIES: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "options": {**POLICY, "resource": {**POLICY["resource"], "required": True}},
}


class Agent(NamedTuple):
    """The account through which a service of Google's acts in a project, and the method that makes it.

    It is made by enabling the service where there is no method.
    """

    domain: str
    method: tuple[str, str, str] | None = None


# https://cloud.google.com/iam/docs/service-agents, https://cloud.google.com/sql/docs/postgres/configure-cmek,
# https://cloud.google.com/storage/docs/getting-service-agent, https://cloud.google.com/secret-manager/docs/cmek
AGENTS = {
    "compute.googleapis.com": Agent("compute-system"),
    "secretmanager.googleapis.com": Agent(
        "gcp-sa-secretmanager", ("serviceusage.v1beta1", "services", "generateServiceIdentity")
    ),
    "sqladmin.googleapis.com": Agent(
        "gcp-sa-cloud-sql", ("serviceusage.v1beta1", "services", "generateServiceIdentity")
    ),
    "storage.googleapis.com": Agent("gs-project-accounts", ("storage.v1", "projects.serviceAccount", "get")),
}
AGENT_PREFIX = "serviceAgent:"

# Role and condition, the latter as JSON: what makes a binding.
Key = tuple[str, str]


@dataclass
class Wish:
    """All that a run asks of one resource's policy."""

    kind: str
    name: str
    entries: list[Json] = field(default_factory=list)

    @property
    def agents(self) -> set[str]:
        """Services whose agents are named as members."""
        members = (m for entry in self.entries for binding in entry.get("bindings") or [] for m in binding["members"])
        return {member.removeprefix(AGENT_PREFIX) for member in members if member.startswith(AGENT_PREFIX)}

    @property
    def title(self) -> str:
        """Name for messages."""
        return f"{self.kind} {self.name}"


def normalise_member(member: str) -> str:
    """Return the member as Google stores it: the addresses of accounts and groups in lower case."""
    kind, separator, identity = member.partition(":")
    return (
        f"{kind}:{identity.lower()}"
        if kind in {"user", "serviceAccount", "group", "domain"}
        else kind + separator + identity
    )


def _living(member: str) -> str:
    """Return the member as it was called before it was deleted.

    https://cloud.google.com/iam/docs/principal-identifiers#deleted-principals
    """
    return member.removeprefix("deleted:").partition("?uid=")[0] if member.startswith("deleted:") else member


def with_agents(entries: list[Json], number: str) -> list[Json]:
    """Return the entries with the services' agents by their addresses in the project of that number."""

    def address(member: str) -> str:
        agent = AGENTS.get(member.removeprefix(AGENT_PREFIX)) if member.startswith(AGENT_PREFIX) else None
        return f"serviceAccount:service-{number}@{agent.domain}.iam.gserviceaccount.com" if agent else member

    return [
        {
            **entry,
            "bindings": [
                {**binding, "members": [address(member) for member in binding["members"]]}
                for binding in entry.get("bindings") or []
            ],
        }
        for entry in entries
    ]


def desired_policy(policy: Json, entries: list[Json]) -> Json:
    """Return the policy with the entries of gcp_iam applied, in order; roles and services not named stay."""
    desired = copy.deepcopy(policy)
    for entry in entries:
        desired["bindings"] = _bindings(desired.get("bindings", []), entry)
        if entry.get("audit_configs") is not None:
            desired["auditConfigs"] = _audit_configs(desired.get("auditConfigs", []), entry)
    return desired


def _bindings(bindings: list[Json], entry: Json) -> list[Json]:
    wanted: dict[Key, set[str]] = {}
    for binding in entry.get("bindings") or []:
        members = {normalise_member(member) for member in binding["members"]}
        wanted.setdefault(_key(binding), set()).update(members)
    current = _by_key(bindings)
    if entry.get("mode") == "exclusive":
        roles = {role for role, _ in wanted}
        current = {key: members for key, members in current.items() if key[0] not in roles or key in wanted}
        current |= wanted
    elif entry.get("mode") == "absent":
        for key, members in wanted.items():
            current[key] = {member for member in current.get(key, set()) if _living(member) not in members}
    else:
        for key, members in wanted.items():
            current[key] = current.get(key, set()) | members
    confined = {normalise_member(member) for member in entry.get("confined_members") or []}
    current = {key: members - (confined - wanted.get(key, set())) for key, members in current.items()}
    return [_binding(key, members) for key, members in current.items() if members]


def _key(binding: Json) -> Key:
    condition = {name: text for name, text in (binding.get("condition") or {}).items() if text}
    return binding["role"], json.dumps(condition, sort_keys=True) if condition else ""


def _binding(key: Key, members: set[str]) -> Json:
    role, condition = key
    binding: Json = {"role": role, "members": sorted(members)}
    return {**binding, "condition": json.loads(condition)} if condition else binding


def _by_key(bindings: list[Json]) -> dict[Key, set[str]]:
    found: dict[Key, set[str]] = {}
    for binding in bindings:
        found.setdefault(_key(binding), set()).update(binding.get("members", []))
    return found


def _audit_configs(configs: list[Json], entry: Json) -> list[Json]:
    by_service = {config["service"]: config.get("auditLogConfigs", []) for config in configs}
    for config in entry["audit_configs"]:
        # Exempted members of a kind that stays logged are kept.
        before = {log["logType"]: log for log in by_service.get(config["service"], [])}
        named = set(config["log_types"])
        kinds = {"exclusive": named, "absent": before.keys() - named}.get(entry.get("mode", ""), before.keys() | named)
        by_service[config["service"]] = [before.get(kind, {"logType": kind}) for kind in sorted(kinds)]
    return [{"service": service, "auditLogConfigs": logs} for service, logs in by_service.items() if logs]


def policy_differences(before: Json, after: Json) -> list[Difference]:
    """Return the roles and audited services that differ."""
    sides = [_by_key(policy.get("bindings", [])) for policy in (before, after)]
    found = [
        Difference(_role_title(key), sorted(sides[0].get(key, ())), sorted(sides[1].get(key, ())))
        for key in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(key, set()) != sides[1].get(key, set())
    ]
    logs = [
        {
            c["service"]: sorted(log["logType"] for log in c.get("auditLogConfigs", []))
            for c in policy.get("auditConfigs", [])
        }
        for policy in (before, after)
    ]
    found += [
        Difference(f"audit logs of {service}", logs[0].get(service, []), logs[1].get(service, []))
        for service in dict.fromkeys([*logs[0], *logs[1]])
        if logs[0].get(service) != logs[1].get(service)
    ]
    return found


def _role_title(key: Key) -> str:
    role, condition = key
    return f"{role} if {json.loads(condition)['title']}" if condition else role


class PolicyOf:
    """The policy of one resource."""

    def __init__(self, cloud: Session, wish: Wish) -> None:
        self.cloud = cloud
        self.wish = wish
        self.api, self.collection = RESOURCES[wish.kind]

    def _method(self, name: str) -> Method:
        return method(self.api, self.collection, name)

    @property
    def _parameters(self) -> dict[str, str]:
        full_name = KINDS[self.wish.kind].full_name if self.wish.kind in KINDS else None
        scope = {"project": self.cloud.project, "name": self.wish.name}
        return {
            "resource": self.cloud.project,
            "bucket": self.wish.name,
            "+resource": full_name.format(**scope) if full_name else self.wish.name,
        }

    def read(self) -> Json:
        """Return the policy; an empty one while the resource does not exist and nothing is granted on it.

        In check mode, what is granted may be on a resource that the run would have made.
        """
        called = self._method("getIamPolicy")
        version = {name: POLICY_VERSION for name in called.query if name.lower().endswith("requestedpolicyversion")}
        body = None if version or called.verb == "GET" else {"options": {"requestedPolicyVersion": POLICY_VERSION}}
        try:
            return self.cloud.call(
                called, self._parameters, f"Reading the IAM policy of {self.wish.title}", body, version
            )
        except ApiError as error:
            is_missing = error.status == 404 or (self.cloud.check_mode and error.service_disabled)
            if is_missing and all(entry.get("mode") == "absent" for entry in self.wish.entries):
                return {}
            if is_missing and self.cloud.check_mode:
                self.cloud.warnings.append(f"The IAM policy of {self.wish.title} counts as empty: {error.message}")
                return {}
            raise

    def _number(self) -> str:
        """Return the project's number, which an empty project does not tell in check mode."""
        try:
            return self.cloud.project_number()
        except ApiError as error:
            if self.cloud.check_mode and error.service_disabled:
                return "project-number"
            raise

    def make_agents(self) -> None:
        """Make the agents that are named; Google answers with the one that is there, where there is one."""
        for service in sorted(self.wish.agents):
            made_by = AGENTS[service].method
            if made_by:
                called, purpose = method(*made_by), f"Making the service agent of {service}"
                parent = f"projects/{self.cloud.project_number()}/services/{service}"
                answer = self.cloud.call(called, {"projectId": self.cloud.project, "+parent": parent}, purpose)
                if called.response == "Operation":
                    operations.wait(self.cloud, made_by[0], answer, purpose)

    def write(self, policy: Json) -> None:
        """Replace the policy; Google refuses when its etag is no longer the current one."""
        policy = {**policy, "version": POLICY_VERSION}
        purpose = f"Writing the IAM policy of {self.wish.title}"
        called = self._method("setIamPolicy")
        body: Any = policy if called.verb == "PUT" else {"policy": policy}
        if "auditConfigs" in policy or any(entry.get("audit_configs") is not None for entry in self.wish.entries):
            # Without the mask Google leaves audit configurations as they are.
            body["updateMask"] = "bindings,etag,auditConfigs"
        self.cloud.call(called, self._parameters, purpose, body)

    def ensure(self) -> list[Difference]:
        """Bring the policy to what is wanted and return what differed."""
        policy = self.read()
        entries = with_agents(self.wish.entries, self._number()) if self.wish.agents else self.wish.entries
        desired = desired_policy(policy, entries)
        first = policy_differences(policy, desired)
        known_by = self.cloud.clock() + PROPAGATION_SECONDS
        attempt = 0
        for pause in self.cloud.pauses():
            if self.cloud.check_mode or not policy_differences(policy, desired):
                break
            try:
                self.make_agents()
                self.write(desired)
                break
            except (ApiError, AmbiguousError) as error:
                is_unknown = isinstance(error, ApiError) and error.status == 400 and "does not exist" in error.message
                is_conflict = isinstance(error, AmbiguousError) or error.conflict
                attempt += is_conflict
                if not (is_conflict or is_unknown) or attempt >= ATTEMPTS or self.cloud.clock() > known_by:
                    raise
            self.cloud.sleep(pause)
            policy = self.read()
            desired = desired_policy(policy, entries)
        return first


def ensure_policies(cloud: Session, policies: list[Json]) -> Json:
    """Bring all policies to what is wanted, side by side, and return the module's result.

    `policies` has the options of gcp_iam. Entries for one resource are applied together, in their order.
    """
    wishes: dict[tuple[str, str], Wish] = {}
    for entry in policies:
        kind, name = entry["resource"]["kind"], entry["resource"].get("name") or ""
        if kind == "project":
            name = cloud.project
        elif not name:
            raise CloudError(f"resource.name is missing, the name of the {kind} whose policy it is")
        elif entry.get("audit_configs") is not None:
            raise CloudError(f"{kind} {name}: audit_configs belong to the project, move them to an entry of that kind")
        wish = wishes.setdefault((kind, name), Wish(kind, name))
        wish.entries.append(entry)
        unknown = sorted(wish.agents - AGENTS.keys())
        if unknown:
            raise CloudError(f"{AGENT_PREFIX}{unknown[0]}: no such agent is known; known are {', '.join(AGENTS)}")
    with ThreadPoolExecutor(THREADS) as pool:
        outcomes = list(pool.map(lambda wish: _outcome(cloud, wish), wishes.values()))
    members = [member for member in outcomes if isinstance(member, dict)]
    failures = [failure for failure in outcomes if isinstance(failure, CloudError)]
    return batch_result("policies", members, failures, lambda m: f"IAM policy of {m['kind']} {m['name']}")


def policies_step(policies: list[Json] | None, members: list[Json] | None = None) -> list[Callable[[Session], Json]]:
    """Return what a module does after its own work, for its option `policies`, which may refer to its `members`."""

    def step(cloud: Session) -> Json:
        return ensure_policies(cloud, resolved(policies, among(members or [], check_mode=cloud.check_mode)))

    return [step] if policies else []


def _outcome(cloud: Session, wish: Wish) -> Json | CloudError:
    """Return the member of the result, or the failure."""
    try:
        found = PolicyOf(cloud, wish).ensure()
    except CloudError as error:
        return error
    differences = [difference._asdict() for difference in found]
    return {"kind": wish.kind, "name": wish.name, "changed": bool(found), "differences": differences}
