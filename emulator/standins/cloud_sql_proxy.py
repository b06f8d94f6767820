#!/usr/bin/python3
"""A stand-in for Cloud SQL Auth Proxy v2.25.2 that speaks its real protocol, for emulated virtual machines.

Flags, environment, configuration files, log lines, exit codes and health checks follow the real program
(https://github.com/GoogleCloudPlatform/cloud-sql-proxy). Needs Debian's python3 and python3-cryptography.
What it does not do: refused are FUSE, gcloud's and impersonated credentials, SQL Data, the admin server, sub-commands,
YAML configuration, parameters of single instances, SQL Server. Taken and ignored: telemetry.
Also missing: a login at HTTPS_PROXY, the metadata exchange, metrics other than counts.
"""

import asyncio
import base64
import contextlib
import datetime
import functools
import http.client
import ipaddress
import itertools
import json
import os
import pathlib
import platform
import re
import signal
import socket
import ssl
import sys
import time
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

VERSION = "2.25.2"
SERVER_PORT = 3307
_SCOPES = {
    "": "https://www.googleapis.com/auth/sqlservice.admin",
    "login-": "https://www.googleapis.com/auth/sqlservice.login",
}
_REFRESH_AHEAD_SECONDS = 240
_RETRY_SECONDS = 30
_DIAL_SECONDS = 30
# A database version's beginning: the engine's usual port, and the name of its socket in the instance's directory.
_ENGINES = {"POSTGRES": (5432, ".s.PGSQL.5432"), "MYSQL": (3306, "")}
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
# Name: default, whose type is the flag's; durations are floats, in seconds.
_FLAGS: dict[str, Any] = {
    "address": "127.0.0.1",
    "auto-iam-authn": False,
    "config-file": "",
    "credentials-file": "",
    "debug-logs": False,
    "disable-metrics": False,
    "disable-traces": False,
    "exit-zero-on-sigterm": False,
    "health-check": False,
    "help": False,
    "http-address": "localhost",
    "http-port": "9090",
    "login-token": "",
    "max-connections": 0,
    "max-sigterm-delay": 0.0,
    "min-sigterm-delay": 0.0,
    "port": 0,
    "private-ip": False,
    "prometheus": False,
    "psc": False,
    "quiet": False,
    "quota-project": "",
    "run-connection-test": False,
    "sqladmin-api-endpoint": "https://sqladmin.googleapis.com",
    "structured-logs": False,
    "telemetry-prefix": "",
    "telemetry-project": "",
    "token": "",
    "unix-socket": "",
    "user-agent": "",
    "version": False,
}
_SHORTHANDS = {name[0]: name for name in ("address", "help", "port", "token", "unix-socket", "version")} | {
    "c": "credentials-file",
    "i": "auto-iam-authn",
    "l": "structured-logs",
}
_EXCLUSIVE = (
    ("unix-socket", "address"),
    ("unix-socket", "port"),
    ("private-ip", "psc"),
    ("token", "credentials-file"),
)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class UsageError(Exception):
    """A bad command line or configuration file."""


class ProxyError(Exception):
    """What the real program calls a config, refresh or dial error."""


def _convert(flag: str, text: str) -> Any:
    """Return a flag's value in the type of its default, by the rules of Go's flag parsers."""
    kind = type(_FLAGS[flag])
    try:
        if kind is bool:
            return {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}[text.lower()]
        if kind is float and text != "0":
            parts = re.findall(r"(\d+\.?\d*)(ms|h|m|s)", text)
            if not parts or "".join(number + unit for number, unit in parts) != text:
                raise ValueError(text)
            return sum(float(number) * _UNITS[unit] for number, unit in parts)
        return kind(text)
    except (KeyError, ValueError) as error:
        raise UsageError(f'invalid argument "{text}" for "--{flag}" flag') from error


def _parse(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    flags: dict[str, Any] = {}
    instances: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            instances.append(argument)
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        name = name if argument.startswith("--") else _SHORTHANDS.get(name, "")
        if name not in _FLAGS:
            raise UsageError(f"unknown flag: {argument.partition('=')[0]} (to this stand-in)")
        if not equals:
            value = "true" if isinstance(_FLAGS[name], bool) else next(rest, "")
            if not value:
                raise UsageError(f"flag needs an argument: --{name}")
        flags[name] = _convert(name, value)
    return flags, instances


def _read_file(path: pathlib.Path) -> dict[str, str]:
    loaders = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in loaders:
        raise UsageError(f"config file {path} should have extension of toml or json (to this stand-in)")
    try:
        return {name: str(value) for name, value in loaders[path.suffix](path.read_text()).items()}
    except (OSError, ValueError) as error:
        raise UsageError(f"failed to load configuration from {path}: {error}") from error


def configure(arguments: list[str], environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return `{flag: value}` and instances: flags before CSQL_PROXY_* variables before the configuration file."""
    flags, instances = _parse(arguments)
    variables = {
        name.removeprefix("CSQL_PROXY_").lower().replace("_", "-"): value
        for name, value in environment.items()
        if name.startswith("CSQL_PROXY_") and value
    }
    path = flags.get("config-file") or variables.get("config-file")
    for source in (variables, _read_file(pathlib.Path(path)) if path else {}):
        flags = {name: _convert(name, value) for name, value in source.items() if name in _FLAGS} | flags
        numbered = (f"instance-connection-name-{number}" for number in itertools.count())
        named = [name for name in ("instance-connection-name",) if name in source]
        instances = instances or [source[n] for n in (*named, *itertools.takewhile(source.__contains__, numbered))]
    for one, other in _EXCLUSIVE:
        if flags.get(one) and flags.get(other):
            raise UsageError(f"cannot specify --{one} and --{other} together")
    settings = _FLAGS | flags
    if settings["auto-iam-authn"] and bool(settings["token"]) != bool(settings["login-token"]):
        raise UsageError("cannot specify --auto-iam-authn and --token without --login-token")
    try:
        ipaddress.ip_address(settings["address"])
    except ValueError as error:
        raise UsageError(f'not a valid IP address: "{settings["address"]}"') from error
    if not (instances or settings["help"] or settings["version"]):
        raise UsageError("missing instance_connection_name (e.g., project:region:instance)")
    return settings, instances


def call(method: str, url: str, headers: Mapping[str, str], body: str | None = None) -> dict[str, Any]:
    """Call a JSON API, trying again on 5xx; raises `ProxyError` in the words of Google's Go client."""
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    proxies = urllib.request.getproxies_environment()
    is_direct = parts.scheme not in proxies or urllib.request.proxy_bypass(parts.netloc)
    for attempt in range(5):
        place = parts.netloc if is_direct else urllib.parse.urlsplit(proxies[parts.scheme]).netloc
        connection = kind(place, timeout=_DIAL_SECONDS)
        if not is_direct:
            connection.set_tunnel(parts.netloc)
        try:
            connection.request(method, f"{parts.path}?{parts.query}".rstrip("?"), body, dict(headers))
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ProxyError(f'{method.title()} "{url}": {error}') from error
        finally:
            connection.close()
        if response.status < 500:
            break
        time.sleep(0.2 * 2**attempt)
    answer: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        answer = json.loads(text)
    if response.status == 200:
        return answer
    error_body = answer.get("error")
    if isinstance(error_body, dict):
        reason = next((item.get("reason", "") for item in error_body.get("errors", [])), "")
        raise ProxyError(f"googleapi: Error {response.status}: {error_body.get('message')}, {reason}")
    raise ProxyError(f"googleapi: got HTTP response code {response.status} with body: {text[:300]!r}")


class Credentials:
    """Access tokens from flags, a service account's key file or the metadata server."""

    def __init__(self, settings: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._settings = settings
        self._host = environment.get("GCE_METADATA_HOST", "metadata.google.internal")
        path = settings["credentials-file"] or environment.get("GOOGLE_APPLICATION_CREDENTIALS", "")
        try:
            self._account = json.loads(pathlib.Path(path).read_text()) if path else {}
        except (OSError, ValueError) as error:
            raise ProxyError(f"error initializing dialer: {error}") from error
        if self._account and self._account.get("type") != "service_account":
            raise ProxyError(f"error initializing dialer: {path} is not the key of a service account")

    def token(self, purpose: str = "") -> tuple[str, float]:
        """Return an access token (`""`) or one for logging in (`"login-"`), and when it ends, in seconds since 1970."""
        now = time.time()
        if token := self._settings[f"{purpose}token"]:
            return token, now + 3600
        scope = _SCOPES[purpose]
        if self._account:
            grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
            form = urllib.parse.urlencode({"grant_type": grant, "assertion": self._assertion(scope, int(now))})
            content = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = call("POST", self._account["token_uri"], content, form)
        else:
            place = f"http://{self._host}/computeMetadata/v1/instance/service-accounts/default/token"
            query = urllib.parse.urlencode({"scopes": scope})
            answer = call("GET", f"{place}?{query}", {"Metadata-Flavor": "Google"})
        return answer["access_token"], now + float(answer["expires_in"])

    def _assertion(self, scope: str, now: int) -> str:
        account = self._account
        header = {"alg": "RS256", "typ": "JWT", "kid": account["private_key_id"]}
        claims = {"iss": account["client_email"], "aud": account["token_uri"], "scope": scope}
        parts = (json.dumps(part).encode() for part in (header, {**claims, "iat": now, "exp": now + 3600}))
        signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
        key: Any = serialization.load_pem_private_key(account["private_key"].encode(), None)
        signature = key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


class Route(NamedTuple):
    """What a refresh yields: how to reach an instance until `expires` (seconds since 1970)."""

    engine: str
    address: str
    context: ssl.SSLContext
    names: list[str]
    expires: float


class Instance:
    """The way to one instance, refreshed ahead of its certificate's end."""

    def __init__(self, name: str, settings: Mapping[str, Any], credentials: Credentials) -> None:
        if not re.fullmatch(r"[^?]+:[^:?]+:[^:?]+", name):
            raise ProxyError(
                f'config error: invalid instance connection name, expected PROJECT:REGION:INSTANCE: "{name}"'
            )
        self.name = name
        self.refreshes = 0
        self._project, self._region, self._instance = name.rsplit(":", 2)
        self._settings = settings
        self._credentials = credentials
        self._of = f' (connection name = "{name}")'
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._lock = asyncio.Lock()
        self._route: Route | None = None

    async def route(self, renew: bool = False) -> Route:
        """Return a valid route; raises `ProxyError`."""
        async with self._lock:
            if renew or self._route is None or self._route.expires < time.time():
                self._route = await asyncio.to_thread(self._refresh)
                self.refreshes += 1
            return self._route

    async def keep_fresh(self) -> None:
        """Refresh for ever: half-way, or four minutes before the certificate's end."""
        renew = False
        while True:
            pause = float(_RETRY_SECONDS)
            with contextlib.suppress(ProxyError):  # the old route may still be good; a dial will tell
                left = (await self.route(renew)).expires - time.time()
                pause = left / 2 if left > 3600 else max(left - _REFRESH_AHEAD_SECONDS, _RETRY_SECONDS)
            await asyncio.sleep(pause)
            renew = True

    def _refresh(self) -> Route:
        endpoint = self._settings["sqladmin-api-endpoint"].rstrip("/")
        base = f"{endpoint}/sql/v1beta4/projects/{self._project}/instances/{self._instance}"
        step = "failed to get instance: refresh error: failed to get instance metadata"
        try:
            headers = {"Authorization": f"Bearer {self._credentials.token()[0]}", "Content-Type": "application/json"}
            found = call("GET", f"{base}/connectSettings", headers)
            self._judge(found)
            step = "fetch ephemeral cert failed: refresh error: create ephemeral cert failed"
            public = self._key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            request, expires = {"public_key": public.decode()}, float("inf")
            if self._settings["auto-iam-authn"]:
                request["access_token"], expires = self._credentials.token("login-")
            answer = call("POST", f"{base}:generateEphemeralCert", headers, json.dumps(request))
        except ProxyError as error:
            raise ProxyError(f"{step}{self._of}: {error}") from error
        certificate = answer["ephemeralCert"]["cert"]
        leaf: Any = x509.load_pem_x509_certificate(certificate.encode())
        ends = getattr(leaf, "not_valid_after_utc", None) or leaf.not_valid_after.replace(tzinfo=datetime.UTC)
        names = [item["name"] for item in found.get("dnsNames", [])] or [found.get("dnsName", "")]
        context = self._context(found["serverCaCert"]["cert"], certificate)
        engine = found["databaseVersion"].partition("_")[0]
        return Route(engine, self._address(found, names), context, names, min(expires, ends.timestamp()))

    def _judge(self, found: Mapping[str, Any]) -> None:
        if found["region"] != self._region:
            raise ProxyError(f"provided region was mismatched - got {self._region}, want {found['region']}")
        if found["databaseVersion"].partition("_")[0] not in _ENGINES:
            raise ProxyError(f"{found['databaseVersion']} is not known to this stand-in")

    def _address(self, found: Mapping[str, Any], names: list[str]) -> str:
        addresses = {item["type"]: item["ipAddress"] for item in found.get("ipAddresses", [])}
        kind, address = "PUBLIC", addresses.get("PRIMARY")
        if self._settings["private-ip"]:
            kind, address = "PRIVATE", addresses.get("PRIVATE")
        elif self._settings["psc"]:
            kind, address = "PSC", names[0] if found.get("pscEnabled") else None
        if not address:
            raise ProxyError(f'config error: instance does not have IP of type "{kind}"{self._of}')
        return str(address)

    def _context(self, authority: str, certificate: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # `_verify` does it by Cloud SQL's own rules
        context.load_verify_locations(cadata=authority)
        key = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        memory = os.memfd_create("client")  # the key never meets a disk
        with os.fdopen(memory, "wb", buffering=0) as file:
            file.write(key + certificate.encode())
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        return context

    async def dial(self) -> Streams:
        """Open a verified TLS connection to the instance; raises `ProxyError`."""
        route = await self.route()
        try:
            async with asyncio.timeout(_DIAL_SECONDS):
                reader, writer = await asyncio.open_connection(route.address, SERVER_PORT, ssl=route.context)
            self._verify(writer, route.names)
        except (OSError, TimeoutError, ProxyError) as error:
            self._route = None  # may be out of date
            raise ProxyError(f"dial error: failed to dial{self._of}: {error or 'i/o timeout'}") from error
        return reader, writer

    def _verify(self, writer: asyncio.StreamWriter, names: list[str]) -> None:
        certificate = writer.get_extra_info("peercert")
        alternatives = {name.rstrip(".") for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"}
        common = next((value for part in certificate["subject"] for name, value in part if name == "commonName"), "")
        expected = f"{self._project}:{self._instance}"
        if not alternatives & {name.rstrip(".") for name in names} and common != expected:
            writer.close()
            raise ProxyError(f'certificate had CN "{common}", expected "{expected}"')


class Proxy:
    """The running program: listeners, connections, health."""

    def __init__(self, settings: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._settings = settings
        self._environment = environment
        self._instances: list[Instance] = []
        self._servers: list[asyncio.Server] = []
        self._sockets: list[pathlib.Path] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0
        self._dials = {"success": 0, "failure": 0}
        self._unready = "proxy is not started"

    def log(self, message: str, error: bool = False) -> None:
        """Print a line in the real program's plain or structured form."""
        now = datetime.datetime.now(datetime.UTC)
        line = f"{now:%Y/%m/%d %H:%M:%S} {message}"
        if self._settings["structured-logs"]:
            severity = "ERROR" if error else "INFO"
            record = {"timestamp": now.isoformat(timespec="seconds"), "severity": severity, "message": message}
            line = json.dumps(record)
        if error or not self._settings["quiet"]:
            print(line, file=sys.stderr if error else sys.stdout, flush=True)

    async def run(self, names: list[str]) -> int:
        """Serve until a signal comes; returns the exit code."""
        stop: asyncio.Queue[int] = asyncio.Queue()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.put_nowait, number)
        stopped = asyncio.create_task(stop.get())
        started = asyncio.create_task(self._start(names))
        try:
            await asyncio.wait((started, stopped), return_when=asyncio.FIRST_COMPLETED)
            if started.done():
                started.result()
            return await self._stop(await stopped)
        except (ProxyError, OSError) as error:
            self.log(f"The proxy has encountered a terminal error: {error}", error=True)
            return 1
        finally:
            for server in self._servers:
                server.close()
            for path in self._sockets:
                path.unlink(missing_ok=True)

    async def _start(self, names: list[str]) -> None:
        try:
            credentials = Credentials(self._settings, self._environment)
            self._instances = [Instance(name, self._settings, credentials) for name in names]
        except ProxyError as error:
            raise ProxyError(f"unable to start: {error}") from error
        for number, instance in enumerate(self._instances):
            try:
                place = await self._listen(instance, number)
            except (ProxyError, OSError) as error:
                raise ProxyError(f"unable to start: [{instance.name}] Unable to mount socket: {error}") from error
            self.log(f"[{instance.name}] Listening on {place}")
        self.log("The proxy has started successfully and is ready for new connections!")
        self._notify("READY=1")
        if self._settings["health-check"] or self._settings["prometheus"]:
            where = (self._settings["http-address"], int(self._settings["http-port"]))
            self.log(f"Starting health check server at {where[0]}:{where[1]}")
            self._servers.append(await asyncio.start_server(self._answer, *where))
        if self._settings["run-connection-test"]:
            self.log("Connection test started")
            for instance in self._instances:
                (await instance.dial())[1].close()
            self.log("Connection test passed")
        self._unready = ""

    async def _listen(self, instance: Instance, number: int) -> str:
        directory, port = self._settings["unix-socket"], self._settings["port"]
        socket_name = ""
        if directory or not port:  # the engine decides on the place: a wrong set-up fails here
            port, socket_name = _ENGINES[(await instance.route()).engine]
        port += number
        self._keep(asyncio.create_task(instance.keep_fresh()))
        serve = functools.partial(self._serve, instance)
        if not directory:
            self._servers.append(await asyncio.start_server(serve, self._settings["address"], port))
            return f"{self._settings['address']}:{port}"
        path = pathlib.Path(directory, instance.name, socket_name)
        if socket_name:
            path.parent.mkdir(exist_ok=True)
        if path.exists():
            raise ProxyError(f"listen unix {path}: bind: address already in use")
        self._servers.append(await asyncio.start_unix_server(serve, path))
        self._sockets.append(path)
        path.chmod(0o777)
        return str(path)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _notify(self, message: str) -> None:
        if address := self._environment.get("NOTIFY_SOCKET"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.sendto(message.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)

    async def _stop(self, number: int) -> int:
        name = signal.Signals(number).name
        self.log(f"{name} signal received. Shutting down...")
        await asyncio.sleep(self._settings["min-sigterm-delay"])
        self._unready = "proxy has stopped"
        deadline = time.monotonic() + self._settings["max-sigterm-delay"]
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        if self._open and self._settings["max-sigterm-delay"]:
            delay = self._settings["max-sigterm-delay"]
            self.log(
                f"error during shutdown: {self._open} connection(s) still open after waiting {delay:g}s", error=True
            )
            return 1
        return 0 if name == "SIGTERM" and self._settings["exit-zero-on-sigterm"] else 128 + number

    async def _serve(self, instance: Instance, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.log(f"[{instance.name}] Accepted connection from {writer.get_extra_info('peername') or '@'}")
        self._open += 1
        try:
            limit = self._settings["max-connections"]
            if limit and self._open > limit:
                self.log(f"max connections ({limit}) exceeded, refusing new connection")
                return
            upstream = await instance.dial()
            self._dials["success"] += 1
            ended = await _relay((reader, writer), upstream)
            self.log(f"[{instance.name}] {ended} closed the connection")
        except ProxyError as error:
            self._dials["failure"] += 1
            self.log(f"[{instance.name}] failed to connect to instance: {error}", error=True)
        except OSError as error:
            self.log(f"[{instance.name}] connection aborted - {error}", error=True)
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(_DIAL_SECONDS):
                path = (await reader.readline()).split()[1:2]
                while (await reader.readline()).strip():
                    pass
            status, text = self.health(b"".join(path).decode())
            head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
            writer.write(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
            await writer.drain()

    def health(self, path: str) -> tuple[str, str]:
        """Return HTTP status and body for /startup, /readiness, /liveness or /metrics."""
        limit = self._settings["max-connections"]
        if path == "/metrics" and self._settings["prometheus"]:
            counts = {"open_connections": self._open, "dial_failure_count": self._dials["failure"]}
            counts["dial_count"] = sum(self._dials.values())
            counts["refresh_success_count"] = sum(instance.refreshes for instance in self._instances)
            return "200 OK", "".join(f"cloudsqlconn_{name} {value}\n" for name, value in counts.items())
        if not self._settings["health-check"] or path not in ("/startup", "/readiness", "/liveness"):
            return "404 Not Found", "404 page not found\n"
        problem = "" if path == "/liveness" else self._unready
        if path == "/startup":
            problem = "error" if self._unready == "proxy is not started" else ""
        elif path == "/readiness" and not problem and limit and self._open >= limit:
            problem = f"max connections reached (open = {self._open}, max = {limit})"
        if path == "/readiness" and problem:
            self.log(f"[Health Check] Readiness failed: {problem}", error=True)
        return ("503 Service Unavailable", problem) if problem else ("200 OK", "ok")


async def _relay(client: Streams, instance: Streams) -> str:
    """Copy both ways until one side closes; returns which."""
    upwards = asyncio.create_task(_copy(client[0], instance[1]))
    downwards = asyncio.create_task(_copy(instance[0], client[1]))
    try:
        done, _ = await asyncio.wait((upwards, downwards), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return "client" if upwards in done else "instance"
    finally:
        upwards.cancel()
        downwards.cancel()
        await asyncio.gather(upwards, downwards, return_exceptions=True)
        instance[1].close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(8192):
        writer.write(chunk)
        await writer.drain()  # no faster than the other side takes it


def main() -> int:
    """Run the program; returns its exit code."""
    try:
        settings, names = configure(sys.argv[1:], os.environ)
    except UsageError as error:
        print(f"Error: {error}\n{_usage()}", file=sys.stderr)
        return 1
    if settings["help"]:
        print(_usage())
        return 0
    if settings["version"]:
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        print(f"cloud-sql-proxy version {VERSION}+linux.{machine}")
        return 0
    return asyncio.run(Proxy(settings, os.environ).run(names))


def _usage() -> str:
    lines = (
        f"      --{name}" + ("" if default is False else f" (default {default!r})") for name, default in _FLAGS.items()
    )
    return "\n".join(("Usage:\n  cloud-sql-proxy INSTANCE_CONNECTION_NAME... [flags]\n\nFlags:", *lines))


if __name__ == "__main__":
    sys.exit(main())
