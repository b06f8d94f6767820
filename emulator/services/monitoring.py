"""Cloud Monitoring: notification channels, alert policies, uptime checks. Points are checked and dropped."""

import re
import secrets
from collections.abc import Iterator

from emulator.cloud import Call, serves
from emulator.errors import ApiError
from emulator.filters import check_promql, promql_name
from emulator.services.logs import check_filter
from emulator.state import Resource, now, public

# What each type of channel is told, all of it mandatory:
# https://cloud.google.com/monitoring/alerts/using-channels-api#channel-types
_CHANNELS = {
    "email": {"email_address"},
    "pubsub": {"topic"},
    "sms": {"number"},
    "webhook_tokenauth": {"url"},
    "pagerduty": {"service_key"},
}
# Google's metrics that policies may be about, as in the lists under https://cloud.google.com/monitoring/api/metrics.
_METRICS = {
    promql_name(metric)
    for metric in (
        "monitoring.googleapis.com/uptime_check/check_passed",
        "monitoring.googleapis.com/uptime_check/time_until_ssl_cert_expires",
        "cloudsql.googleapis.com/database/cpu/utilization",
        "cloudsql.googleapis.com/database/disk/utilization",
        "cloudsql.googleapis.com/database/memory/utilization",
        "cloudsql.googleapis.com/database/network/connections",
        "cloudsql.googleapis.com/database/postgresql/num_backends",
        "compute.googleapis.com/instance/cpu/utilization",
    )
}
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_DURATION = re.compile(r"(\d+)s")
_CONDITIONS = {
    "conditionPrometheusQueryLanguage",
    "conditionMatchedLog",
    "conditionThreshold",
    "conditionAbsent",
    "conditionMonitoringQueryLanguage",
    "conditionSql",
}
_OUTPUTS = {"name", "creationRecord", "mutationRecord", "mutationRecords", "verificationStatus", "validity"}


@serves("monitoring.projects.timeSeries.create", permission="monitoring.timeSeries.create")
def _write(_call: Call) -> Resource:
    return {}


def _key(name: str) -> str:
    return f"monitoring/{name}"


def _invalid(field: str, why: str) -> ApiError:
    return ApiError(400, f"Field {field} had an invalid value: {why}")


def _seconds(field: str, text: str) -> int:
    found = _DURATION.fullmatch(text)
    if not found:
        raise _invalid(field, f"'{text}' is not a whole number of seconds such as 60s.")
    return int(found[1])


def _need(call: Call, name: str) -> Resource:
    found = call.state.resources.get(_key(name))
    if found is None:
        raise ApiError(404, f"{name} was not found.")
    return found


def _of(call: Call, collection: str) -> list[Resource]:
    project = "/".join(call.name.split("/")[:2])
    return [item for _, item in call.state.under(_key(f"{project}/{collection}/"))]


def _check_labels(body: Resource) -> None:
    labels = body.get("userLabels", {})
    for key, value in labels.items():
        if not (_LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value)) or len(labels) > 64:
            raise _invalid("user_labels", f"'{key}={value}'; lower-case letters, digits, _ and -, at most 64 of them.")


# Channels


def _check_channel(_call: Call, channel: Resource) -> None:
    kind = channel.get("type", "")
    if kind not in _CHANNELS:
        raise _invalid("notification_channel.type", f"there is no type '{kind}'.")
    if set(channel.get("labels", {})) != _CHANNELS[kind]:
        raise _invalid("notification_channel.labels", f"the type {kind} has {sorted(_CHANNELS[kind])}.")
    if kind == "email" and "@" not in channel["labels"]["email_address"]:
        raise _invalid("notification_channel.labels.email_address", f"'{channel['labels']['email_address']}'.")


@serves("monitoring.projects.notificationChannels.delete", permission="monitoring.notificationChannels.delete")
def _delete_channel(call: Call) -> Resource:
    _need(call, call.name)
    users = [policy for policy in _of(call, "alertPolicies") if call.name in policy.get("notificationChannels", [])]
    if users and not call.parameters.get("force"):
        raise ApiError(
            400,
            f"Notification channel '{call.name}' is used by {users[0]['name']}. Use force=true to delete it.",
            status="FAILED_PRECONDITION",
        )
    for policy in users:
        policy["notificationChannels"].remove(call.name)
    del call.state.resources[_key(call.name)]
    return {}


# Alert policies


def _check_policy(call: Call, policy: Resource) -> None:
    conditions = policy.get("conditions", [])
    if not 1 <= len(conditions) <= 6:
        raise _invalid("alert_policy.conditions", "a policy has one to six.")
    if not policy.get("displayName") or policy.get("combiner", "COMBINE_UNSPECIFIED") == "COMBINE_UNSPECIFIED":
        raise _invalid("alert_policy", "displayName and combiner are required.")
    kinds = [_check_condition(call, condition) for condition in conditions]
    matches_log = "conditionMatchedLog" in kinds
    if matches_log and len(kinds) > 1:
        raise _invalid("alert_policy.conditions", "one that matches logs must be the only one.")
    if matches_log != bool(policy.get("alertStrategy", {}).get("notificationRateLimit")):
        raise _invalid("alert_policy.alert_strategy", "a notificationRateLimit is for log matches, which need one.")
    if policy.get("alertStrategy", {}).get("autoClose"):
        seconds = _seconds("alert_policy.alert_strategy.auto_close", policy["alertStrategy"]["autoClose"])
        if not 1800 <= seconds <= 7 * 86400:
            raise _invalid("alert_policy.alert_strategy.auto_close", "30 minutes to 7 days.")
    documentation = policy.get("documentation", {})
    if (
        documentation.get("mimeType", "text/markdown") != "text/markdown"
        or len(documentation.get("content", "")) > 8192
    ):
        raise _invalid("alert_policy.documentation", "text/markdown of at most 8192 characters.")
    for channel in policy.get("notificationChannels", []):
        if _key(channel) not in call.state.resources:
            raise ApiError(404, f"Supplied notification channel does not exist: {channel}.")


def _check_condition(call: Call, condition: Resource) -> str:
    """Return which kind of condition it is; raises `ApiError` for one that Google refuses."""
    kinds = _CONDITIONS & condition.keys()
    if len(kinds) != 1 or not condition.get("displayName"):
        raise _invalid("alert_policy.conditions", "each has a displayName and is of exactly one kind.")
    (kind,) = kinds
    content = condition[kind]
    if kind == "conditionPrometheusQueryLanguage":
        _check_promql(call, content)
    elif kind == "conditionMatchedLog":
        check_filter(call, content.get("filter", ""))
    else:
        raise ApiError(501, f"The emulated cloud has no {kind}.")
    return kind


def _check_promql(call: Call, content: Resource) -> None:
    try:
        metrics = check_promql(content.get("query", ""))
    except ValueError as error:
        raise _invalid("condition_prometheus_query_language.query", str(error)) from error
    interval = _seconds("evaluation_interval", content.get("evaluationInterval", "30s"))
    if interval <= 0 or interval % 30:
        raise _invalid("evaluation_interval", "a positive multiple of 30 seconds.")
    _seconds("duration", content.get("duration", "0s"))
    if content.get("disableMetricValidation"):
        return
    made = call.state.under(f"logging/{'/'.join(call.name.split('/')[:2])}/metrics/")
    known = _METRICS | {promql_name(metric["metricDescriptor"]["type"]) for _, metric in made}
    for metric in metrics:
        if metric not in known:
            raise ApiError(
                404,
                f'Cannot find metric(s) that match type = "{metric}". If a metric was created recently, it could take '
                "up to 10 minutes to become available. Please try again soon.",
            )


def _name_conditions(policy: Resource, before: Resource) -> None:
    """Give each condition a name; one that comes with a name must have had it before."""
    known = {condition["name"] for condition in before.get("conditions", [])}
    for condition in policy["conditions"]:
        if condition.get("name", "") not in known | {""}:
            raise _invalid("alert_policy.conditions.name", f"there is no {condition['name']}.")
        condition.setdefault("name", f"{policy['name']}/conditions/{secrets.randbelow(10**19)}")


# Uptime checks


def _check_uptime(call: Call, check: Resource) -> None:
    project = call.name.split("/")[1]
    target = check.get("monitoredResource", {})
    labels = target.get("labels", {})
    if not check.get("displayName"):
        raise _invalid("uptime_check_config.display_name", "it is required.")
    if target.get("type") != "uptime_url" or labels.get("project_id") != project or not labels.get("host"):
        raise _invalid("uptime_check_config.monitored_resource", "an uptime_url has this project_id and a host.")
    if len(check.keys() & {"httpCheck", "tcpCheck"}) != 1:
        raise _invalid("uptime_check_config", "exactly one of httpCheck and tcpCheck.")
    if _seconds("period", check.get("period", "60s")) not in (60, 300, 600, 900):
        raise _invalid("uptime_check_config.period", "60s, 300s, 600s or 900s.")
    if not 1 <= _seconds("timeout", check.get("timeout", "")) <= 60:
        raise _invalid("uptime_check_config.timeout", "1 to 60 seconds.")
    http = check.get("httpCheck", {})
    if "httpCheck" in check:
        secure = http.get("useSsl", False)
        http.setdefault("path", "/")
        http.setdefault("port", 443 if secure else 80)
        http.setdefault("requestMethod", "GET")
    if http.get("validateSsl") and not http.get("useSsl"):
        raise _invalid("uptime_check_config.http_check.validate_ssl", "it needs use_ssl.")
    check.setdefault("period", "60s")
    check.setdefault("checkerType", "STATIC_IP_CHECKERS")


@serves("monitoring.projects.uptimeCheckConfigs.delete", permission="monitoring.uptimeCheckConfigs.delete")
def _delete_uptime(call: Call) -> Resource:
    _need(call, call.name)
    identity = call.name.rpartition("/")[2]
    users = [policy["name"] for policy in _of(call, "alertPolicies") if identity in _texts(policy)]
    if users:
        raise ApiError(400, f"Uptime check {call.name} is referenced by {users[0]}.", status="FAILED_PRECONDITION")
    del call.state.resources[_key(call.name)]
    return {}


def _texts(policy: Resource) -> str:
    return " ".join(str(text) for condition in policy["conditions"] for text in _leaves(condition))


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value


# What the three have in common

_COLLECTIONS = {
    "notificationChannels": (_check_channel, {"type"}),
    "alertPolicies": (_check_policy, set()),
    "uptimeCheckConfigs": (_check_uptime, {"monitoredResource"}),
}


def _identity(collection: str, body: Resource) -> str:
    number = str(10**18 + secrets.randbelow(9 * 10**18))
    if collection != "uptimeCheckConfigs":
        return number
    return re.sub(r"[^a-z0-9]+", "-", body["displayName"].lower()).strip("-")[:40] + "-" + secrets.token_urlsafe(8)


@serves("monitoring.projects.notificationChannels.create", permission="monitoring.notificationChannels.create")
@serves("monitoring.projects.alertPolicies.create", permission="monitoring.alertPolicies.create")
@serves("monitoring.projects.uptimeCheckConfigs.create", permission="monitoring.uptimeCheckConfigs.create")
def _create(call: Call) -> Resource:
    collection = call.method.id.split(".")[-2]
    check, _ = _COLLECTIONS[collection]
    body = dict(call.body or {})
    if body.keys() & _OUTPUTS or any("name" in condition for condition in body.get("conditions", [])):
        raise _invalid(collection, f"{sorted(_OUTPUTS)} and the names of conditions are assigned by the server.")
    _check_labels(body)
    check(call, body)
    body["name"] = f"{call.name}/{collection}/{_identity(collection, body)}"
    if collection != "uptimeCheckConfigs":
        body = {"enabled": True, **body, "creationRecord": {"mutateTime": now(), "mutatedBy": call.principal}}
    if collection == "alertPolicies":
        _name_conditions(body, {})
    call.state.resources[_key(body["name"])] = body
    return body


@serves("monitoring.projects.notificationChannels.get", permission="monitoring.notificationChannels.get")
@serves("monitoring.projects.alertPolicies.get", permission="monitoring.alertPolicies.get")
@serves("monitoring.projects.uptimeCheckConfigs.get", permission="monitoring.uptimeCheckConfigs.get")
def _get(call: Call) -> Resource:
    return _need(call, call.name)


@serves("monitoring.projects.notificationChannels.list", permission="monitoring.notificationChannels.list")
@serves("monitoring.projects.alertPolicies.list", permission="monitoring.alertPolicies.list")
@serves("monitoring.projects.uptimeCheckConfigs.list", permission="monitoring.uptimeCheckConfigs.list")
def _list(call: Call) -> Resource:
    collection = call.method.id.split(".")[-2]
    if call.parameters.get("filter"):
        raise ApiError(501, "The emulated cloud does not filter these lists.")
    return call.page([public(item) for item in _of(call, collection)], collection, "pageSize")


@serves("monitoring.projects.notificationChannels.patch", permission="monitoring.notificationChannels.update")
@serves("monitoring.projects.alertPolicies.patch", permission="monitoring.alertPolicies.update")
@serves("monitoring.projects.uptimeCheckConfigs.patch", permission="monitoring.uptimeCheckConfigs.update")
def _patch(call: Call) -> Resource:
    collection = call.method.id.split(".")[-2]
    check, fixed = _COLLECTIONS[collection]
    current, body = _need(call, call.name), call.body or {}
    schema = call.cloud.directory.documents["monitoring.v3"].schemas[call.method.request or ""]["properties"]
    masked = [field for field in call.parameters.get("updateMask", "").split(",") if field]
    wrong = [field for field in masked if field not in schema or field in _OUTPUTS | fixed]
    if wrong or not masked:
        raise _invalid("update_mask", f"it must name fields that can change, and not {wrong}.")
    changed = {field: value for field, value in current.items() if field not in masked}
    changed |= {field: body[field] for field in masked if body.get(field) is not None}
    _check_labels(changed)
    check(call, changed)
    if collection == "alertPolicies":
        _name_conditions(changed, current)
        changed["mutationRecord"] = {"mutateTime": now(), "mutatedBy": call.principal}
    call.state.resources[_key(call.name)] = changed
    return changed


@serves("monitoring.projects.alertPolicies.delete", permission="monitoring.alertPolicies.delete")
def _delete(call: Call) -> Resource:
    _need(call, call.name)
    del call.state.resources[_key(call.name)]
    return {}
