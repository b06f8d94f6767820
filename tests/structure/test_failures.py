"""docs/failures.md against the messages that link to it."""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from docs.generate import anchor

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/failures.md").read_text()
SECTIONS = {anchor(title): body for title, body in re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE)}
TASKS = sorted([*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("playbooks/*.yml")])
CODE = [
    path
    for folder in ("roles", "playbooks", "plugins")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.is_file() and path.suffix != ".pyc"
]
# The names by which a list of problems goes; each entry has variable, value, problem and fix.
PROBLEMS = re.compile(r"\{\{ __\w+_problems \}\}")
# Tasks that only repeat words which end with their link.
REPEATED = {
    "roles/gcp_instance/tasks/destroy.yml: Say what to do": "gcp_resource's",
    "roles/gcp_observability/tasks/main.yml: Say what to do": "gcp_resource's",
    "roles/gcp_sql/tasks/destroy.yml: Say what to do": "gcp_resource's",
    "roles/mlflow/tasks/rollback.yml: Rollback | Report why it cannot serve": "mlflow-switch's",
    "roles/mlflow/tasks/service.yml: Service | Report why it is not the live one": "mlflow-switch's",
}


def tasks(found: Any) -> Iterator[dict[str, Any]]:
    """Yield every task of a file, those of plays and blocks as well."""
    for one in found if isinstance(found, list) else []:
        yield one
        for key in ("tasks", "pre_tasks", "post_tasks", "block", "rescue", "always"):
            yield from tasks(one.get(key))


def messages() -> dict[str, str]:
    """Return what each task says that ends a run in words of its own, by file and name."""
    told = {}
    for path in TASKS:
        for task in tasks(yaml.safe_load(path.read_text())):
            for module, option in (("ansible.builtin.fail", "msg"), ("ansible.builtin.assert", "fail_msg")):
                if module in task:
                    told[f"{path.relative_to(ROOT)}: {task['name']}"] = task[module].get(option, "")
    return told


MESSAGES = messages()
LINKS = {str(path.relative_to(ROOT)): set(re.findall(r"docs/failures\.md#([\w-]*)", path.read_text())) for path in CODE}


@pytest.mark.parametrize("name", [*MESSAGES])
def test_a_message_that_ends_a_run_links_to_its_section(name: str) -> None:
    message = MESSAGES[name]
    if name in REPEATED or PROBLEMS.fullmatch(message):
        return
    assert re.search(r"(\n|')More: docs/failures\.md#[\w-]+\W*$", message), message


def test_what_is_exempt_is_there() -> None:
    assert [name for name in REPEATED if "docs/failures.md" in MESSAGES.get(name, "docs/failures.md")] == []


def test_every_link_leads_to_a_section() -> None:
    wrong = {path: left for path, named in LINKS.items() if (left := named - {*SECTIONS})}
    assert wrong == {}


def test_every_section_is_linked_from_a_message() -> None:
    assert {*SECTIONS} - set().union(*LINKS.values()) == set()


def test_every_section_is_in_the_table_and_nothing_else() -> None:
    table = PAGE.partition("\n## ")[0]
    linked = set(re.findall(r"\]\(#([\w-]+)\)", table))
    assert linked == {*SECTIONS}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= {*SECTIONS}


@pytest.mark.parametrize("section", [*SECTIONS])
def test_a_section_says_what_is_said_how_it_stands_what_to_do_and_when_it_is_over(section: str) -> None:
    some = r"(?:.+\n)+?"
    form = rf"\nSays: {some}Now: {some}\n1\. {some}\nOver: {some}\n*"
    assert re.fullmatch(form, SECTIONS[section]), SECTIONS[section]


def plain(text: str) -> str:
    """Return the text as it is said: strings that Python puts together as one, and any space as one."""
    return re.sub(r"\s+", " ", re.sub(r'"\s*\n\s*f?"', "", text))


@pytest.fixture(scope="module")
def said() -> str:
    """Everything that may be said."""
    return " ".join(plain(path.read_text()) for path in CODE)


@pytest.mark.parametrize("section", [*SECTIONS])
def test_the_words_of_a_section_are_said_somewhere(section: str, said: str) -> None:
    sentence = re.match(r"\s*Says: ((?:`[^`]*`|[^.`])*)\.", SECTIONS[section])
    assert sentence, SECTIONS[section]
    words = [plain(one) for one in re.findall(r"`([^`]*)`", sentence[1])]
    assert words
    # A status is Google's.
    assert [one for one in words if re.sub(r"(?<=\(HTTP )\d+", "", one) not in said] == []
