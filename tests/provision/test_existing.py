"""What is there already is used, and stays as it is: a deployment comes and goes beside somebody else's things."""

from __future__ import annotations

import copy
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.provision.conftest import emulated
from tests.unit.emulator.conftest import Running

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = "demo-project"
COMPUTE = f"https://compute.googleapis.com/compute/v1/projects/{PROJECT}"
SQL = f"https://sqladmin.googleapis.com/v1/projects/{PROJECT}/instances"
DNS = f"https://dns.googleapis.com/dns/v1/projects/{PROJECT}/managedZones"
SECRETS = f"https://secretmanager.googleapis.com/v1/projects/{PROJECT}/secrets"
ACCOUNT = f"mlflow-server@{PROJECT}.iam.gserviceaccount.com"
ACCOUNTS = f"https://iam.googleapis.com/v1/projects/{PROJECT}/serviceAccounts"
STORAGE = "https://storage.googleapis.com/storage/v1/b"
NETWORKING = "https://servicenetworking.googleapis.com/v1/services/servicenetworking.googleapis.com"
NETWORK = f"projects/{PROJECT}/global/networks/shared"
RECORD = f"{DNS}/example-com/rrsets/mlflow.example.com./A"
EXISTING = {
    "platform_domain": "mlflow.example.com",
    "platform_existing_network": "shared",
    "platform_existing_subnetwork": "shared-west",
    "platform_existing_bucket": "shared-artifacts",
    "platform_existing_sql_instance": "shared-db",
    "platform_existing_certificate": "certificate",
    "platform_dns_zone": "example-com",
}
PROVISION = ("playbooks/preflight.yml", "playbooks/provision.yml")
CONFIRMED = ("-e", f"platform_destroy_project={PROJECT}")
# Backup sets outlive the deployment; a role that is deleted could not be made again for weeks.
STAYING = ("-mlflow-backups", "/roles/mlflow_server", "/roles/mlflow_certificate")
LOGS = ("-e", f"platform_destroy_logs={PROJECT}-mlflow-logs")
NAMED = (*CONFIRMED, *LOGS, "-e", "platform_destroy_database=shared-db")
RECAP = re.compile(r"^localhost\s+: ok=\d+\s+changed=(\d+)", re.MULTILINE)


def test_a_deployment_comes_and_goes_and_nothing_of_others_changes(
    theirs: Running, make_inventory: Callable[..., pathlib.Path]
) -> None:
    inventory = make_inventory(**EXISTING)
    before = tables(theirs)

    made, changed = play(*PROVISION, inventory=inventory)
    assert changed, made
    # Only the policies of the project and the bucket may have got bindings.
    assert {name: theirs.server.cloud.state.resources[name] for name in before["resources"]} == before["resources"]
    address = theirs.call("GET", f"{COMPUTE}/regions/europe-west1/addresses/mlflow")["address"]
    assert theirs.call("GET", RECORD)["rrdatas"] == [address]
    machine = theirs.call("GET", f"{COMPUTE}/zones/europe-west1-b/instances/mlflow-1")
    assert machine["networkInterfaces"][0]["subnetwork"].endswith("/subnetworks/shared-west")
    own = {name.split("/")[-1] for name in theirs.server.cloud.state.resources.keys() - before["resources"].keys()}
    assert {"mlflow", "mlflow_auth", "mlflow-allow-https", "mlflow-admin-password"} <= own
    reader = {"role": "roles/secretmanager.secretAccessor", "members": [f"serviceAccount:{ACCOUNT}"]}
    assert reader in theirs.call("GET", f"{SECRETS}/certificate:getIamPolicy")["bindings"]

    theirs.call("PATCH", RECORD, {"rrdatas": ["203.0.113.9"]})
    again, changed = play("playbooks/provision.yml", inventory=inventory)
    assert (changed, theirs.call("GET", RECORD)["rrdatas"]) == (1, [address]), again

    removed, _ = play("playbooks/destroy.yml", *NAMED, inventory=inventory)
    assert "delete sqladmin.databases mlflow" in removed, removed
    assert tables(theirs) == before


def test_what_is_not_fit_is_refused_all_at_once(theirs: Running, make_inventory: Callable[..., pathlib.Path]) -> None:
    theirs.server.cloud.state.quotas = {f"{PROJECT}/europe-west1": {"STATIC_ADDRESSES": 0}}
    inventory = make_inventory(
        **{
            **EXISTING,
            "platform_existing_subnetwork": "",
            "platform_subnetwork_cidr": "10.30.0.0/16",
            "platform_existing_bucket": "no-such-bucket",
            "platform_existing_service_account": "no-such-account",
            "platform_existing_certificate": "no-such-certificate",
            "platform_dns_zone": "example-org",
            "platform_sql_database_version": "POSTGRES_18",
        }
    )
    before = tables(theirs)

    refused, _ = play("playbooks/site.yml", inventory=inventory, code=2)

    assert "7 problem(s) found, nothing was created or changed" in refused, refused
    for said in (
        "overlaps 10.30.0.0/24, the subnetwork shared-west",
        "no bucket of this name",
        "no service account of this name",
        "no secret with a version of this name",
        "no managed zone of this name",
        "write POSTGRES_17",
        "quota STATIC_ADDRESSES",
    ):
        assert said in refused, refused
    assert tables(theirs) == before


def test_what_nobody_named_stays_with_what_an_account_that_was_there_may_do(
    theirs: Running, make_inventory: Callable[..., pathlib.Path]
) -> None:
    theirs.call("POST", ACCOUNTS, {"accountId": "shared-runner"})
    inventory = make_inventory(**EXISTING, platform_existing_service_account="shared-runner")
    before = tables(theirs)
    play("playbooks/provision.yml", "--tags", "gcp_identity,gcp_bucket,gcp_secret,gcp_sql", inventory=inventory)
    granted = tables(theirs)
    assert {name: granted["resources"][name] for name in before["resources"]} == before["resources"]
    assert granted["policies"] != before["policies"]
    theirs.call("POST", f"{DNS}/example-com/rrsets", {**THEIR_RECORD, "name": "mlflow.example.com."})
    granted = tables(theirs)

    removed, changed = play("playbooks/destroy.yml", *CONFIRMED, inventory=inventory)

    for line in ("bucket shared-artifacts", "Cloud SQL instance shared-db", "network shared", "secret mlflow-admin"):
        assert f"keep the {line}" in removed, removed
    assert "mlflow_auth" in {name.split("/")[-1] for name in theirs.server.cloud.state.resources}
    assert "keep the service account shared-runner and its roles: roles/cloudsql.client" in removed, removed
    assert "keep the record of mlflow.example.com, which points to 203.0.113.9" in removed, removed
    # The deployment's own role and the reading of its secrets are taken from the account: named first, then done.
    assert changed == 4, removed
    own = f"projects/{PROJECT}/roles/mlflow_server"
    granted["policies"] = {name: held for name, held in granted["policies"].items() if "/secrets/" not in name}
    granted["policies"][f"projects/{PROJECT}"] = [
        one for one in granted["policies"][f"projects/{PROJECT}"] if one[0] != own
    ]
    assert tables(theirs) == granted


def play(*arguments: str, inventory: pathlib.Path, code: int = 0) -> tuple[str, int]:
    """Run a playbook to its end; return what it printed, and how many tasks changed something."""
    finished = subprocess.run(
        ["ansible-playbook", *arguments, "-i", str(inventory)],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            # On one line, however long: the tests look for words in it.
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == code, finished.stdout
    # The last one counts all playbooks.
    return finished.stdout, int(RECAP.findall(finished.stdout)[-1])


def tables(running: Running) -> dict[str, Any]:
    """Return all that the cloud keeps of anybody's things."""
    state = running.server.cloud.state
    with state.lock:
        policies = {name: without_counter(policy) for name, policy in state.policies.items() if policy.get("bindings")}
        # Google's own accounts stay for good once a service has needed them.
        resources = {name: one for name, one in state.resources.items() if not name.startswith("agents/")}
        kept = {"resources": resources, "objects": state.objects, "policies": policies}
        return {
            table: copy.deepcopy({name: one for name, one in held.items() if not name.endswith(STAYING)})
            for table, held in kept.items()
        }


def without_counter(policy: dict[str, Any]) -> Any:
    """Return who has which role; what counts the writes of a policy is not a part of it."""
    return sorted((binding["role"], sorted(binding["members"])) for binding in policy["bindings"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An emulated cloud of its own."""
    with emulated(tmp_path_factory) as running:
        yield running


@pytest.fixture
def theirs(running: Running) -> Iterator[Running]:
    """Yield the cloud with somebody else's network, bucket, database and zone in it; none of it is left afterwards."""
    empty = copy.deepcopy(running.server.cloud.state.tables())
    services = ("compute", "dns", "iam", "sqladmin", "secretmanager", "servicenetworking", "oslogin", "iap")
    services += ("iamcredentials", "cloudresourcemanager")
    known = running.server.cloud.state.services[PROJECT]
    known += [f"{name}.googleapis.com" for name in services if f"{name}.googleapis.com" not in known]

    def make(url: str, body: dict[str, Any], api: str = "") -> None:
        running.done(running.call("POST", url, body), api)

    make(f"{COMPUTE}/global/networks", {"name": "shared", "autoCreateSubnetworks": False})
    subnetwork = {"name": "shared-west", "network": NETWORK, "ipCidrRange": "10.30.0.0/24"}
    make(f"{COMPUTE}/regions/europe-west1/subnetworks", {**subnetwork, "privateIpGoogleAccess": True})
    allowed = [{"IPProtocol": "tcp", "ports": ["8080"]}]
    make(f"{COMPUTE}/global/firewalls", {"name": "theirs", "network": NETWORK, "allowed": allowed})
    peering = {"addressType": "INTERNAL", "purpose": "VPC_PEERING", "prefixLength": 20, "network": NETWORK}
    make(f"{COMPUTE}/global/addresses", {"name": "theirs", **peering})
    connection = {"network": NETWORK, "reservedPeeringRanges": ["theirs"]}
    make(f"{NETWORKING}/connections", connection, "https://servicenetworking.googleapis.com")
    running.call("POST", f"{STORAGE}?project={PROJECT}", BUCKET)
    upload = "https://storage.googleapis.com/upload/storage/v1/b/shared-artifacts/o?uploadType=media&name=theirs.bin"
    running.call("POST", upload, {"somebody": "else's"})
    make(SQL, DATABASE)
    make(f"{SQL}/shared-db/databases", {"name": "theirs"})
    running.call("POST", f"{SECRETS}?secretId=certificate", {"replication": {"automatic": {}}})
    running.call("POST", f"{SECRETS}/certificate:addVersion", {"payload": {"data": "cGVt"}})
    running.call("POST", DNS, {"name": "example-com", "dnsName": "example.com.", "description": "ours"})
    running.call("POST", f"{DNS}/example-com/rrsets", THEIR_RECORD)
    yield running
    for name, table in empty.items():
        setattr(running.server.cloud.state, name, table)


THEIR_RECORD = {"name": "www.example.com.", "type": "A", "ttl": 60, "rrdatas": ["203.0.113.9"]}
BUCKET = {
    "name": "shared-artifacts",
    "location": "EU",
    "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}, "publicAccessPrevention": "enforced"},
}
DATABASE = {
    "name": "shared-db",
    "region": "europe-west1",
    "databaseVersion": "POSTGRES_17",
    "settings": {
        "edition": "ENTERPRISE",
        "tier": "db-custom-2-7680",
        "databaseFlags": [{"name": "cloudsql.iam_authentication", "value": "on"}],
        "ipConfiguration": {"ipv4Enabled": False, "privateNetwork": NETWORK},
    },
}
