"""The server: TLS for Google's hosts, authentication, validation, faults and the log of calls."""

import asyncio
import collections
import dataclasses
import fnmatch
import importlib
import inspect
import json
import logging
import pathlib
import ssl
import time
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from emulator import certificates, oauth, public_files
from emulator.cloud import DEFAULT_SERVICES, METHODS, Call, Cloud
from emulator.discovery import REGIONAL_HOST, Directory
from emulator.effects import Effects
from emulator.errors import ApiError
from emulator.iam import Access
from emulator.metadata import Metadata
from emulator.name_server import NameServer
from emulator.operations import Operations
from emulator.proxy import Proxy
from emulator.services import compute, dns
from emulator.services.compute_catalog import ZONES
from emulator.services.iam import new_account
from emulator.standins import identity_aware_proxy
from emulator.state import State, write_private

_LOG = logging.getLogger(__name__)
_SERVICES = (
    "compute",
    "dns",
    "instances",
    "iam",
    "kms",
    "projects",
    "secrets",
    "sql",
    "storage",
    "logs",
    "monitoring",
    "dashboards",
    "bigquery",
)
# The operator owns both; a test that needs an untouched project takes the second.
PROJECTS = {"demo-project": "100000000001", "empty-project": "100000000002"}
OPERATOR = "operator@demo-project.iam.gserviceaccount.com"
ACME_HOST = "acme.emulator.internal"
_NAMES = [
    "*.googleapis.com",
    *(f"*.{region}.rep.googleapis.com" for region in ZONES),
    "packages.cloud.google.com",
    "www.gstatic.com",
    "metadata.google.internal",
]
_OTHER_HOSTS = {"oauth2.googleapis.com", "www.googleapis.com", "packages.cloud.google.com", "www.gstatic.com"}
_MEDIA_PREFIXES = ("/resumable/upload", "/upload", "/download")
_LARGEST_BODY_BYTES = 64 * 1024 * 1024


@dataclasses.dataclass
class Settings:
    """Where the server keeps its state and listens; port 0 means any free one."""

    state: pathlib.Path
    listen: str = "127.0.0.1"
    tls_port: int = 0
    metadata_port: int = 0
    proxy_port: int = 0
    dns_port: int = 0
    operation_seconds: float = 0.2
    # Google answers a wait for an operation that goes on after two minutes.
    longest_wait_seconds: float = 120
    check_responses: bool = False


# What a fault says beside its method; see Server._fault.
_FAULT_FIELDS = {
    *("method", "after", "times", "delay_seconds"),
    *("status", "message", "no_answer", "operation_error", "operation_hangs"),
}


class _NoAnswerError(Exception):
    """The connection ends without an answer."""


class Server:
    """The whole emulator in one event loop."""

    def __init__(self, settings: Settings, effects: Effects) -> None:
        for name in _SERVICES:
            importlib.import_module(f"emulator.services.{name}")
        self.settings = settings
        state = State(settings.state)
        operations = Operations(state, settings.operation_seconds, settings.longest_wait_seconds)
        self.cloud = Cloud(state, Directory(METHODS), Access(state), operations, effects)
        self.faults: list[dict[str, Any]] = []
        self._served: collections.deque[str] = collections.deque(maxlen=100_000)
        self._count = 0
        self._runners: list[web.AppRunner] = []
        self._first_start()

    def _first_start(self) -> None:
        """Makes what a new state directory lacks: projects, the operator and its key, certificates."""
        state = self.cloud.state
        for project, number in PROJECTS.items():
            state.billing.setdefault(project, "billingAccounts/000000-000000-000000")
            if project not in state.projects:
                state.projects[project] = number
                state.services[project] = list(DEFAULT_SERVICES)
                binding = {"role": "roles/owner", "members": [f"serviceAccount:{OPERATOR}"]}
                state.policies[f"projects/{project}"] = {"bindings": [binding]}
        files = state.directory
        if not (files / "credentials.json").exists():
            name = f"projects/demo-project/serviceAccounts/{OPERATOR}"
            state.resources[f"iam/{name}"] = new_account(state, "demo-project", OPERATOR, {})
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            write_private(files / "credentials.json", json.dumps(oauth.credentials(self.cloud.access, OPERATOR, key)))
            authority, authority_key = certificates.make_authority("Emulated Google Cloud")
            (files / "ca.pem").write_text(authority)
            for label, names in (("server", _NAMES), ("acme", [ACME_HOST])):
                certificate, certificate_key = certificates.issue_server(authority, authority_key, names[-1], names)
                (files / f"{label}.pem").write_text(certificate)
                write_private(files / f"{label}.key", certificate_key)
        state.dirty = True
        state.save()

    async def start(self) -> None:
        """Listens on all ports; the settings then hold the ports really used."""
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        directory = self.cloud.state.directory
        tls.load_cert_chain(directory / "server.pem", directory / "server.key")
        settings = self.settings
        settings.tls_port = await self._listen(self.answer, settings.listen, settings.tls_port, tls)
        metadata = Metadata(self.cloud, self._fault)
        settings.metadata_port = await self._listen(metadata.answer, settings.listen, settings.metadata_port)
        admin_port = await self._listen(self.administer, "127.0.0.1", 0)
        await self._serve_names()
        self._proxy = Proxy(settings.tls_port, admin_port, self._is_google, self._address_of_domain)
        settings.proxy_port = await self._proxy.start(settings.listen, settings.proxy_port)
        self._saving = asyncio.create_task(self._save_often())

    async def _serve_names(self) -> None:
        settings = self.settings
        self._names, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: NameServer(lambda name, kind: dns.served(self.cloud.state, name, kind)),
            local_addr=(settings.listen, settings.dns_port),
        )
        settings.dns_port = self._names.get_extra_info("sockname")[1]

    def _address_of_domain(self, host: str) -> str | None:
        """Return where the operator reaches a VM by its deployment's name: nowhere when it has no external address."""
        address = self.cloud.effects.address_of_domain(host)
        open_ones = (item.get("_ip") for item in compute.instances(self.cloud) if compute.external_ip(item))
        return address if address in open_ones else None

    async def stop(self) -> None:
        """Stops listening, waits for operations, saves the state."""
        self._saving.cancel()
        await self._proxy.stop()
        self._names.close()
        for runner in self._runners:
            await runner.cleanup()
        await asyncio.to_thread(self.cloud.operations.close)
        self.cloud.state.save()

    def _is_google(self, host: str) -> bool:
        """True for the hosts that the emulator answers for."""
        services = {*self.cloud.directory.services, *_OTHER_HOSTS}
        return host in services or bool(REGIONAL_HOST.fullmatch(host))

    async def _listen(self, handler: Any, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        application = web.Application(client_max_size=_LARGEST_BODY_BYTES)
        application.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
        self._runners.append(runner)
        return int(runner.addresses[0][1])

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.cloud.state.save()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Serves one request to a Google host; refusals have Google's error shape, every call is logged."""
        started = time.time()
        record: dict[str, Any] = {"time": started, "principal": None, "method": None, "verb": request.method}
        record |= {"host": _host(request), "path": request.raw_path.partition("?")[0], "from": request.remote}
        try:
            response = await self._serve(request, record)
        except ApiError as error:
            response = web.json_response(error.body(), status=error.code)
            if error.code == 401:
                response.headers["WWW-Authenticate"] = 'Bearer realm="https://accounts.google.com/"'
        except _NoAnswerError:
            self._log(record | {"status": 0, "seconds": round(time.time() - started, 4)})
            if request.transport:
                request.transport.abort()
            return web.Response()
        except web.HTTPException:
            raise
        except Exception as error:  # the caller must see that the emulator itself is wrong
            _LOG.exception("%s %s", request.method, request.raw_path)
            response = web.json_response(ApiError(500, f"The emulator failed: {error!r}").body(), status=500)
        record |= {"status": response.status, "seconds": round(time.time() - started, 4)}
        self._log(record)
        if record["method"] and response.status < 300:
            for fault in self.faults:
                if "after" in fault and fnmatch.fnmatchcase(record["method"], fault["after"]):
                    del fault["after"]
        return response

    def _log(self, record: dict[str, Any]) -> None:
        line = json.dumps({"n": self._count, **record})
        self._count += 1
        self._served.append(line)
        with (self.cloud.state.directory / "calls.jsonl").open("a") as file:
            file.write(line + "\n")

    async def _serve(self, request: web.Request, record: dict[str, Any]) -> web.StreamResponse:
        host, path = record["host"], record["path"]
        for special in (oauth.answer, public_files.answer, identity_aware_proxy.answer):
            response = await special(self.cloud, request, host, path)
            if response is not None:
                return response
        method_path = next((path[len(p) :] for p in _MEDIA_PREFIXES if path.startswith(f"{p}/storage/")), path)
        uploads = path != method_path and not path.startswith("/download/")
        # The chunks of a resumable upload are PUT to where it was begun.
        verb = "POST" if uploads else request.method
        method, parameters = self.cloud.directory.find(host, verb, method_path)
        record["method"] = method.id
        claims = self._claims(request)
        email = record["principal"] = claims["email"] if claims else None
        fault = await self._fault(method.id, method.response == "Operation")
        body = None if uploads else await _body(request)
        if verb != "PATCH":
            # Only in a patch has null a meaning of its own.
            body = _without_nulls(body)
        for name in ("project", "projectId", "name", "parent", "resource", "sinkName", "metricName"):
            if name in parameters:
                parameters[name] = self._with_project_id(parameters[name])
        document = self.cloud.directory.documents[method.api]
        query = [(name, text) for name, text in request.query.items() if name != "access_token"]
        call = Call(self.cloud, method, dict(parameters), body, email, host, request, fault)
        entry = METHODS[method.id]
        with self.cloud.state.lock:
            call.parameters = document.check_parameters(method, query) | parameters
            resources = entry.resources(call)
            if claims is None and not method.id.startswith("storage.objects."):
                raise ApiError(
                    401,
                    "Request is missing required authentication credential. Expected OAuth 2 access token, login "
                    "cookie or other valid authentication credential.",
                    reason="required",
                )
            if entry.permission:
                if claims:
                    self.cloud.access.check_scope(claims["scopes"], method.service)
                projects = [name.split("/")[1] for name in resources if name.startswith("projects/")]
                if projects and self.cloud.access.allowed(email, entry.permission, resources):
                    self.cloud.check_enabled(method.service, projects[0])
                self.cloud.access.require(email, entry.permission, resources)
            if not uploads:
                document.check_request(method, body)
            result = entry.handler(call)
            self.cloud.state.dirty = request.method != "GET" or self.cloud.state.dirty
        if inspect.isawaitable(result):
            result = await result
            self.cloud.state.dirty = True
        if fault and fault.get("no_answer") == "after":
            raise _NoAnswerError
        if isinstance(result, web.StreamResponse):
            return result
        if result is None:
            return web.Response(status=204)
        if self.settings.check_responses:
            try:
                document.check_response(method, result)
            except ApiError as error:
                raise ApiError(500, f"The emulator's answer does not fit {method.id}: {error.message}") from error
        return web.json_response(result)

    def _claims(self, request: web.Request) -> dict[str, Any] | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        token = token if scheme.lower() == "bearer" else request.query.get("access_token", "")
        return self.cloud.access.read_token(token) if token else None

    def _with_project_id(self, name: str) -> str:
        head, slash, rest = name.partition("/")
        if head != "projects":
            return self.cloud.state.project_of(head) + slash + rest
        project, slash, rest = rest.partition("/")
        return f"projects/{self.cloud.state.project_of(project)}{slash}{rest}"

    async def _fault(self, method: str, operation: bool) -> dict[str, Any] | None:
        """Return what an operation shall suffer; raises or delays at once what the call itself shall suffer.

        A fault is `{"method": pattern}`, the first that matches counts, with any of: `times` (1); `after`, a method
        that must have succeeded before, so that a read by `status` 404 does not see at once what was made; `status`
        with `message`; `delay_seconds` of the answer or of the operation; `no_answer`, the connection is cut `before`
        or `after` the request is carried out; `operation_error`, a message; `operation_hangs`, until faults are
        deleted.
        """
        matching = (item for item in self.faults if fnmatch.fnmatchcase(method, item["method"]) and "after" not in item)
        fault = next(matching, None)
        if fault is None:
            return None
        fault["times"] -= 1
        if fault["times"] <= 0:
            self.faults.remove(fault)
        if "status" in fault or "no_answer" in fault or not operation:
            await asyncio.sleep(fault.get("delay_seconds", 0))
        if "status" in fault:
            raise ApiError(fault["status"], fault.get("message", f"Fault asked for by a test: {fault['status']}"))
        if fault.get("no_answer") == "before":
            raise _NoAnswerError
        # Of now: whoever sees that the fault is taken may delete it before the operation has begun.
        hangs = {"operation_hangs": self.cloud.operations.released} if fault.get("operation_hangs") else {}
        return {**fault, **hangs}

    def clear_faults(self) -> None:
        """Forgets all faults, and lets operations that hang go on."""
        self.faults.clear()
        self.cloud.operations.release()

    async def administer(self, request: web.Request) -> web.StreamResponse:
        """Serves `/_emulator/...`, reached only through the proxy's port."""
        state = self.cloud.state
        match request.method, request.path.removeprefix("/_emulator/"):
            case "GET", "health":
                return web.json_response({"status": "serving", "calls": self._count})
            case "GET", "log":
                since = int(request.query.get("since", 0)) - (self._count - len(self._served))
                return web.Response(text="".join(f"{line}\n" for line in list(self._served)[max(since, 0) :]))
            case "GET", "state":
                with state.lock:
                    hidden = ("signing_key", "keys", "uploads")
                    shown = {name: table for name, table in state.tables().items() if name not in hidden}
                    return web.Response(text=json.dumps(shown), content_type="application/json")
            case "GET", "client":
                credentials = json.loads((state.directory / "credentials.json").read_text())
                return web.json_response({"ca": (state.directory / "ca.pem").read_text(), "credentials": credentials})
            case "POST", "quotas":
                asked = await request.json()
                place = f"{asked['project']}/{asked.get('region', 'global')}"
                state.quotas.setdefault(place, {})[asked["metric"]] = asked["limit"]
                return web.json_response(state.quotas)
            case "GET", "faults":
                return web.json_response(self.faults)
            case "DELETE", "faults":
                self.clear_faults()
                return web.json_response([])
            case "POST", "faults":
                asked = await request.json()
                for fault in asked if isinstance(asked, list) else [asked]:
                    if "method" not in fault or set(fault) - _FAULT_FIELDS:
                        raise web.HTTPBadRequest(text=f"A fault has method and any of {sorted(_FAULT_FIELDS)}.\n")
                    self.faults.append({"times": 1} | fault)
                return web.json_response(self.faults)
        raise web.HTTPNotFound(text="Try /_emulator/health, log, state, client, quotas or faults.\n")


def _host(request: web.Request) -> str:
    return request.host.partition(":")[0].lower()


async def _body(request: web.Request) -> Any:
    content = await request.read()
    if not content:
        return None
    try:
        return json.loads(content)
    except ValueError as error:
        raise ApiError(400, f"Invalid JSON payload received. {error}") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
