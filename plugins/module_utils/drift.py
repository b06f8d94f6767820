"""What differs between the wanted and the actual shape of a resource. Pure functions on JSON values.

Mappings are compared as subsets: a field left out of the wanted side is left alone. Lists are compared whole, by key
where their elements have one. A null on the wanted side is an unset field. Google leaves out fields that hold their
type's zero value, so a wanted zero equals an absent field, except inside lists that are compared whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json, Node

# A key is given without the version in use, which Google names beside it.
KEY_VERSION = re.compile(r"(?<=/cryptoKeys/)([^/]+)/cryptoKeyVersions/\d+$")
COMPUTE_URL = re.compile(r"https://(www|compute)\.googleapis\.com/compute/\w+/")
SECRET_FIELD = re.compile(r"password$|^rawKey$|^rsaEncryptedKey$|privateKey$|clientKey$|secret$", re.IGNORECASE)
MASK = "VALUE_NOT_SHOWN"


class Difference(NamedTuple):
    """One differing field. Elements of keyed lists are named: `nats[main].logConfig.enable`."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Rules:
    """What schemas do not say about comparing. Paths are field names joined by dots, without list positions."""

    # Lists whose elements are told apart by a field, in any order.
    keyed: Mapping[str, str] = field(default_factory=dict)
    # Lists whose order means nothing.
    sets: frozenset[str] = frozenset()
    # Lists compared element by element, as Google adds fields to the elements.
    positional: frozenset[str] = frozenset()
    # Numbers that Google may have let grow beyond what was asked.
    minimums: frozenset[str] = frozenset()
    # Fields that are never read back as they were written.
    write_only: frozenset[str] = frozenset()
    # Text that Google returns in upper case.
    upper_case: frozenset[str] = frozenset()


def normalise_link(text: str, project: str) -> str:
    """Return a full or partial link of a Compute Engine resource as `projects/...`, any other text as it is."""
    path = KEY_VERSION.sub(r"\1", COMPUTE_URL.sub("", text))
    return f"projects/{project}/{path}" if path.startswith(("global/", "regions/", "zones/")) else path


def mask(value: Any) -> Any:
    """Return the value with the content of secret fields replaced."""
    if isinstance(value, dict):
        return {
            key: MASK if SECRET_FIELD.search(key) and content and not isinstance(content, dict) else mask(content)
            for key, content in value.items()
        }
    return [mask(element) for element in value] if isinstance(value, list) else value


def masked(difference: Difference) -> Difference:
    """Return the difference with secrets replaced, be it a secret field itself or something that has one."""
    key = difference.field.rsplit(".", 1)[-1]
    return Difference(difference.field, *(mask({key: side})[key] for side in difference[1:]))


@dataclass(frozen=True)
class Comparison:
    """How resources of one kind in one project are compared."""

    node: Node
    rules: Rules
    project: str

    def differences(self, wanted: Json, actual: Json) -> list[Difference]:
        """Return every field of `wanted` that `actual` does not have."""
        return self._fields(wanted, actual, self.node, "", "")

    def merged(self, wanted: Json, actual: Json) -> Json:
        """Return `actual` with `wanted` laid over it: what the resource looks like once it is brought to `wanted`."""
        merged: Json = self._merge(wanted, actual, self.node, "")
        return merged

    def readable(self, wanted: Json) -> Json:
        """Return `wanted` without what Google never gives back as it was written."""
        kept: Json = self._readable(wanted, "")
        return kept

    def changes(self, wanted: Json, actual: Json) -> Json:
        """Return the least a JSON merge patch has to hold: nulls unset, lists are whole."""
        return self._changes(wanted, actual, self.node, "")

    def without_outputs(self, value: Any, node: Node | None = None) -> Any:
        """Return the value without fields that only Google writes."""
        node = node or self.node
        if isinstance(value, dict):
            kept = {key: content for key, content in value.items() if not node.child(key).is_output and key != "kind"}
            return {key: self.without_outputs(content, node.child(key)) for key, content in kept.items()}
        if isinstance(value, list):
            return [self.without_outputs(element, node.items) for element in value]
        return value

    def _readable(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            paths = {key: f"{path}.{key}" if path else key for key in value}
            return {k: self._readable(v, paths[k]) for k, v in value.items() if paths[k] not in self.rules.write_only}
        return [self._readable(element, path) for element in value] if isinstance(value, list) else value

    def _fields(self, wanted: Json, actual: Json, node: Node, name: str, path: str) -> list[Difference]:
        found = []
        for key, content in wanted.items():
            child_name = f"{name}.{key}" if name else key
            child_path = f"{path}.{key}" if path else key
            if child_path not in self.rules.write_only:
                found += self._compare(content, actual.get(key), node.child(key), child_name, child_path)
        return found

    def _compare(self, wanted: Any, actual: Any, node: Node, name: str, path: str) -> list[Difference]:
        if isinstance(wanted, dict) and isinstance(actual, dict | None):
            return self._fields(wanted, actual or {}, node, name, path)
        if isinstance(wanted, list) and isinstance(actual, list | None):
            actual = actual or []
            key = self.rules.keyed.get(path)
            if key:
                return self._compare_keyed(wanted, actual, key, node, name, path)
            if path in self.rules.positional and len(wanted) == len(actual):
                found = []
                for index, (left, right) in enumerate(zip(wanted, actual, strict=True)):
                    found += self._compare(left, right, node.items, f"{name}[{index}]", path)
                return found
        elif self._same_scalar(wanted, actual, node, path):
            return []
        if self._canonical(wanted, node, path) == self._canonical(actual, node, path):
            return []
        return [Difference(name, actual, wanted)]

    def _compare_keyed(
        self, wanted: list[Any], actual: list[Any], key: str, node: Node, name: str, path: str
    ) -> list[Difference]:
        before = {element.get(key): element for element in actual}
        after = {element.get(key): element for element in wanted}
        found = []
        for value in [*before, *(value for value in after if value not in before)]:
            where = f"{name}[{value}]"
            if value in before and value in after:
                found += self._compare(after[value], before[value], node.items, where, path)
            else:
                found.append(Difference(where, before.get(value), after.get(value)))
        return found

    def _same_scalar(self, wanted: Any, actual: Any, node: Node, path: str) -> bool:
        if actual is None or wanted is None:
            # A 64-bit zero is text.
            is_number = node.format in {"int64", "uint64"}
            return all(not side or (is_number and str(side) == "0") for side in (wanted, actual))
        if path in self.rules.minimums:
            return int(actual) >= int(wanted)
        return False

    def _canonical(self, value: Any, node: Node, path: str) -> Any:
        """Return a form in which equal values are equal, however they are spelled."""
        if isinstance(value, dict):
            return {
                key: self._canonical(content, node.child(key), f"{path}.{key}")
                for key, content in value.items()
                if content is not None and key != "kind"
            }
        if isinstance(value, list):
            elements = [self._canonical(element, node.items, path) for element in value]
            return sorted(elements, key=_sort_key) if path in self.rules.sets else elements
        if isinstance(value, str):
            return self._canonical_text(value, node, path)
        # bool is an int to Python: true is not 1 here.
        return (type(value).__name__, value) if isinstance(value, bool) else value

    def _canonical_text(self, value: str, node: Node, path: str) -> Any:
        if node.format in {"int64", "uint64"} and re.fullmatch(r"-?\d+", value):
            return int(value)
        if node.format == "google-duration" and re.fullmatch(r"-?\d+(\.\d+)?s", value):
            return Decimal(value[:-1])
        if path in self.rules.upper_case:
            return value.upper()
        return normalise_link(value, self.project)

    def _merge(self, wanted: Any, actual: Any, node: Node, path: str) -> Any:
        if isinstance(wanted, dict):
            merged = dict(actual) if isinstance(actual, dict) else {}
            for key, content in wanted.items():
                child_path = f"{path}.{key}" if path else key
                if content is None:
                    merged.pop(key, None)
                else:
                    merged[key] = self._merge(content, merged.get(key), node.child(key), child_path)
            return merged
        if isinstance(wanted, list):
            beside: list[Any] = [None] * len(wanted)
            key = self.rules.keyed.get(path)
            if key:
                before = {element.get(key): element for element in actual or []}
                beside = [before.get(element.get(key)) for element in wanted]
            elif path in self.rules.positional and len(wanted) == len(actual or []):
                beside = actual or []
            return [self._merge(left, right, node.items, path) for left, right in zip(wanted, beside, strict=True)]
        if path in self.rules.minimums and wanted is not None and actual is not None:
            return max(wanted, actual, key=int)
        return wanted

    def _changes(self, wanted: Json, actual: Json, node: Node, path: str) -> Json:
        changes: Json = {}
        for key, content in wanted.items():
            child_path = f"{path}.{key}" if path else key
            child, before = node.child(key), actual.get(key)
            if child_path in self.rules.write_only or not self._compare(content, before, child, key, child_path):
                continue
            if isinstance(content, dict) and isinstance(before, dict):
                changes[key] = self._changes(content, before, child, child_path)
            else:
                changes[key] = self.without_outputs(self._merge(content, before, child, child_path), child)
        return changes


def _sort_key(element: Any) -> str:
    return json.dumps(element, sort_keys=True, default=str)
