"""An empty project where two operators run site.yml at once. The cloud side alone is in tests/provision."""

from __future__ import annotations

import concurrent.futures
import pathlib
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PROJECT = "empty-project"
# Another each time: a Cloud SQL instance's name stays taken after the instance is deleted.
NAME = f"shared-{secrets.token_hex(2)}"
VARIABLES = {
    "platform_name": NAME,
    "platform_domain": f"{NAME}.localhost",
    # It takes the database away from the other operator.
    "verify_database_outage_enabled": False,
}
WHOLE = {
    "platform_destroy_project": PROJECT,
    "platform_destroy_bucket": f"{PROJECT}-{NAME}-artifacts",
    "platform_destroy_database": NAME,
    "platform_destroy_logs": f"{PROJECT}-{NAME}-logs",
}
Play = Callable[..., Any]


@pytest.fixture
def inventory(make_inventory: Callable[..., pathlib.Path], play: Play) -> Iterator[pathlib.Path]:
    """Return an inventory of the empty project. What is made there is removed afterwards."""
    made = make_inventory(projects=[PROJECT], **VARIABLES)
    yield made
    options = [f"--extra-vars={name}={value}" for name, value in WHOLE.items()]
    removed = play("playbooks/destroy.yml", *options, inventory=made)
    assert removed.code == 0, removed.output


@pytest.mark.long
def test_two_operators_at_once_end_in_the_right_state(
    inventory: pathlib.Path, play: Play, written: Callable[..., list[str]]
) -> None:
    with concurrent.futures.ThreadPoolExecutor() as operators:
        both = [operators.submit(play, "site.yml", inventory=inventory) for _operator in range(2)]
    for operator in both:
        assert operator.result().code == 0, operator.result().output
    runs: list[Any] = []
    assert written(lambda: runs.append(play("site.yml", inventory=inventory))) == []
    assert (runs[0].code, runs[0].changed) == (0, 0), runs[0].output
