"""Resource Manager, Service Usage and Service Networking: what belongs to a project as a whole."""

import re
import uuid

from emulator.cloud import BILLED_SERVICES, Call, held_permissions, serves
from emulator.discovery import APIS
from emulator.errors import ApiError, not_found
from emulator.operations import Work, new_name
from emulator.services.compute import BASE, path_of
from emulator.services.kms import AGENT_DOMAINS, make_agent
from emulator.state import Resource

_PEERING = "servicenetworking-googleapis-com"
_KNOWN_SERVICES = {f"{api.partition('.')[0]}.googleapis.com" for api in APIS} | {
    f"{name}.googleapis.com"
    for name in ("iap", "oslogin", "dns", "networkmanagement", "cloudapis", "sql-component", "storage-api", "osconfig")
}


def _project_id(call: Call) -> str:
    name = next(str(call.parameters[key]) for key in ("projectId", "resource", "name") if key in call.parameters)
    return name.removeprefix("projects/")


def _of_project(call: Call) -> list[str]:
    return [f"projects/{_project_id(call)}"]


@serves("cloudresourcemanager.projects.get", permission="resourcemanager.projects.get", resources=_of_project)
def _get(call: Call) -> Resource:
    project = _project_id(call)
    number = call.state.projects[project]
    if call.method.api.endswith("v1"):
        shown: Resource = {"projectNumber": number, "lifecycleState": "ACTIVE", "name": project}
        return shown | {"projectId": project, "createTime": "2026-01-01T00:00:00.000Z"}
    shown = {"name": f"projects/{number}", "projectId": project, "state": "ACTIVE", "displayName": project}
    return shown | {"createTime": "2026-01-01T00:00:00Z", "etag": 'W/"emulator"'}


@serves(
    "cloudresourcemanager.projects.getIamPolicy",
    permission="resourcemanager.projects.getIamPolicy",
    resources=_of_project,
)
def _get_policy(call: Call) -> Resource:
    version = ((call.body or {}).get("options") or {}).get("requestedPolicyVersion", 1)
    return call.cloud.access.get_policy(f"projects/{_project_id(call)}", version)


@serves(
    "cloudresourcemanager.projects.setIamPolicy",
    permission="resourcemanager.projects.setIamPolicy",
    resources=_of_project,
)
def _set_policy(call: Call) -> Resource:
    body = call.body or {}
    if "policy" not in body:
        raise ApiError(400, "The policy is required.")
    return call.cloud.access.set_policy(f"projects/{_project_id(call)}", body["policy"], body.get("updateMask"))


serves("cloudresourcemanager.projects.testIamPermissions", resources=_of_project)(held_permissions)


@serves("cloudresourcemanager.projects.getEffectiveOrgPolicy", permission="orgpolicy.policy.get", resources=_of_project)
def _org_policy(call: Call) -> Resource:
    """Return the policy that was set on the project; the emulated cloud has no organizations above it."""
    constraint = (call.body or {}).get("constraint", "")
    if not constraint.startswith("constraints/"):
        raise ApiError(400, f"The constraint '{constraint}' must begin with constraints/.")
    unset = {"constraint": constraint, "listPolicy": {"allValues": "ALLOW"}}
    return call.state.resources.get(f"orgpolicy/{_project_id(call)}/{constraint}", unset)


@serves("cloudresourcemanager.projects.setOrgPolicy", permission="orgpolicy.policy.set", resources=_of_project)
def _set_org_policy(call: Call) -> Resource:
    """Keeps a policy, by which nothing is refused."""
    policy = (call.body or {}).get("policy", {})
    if not str(policy.get("constraint", "")).startswith("constraints/"):
        raise ApiError(400, "The policy needs a constraint, which begins with constraints/.")
    call.state.resources[f"orgpolicy/{_project_id(call)}/{policy['constraint']}"] = policy
    return dict(policy)


def _billing(project: str, account: str) -> Resource:
    return {
        "name": f"projects/{project}/billingInfo",
        "projectId": project,
        "billingAccountName": account,
        "billingEnabled": bool(account),
    }


@serves("cloudbilling.projects.getBillingInfo", permission="resourcemanager.projects.get", resources=_of_project)
def _get_billing(call: Call) -> Resource:
    return _billing(_project_id(call), call.state.billing.get(_project_id(call), ""))


@serves(
    "cloudbilling.projects.updateBillingInfo",
    permission="resourcemanager.projects.createBillingAssignment",
    resources=_of_project,
)
def _update_billing(call: Call) -> Resource:
    """Links a billing account, or with an empty name unlinks the one there is."""
    account = (call.body or {}).get("billingAccountName", "")
    if account and not re.fullmatch(r"billingAccounts/[0-9A-F]{6}(-[0-9A-F]{6}){2}", account):
        raise ApiError(400, "Request contains an invalid argument.")
    call.state.billing[_project_id(call)] = account
    return _billing(_project_id(call), account)


def _start(
    call: Call,
    target: str,
    answer: Resource,
    finish: Work = lambda: None,
    creates: tuple[str, ...] = (),
    work: Work = lambda: None,
) -> Resource:
    name = f"operations/{new_name()}"
    prefix = call.method.service.partition(".")[0]
    body = {"name": name, "done": False, "response": answer}
    shown = call.cloud.operations.start(
        f"{prefix}/{name}",
        "longrunning",
        body,
        target=target,
        work=work,
        finish=finish,
        creates=creates,
        fault=call.fault,
    )
    shown.pop("response")
    return shown


@serves("serviceusage.operations.get", "servicenetworking.operations.get", resources=lambda _call: [])
def _operation(call: Call) -> Resource:
    record = call.state.operations.get(f"{call.method.service.partition('.')[0]}/{call.name}")
    if record is None:
        raise ApiError(404, f"Operation not found: {call.name}")
    body: Resource = record["body"]
    return body if record["done"] else {"name": body["name"], "done": False}


def _service(call: Call, project: str, service: str) -> Resource:
    if service not in _KNOWN_SERVICES:
        raise ApiError(403, f"Not found or permission denied for service(s): {service}.")
    number = call.state.projects[project]
    enabled = service in call.state.services[project]
    return {
        "name": f"projects/{number}/services/{service}",
        "parent": f"projects/{number}",
        "config": {"name": service, "title": service},
        "state": "ENABLED" if enabled else "DISABLED",
    }


@serves("serviceusage.services.get", permission="serviceusage.services.get")
def _get_service(call: Call) -> Resource:
    _, project, _, service = call.name.split("/")
    return _service(call, project, service)


@serves("serviceusage.services.list", permission="serviceusage.services.list")
def _list_services(call: Call) -> Resource:
    project, wanted = call.name.partition("/")[2], call.parameters.pop("filter", "")
    found = [_service(call, project, service) for service in sorted(_KNOWN_SERVICES)]
    return call.page([item for item in found if wanted in ("", f"state:{item['state']}")], "services", "pageSize")


@serves("serviceusage.services.batchGet", permission="serviceusage.services.get")
def _batch_get(call: Call) -> Resource:
    project = call.name.partition("/")[2]
    return {"services": [_service(call, project, name.rpartition("/")[2]) for name in call.parameters.get("names", [])]}


@serves("serviceusage.services.enable", "serviceusage.services.batchEnable", permission="serviceusage.services.enable")
def _enable(call: Call) -> Resource:
    project = call.name.split("/")[1]
    batch = call.verb == "batchEnable"
    asked = (call.body or {}).get("serviceIds", []) if batch else [call.name.rpartition("/")[2]]
    for service in asked:
        _service(call, project, service)
    billed = sorted(BILLED_SERVICES & {*asked})
    if billed and not call.state.billing.get(project):
        raise ApiError(
            400,
            f"Billing account for project '{call.state.projects[project]}' is not found. Billing must be enabled for "
            f"activation of service(s) '{','.join(billed)}' to proceed.",
            status="FAILED_PRECONDITION",
        )

    _check_still(call, project, asked)

    def finish() -> None:
        call.state.services[project] = sorted({*call.state.services[project], *asked})
        if "compute.googleapis.com" in asked:
            make_agent(call.state, project, "compute.googleapis.com")

    kind = f"{'BatchEnableServices' if batch else 'EnableService'}Response"
    enabled = [_service(call, project, service) | {"state": "ENABLED"} for service in asked]
    answer = {"services": enabled} if batch else {"service": enabled[0]}
    answer["@type"] = f"type.googleapis.com/google.api.serviceusage.v1.{kind}"  # type: ignore[assignment]
    return _start(call, f"serviceusage/{project}/{','.join(asked)}", answer, finish)


def _check_still(call: Call, project: str, asked: list[str]) -> None:
    """https://github.com/hashicorp/terraform-provider-google/issues/7103."""
    prefix = f"serviceusage/{project}/"
    targets = [record["target"] for record in call.state.operations.values() if not record["done"]]
    begun = ",".join(target.removeprefix(prefix) for target in targets if target.startswith(prefix)).split(",")
    if busy := [service for service in asked if service in begun]:
        raise ApiError(
            400,
            "Another activation or deactivation is in progress for the following service(s): "
            f"{','.join(busy)} and project {project}.",
            reason="failedPrecondition",
            status="FAILED_PRECONDITION",
        )


@serves("serviceusage.services.generateServiceIdentity", permission="serviceusage.services.enable")
def _generate_identity(call: Call) -> Resource:
    _, project, _, service = call.name.split("/")
    _service(call, project, service)
    if service not in AGENT_DOMAINS:
        raise ApiError(501, f"The emulated cloud has no agent of {service}.")
    agent = make_agent(call.state, project, service)
    answer = {"@type": "type.googleapis.com/google.api.serviceusage.v1beta1.ServiceIdentity"}
    answer |= {"email": agent["email"], "uniqueId": agent["uniqueId"]}
    return _start(call, f"serviceusage/{project}", answer)


@serves("serviceusage.services.disable", permission="serviceusage.services.disable")
def _disable(call: Call) -> Resource:
    _, project, _, service = call.name.split("/")
    shown = _service(call, project, service) | {"state": "DISABLED"}
    _check_still(call, project, [service])

    def finish() -> None:
        call.state.services[project] = [item for item in call.state.services[project] if item != service]

    kind = "type.googleapis.com/google.api.serviceusage.v1.DisableServiceResponse"
    return _start(call, f"serviceusage/{project}/{service}", {"@type": kind, "service": shown}, finish)


def _consumer(call: Call) -> tuple[str, str]:
    """Return project and path of the network that a connection is about."""
    body = call.body or {}
    network = call.parameters.get("network") or body.get("network") or body.get("consumerNetwork") or ""
    path = path_of(network, "")
    if path is None:
        raise ApiError(
            400, f"The consumer network '{network}' must be projects/<project number>/global/networks/<name>."
        )
    project = call.state.project_of(path.split("/")[1])
    return project, f"projects/{project}/" + path.split("/", 2)[2]


def _consumer_project(call: Call) -> list[str]:
    return [f"projects/{_consumer(call)[0]}"]


def _ranges(call: Call, project: str, network: str) -> list[str]:
    """Return the reserved ranges of a connection after checking that they are for this network."""
    names = (call.body or {}).get("reservedPeeringRanges", [])
    if not names:
        raise ApiError(400, "At least one reserved peering range is required.")
    for name in names:
        found = call.state.resources.get(f"compute/projects/{project}/global/addresses/{name}")
        if found is None or found.get("purpose") != "VPC_PEERING" or found.get("network") != BASE + network:
            raise ApiError(400, f"The peering range '{name}' is not a VPC_PEERING address of {network}.")
    return list(names)


@serves(
    "servicenetworking.services.connections.list",
    permission="servicenetworking.services.get",
    resources=_consumer_project,
)
def _connections(call: Call) -> Resource:
    _, network = _consumer(call)
    # One that is being made is not listed yet. The service `-` stands for every service.
    kept = call.state.under(f"servicenetworking/{network}/")
    found = [item for name, item in kept if not call.cloud.operations.being_created(name)]
    found = [item for item in found if call.name in ("services/-", item["service"])]
    return {"connections": [_shown(call, item) for item in found]} if found else {}


def _shown(call: Call, connection: Resource) -> Resource:
    project, rest = connection["network"].removeprefix(BASE + "projects/").split("/", 1)
    return {**connection, "network": f"projects/{call.state.projects[project]}/{rest}"}


@serves(
    "servicenetworking.services.connections.create",
    permission="servicenetworking.services.addPeering",
    resources=_consumer_project,
)
def _connect(call: Call) -> Resource:
    project, network = _consumer(call)
    if f"compute/{network}" not in call.state.resources:
        raise not_found(network)
    key = f"servicenetworking/{network}/{call.name}"
    if key in call.state.resources:
        raise ApiError(
            400,
            "Cannot modify allocated ranges in CreateConnection. Please use UpdateConnection.",
            status="FAILED_PRECONDITION",
        )
    connection = {
        "network": BASE + network,
        "reservedPeeringRanges": _ranges(call, project, network),
        "peering": _PEERING,
        "service": call.name,
    }
    call.state.resources[key] = connection
    answer = {"@type": "type.googleapis.com/google.cloud.servicenetworking.v1.Connection", **_shown(call, connection)}
    return _start(call, key, answer, creates=(key,))


def _existing(call: Call) -> tuple[str, str, str]:
    """Return project, network path and key of the connection that a call changes."""
    project, network = _consumer(call)
    key = f"servicenetworking/{network}/{call.name.partition('/connections/')[0]}"
    if key not in call.state.resources:
        raise ApiError(404, f"There is no private services connection on {network}.")
    return project, network, key


@serves(
    "servicenetworking.services.connections.patch",
    permission="servicenetworking.services.addPeering",
    resources=_consumer_project,
)
def _update_connection(call: Call) -> Resource:
    project, network, key = _existing(call)
    changed = {**call.state.resources[key], "reservedPeeringRanges": _ranges(call, project, network)}
    answer = {"@type": "type.googleapis.com/google.cloud.servicenetworking.v1.Connection", **_shown(call, changed)}
    return _start(call, key, answer, lambda: call.state.resources.update({key: changed}))


@serves(
    "servicenetworking.services.connections.deleteConnection",
    permission="servicenetworking.services.deleteConnection",
    resources=_consumer_project,
)
def _disconnect(call: Call) -> Resource:
    """Ends a peering. That somebody uses it is told by the operation alone, in these words.

    https://github.com/hashicorp/terraform-provider-google/issues/16275. Google keeps on doing so for up to four days
    after the last instance was deleted; here that takes a fault, an `operation_error` of the same words.
    """
    _, network, key = _existing(call)
    answer: Resource = {"@type": "type.googleapis.com/google.protobuf.Empty"}

    def work() -> None:
        with call.state.lock:
            users = [name for name in call.cloud.users_of(BASE + network, key) if name.startswith("sql/")]
        if users:
            raise ApiError(
                400,
                "Failed to delete connection; Producer services (e.g. CloudSQL, Cloud Memstore, etc.) are still using "
                f"this connection.\nHelp Token: {uuid.uuid4().hex}",
                status="FAILED_PRECONDITION",
            )

    def finish() -> None:
        call.state.resources.pop(key, None)

    return _start(call, key, answer, finish, work=work)
