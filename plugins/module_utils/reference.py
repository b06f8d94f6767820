"""References between the members of a batch, to what Google names or numbers itself when it makes one.

`$(ref.<kind>/<name>:<field>)` in a text stands for a field of that member, as in
https://cloud.google.com/deployment-manager/docs/configuration/use-references.
`id` is the last part of the name that Google assigned, where the resource has no field of that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError

REFERENCE = re.compile(r"\$\(ref\.([\w.]+)/([^:()]+):(\w+)\)")
KNOWN_AFTER = "(known after create)"

# Finds a member by kind and name, None where a check cannot know it.
Find = Callable[[str, str], Json | None]


def referred(value: Any) -> Iterator[tuple[str, str]]:
    """Yield kind and name of every member that a value refers to."""
    if isinstance(value, dict):
        for content in value.values():
            yield from referred(content)
    elif isinstance(value, list):
        for element in value:
            yield from referred(element)
    elif isinstance(value, str):
        yield from ((found[1], found[2]) for found in REFERENCE.finditer(value))


def problems(value: Any, names: Sequence[tuple[str, str]]) -> list[str]:
    """Return what is wrong with the references of a value, where these are the members that are to be there."""
    counts = {one: names.count(one) for one in referred(value)}
    return [
        f"refers to {kind} {name}, which the batch has {'more than once' if count else 'not'}"
        for (kind, name), count in counts.items()
        if count != 1
    ]


def resolved(value: Any, find: Find) -> Any:
    """Return the value with what its references stand for; CloudError when a member has no such field."""

    def text(found: re.Match[str]) -> str:
        kind, name, field = found.groups()
        member = find(kind, name)
        if member is None:
            return KNOWN_AFTER
        content = member["name"].rpartition("/")[2] if field == "id" and field not in member else member.get(field)
        if not isinstance(content, str):
            raise CloudError(f"{found[0]}: {kind} {name} has no text of this name")
        return content

    if isinstance(value, dict):
        return {key: resolved(content, find) for key, content in value.items()}
    if isinstance(value, list):
        return [resolved(element, find) for element in value]
    return REFERENCE.sub(text, value) if isinstance(value, str) else value


def among(members: list[Json], *, check_mode: bool) -> Find:
    """Return what finds a member in the result of a batch; in check mode what would be made has no names yet."""

    def find(kind: str, name: str) -> Json | None:
        member = next((one for one in members if (one["kind"], one["name"]) == (kind, name)), None)
        if member is None:
            raise CloudError(f"There is no {kind} {name} beside what refers to it")
        if check_mode and member["action"] == "create":
            return None
        if member["resource"] is None:
            late = "docs/failures.md#an-operation-takes-too-long"
            raise CloudError(f"Google does not show {kind} {name} yet, which others refer to: run again", late)
        return dict(member["resource"])

    return find
