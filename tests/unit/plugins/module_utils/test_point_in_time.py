"""Which moments can be restored, and which generations of artifacts were live then."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils import backup, point_in_time
from hypothesis import given
from hypothesis import strategies as st

NOW = "2030-01-10T12:00:00Z"
BEGINNING = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
ASKED = point_in_time.Asked(
    point_in_time="2030-01-10T11:00:00Z",
    bucket="sets",
    source_bucket="sets",
    set="latest",
    confirmed_set="20300110T110000Z",
    occupied=True,
    incomplete_enabled=False,
    instance="mlflow",
    databases={},
    user="mlflow",
    artifacts_bucket="artifacts",
    artifacts_prefix="",
    secrets={},
    mlflow_version="3.17.2",
    schemas={},
)
INSTANCE: dict[str, Any] = {
    "databaseVersion": "POSTGRES_17",
    "createTime": "2030-01-01T00:00:00.000Z",
    "settings": {
        "backupConfiguration": {"pointInTimeRecoveryEnabled": True, "transactionLogRetentionDays": 7},
    },
}
WINDOW = {"earliestRecoveryTime": "2030-01-05T00:00:00.000Z", "latestRecoveryTime": "2030-01-10T11:55:00.000Z"}
FOUND = point_in_time.Found(INSTANCE, WINDOW, "", {"versioning": {"enabled": True}})
UNLOGGED = {**INSTANCE, "settings": {"backupConfiguration": {"pointInTimeRecoveryEnabled": False}}}


def obstacles(found: point_in_time.Found = FOUND, **changes: Any) -> list[str]:
    told: list[str] = point_in_time.obstacles(dataclasses.replace(ASKED, **changes), found, NOW)
    return told


def asked_at(moment: str, found: point_in_time.Found = FOUND) -> list[str]:
    return obstacles(found, point_in_time=moment, confirmed_set=point_in_time.compact(moment))


def test_what_can_be_restored_is_not_refused() -> None:
    assert obstacles() == []
    assert obstacles(occupied=False, confirmed_set="") == []
    assert asked_at("2030-01-10T11:55:00Z") == []
    assert asked_at("2030-01-05T00:00:00Z") == []
    mysql = {"databaseVersion": "MYSQL_8_4", "settings": {"backupConfiguration": {"binaryLogEnabled": True}}}
    assert obstacles(dataclasses.replace(FOUND, instance={**INSTANCE, **mysql})) == []


@pytest.mark.parametrize(
    "moment",
    ["yesterday", "2030-01-10", "2030-01-10T11:00:00", "2030-01-10T11:00:00+01:00", "2030-1-10T11:00:00Z"],
)
def test_a_moment_is_written_in_one_way(moment: str) -> None:
    (told,) = obstacles(point_in_time=moment)
    assert told == (
        f"platform_restore_point_in_time is {moment}, no moment in UTC: write it as RFC 3339 has it, such as "
        "2030-01-01T12:00:00Z"
    )


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        ("2030-01-10T12:00:01Z", "now it is 2030-01-10T12:00:00Z: write a moment of the past"),
        (
            "2030-01-10T11:55:01Z",
            "the latest that can be recovered is 2030-01-10T11:55:00.000Z: run again in some minutes",
        ),
        ("2030-01-04T23:59:59Z", "the earliest that can be recovered is 2030-01-05T00:00:00.000Z"),
        ("2030-01-03T11:59:59Z", "keeps its log for 7 days"),
        ("2029-12-31T23:59:59Z", "before the Cloud SQL instance mlflow was made, 2030-01-01T00:00:00.000Z"),
    ],
)
def test_a_moment_out_of_reach_is_refused_for_the_plainest_reason(moment: str, words: str) -> None:
    (told,) = asked_at(moment)
    assert f"platform_restore_point_in_time is {moment}" in told
    assert words in told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"instance": None}, "there is no Cloud SQL instance mlflow"),
        ({"instance": UNLOGGED}, "gcloud sql instances patch mlflow --enable-point-in-time-recovery"),
        (
            {"instance": {**UNLOGGED, "databaseVersion": "MYSQL_8_4"}},
            "gcloud sql instances patch mlflow --enable-bin-log",
        ),
        ({"refusal": "Try later."}, "(Try later.): restore a set of before instead, by platform_restore_set"),
        ({"artifacts": {}}, "give -e platform_restore_incomplete_enabled=true"),
        ({"artifacts": None}, "the bucket artifacts keeps no older versions"),
    ],
)
def test_what_is_not_there_or_not_kept_is_refused(changes: dict[str, Any], words: str) -> None:
    (told,) = obstacles(dataclasses.replace(FOUND, **changes))
    assert words in told


def test_a_bucket_without_older_versions_can_be_accepted() -> None:
    assert obstacles(dataclasses.replace(FOUND, artifacts={}), incomplete_enabled=True) == []


def test_everything_is_refused_at_once() -> None:
    nothing = point_in_time.Found(None, {}, "", None)
    told = obstacles(nothing, set="20300109T010000Z", source_bucket="other", confirmed_set="20300109T010000Z")
    assert [text.split(",")[0].split(" is ")[0] for text in told] == [
        "platform_restore_set",
        "platform_restore_bucket",
        "platform_restore_confirmed_set",
        "there",
        "the bucket artifacts keeps no older versions",
    ]
    assert len(told) == 5


@pytest.mark.parametrize(
    ("confirmed", "words"),
    [("", "give -e platform_restore_confirmed_set=20300110T110000Z"), ("20300110T110001Z", "is 20300110T110001Z, and")],
)
def test_what_would_be_lost_is_confirmed_by_the_moment(confirmed: str, words: str) -> None:
    (told,) = obstacles(confirmed_set=confirmed)
    assert words in told


def stamp(seconds: float) -> str:
    told = (BEGINNING + datetime.timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    return told.replace("+00:00", "Z")


# What happens to a few names: at which second, to which name, and whether it is written or deleted.
EVENTS = st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab"), st.booleans()), max_size=12)


@given(EVENTS, st.integers(0, 10), st.sampled_from([0, 0.002]))
def test_the_generations_of_a_moment_are_those_that_were_live_then(
    events: list[tuple[int, str, bool]], moment: int, lag: float
) -> None:
    """`lag`: what is replaced may be said to go a little after what replaces it came."""
    versions: list[dict[str, Any]] = []
    live: dict[str, dict[str, Any]] = {}
    expected: dict[str, str] = {}
    for generation, (second, name, written) in enumerate(sorted(events, key=lambda event: event[0])):
        before = live.pop(name, None)
        if before:
            before["timeDeleted"] = stamp(second + (lag if written else 0))
        if written:
            live[name] = {"name": name, "generation": str(generation), "timeCreated": stamp(second)}
            versions.append(live[name])
        if second <= moment:
            expected = {one: held["generation"] for one, held in live.items()}
    for listed in (versions, versions[::-1]):
        found = backup.live_at(listed, stamp(moment))
        assert {one["name"]: one["generation"] for one in found} == expected
        assert [one["name"] for one in found] == sorted(expected)
