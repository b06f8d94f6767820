"""What holds for the comparison of any wanted with any actual resource, over the real schemas of all kinds."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Node, validate
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.drift import (
    SECRET_FIELD,
    Comparison,
    Difference,
    masked,
)
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import KINDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.plugins.module_utils.test_drift import merge_patch

NAMES = ("a", "b", "c")
TEXTS = st.sampled_from(["", "x", "Y", "global/networks/n", "projects/demo/global/networks/n", "7"])
SECRET = "hunter2"
DEEPEST = 4
# How a field stands on the wanted and on the actual side.
STANDS = st.sampled_from(["both", "both", "both", "same", "wanted", "actual", "null"])
thorough = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@functools.cache
def comparison(kind: str) -> Comparison:
    row = KINDS[kind]
    return Comparison(Node.of(row.api, row.schema), row.rules, "demo")


def telling(compare: Comparison, node: Node, path: str = "", depth: int = 0) -> set[str]:
    """Paths where comparing is more than equality, and those that lead there."""
    rules = compare.rules
    found = {*rules.keyed, *rules.sets, *rules.positional, *rules.minimums, *rules.upper_case} if not path else set()
    node = node.items if node.type == "array" else node
    for name in node.fields if depth <= DEEPEST else ():
        child, where = node.child(name), f"{path}.{name}" if path else name
        if child.format in {"int64", "google-duration"} or SECRET_FIELD.search(name):
            found.add(where)
        found |= telling(compare, child, where, depth + 1)
    return found


@functools.cache
def telling_paths(kind: str) -> set[str]:
    found = telling(comparison(kind), comparison(kind).node)
    return found | {path[:end] for path in found for end in range(len(path)) if path[end] == "."}


def scalar(node: Node, key: str) -> st.SearchStrategy[Any]:
    """Values of a field without parts, in a spelling that Google takes."""
    if SECRET_FIELD.search(key):
        return st.just(SECRET)
    if node.format in {"int64", "uint64"}:
        return st.integers(0, 3).flatmap(lambda number: st.sampled_from([number, str(number)]))
    if node.format == "google-duration":
        return st.sampled_from(["5s", "5.000s", "7s"])
    if node.schema.get("enum"):
        return st.sampled_from(node.schema["enum"][:4])
    kinds = {"boolean": st.booleans(), "integer": st.integers(0, 3), "number": st.sampled_from([0, 0.5, 1])}
    return kinds.get(node.type, TEXTS)


@st.composite
def pairs(draw: Any, kind: str, node: Node, key: str = "", path: str = "", depth: int = 0) -> tuple[Any, Any]:
    """A wanted and an actual value of a schema, which have something in common more often than not."""
    compare = comparison(kind)

    def within(child: Node, name: str, where: str) -> tuple[Any, Any]:
        pair: tuple[Any, Any] = draw(pairs(kind, child, name, where, depth + 1))
        return pair

    if node.type == "array":
        named = compare.rules.keyed.get(path)
        if named:
            both = {}
            for name in NAMES:
                left, right = within(node.items, key, path)
                both[name] = {**left, named: name}, {**right, named: name}
            wanted, actual = (draw(st.lists(st.sampled_from(NAMES), unique=True)) for _ in range(2))
            return [both[name][0] for name in wanted], [both[name][1] for name in actual]
        pool = [within(node.items, key, path)[1] for _ in range(2)]
        wanted, actual = (draw(st.lists(st.sampled_from(pool), max_size=3)) for _ in range(2))
        return wanted, actual
    if not node.fields and not node.is_map:
        return draw(scalar(node, key)), draw(scalar(node, key))
    if node.type == "any":
        return draw(TEXTS), draw(TEXTS)
    known = [name for name in sorted(node.fields) or NAMES if not node.child(name).is_output and name != "kind"]
    names = []
    if depth < DEEPEST:
        special = [name for name in known if (f"{path}.{name}" if path else name) in telling_paths(kind)]
        for choice in (special, special, known):
            names += [draw(st.sampled_from(choice))] if choice else []
    wanted, actual = {}, {}
    for name in sorted(set(names)):
        left, right = within(node.child(name), name, f"{path}.{name}" if path else name)
        stands = draw(STANDS)
        if stands in {"both", "same", "wanted"}:
            wanted[name] = left
        if stands in {"both", "actual", "null"}:
            actual[name] = right
        if stands == "same":
            actual[name] = left
        if stands == "null":
            wanted[name] = None
    return wanted, actual


@st.composite
def cases(draw: Any) -> tuple[str, Any, Any]:
    """The kind, which is all that a failing example has to show of the comparison, and the two sides."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    wanted, actual = draw(pairs(kind, comparison(kind).node))
    return kind, wanted, actual


def without_nulls(value: Any) -> Any:
    """As Google returns a resource: an unset field is not there."""
    if isinstance(value, dict):
        return {key: without_nulls(content) for key, content in value.items() if content is not None}
    return [without_nulls(element) for element in value] if isinstance(value, list) else value


def respelled(compare: Comparison, value: Any, node: Node, path: str = "") -> Any:
    """The same value written otherwise: other order where order means nothing, other spelling of 64-bit integers."""
    if isinstance(value, dict):
        shuffled = random.Random(len(value)).sample(sorted(value), len(value))
        return {
            key: respelled(compare, value[key], node.child(key), f"{path}.{key}" if path else key) for key in shuffled
        }
    if isinstance(value, list):
        elements = [respelled(compare, element, node.items, path) for element in value]
        is_free = path in compare.rules.sets or path in compare.rules.keyed
        return elements[::-1] if is_free else elements
    if node.format in {"int64", "uint64"} and value is not None:
        return int(value) if isinstance(value, str) else str(value)
    return value


def fields(found: list[Difference]) -> list[str]:
    return sorted(difference.field for difference in found)


@thorough
@given(cases())
def test_nothing_differs_from_itself(case):
    kind, wanted, actual = case
    compare = comparison(kind)
    assert compare.differences(without_nulls(wanted), wanted) == []
    assert compare.differences(actual, without_nulls(actual)) == []


@thorough
@given(cases())
def test_what_is_brought_to_the_wanted_shape_has_no_drift(case):
    kind, wanted, actual = case
    compare = comparison(kind)
    merged = compare.merged(wanted, without_nulls(actual))
    assert compare.differences(wanted, merged) == []
    assert compare.changes(wanted, merged) == {}
    assert compare.merged(wanted, merged) == merged


@thorough
@given(cases())
def test_a_merge_patch_of_the_changes_leads_to_what_was_predicted(case):
    kind, wanted, actual = case
    compare = comparison(kind)
    actual = without_nulls(actual)
    patched = merge_patch(actual, compare.changes(wanted, actual))
    assert compare.differences(wanted, patched) == []
    predicted = compare.merged(compare.readable(wanted), actual)
    assert compare.differences(without_nulls(compare.readable(predicted)), patched) == []


@thorough
@given(cases())
def test_there_are_changes_exactly_when_there_is_drift_and_only_where_it_is(case):
    kind, wanted, actual = case
    compare = comparison(kind)
    changed = {
        difference.field.partition(".")[0].partition("[")[0] for difference in compare.differences(wanted, actual)
    }
    assert compare.changes(wanted, actual).keys() == changed


@thorough
@given(cases())
def test_spelling_and_free_order_are_no_drift(case):
    kind, wanted, actual = case
    compare = comparison(kind)
    assert compare.differences(without_nulls(wanted), respelled(compare, wanted, compare.node)) == []
    found = fields(compare.differences(wanted, actual))
    assert fields(compare.differences(respelled(compare, wanted, compare.node), actual)) == found
    assert fields(compare.differences(wanted, respelled(compare, actual, compare.node))) == found
    assert fields(compare.differences(wanted, without_nulls(actual))) == found


@thorough
@given(cases())
def test_what_is_sent_is_what_google_takes(case):
    kind, wanted, actual = case
    compare = comparison(kind)
    problems: list[str] = []
    sent = validate(compare.node, compare.changes(wanted, actual), "", problems)
    # The generated values do not fit patterns; of fields and types there is nothing to complain.
    assert [problem for problem in problems if "does not match" not in problem and "not one of" not in problem] == []
    json.dumps(sent)


@thorough
@given(cases())
def test_a_shown_difference_holds_no_secret(case):
    kind, wanted, actual = case
    compare = comparison(kind)
    found = compare.differences(wanted, actual)
    assert SECRET not in json.dumps([masked(difference) for difference in found])
    assert fields(found) == fields([masked(difference) for difference in found])
