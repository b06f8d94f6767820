"""Cloud Logging: entries are checked and dropped; sinks and log-based metrics are kept."""

import re

from emulator.cloud import Call, patched, serves
from emulator.errors import ApiError
from emulator.filters import check_log_query
from emulator.state import Resource, now, public

# https://cloud.google.com/logging/docs/reference/v2/rest/v2/projects.sinks#LogSink.FIELDS.name
_SINK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# https://cloud.google.com/logging/docs/reference/v2/rest/v2/projects.metrics#LogMetric.FIELDS.name
_METRIC_NAME = re.compile(r"[A-Za-z0-9_\-.,+!*',()%][A-Za-z0-9_\-.,+!*',()%/]{0,99}")
# Who writes for sinks without a writer of their own.
_SHARED_WRITER = "serviceAccount:cloud-logs@system.gserviceaccount.com"


def _log_projects(call: Call) -> list[str]:
    """Return the projects whose logs a call writes to."""
    body = call.body or {}
    names = {entry.get("logName") or body.get("logName", "") for entry in body.get("entries", [])}
    projects = {"/".join(name.split("/")[:2]) for name in names}
    if len(projects) != 1 or not next(iter(projects)).startswith("projects/"):
        raise ApiError(400, "The log entries must name logs of one project: projects/<project>/logs/<log>.")
    return list(projects)


@serves("logging.entries.write", permission="logging.logEntries.create", resources=_log_projects)
def _write(_call: Call) -> Resource:
    return {}


def check_filter(call: Call, text: str) -> None:
    """Raise `ApiError` 400 unless a text is a query on log entries."""
    fields = call.cloud.directory.documents["logging.v2"].schemas["LogEntry"]["properties"]
    try:
        if not text or len(text) > 20_000:
            raise ValueError("it must have 1 to 20000 characters")
        check_log_query(text, fields)
    except ValueError as error:
        raise ApiError(400, f"Unparseable filter: {error}") from error


def _key(name: str) -> str:
    return f"logging/{name}"


def _need(call: Call) -> Resource:
    found = call.state.resources.get(_key(call.name))
    if found is None:
        raise ApiError(404, f"{call.name} does not exist")
    return found


# Sinks


def _check_sink(call: Call, project: str, sink: Resource) -> None:
    service, _, rest = sink.get("destination", "").partition("/")
    owned = {
        "storage.googleapis.com": f"storage/{rest}",
        "bigquery.googleapis.com": f"bigquery/{rest}",
    }.get(service)
    if owned is None:
        raise ApiError(
            400, f"Invalid destination '{sink.get('destination', '')}': only buckets and datasets are emulated."
        )
    if owned not in call.state.resources:
        raise ApiError(404, f"The destination {sink['destination']} of a sink of {project} does not exist.")
    if sink.get("bigqueryOptions") and service != "bigquery.googleapis.com":
        raise ApiError(400, "bigqueryOptions are for BigQuery destinations only.")
    if sink.get("filter"):
        check_filter(call, sink["filter"])
    for exclusion in sink.get("exclusions", []):
        check_filter(call, exclusion.get("filter", ""))


def _service_agent(call: Call, project: str) -> str:
    """Return the account that writes for the project's sinks; it exists from the first one on.

    https://cloud.google.com/logging/docs/export/configure_export_v2#dest-auth
    """
    email = f"service-{call.state.projects[project]}@gcp-sa-logging.iam.gserviceaccount.com"
    call.state.resources.setdefault(f"agents/serviceAccounts/{email}", {"email": email})
    return f"serviceAccount:{email}"


@serves("logging.projects.sinks.create", permission="logging.sinks.create")
def _create_sink(call: Call) -> Resource:
    project, body = call.name.partition("/")[2], call.body or {}
    name = body.get("name", "")
    if not _SINK_NAME.fullmatch(name):
        raise ApiError(400, f"Sink name '{name}' is not valid.")
    key = _key(f"{call.name}/sinks/{name}")
    if key in call.state.resources:
        raise ApiError(409, f"Sink {name} already exists")
    _check_sink(call, project, body)
    own = call.parameters.get("uniqueWriterIdentity", False)
    sink = body | {"resourceName": f"{call.name}/sinks/{name}", "createTime": now(), "updateTime": now()}
    sink["writerIdentity"] = _service_agent(call, project) if own else _SHARED_WRITER
    call.state.resources[key] = sink
    return sink


@serves("logging.projects.sinks.get", permission="logging.sinks.get")
@serves("logging.projects.metrics.get", permission="logging.logMetrics.get")
def _get(call: Call) -> Resource:
    return _need(call)


@serves("logging.projects.sinks.list", permission="logging.sinks.list")
@serves("logging.projects.metrics.list", permission="logging.logMetrics.list")
def _list(call: Call) -> Resource:
    collection = call.method.id.split(".")[-2]
    found = [public(item) for _, item in call.state.under(_key(f"{call.name}/{collection}/"))]
    return call.page(found, collection, "pageSize")


@serves("logging.projects.sinks.patch", "logging.projects.sinks.update", permission="logging.sinks.update")
def _update_sink(call: Call) -> Resource:
    sink, body, project = _need(call), call.body or {}, call.name.split("/")[1]
    masked = [field for field in call.parameters.get("updateMask", "").split(",") if field]
    fixed = {"name", "writerIdentity", "createTime", "updateTime", "resourceName"}
    if not masked or set(masked) & fixed:
        raise ApiError(400, f"updateMask must name fields that can change, and not {sorted(fixed)}.")
    if sink["writerIdentity"] != _SHARED_WRITER and not call.parameters.get("uniqueWriterIdentity"):
        raise ApiError(400, "uniqueWriterIdentity cannot be set to false on a sink that has a writer of its own.")
    changed = {field: value for field, value in sink.items() if field not in masked}
    changed |= {field: body[field] for field in masked if body.get(field) is not None}
    _check_sink(call, project, changed)
    if call.parameters.get("uniqueWriterIdentity"):
        changed["writerIdentity"] = _service_agent(call, project)
    call.state.resources[_key(call.name)] = changed | {"updateTime": now()}
    return _need(call)


@serves("logging.projects.sinks.delete", permission="logging.sinks.delete")
@serves("logging.projects.metrics.delete", permission="logging.logMetrics.delete")
def _delete(call: Call) -> Resource:
    _need(call)
    del call.state.resources[_key(call.name)]
    return {}


# Log-based metrics


def _check_metric(call: Call, metric: Resource) -> None:
    name, described = metric.get("name", ""), metric.get("metricDescriptor", {})
    if not _METRIC_NAME.fullmatch(name):
        raise ApiError(400, f"Metric name '{name}' is not valid.")
    check_filter(call, metric.get("filter", ""))
    kind, value = described.get("metricKind", "DELTA"), described.get("valueType", "INT64")
    if kind != "DELTA" or value not in ("INT64", "DISTRIBUTION"):
        raise ApiError(400, "A log-based metric is DELTA, and INT64 or DISTRIBUTION.")
    if (value == "DISTRIBUTION") != ("valueExtractor" in metric):
        raise ApiError(400, "A valueExtractor is for DISTRIBUTION, which needs one.")
    if {label["key"] for label in described.get("labels", [])} != set(metric.get("labelExtractors", {})):
        raise ApiError(400, "Every label needs an extractor, and every extractor a label.")


def _described(call: Call, metric: Resource) -> Resource:
    """Return a metric with what Google fills in."""
    project = call.name.split("/")[1]
    kind = f"logging.googleapis.com/user/{metric['name']}"
    defaults = {"metricKind": "DELTA", "valueType": "INT64", "unit": "1", "type": kind}
    descriptor = (
        defaults | metric.get("metricDescriptor", {}) | {"name": f"projects/{project}/metricDescriptors/{kind}"}
    )
    shown = {**metric, "metricDescriptor": descriptor, "version": "V2", "updateTime": now()}
    return {"createTime": now(), **shown, "resourceName": f"projects/{project}/metrics/{metric['name']}"}


@serves("logging.projects.metrics.create", permission="logging.logMetrics.create")
def _create_metric(call: Call) -> Resource:
    body = call.body or {}
    _check_metric(call, body)
    key = _key(f"{call.name}/metrics/{body['name']}")
    if key in call.state.resources:
        raise ApiError(409, f"Metric {body['name']} already exists")
    call.state.resources[key] = _described(call, body)
    return call.state.resources[key]


@serves("logging.projects.metrics.update", permission="logging.logMetrics.update")
def _replace_metric(call: Call) -> Resource:
    metric, body = _need(call), call.body or {}
    if body.get("name") != metric["name"]:
        raise ApiError(400, "The metric's name in the body must be the one in the URL.")
    _check_metric(call, body)
    after = _described(call, patched(body, {"createTime": metric["createTime"]}))
    for field in ("metricKind", "valueType"):
        if after["metricDescriptor"][field] != metric["metricDescriptor"][field]:
            raise ApiError(400, f"The {field} of a metric cannot be changed.")
    call.state.resources[_key(call.name)] = after
    return after
