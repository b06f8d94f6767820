from __future__ import annotations

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Node, method, methods
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import KINDS, PARENT_LINKS, READABLE, Kind
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Wanted, resource_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import Session

ROWS = pytest.mark.parametrize("kind", READABLE.values(), ids=READABLE)

# How the kinds with a class of their own are read and ended.
OTHER_WAYS = {"services": {"get", "disable"}, "services.connections": {"deleteConnection"}}


def node_of(kind: Kind) -> Node:
    return Node.of(kind.api, kind.schema)


def kind_name(kind: Kind) -> str:
    return next(name for name, row in READABLE.items() if row is kind)


def node_at(node: Node, path: str) -> Node:
    """The schema at a path; lists are gone through."""
    for part in path.split("."):
        node = node.items if node.type == "array" else node
        assert part in node.fields, f"{path}: the document has no {part}"
        node = node.child(part)
    return node


@ROWS
def test_its_methods_exist(kind):
    offered = methods(kind.api, kind.collection)
    used = {kind.create, "list", *(setter.method for setter in kind.setters.values())}
    used |= {setter.removal for setter in kind.setters.values() if setter.removal}
    used |= {kind.update} if kind.update else set()
    used |= OTHER_WAYS.get(kind.collection, {"get", "delete"})
    assert used <= offered.keys()


@ROWS
def test_its_schema_is_what_its_methods_take_and_give(kind):
    offered = methods(kind.api, kind.collection)
    if "get" in offered:
        assert offered["get"]["response"]["$ref"] == kind.schema
    taken = offered[kind.create]["request"]["$ref"]
    if kind.wrapper:
        assert Node.of(kind.api, taken).child(kind.wrapper).schema["id"] == kind.schema
        assert kind.wrapper_name in Node.of(kind.api, taken).fields
    elif kind.create != "enable":
        assert taken == kind.schema


@ROWS
def test_its_fields_exist(kind):
    node = node_of(kind)
    rules = kind.rules
    paths = [*kind.immutable, *kind.setters, *kind.body_identity, *kind.create_defaults, *kind.address_links]
    paths += [*rules.keyed, *rules.sets, *rules.positional, *rules.minimums, *rules.write_only, *rules.upper_case]
    paths += [path for path in (kind.guard, kind.protection) if path]
    paths += [kind.state_field] if kind.passing_states | kind.failed_states else []
    for path in paths:
        node_at(node, path)


@ROWS
def test_its_rules_fit_the_types(kind):
    node = node_of(kind)
    for path in [*kind.rules.keyed, *kind.rules.sets, *kind.rules.positional]:
        assert node_at(node, path).type == "array", path
    for path, key in kind.rules.keyed.items():
        assert key in node_at(node, path).items.fields, path
    for path in kind.rules.minimums:
        assert node_at(node, path).format == "int64", path
    for path in kind.immutable:
        assert not node_at(node, path).is_output, path


@ROWS
def test_what_protects_it_is_on_or_off(kind):
    if kind.protection:
        assert node_at(node_of(kind), kind.protection).type == "boolean"


@ROWS
def test_what_guards_it_changes_with_it(kind):
    if kind.guard:
        assert node_at(node_of(kind), kind.guard).type == "string"
        assert kind.guard not in kind.immutable


@ROWS
def test_what_it_belongs_to_and_comes_after_is_known(kind):
    assert kind.after <= KINDS.keys()
    if kind.parent:
        assert kind.parent in PARENT_LINKS
    if kind.parent and not kind.full_name:
        assert kind.parent in method(kind.api, kind.collection, "get").path_parameters


@ROWS
def test_what_is_fixed_is_not_said_to_change(kind):
    rules = kind.rules
    assert not kind.immutable & kind.setters.keys()
    assert not kind.immutable & {*rules.write_only, *rules.minimums}
    assert not rules.write_only & {*rules.keyed, *rules.sets, *rules.positional, *rules.minimums, *rules.upper_case}
    assert not rules.keyed.keys() & (rules.sets | rules.positional)
    assert not rules.sets & rules.positional


@ROWS
def test_its_names_fill_the_urls_of_its_methods(kind):
    names = resource_of(Session("demo", transport=object()), Wanted(kind_name(kind), "n", "l", "q")).scope
    for text in (kind.full_name, kind.email, *kind.create_query.values(), *kind.body_identity.values()):
        assert "{" not in (text or "").format(**names)


@ROWS
def test_its_states_are_among_the_documented(kind):
    states = node_of(kind).child(kind.state_field).schema.get("enum", [])
    assert kind.passing_states | kind.failed_states <= set(states)


@ROWS
def test_its_query_parameters_exist(kind):
    assert kind.create_query.keys() <= method(kind.api, kind.collection, kind.create).query
    if kind.guard_query:
        assert kind.guard_query in method(kind.api, kind.collection, kind.update).query
    if kind.has_update_mask and not kind.wrapper:
        assert "updateMask" in method(kind.api, kind.collection, kind.update).query


@ROWS
def test_its_setters_take_what_is_sent(kind):
    for key, setter in kind.setters.items():
        called = method(kind.api, kind.collection, setter.method)
        if setter.style == "query":
            assert key in called.query
        elif setter.style == "members":
            for name in (setter.method, setter.removal):
                request = Node.of(kind.api, method(kind.api, kind.collection, name).request)
                assert request.child(key).type == "array"
        elif setter.style == "wrapped":
            request = Node.of(kind.api, called.request)
            assert key in request.fields
            if setter.fingerprint:
                assert setter.fingerprint in request.fields
                assert setter.fingerprint in node_of(kind).fields
        else:
            assert node_of(kind).child(key).schema["id"] == called.request


@ROWS
def test_whether_it_has_operations_is_what_the_document_says(kind):
    response = methods(kind.api, kind.collection)[kind.create]["response"]["$ref"]
    assert kind.has_operations == (response == "Operation")
