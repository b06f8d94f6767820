import asyncio
import contextlib
import datetime
import socket
import ssl
import struct

import pytest
from cryptography.hazmat.primitives import serialization

from emulator import certificates, sql_front

PRINCIPAL = "vm@demo-project.iam.gserviceaccount.com"
IAM_USER = "vm@demo-project.iam"


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """Return a function that makes a client's context for a common name, and the server's context."""
    directory = tmp_path_factory.mktemp("tls")
    server_authority, server_authority_key = certificates.make_authority("server")
    client_authority = certificates.make_authority("client")
    certificate, key = certificates.issue_server(server_authority, server_authority_key, "p:i", ["localhost"])
    for name, text in {"cert": certificate, "key": key, "ca": client_authority[0]}.items():
        (directory / name).write_text(text)

    def client(common_name, authority=client_authority):
        context = ssl.create_default_context(cadata=server_authority)
        if common_name:
            private = certificates.new_key()
            public = private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            issued = certificates.issue_client(*authority, common_name, public.decode(), datetime.timedelta(hours=1))
            path = directory / "client"
            path.write_text(certificates.key_pem(private) + issued)
            context.load_cert_chain(path)
        return context

    return client, sql_front.server_context(*(str(directory / name) for name in ("cert", "key", "ca")))


def startup(user, **parameters):
    pairs = {"user": user, **parameters}
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in pairs.items()) + b"\0"
    return struct.pack("!II", len(body) + 8, 3 << 16) + body


def error_code(message):
    assert message[:1] == b"E"
    return {field[:1]: field[1:] for field in message[5:].rstrip(b"\0").split(b"\0")}[b"C"].decode()


class FakePostgres:
    """Names the way a connection came by, then echoes; `seen` holds the beginning of what came."""

    def __init__(self):
        self.seen = {"unix": b"", "tcp": b""}

    async def start(self, directory):
        self.unix = await asyncio.start_unix_server(self.handler("unix"), directory / "s")
        self.tcp = await asyncio.start_server(self.handler("tcp"), "127.0.0.1", 0)
        return str(directory / "s"), self.tcp.sockets[0].getsockname()[1]

    def handler(self, way):
        async def handle(reader, writer):
            writer.write(way.encode())
            while chunk := await reader.read(65536):
                self.seen[way] = (self.seen[way] + chunk)[:4096]
                if chunk.endswith(b"goodbye"):
                    break
                writer.write(chunk)
                await writer.drain()
            writer.close()

        return handle


@contextlib.asynccontextmanager
async def connected(tls, directory, common_name, *, iam_enabled=True, postgres_up=True, client_context=None):
    client, server = tls
    postgres = FakePostgres()
    places = await postgres.start(directory) if postgres_up else (str(directory / "s"), 1)
    listener = await sql_front.Front(*places, iam_enabled).serve(server, 0)
    accepting = next(s for s in listener.sockets if s.family == socket.AF_INET)
    connecting = socket.socket()
    for end in (accepting, connecting):  # fixed buffers: the kernel's own grow to many mebibytes
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    connecting.connect(("127.0.0.1", accepting.getsockname()[1]))
    context = client_context or client(common_name)
    reader, writer = await asyncio.open_connection(sock=connecting, ssl=context, server_hostname="localhost")
    try:
        async with asyncio.timeout(20):
            yield reader, writer, postgres
    finally:
        writer.close()
        listener.close()


def first_answer(tls, directory, common_name, message, **options):
    async def scenario():
        async with connected(tls, directory, common_name, **options) as (reader, writer, postgres):
            writer.write(message)
            return await reader.read(4096), postgres.seen

    return asyncio.run(scenario())


def test_iam_user_with_its_own_certificate_reaches_the_trusting_socket(tls, tmp_path):
    answer, _ = first_answer(tls, tmp_path, PRINCIPAL, startup(IAM_USER, database="mlflow"))
    assert answer.startswith(b"unix")


@pytest.mark.parametrize("common_name", ["other@demo-project.iam.gserviceaccount.com", "user", "vm@demo-project"])
def test_iam_user_with_anothers_certificate_is_refused(tls, tmp_path, common_name):
    answer, seen = first_answer(tls, tmp_path, common_name, startup(IAM_USER))
    assert error_code(answer) == "28000"
    assert IAM_USER.encode() in answer
    assert seen == {"unix": b"", "tcp": b""}


def test_iam_login_is_refused_where_the_instance_does_not_have_it(tls, tmp_path):
    answer, _ = first_answer(tls, tmp_path, PRINCIPAL, startup(IAM_USER), iam_enabled=False)
    assert error_code(answer) == "28000"


@pytest.mark.parametrize("common_name", ["user", PRINCIPAL])
def test_built_in_user_goes_where_passwords_are_asked(tls, tmp_path, common_name):
    answer, _ = first_answer(tls, tmp_path, common_name, startup("cloudsqladmin"))
    assert answer.startswith(b"tcp")


@pytest.mark.parametrize("code", [80877103, 80877104])
def test_encryption_inside_the_tunnel_is_declined(tls, tmp_path, code):
    async def scenario():
        async with connected(tls, tmp_path, PRINCIPAL) as (reader, writer, _):
            writer.write(struct.pack("!II", 8, code))
            assert await reader.readexactly(1) == b"N"
            writer.write(startup(IAM_USER))
            assert await reader.readexactly(4) == b"unix"

    asyncio.run(scenario())


def test_cancel_request_is_passed_on(tls, tmp_path):
    cancel = struct.pack("!IIII", 16, 80877102, 4711, 42)
    answer, seen = first_answer(tls, tmp_path, "user", cancel)
    assert answer.startswith(b"unix")
    assert seen["unix"] == cancel


@pytest.mark.parametrize("length", [4, 20_000])
def test_startup_of_impossible_length_is_refused(tls, tmp_path, length):
    answer, _ = first_answer(tls, tmp_path, PRINCIPAL, struct.pack("!II", length, 3 << 16))
    assert error_code(answer) == "08P01"


def test_old_protocol_is_refused(tls, tmp_path):
    answer, _ = first_answer(tls, tmp_path, PRINCIPAL, struct.pack("!II", 8, 2 << 16))
    assert error_code(answer) == "0A000"


def test_database_that_is_down_is_said(tls, tmp_path):
    answer, _ = first_answer(tls, tmp_path, PRINCIPAL, startup(IAM_USER), postgres_up=False)
    assert error_code(answer) == "57P03"


@pytest.mark.parametrize("kind", ["none", "foreign"])
def test_client_certificate_of_the_instance_is_demanded(tls, tmp_path, kind):
    client, _ = tls
    foreign = certificates.make_authority("client")  # the same name, another key
    context = client(None) if kind == "none" else client(PRINCIPAL, foreign)

    async def scenario():
        async with connected(tls, tmp_path, None, client_context=context) as (reader, writer, postgres):
            writer.write(startup(IAM_USER))
            try:
                assert await reader.read() == b""
            finally:
                assert postgres.seen["unix"] == b""

    with contextlib.suppress(ssl.SSLError, ConnectionError):
        asyncio.run(scenario())


def test_old_tls_is_refused(tls):
    assert tls[1].minimum_version == ssl.TLSVersion.TLSv1_2


def test_much_data_for_a_slow_reader_arrives_whole(tls, tmp_path):
    data = bytes(range(256)) * (16 << 10)  # 4 MiB, more than all buffers on the way hold

    async def scenario():
        async with connected(tls, tmp_path, PRINCIPAL) as (reader, writer, _):
            hello = startup(IAM_USER)
            writer.write(hello)
            assert await reader.readexactly(4 + len(hello)) == b"unix" + hello
            sending = asyncio.create_task(send(writer))
            await asyncio.sleep(0.2)
            assert not sending.done()
            assert await reader.readexactly(len(data)) == data
            await sending

    async def send(writer):
        for start in range(0, len(data), 65536):
            writer.write(data[start : start + 65536])
            await writer.drain()

    asyncio.run(scenario())


def test_last_words_of_the_database_arrive(tls, tmp_path):
    async def scenario():
        async with connected(tls, tmp_path, PRINCIPAL) as (reader, writer, _):
            hello = startup(IAM_USER)
            writer.write(hello)
            await reader.readexactly(4 + len(hello))
            writer.write(b"echo this")
            assert await reader.readexactly(9) == b"echo this"
            writer.write(b"goodbye")
            assert await reader.read() == b""

    asyncio.run(scenario())


def test_database_connection_ends_with_its_client(tls, tmp_path):
    async def scenario():
        async with connected(tls, tmp_path, PRINCIPAL) as (reader, writer, _postgres):
            writer.write(startup(IAM_USER))
            await reader.readexactly(4)
            before = len(asyncio.all_tasks())
            writer.close()
            for _ in range(100):
                if len(asyncio.all_tasks()) <= before - 3:  # the front's connection and copy, PostgreSQL's handler
                    return
                await asyncio.sleep(0.02)
            pytest.fail("the connection to PostgreSQL stayed open")

    asyncio.run(scenario())
