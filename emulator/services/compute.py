"""Compute Engine: one table of collections, and what the discovery document does not say about each."""

import asyncio
import dataclasses
import ipaddress
import re
import time
from collections.abc import Callable
from typing import Any

from emulator import quotas
from emulator.cloud import ADDRESSES, Call, Cloud, Handler, filtered, patched, serves
from emulator.errors import ApiError, invalid, not_found
from emulator.operations import Work, new_name
from emulator.services import compute_catalog as catalog
from emulator.services import kms
from emulator.state import Resource, fingerprint, now, public

BASE = catalog.BASE
# Fields that hold links, and the collection that each must lead to.
_LINKS = {
    "network": "networks",
    "subnetwork": "subnetworks",
    "natIps": "addresses",
    "machineType": "machineTypes",
    "diskType": "diskTypes",
    "sourceImage": "images",
    "source": "disks",
    "resourcePolicies": "resourcePolicies",
    "region": "regions",
    "zone": "zones",
}
_FIRST_EXTERNAL = 16
_LARGEST_DISK_GB = 65536
_SNAPSHOTS, _FIXED = "snapshotSchedulePolicy.snapshotProperties", ("storageLocations", "guestFlush", "chainName")
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")


@dataclasses.dataclass(frozen=True)
class Collection:
    """What is particular to a collection: `prepare` fills defaults and checks, before insert and after a change."""

    schema: str
    scope: str  # global, regions or zones
    immutable: tuple[str, ...] = ()
    fingerprinted: bool = False
    prepare: Callable[[Call, Resource], None] = lambda _call, _resource: None
    view: Callable[[Cloud, Resource], Resource] = lambda _cloud, _resource: {}


def path_of(link: str, default_project: str) -> str | None:
    """Return `projects/...` for a full or partial link; None when it is malformed."""
    path = re.sub(r"^https://(www|compute)\.googleapis\.com/compute/[^/]+/", "", link).lstrip("/")
    if re.match(r"(global|regions|zones)/", path):
        path = f"projects/{default_project}/{path}"
    return path if re.fullmatch(r"projects/[^/]+/[^/]+/[^/]+(/.+)?", path) else None


def resolve(cloud: Cloud, link: str, field: str, collection: str, project: str) -> Resource:
    """Return what a link leads to; raises `ApiError` for a malformed, wrong, dangling or unready reference."""
    path = path_of(link, project)
    if path is None or f"/{collection}/" not in f"/{path}":
        raise invalid(f"resource.{field}", link, "The URL is malformed.")
    head, project_or_number, rest = path.split("/", 2)
    path = f"{head}/{cloud.state.project_of(project_or_number)}/{rest}"
    found = cloud.state.resources.get(f"compute/{path}") or catalog.find(path)
    if found is None:
        raise not_found(path)
    if cloud.operations.being_created(f"compute/{path}"):
        raise ApiError(400, f"The resource '{path}' is not ready", reason="resourceNotReady")
    return found


def linked(call: Call, value: Any, field: str = "") -> Any:
    """Return a body with every link checked and written as Google writes it."""
    if isinstance(value, dict):
        return {
            name: _link_field(call, name, item, f"{field}.{name}" if field else name) for name, item in value.items()
        }
    if isinstance(value, list):
        return [linked(call, item, f"{field}[{index}]") for index, item in enumerate(value)]
    return value


def _link_field(call: Call, name: str, item: Any, field: str) -> Any:
    if name not in _LINKS or not item:
        return linked(call, item, field)
    project = call.parameters["project"]
    if name in ("region", "zone") and item == call.parameters.get(name):
        item = f"{name}s/{item}"  # Google's own clients may repeat the bare name of the URL
    if isinstance(item, list):
        return [resolve(call.cloud, link, field, _LINKS[name], project)["selfLink"] for link in item]
    return resolve(call.cloud, item, field, _LINKS[name], project)["selfLink"]


def _need_network(resource: Resource) -> None:
    if not resource.get("network"):
        raise ApiError(400, "Required field 'resource.network' not specified", reason="required")


def _networks(_call: Call, network: Resource) -> None:
    if network.setdefault("autoCreateSubnetworks", True):
        raise ApiError(501, "The emulated cloud has no auto mode networks: set autoCreateSubnetworks to false.")
    routing = {"routingMode": "REGIONAL", "bgpBestPathSelectionMode": "LEGACY"}
    network["routingConfig"] = routing | network.get("routingConfig", {})
    network.setdefault("networkFirewallPolicyEnforcementOrder", "AFTER_CLASSIC_FIREWALL")
    network.setdefault("selfLinkWithId", network["selfLink"].rpartition("/")[0] + f"/{network['id']}")


def _network_view(cloud: Cloud, network: Resource) -> Resource:
    link = network["selfLink"]
    mentions = [cloud.state.resources[name] for name in cloud.users_of(link, "")]
    subnetworks = [item["selfLink"] for item in mentions if item.get("kind") == "compute#subnetwork"]
    peerings = [
        {
            "name": connection["peering"],
            "network": f"{BASE}projects/speckle-umbrella/global/networks/servicenetworking",
            "state": "ACTIVE",
            "stateDetails": "[servicenetworking]: Connected.",
            "exchangeSubnetRoutes": True,
            "autoCreateRoutes": True,
        }
        for connection in mentions
        if "reservedPeeringRanges" in connection
    ]
    return ({"subnetworks": subnetworks} if subnetworks else {}) | ({"peerings": peerings} if peerings else {})


def cidr(text: str, field: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return a network range; raises `ApiError` 400 for one that is malformed or has host bits."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise invalid(f"resource.{field}", text, f"Must be a CIDR address range. {error}") from error


def _subnetworks(call: Call, subnetwork: Resource) -> None:
    _need_network(subnetwork)
    if not subnetwork.get("ipCidrRange"):
        raise ApiError(400, "Required field 'resource.ipCidrRange' not specified", reason="required")
    wanted = cidr(subnetwork["ipCidrRange"], "ipCidrRange")
    if wanted.version != 4 or not 4 <= wanted.prefixlen <= 29:
        raise invalid("resource.ipCidrRange", wanted, "The prefix length must be between 4 and 29.")
    for name in call.cloud.users_of(subnetwork["network"], ""):
        other = call.state.resources[name]
        if other["selfLink"] == subnetwork["selfLink"] if "selfLink" in other else True:
            continue
        if other.get("kind") == "compute#subnetwork" and wanted.overlaps(cidr(other["ipCidrRange"], "ipCidrRange")):
            region = other["region"].rpartition("/")[2]
            conflict = f"conflicts with existing subnetwork '{other['name']}' in region '{region}'."
            raise ApiError(400, f"Invalid IPCidrRange: {wanted} {conflict}", reason="invalid")
    subnetwork["gatewayAddress"] = str(wanted[1])
    defaults = {
        "privateIpGoogleAccess": False,
        "privateIpv6GoogleAccess": "DISABLE_GOOGLE_ACCESS",
        "purpose": "PRIVATE",
        "stackType": "IPV4_ONLY",
    }
    subnetwork |= {name: subnetwork.get(name, value) for name, value in defaults.items()}
    subnetwork["enableFlowLogs"] = bool(subnetwork.get("logConfig", {}).get("enable"))
    if subnetwork["enableFlowLogs"]:
        sampling = {
            "aggregationInterval": "INTERVAL_5_SEC",
            "flowSampling": 0.5,
            "metadata": "INCLUDE_ALL_METADATA",
            "filterExpr": "true",
        }
        subnetwork["logConfig"] = sampling | subnetwork["logConfig"]


def _routers(_call: Call, router: Resource) -> None:
    _need_network(router)
    names = [nat.get("name") for nat in router.get("nats", [])]
    if None in names or len(set(names)) != len(names):
        raise invalid("resource.nats", names, "Every NAT needs a name of its own.")
    for nat in router.get("nats", []):
        for field in ("natIpAllocateOption", "sourceSubnetworkIpRangesToNat"):
            if field not in nat:
                raise ApiError(400, f"Required field 'resource.nats[].{field}' not specified", reason="required")
        if (nat["natIpAllocateOption"] == "MANUAL_ONLY") != bool(nat.get("natIps")):
            raise invalid(
                "resource.nats[].natIps", nat.get("natIps"), "Goes with natIpAllocateOption MANUAL_ONLY only."
            )
        if (nat["sourceSubnetworkIpRangesToNat"] == "LIST_OF_SUBNETWORKS") != bool(nat.get("subnetworks")):
            raise invalid("resource.nats[].subnetworks", nat.get("subnetworks"), "Goes with LIST_OF_SUBNETWORKS only.")
        defaults = {
            "type": "PUBLIC",
            "autoNetworkTier": "PREMIUM",
            "endpointTypes": ["ENDPOINT_TYPE_VM"],
            "enableEndpointIndependentMapping": False,
        }
        nat |= {name: nat.get(name, value) for name, value in defaults.items()}


def _firewalls(call: Call, rule: Resource) -> None:
    rule.setdefault("network", f"{BASE}projects/{call.parameters['project']}/global/networks/default")
    resolve(call.cloud, rule["network"], "network", "networks", call.parameters["project"])
    if bool(rule.get("allowed")) == bool(rule.get("denied")):
        raise invalid("resource.allowed", rule.get("allowed"), "Exactly one of allowed and denied must be set.")
    rule |= {"direction": rule.get("direction", "INGRESS"), "priority": rule.get("priority", 1000)}
    rule |= {"disabled": rule.get("disabled", False), "logConfig": {"enable": False} | rule.get("logConfig", {})}
    if not 0 <= int(rule["priority"]) <= 65535:
        raise invalid("resource.priority", rule["priority"], "Must be less than or equal to 65535.")
    inward = rule["direction"] == "INGRESS"
    if rule.get("destinationRanges" if inward else "sourceRanges"):
        raise ApiError(400, f"{'Ingress' if inward else 'Egress'} rules cannot have ranges of the other side.")
    side = "sourceRanges" if inward else "destinationRanges"
    if not (rule.get(side) or (inward and (rule.get("sourceTags") or rule.get("sourceServiceAccounts")))):
        rule[side] = ["0.0.0.0/0"]
    for text in rule.get(side, []):
        cidr(text, side)
    for entry in rule.get("allowed", []) + rule.get("denied", []):
        if "IPProtocol" not in entry:
            raise ApiError(400, "Required field 'IPProtocol' not specified", reason="required")
        entry["IPProtocol"] = entry["IPProtocol"].lower()
        for ports in entry.get("ports", []):
            first, _, last = ports.partition("-")
            if not (first.isdigit() and (last or first).isdigit() and int(first) <= int(last or first) <= 65535):
                raise invalid("resource.allowed[].ports", ports, "Must be a port or a range of ports.")


def _addresses(call: Call, address: Resource) -> None:
    internal = address.setdefault("addressType", "EXTERNAL") == "INTERNAL"
    if address.get("address"):
        return
    if not internal:
        address |= {"address": free_external(call.cloud), "ipVersion": "IPV4"}
        address.setdefault("networkTier", "PREMIUM")
        address.pop("ipVersion")
        return
    if "region" in address:
        if not address.get("subnetwork"):
            raise ApiError(400, "Required field 'resource.subnetwork' not specified", reason="required")
        address.setdefault("purpose", "GCE_ENDPOINT")
        address["address"] = free_internal(call.cloud, address["subnetwork"])
        return
    if address.get("purpose") != "VPC_PEERING" or not address.get("network"):
        raise invalid(
            "resource.purpose", address.get("purpose"), "Global internal ranges are for VPC_PEERING, on a network."
        )
    length = int(address.get("prefixLength", 0))
    if not 8 <= length <= 30:
        raise invalid("resource.prefixLength", length, "Must be between 8 and 30.")
    taken = [
        cidr(other.get("ipCidrRange") or f"{other['address']}/{other.get('prefixLength', 32)}", "address")
        for other in (call.state.resources[name] for name in call.cloud.users_of(address["network"], ""))
        if "ipCidrRange" in other or "prefixLength" in other
    ]
    candidates = ipaddress.IPv4Network("10.0.0.0/8").subnets(new_prefix=max(length, 16))
    free = next(block for block in candidates if block[0].packed[1] > 16 and not any(map(block.overlaps, taken)))
    address["address"] = str(free.network_address)


def _forwarding_rules(call: Call, rule: Resource) -> None:
    """An endpoint of Private Service Connect: an internal address before a service that lets the project in.

    https://cloud.google.com/vpc/docs/configure-private-service-connect-services
    """
    target = path_of(rule.get("target", ""), "") or ""
    if rule.get("loadBalancingScheme") or "/serviceAttachments/" not in target:
        raise ApiError(501, "The emulated cloud has forwarding rules before service attachments only.")
    # https://github.com/hashicorp/terraform-provider-google/issues/16255
    if call.verb == "insert" and rule.get("labels"):
        raise invalid(
            "resource.labels",
            "",
            "Invalid field set in Private Service Connect Forwarding Rule. This field should not be set.",
        )
    _need_network(rule)
    region, project = rule["region"].rpartition("/")[2], call.parameters["project"]
    service = _attached(call.cloud, target)
    if service is None:
        raise not_found(target)
    if service["region"] != region:
        raise invalid("resource.target", rule["target"], f"The service attachment is not in the region {region}.")
    text = rule.get("IPAddress", "")
    prefix = f"compute/projects/{project}/regions/{region}/addresses/"
    link = path_of(text, project)
    held = [item for name, item in call.state.under(prefix) if text == item["address"] or f"compute/{link}" == name]
    if not held or held[0]["addressType"] != "INTERNAL":
        raise invalid("resource.IPAddress", text, f"Must be a reserved internal address of the region {region}.")
    subnetwork = resolve(call.cloud, held[0]["subnetwork"], "subnetwork", "subnetworks", project)
    if subnetwork["network"] != rule["network"]:
        raise invalid("resource.IPAddress", text, "The address is not in the network of the forwarding rule.")
    others = [item for item in instances(call.cloud) if item["networkInterfaces"][0].get("networkIP") == text]
    others += [
        item
        for item in call.state.resources.values()
        if item.get("kind") == "compute#forwardingRule"
        and item["IPAddress"] == held[0]["address"]
        and item["id"] != rule["id"]
    ]
    if others:
        raise ApiError(400, f"The address {held[0]['address']} is already in use.", reason="resourceInUse")
    rule |= {"IPAddress": held[0]["address"], "target": BASE + target, "networkTier": "PREMIUM"}
    rule.setdefault("allowPscGlobalAccess", False)


def _forwarding_rule_view(cloud: Cloud, rule: Resource) -> Resource:
    """What became of the connection: it is closed when the service goes, and waits where it lets the project not in."""
    target, project = rule["target"].removeprefix(BASE), rule["selfLink"].removeprefix(BASE).split("/")[1]
    service = _attached(cloud, target)
    config = service["settings"]["ipConfiguration"]["pscConfig"] if service else {}
    is_let_in = not {project, cloud.state.projects[project]}.isdisjoint(config.get("allowedConsumerProjects", []))
    status = "ACCEPTED" if is_let_in else "PENDING"
    return {"pscConnectionId": rule["id"], "pscConnectionStatus": status if service else "CLOSED"}


def _attached(cloud: Cloud, target: str) -> Resource | None:
    """Return the Cloud SQL instance of a service attachment."""
    everything = cloud.state.resources.values()
    return next((item for item in everything if item.get("pscServiceAttachmentLink") == target), None)


def _address_view(cloud: Cloud, address: Resource) -> Resource:
    users = [
        instance["selfLink"]
        for instance in instances(cloud)
        if address["address"] in (external_ip(instance), instance["networkInterfaces"][0].get("networkIP"))
    ]
    users += [
        item["selfLink"]
        for item in cloud.state.resources.values()
        if item.get("kind") == "compute#forwardingRule" and item["IPAddress"] == address["address"]
    ]
    own = f"compute/{address['selfLink'].removeprefix(BASE)}"
    users += [cloud.state.resources[name].get("selfLink", "") for name in cloud.users_of(address["selfLink"], own)]
    peered = address.get("purpose") == "VPC_PEERING"
    return (
        {"status": "IN_USE", "users": sorted(filter(None, users))} if users and not peered else {"status": "RESERVED"}
    )


def instances(cloud: Cloud) -> list[Resource]:
    """Return all instances of all projects."""
    return [item for item in cloud.state.resources.values() if item.get("kind") == "compute#instance"]


def external_ip(instance: Resource) -> str | None:
    """Return the external address of an instance, if it has one."""
    for interface in instance["networkInterfaces"]:
        for config in interface.get("accessConfigs", []):
            address: str | None = config.get("natIP")
            return address
    return None


def free_external(cloud: Cloud) -> str:
    """Return an external address that nobody has; they are addresses of the emulated cloud's Docker network."""
    taken = {item.get("address") for item in cloud.state.resources.values()}
    taken |= {external_ip(instance) for instance in instances(cloud)}
    return next(text for text in map(str, list(ADDRESSES)[_FIRST_EXTERNAL:-1]) if text not in taken)


def free_internal(cloud: Cloud, subnetwork: str) -> str:
    """Return an address of a subnetwork that nobody has; the first two and the last two are Google's."""
    block = cidr(cloud.state.resources[f"compute/{subnetwork.removeprefix(BASE)}"]["ipCidrRange"], "ipCidrRange")
    taken = {item.get("address") for item in cloud.state.resources.values()}
    taken |= {interface.get("networkIP") for item in instances(cloud) for interface in item["networkInterfaces"]}
    return next(str(block[place]) for place in range(2, block.num_addresses - 2) if str(block[place]) not in taken)


def complete_disk(call: Call, disk: Resource) -> None:
    """Fill in a new disk and check what it refers to; its links are resolved already."""
    project, zone = call.parameters["project"], call.parameters["zone"]
    kind = disk.get("type") or f"projects/{project}/zones/{zone}/diskTypes/pd-standard"
    disk["type"] = resolve(call.cloud, kind, "type", "diskTypes", project)["selfLink"]
    image = resolve(call.cloud, disk["sourceImage"], "sourceImage", "images", project) if "sourceImage" in disk else {}
    lowest = int(image.get("diskSizeGb", 10))
    disk["sizeGb"] = str(disk.get("sizeGb") or lowest)
    if not lowest <= int(disk["sizeGb"]) <= _LARGEST_DISK_GB:
        raise invalid("resource.sizeGb", disk["sizeGb"], f"Must be from {lowest} to {_LARGEST_DISK_GB} GB.")
    _check_policies(disk, disk.get("resourcePolicies", []))
    key = disk.get("diskEncryptionKey", {}).get("kmsKeyName")
    if key:
        fault = kms.fault_of(call.cloud, key, project, "compute.googleapis.com", {zone[:-2], "global"})
        if fault in ("malformed", "location"):
            raise invalid("resource.diskEncryptionKey.kmsKeyName", key, "Not a key in the region of the disk.")
        if fault:
            raise ApiError(
                400,
                f"Cloud KMS error when using key {key}: Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied on "
                f"resource '{key}' (or it may not exist).",
                reason="kmsPermissionDenied",
            )
        # Google names the version in use.
        disk["diskEncryptionKey"] = {"kmsKeyName": f"{key}/cryptoKeyVersions/1"}
    disk |= {"status": "READY", "physicalBlockSizeBytes": "4096"}


def _check_policies(disk: Resource, links: list[str]) -> None:
    """One snapshot schedule of the disk's region: https://cloud.google.com/compute/docs/disks/scheduled-snapshots."""
    region = disk["zone"].replace("/zones/", "/regions/")[:-2]
    if len(links) > 1:
        raise invalid("resource.resourcePolicies", links, "A disk can have one snapshot schedule.")
    if any(not link.startswith(f"{region}/resourcePolicies/") for link in links):
        raise invalid("resource.resourcePolicies", links, "The resource policy is in another region.")


def _disk_view(cloud: Cloud, disk: Resource) -> Resource:
    users = [
        machine["selfLink"]
        for machine in instances(cloud)
        if any(attached["source"] == disk["selfLink"] for attached in machine["disks"])
    ]
    return {"users": users} if users else {}


def _resource_policies(_call: Call, policy: Resource) -> None:
    """https://cloud.google.com/compute/docs/disks/scheduled-snapshots."""
    described = policy.get("snapshotSchedulePolicy")
    if not described:
        raise ApiError(501, "The emulated cloud has resource policies with a snapshotSchedulePolicy only.")
    daily = described.get("schedule", {}).get("dailySchedule")
    if not daily or len(described["schedule"]) > 1:
        raise ApiError(501, "The emulated cloud has daily snapshot schedules only.")
    if daily.get("daysInCycle") != 1:
        raise invalid("resource.snapshotSchedulePolicy.schedule.dailySchedule.daysInCycle", daily, "Must be 1.")
    if not re.fullmatch(r"(00|04|08|12|16|20):00", daily.get("startTime", "")):
        raise invalid(
            "resource.snapshotSchedulePolicy.schedule.dailySchedule.startTime", daily, "Must be 00:00, 04:00 ... 20:00."
        )
    daily["duration"] = "PT14400S"
    kept = described.setdefault("retentionPolicy", {})
    if not 1 <= kept.get("maxRetentionDays", 0) <= 65535:
        raise invalid("resource.snapshotSchedulePolicy.retentionPolicy.maxRetentionDays", kept, "Must be 1 or more.")
    kept.setdefault("onSourceDiskDelete", "KEEP_AUTO_SNAPSHOTS")
    properties = described.get("snapshotProperties", {})
    if len(properties.get("storageLocations", [])) > 1:
        raise invalid("resource.snapshotSchedulePolicy.snapshotProperties.storageLocations", properties, "One at most.")
    check_labels(properties.get("labels", {}))
    policy["status"] = "READY"


COLLECTIONS = {
    "networks": Collection(
        "Network", "global", ("autoCreateSubnetworks", "description", "IPv4Range"), False, _networks, _network_view
    ),
    "subnetworks": Collection(
        "Subnetwork", "regions", ("network", "ipCidrRange", "purpose", "description"), True, _subnetworks
    ),
    "routers": Collection("Router", "regions", ("network",), False, _routers),
    "firewalls": Collection("Firewall", "global", ("network", "direction"), False, _firewalls),
    "addresses": Collection("Address", "regions", (), False, _addresses, _address_view),
    "globalAddresses": Collection("Address", "global", (), False, _addresses, _address_view),
    "forwardingRules": Collection(
        "ForwardingRule",
        "regions",
        ("IPAddress", "target", "network", "subnetwork", "loadBalancingScheme"),
        True,
        _forwarding_rules,
        _forwarding_rule_view,
    ),
    "disks": Collection("Disk", "zones", (), False, complete_disk, _disk_view),
    # What `gcloud compute resource-policies update snapshot-schedule` has no option for.
    "resourcePolicies": Collection(
        "ResourcePolicy", "regions", tuple(f"{_SNAPSHOTS}.{name}" for name in _FIXED), False, _resource_policies
    ),
    "instances": Collection("Instance", "zones", ("disks", "zone"), True),
}


def collection_of(call: Call) -> str:
    """Return the middle word of the method's id, such as `networks`."""
    return call.method.id.split(".")[1]


def _directory(call: Call) -> str:
    """Return the path that holds a collection, such as `projects/p/regions/r/subnetworks`."""
    collection = collection_of(call)
    scope = COLLECTIONS[collection].scope
    place = scope if scope == "global" else f"{scope}/{call.parameters[scope[:-1]]}"
    path = f"projects/{call.parameters['project']}/{place}"
    if scope != "global" and catalog.find(path) is None:
        raise not_found(path)
    return f"{path}/{'addresses' if collection == 'globalAddresses' else collection}"


def item_path(call: Call) -> str:
    """Return the path of the resource that a call is about."""
    collection = collection_of(call)
    singulars = {"addresses": "address", "globalAddresses": "address", "resourcePolicies": "resourcePolicy"}
    singular = singulars.get(collection, collection.removesuffix("s"))
    name = call.parameters.get(singular) or call.parameters.get("resource")
    return f"{_directory(call)}/{name}"


def view(cloud: Cloud, collection: str, resource: Resource) -> Resource:
    """Return a resource as the API shows it."""
    return public(resource) | COLLECTIONS[collection].view(cloud, resource)


def start(
    call: Call,
    path: str,
    work: Work = lambda: None,
    finish: Work = lambda: None,
    creates: tuple[str, ...] = (),
    undo: Work = lambda: None,
) -> Resource:
    """Starts the operation of a call on a resource; returns it as the API shows it.

    Raises `ApiError` 400 while the resource is being made or deleted, or its power or size is changed.
    """
    if call.cloud.operations.exclusive(f"compute/{path}"):
        raise ApiError(400, f"The resource '{path}' is not ready", reason="resourceNotReady")
    parts = path.split("/")
    place = "global" if parts[2] == "global" else "/".join(parts[2:4])
    name = new_name()
    own = f"projects/{parts[1]}/{place}/operations/{name}"
    target = call.state.resources.get(f"compute/{path}", {})
    body = {
        "kind": "compute#operation",
        "id": call.state.new_id(),
        "name": name,
        "operationType": call.verb,
        "targetLink": BASE + path,
        "targetId": target.get("id", "0"),
        "status": "RUNNING",
        "user": call.principal,
        "progress": 0,
        "insertTime": now(),
        "startTime": now(),
        "selfLink": BASE + own,
    }
    if parts[2] != "global":
        body[parts[2][:-1]] = f"{BASE}projects/{parts[1]}/{place}"
    return call.cloud.operations.start(
        f"compute/{own}",
        "compute",
        body,
        target=f"compute/{path}",
        work=work,
        finish=finish,
        undo=undo,
        creates=creates,
        fault=call.fault,
    )


def new_resource(call: Call, body: Resource) -> tuple[str, Resource]:
    """Return path and resource, with the fields every resource has, for an insert; raises `ApiError` 409."""
    collection = collection_of(call)
    directory = _directory(call)
    name = body.get("name")
    if not name or not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise invalid("resource.name", name, "Must be a match of regex '[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?'")
    path = f"{directory}/{name}"
    if f"compute/{path}" in call.state.resources:
        raise ApiError(409, f"The resource '{path}' already exists")
    check_labels(body.get("labels", {}))
    resource = linked(call, body) | {
        "kind": call.cloud.directory.documents["compute.v1"].kind(COLLECTIONS[collection].schema),
        "id": call.state.new_id(),
        "creationTimestamp": now(),
        "selfLink": BASE + path,
    }
    scope = COLLECTIONS[collection].scope
    if scope != "global":
        resource[scope[:-1]] = BASE + directory.rpartition("/")[0]
    if "labels" in call.cloud.directory.documents["compute.v1"].schemas[COLLECTIONS[collection].schema]["properties"]:
        resource["labelFingerprint"] = fingerprint(resource.get("labels", {}))
    if COLLECTIONS[collection].fingerprinted:
        resource["fingerprint"] = fingerprint(resource)
    return path, resource


def check_labels(labels: dict[str, str]) -> None:
    """Raises `ApiError` 400 for labels that Google refuses."""
    for key, value in labels.items():
        if not _LABEL.fullmatch(key) or not re.fullmatch(r"[a-z0-9_-]{0,63}", value):
            raise invalid("resource.labels", f"{key}={value}", "Labels are lower-case letters, digits, _ and -.")


def _get(call: Call) -> Resource:
    path = item_path(call)
    return view(call.cloud, collection_of(call), call.cloud.need(f"compute/{path}"))


def _list(call: Call) -> Resource:
    collection, directory = collection_of(call), _directory(call)
    items = [view(call.cloud, collection, item) for _, item in call.state.under(f"compute/{directory}/")]
    answer = call.page(items)
    return {"kind": call.kind, "id": directory, "selfLink": BASE + directory, **answer}


def _aggregated_list(call: Call) -> Resource:
    collection, project = collection_of(call), call.parameters["project"]
    key = "addresses" if collection == "globalAddresses" else collection
    scopes: dict[str, Any] = {}
    for name, resource in call.state.under(f"compute/projects/{project}/"):
        parts = name.split("/")
        if parts[-2] == key and filtered([resource], call.parameters.get("filter", "")):
            place = "global" if parts[3] == "global" else "/".join(parts[3:5])
            scopes.setdefault(place, {key: []})[key].append(view(call.cloud, collection, resource))
    empty = [
        f"zones/{zone}" if COLLECTIONS[collection].scope == "zones" else f"regions/{zone[:-2]}"
        for zone in catalog.all_zones()
    ]
    for place in empty:
        warning = {
            "code": "NO_RESULTS_ON_PAGE",
            "message": f"There are no results for scope '{place}' on this page.",
            "data": [{"key": "scope", "value": place}],
        }
        scopes.setdefault(place, {"warning": warning})
    path = f"projects/{project}/aggregated/{key}"
    return {"kind": call.kind, "id": path, "items": scopes, "selfLink": BASE + path}


def _insert(call: Call) -> Resource:
    path, resource = new_resource(call, call.body or {})
    COLLECTIONS[collection_of(call)].prepare(call, resource)
    region = call.parameters.get("region") or call.parameters.get("zone", "")[:-2] or None
    quotas.check(call.state, call.parameters["project"], region, quotas.taken(resource))
    call.state.resources[f"compute/{path}"] = resource
    return start(call, path, creates=(f"compute/{path}",))


def _change(call: Call) -> Resource:
    path, collection = item_path(call), COLLECTIONS[collection_of(call)]
    current = call.cloud.need(f"compute/{path}")
    body = call.body or {}
    if collection.fingerprinted and body.get("fingerprint") != current["fingerprint"]:
        raise ApiError(412, "Invalid fingerprint. Supply the resource's current fingerprint.")
    schema = call.cloud.directory.documents["compute.v1"].schemas[collection.schema]["properties"]
    outputs = {name for name in schema if "Output Only" in schema[name].get("description", "")}
    sent = linked(call, {name: value for name, value in body.items() if name not in outputs | {"fingerprint"}})
    changed = patched(current, sent)
    if call.method.verb == "PUT":
        kept = outputs | set(collection.immutable) | {"kind", "id", "selfLink", "name", "region", "zone"}
        changed = {name: value for name, value in current.items() if name in kept} | sent
    for field in (*collection.immutable, "name"):
        if _at(changed, field) != _at(current, field):
            raise invalid(f"resource.{field}", _at(changed, field), f"{field} cannot be changed after creation.")
    collection.prepare(call, changed)
    if collection.fingerprinted:
        changed["fingerprint"] = fingerprint({**changed, "fingerprint": now()})
    return replace(call, path, changed)


def _at(resource: Resource, field: str) -> Any:
    value: Any = resource
    for part in field.split("."):
        value = (value or {}).get(part)
    return value


def check_unused(call: Call, path: str, resource: Resource) -> None:
    """Raises `ApiError` 400 when another resource still needs this one."""
    users = [name.partition("/")[2] for name in call.cloud.users_of(resource["selfLink"], f"compute/{path}")]
    if resource["kind"] == "compute#address":
        users = [link.removeprefix(BASE) for link in _address_view(call.cloud, resource).get("users", [])]
    if users:
        what = resource["kind"].partition("#")[2]
        raise ApiError(
            400,
            f"The {what} resource '{path}' is already being used by '{users[0]}'",
            reason="resourceInUseByAnotherResource",
        )


def _delete(call: Call) -> Resource:
    path = item_path(call)
    check_unused(call, path, call.cloud.need(f"compute/{path}"))
    return start(call, path, finish=lambda: drop(call, path))


def drop(call: Call, path: str) -> None:
    """Takes a resource out of the state."""
    call.state.resources.pop(f"compute/{path}", None)


def replace(call: Call, path: str, changed: Resource) -> Resource:
    """Starts an operation that gives a resource its changed fields, and leaves what others change meanwhile alone."""
    before = call.cloud.need(f"compute/{path}")
    differing = {name: value for name, value in changed.items() if value != before.get(name)}
    gone = set(before) - set(changed)

    def finish() -> None:
        resource = call.cloud.need(f"compute/{path}")
        call.state.resources[f"compute/{path}"] = {
            name: value for name, value in (resource | differing).items() if name not in gone
        }

    return start(call, path, finish=finish)


def _set_labels(call: Call) -> Resource:
    path = item_path(call)
    current = call.cloud.need(f"compute/{path}")
    if call.body.get("labelFingerprint") != current["labelFingerprint"]:
        raise ApiError(412, "Labels fingerprint either invalid or resource labels have changed")
    labels = call.body.get("labels", {})
    check_labels(labels)
    return replace(call, path, {**current, "labels": labels, "labelFingerprint": fingerprint(labels)})


def _set_private_access(call: Call) -> Resource:
    path = item_path(call)
    wanted = bool((call.body or {}).get("privateIpGoogleAccess"))
    return replace(call, path, {**call.cloud.need(f"compute/{path}"), "privateIpGoogleAccess": wanted})


@serves("compute.disks.addResourcePolicies", permission="compute.disks.addResourcePolicies")
@serves("compute.disks.removeResourcePolicies", permission="compute.disks.removeResourcePolicies")
def _change_policies(call: Call) -> Resource:
    path = item_path(call)
    disk = call.cloud.need(f"compute/{path}")
    named, held = linked(call, call.body or {}).get("resourcePolicies", []), disk.get("resourcePolicies", [])
    adding = call.verb == "addResourcePolicies"
    if len(named) != 1 or (named[0] in held) == adding:
        raise invalid("resourcePolicies", named, f"One policy that is {'not yet' if adding else ''} on the disk.")
    wanted = [*held, *named] if adding else [link for link in held if link not in named]
    _check_policies(disk, wanted)
    return replace(call, path, {**disk, "resourcePolicies": wanted})


def _enter() -> None:
    """Enters the generic methods of every collection; ids that Google does not have do no harm."""
    words = {"insert": "create", "aggregatedList": "list", "patch": "update"}
    generic = {
        "get": _get,
        "list": _list,
        "aggregatedList": _aggregated_list,
        "insert": _insert,
        "patch": _change,
        "update": _change,
        "delete": _delete,
        "setLabels": _set_labels,
    }
    for collection in COLLECTIONS:
        for verb, handler in generic.items():
            if collection == "disks" and verb in ("patch", "update"):
                continue
            if (collection, verb) == ("networks", "update"):
                continue
            permission = f"compute.{collection}.{words.get(verb, verb)}"
            serves(f"compute.{collection}.{verb}", permission=permission)(handler)
    serves("compute.subnetworks.setPrivateIpGoogleAccess", permission="compute.subnetworks.setPrivateIpGoogleAccess")(
        _set_private_access
    )


_enter()


def _catalog_get(call: Call) -> Resource:
    collection = collection_of(call)
    singular = collection.removesuffix("s")
    place = f"zones/{call.parameters['zone']}/" if "Types" in collection else ""
    path = f"projects/{call.parameters['project']}/{place}{collection}/{call.parameters[singular]}"
    if collection == "images":
        path = path.replace("/images/", "/global/images/")
    found = catalog.find(path)
    if found is None:
        raise not_found(path)
    if collection == "regions":
        return {**found, "quotas": quotas.quotas(call.state, call.parameters["project"], call.parameters["region"])}
    return found


@serves("compute.projects.get", permission="compute.projects.get")
def _project(call: Call) -> Resource:
    project = call.parameters["project"]
    return {
        "kind": call.kind,
        "id": call.state.projects[project],
        "name": project,
        "creationTimestamp": "2026-01-01T00:00:00.000-00:00",
        "quotas": quotas.quotas(call.state, project, None),
        "selfLink": f"{BASE}projects/{project}",
    }


for _collection in ("regions", "zones", "machineTypes", "diskTypes"):
    serves(f"compute.{_collection}.get", permission=f"compute.{_collection}.get")(_catalog_get)
serves("compute.images.get")(_catalog_get)


@serves("compute.regions.list", permission="compute.regions.list")
@serves("compute.zones.list", permission="compute.zones.list")
@serves("compute.machineTypes.list", permission="compute.machineTypes.list")
@serves("compute.diskTypes.list", permission="compute.diskTypes.list")
def _catalog_list(call: Call) -> Resource:
    collection, project = collection_of(call), call.parameters["project"]
    place = f"projects/{project}"
    names = {
        "regions": list(catalog.ZONES),
        "zones": catalog.all_zones(),
        "machineTypes": list(catalog.MACHINE_TYPES),
        "diskTypes": list(catalog.DISK_TYPES),
    }[collection]
    if "zone" in call.parameters:
        place += f"/zones/{call.parameters['zone']}"
        if catalog.find(place) is None:
            raise not_found(place)
    found = [catalog.find(f"{place}/{collection}/{name}") for name in names]
    answer = call.page([item for item in found if item])
    return {"kind": call.kind, "id": f"{place}/{collection}", "selfLink": f"{BASE}{place}/{collection}", **answer}


@serves("compute.images.getFromFamily")
def _image_from_family(call: Call) -> Resource:
    path = f"projects/{call.parameters['project']}/global/images/family/{call.parameters['family']}"
    found = catalog.find(path)
    if found is None:
        raise not_found(path)
    return found


def _operations_directory(call: Call) -> str:
    scope = collection_of(call).removesuffix("Operations")
    place = "global" if scope == "global" else f"{scope}s/{call.parameters[scope]}"
    return f"compute/projects/{call.parameters['project']}/{place}/operations"


def _operation(call: Call) -> Resource:
    path = f"{_operations_directory(call)}/{call.parameters['operation']}"
    record = call.state.operations.get(path)
    if record is None:
        raise not_found(path.partition("/")[2])
    body: Resource = record["body"]
    return body


def _operation_list(call: Call) -> Resource:
    directory = _operations_directory(call)
    items = [item["body"] for name, item in sorted(call.state.operations.items()) if name.startswith(directory + "/")]
    link = directory.partition("/")[2]
    return {"kind": call.kind, "id": link, "selfLink": BASE + link, **call.page(items)}


async def _operation_wait(call: Call) -> Resource:
    """Answers when the operation is done, or as it is after a while, as Google does."""
    deadline = time.monotonic() + call.cloud.operations.longest_wait_seconds
    while (body := _operation(call))["status"] != "DONE" and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return body


for _scope in ("global", "region", "zone"):
    _handlers: dict[str, Handler] = {"get": _operation, "wait": _operation_wait, "list": _operation_list}
    for _verb, _handler in _handlers.items():
        _word = "list" if _verb == "list" else "get"
        serves(f"compute.{_scope}Operations.{_verb}", permission=f"compute.{_scope}Operations.{_word}")(_handler)
