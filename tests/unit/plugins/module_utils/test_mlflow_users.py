"""What a declaration of users must satisfy."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import mlflow_users


def wrong(*users: Any) -> list[str]:
    found = mlflow_users.problems(list(users), "admin", "platform_mlflow_users")
    assert all(one["problem"] and one["fix"] for one in found)
    return [one["variable"].removeprefix("platform_mlflow_users") for one in found]


def test_good_users_have_no_problem() -> None:
    grants = [{"name": f"of-{permission}", "permission": permission} for permission in mlflow_users.PERMISSIONS]
    assert (
        wrong(
            {"name": "ann", "experiments": grants}, {"name": "bob-2_x@example.com", "is_admin": True, "state": "absent"}
        )
        == []
    )


@pytest.mark.parametrize(
    ("user", "variable"),
    [
        ("ann", "[0]"),
        ({"name": "ann", "admin": True}, "[0]"),
        ({}, "[0].name"),
        ({"name": 7}, "[0].name"),
        ({"name": "ann:lee"}, "[0].name"),
        ({"name": "ann lee"}, "[0].name"),
        ({"name": "a" * 101}, "[0].name"),
        ({"name": "ann\n"}, "[0].name"),
        ({"name": "Admin"}, "[0].name"),
        ({"name": "ann", "is_admin": "yes"}, "[0].is_admin"),
        ({"name": "ann", "state": "gone"}, "[0].state"),
        ({"name": "ann", "experiments": "churn"}, "[0].experiments"),
        ({"name": "ann", "experiments": ["churn"]}, "[0].experiments[0]"),
        ({"name": "ann", "experiments": [{"name": "churn"}]}, "[0].experiments[0]"),
        ({"name": "ann", "experiments": [{"name": 2024, "permission": "READ"}]}, "[0].experiments[0].name"),
        ({"name": "ann", "experiments": [{"name": " ", "permission": "READ"}]}, "[0].experiments[0].name"),
        ({"name": "ann", "experiments": [{"name": "churn", "permission": "read"}]}, "[0].experiments[0].permission"),
        (
            {"name": "ann", "registered_models": [{"name": "m", "permission": one} for one in ("READ", "EDIT")]},
            "[0].registered_models[1].name",
        ),
    ],
)
def test_a_bad_user_is_named(user: Any, variable: str) -> None:
    assert wrong(user) == [variable]


def test_names_that_differ_in_case_alone_are_the_same() -> None:
    assert wrong({"name": "ann"}, {"name": "bob"}, {"name": "Ann"}) == ["[0].name", "[2].name"]


def test_names_that_would_share_a_secret_are_told() -> None:
    assert mlflow_users.credential("ann@example.com") == "mlflow.user-ann-example-com-password"
    assert wrong({"name": "ann@example.com"}, {"name": "Ann.example-com", "state": "absent"}) == ["[1].name"]


def test_all_problems_are_told_at_once() -> None:
    bad = {"name": "a b", "state": "x", "experiments": [{"name": "e", "permission": "ALL"}]}
    assert wrong(bad, {"name": "admin"}) == ["[0].name", "[0].state", "[0].experiments[0].permission", "[1].name"]


@pytest.mark.parametrize("users", [None, {"ann": {}}, "ann"])
def test_anything_but_a_list_is_refused(users: Any) -> None:
    assert len(mlflow_users.problems(users, "admin", "platform_mlflow_users")) == 1
