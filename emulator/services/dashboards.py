"""Cloud Monitoring's dashboards: kept whole, under an etag."""

import re
import secrets
from collections.abc import Iterator

from emulator.cloud import Call, serves
from emulator.errors import ApiError
from emulator.filters import check_promql
from emulator.state import Resource, fingerprint, now, public

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LAYOUTS = {"mosaicLayout", "gridLayout", "rowLayout", "columnLayout"}


def _key(name: str) -> str:
    return f"monitoring/{name}"


def _numbered(call: Call, dashboard: Resource) -> Resource:
    """Return a dashboard with its name as Google writes it, with the project's number."""
    _, project, rest = dashboard["name"].split("/", 2)
    return public(dashboard) | {"name": f"projects/{call.state.projects[project]}/{rest}"}


def _need(call: Call) -> Resource:
    found = call.state.resources.get(_key(call.name))
    if found is None:
        raise ApiError(404, f"Requested entity was not found: {call.name}")
    return found


def _check(dashboard: Resource) -> None:
    if not dashboard.get("displayName"):
        raise ApiError(400, "Field displayName must be set.")
    if len(dashboard.keys() & _LAYOUTS) != 1:
        raise ApiError(400, f"A dashboard has exactly one of {sorted(_LAYOUTS)}.")
    mosaic = dashboard.get("mosaicLayout", {"columns": 1})
    columns = mosaic.get("columns", 0)
    taken: set[tuple[int, int]] = set()
    if not 1 <= columns <= 48:
        raise ApiError(400, "mosaicLayout.columns must be 1 to 48.")
    for tile in mosaic.get("tiles", []):
        left, top = tile.get("xPos", 0), tile.get("yPos", 0)
        width, height = tile.get("width", 0), tile.get("height", 0)
        if min(left, top) < 0 or min(width, height) < 1 or left + width > columns:
            raise ApiError(400, f"A tile at {left},{top} does not lie within the {columns} columns.")
        blocks = {(x, y) for x in range(left, left + width) for y in range(top, top + height)}
        if blocks & taken:
            raise ApiError(400, f"A tile at {left},{top} overlaps another.")
        taken |= blocks
    for query in _queries(dashboard):
        if len(query.keys() - {"unitOverride", "outputFullDuration"}) != 1:
            raise ApiError(400, "A timeSeriesQuery has exactly one kind of query.")
        try:
            if "prometheusQuery" in query:
                check_promql(query["prometheusQuery"])
        except ValueError as error:
            raise ApiError(400, f"Invalid prometheusQuery: {error}.") from error


def _queries(value: object) -> Iterator[Resource]:
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "timeSeriesQuery":
                yield item
            else:
                yield from _queries(item)
    elif isinstance(value, list):
        for item in value:
            yield from _queries(item)


@serves("monitoring.projects.dashboards.create", permission="monitoring.dashboards.create")
def _create(call: Call) -> Resource:
    body = call.body or {}
    name = body.get("name") or f"{call.name}/dashboards/{secrets.token_hex(8)}"
    owner, _, identity = name.partition("/dashboards/")
    if owner != call.name or not _ID.fullmatch(identity) or "etag" in body:
        raise ApiError(400, f"A new dashboard is called {call.name}/dashboards/<id> and has no etag.")
    if _key(name) in call.state.resources:
        raise ApiError(409, f"Dashboard {name} already exists.")
    _check(body)
    dashboard = body | {"name": name, "etag": fingerprint([body, now()])}
    call.state.resources[_key(name)] = dashboard
    return _numbered(call, dashboard)


@serves("monitoring.projects.dashboards.get", permission="monitoring.dashboards.get")
def _get(call: Call) -> Resource:
    return _numbered(call, _need(call))


@serves("monitoring.projects.dashboards.list", permission="monitoring.dashboards.list")
def _list(call: Call) -> Resource:
    found = [_numbered(call, item) for _, item in call.state.under(_key(f"{call.name}/dashboards/"))]
    return call.page(found, "dashboards", "pageSize")


@serves("monitoring.projects.dashboards.patch", permission="monitoring.dashboards.update")
def _replace(call: Call) -> Resource:
    current, body = _need(call), call.body or {}
    if body.get("etag", current["etag"]) != current["etag"]:
        raise ApiError(409, "The etag is not the dashboard's: it was changed meanwhile.", status="ABORTED")
    _check(body)
    dashboard = body | {"name": call.name, "etag": fingerprint([body, now()])}
    call.state.resources[_key(call.name)] = dashboard
    return _numbered(call, dashboard)


@serves("monitoring.projects.dashboards.delete", permission="monitoring.dashboards.delete")
def _delete(call: Call) -> Resource:
    _need(call)
    del call.state.resources[_key(call.name)]
    return {}
