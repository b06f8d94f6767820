"""The operator's one door: an HTTP proxy for Google's hosts and the deployment's own domain, and the admin API."""

import asyncio
import contextlib
import ipaddress
import urllib.parse
from collections.abc import Callable

from emulator.cloud import ADDRESSES
from emulator.effects import EffectError

_LONGEST_HEAD_BYTES = 65536


class Proxy:
    """Splices connections; it looks at nothing but the first request line and headers."""

    def __init__(
        self,
        tls_port: int,
        admin_port: int,
        is_google: Callable[[str], bool],
        address_of_domain: Callable[[str], str | None],
    ) -> None:
        self._tls_port = tls_port
        self._admin_port = admin_port
        self._is_google = is_google
        self._connections: set[asyncio.Task[None]] = set()
        self._address_of_domain = address_of_domain

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=_LONGEST_HEAD_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stops listening and ends every connection, idle ones included."""
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served by a task")
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, ValueError, asyncio.CancelledError):
                await self._route(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _route(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        verb, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        if target.startswith("/"):
            if target.startswith("/_emulator/") and not _is_machine(writer):
                await _splice(reader, writer, "127.0.0.1", self._admin_port, _closing(head))
            else:
                await _refuse(writer, 404, "This is a proxy; the operator's own paths begin with /_emulator/.")
            return
        url = urllib.parse.urlsplit(f"//{target}" if verb == "CONNECT" else target)
        host, port = url.hostname or "", url.port or 80
        if verb == "CONNECT" and port == 443 and self._is_google(host):
            await self._connect(reader, writer, "127.0.0.1", self._tls_port)
            return
        try:
            address = await asyncio.to_thread(self._address_of_domain, host) if port in (80, 443) else None
        except EffectError as error:
            await _refuse(writer, 502, str(error))
            return
        if address is None:
            await _refuse(writer, 403, f"The emulated cloud has no host {host}:{port}.")
        elif verb == "CONNECT":
            await self._connect(reader, writer, address, port)
        else:
            await _splice(reader, writer, address, port, _closing(head))

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, port: int
    ) -> None:
        await _splice(reader, writer, address, port, b"", b"HTTP/1.1 200 Connection established\r\n\r\n")


def _is_machine(writer: asyncio.StreamWriter) -> bool:
    """True for emulated machines, which must not reach the operator's credentials; the gateway is the host."""
    peer = ipaddress.ip_address(writer.get_extra_info("peername")[0])
    return peer in ADDRESSES and peer != ADDRESSES[1]


async def _splice(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    address: str,
    port: int,
    first: bytes,
    answer: bytes = b"",
) -> None:
    """Carries bytes both ways until both sides have ended; `first` goes to the server, `answer` to the client."""
    try:
        there = await asyncio.open_connection(address, port)
    except OSError as error:
        await _refuse(writer, 502, f"{address}:{port} does not answer: {error}")
        return
    try:
        there[1].write(first)
        writer.write(answer)
        await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))
    finally:
        there[1].close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _closing(head: bytes) -> bytes:
    """Return a request's head that asks the server to close afterwards: the next request may be for another host."""
    lines = head.rstrip(b"\r\n").split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith((b"connection:", b"proxy-connection:"))]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""])


async def _refuse(writer: asyncio.StreamWriter, status: int, message: str) -> None:
    text = f"{message}\n".encode()
    head = f"HTTP/1.1 {status} Refused\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode() + text)
    await writer.drain()
