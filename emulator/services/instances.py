"""Compute Engine instances: machines that exist outside the state too."""

import copy
from collections import Counter

from emulator import quotas
from emulator.cloud import Call, patched, serves
from emulator.errors import ApiError, invalid
from emulator.operations import Work
from emulator.services import compute
from emulator.services.compute import BASE, COLLECTIONS
from emulator.state import Resource, fingerprint, now

_SETTERS = {
    "setMetadata": "metadata",
    "setTags": "tags",
    "setScheduling": "scheduling",
    "setMachineType": "machineType",
    "setDeletionProtection": "deletionProtection",
    "setShieldedInstanceIntegrityPolicy": "shieldedInstanceIntegrityPolicy",
}
_CONFIDENTIAL = {"SEV": ("n2d-", "c2d-", "c3d-"), "SEV_SNP": ("n2d-",), "TDX": ("c3-standard-",)}
_SHIELDED = {"enableSecureBoot": False, "enableVtpm": True, "enableIntegrityMonitoring": True}


@serves("compute.instances.insert", permission="compute.instances.create")
def _insert(call: Call) -> Resource:
    path, instance = compute.new_resource(call, call.body or {})
    project, zone = call.parameters["project"], call.parameters["zone"]
    if not instance.get("machineType"):
        raise invalid("resource.machineType", "", "Machine type must be specified.")
    instance |= {"_project": project, "_family": _family(call, instance), "status": "PROVISIONING"}
    _place_network(call, instance)
    _check_accounts(call, instance)
    _check_quotas(call, quotas.taken(instance) + _wanted_disks(instance))
    scheduling = {"onHostMaintenance": "MIGRATE", "automaticRestart": True, "preemptible": False}
    instance["scheduling"] = scheduling | {"provisioningModel": "STANDARD"} | instance.get("scheduling", {})
    _check_confidential(instance)
    created = [f"compute/{path}", *_make_disks(call, instance)]
    for field in ("metadata", "tags"):
        instance[field] = _with_fingerprint(
            instance.get(field, {}), "compute#metadata" if field == "metadata" else None
        )
    instance["shieldedInstanceConfig"] = _SHIELDED | instance.get("shieldedInstanceConfig", {})
    instance["shieldedInstanceIntegrityPolicy"] = {"updateAutoLearnPolicy": True}
    defaults = {"canIpForward": False, "deletionProtection": False, "startRestricted": False}
    instance |= {name: instance.get(name, value) for name, value in defaults.items()}
    instance |= {"cpuPlatform": "Intel Broadwell", "lastStartTimestamp": now()}
    call.state.resources[f"compute/{path}"] = instance

    def work() -> None:
        address = compute.external_ip(instance)
        made = call.cloud.effects.create_instance(project, zone, instance, address, instance["_family"])
        instance["_ip"] = made["ip"]

    return compute.start(call, path, work, lambda: instance.update(status="RUNNING"), tuple(created))


def _family(call: Call, instance: Resource) -> str:
    """Return the image family that the boot disk is made from."""
    boot = [disk for disk in instance.get("disks", []) if disk.get("boot")]
    if len(boot) != 1:
        raise invalid("resource.disks", len(boot), "Exactly one boot disk must be specified.")
    source = boot[0].get("source")
    held = call.state.resources.get(f"compute/{source.removeprefix(BASE)}", {}) if source else {}
    link = (held or boot[0].get("initializeParams", {})).get("sourceImage")
    if not link:
        raise invalid("resource.disks[0].initializeParams.sourceImage", link, "The boot disk needs an image.")
    family: str = compute.resolve(call.cloud, link, "disks", "images", call.parameters["project"])["family"]
    return family


def _place_network(call: Call, instance: Resource) -> None:
    """Fills in addresses; the external one must be reserved in the region and free, as on the real cloud."""
    interfaces = instance.get("networkInterfaces", [])
    if not interfaces:
        raise invalid("resource.networkInterfaces", "", "At least one network interface is required.")
    region = f"{BASE}projects/{call.parameters['project']}/regions/{call.parameters['zone'][:-2]}"
    for index, interface in enumerate(interfaces):
        field = f"resource.networkInterfaces[{index}]"
        if not interface.get("subnetwork"):
            raise invalid(f"{field}.subnetwork", "", "A custom mode network needs a subnetwork.")
        subnetwork = call.cloud.need(f"compute/{interface['subnetwork'].removeprefix(BASE)}")
        if subnetwork["region"] != region:
            raise invalid(f"{field}.subnetwork", interface["subnetwork"], "The subnetwork is in another region.")
        if interface.setdefault("network", subnetwork["network"]) != subnetwork["network"]:
            raise invalid(f"{field}.network", interface["network"], "The subnetwork belongs to another network.")
        address = interface.get("networkIP") or compute.free_internal(call.cloud, interface["subnetwork"])
        interface |= {"kind": "compute#networkInterface", "name": f"nic{index}", "networkIP": address}
        interface |= {"stackType": "IPV4_ONLY", "fingerprint": fingerprint(interface)}
        configs = interface.get("accessConfigs", [])
        if len(configs) > 1:
            raise invalid(f"{field}.accessConfigs", len(configs), "At most one access config is supported.")
        if not configs:
            # Google's answers have no empty lists.
            interface.pop("accessConfigs", None)
        for config in configs:
            _complete_access(call, config, region, f"{field}.accessConfigs[0].natIP")


def _complete_access(call: Call, config: Resource, region: str, field: str) -> None:
    wanted = config.get("natIP")
    if wanted:
        _check_external(call, wanted, region, field)
    config |= {"natIP": wanted or compute.free_external(call.cloud), "kind": "compute#accessConfig"}
    defaults = {"type": "ONE_TO_ONE_NAT", "name": "External NAT", "networkTier": "PREMIUM"}
    config |= {name: config.get(name, value) for name, value in defaults.items()}


def _check_external(call: Call, address: str, region: str, field: str) -> None:
    reserved = any(
        item.get("kind") == "compute#address" and item.get("address") == address and item.get("region") == region
        for item in call.state.resources.values()
    )
    if not reserved:
        raise invalid(field, address, f"The specified external IP address '{address}' was not found in the region.")
    if any(compute.external_ip(instance) == address for instance in compute.instances(call.cloud)):
        raise ApiError(400, f"External IP address: {address} is already in-use.", reason="invalid")


def _check_accounts(call: Call, instance: Resource) -> None:
    """Whoever attaches a service account must be allowed to act as it."""
    accounts = instance.get("serviceAccounts", [])
    if len(accounts) > 1:
        raise invalid("resource.serviceAccounts", len(accounts), "At most one service account may be specified.")
    for account in accounts:
        email = account.get("email", "")
        if not call.cloud.access.account_exists(email):
            raise invalid("resource.serviceAccounts[0].email", email, "The service account does not exist.")
        name = f"projects/{email.partition('@')[2].partition('.')[0]}/serviceAccounts/{email}"
        call.cloud.access.require(call.principal, "iam.serviceAccounts.actAs", [name, "/".join(name.split("/")[:2])])


def _check_quotas(call: Call, needed: Counter[str]) -> None:
    quotas.check(call.state, call.parameters["project"], call.parameters["zone"][:-2], needed)


def _wanted_disks(instance: Resource) -> Counter[str]:
    """Return what the disks that come with an instance take of each quota."""
    wanted: Counter[str] = Counter()
    for disk in instance["disks"]:
        if disk.get("source"):
            continue
        initial = disk.get("initializeParams", {})
        wanted[quotas.disk_metric(initial.get("diskType", "pd-standard"))] += int(initial.get("diskSizeGb") or 10)
    return wanted


def _make_disks(call: Call, instance: Resource) -> list[str]:
    """Makes the disks that come with an instance and attaches those that are there; returns the new ones' names."""
    zone = f"projects/{call.parameters['project']}/zones/{call.parameters['zone']}"
    made = []
    for index, disk in enumerate(instance["disks"]):
        source, initial = disk.get("source"), disk.pop("initializeParams", {})
        if source:
            if initial:
                raise invalid(f"resource.disks[{index}].initializeParams", "", "Goes without source only.")
            _attach(call, disk, call.cloud.need(f"compute/{source.removeprefix(BASE)}"), index)
            continue
        name = initial.get("diskName") or (instance["name"] if disk.get("boot") else f"{instance['name']}-{index}")
        path = f"{zone}/disks/{name}"
        if f"compute/{path}" in call.state.resources:
            raise ApiError(409, f"The resource '{path}' already exists")
        resource = {
            "kind": "compute#disk",
            "id": call.state.new_id(),
            "creationTimestamp": now(),
            "name": name,
            "sizeGb": initial.get("diskSizeGb"),
            "type": initial.get("diskType"),
            "sourceImage": initial.get("sourceImage"),
            "resourcePolicies": initial.get("resourcePolicies"),
            "diskEncryptionKey": disk.pop("diskEncryptionKey", None),
            "labels": initial.get("labels", {}),
            "labelFingerprint": fingerprint(initial.get("labels", {})),
            "zone": BASE + zone,
            "selfLink": BASE + path,
        }
        resource = {key: value for key, value in resource.items() if value is not None}
        compute.complete_disk(call, resource)
        call.state.resources[f"compute/{path}"] = resource
        made.append(f"compute/{path}")
        _attach(call, disk, resource, index)
    return made


def _attach(call: Call, attached: Resource, disk: Resource, index: int) -> None:
    """Fills in an instance's view of one of its disks; a disk is written to by one machine."""
    zone = f"{BASE}projects/{call.parameters['project']}/zones/{call.parameters['zone']}"
    if disk["zone"] != zone:
        raise invalid(f"resource.disks[{index}].source", disk["selfLink"], "The disk is in another zone.")
    users = COLLECTIONS["disks"].view(call.cloud, disk)
    if users:
        raise ApiError(
            400,
            f"The disk resource '{disk['selfLink'].removeprefix(BASE)}' is already being used by "
            f"'{users['users'][0].removeprefix(BASE)}'",
            reason="resourceInUseByAnotherResource",
        )
    attached |= {
        "kind": "compute#attachedDisk",
        "index": index,
        "source": disk["selfLink"],
        "diskSizeGb": disk["sizeGb"],
    }
    defaults = {"type": "PERSISTENT", "mode": "READ_WRITE", "interface": "SCSI", "autoDelete": False}
    attached |= {key: attached.get(key, value) for key, value in defaults.items()}
    attached.setdefault("deviceName", disk["name"] if index else "persistent-disk-0")
    if "diskEncryptionKey" in disk:
        attached["diskEncryptionKey"] = disk["diskEncryptionKey"]


def _check_confidential(instance: Resource) -> None:
    """Fills in and checks Confidential VM against machine type and host maintenance.

    https://cloud.google.com/confidential-computing/confidential-vm/docs/supported-configurations. Live migration, which
    some AMD SEV machines have, is not emulated.
    """
    described = instance.get("confidentialInstanceConfig", {})
    kind = described.get("confidentialInstanceType") or ("SEV" if described.get("enableConfidentialCompute") else None)
    if not kind:
        return
    machine = instance["machineType"].rpartition("/")[2]
    if not machine.startswith(_CONFIDENTIAL.get(kind, ())):
        raise invalid(
            "resource.machineType", machine, f"The machine type does not support confidential compute {kind}."
        )
    if instance["scheduling"]["onHostMaintenance"] != "TERMINATE":
        raise invalid(
            "resource.scheduling.onHostMaintenance",
            instance["scheduling"]["onHostMaintenance"],
            "Must be TERMINATE for an instance with confidential compute.",
        )
    instance["confidentialInstanceConfig"] = {"enableConfidentialCompute": True, "confidentialInstanceType": kind}


def _with_fingerprint(value: Resource, kind: str | None) -> Resource:
    content = {name: item for name, item in value.items() if name not in ("fingerprint", "kind")}
    return content | {"fingerprint": fingerprint(content)} | ({"kind": kind} if kind else {})


def _instance(call: Call) -> tuple[str, Resource]:
    path = compute.item_path(call)
    return path, call.cloud.need(f"compute/{path}")


@serves("compute.instances.delete", permission="compute.instances.delete")
def _delete(call: Call) -> Resource:
    path, instance = _instance(call)
    if instance["deletionProtection"]:
        raise ApiError(
            400,
            f"Invalid resource usage: 'Resource cannot be deleted if it's protected against deletion. {path}'.",
            reason="resourceInUseByAnotherResource",
        )

    def finish() -> None:
        compute.drop(call, path)
        for disk in instance["disks"]:
            if disk["autoDelete"]:
                compute.drop(call, disk["source"].removeprefix(BASE))

    effect = call.cloud.effects.delete_instance
    return _pass_through(call, path, instance, "STOPPING", lambda: effect(instance["name"]), finish)


def _pass_through(call: Call, path: str, instance: Resource, status: str, work: Work, finish: Work) -> Resource:
    """Starts an operation during which the machine is on its way; it goes back when the operation fails."""
    before = instance["status"]
    started = compute.start(call, path, work, finish, undo=lambda: instance.update(status=before))
    instance["status"] = status
    return started


@serves("compute.instances.start", permission="compute.instances.start")
@serves("compute.instances.stop", permission="compute.instances.stop")
@serves("compute.instances.reset", permission="compute.instances.reset")
def _power(call: Call) -> Resource:
    path, instance = _instance(call)
    effect = getattr(call.cloud.effects, f"{call.verb}_instance")
    if call.verb == "start" and instance["status"] == "TERMINATED":
        _check_quotas(call, quotas.taken({**instance, "status": "RUNNING"}))

    def finish() -> None:
        stopped = call.verb == "stop"
        instance["status"] = "TERMINATED" if stopped else "RUNNING"
        instance["lastStopTimestamp" if stopped else "lastStartTimestamp"] = now()

    status = {"start": "STAGING", "stop": "STOPPING", "reset": instance["status"]}[call.verb]
    return _pass_through(call, path, instance, status, lambda: effect(instance["name"]), finish)


def _set(call: Call) -> Resource:
    """Serves the methods that each change one field; see `_SETTERS`."""
    path, instance = _instance(call)
    field = _SETTERS[call.verb]
    current, value = instance.get(field), compute.linked(call, call.body or {})
    if field == "deletionProtection":
        value = call.parameters.get(field, True)
    elif field == "machineType":
        value = value["machineType"]
        if instance["status"] != "TERMINATED":
            raise ApiError(400, f"The instance must be stopped first: {path}", reason="resourceNotReady")
    elif isinstance(current, dict) and "fingerprint" in current:
        if value.get("fingerprint") != current["fingerprint"]:
            raise ApiError(412, f"Supplied fingerprint does not match current {field} fingerprint.")
        value = _with_fingerprint(value, current.get("kind"))
    else:
        value = patched(current or {}, value)
    _check_confidential({**instance, field: value})
    return compute.replace(call, path, {**instance, field: value})


for _verb in _SETTERS:
    serves(f"compute.instances.{_verb}", permission=f"compute.instances.{_verb}")(_set)


def _interface(call: Call) -> tuple[str, Resource, Resource]:
    """Return an instance's path, and copies of it and of the network interface in it that a call names."""
    path, found = _instance(call)
    instance = copy.deepcopy(found)
    name = call.parameters["networkInterface"]
    for interface in instance["networkInterfaces"]:
        if interface["name"] == name:
            return path, instance, interface
    raise invalid("networkInterface", name, "The network interface does not exist.")


@serves("compute.instances.addAccessConfig", permission="compute.instances.addAccessConfig")
def _add_access(call: Call) -> Resource:
    path, instance, interface = _interface(call)
    if interface.get("accessConfigs"):
        message = "At most one access config currently supported."
        raise invalid("networkInterface", interface["name"], message)
    region = f"{BASE}projects/{call.parameters['project']}/regions/{call.parameters['zone'][:-2]}"
    config = dict(call.body or {})
    _complete_access(call, config, region, "natIP")
    _check_quotas(call, Counter({"IN_USE_ADDRESSES": 1}))
    interface["accessConfigs"] = [config]
    return compute.replace(call, path, instance)


@serves("compute.instances.deleteAccessConfig", permission="compute.instances.deleteAccessConfig")
def _delete_access(call: Call) -> Resource:
    path, instance, interface = _interface(call)
    name = call.parameters["accessConfig"]
    if name not in [config["name"] for config in interface.get("accessConfigs", [])]:
        raise invalid("accessConfig", name, "The access config does not exist.")
    del interface["accessConfigs"]
    return compute.replace(call, path, instance)


@serves("compute.disks.resize", permission="compute.disks.update")
def _resize(call: Call) -> Resource:
    path = compute.item_path(call)
    disk, size = call.cloud.need(f"compute/{path}"), (call.body or {}).get("sizeGb", "")
    if not size or int(size) <= int(disk["sizeGb"]):
        raise invalid("sizeGb", size, f"New disk size must be larger than the current size of {disk['sizeGb']} GB.")

    _check_quotas(call, Counter({quotas.disk_metric(disk["type"]): int(size) - int(disk["sizeGb"])}))

    def finish() -> None:
        disk["sizeGb"] = size
        attached = [item for machine in compute.instances(call.cloud) for item in machine["disks"]]
        for item in attached:
            if item["source"] == disk["selfLink"]:
                item["diskSizeGb"] = size

    return compute.start(call, path, finish=finish)
