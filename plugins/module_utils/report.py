"""The result of a module that did several things: what changed, field by field, and what failed."""

from __future__ import annotations

from collections.abc import Callable

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import CloudError


class PartialError(CloudError):
    """Some members of a batch failed; `result` tells of the others."""

    def __init__(self, failures: list[CloudError], result: Json) -> None:
        super().__init__("\n".join(map(str, failures)), ", ".join(dict.fromkeys(one.more for one in failures)))
        self.result = result


def batch_result(option: str, members: list[Json], failures: list[CloudError], title: Callable[[Json], str]) -> Json:
    """Return the result of a batch whose members are given under `option`; PartialError when there are failures."""
    changed = [member for member in members if member["changed"]]
    diff = [_diff(title(member), member["differences"]) for member in changed]
    changes = [_change(title(member), member) for member in changed]
    result = {"changed": bool(changed), "changes": changes, option: members, "diff": diff}
    if failures:
        raise PartialError(failures, result)
    return result


def _change(name: str, member: Json) -> str:
    """Return what happened to one member, in a line."""
    action = member.get("action", "update")
    fields = [_field(action, one) for one in member["differences"] if one["field"] != "state" and action != "create"]
    return f"{action} {name}" + (f": {', '.join(fields)}" if fields else "")


def _field(action: str, difference: Json) -> str:
    """Return what happened to one field: of a list of names, which came and which went."""
    field, before, after = difference["field"], difference["before"], difference["after"]
    if action == "delete":
        return f"{before} {field}"
    if not all(isinstance(side, list) and all(isinstance(one, str) for one in side) for side in (before, after)):
        return str(field)
    moves = [f"-{one}" for one in before if one not in after] + [f"+{one}" for one in after if one not in before]
    return " ".join([field, *moves])


def _diff(name: str, differences: list[Json]) -> Json:
    """Return Ansible's form of the differences of one member."""
    return {
        "before_header": name,
        "after_header": name,
        "before": {one["field"]: one["before"] for one in differences if one["before"] is not None},
        "after": {one["field"]: one["after"] for one in differences if one["after"] is not None},
    }
