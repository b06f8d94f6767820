"""`python -m emulator`: starts the emulated cloud, stops it, or is it."""

import argparse
import asyncio
import fcntl
import logging
import pathlib
import signal
import socket
import struct
import sys

from emulator import environment
from emulator.effects import DockerEffects, Effects, NoEffects
from emulator.server import Server, Settings
from emulator.standins import ops_agent

_SET_INTERFACE_ADDRESS = 0x8916  # SIOCSIFADDR of <linux/sockios.h>


def main() -> int:
    """Runs one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m emulator", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("up", help="start everything in Docker and print the environment (the default)")
    commands.add_parser("down", help="remove every container, network and volume of the emulated cloud")
    commands.add_parser("env", help="print the environment that points a Google client here")
    commands.add_parser("images", help="make the Docker images that are missing or out of date")
    serve = commands.add_parser("serve", help="be the server, in the foreground")
    serve.add_argument("--state", type=pathlib.Path, required=True, help="directory that keeps the cloud")
    serve.add_argument("--listen", default="127.0.0.1", help="address to listen on")
    serve.add_argument("--tls-port", type=int, default=0, help="Google's hosts; 0 is any free port")
    serve.add_argument("--metadata-port", type=int, default=0)
    serve.add_argument("--proxy-port", type=int, default=environment.PROXY_PORT)
    serve.add_argument("--dns-port", type=int, default=0, help="the public zones of Cloud DNS, over UDP")
    serve.add_argument("--metadata-address", help="answer at this link-local address too (needs NET_ADMIN)")
    serve.add_argument("--no-effects", action="store_true", help="no containers: VMs and databases exist on paper only")
    arguments = parser.parse_args()
    if arguments.command == "serve":
        asyncio.run(_serve(arguments))
        return 0
    from emulator import images, launch  # what only the operator's machine has

    try:
        match arguments.command:
            case "down":
                launch.down()
            case "env":
                print(environment.read(), end="")
            case "images":
                images.ensure()
            case _:
                launch.up()
                print(environment.read(), end="")
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    """Serves until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = Settings(
        arguments.state, arguments.listen, arguments.tls_port, arguments.metadata_port, arguments.proxy_port
    )
    settings.dns_port = arguments.dns_port
    if arguments.metadata_address:
        _add_loopback_address(arguments.metadata_address)
    server = Server(settings, NoEffects())
    if not arguments.no_effects:
        if not (settings.state / "apt").exists():
            ops_agent.build_apt_repository(settings.state / "apt")
        effects: Effects = DockerEffects((settings.state / "ca.pem").read_text(), settings.state / "acme-roots.pem")
        server.cloud.effects = effects
    await server.start()
    if arguments.no_effects:
        state = settings.state
        credentials = (state / "credentials.json").read_text()
        environment.write((state / "ca.pem").read_text(), credentials, settings.proxy_port, state / "client")
        logging.info("serving; clients: . %s", state / "client" / "env")
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await server.stop()


def _add_loopback_address(address: str) -> None:
    """Gives the loopback interface another IPv4 address, as `ip address add` would."""
    request = struct.pack("16sH2s4s8s", b"lo:0", socket.AF_INET, b"", socket.inet_aton(address), b"")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SET_INTERFACE_ADDRESS, request)


if __name__ == "__main__":
    sys.exit(main())
