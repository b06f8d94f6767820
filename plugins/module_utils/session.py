"""One authorised HTTP session with Google Cloud: timeouts, retries, and Google's own words in every error."""

from __future__ import annotations

import contextlib
import email.utils
import importlib.util
import pathlib
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import Json, Method, method

try:
    import google.auth
    import google.auth.exceptions
    import google.auth.transport.requests
    import google.oauth2.credentials
    import requests
    import urllib3
    from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.trust import TrustingAdapter

    PASSING_ERRORS = (
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        google.auth.exceptions.TransportError,
    )
    MISSING_LIBRARY = None if importlib.util.find_spec("googleapiclient") else "google-api-python-client"
except ImportError as error:
    MISSING_LIBRARY = error.name

JITTER = random.SystemRandom()
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
CONNECT_AND_READ_SECONDS = (10, 180)
ATTEMPTS = 7
LONGEST_PAUSE_SECONDS = 30.0
# What Google may ask for at most by Retry-After.
LONGEST_ASKED_PAUSE_SECONDS = 120.0
# A newly enabled service is turned away for up to this long.
SERVICE_PROPAGATION_SECONDS = 180.0
THREADS = 8
# Of a service that another one brings along: https://github.com/hashicorp/terraform-provider-google/issues/7103
BEING_ACTIVATED = "Another activation or deactivation is in progress"
STORAGE_UPLOADS = "https://storage.googleapis.com/upload/storage/v1"
CHUNK_BYTES = 1 << 20
PASSING_STATUSES = frozenset({500, 502, 503, 504})
CREDENTIALS = "docs/failures.md#no-google-credentials"
SIGN_IN = "run `gcloud auth application-default login`, or let GOOGLE_APPLICATION_CREDENTIALS name a key file"


class CloudError(Exception):
    """A failure with a message for the operator; `more` is the section of docs/failures.md about it."""

    more = "docs/failures.md#problems-found"

    def __init__(self, message: str, more: str = "") -> None:
        super().__init__(message)
        self.more = more or self.more

    def told(self) -> str:
        """Return the message as a run ends with it."""
        return f"{self}\nMore: {self.more}"


class ApiError(CloudError):
    """Google's refusal of one request."""

    def __init__(self, purpose: str, status: int, reason: str, message: str, service: str = "") -> None:
        super().__init__(f"{purpose}: {message} (HTTP {status}{' ' + reason if reason else ''})")
        self.status = status
        self.reason = reason
        self.message = message
        self.service = service
        self.more = self._section()

    def _section(self) -> str:
        if self.service_disabled:
            return "docs/failures.md#a-service-is-not-enabled"
        if self.status == 403:
            return "docs/failures.md#google-does-not-allow-it"
        if self.conflict:
            return "docs/failures.md#somebody-else-was-faster"
        if self.status == 429 or self.status in PASSING_STATUSES:
            return "docs/failures.md#google-is-out-of-reach"
        return "docs/failures.md#google-refused-a-request"

    @property
    def service_disabled(self) -> bool:
        """Whether the API is not enabled in the project, or not yet."""
        return self.status == 403 and self.reason in {"SERVICE_DISABLED", "accessNotConfigured"}

    @property
    def conflict(self) -> bool:
        """Whether somebody else was faster: the resource has to be read again.

        A database that exists is refused as an invalid request, and a connection for private services that exists, or
        is being made, with a pointer to its update.
        """
        is_there = "already exists" in self.message or "use UpdateConnection" in self.message
        return self.status in {409, 412} or self.busy or is_there

    @property
    def busy(self) -> bool:
        """Whether another operation on the resource has to end first."""
        return self.reason in {"operationInProgress", "resourceNotReady"} or BEING_ACTIVATED in self.message


class AmbiguousError(CloudError):
    """Nobody knows whether the request was carried out: the resource has to be read again."""

    more = "docs/failures.md#google-is-out-of-reach"


class Transport(Protocol):
    """The part of requests.Session that is used."""

    def request(self, method: str, url: str, **arguments: Any) -> Any:
        """Send a request and return the response."""


def credentials_for(project: str) -> Any:
    """Return application default credentials; CloudError when there are none."""
    try:
        credentials, _ = google.auth.default(scopes=[SCOPE])
    except google.auth.exceptions.GoogleAuthError as error:
        raise CloudError(f"No usable Google credentials ({error}): {SIGN_IN}", CREDENTIALS) from error
    if isinstance(credentials, google.oauth2.credentials.Credentials) and not credentials.quota_project_id:
        # Else a person's calls count for gcloud's own project, where the APIs are not enabled.
        return credentials.with_quota_project(project)
    return credentials


class GoogleTransport:
    """requests with application default credentials, usable from several threads."""

    def __init__(self, project: str) -> None:
        self._credentials = credentials_for(project)
        self._session = google.auth.transport.requests.AuthorizedSession(self._credentials)
        self._session.mount("https://", TrustingAdapter(pool_maxsize=THREADS))
        refreshing = requests.Session()
        refreshing.mount("https://", TrustingAdapter())
        self._refresh = google.auth.transport.requests.Request(refreshing)
        self._lock = threading.Lock()

    def request(self, method: str, url: str, **arguments: Any) -> Any:
        """Send a request with a valid token."""
        with self._lock:
            if not self._credentials.valid:
                self._renew()
        return self._session.request(method, url, **arguments)

    def _renew(self) -> None:
        """Get a new token; what went wrong on the way is raised as for any other request."""
        try:
            self._credentials.refresh(self._refresh)
        except google.auth.exceptions.TransportError as error:
            raise error.__cause__ or error from error


class Session:
    """Calls to Google Cloud on behalf of one module run.

    `timeout_seconds` is how long one operation may take. `warnings` collects what the operator should know.
    """

    def __init__(
        self,
        project: str,
        *,
        check_mode: bool = False,
        timeout_seconds: float = 1800,
        transport: Transport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.project = project
        self.check_mode = check_mode
        self.timeout_seconds = timeout_seconds
        self.warnings: list[str] = []
        self.sleep = sleep
        self.clock = clock
        self._transport = transport or GoogleTransport(project)
        self._project_number: str | None = None
        self._answers: dict[str, Future[Any]] = {}
        self._lock = threading.Lock()
        # For what Google wants to be changed by one call after the other.
        self.one_at_a_time = threading.Lock()

    def call(
        self,
        called: Method,
        parameters: Mapping[str, str],
        purpose: str,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
    ) -> Json:
        """Call a method and return its answer, {} for an empty one.

        `purpose` opens every error message. Raises ApiError for Google's refusals and AmbiguousError when a request
        that must not be repeated got no answer.
        """
        arguments = dict(query or {})
        if "requestId" in called.query:
            arguments["requestId"] = str(uuid.uuid4())
        enabled_by = self.clock() + SERVICE_PROPAGATION_SECONDS
        for pause in self.pauses():
            try:
                return self._attempt(called, called.url(parameters), purpose, body, arguments)
            except ApiError as error:
                if not error.service_disabled or self.check_mode:
                    raise
                self._raise_unless_enabled(error)
                if self.clock() > enabled_by:
                    raise
            self.sleep(pause)
        raise AssertionError("pauses never end")

    def pages(
        self, listing: Method, parameters: Mapping[str, str], purpose: str, query: Mapping[str, Any] | None = None
    ) -> Iterator[Json]:
        """Yield the answers to a list method, page by page; raises what `call` raises."""
        asked = dict(query or {})
        while True:
            page = self.call(listing, parameters, purpose, None, asked)
            yield page
            if not page.get("nextPageToken"):
                return
            asked["pageToken"] = page["nextPageToken"]

    def pauses(self, first: float = 0.5) -> Any:
        """Yield growing pauses in seconds, with jitter, without end."""
        pause = first
        while True:
            yield pause * JITTER.uniform(0.5, 1.0)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def upload(self, bucket: str, name: str, content: bytes | pathlib.Path) -> None:
        """Make an object that is not there yet; ApiError 412 when it is, AmbiguousError when nobody knows."""
        url = f"{STORAGE_UPLOADS}/b/{quote(bucket, safe='')}/o"
        query = {"uploadType": "media", "name": name, "ifGenerationMatch": 0}
        insert = method("storage.v1", "objects", "insert")
        self._attempt(insert, url, f"Writing gs://{bucket}/{name}", content, query)

    def download(self, bucket: str, name: str, generation: str, read: Callable[[Iterator[bytes]], Any]) -> Any:
        """Return what `read` makes of an object's bytes as they are stored; it may be called more than once."""
        get = method("storage.v1", "objects", "get")
        url = get.url({"bucket": bucket, "object": name})
        # Else an object that says it is compressed would come in another form.
        query = {"alt": "media", "generation": generation}
        return self._attempt(get, url, f"Reading gs://{bucket}/{name}", None, query, lambda got: read(_raw(got)))

    def _attempt(
        self,
        called: Method,
        url: str,
        purpose: str,
        body: Any,
        query: Mapping[str, Any],
        read: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Send until there is an answer that is not a passing failure; return its JSON, or what `read` makes of it."""
        options = {"stream": True, "headers": {"Accept-Encoding": "gzip"}} if read else {}
        problem: CloudError = CloudError(purpose)
        asked = 0.0
        for attempt, pause in zip(range(ATTEMPTS), self.pauses(), strict=False):
            if attempt:
                self.sleep(max(pause, asked))
            asked = 0.0
            try:
                with _payload(body) as payload:
                    response = self._transport.request(
                        called.verb, url, params=query, timeout=CONNECT_AND_READ_SECONDS, **payload, **options
                    )
                if read and response.status_code < 300:
                    return read(response)
            except google.auth.exceptions.RefreshError as error:
                refused = f"{purpose}: Google refused the credentials ({error.args[0]}): {SIGN_IN}"
                raise CloudError(refused, CREDENTIALS) from error
            except PASSING_ERRORS as error:
                if isinstance(error, requests.exceptions.SSLError) and not _was_cut_off(error):
                    fix = "let REQUESTS_CA_BUNDLE name the certificates of the authority in between"
                    raise CloudError(f"{purpose}: TLS failed ({error}): {fix}", AmbiguousError.more) from error
                if _was_not_sent(error):
                    unreached = f"{purpose}: {urlsplit(url).hostname} could not be reached ({error})"
                    problem = CloudError(unreached, AmbiguousError.more)
                    continue
                problem = AmbiguousError(f"{purpose}: no answer from {urlsplit(url).hostname} ({error})")
                if called.repeatable:
                    continue
                raise problem from error
            if response.status_code < 300:
                return dict(response.json()) if response.content else {}
            refusal = _refusal(response, purpose)
            if response.status_code in PASSING_STATUSES and not called.repeatable:
                raise AmbiguousError(str(refusal))
            if response.status_code != 429 and response.status_code not in PASSING_STATUSES:
                raise refusal
            problem, asked = refusal, _asked_pause(response)
        raise problem

    def _raise_unless_enabled(self, error: ApiError) -> None:
        """Raise the error with its fix, unless the service is enabled and Google has just not spread the word."""
        name = f"projects/{self.project}/services/{error.service}"
        get = method("serviceusage.v1", "services", "get")
        service = self._attempt(get, get.url({"+name": name}), f"Reading whether {error.service} is enabled", None, {})
        if service.get("state") != "ENABLED":
            fix = f"enable it with serviceusage.services in gcp_resource or `gcloud services enable {error.service}`"
            raise CloudError(f"{error}: {fix}", error.more) from error

    def once(self, key: str, ask: Callable[[], Any]) -> Any:
        """Return what `ask` returns, or raise what it raises; others that want the same wait for it."""
        with self._lock:
            is_first = key not in self._answers
            answer = self._answers.setdefault(key, Future())
        if is_first:
            try:
                answer.set_result(ask())
            except BaseException as error:
                answer.set_exception(error)
        return answer.result()

    def project_number(self) -> str:
        """Return the number of the project, which some APIs want in place of its ID."""
        if self._project_number is None:
            get = method("cloudresourcemanager.v1", "projects", "get")
            project = self.call(get, {"projectId": self.project}, f"Reading the number of project {self.project}")
            self._project_number = str(project["projectNumber"])
        return self._project_number


@contextlib.contextmanager
def _payload(body: Any) -> Iterator[dict[str, Any]]:
    """Yield how requests is to send a body: bytes, a file's content or JSON."""
    if isinstance(body, pathlib.Path):
        with body.open("rb") as file:
            yield {"data": file}
    else:
        yield {"data": body} if isinstance(body, bytes) else {"json": body}


def _raw(response: Any) -> Iterator[bytes]:
    """Yield the bytes of an answer as they came."""
    chunks: Iterator[bytes] = response.raw.stream(CHUNK_BYTES, decode_content=False)
    return chunks


def _asked_pause(response: Any) -> float:
    """Return how many seconds to wait by Retry-After, in seconds or a date; 0 when it does not say.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    text = response.headers.get("Retry-After", "")
    try:
        seconds = float(text) if text.isdigit() else email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), LONGEST_ASKED_PAUSE_SECONDS)


def _was_not_sent(error: Exception) -> bool:
    """Return whether there was no connection yet.

    An answer that got lost behind a proxy is a ProxyError as well: urllib3 forgets that it had been connected.
    """
    if isinstance(error, requests.exceptions.ProxyError):
        original = getattr(getattr(error.args[0], "reason", None), "original_error", None)
        is_refused = isinstance(original, OSError) and "Tunnel connection failed" in str(original)
        return is_refused or isinstance(original, urllib3.exceptions.NewConnectionError)
    return isinstance(error, requests.exceptions.ConnectTimeout)


def _was_cut_off(error: requests.exceptions.SSLError) -> bool:
    """Return whether TLS ended as a connection that is lost ends, and not for what either side is."""
    return "SSLEOFError" in repr(error) or "SSLZeroReturnError" in repr(error)


def _refusal(response: Any, purpose: str) -> ApiError:
    """Return Google's error, in the form of https://google.aip.dev/193 or the older one of Compute Engine."""
    host = urlsplit(str(response.url)).hostname or ""
    try:
        error = response.json()["error"]
        message = error["message"]
    except (ValueError, KeyError, TypeError):
        return ApiError(purpose, response.status_code, "", response.text[:500].strip() or "no explanation", host)
    infos = [info for info in error.get("details", []) if str(info.get("@type", "")).endswith("ErrorInfo")]
    reasons = [info.get("reason", "") for info in infos] + [e.get("reason", "") for e in error.get("errors", [])]
    service = next((info["metadata"]["service"] for info in infos if info.get("metadata", {}).get("service")), host)
    reason = next((reason for reason in reasons if reason), error.get("status", ""))
    return ApiError(purpose, response.status_code, reason, message, service)
