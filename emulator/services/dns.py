"""Cloud DNS: managed zones, public and private, and the record sets in them, which `name_server` serves."""

import ipaddress
import re
from typing import Any

from emulator.cloud import Call, held_permissions, patched, serves
from emulator.errors import ApiError
from emulator.services.compute import BASE, resolve
from emulator.state import Resource, State, now

_ZONE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_DOMAIN = re.compile(r"((\*|[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9])?)\.)+")
# https://cloud.google.com/dns/docs/records-overview#supported_dns_record_types
_TYPES = {"A", "AAAA", "CAA", "CNAME", "DS", "HTTPS", "MX", "NAPTR", "NS", "PTR", "SOA", "SRV", "SVCB", "TXT"}
_OF_THE_ZONE = {"SOA", "NS"}
# Character strings of a TXT record, in quotes or without.
_STRINGS = re.compile(r'("(?:[^"\\]|\\.)*")|([^\s"]+)')
_ADDRESSES = {"A": ipaddress.IPv4Address, "AAAA": ipaddress.IPv6Address}
_PRIVATE_SERVER = "ns-gcp-private.googledomains.com."
_SERVERS = [f"ns-cloud-e{number}.googledomains.com." for number in range(1, 5)]


def _zone_key(call: Call) -> str:
    """Return the key of the zone that a call names, by its name or its number."""
    prefix, named = f"dns/projects/{call.parameters['project']}/managedZones/", call.parameters["managedZone"]
    numbered = (item for _, item in call.state.under(prefix) if item.get("id") == named)
    return prefix + str(next(numbered, {"name": named})["name"])


def _of_zone(call: Call) -> list[str]:
    """Return the resources whose policies count: the zone, and its project."""
    return [_zone_key(call).removeprefix("dns/"), f"projects/{call.parameters['project']}"]


def _need_zone(call: Call) -> tuple[str, Resource]:
    key = _zone_key(call)
    zone = call.state.resources.get(key)
    if zone is None:
        name = call.parameters["managedZone"]
        raise ApiError(404, f"The 'parameters.managedZone' resource named '{name}' does not exist.")
    return key, zone


def _invalid(field: str, value: object) -> ApiError:
    return ApiError(400, f"Invalid value for '{field}': '{value}'")


@serves("dns.managedZones.create", permission="dns.managedZones.create")
def _create_zone(call: Call) -> Resource:
    body, project = call.body or {}, call.parameters["project"]
    for field in ("name", "dnsName", "description"):
        if not body.get(field):
            raise ApiError(400, f"The 'entity.managedZone.{field}' parameter is required but was missing.")
    name, domain = body["name"], body["dnsName"]
    if not _ZONE_NAME.fullmatch(name):
        raise _invalid("entity.managedZone.name", name)
    if not _DOMAIN.fullmatch(domain):
        raise _invalid("entity.managedZone.dnsName", domain)
    key = f"dns/projects/{project}/managedZones/{name}"
    if key in call.state.resources:
        raise ApiError(409, f"The resource 'entity.managedZone' named '{name}' already exists")
    servers = _SERVERS if body.get("visibility", "public") == "public" else [_PRIVATE_SERVER]
    zone: Resource = {
        "visibility": "public",
        **body,
        "kind": "dns#managedZone",
        "id": call.state.new_id(),
        "nameServers": servers,
        "creationTime": now(),
    }
    if zone["visibility"] == "public":
        zone.setdefault("dnssecConfig", {"kind": "dns#managedZoneDnsSecConfig", "state": "off"})
    _check_networks(call, zone)
    soa = f"{servers[0]} cloud-dns-hostmaster.google.com. 1 21600 3600 259200 300"
    call.state.resources |= {
        key: zone,
        f"{key}/rrsets/{domain}/SOA": _record(domain, "SOA", 21600, [soa]),
        f"{key}/rrsets/{domain}/NS": _record(domain, "NS", 21600, servers),
    }
    return zone


def _check_networks(call: Call, zone: Resource) -> None:
    """Raises `ApiError` unless a private zone is seen by networks that have no other of the same domain.

    https://cloud.google.com/dns/docs/zones/zones-overview
    """
    networks = zone.get("privateVisibilityConfig", {}).get("networks", [])
    if bool(networks) != (zone["visibility"] == "private"):
        raise _invalid("entity.managedZone.privateVisibilityConfig.networks", networks)
    for network in networks:
        link = network.get("networkUrl", "")
        if not link.startswith(f"{BASE}projects/"):
            raise _invalid("entity.managedZone.privateVisibilityConfig.networks[].networkUrl", link)
        resolve(call.cloud, link, "networkUrl", "networks", call.parameters["project"])
    links = {network["networkUrl"] for network in networks}
    for other in (item for item in call.state.resources.values() if item.get("kind") == "dns#managedZone"):
        seen_by = {network["networkUrl"] for network in other.get("privateVisibilityConfig", {}).get("networks", [])}
        if other["id"] != zone["id"] and other["dnsName"] == zone["dnsName"] and links & seen_by:
            raise ApiError(409, f"The zone '{other['name']}' of {zone['dnsName']} is seen by the same network")


@serves("dns.managedZones.patch", permission="dns.managedZones.update", resources=_of_zone)
def _change_zone(call: Call) -> Resource:
    key, zone = _need_zone(call)
    changed = patched(zone, {name: value for name, value in (call.body or {}).items() if name != "kind"})
    for field in ("name", "dnsName", "visibility"):
        if changed.get(field) != zone[field]:
            raise _invalid(f"entity.managedZone.{field}", changed.get(field))
    if not changed.get("description"):
        raise ApiError(400, "The 'entity.managedZone.description' parameter is required but was missing.")
    _check_networks(call, changed)
    call.state.resources[key] = changed
    return {"kind": "dns#operation", "id": call.state.new_id(), "status": "done", "type": "update", "startTime": now()}


def _record(name: str, kind: str, ttl: int, rrdatas: list[str]) -> Resource:
    return {"kind": "dns#resourceRecordSet", "name": name, "type": kind, "ttl": ttl, "rrdatas": rrdatas}


@serves("dns.managedZones.get", permission="dns.managedZones.get", resources=_of_zone)
def _get_zone(call: Call) -> Resource:
    return _need_zone(call)[1]


@serves("dns.managedZones.list", permission="dns.managedZones.list")
def _list_zones(call: Call) -> Resource:
    prefix = f"dns/projects/{call.parameters['project']}/managedZones/"
    zones = [item for _, item in call.state.under(prefix) if item["kind"] == "dns#managedZone"]
    wanted = call.parameters.get("dnsName")
    zones = [zone for zone in zones if wanted in (None, zone["dnsName"])]
    return {"kind": "dns#managedZonesListResponse", "managedZones": [], **call.page(zones, "managedZones")}


@serves("dns.managedZones.delete", permission="dns.managedZones.delete", resources=_of_zone)
def _delete_zone(call: Call) -> Any:
    key, zone = _need_zone(call)
    records = dict(call.state.under(f"{key}/rrsets/"))
    if any(record["type"] not in _OF_THE_ZONE or record["name"] != zone["dnsName"] for record in records.values()):
        message = f"The resource named '{zone['name']}' cannot be deleted because it contains one or more record sets"
        raise ApiError(400, message, reason="containerNotEmpty")
    for name in (*records, *dict(call.state.under(f"{key}/changes/")), key):
        del call.state.resources[name]
    call.state.policies.pop(key.removeprefix("dns/"), None)


@serves("dns.managedZones.getIamPolicy", permission="dns.managedZones.getIamPolicy")
def _get_policy(call: Call) -> Resource:
    call.cloud.need(f"dns/{call.name}")
    version = (call.body or {}).get("options", {}).get("requestedPolicyVersion", 1)
    return call.cloud.access.get_policy(call.name, version)


@serves("dns.managedZones.setIamPolicy", permission="dns.managedZones.setIamPolicy")
def _set_policy(call: Call) -> Resource:
    call.cloud.need(f"dns/{call.name}")
    body = call.body or {}
    return call.cloud.access.set_policy(call.name, body.get("policy", {}), body.get("updateMask"))


serves("dns.managedZones.testIamPermissions")(held_permissions)


def _place(call: Call) -> tuple[str, Resource | None]:
    """Return the key of the record set that a call names, and the record set."""
    zone, _ = _need_zone(call)
    key = f"{zone}/rrsets/{call.parameters['name']}/{call.parameters['type']}"
    return key, call.state.resources.get(key)


def _need_record(call: Call) -> tuple[str, Resource]:
    key, record = _place(call)
    if record is None:
        name = f"{call.parameters['name']} ({call.parameters['type']})"
        raise ApiError(404, f"The 'parameters.name' resource named '{name}' does not exist.")
    return key, record


def _change(call: Call) -> None:
    """Whoever writes a record set needs this too: https://cloud.google.com/dns/docs/access-control#permissions."""
    call.cloud.access.require(call.principal, "dns.changes.create", _of_zone(call))


def _checked(zone: Resource, record: Resource) -> Resource:
    """Return a record set as it is kept; raises `ApiError` 400 for one that Google refuses."""
    name, kind, data = record.get("name", ""), record.get("type", ""), record.get("rrdatas", [])
    if record.get("routingPolicy"):
        raise ApiError(501, "The emulated cloud has no routing policies.")
    if not _DOMAIN.fullmatch(name) or not f".{name}".endswith(f".{zone['dnsName']}"):
        raise _invalid("entity.name", name)
    if kind not in _TYPES:
        raise _invalid("entity.type", kind)
    if kind == "TXT":
        data = [_quoted(text) for text in data]
    if not data or len(set(data)) != len(data):
        raise _invalid("entity.rrdatas", data)
    if int(record.get("ttl", 0)) < 0:
        raise _invalid("entity.ttl", record["ttl"])
    for text in data if kind in _ADDRESSES else []:
        try:
            _ADDRESSES[kind](text)
        except ValueError as error:
            raise _invalid("entity.rrdata", text) from error
    return _record(name, kind, int(record.get("ttl", 0)), data)


def _quoted(text: str) -> str:
    """Return a TXT record's data as Google keeps it: character strings in quotes, of 255 bytes at most.

    https://cloud.google.com/dns/docs/records#add_a_record
    """
    strings = [quoted or bare for quoted, bare in _STRINGS.findall(text)]
    if not strings or _STRINGS.sub("", text).strip() or any(len(one.strip('"')) > 255 for one in strings):
        raise _invalid("entity.rrdata", text)
    return " ".join(one if one.startswith('"') else f'"{one}"' for one in strings)


def _check_company(call: Call, zone_key: str, record: Resource) -> None:
    """Raises `ApiError` 400 for a CNAME that would not stand alone."""
    others = {item["type"] for _, item in call.state.under(f"{zone_key}/rrsets/{record['name']}/")} - {record["type"]}
    if others and ("CNAME" in others or record["type"] == "CNAME"):
        message = f"The resource record set '{record['name']}' is invalid because a CNAME goes with no other record"
        raise ApiError(400, message, reason="cnameResourceRecordSetConflict")


@serves("dns.resourceRecordSets.create", permission="dns.resourceRecordSets.create", resources=_of_zone)
def _create_record(call: Call) -> Resource:
    _change(call)
    zone_key, zone = _need_zone(call)
    record = _checked(zone, call.body or {})
    key = f"{zone_key}/rrsets/{record['name']}/{record['type']}"
    if key in call.state.resources:
        name = f"{record['name']} ({record['type']})"
        raise ApiError(409, f"The resource 'entity.rrset' named '{name}' already exists")
    _check_company(call, zone_key, record)
    call.state.resources[key] = record
    return record


@serves("dns.resourceRecordSets.get", permission="dns.resourceRecordSets.get", resources=_of_zone)
def _get_record(call: Call) -> Resource:
    return _need_record(call)[1]


@serves("dns.resourceRecordSets.list", permission="dns.resourceRecordSets.list", resources=_of_zone)
def _list_records(call: Call) -> Resource:
    key, _ = _need_zone(call)
    wanted = {field: call.parameters[field] for field in ("name", "type") if field in call.parameters}
    if set(wanted) == {"type"}:
        raise ApiError(400, "The 'parameters.name' parameter is required but was missing.", reason="required")
    found = [item for _, item in call.state.under(f"{key}/rrsets/") if wanted.items() <= item.items()]
    return {"kind": "dns#resourceRecordSetsListResponse", "rrsets": [], **call.page(found, "rrsets")}


@serves("dns.resourceRecordSets.patch", permission="dns.resourceRecordSets.update", resources=_of_zone)
def _patch_record(call: Call) -> Resource:
    _change(call)
    key, record = _need_record(call)
    changed = _checked(_need_zone(call)[1], {**record, **(call.body or {})})
    for field in ("name", "type"):
        if changed[field] != record[field]:
            raise _invalid(f"entity.{field}", changed[field])
    call.state.resources[key] = changed
    return changed


@serves("dns.resourceRecordSets.delete", permission="dns.resourceRecordSets.delete", resources=_of_zone)
def _delete_record(call: Call) -> Resource:
    _change(call)
    key, record = _need_record(call)
    if record["type"] in _OF_THE_ZONE and record["name"] == _need_zone(call)[1]["dnsName"]:
        message = f"The resource record set '{record['name']} ({record['type']})' is needed by the zone"
        raise ApiError(400, message, reason="invalidZoneApex")
    del call.state.resources[key]
    return {}


@serves("dns.changes.create", permission="dns.changes.create", resources=_of_zone)
def _create_change(call: Call) -> Resource:
    """Carries out additions and deletions as one: all of them, or none.

    Each takes a permission of its own: https://cloud.google.com/dns/docs/access-control#permissions
    """
    zone_key, zone = _need_zone(call)
    body = call.body or {}
    sides: dict[str, list[Resource]] = {
        side: [_checked(zone, record) for record in body.get(side, [])] for side in ("additions", "deletions")
    }
    places = {
        side: [f"{zone_key}/rrsets/{one['name']}/{one['type']}" for one in found] for side, found in sides.items()
    }
    if not any(sides.values()) or any(len(set(found)) != len(found) for found in places.values()):
        raise _invalid("entity.change", body)
    for verb, found in {
        "create": set(places["additions"]) - set(places["deletions"]),
        "update": set(places["additions"]) & set(places["deletions"]),
        "delete": set(places["deletions"]) - set(places["additions"]),
    }.items():
        if found:
            call.cloud.access.require(call.principal, f"dns.resourceRecordSets.{verb}", _of_zone(call))
    for index, (place, record) in enumerate(zip(places["deletions"], sides["deletions"], strict=True)):
        field = f"entity.change.deletions[{index}]"
        kept = call.state.resources.get(place)
        if kept is None:
            raise ApiError(404, f"The resource '{field}' named '{record['name']} ({record['type']})' does not exist.")
        if (kept["ttl"], sorted(kept["rrdatas"])) != (record["ttl"], sorted(record["rrdatas"])):
            raise ApiError(412, f"Precondition not met for '{field}'", reason="conditionNotMet")
        if place not in places["additions"] and record["type"] in _OF_THE_ZONE and record["name"] == zone["dnsName"]:
            raise ApiError(400, f"The resource record set '{field}' is needed by the zone", reason="invalidZoneApex")
    for index, (place, record) in enumerate(zip(places["additions"], sides["additions"], strict=True)):
        if place in call.state.resources and place not in places["deletions"]:
            name = f"{record['name']} ({record['type']})"
            raise ApiError(409, f"The resource 'entity.change.additions[{index}]' named '{name}' already exists")
        _check_company(call, zone_key, record)
    for place in places["deletions"]:
        del call.state.resources[place]
    call.state.resources |= dict(zip(places["additions"], sides["additions"], strict=True))
    change: Resource = {"kind": "dns#change", "id": call.state.new_id(), "startTime": now(), "status": "done"}
    change |= {side: found for side, found in sides.items() if found}
    call.state.resources[f"{zone_key}/changes/{change['id']}"] = change
    return {**change, "status": "pending"}


@serves("dns.changes.get", permission="dns.changes.get", resources=_of_zone)
def _get_change(call: Call) -> Resource:
    key, _ = _need_zone(call)
    identity = call.parameters["changeId"]
    change = call.state.resources.get(f"{key}/changes/{identity}")
    if change is None:
        raise ApiError(404, f"The 'parameters.changeId' resource named '{identity}' does not exist.")
    return change


@serves("dns.changes.list", permission="dns.changes.list", resources=_of_zone)
def _list_changes(call: Call) -> Resource:
    key, _ = _need_zone(call)
    found = [item for _, item in call.state.under(f"{key}/changes/")]
    return {"kind": "dns#changesListResponse", "changes": [], **call.page(found, "changes")}


def served(state: State, name: str, kind: str) -> list[str] | None:
    """Return what Google's name servers tell everybody of a name, with its final dot: the data of its records.

    None when no public zone has the name's domain. Of zones in each other the innermost counts.
    """
    zones = [
        (key, zone)
        for key, zone in state.resources.items()
        if zone.get("kind") == "dns#managedZone" and zone["visibility"] == "public"
    ]
    inside = [(key, zone) for key, zone in zones if f".{name}".endswith(f".{zone['dnsName']}")]
    if not inside:
        return None
    key, _ = max(inside, key=lambda found: len(found[1]["dnsName"]))
    return list(state.resources.get(f"{key}/rrsets/{name}/{kind}", {}).get("rrdatas", []))
