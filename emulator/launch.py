"""Starts and removes the emulated cloud's containers on the operator's Docker engine."""

import hashlib
import ipaddress
import json
import os
import pathlib
import shutil
import time
import urllib.request
from typing import Any

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container
from docker.types import IPAMConfig, IPAMPool

from emulator import environment, images
from emulator.cloud import ADDRESSES
from emulator.discovery import APIS
from emulator.images import say

_LABEL = "mlops.mlflow_gcp"
_LABELS = {_LABEL: "emulator"}
_NETWORK = "mlflow-gcp"
_VOLUME = "mlflow-gcp-state"
_CLOUD, _ACME = "gcp-emulator", "gcp-acme"
_ACME_HOST = "acme.emulator.internal"
_STATE = "/var/lib/emulator"
_SOURCE = pathlib.Path(__file__).resolve().parent
_HOSTS = [
    *sorted({f"{api.partition('.')[0]}.googleapis.com" for api in APIS}),
    "oauth2.googleapis.com",
    "www.googleapis.com",
    "packages.cloud.google.com",
    "www.gstatic.com",
    "metadata.google.internal",
]
_ANY_ADDRESS = str(ipaddress.IPv4Address(0))
_HEALTHY_SECONDS = 60
_PEBBLE = {
    "pebble": {
        "listenAddress": ":14000",
        "managementListenAddress": ":15000",
        "certificate": f"{_STATE}/acme.pem",
        "privateKey": f"{_STATE}/acme.key",
        "httpPort": 80,
        "tlsPort": 443,
    }
}
# Pebble asks Docker's own DNS for the operator's domain, and that asks the emulated cloud's name server for the rest.
_START_PEBBLE = (
    'printf %s "$PEBBLE_CONFIG" >/tmp/pebble.json && exec pebble -config /tmp/pebble.json -dnsserver 127.0.0.11:53'
)
# Every start of pebble makes a new root; a certificate issued before goes on being trusted.
_READ_ROOTS = f"""
import pathlib, ssl, urllib.request
trust = ssl.create_default_context(cafile="{_STATE}/ca.pem")
root = urllib.request.urlopen("https://{_ACME_HOST}:15000/roots/0", context=trust, timeout=5).read().decode()
file = pathlib.Path("{_STATE}/acme-roots.pem")
known = file.read_text() if file.exists() else ""
if root not in known:
    file.write_text(known + root)
print(file.read_text(), end="")
"""


def up() -> None:
    """Starts whatever is not running, waits until it serves, and writes the files that clients need.

    Raises `RuntimeError` that says what is wrong.
    """
    images.ensure()
    try:
        engine = docker.from_env()
        _ensure_network(engine)
        engine.volumes.create(_VOLUME, labels=_LABELS)
        _ensure_container(engine, _CLOUD, _cloud_options(engine))
        client = _wait_for_cloud(engine)
        _ensure_container(engine, _ACME, _acme_options(engine))
        roots = _wait_for_acme(engine)
    except DockerException as error:
        raise RuntimeError(f"Docker refused: {error}") from error
    environment.write(client["ca"] + roots, json.dumps(client["credentials"]))
    (environment.DIRECTORY / "acme-roots.pem").write_text(roots)
    say(f"The emulated cloud serves; its environment is in {environment.DIRECTORY / 'env'}")


def down() -> None:
    """Removes every container, network and volume of the emulated cloud, and its files here."""
    if images.engine_answers():
        try:
            engine = docker.from_env()
            mine: dict[str, Any] = {"label": f"{_LABEL}=emulator"}
            for container in engine.containers.list(all=True, filters=mine):
                say(f"Removing {container.name}")
                container.remove(force=True, v=True)
            for network in engine.networks.list(filters=mine):
                network.remove()
            for volume in engine.volumes.list(filters=mine):
                volume.remove()
        except DockerException as error:
            raise RuntimeError(f"Docker refused: {error}") from error
    shutil.rmtree(environment.DIRECTORY, ignore_errors=True)


def _ensure_network(engine: docker.DockerClient) -> None:
    if engine.networks.list(names=[f"^{_NETWORK}$"]):
        return
    # Docker's own choices stay away from the addresses that the emulated cloud gives.
    pool = IPAMPool(subnet=str(ADDRESSES), iprange=str(list(ADDRESSES.subnets(2))[3]), gateway=str(ADDRESSES[1]))
    say(f"Making the network {_NETWORK} ({ADDRESSES})")
    engine.networks.create(_NETWORK, driver="bridge", ipam=IPAMConfig(pool_configs=[pool]), labels=_LABELS)


def _cloud_options(engine: docker.DockerClient) -> dict[str, Any]:
    endpoint = engine.api.create_endpoint_config(aliases=_HOSTS, ipv4_address=str(ADDRESSES[2]))
    command = ["/opt/venv/bin/python", "-m", "emulator", "serve", "--state", _STATE, "--listen", _ANY_ADDRESS]
    command += [
        "--tls-port",
        "443",
        "--metadata-port",
        "80",
        "--metadata-address",
        "169.254.169.254",
        "--dns-port",
        "53",
    ]
    return {
        "command": command,
        "working_dir": "/opt/emulated-cloud",
        "environment": {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
        "volumes": [
            f"{_VOLUME}:{_STATE}",
            f"{_SOURCE}:/opt/emulated-cloud/emulator:ro",
            f"{_engine_socket()}:/var/run/docker.sock",
        ],
        "ports": {f"{environment.PROXY_PORT}/tcp": ("127.0.0.1", environment.PROXY_PORT)},
        "cap_add": ["NET_ADMIN"],
        "networking_config": {_NETWORK: endpoint},
    }


def _engine_socket() -> str:
    """Return the Docker engine's socket on this machine."""
    address = os.environ.get("DOCKER_HOST", "")
    return address.removeprefix("unix://") if address.startswith("unix://") else "/var/run/docker.sock"


def _acme_options(engine: docker.DockerClient) -> dict[str, Any]:
    return {
        "command": ["/bin/sh", "-c", _START_PEBBLE],
        "environment": {
            "PEBBLE_CONFIG": json.dumps(_PEBBLE),
            "PEBBLE_VA_NOSLEEP": "1",
            "PEBBLE_WFE_NONCEREJECT": "0",
            # By chance it would take a proof of before.
            "PEBBLE_AUTHZREUSE": "0",
        },
        "volumes": [f"{_VOLUME}:{_STATE}:ro"],
        "dns": [str(ADDRESSES[2])],
        "networking_config": {_NETWORK: engine.api.create_endpoint_config(aliases=[_ACME_HOST])},
    }


def _ensure_container(engine: docker.DockerClient, name: str, options: dict[str, Any]) -> None:
    """Makes and starts a container, replacing one made from something else: the state lives in the volume."""
    image = engine.images.get(images.CLOUD_IMAGE).id
    digest = hashlib.sha256(json.dumps([image, options], default=str, sort_keys=True).encode())
    if name == _CLOUD:
        for file in sorted(_SOURCE.rglob("*.py")):
            digest.update(file.read_bytes())
    inputs = digest.hexdigest()
    try:
        container = engine.containers.get(name)
        if container.labels.get(f"{_LABEL}.inputs") == inputs:
            container.start()
            return
        container.remove(force=True, v=True)
    except NotFound:
        pass
    say(f"Starting {name}")
    labels = _LABELS | {f"{_LABEL}.inputs": inputs}
    options |= {"name": name, "labels": labels, "network": _NETWORK, "restart_policy": {"Name": "unless-stopped"}}
    container = engine.containers.create(images.CLOUD_IMAGE, **options)
    try:
        container.start()
    except APIError as error:
        raise RuntimeError(f"{name} does not start: {error.explanation}") from error


def _wait_for_cloud(engine: docker.DockerClient) -> dict[str, Any]:
    """Return the certificate authority and the operator's credentials, once the emulator serves."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"http://127.0.0.1:{environment.PROXY_PORT}/_emulator/client"
    deadline = time.monotonic() + _HEALTHY_SECONDS
    while time.monotonic() < deadline:
        try:
            with direct.open(url, timeout=5) as answer:
                client: dict[str, Any] = json.load(answer)
                return client
        except (OSError, ValueError):
            time.sleep(0.3)
    raise _silent(engine.containers.get(_CLOUD))


def _wait_for_acme(engine: docker.DockerClient) -> str:
    """Return every root certificate that pebble has had for this cloud, the oldest first, once it serves."""
    cloud, container = engine.containers.get(_CLOUD), engine.containers.get(_ACME)
    deadline = time.monotonic() + _HEALTHY_SECONDS
    while time.monotonic() < deadline:
        status, output = cloud.exec_run(["/opt/venv/bin/python", "-c", _READ_ROOTS])
        if status == 0 and isinstance(output, bytes):
            return output.decode()
        time.sleep(0.3)
    raise _silent(container)


def _silent(container: Container) -> RuntimeError:
    log = container.logs(tail=20).decode(errors="replace")
    return RuntimeError(f"{container.name} did not answer in {_HEALTHY_SECONDS} seconds:\n{log}")
