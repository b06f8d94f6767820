"""What Compute Engine has before anybody makes anything: regions, zones, types and images."""

import re

from emulator.state import Resource

BASE = "https://www.googleapis.com/compute/v1/"
ZONES = {
    "us-central1": "abcf",
    "us-east1": "bcd",
    "us-east4": "abc",
    "us-west1": "abc",
    "northamerica-northeast1": "abc",
    "southamerica-east1": "abc",
    "europe-north1": "abc",
    "europe-west1": "bcd",
    "europe-west2": "abc",
    "europe-west3": "abc",
    "europe-west4": "abc",
    "asia-east1": "abc",
    "asia-northeast1": "abc",
    "asia-southeast1": "abc",
    "australia-southeast1": "abc",
}
# Images that VMs can boot from, by family; each family is a Docker image too.
IMAGES = {"debian-12": "debian-12-bookworm-v20261014", "debian-13": "debian-13-trixie-v20261014"}
DISK_TYPES = ("pd-balanced", "pd-ssd", "pd-standard", "pd-extreme")
_SHARED_CORE = {"e2-micro": (2, 1024), "e2-small": (2, 2048), "e2-medium": (2, 4096)}
_FAMILIES = {"e2-standard": 4096, "e2-highmem": 8192, "e2-highcpu": 1024, "n2-standard": 4096, "n2d-standard": 4096}
MACHINE_TYPES = _SHARED_CORE | {
    f"{family}-{cores}": (cores, cores * memory) for family, memory in _FAMILIES.items() for cores in (2, 4, 8, 16)
}
_PATH = re.compile(r"projects/(?P<project>[^/]+)/(?:global|zones/(?P<zone>[^/]+))/(?P<collection>\w+)/(?P<name>[^/]+)")


def region(project: str, name: str) -> Resource | None:
    """Return a region, or None where Google has none of that name here."""
    if name not in ZONES:
        return None
    return {
        "kind": "compute#region",
        "id": _number(name),
        "name": name,
        "description": name,
        "status": "UP",
        "creationTimestamp": "1969-12-31T16:00:00.000-08:00",
        "zones": [f"{BASE}projects/{project}/zones/{name}-{letter}" for letter in ZONES[name]],
        "selfLink": f"{BASE}projects/{project}/regions/{name}",
    }


def zone(project: str, name: str) -> Resource | None:
    """Return a zone, or None."""
    area, _, letter = name.rpartition("-")
    if not letter or letter not in ZONES.get(area, ""):
        return None
    return {
        "kind": "compute#zone",
        "id": _number(name),
        "name": name,
        "description": name,
        "status": "UP",
        "creationTimestamp": "1969-12-31T16:00:00.000-08:00",
        "region": f"{BASE}projects/{project}/regions/{area}",
        "selfLink": f"{BASE}projects/{project}/zones/{name}",
    }


def all_zones() -> list[str]:
    """Return the names of all zones."""
    return [f"{area}-{letter}" for area, letters in ZONES.items() for letter in letters]


def find(path: str) -> Resource | None:
    """Return the region, zone, machine type, disk type or image at a path such as `projects/p/zones/z`, or None."""
    parts = path.split("/")
    if len(parts) == 4 and parts[2] in ("regions", "zones"):
        return (region if parts[2] == "regions" else zone)(parts[1], parts[3])
    if len(parts) == 6 and parts[0] == "projects" and parts[3:5] == ["images", "family"]:
        return image(parts[1], IMAGES.get(parts[5], ""))
    found = _PATH.fullmatch(path)
    if not found:
        return None
    project, place, collection, name = found["project"], found["zone"], found["collection"], found["name"]
    if collection == "images" and place is None:
        return image(project, name)
    if place is None or zone(project, place) is None:
        return None
    common = {
        "id": _number(name),
        "name": name,
        "zone": f"{BASE}projects/{project}/zones/{place}",
        "creationTimestamp": "1969-12-31T16:00:00.000-08:00",
        "selfLink": BASE + path,
    }
    if collection == "machineTypes" and name in MACHINE_TYPES:
        cores, memory = MACHINE_TYPES[name]
        return {
            "kind": "compute#machineType",
            **common,
            "zone": place,
            "description": f"{cores} vCPUs, {memory // 1024} GB RAM",
            "guestCpus": cores,
            "memoryMb": memory,
            "isSharedCpu": name in _SHARED_CORE,
            "maximumPersistentDisks": 128,
            "architecture": "X86_64",
        }
    if collection == "diskTypes" and name in DISK_TYPES:
        return {"kind": "compute#diskType", **common, "defaultDiskSizeGb": "100", "validDiskSize": "10GB-65536GB"}
    return None


def image(project: str, name: str) -> Resource | None:
    """Return one of Debian's public images, or None."""
    family = next((family for family, found in IMAGES.items() if found == name), None)
    if project != "debian-cloud" or family is None:
        return None
    return {
        "kind": "compute#image",
        "id": _number(name),
        "name": name,
        "family": family,
        "status": "READY",
        "architecture": "X86_64",
        "diskSizeGb": "10",
        "sourceType": "RAW",
        "creationTimestamp": "2026-10-14T00:00:00.000-07:00",
        "selfLink": f"{BASE}projects/debian-cloud/global/images/{name}",
        "guestOsFeatures": [{"type": "UEFI_COMPATIBLE"}, {"type": "VIRTIO_SCSI_MULTIQUEUE"}, {"type": "GVNIC"}],
    }


def _number(name: str) -> str:
    return str(1000 + sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 10**9)
