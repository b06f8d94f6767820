"""Google's discovery documents: URLs, verbs and schemas of its REST APIs.

The documents ship inside google-api-python-client. Only those of the APIs in use are loaded, once per process;
the largest, compute.v1, takes a tenth of a second.
Format: https://developers.google.com/discovery/v1/reference/apis
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

Json = dict[str, Any]

# POST methods that change nothing.
READING_METHODS = frozenset({"getIamPolicy", "wait"})


@functools.cache
def document(api: str) -> Json:
    """Return the discovery document of an API, named as `compute.v1`."""
    documents = importlib.resources.files("googleapiclient.discovery_cache") / "documents"
    loaded: Json = json.loads((documents / f"{api}.json").read_text("utf-8"))
    return loaded


@dataclass(frozen=True)
class Method:
    """One REST method; `id` is how the document's annotations name it."""

    name: str
    id: str
    verb: str
    host: str
    path: str
    query: frozenset[str]
    request: str | None
    response: str | None

    @property
    def path_parameters(self) -> list[str]:
        """Names in the path, `+name` for one whose slashes stay."""
        return re.findall(r"{(\+?\w+)}", self.path)

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does no more than sending it once.

        Compute Engine recognises a repeated requestId: https://cloud.google.com/compute/docs/api/request-ids
        """
        return self.verb in {"GET", "PUT", "DELETE"} or self.name in READING_METHODS or "requestId" in self.query

    def expand(self, parameters: Mapping[str, str]) -> str:
        """Return the path with its parameters filled in."""
        path = self.path
        for parameter in self.path_parameters:
            value = parameters[parameter]
            path = path.replace(f"{{{parameter}}}", quote(value, safe="/@:" if parameter.startswith("+") else "@:"))
        return path

    def url(self, parameters: Mapping[str, str]) -> str:
        """Return the whole URL."""
        return self.host + self.expand(parameters)


def methods(api: str, collection: str) -> Json:
    """Return the methods of a collection such as `projects.secrets` as the document has them."""
    node = document(api)
    for part in collection.split("."):
        node = node["resources"][part]
    found: Json = node["methods"]
    return found


@functools.cache
def method(api: str, collection: str, name: str) -> Method:
    """Return a method of a collection; KeyError when the API has none of that name."""
    found = methods(api, collection)[name]
    return Method(
        name=name,
        id=found["id"],
        verb=found["httpMethod"],
        host=document(api)["rootUrl"] + document(api)["servicePath"],
        path=found["path"],
        query=frozenset(k for k, p in found.get("parameters", {}).items() if p["location"] == "query"),
        request=found.get("request", {}).get("$ref"),
        response=found.get("response", {}).get("$ref"),
    )


@dataclass(frozen=True)
class Node:
    """Schema of one value, with its references resolved. An unknown schema has no type and no fields."""

    api: str = ""
    schema: Json = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, api: str, name: str) -> Node:
        """Return the schema of that name."""
        return cls(api, document(api)["schemas"][name])

    def _node(self, schema: Json | None) -> Node:
        if schema and "$ref" in schema:
            # What stands beside a reference, readOnly for instance, belongs to the field.
            return Node(self.api, {**document(self.api)["schemas"][schema["$ref"]], **schema})
        return Node(self.api, schema or {})

    @property
    def type(self) -> str:
        """JSON type, `any` when unknown."""
        return str(self.schema.get("type", "any"))

    @property
    def format(self) -> str:
        """Google's refinement of the type: int64, google-duration."""
        return str(self.schema.get("format", ""))

    @property
    def is_output(self) -> bool:
        """Whether only Google writes it."""
        description = self.schema.get("description", "")
        return bool(self.schema.get("readOnly")) or description.startswith(("[Output Only]", "Output only."))

    @property
    def fields(self) -> Mapping[str, Any]:
        """Named fields, without those of a free mapping."""
        return self.schema.get("properties", {})

    @property
    def is_map(self) -> bool:
        """Whether any key goes, as with labels."""
        return "additionalProperties" in self.schema or (self.type in {"any", "object"} and not self.fields)

    def child(self, key: str) -> Node:
        """Return the schema of a field."""
        return self._node(self.fields.get(key, self.schema.get("additionalProperties")))

    @property
    def items(self) -> Node:
        """Schema of a list's elements."""
        return self._node(self.schema.get("items"))


PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}


def validate(node: Node, value: Any, path: str, problems: list[str], *, allow_outputs: bool = False) -> Any:
    """Check a value against its schema and return it as it goes over the wire.

    Problems are appended to the list, each with the path of the field and what to write instead.
    64-bit integers travel as strings; null is an unset field and always allowed. `allow_outputs` is for values that
    are compared only.
    """
    if value is None or node.type == "any":
        return value
    if node.format in {"int64", "uint64"} and node.type == "string" and not isinstance(value, bool):
        if not re.fullmatch(r"-?\d+", str(value)):
            problems.append(f"{path}: {value!r} is not a whole number")
        return str(value)
    expected = PYTHON_TYPES[node.type]
    if not isinstance(value, expected) or (isinstance(value, bool) and node.type != "boolean"):
        hint = "; write it in quotes" if node.type == "string" and isinstance(value, int | float) else ""
        problems.append(f"{path}: {value!r} is not of the type {node.type}{hint}")
        return value
    if isinstance(value, dict):
        return _validate_fields(node, value, path, problems, allow_outputs)
    if isinstance(value, list):
        return [
            validate(_with_pattern(node), element, f"{path}[{index}]", problems, allow_outputs=allow_outputs)
            for index, element in enumerate(value)
        ]
    if isinstance(value, str):
        _validate_text(node, value, path, problems)
    return value


def _validate_fields(node: Node, value: Json, path: str, problems: list[str], allow_outputs: bool) -> Json:
    encoded = {}
    for key, content in value.items():
        where = f"{path}.{key}" if path else key
        if key not in node.fields and not node.is_map:
            problems.append(f"{where}: no such field{_nearest(key, node.fields)}")
        elif node.child(key).is_output and not allow_outputs:
            problems.append(f"{where}: is set by Google, leave it out")
        else:
            encoded[key] = validate(node.child(key), content, where, problems, allow_outputs=allow_outputs)
    return encoded


def _with_pattern(node: Node) -> Node:
    """Return the schema of the elements; Google writes their pattern at the list."""
    pattern = node.schema.get("pattern")
    return Node(node.api, {**node.items.schema, "pattern": pattern}) if pattern else node.items


def _validate_text(node: Node, value: str, path: str, problems: list[str]) -> None:
    choices = node.schema.get("enum")
    pattern = node.schema.get("pattern")
    if choices and value not in choices:
        problems.append(f"{path}: {value!r} is not one of its values{_nearest(value, choices)}")
    if pattern and not re.fullmatch(pattern, value):
        problems.append(f"{path}: {value!r} does not match {pattern}")


def _nearest(name: str, known: Any) -> str:
    by_lower_case = {str(candidate).lower(): str(candidate) for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    if close:
        return f"; did you mean {by_lower_case[close[0]]}?"
    return f"; known are {', '.join(sorted(by_lower_case.values()))}" if len(by_lower_case) <= 12 else ""
