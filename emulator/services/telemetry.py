"""Cloud Logging and Monitoring, as far as writing goes: checked against schema and permissions, then dropped."""

from emulator.cloud import Call, serves
from emulator.errors import ApiError
from emulator.state import Resource


def _log_projects(call: Call) -> list[str]:
    """Return the projects whose logs a call writes to."""
    body = call.body or {}
    names = {entry.get("logName") or body.get("logName", "") for entry in body.get("entries", [])}
    projects = {"/".join(name.split("/")[:2]) for name in names}
    if len(projects) != 1 or not next(iter(projects)).startswith("projects/"):
        raise ApiError(400, "The log entries must name logs of one project: projects/<project>/logs/<log>.")
    return list(projects)


@serves("logging.entries.write", permission="logging.logEntries.create", resources=_log_projects)
@serves("monitoring.projects.timeSeries.create", permission="monitoring.timeSeries.create")
def _write(_call: Call) -> Resource:
    return {}
