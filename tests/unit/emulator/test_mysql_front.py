import asyncio
import contextlib
import socket
import struct

import pytest

from emulator import mysql_front
from tests.unit.emulator.test_sql_front import PRINCIPAL, FakePostgres, tls

__all__ = ["tls"]
TLS, PROTOCOL_41 = 0x0800, 0x0200
IAM_USER = "vm"


def packet(payload, sequence=0):
    return len(payload).to_bytes(3, "little") + bytes([sequence]) + payload


def greeting(way):
    lower = struct.pack("<H", TLS | PROTOCOL_41)
    return packet(b"\x0a" + way.encode() + b"\0" + b"1234" + b"saltsalt\0" + lower + b"rest")


def login(user, capabilities=PROTOCOL_41):
    payload = struct.pack("<IIB", capabilities, 1 << 24, 45) + bytes(23) + user.encode() + b"\0\x14scramble"
    return packet(payload, 1)


def error(message, sequence):
    """Return number and SQLSTATE of an ERR packet."""
    assert message[3:5] == bytes([sequence, 0xFF])
    assert int.from_bytes(message[:3], "little") == len(message) - 4
    return struct.unpack_from("<H", message, 5)[0], message[8:13].decode()


class FakeMariadb(FakePostgres):
    """Greets with the way a connection came by, then echoes; `seen` holds what came, `first` replaces the greeting."""

    def __init__(self, first=None):
        super().__init__()
        self.first = first

    def handler(self, way):
        async def handle(reader, writer):
            writer.write(self.first or greeting(way))
            while chunk := await reader.read(65536):
                self.seen[way] += chunk
                writer.write(chunk)
                await writer.drain()
            writer.close()

        return handle


@contextlib.asynccontextmanager
async def connected(tls, directory, common_name, *, iam_enabled=True, mariadb=None, client_context=None):
    client, server = tls
    places = await mariadb.start(directory) if mariadb else (str(directory / "s"), 1)
    listener = await mysql_front.MySqlFront(*places, iam_enabled).serve(server, 0)
    port = next(s for s in listener.sockets if s.family == socket.AF_INET).getsockname()[1]
    context = client_context or client(common_name)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()
        listener.close()


def after_login(tls, directory, common_name, message, **options):
    """Return the greeting the client gets, what follows its login, and what the server saw."""
    mariadb = FakeMariadb()

    async def scenario():
        async with connected(tls, directory, common_name, mariadb=mariadb, **options) as (reader, writer):
            greeted = await reader.readexactly(len(greeting("tcp")))
            writer.write(message)
            return greeted, await reader.read(4096), mariadb.seen

    return asyncio.run(scenario())


def test_iam_user_with_its_own_certificate_reaches_the_trusting_socket(tls, tmp_path):
    message = login(IAM_USER)
    _, answer, seen = after_login(tls, tmp_path, PRINCIPAL, message)
    assert answer == message  # the second greeting is not the client's
    assert seen == {"unix": message, "tcp": b""}


@pytest.mark.parametrize(
    ("common_name", "user"),
    [
        ("other@demo-project.iam.gserviceaccount.com", IAM_USER),
        ("user", IAM_USER),
        (IAM_USER, IAM_USER),  # no address: no IAM login was asked for
        (PRINCIPAL, "VM"),
        (PRINCIPAL, "mlflow"),
        (PRINCIPAL, "cloudsqladmin"),
        (PRINCIPAL, "mysql"),
        (PRINCIPAL, ""),
    ],
)
def test_everybody_else_goes_where_passwords_are_asked(tls, tmp_path, common_name, user):
    message = login(user)
    _, answer, seen = after_login(tls, tmp_path, common_name, message)
    assert answer == message
    assert seen == {"unix": b"", "tcp": message}


def test_iam_login_is_refused_where_the_instance_does_not_have_it(tls, tmp_path):
    _, answer, seen = after_login(tls, tmp_path, PRINCIPAL, login(IAM_USER), iam_enabled=False)
    assert error(answer, 2) == (1045, "28000")
    assert seen == {"unix": b"", "tcp": b""}


def test_encryption_inside_the_tunnel_is_not_offered(tls, tmp_path):
    greeted, answer, _ = after_login(tls, tmp_path, PRINCIPAL, login(IAM_USER, PROTOCOL_41 | TLS))
    offered = greeting("tcp")
    different = [place for place, (one, other) in enumerate(zip(greeted, offered, strict=True)) if one != other]
    assert [offered[place] - greeted[place] for place in different] == [TLS >> 8]
    assert error(answer, 2) == (1043, "08S01")


@pytest.mark.parametrize("message", [login(IAM_USER, 0), packet(b"short", 1), packet(b"x" * 20_000, 1), packet(b"", 1)])
def test_bad_handshakes_are_refused(tls, tmp_path, message):
    _, answer, seen = after_login(tls, tmp_path, PRINCIPAL, message)
    assert error(answer, 2) == (1043, "08S01")
    assert seen == {"unix": b"", "tcp": b""}


def test_database_that_is_down_is_said(tls, tmp_path):
    async def scenario():
        async with connected(tls, tmp_path, PRINCIPAL) as (reader, _):
            return await reader.read(4096)

    assert error(asyncio.run(scenario()), 0) == (1053, "08S01")


def test_refusal_of_the_server_itself_is_passed_on(tls, tmp_path):
    refusal = packet(b"\xff" + struct.pack("<H", 1040) + b"Too many connections")

    async def scenario():
        async with connected(tls, tmp_path, PRINCIPAL, mariadb=FakeMariadb(refusal)) as (reader, _):
            return await reader.readexactly(len(refusal))

    assert asyncio.run(scenario()) == refusal


def test_client_certificate_of_the_instance_is_demanded(tls, tmp_path):
    client, _ = tls
    mariadb = FakeMariadb()

    async def scenario():
        async with connected(tls, tmp_path, None, mariadb=mariadb, client_context=client(None)) as (reader, writer):
            writer.write(login(IAM_USER))
            assert await reader.read() == b""

    with contextlib.suppress(OSError):
        asyncio.run(scenario())
    assert mariadb.seen == {"unix": b"", "tcp": b""}
