"""A company's proxy that looks into TLS: it reads all that it passes on, and shows certificates of its own authority.

`company_proxy.py AUTHORITY KEY PORT`, beside the emulator's `certificates.py`. Says each host that it was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pathlib
import ssl
import sys
import tempfile
import urllib.parse

from certificates import issue_server


@functools.cache
def shown_as(host: str) -> ssl.SSLContext:
    """Return what the proxy answers with in a host's name."""
    certificate, key = issue_server(AUTHORITY, AUTHORITY_KEY, host, [host])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(certificate + key)
        file.flush()
        context.load_cert_chain(file.name)
    return context


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what one side sends until it ends."""
    with contextlib.suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one client: a tunnel, or a request in plain HTTP."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        writer.close()
        return
    verb, target, version = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
    url = urllib.parse.urlsplit(f"//{target}" if verb == "CONNECT" else target)
    host, port = url.hostname or "", url.port or 80
    print(f"{host}:{port}", flush=True)
    try:
        if verb == "CONNECT":
            # Whom a company's proxy trusts is its own affair.
            beyond = await asyncio.open_connection(host, port, ssl=ssl._create_unverified_context())
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await writer.start_tls(shown_as(host))
        else:
            beyond = await asyncio.open_connection(host, port)
            # One request each: the next may be for another host.
            path = f"{url.path or '/'}{'?' if url.query else ''}{url.query}"
            given = head.split(b"\r\n")[1:-2]
            lines = [line for line in given if not line.lower().startswith((b"proxy-", b"connection:"))]
            first = f"{verb} {path} {version}".encode()
            beyond[1].write(b"\r\n".join([first, *lines, b"Connection: close", b"", b""]))
    except OSError as error:
        print(f"{host}:{port}: {error}", flush=True)
        writer.close()
        return
    await asyncio.gather(copy(reader, beyond[1]), copy(beyond[0], writer))


async def main() -> None:
    """Listen."""
    server = await asyncio.start_server(serve, "0.0.0.0", int(sys.argv[3]))
    await server.serve_forever()


if __name__ == "__main__":
    AUTHORITY, AUTHORITY_KEY = (pathlib.Path(name).read_text() for name in sys.argv[1:3])
    asyncio.run(main())
