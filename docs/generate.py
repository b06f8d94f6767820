"""Writes docs/resources.md, docs/variables.md and docs/alerts.md from the table of kinds and the roles."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jinja2
import yaml
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.kinds import KINDS
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.resource import Resource, Wanted, resource_of
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import Session

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PREFIX = "mlops.mlflow_gcp."
# What is not a resource of its own, by the module that sees to it: mended, refused.
OTHERS = {
    "gcp_iam": ("a grant taken away; with `exclusive`, one that was added", ""),
    "gcp_secret": ("labels; a missing or destroyed version", "a latest version that is disabled"),
    "gcp_sql_user": ("a user that is gone; database roles", "another type of user"),
    "gcp_vm": ("a machine that is stopped; its type, with a stop that was allowed; a disk that is too small", ""),
}
RESOURCES = """\
# What is provisioned, mended and refused

Written by `make docs` from `plugins/module_utils/kinds.py` and the roles; a test keeps it up to date.

What a role states is made when it is not there, and every field stated is compared in every run. *Mended*: it is
brought back to what the inventory says, whoever changed it. *Refused*: Google cannot change it in place, so the run
stops, names the field, and changes nothing of that resource. Fields that no role states are left as they are. Nothing
is ever deleted and made again behind your back.

"""
VARIABLES = """\
# Variables

Written by `make docs` from the roles' `meta/argument_specs.yml` and `group_vars/all/platform.yml`.

"""
ALERTS = """\
# Alerts, and what to do

Written by `make docs` from `roles/gcp_observability`; a test keeps it up to date. Each alert brings the same steps in
its mail. DOMAIN, SERVER, ZONE, DATABASE and PROJECT stand for the deployment's own; limits are the role's defaults.

"""
NEEDS = {"check": "with `gcp_observability_uptime_enabled`", "sets": "with `gcp_observability_sets_enabled`"}


def load(path: pathlib.Path) -> Any:
    """Return the content of a YAML file, nothing where there is none."""
    return yaml.safe_load(path.read_text()) if path.exists() else None


def members(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the resources that a role states, wherever they are in its tasks and variables."""
    if isinstance(value, dict):
        if value.get("kind") in KINDS:
            yield value
        for key, content in value.items():
            # The resource whose policy gcp_iam changes is stated elsewhere; what is only read is not stated.
            if key not in {"resource", "body", f"{PREFIX}gcp_resource_info"}:
                yield from members(content)
    elif isinstance(value, list):
        for element in value:
            yield from members(element)
    elif isinstance(value, str):
        # Members that an expression makes from a list of names; those that are only removed are never mended.
        made = r"product\(\['([\w.]+)'\]\)|append\(\{\s*'kind': '([\w.]+)'"
        for kind in [] if "'state': 'absent'" in value else ["".join(found) for found in re.findall(made, value)]:
            if kind in KINDS:
                fields = keys(value.partition("'body': ")[2])
                yield {"kind": kind, "body": dict.fromkeys(fields, ""), "expression": value}


def keys(expression: str) -> list[str]:
    """Return the keys of the mapping that a Jinja expression begins with, not those of mappings in it."""
    found, depth = [], 0
    for sign in re.findall(r"'\w+'(?=:)|[{}]", expression):
        if sign in "{}":
            depth += 1 if sign == "{" else -1
            if depth == 0:
                break
        elif depth == 1:
            found.append(sign.strip("'"))
    return found


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of the fields in a body; lists are gone through."""
    if isinstance(value, dict):
        for key, content in value.items():
            yield from paths(content, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(element, dict) for element in value):
        for element in value:
            yield from paths(element, path)
    else:
        yield path


def variables(value: Any, role: str, own: dict[str, Any]) -> set[str]:
    """Return the role's variables that a value is made from, through those the role computes."""
    found: set[str] = set()
    for name in set(re.findall(rf"\b(?:__)?{role}_\w+", yaml.safe_dump(value))):
        if name in own:
            found |= variables({k: v for k, v in own.items() if k == name}[name], role, own)
        elif not name.startswith("__"):
            found.add(name)
    return found


def resources() -> str:
    """Return the content of resources.md."""
    rows: dict[tuple[str, str], dict[str, set[str]]] = {}
    tasks_of = []
    for role in sorted(path for path in (ROOT / "roles").iterdir() if path.name.startswith("gcp_")):
        tasks, own = load(role / "tasks/main.yml"), load(role / "vars/main.yml") or {}
        tasks_of += [(role.name, task, own) for task in tasks]
        for member in members([tasks, own]):
            row = rows.setdefault((member["kind"], role.name), {"variables": set(), "fields": set()})
            row["variables"] |= variables(member, role.name, own)
            row["fields"] |= set(paths(member.get("body") or {}))
    lines = ["| kind | role and its variables | mended | refused | kept from deletion by |", "|---|---|---|---|---|"]
    for (kind, role_name), row in sorted(rows.items()):
        resource = resource_of(Session("p", transport=Nowhere()), Wanted(kind, "n", "l", "p"))
        fields = {path for path in row["fields"] if path and not is_unread(resource, path)}
        refused = {path for path in fields if resource._is_immutable(path)}
        cells = [kind, f"`{role_name}`: {code(row['variables'])}", code(fields - refused), code(refused)]
        lines.append(line(*cells, code({KINDS[kind].protection} - {None})))
    lines += ["", "| beside these | role and its variables | mended | refused |", "|---|---|---|---|"]
    for module, (mended, refused_text) in OTHERS.items():
        using = [(name, task, own) for name, task, own in tasks_of if PREFIX + module in task]
        if option := {"gcp_iam": "policies", "gcp_sql_user": "sql_users"}.get(module):
            # Roles give what they grant, and who logs in, to the module that makes what that is about.
            given = [(name, asked, own) for name, task, own in tasks_of for asked in task.values()]
            using = [
                (name, asked[option], own) for name, asked, own in given if isinstance(asked, dict) and option in asked
            ]
        roles = sorted({name for name, _, _ in using})
        found = {one for name, task, own in using for one in variables(task, name, own)}
        if not roles:
            raise ValueError(f"no role uses {module}")
        lines.append(line(f"`{module}`", f"{code(roles)}: {code(found)}", mended, refused_text))
    return RESOURCES + "\n".join(lines) + "\n"


class Nowhere:
    """A transport that nothing goes over."""

    def request(self, method: str, url: str, **arguments: Any) -> Any:
        """Refuse."""
        raise RuntimeError(f"{method} {url} {arguments}: only the table of kinds is asked")


def is_unread(resource: Resource, path: str) -> bool:
    """Whether Google never gives the field back, so that it counts only when the resource is made."""
    return any(path == one or path.startswith(f"{one}.") for one in resource.kind.rules.write_only)


def reference() -> str:
    """Return the content of variables.md."""
    lines = ["## An environment", "", "| variable | default | |", "|---|---|---|"]
    comment: list[str] = []
    for text in (ROOT / "group_vars/all/platform.yml").read_text().splitlines():
        if text.startswith("# Names computed"):
            break
        setting = re.match(r"(platform_\w+): *(.*)", text)
        if setting:
            if not comment:
                raise ValueError(f"{setting[1]} has no comment of its own")
            default = "computed" if setting[2] in {"", ">-"} else f"`{setting[2]}`"
            lines.append(line(f"`{setting[1]}`", default, " ".join(comment)))
        comment = [*comment, text[2:]] if text.startswith("# ") else []
    for role in sorted((ROOT / "roles").iterdir()):
        defaults = load(role / "defaults/main.yml") or {}
        specs = load(role / "meta/argument_specs.yml")["argument_specs"]
        options = {name: option for spec in specs.values() for name, option in spec.get("options", {}).items()}
        lines += (
            ["", f"## {role.name}", "", specs["main"]["short_description"].rstrip(".") + ".", ""] if options else []
        )
        lines += ["| variable | type | default | |", "|---|---|---|---|"] if options else []
        for name, option in sorted(options.items()):
            default = "required" if option.get("required") else f"`{flow(defaults.get(name))}`"
            described = option["description"]
            lines.append(line(f"`{name}`", option["type"], default, flat(described)))
    return VARIABLES + "\n".join(lines) + "\n"


def alerts() -> str:
    """Return the content of alerts.md."""
    role = ROOT / "roles/gcp_observability"
    own, values = load(role / "vars/main.yml"), load(role / "defaults/main.yml")
    names = ("domain", "server", "zone", "database", "project")
    values |= {f"gcp_observability_{name}": name.upper() for name in names}
    values |= {name: text for name, text in own.items() if isinstance(text, str)}

    def render(text: str) -> str:
        while "{{" in text:
            text = jinja2.Template(text, undefined=jinja2.StrictUndefined).render(values)
        return text

    lines = ["| alert | severity | |", "|---|---|---|"]
    sections = []
    for alert in own["__gcp_observability_alerts"]:
        title = render(alert["title"])
        lines.append(line(f"[{title}](#{anchor(title)})", alert["severity"], NEEDS.get(alert.get("needs"), "")))
        sections += ["", f"## {title[0].upper()}{title[1:]}", "", render(alert["next"])]
    more = own["__gcp_observability_more"].strip()
    return ALERTS + "\n".join([more, "", *lines, *sections]) + "\n"


def anchor(title: str) -> str:
    """Return what a heading is linked by."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def flow(value: Any) -> str:
    """Return a value as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def flat(text: str | list[str]) -> str:
    """Return a description in one line."""
    return " ".join(" ".join([text] if isinstance(text, str) else text).split())


def code(names: Any) -> str:
    """Return names as code, in order."""
    return ", ".join(f"`{name}`" for name in sorted(names))


def line(*cells: str) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


PAGES = {"resources.md": resources, "variables.md": reference, "alerts.md": alerts}

if __name__ == "__main__":
    for name, content in PAGES.items():
        (DOCS / name).write_text(content())
