"""What every play on the servers has to say."""

import pathlib

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLAYS = [
    (path.name, play)
    for path in sorted((ROOT / "playbooks").glob("*.yml"))
    for play in yaml.safe_load(path.read_text())
    if str(play.get("hosts")).startswith("mlflow") and play.get("any_errors_fatal")
]


@pytest.mark.parametrize(("file", "play"), PLAYS, ids=[f"{file}: {play['name']}" for file, play in PLAYS])
def test_a_server_that_is_out_of_reach_ends_the_run(file: str, play: dict[str, object]) -> None:
    # any_errors_fatal alone lets the plays after this one run: databases would be replaced beneath a server that runs.
    assert play.get("max_fail_percentage") == 0
