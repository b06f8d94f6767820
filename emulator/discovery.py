"""Requests and responses checked against the discovery documents that google-api-python-client carries."""

import dataclasses
import functools
import importlib.resources
import json
import re
import urllib.parse
from collections.abc import Container, Iterator, Mapping
from typing import Any

from emulator.errors import ApiError

APIS = (
    "compute.v1",
    "dns.v1",
    "sqladmin.v1",
    "sqladmin.v1beta4",
    "storage.v1",
    "iam.v1",
    "iamcredentials.v1",
    "cloudbilling.v1",
    "cloudresourcemanager.v1",
    "cloudresourcemanager.v3",
    "cloudkms.v1",
    "serviceusage.v1",
    "serviceusage.v1beta1",
    "servicenetworking.v1",
    "secretmanager.v1",
    "logging.v2",
    "monitoring.v3",
    "monitoring.v1",
    "bigquery.v2",
)
# Sent by Google's own clients and accepted everywhere, though most documents do not list them.
_GLOBAL_PARAMETERS = {"returnPartialSuccess", "uploadType", "upload_id", "userProject", "supportsAllDrives"}
REGIONAL_HOST = re.compile(r"([a-z]+)\.[a-z0-9-]+\.rep\.googleapis\.com")
_INTEGER_RANGES = {
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
}
_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """One method of one API, as its discovery document describes it."""

    id: str
    api: str
    service: str
    verb: str
    template: str
    parameters: Mapping[str, Any]
    request: str | None
    response: str | None

    @functools.cached_property
    def path(self) -> re.Pattern[str]:
        """What a percent-encoded path must look like; compiled at first use, for there are many methods."""
        return _path_pattern(self.template, self.parameters)


class Document:
    """One discovery document: its methods and schemas."""

    def __init__(self, api: str) -> None:
        source = importlib.resources.files("googleapiclient.discovery_cache") / "documents" / f"{api}.json"
        content = json.loads(source.read_text(encoding="utf-8"))
        self.api = api
        self.service: str = urllib.parse.urlsplit(content["rootUrl"]).netloc
        self.schemas: dict[str, Any] = content["schemas"]
        self.common_parameters: dict[str, Any] = content["parameters"]
        self._prefix = "/" + content["servicePath"]
        # A custom verb such as `{+name}:access` before the bare name that would swallow it.
        described = sorted(_methods(content), key=lambda method: ":" not in method["path"])
        self.methods = [self._method(method) for method in described]

    def _method(self, method: dict[str, Any]) -> Method:
        parameters = method.get("parameters", {})
        return Method(
            id=method["id"],
            api=self.api,
            service=self.service,
            verb=method["httpMethod"],
            template=self._prefix + method["path"],
            parameters=parameters,
            request=method.get("request", {}).get("$ref"),
            response=method.get("response", {}).get("$ref"),
        )

    def kind(self, schema: str) -> str:
        """Return the value that Google puts in a schema's `kind`, such as `compute#network`."""
        kind: str = self.schemas[schema]["properties"]["kind"]["default"]
        return kind

    def check_parameters(self, method: Method, query: list[tuple[str, str]]) -> dict[str, Any]:
        """Return typed query parameters; raises `ApiError` 400 for unknown, ill-typed or missing ones."""
        found: dict[str, Any] = {}
        for name, text in query:
            described = method.parameters.get(name) or self.common_parameters.get(name)
            if described is None:
                if name in _GLOBAL_PARAMETERS or name.startswith("$"):
                    continue
                raise _bad_payload(f'Unknown name "{name}": Cannot bind query parameter.')
            value = _parse_parameter(name, text, described)
            if described.get("repeated"):
                found.setdefault(name, []).append(value)
            else:
                found[name] = value
        for name, described in method.parameters.items():
            if described.get("required") and described["location"] == "query" and name not in found:
                raise ApiError(400, f"Required parameter: {name}", reason="required")
        return found

    def check_request(self, method: Method, body: Any) -> None:
        """Raises `ApiError` 400 unless the body fits the method's request schema."""
        if method.request is None:
            if body:
                raise _bad_payload("this method takes no body.")
            return
        self._check(self.schemas[method.request], body, "", method)

    def check_value(self, schema: str, value: Any) -> None:
        """Raises `ApiError` 400 unless a value fits a schema."""
        self._check(self.schemas[schema], value, "", None)

    def check_response(self, method: Method, body: Any) -> None:
        """Raises `ApiError` when the emulator's own answer does not fit the method's response schema."""
        if method.response is not None:
            self._check(self.schemas[method.response], body, "", None)

    def _check(self, schema: dict[str, Any], value: Any, where: str, method: Method | None) -> None:
        """Walks a value along a schema; `method` is None for a response."""
        if "$ref" in schema:
            schema = self.schemas[schema["$ref"]]
        kind = schema.get("type", "any")
        if value is None or kind == "any":
            return
        if kind in ("integer", "string") and schema.get("format") in _INTEGER_RANGES:
            _check_integer(value, schema["format"], where)
            return
        if not isinstance(value, _JSON_TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
            raise _bad_payload(f"Invalid value at '{where}' (TYPE_{kind.upper()}), {json.dumps(value)[:200]}")
        if isinstance(value, dict):
            self._check_object(schema, value, where, method)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self._check(schema["items"], item, f"{where}[{index}]", method)
        elif "enum" in schema and value not in schema["enum"]:
            raise _bad_payload(f"Invalid value at '{where}' (enum), \"{value}\"")
        elif method is not None and "pattern" in schema and not re.fullmatch(schema["pattern"], str(value)):
            raise ApiError(
                400,
                f"Invalid value for field 'resource.{where}': '{value}'. "
                f"Must be a match of regex '{schema['pattern']}'",
            )

    def _check_object(self, schema: dict[str, Any], value: dict[str, Any], where: str, method: Method | None) -> None:
        properties = schema.get("properties", {})
        for name, item in value.items():
            place = f"{where}.{name}" if where else name
            described = properties.get(name, schema.get("additionalProperties"))
            if described is None:
                at = f" at '{where}'" if where else ""
                raise _bad_payload(f'Unknown name "{name}"{at}: Cannot find field.')
            # Google's own clients send the kind along, which has one value only.
            is_kind = name == "kind" and item == described.get("default")
            if method is not None and described.get("readOnly") and method.verb == "POST" and not is_kind:
                raise _bad_payload(f"'{place}' is output only: it cannot be set.")
            self._check(described, item, place, method)
        if method is not None:
            for name, described in properties.items():
                if method.id in described.get("annotations", {}).get("required", ()) and not value.get(name):
                    raise ApiError(400, f"Required field '{name}' not specified", reason="required")


@functools.cache
def _load(api: str) -> Document:
    return Document(api)


class Directory:
    """Finds the method that a request means, over all documents."""

    def __init__(self, emulated: Container[str]) -> None:
        self.documents = {api: _load(api) for api in APIS}
        self.services = {document.service for document in self.documents.values()}
        self._emulated = [
            method for document in self.documents.values() for method in document.methods if method.id in emulated
        ]

    def find(self, host: str, verb: str, path: str) -> tuple[Method, dict[str, str]]:
        """Return the method and its decoded path parameters.

        `path` is still percent-encoded. Raises `ApiError` 501 for a method Google has and the emulator has not,
        404 for one that nobody has.
        """
        regional = REGIONAL_HOST.fullmatch(host)
        service = f"{regional[1]}.googleapis.com" if regional else host
        for method in self._emulated:
            found = (
                method.verb == verb and service in (method.service, "www.googleapis.com") and method.path.match(path)
            )
            if found:
                return method, _path_parameters(method, found)
        for document in self.documents.values():
            for method in document.methods:
                if method.verb == verb and service == method.service and method.path.match(path):
                    raise ApiError(501, f"The emulated cloud does not have the method {method.id}.")
        raise ApiError(404, f"The requested URL {path} was not found on this server.")


def _methods(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from resource.get("methods", {}).values()
    for nested in resource.get("resources", {}).values():
        yield from _methods(nested)


def _path_pattern(template: str, parameters: Mapping[str, Any]) -> re.Pattern[str]:
    parts = []
    for part in re.split(r"(\{\+?\w+\})", template):
        if not part.startswith("{"):
            parts.append(re.escape(part))
            continue
        name = part.strip("{+}")
        inside = parameters[name].get("pattern", ".+").strip("^$") if part.startswith("{+") else "[^/]+"
        parts.append(f"(?P<{name}>{inside})")
    return re.compile("".join(parts) + "$")


def _path_parameters(method: Method, found: re.Match[str]) -> dict[str, str]:
    values = {name: urllib.parse.unquote(text) for name, text in found.groupdict().items()}
    for name, value in values.items():
        pattern = method.parameters[name].get("pattern")
        if pattern and not re.fullmatch(pattern, value):
            raise ApiError(400, f"Invalid value for field '{name}': '{value}'. Must be a match of regex '{pattern}'")
    return values


def _parse_parameter(name: str, text: str, described: dict[str, Any]) -> Any:
    kind = described["type"]
    if kind == "boolean":
        if text.lower() not in ("true", "false"):
            raise ApiError(400, f"Invalid value '{text}' for boolean parameter '{name}'.")
        return text.lower() == "true"
    if kind == "integer" or described.get("format") in _INTEGER_RANGES:
        _check_integer(text, described.get("format", "int64"), name)
        return int(text)
    if "enum" in described and text not in [*described["enum"], *(["media"] if name == "alt" else [])]:
        raise ApiError(400, f"Invalid value '{text}' for parameter '{name}'. Values are: {described['enum']}")
    return text


def _check_integer(value: Any, form: str, where: str) -> None:
    """64-bit integers travel as strings, 32-bit ones as numbers; Google accepts either for each."""
    lowest, highest = _INTEGER_RANGES[form]
    written = isinstance(value, str) and re.fullmatch(r"-?\d+", value)
    counted = isinstance(value, int) and not isinstance(value, bool)
    if not (written or counted) or not lowest <= int(value) <= highest:
        raise _bad_payload(f"Invalid value at '{where}' (TYPE_{form.upper()}), {json.dumps(value)}")


def _bad_payload(message: str) -> ApiError:
    return ApiError(400, f"Invalid JSON payload received. {message}")
