"""The server side of Cloud SQL's proxy port (3307) for MySQL: mutual TLS in front of a MariaDB server.

As `sql_front`, but in MySQL the server speaks first, and the name of an IAM user is what stands before the @ of its
address (https://cloud.google.com/sql/docs/mysql/iam-logins). Who asks to be the principal of the certificate reaches
MariaDB through a Unix socket, whose peer stands for IAM users; everybody else goes to the TCP port, where IAM users
are refused and others give their password. Protocol: MySQL documentation, "Connection Phase".
Not emulated: principals whose addresses differ after the @ alone, which Cloud SQL tells apart.
"""

import asyncio
import struct
from collections.abc import Awaitable

from emulator.sql_front import Front, RefusedError, Streams

_LARGEST_LOGIN_BYTES = 10_000
_GREETING_PROTOCOL = 10
_TLS = 0x0800
_PROTOCOL_41 = 0x0200
_USER_OFFSET = 32  # capabilities, largest packet, character set, filler


class RefusedLoginError(RefusedError):
    """A connection that gets a MySQL error: SQLSTATE, message, number, and the packet's place in the dialogue."""

    def __init__(self, sqlstate: str, message: str, number: int, sequence: int) -> None:
        super().__init__(sqlstate, message)
        self.number = number
        self.sequence = sequence

    def message(self) -> bytes:
        """Return the ERR packet."""
        body = b"\xff" + struct.pack("<H", self.number) + f"#{self.sqlstate}{self}".encode()
        return len(body).to_bytes(3, "little") + bytes([self.sequence % 256]) + body


def database_user(principal: str) -> str:
    """Return MySQL's spelling of a principal's e-mail address."""
    return principal.partition("@")[0].lower()


class MySqlFront(Front):
    """Takes connections from proxies and passes them on to MariaDB."""

    async def introduce(self, client: Streams, principal: str) -> Streams:
        """Return a connection to MariaDB that has been sent the client's login; raises `RefusedError`."""
        upstream = await _connected(asyncio.open_connection("127.0.0.1", self.tcp_port))
        try:
            client[1].write(_without_tls(await _read_packet(upstream[0])))
            login = await _read_packet(client[0])
            user = _user(login)
            if "@" in principal and user == database_user(principal):
                if not self.iam_enabled:
                    raise RefusedLoginError("28000", f"Access denied for user '{user}': IAM login is off", 1045, 2)
                upstream[1].close()
                upstream = await _connected(asyncio.open_unix_connection(self.socket_path))
                await _read_packet(upstream[0])  # its salt is for passwords, which IAM users do not have
            upstream[1].write(login)
        except BaseException:
            upstream[1].close()
            raise
        return upstream


async def _connected(opening: Awaitable[Streams]) -> Streams:
    try:
        return await opening
    except OSError as error:
        raise RefusedLoginError("08S01", "Server shutdown in progress", 1053, 0) from error


async def _read_packet(reader: asyncio.StreamReader) -> bytes:
    """Return a packet with its header: three bytes of length, one of sequence."""
    header = await reader.readexactly(4)
    length = int.from_bytes(header[:3], "little")
    if not 0 < length <= _LARGEST_LOGIN_BYTES:
        raise RefusedLoginError("08S01", "Bad handshake", 1043, header[3] + 1)
    return header + await reader.readexactly(length)


def _without_tls(greeting: bytes) -> bytes:
    """Return a greeting that does not offer TLS, which has no place inside the tunnel; a refusal as it is."""
    if greeting[4] != _GREETING_PROTOCOL:
        return greeting
    # After the version: connection number, first part of the salt, filler.
    place = greeting.index(b"\0", 5) + 1 + 4 + 8 + 1
    capabilities = int.from_bytes(greeting[place : place + 2], "little") & ~_TLS
    return greeting[:place] + capabilities.to_bytes(2, "little") + greeting[place + 2 :]


def _user(login: bytes) -> str:
    payload = login[4:]
    capabilities = int.from_bytes(payload[:4], "little")
    name, ended, _ = payload[_USER_OFFSET:].partition(b"\0")
    if not capabilities & _PROTOCOL_41 or capabilities & _TLS or not ended:
        raise RefusedLoginError("08S01", "Bad handshake", 1043, login[3] + 1)
    return name.decode(errors="replace")
