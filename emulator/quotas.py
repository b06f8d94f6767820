"""Quotas of Compute Engine: what a project may have, what it has, and the refusal of more."""

from collections import Counter

from emulator.errors import ApiError
from emulator.services import compute_catalog as catalog
from emulator.state import Resource, State

# What a project that pays has at least: https://cloud.google.com/compute/resource-usage. A test may set others.
LIMITS = {
    "global": {"NETWORKS": 15, "SUBNETWORKS": 175, "ROUTERS": 20, "FIREWALLS": 200, "CPUS_ALL_REGIONS": 256},
    "region": {
        "CPUS": 72,
        "N2_CPUS": 72,
        "N2D_CPUS": 72,
        "IN_USE_ADDRESSES": 64,
        "STATIC_ADDRESSES": 64,
        "SSD_TOTAL_GB": 2048,
        "DISKS_TOTAL_GB": 8192,
    },
}
_COUNTED = {
    "compute#network": "NETWORKS",
    "compute#subnetwork": "SUBNETWORKS",
    "compute#router": "ROUTERS",
    "compute#firewall": "FIREWALLS",
}
_SSD = {"pd-balanced", "pd-ssd", "pd-extreme"}


def disk_metric(disk_type: str) -> str:
    """Return the quota that a disk type counts for."""
    return "SSD_TOTAL_GB" if disk_type.rpartition("/")[2] in _SSD else "DISKS_TOTAL_GB"


def machine(machine_type: str) -> Counter[str]:
    """Return what a machine of this type takes: E2 has no quota of its own."""
    name = machine_type.rpartition("/")[2]
    family, cores = name.partition("-")[0].upper(), catalog.MACHINE_TYPES[name][0]
    return Counter({"CPUS" if family == "E2" else f"{family}_CPUS": cores, "CPUS_ALL_REGIONS": cores})


def taken(resource: Resource) -> Counter[str]:
    """Return what one resource takes of each quota."""
    kind = resource.get("kind", "")
    if kind in _COUNTED:
        return Counter({_COUNTED[kind]: 1})
    if kind == "compute#address" and resource["addressType"] == "EXTERNAL":
        return Counter({"STATIC_ADDRESSES": 1})
    if kind == "compute#disk":
        return Counter({disk_metric(resource["type"]): int(resource["sizeGb"])})
    if kind != "compute#instance" or resource["status"] == "TERMINATED":
        return Counter()
    external = sum(len(interface.get("accessConfigs", [])) for interface in resource["networkInterfaces"])
    return machine(resource["machineType"]) + Counter({"IN_USE_ADDRESSES": external})


def quotas(state: State, project: str, region: str | None) -> list[Resource]:
    """Return the quotas of a region, or of the project as a whole, as Google shows them."""
    limits = {**LIMITS["region" if region else "global"], **state.quotas.get(f"{project}/{region or 'global'}", {})}
    usage: Counter[str] = Counter()
    for name, resource in state.under(f"compute/projects/{project}/"):
        place = name.split("/")[4]
        if region in (None, place, place.rpartition("-")[0]):
            usage += taken(resource)
    return [
        {"metric": metric, "limit": float(limit), "usage": float(usage[metric])} for metric, limit in limits.items()
    ]


def check(state: State, project: str, region: str | None, needed: Counter[str]) -> None:
    """Raises `ApiError` 403 when the project, or the region in it, has no room for that."""
    for place in {None, region}:
        for quota in quotas(state, project, place):
            more = needed[quota["metric"]]
            if more and quota["usage"] + more > quota["limit"]:
                where = f"in region {place}" if place else "globally"
                message = f"Quota '{quota['metric']}' exceeded.  Limit: {quota['limit']} {where}."
                raise ApiError(403, message, reason="quotaExceeded")
