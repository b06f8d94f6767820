"""The server side of Cloud SQL's proxy port (3307): mutual TLS in front of a PostgreSQL server.

Runs inside a Cloud SQL container on the standard library alone. A client certificate from `generateEphemeralCert` is
demanded. Its common name is the principal's e-mail address when IAM login was asked for. A user whose name has an `@`
is an IAM user: it must be the principal, and then reaches PostgreSQL through a Unix socket that trusts IAM roles; any
other user goes to the TCP port and gives its password. Protocol: PostgreSQL documentation, "Message Formats".
Not emulated: the metadata exchange of newer connectors, access tokens given as passwords.
`mysql_front` speaks the other engine's protocol.
"""

import asyncio
import ssl
import struct

PORT = 3307
_HANDSHAKE_SECONDS = 30
_CHUNK_BYTES = 64 * 1024
_LARGEST_STARTUP_BYTES = 10_000  # PostgreSQL's own limit
_VERSION_3 = 3
_CANCEL_REQUEST = 80877102
_ENCRYPTION_REQUESTS = (80877103, 80877104)  # TLS and GSSAPI, which have no place inside the tunnel
_SERVICE_ACCOUNT_SUFFIX = ".gserviceaccount.com"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class RefusedError(Exception):
    """A connection that gets an error of its protocol: SQLSTATE and message."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate

    def message(self) -> bytes:
        """Return the ErrorResponse."""
        fields = {"S": "FATAL", "V": "FATAL", "C": self.sqlstate, "M": str(self)}
        body = b"".join(f"{name}{value}\0".encode() for name, value in fields.items()) + b"\0"
        return b"E" + struct.pack("!I", len(body) + 4) + body


def server_context(certificate: str, key: str, client_authority: str) -> ssl.SSLContext:
    """Return the TLS settings from the paths of three PEM files: TLS 1.2 or newer, client certificate demanded."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(client_authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def database_user(principal: str) -> str:
    """Return PostgreSQL's spelling of a principal's e-mail address."""
    return principal.removesuffix(_SERVICE_ACCOUNT_SUFFIX)


class Front:
    """Takes connections from proxies and passes them on.

    `socket_path` is the database server's Unix socket, `tcp_port` its port on the loopback address.
    """

    def __init__(self, socket_path: str, tcp_port: int, iam_enabled: bool) -> None:
        self.socket_path = socket_path
        self.tcp_port = tcp_port
        self.iam_enabled = iam_enabled

    async def serve(self, context: ssl.SSLContext, port: int = PORT) -> asyncio.Server:
        """Listen on every address; raises `OSError` when the port is taken."""
        return await asyncio.start_server(
            self._connection, None, port, ssl=context, ssl_handshake_timeout=_HANDSHAKE_SECONDS
        )

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                async with asyncio.timeout(_HANDSHAKE_SECONDS):
                    upstream = await self.introduce((reader, writer), _common_name(writer))
            except RefusedError as refused:
                writer.write(refused.message())
                await writer.drain()
                return
            await _relay((reader, writer), upstream)
        except (OSError, EOFError, TimeoutError):
            return  # the client went away or never spoke: nobody is left to tell
        finally:
            writer.close()

    async def introduce(self, client: Streams, principal: str) -> Streams:
        """Return a connection to the server that knows who the client is; raises `RefusedError`."""
        startup = await _read_startup(*client)
        upstream = await self._upstream(startup, principal)
        upstream[1].write(startup)
        return upstream

    async def _upstream(self, startup: bytes, principal: str) -> Streams:
        try:
            if _code(startup) == _CANCEL_REQUEST:
                return await asyncio.open_unix_connection(self.socket_path)
            user = _user(startup)
            if "@" not in user:
                return await asyncio.open_connection("127.0.0.1", self.tcp_port)
            if not self.iam_enabled:
                raise RefusedError("28000", "Cloud SQL IAM authentication is not enabled on this instance")
            if user != database_user(principal):
                raise RefusedError("28000", f'Cloud SQL IAM user authentication failed for user "{user}"')
            return await asyncio.open_unix_connection(self.socket_path)
        except OSError as error:
            raise RefusedError("57P03", "the database system is not accepting connections") from error


def _common_name(writer: asyncio.StreamWriter) -> str:
    subject = (writer.get_extra_info("peercert") or {}).get("subject", ())
    return next((value for part in subject for name, value in part if name == "commonName"), "")


def _code(startup: bytes) -> int:
    return int(struct.unpack_from("!I", startup, 4)[0])


async def _read_startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Return the first message that is not a request for encryption."""
    while True:
        header = await reader.readexactly(8)
        length, code = struct.unpack("!II", header)
        if not 8 <= length <= _LARGEST_STARTUP_BYTES:
            raise RefusedError("08P01", "invalid length of startup packet")
        message = header + await reader.readexactly(length - 8)
        if code not in _ENCRYPTION_REQUESTS:
            return message
        writer.write(b"N")
        await writer.drain()


def _user(startup: bytes) -> str:
    if _code(startup) >> 16 != _VERSION_3:
        raise RefusedError("0A000", "unsupported frontend protocol")
    parts = startup[8:].split(b"\0")
    parameters = dict(zip(parts[::2], parts[1::2], strict=False))
    user = parameters.get(b"user", b"").decode(errors="replace")
    if not user:
        raise RefusedError("28000", "no PostgreSQL user name specified in startup packet")
    return user


async def _relay(client: Streams, server: Streams) -> None:
    """Copy both ways until the server closes, which it also does when its client has left."""
    upwards = asyncio.create_task(_copy(client[0], server[1]))
    try:
        await _copy(server[0], client[1])
    finally:
        upwards.cancel()
        await asyncio.gather(upwards, return_exceptions=True)
        server[1].close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()  # no faster than the other side takes it
    finally:
        if writer.can_write_eof() and not writer.is_closing():  # asyncio's TLS has no half-closed state
            writer.write_eof()
