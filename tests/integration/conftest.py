"""The playbooks against the emulated cloud: started when it is not up, converged once for all tests."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import google.auth.transport.requests
import google.oauth2.service_account
import pytest
import requests
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPERATOR = "operator@demo-project.iam.gserviceaccount.com"
LOCAL = ROOT / "inventories" / "local"
RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
# These are POST, and yet write nothing.
READING = ("getIamPolicy", "testIamPermissions", "getEffectiveOrgPolicy")


@dataclasses.dataclass(frozen=True)
class Deployment:
    """What a client of the deployment needs; `environment` is for its processes, `server` is a container."""

    url: str
    ca_bundle: pathlib.Path
    environment: dict[str, str]
    server: str
    cloud: Cloud

    @property
    def admin_password(self) -> str:
        """The password of now: a rotation changes it, so it is read anew each time."""
        return self.cloud.secret("mlflow-admin-password")


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished playbook run: exit code, what it printed, seconds, and (changed, unreachable, failed) by host."""

    code: int
    output: str
    seconds: float

    @property
    def hosts(self) -> dict[str, tuple[int, int, int]]:
        return {host: (int(c), int(u), int(f)) for host, c, u, f in RECAP.findall(self.output)}

    @property
    def changed(self) -> int:
        return sum(changed for changed, _unreachable, _failed in self.hosts.values())


class Cloud:
    """The operator's own calls, past Ansible."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.proxies = {"https": environment["HTTPS_PROXY"]}
        self.http.verify = environment["REQUESTS_CA_BUNDLE"]
        credentials = google.oauth2.service_account.Credentials.from_service_account_file(
            environment["GOOGLE_APPLICATION_CREDENTIALS"], scopes=["https://www.googleapis.com/auth/cloud-platform"]
        )
        credentials.refresh(google.auth.transport.requests.Request(self.http))
        self.token = credentials.token

    def call(self, verb: str, url: str, body: Any = None, token: str | None = None) -> requests.Response:
        """Ask Google as the operator, or as whoever the token belongs to."""
        headers = {"Authorization": f"Bearer {token or self.token}"}
        response = self.http.request(verb, url, json=body, headers=headers, timeout=30)
        if not response.ok:
            # Said by raise_for_status, which would say no more than Forbidden.
            response.reason = response.text
        return response

    def get(self, url: str) -> Any:
        response = self.call("GET", url)
        response.raise_for_status()
        return response.json()

    def secret(self, name: str, version: str = "latest", project: str = "demo-project") -> str:
        """Return the value of a secret's version."""
        url = f"https://secretmanager.googleapis.com/v1/projects/{project}/secrets/{name}/versions/{version}:access"
        return base64.b64decode(self.get(url)["payload"]["data"]).decode()


def metadata_token(server: str) -> str:
    """Return an access token of the server's own account, as programs on the server get it."""
    code = (
        "import json, urllib.request as r;"
        "q = r.Request('http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token',"
        " headers={'Metadata-Flavor': 'Google'});"
        "print(json.load(r.urlopen(q, timeout=10))['access_token'])"
    )
    answer = subprocess.run(
        ["docker", "exec", server, "python3", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return answer.stdout.strip()


def exported() -> dict[str, str]:
    """Return the environment that the running emulator's clients need; empty when none runs."""
    file = ROOT / ".emulator" / "env"
    if not file.exists():
        return {}
    lines = [shlex.split(line) for line in file.read_text().splitlines() if line.startswith("export ")]
    exports = dict(export.split("=", 1) for _export, *words in lines for export in words)
    try:
        requests.get(f"{exports['HTTPS_PROXY']}/_emulator/health", timeout=5).raise_for_status()
    except requests.RequestException:
        return {}
    return exports


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Return the environment in which every Google client talks to the emulator."""
    if not exported():
        subprocess.run([sys.executable, "-m", "emulator"], cwd=ROOT, check=True, timeout=1800)
    return {
        **os.environ,
        **exported(),
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        # On one line, however long: the tests look for words in it.
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@pytest.fixture(scope="session")
def cloud(environment: dict[str, str]) -> Cloud:
    return Cloud(environment)


@pytest.fixture(scope="session")
def play(environment: dict[str, str]) -> Callable[..., Run]:
    """Return a function that runs a playbook to its end."""

    def run(playbook: str, *arguments: str, inventory: pathlib.Path = LOCAL, **changed: str) -> Run:
        begun = time.monotonic()
        finished = subprocess.run(
            ["ansible-playbook", playbook, "-i", str(inventory), *arguments],
            cwd=ROOT,
            env={**environment, **changed},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
            check=False,
        )
        return Run(finished.returncode, finished.stdout, time.monotonic() - begun)

    return run


@pytest.fixture(scope="session")
def make_inventory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., pathlib.Path]:
    """Return a function that copies the local inventory with other values."""

    def make(projects: list[str] | None = None, **values: Any) -> pathlib.Path:
        inventory = tmp_path_factory.mktemp("inventory") / "inventory"
        shutil.copytree(LOCAL, inventory)
        variables = inventory / "group_vars" / "platform" / "main.yml"
        variables.write_text(yaml.safe_dump({**yaml.safe_load(variables.read_text()), **values}))
        dynamic = yaml.safe_load((inventory / "gcp.yml").read_text())
        name = values.get("platform_name", "mlflow")
        dynamic["filters"] = [f"labels.mlflow-deployment = {name}"]
        dynamic["projects"] = dynamic["projects"] if projects is None else projects
        (inventory / "gcp.yml").write_text(yaml.safe_dump(dynamic))
        return inventory

    return make


def interrupted(
    environment: dict[str, str],
    inventory: pathlib.Path,
    condition: Callable[[], bool],
    *arguments: str,
    log: pathlib.Path = pathlib.Path(os.devnull),
) -> None:
    """Run a playbook and kill it as soon as the condition holds. What it says goes to the log."""
    deadline = time.monotonic() + 600
    with (
        log.open("w") as output,
        subprocess.Popen(
            ["ansible-playbook", *arguments, "-i", str(inventory)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as running,
    ):
        try:
            while not condition() and running.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            assert running.poll() is None, f"it ended by itself: {log.read_text()}"
        finally:
            # Also where the condition fails: else its end is waited for.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            # Its workers have sessions of their own.
            for process in pathlib.Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if f"\0{inventory}\0".encode() in (process / "cmdline").read_bytes():
                        os.kill(int(process.name), signal.SIGKILL)
    assert condition(), "waited in vain"


def roles(playbook: str) -> list[str]:
    """Names of a playbook's roles, in their order."""
    plays = yaml.safe_load((ROOT / "playbooks" / f"{playbook}.yml").read_text())
    return [role["role"] for play in plays for role in play.get("roles", [])]


def site_killed_at_every_role(
    environment: dict[str, str], inventory: pathlib.Path, logs: pathlib.Path, *arguments: str
) -> None:
    """Run site.yml once for each of its roles, and kill it as that begins. What it says goes to a file each."""
    every_role = roles("provision") + roles("configure")
    assert len(every_role) > 15
    for role in every_role:
        log = logs / role

        def has_begun(begins: str = f"TASK [{role} : ", log: pathlib.Path = log) -> bool:
            return begins in log.read_text()

        interrupted(environment, inventory, has_begun, "site.yml", *arguments, log=log)


def results(output: str) -> list[dict[str, Any]]:
    """Return what each task said on each host, each turn of a loop by itself."""
    plays = json.loads(output[output.index("{\n") : output.rindex("}") + 1])["plays"]
    return [
        {**result, "named": (host, task["task"]["name"])}
        for play in plays
        for task in play["tasks"]
        for host, whole in task["hosts"].items()
        for result in whole.get("results", [whole])
    ]


def not_as_foretold(checked: list[dict[str, Any]], done: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Return host and name of each task that changed something unlike its check had said; of both runs' `results`."""
    changed = {one["named"] for one in done if one.get("changed")}
    promised = {one["named"] for one in checked if one.get("changed")}
    # A program without a difference to show: the check says at least that it would run.
    mentioned = {one["named"] for one in checked if "would have run" in one.get("msg", "")}
    return (changed - promised - mentioned) | (promised - changed)


@contextlib.contextmanager
def removed_afterwards(
    inventory: pathlib.Path, project: str, name: str, play: Callable[..., Run]
) -> Iterator[pathlib.Path]:
    """Yield a deployment's inventory, and remove at the end all that was made by it."""
    options = {
        "platform_destroy_project": project,
        "platform_destroy_bucket": f"{project}-{name}-artifacts",
        "platform_destroy_database": name,
        "platform_destroy_logs": f"{project}-{name}-logs",
    }
    named = [f"--extra-vars={key}={value}" for key, value in options.items()]
    try:
        yield inventory
    finally:
        removed = play("playbooks/destroy.yml", *named, inventory=inventory)
    assert removed.code == 0, removed.output


@pytest.fixture(scope="session")
def written(environment: dict[str, str]) -> Callable[[Callable[[], Any]], list[str]]:
    """Return a function that returns the operator's calls, made while another runs, that write something."""

    admin = f"{environment['HTTPS_PROXY']}/_emulator"

    def calls(action: Callable[[], Any]) -> list[str]:
        since = requests.get(f"{admin}/health", timeout=5).json()["calls"]
        action()
        log = requests.get(f"{admin}/log", params={"since": since}, timeout=30).text.splitlines()
        records = [json.loads(line) for line in log]
        assert [record for record in records if record["principal"] == OPERATOR], "the action never asked the cloud"
        return [
            f"{record['verb']} {record['path']}"
            for record in records
            if record["principal"] == OPERATOR and record["verb"] != "GET" and not record["path"].endswith(READING)
        ]

    return calls


@pytest.fixture(scope="session")
def deployment(environment: dict[str, str], play: Callable[..., Run], cloud: Cloud) -> Deployment:
    """Run site.yml once, and return what clients need."""
    first = play("site.yml")
    assert first.code == 0, first.output
    return Deployment(
        url="https://mlflow.localhost",
        ca_bundle=pathlib.Path(environment["REQUESTS_CA_BUNDLE"]),
        environment=environment,
        server="gce-mlflow-1",
        cloud=cloud,
    )


@pytest.fixture(scope="session")
def tracking(deployment: Deployment) -> Iterator[Callable[..., requests.Response]]:
    """Yield a function that calls MLflow's REST API over HTTPS as the administrator."""
    with requests.Session() as session:
        session.trust_env = False
        session.proxies = {"https": deployment.environment["HTTPS_PROXY"]}
        session.verify = str(deployment.ca_bundle)
        session.auth = lambda request: requests.auth.HTTPBasicAuth("admin", deployment.admin_password)(request)

        def call(verb: str, path: str, **options: Any) -> requests.Response:
            return session.request(verb, f"{deployment.url}/api/2.0/mlflow/{path}", timeout=60, **options)

        yield call
