"""What Google does not let go yet is kept and said, and the same command finishes later."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import pytest

from tests.provision.conftest import emulated
from tests.provision.test_existing import ACCOUNT, ACCOUNTS, COMPUTE, CONFIRMED, PROJECT, play
from tests.unit.emulator.conftest import Running

pytestmark = pytest.mark.long
DESTROY = ("playbooks/destroy.yml", *CONFIRMED, "-e", "platform_destroy_database=mlflow")
DISCONNECT = "servicenetworking.services.connections.deleteConnection"
# As Google says it, for up to four days after a Cloud SQL instance was deleted.
HELD = (
    "Failed to delete connection; Producer services (e.g. CloudSQL, Cloud Memstore, etc.) are still using this "
    "connection.\nHelp Token: AQap"
)
KEPT = [
    f"compute/projects/{PROJECT}/global/networks/mlflow",
    f"compute/projects/{PROJECT}/global/addresses/mlflow-private-services",
    f"servicenetworking/projects/{PROJECT}/global/networks/mlflow/services/servicenetworking.googleapis.com",
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An emulated cloud of its own."""
    with emulated(tmp_path_factory) as running:
        yield running


def test_a_network_that_google_holds_is_kept_and_goes_later(
    running: Running, make_inventory: Callable[..., pathlib.Path]
) -> None:
    inventory, state = make_inventory(), running.server.cloud.state
    play("playbooks/provision.yml", inventory=inventory)

    running.server.faults.append({"method": DISCONNECT, "times": 1, "operation_error": HELD})
    first, _ = play(*DESTROY, inventory=inventory)
    assert "for up to four days after one was deleted. The same command in four days removes them" in first, first
    assert "keep the network mlflow and its private services access, which Google holds" in first
    left = [name for name in state.resources if name.startswith(("compute/", "servicenetworking/", "sql/"))]
    assert sorted(left) == sorted(KEPT)
    assert running.refused("GET", f"{ACCOUNTS}/{ACCOUNT}")["code"] == 404

    running.server.faults.append({"method": DISCONNECT, "times": 1, "operation_error": "Something else."})
    failed, _ = play(*DESTROY, inventory=inventory, code=2)
    assert "Something else." in failed, failed
    assert "The same command in four days" not in failed

    last, _ = play(*DESTROY, inventory=inventory)
    assert "The same command in four days" not in last, last
    assert [name for name in KEPT if name in state.resources] == []
    assert running.refused("GET", f"{COMPUTE}/global/networks/mlflow")["code"] == 404
    assert play(*DESTROY, inventory=inventory)[1] == 0
