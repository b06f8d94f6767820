import asyncio
import contextlib
import datetime
import http.server
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading

import pytest

from emulator import certificates, sql_front
from emulator.standins import CLOUD_SQL_PROXY, cloud_sql_proxy

NAME = "demo-project:europe-west1:mlflow"
PRINCIPAL = "vm@demo-project.iam.gserviceaccount.com"
IAM_STARTUP = b"\0\0\0\x22\0\3\0\0user\0vm@demo-project.iam\0\0"


class FakeGoogle:
    """Metadata server and sqladmin API on one HTTP port; `refusal`: (HTTP code, body) for connectSettings."""

    def __init__(self):
        self.server_authority = certificates.make_authority("server")
        self.client_authority = certificates.make_authority("client")
        self.common_name, self.dns_name = "demo-project:mlflow", "mlflow.sql.internal"
        self.requests = []
        self.failures = 0
        self.refusal = None
        self.token_seconds = 3600
        self.settings = {
            "region": "europe-west1",
            "backendType": "SECOND_GEN",
            "databaseVersion": "POSTGRES_17",
            "ipAddresses": [{"type": "PRIVATE", "ipAddress": "127.0.0.1"}],
            "dnsName": self.dns_name,
            "serverCaCert": {"cert": self.server_authority[0]},
        }
        google = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body):
                google.requests.append((self.path, dict(self.headers), body))
                status, answer = google.respond(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def respond(self, path, body):
        if path.startswith("/computeMetadata/v1/instance/service-accounts/default/token?scopes="):
            return 200, {"access_token": path.rpartition(".")[2], "expires_in": self.token_seconds}
        if path == "/sql/v1beta4/projects/demo-project/instances/mlflow/connectSettings":
            if self.failures:
                self.failures -= 1
                return 503, {}
            return self.refusal or (200, self.settings)
        if path == "/sql/v1beta4/projects/demo-project/instances/mlflow:generateEphemeralCert":
            name = PRINCIPAL if body.get("access_token") == "login" else "user"
            lifetime = datetime.timedelta(hours=1)
            certificate = certificates.issue_client(*self.client_authority, name, body["public_key"], lifetime)
            return 200, {"ephemeralCert": {"cert": certificate}}
        return 404, {"error": {"code": 404, "message": path, "errors": [{"reason": "notFound"}]}}

    def front_context(self, directory):
        names = [self.dns_name] if self.dns_name else ["elsewhere.internal"]
        certificate, key = certificates.issue_server(*self.server_authority, self.common_name, names)
        for name, text in {"cert": certificate, "key": key, "ca": self.client_authority[0]}.items():
            (directory / name).write_text(text)
        return sql_front.server_context(*(str(directory / name) for name in ("cert", "key", "ca")))


@pytest.fixture
def google():
    fake = FakeGoogle()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def short_path():
    """A directory whose sockets stay below the 108 bytes a Unix socket's name may have."""
    with tempfile.TemporaryDirectory(prefix="p") as directory:
        yield pathlib.Path(directory)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def echo(reader, writer):
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def running(google, directory, monkeypatch, *flags, environment=None):
    """Run PostgreSQL (an echo), the front and the stand-in; yields the proxy, its task and its Unix socket."""
    postgres = await asyncio.start_unix_server(echo, directory / "postgres")
    front = await sql_front.Front(str(directory / "postgres"), 1, True).serve(google.front_context(directory), 0)
    port = next(s for s in front.sockets if s.family == socket.AF_INET).getsockname()[1]
    monkeypatch.setattr(cloud_sql_proxy, "SERVER_PORT", port)
    sockets = directory / "sockets"
    sockets.mkdir()
    arguments = [f"--sqladmin-api-endpoint=http://{google.host}", "--private-ip", *flags, NAME]
    if not any("--port" in flag for flag in flags):
        arguments.append(f"--unix-socket={sockets}")
    settings, names = cloud_sql_proxy.configure(arguments, {})
    proxy = cloud_sql_proxy.Proxy(settings, {"GCE_METADATA_HOST": google.host, **(environment or {})})
    task = asyncio.create_task(proxy.run(names))
    is_mysql = google.settings["databaseVersion"].startswith("MYSQL")
    path = sockets / NAME if is_mysql else sockets / NAME / ".s.PGSQL.5432"
    try:
        async with asyncio.timeout(20):
            while proxy.health("/startup")[0] != "200 OK" and not task.done():
                await asyncio.sleep(0.02)
            yield proxy, task, path
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
            await task
        front.close()
        postgres.close()


async def exchange(path, message=IAM_STARTUP):
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(message)
    answer = await reader.read(65536)
    writer.close()
    return answer


FLAGS = ("--auto-iam-authn", "--health-check", f"--http-port={free_port()}")


def test_private_service_connect_goes_by_the_name_alone(google, short_path, monkeypatch):
    google.dns_name = "localhost"
    google.settings |= {"ipAddresses": [], "dnsName": "localhost", "pscEnabled": True}

    async def scenario():
        async with running(google, short_path, monkeypatch, *FLAGS, "--private-ip=false", "--psc") as (_, _, path):
            assert await exchange(path) == IAM_STARTUP

    asyncio.run(scenario())
    without = cloud_sql_proxy.Instance(NAME, {**cloud_sql_proxy._FLAGS, "psc": True}, None)
    with pytest.raises(cloud_sql_proxy.ProxyError, match='does not have IP of type "PSC"'):
        without._address({**google.settings, "pscEnabled": False}, ["localhost"])


def test_iam_login_through_socket_certificate_and_front(google, short_path, monkeypatch, capsys):
    async def scenario():
        async with running(google, short_path, monkeypatch, *FLAGS) as (_, _, path):
            assert await exchange(path) == IAM_STARTUP
            assert stat.S_IMODE(path.stat().st_mode) == 0o777
        assert not path.exists()

    asyncio.run(scenario())
    certificate_request = next(body for path, _, body in google.requests if path.endswith(":generateEphemeralCert"))
    assert certificate_request["access_token"] == "login"
    settings_headers = next(headers for path, headers, _ in google.requests if path.endswith("connectSettings"))
    assert settings_headers["Authorization"] == "Bearer admin"
    assert google.requests[0][1]["Metadata-Flavor"] == "Google"
    assert "ready for new connections!" in capsys.readouterr().out


def test_mysqls_socket_is_the_instances_place_itself(google, short_path, monkeypatch):
    google.settings["databaseVersion"] = "MYSQL_8_4"

    async def scenario():
        async with running(google, short_path, monkeypatch, *FLAGS) as (_, _, path):
            assert await exchange(path) == IAM_STARTUP
            assert path.is_socket()

    asyncio.run(scenario())


def test_without_iam_login_the_front_refuses_the_iam_user(google, short_path, monkeypatch):
    async def scenario():
        async with running(google, short_path, monkeypatch, "--health-check", FLAGS[2]) as (_, _, path):
            assert (await exchange(path)).startswith(b"E")

    asyncio.run(scenario())


def test_tcp_listener(google, short_path, monkeypatch):
    port = free_port()

    async def scenario():
        async with running(google, short_path, monkeypatch, *FLAGS, f"--port={port}"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(IAM_STARTUP)
            assert await reader.read(100) == IAM_STARTUP
            writer.close()

    asyncio.run(scenario())


def test_health_endpoints(google, short_path, monkeypatch):
    async def get(path):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(FLAGS[2].partition("=")[2]))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        return answer.split()[1], answer.rpartition("\r\n\r\n")[2]

    async def scenario():
        flags = (*FLAGS, "--prometheus", "--max-connections=1")
        async with running(google, short_path, monkeypatch, *flags) as (_, _, path):
            for name in ("startup", "readiness", "liveness"):
                assert await get(f"/{name}") == ("200", "ok")
            assert (await get("/else"))[0] == "404"
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(IAM_STARTUP)
            await reader.read(100)
            assert await get("/readiness") == ("503", "max connections reached (open = 1, max = 1)")
            assert (await get("/liveness"))[0] == "200"
            assert "cloudsqlconn_open_connections 1" in (await get("/metrics"))[1]
            assert await exchange(path, b"") == b""  # one too many
            writer.close()

    asyncio.run(scenario())


def test_ready_is_said_to_systemd(google, short_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(short_path / "notify"))
        manager.settimeout(5)

        async def scenario():
            place = {"NOTIFY_SOCKET": str(short_path / "notify")}
            async with running(google, short_path, monkeypatch, *FLAGS, environment=place):
                assert manager.recv(100) == b"READY=1"

        asyncio.run(scenario())


def failed_start(google, short_path, monkeypatch, capsys, *flags):
    async def scenario():
        async with running(google, short_path, monkeypatch, *FLAGS, *flags) as (_, task, path):
            assert await task == 1
            assert not path.exists()

    asyncio.run(scenario())
    return capsys.readouterr().err


def test_refusal_by_the_api_ends_the_start_with_googles_words(google, short_path, monkeypatch, capsys):
    body = {"error": {"code": 403, "message": "boss::NOT_AUTHORIZED", "errors": [{"reason": "notAuthorized"}]}}
    google.refusal = (403, body)
    said = failed_start(google, short_path, monkeypatch, capsys)
    assert f'failed to get instance metadata (connection name = "{NAME}")' in said
    assert "googleapi: Error 403: boss::NOT_AUTHORIZED, notAuthorized" in said
    assert "The proxy has encountered a terminal error: unable to start" in said


def test_server_errors_are_tried_again(google, short_path, monkeypatch):
    google.failures = 2

    async def scenario():
        async with running(google, short_path, monkeypatch, *FLAGS) as (_, _, path):
            assert await exchange(path) == IAM_STARTUP

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("region", "us-east1", "provided region was mismatched - got europe-west1, want us-east1"),
        ("ipAddresses", [{"type": "PRIMARY", "ipAddress": "127.0.0.1"}], 'does not have IP of type "PRIVATE"'),
        ("databaseVersion", "SQLSERVER_2022_WEB", "SQLSERVER_2022_WEB"),
    ],
)
def test_unfit_instance_ends_the_start(google, short_path, monkeypatch, capsys, field, value, words):
    google.settings[field] = value
    assert words in failed_start(google, short_path, monkeypatch, capsys)


def test_connection_test_finds_a_server_of_another_name(google, short_path, monkeypatch, capsys):
    google.common_name = "demo-project:other"
    google.dns_name = ""
    said = failed_start(google, short_path, monkeypatch, capsys, "--run-connection-test")
    assert 'certificate had CN "demo-project:other", expected "demo-project:mlflow"' in said


def test_common_name_is_enough_where_the_dns_name_is_not_in_the_certificate(google, short_path, monkeypatch):
    google.dns_name = ""

    async def scenario():
        async with running(google, short_path, monkeypatch, *FLAGS, "--run-connection-test") as (_, task, _):
            assert not task.done()

    asyncio.run(scenario())


def test_connection_test_finds_a_foreign_authority(google, short_path, monkeypatch, capsys):
    google.settings["serverCaCert"] = {"cert": certificates.make_authority("server")[0]}
    said = failed_start(google, short_path, monkeypatch, capsys, "--run-connection-test")
    assert "certificate verify failed" in said.lower()


def test_certificate_is_renewed_once_its_token_has_ended(google, short_path, monkeypatch):
    google.token_seconds = 1

    async def scenario():
        async with running(google, short_path, monkeypatch, *FLAGS) as (_, _, path):
            await asyncio.sleep(1.1)
            assert await exchange(path) == IAM_STARTUP

    asyncio.run(scenario())
    assert sum(path.endswith(":generateEphemeralCert") for path, _, _ in google.requests) >= 2


@pytest.mark.parametrize(
    ("flags", "code"),
    [((), 143), (("--exit-zero-on-sigterm",), 0), (("--max-sigterm-delay=300ms",), 1)],
)
def test_exit_codes_with_a_connection_open(google, short_path, monkeypatch, flags, code):
    async def scenario():
        async with running(google, short_path, monkeypatch, *FLAGS, *flags) as (proxy, task, path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(IAM_STARTUP)
            await reader.read(100)
            os.kill(os.getpid(), signal.SIGTERM)
            assert await task == code
            assert proxy.health("/readiness") == ("503 Service Unavailable", "proxy has stopped")
            writer.close()

    asyncio.run(scenario())


def test_flags_win_over_environment_over_file(tmp_path):
    file = tmp_path / "proxy.toml"
    file.write_text('instance-connection-name = "a:b:c"\nport = 1\nhttp-port = "2"\nquiet = true\nprivate-ip = true\n')
    environment = {"CSQL_PROXY_PORT": "3", "CSQL_PROXY_HTTP_PORT": "4", "CSQL_PROXY_CONFIG_FILE": str(file)}
    settings, names = cloud_sql_proxy.configure(["-p", "5"], environment)
    assert (settings["port"], settings["http-port"], settings["quiet"], settings["private-ip"]) == (5, "4", True, True)
    assert names == ["a:b:c"]
    assert cloud_sql_proxy.configure(["x:y:z"], environment)[1] == ["x:y:z"]


def test_numbered_instances_and_json(tmp_path):
    file = tmp_path / "proxy.json"
    file.write_text(json.dumps({"instance-connection-name-0": "a:b:c", "instance-connection-name-1": "d:e:f"}))
    assert cloud_sql_proxy.configure([f"--config-file={file}"], {})[1] == ["a:b:c", "d:e:f"]


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("1m30s", 90), ("250ms", 0.25), ("0", 0)])
def test_durations(text, seconds):
    settings, _ = cloud_sql_proxy.configure([f"--max-sigterm-delay={text}", NAME], {})
    assert settings["max-sigterm-delay"] == seconds


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "missing instance_connection_name"),
        (["--auto-iam-auth", NAME], "unknown flag: --auto-iam-auth"),
        (["--fuse=/mnt", NAME], "unknown flag: --fuse"),
        (["--port"], "flag needs an argument: --port"),
        (["--port=x", NAME], 'invalid argument "x" for "--port" flag'),
        (["--max-sigterm-delay=30", NAME], 'invalid argument "30"'),
        (["--private-ip=maybe", NAME], 'invalid argument "maybe"'),
        (["--private-ip", "--psc", NAME], "cannot specify --private-ip and --psc together"),
        (["--unix-socket=/run", "--port=1", NAME], "cannot specify --unix-socket and --port together"),
        (["--address=localhost", NAME], 'not a valid IP address: "localhost"'),
        (["--config-file=proxy.ini", NAME], "should have extension"),
        (["--auto-iam-authn", "--token=t", NAME], "without --login-token"),
    ],
)
def test_bad_command_lines_are_refused(arguments, words):
    with pytest.raises(cloud_sql_proxy.UsageError) as refusal:
        cloud_sql_proxy.configure(arguments, {})
    assert words in str(refusal.value)


def test_the_file_is_a_program():
    version = subprocess.run([sys.executable, CLOUD_SQL_PROXY, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("cloud-sql-proxy version 2.25.2+linux.")
    usage = subprocess.run([sys.executable, CLOUD_SQL_PROXY, "--nonsense"], capture_output=True, text=True, check=False)
    assert usage.returncode == 1
    assert usage.stderr.startswith("Error: unknown flag: --nonsense")
    assert pathlib.Path(CLOUD_SQL_PROXY).read_text().startswith("#!/usr/bin/python3\n")
