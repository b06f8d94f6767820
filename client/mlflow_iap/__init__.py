"""MLflow's requests carry the ID token that Google's Identity-Aware Proxy (IAP) asks for.

MLflow loads this by the entry point `mlflow.request_auth_provider` when `MLFLOW_TRACKING_AUTH=iap`. The other kind of
plug-in, `mlflow.request_header_provider`, would do for the same requests, but it is not told where a request goes,
and what fails in it is passed over.
"""

import datetime
import logging
import os
import threading
import urllib.parse
from typing import Any

import google.auth
import google.auth.compute_engine
import google.auth.credentials
import google.auth.exceptions
import google.auth.impersonated_credentials
import google.auth.transport.requests
import google.oauth2.credentials
import google.oauth2.service_account
import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider

CLIENT_ID = "IAP_CLIENT_ID"
IMPERSONATE = "GOOGLE_IMPERSONATE_SERVICE_ACCOUNT"
_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
_ROLE = "roles/iam.serviceAccountOpenIdTokenCreator"
_TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105
# MLflow tries a request that failed for more than four minutes, with the token that it began with.
_MARGIN_SECONDS = 300

_logger = logging.getLogger(__name__)


class IapAuthProvider(RequestAuthProvider):
    """What MLflow asks, for each request, how to sign it."""

    def __init__(self) -> None:
        self._auth = IapAuth()

    def get_name(self) -> str:
        """Return the value of `MLFLOW_TRACKING_AUTH` that chooses this one."""
        return "iap"

    def get_auth(self) -> "IapAuth":
        """Return the same object each time, for it keeps the token."""
        return self._auth


class IapAuth(requests.auth.AuthBase):
    """Signs requests to the tracking server, over HTTPS, and no others."""

    def __init__(self) -> None:
        self._token = IdToken()
        self._left_alone: set[str] = set()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the token; raises `MlflowException` when there is none to be had."""
        from mlflow.tracking import get_tracking_uri

        origin = _origin(request.url or "")
        if not origin.startswith("https:") or origin != _origin(get_tracking_uri()):
            if origin not in self._left_alone:
                self._left_alone.add(origin)
                _logger.warning(
                    "%s gets no IAP token, for it is not the tracking server. Should it be, name it, with https, by "
                    "MLFLOW_TRACKING_URI or mlflow.set_tracking_uri().",
                    origin,
                )
            return request
        # MLflow's own login needs the other header; IAP looks at this one first and takes it away.
        name = "Proxy-Authorization" if "Authorization" in request.headers else "Authorization"
        request.headers[name] = f"Bearer {self._token.fetch()}"
        return request


class IdToken:
    """One ID token at a time, for all threads, fetched anew before it expires."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._request = google.auth.transport.requests.Request()
        self._credentials: google.auth.credentials.Credentials | None = None
        self._renewal = datetime.datetime.min

    def fetch(self) -> str:
        """Return a token that is good for a while; raises `MlflowException`."""
        with self._lock:
            if self._credentials is None:
                self._credentials = _id_token_credentials(self._request)
            if _now() >= self._renewal:
                self._renew(self._credentials)
            return str(self._credentials.token)

    def _renew(self, credentials: google.auth.credentials.Credentials) -> None:
        try:
            credentials.refresh(self._request)
        except (google.auth.exceptions.GoogleAuthError, requests.RequestException) as error:
            if credentials.expiry is None or _now() >= credentials.expiry:
                raise _refused(error) from None
            _logger.warning("No new ID token for IAP yet, going on with the one before: %s", _words(error))
        left = credentials.expiry - _now()
        # The metadata server may hand out one that others have used before: then half of what is left.
        self._renewal = credentials.expiry - min(datetime.timedelta(seconds=_MARGIN_SECONDS), left / 2)


def _id_token_credentials(request: google.auth.transport.requests.Request) -> Any:
    """Return what fetches ID tokens, from Application Default Credentials; raises `MlflowException`."""
    audience, account = os.environ.get(CLIENT_ID), os.environ.get(IMPERSONATE)
    if not audience:
        raise MlflowException(
            f"{CLIENT_ID} is not set: set it to the OAuth client ID of Identity-Aware Proxy, "
            "<number>-<letters>.apps.googleusercontent.com, which whoever runs the server knows."
        )
    try:
        source, _project = google.auth.default(scopes=_SCOPES)
    except google.auth.exceptions.GoogleAuthError as error:
        raise MlflowException(
            f"No Google credentials for Identity-Aware Proxy: {_words(error)} Set GOOGLE_APPLICATION_CREDENTIALS to "
            "a service account's file, or sign in by `gcloud auth application-default login` and set "
            f"{IMPERSONATE} to the service account that may pass."
        ) from None
    if account:
        source = google.auth.impersonated_credentials.Credentials(source, account, _SCOPES)
    if isinstance(source, google.auth.impersonated_credentials.Credentials):
        return google.auth.impersonated_credentials.IDTokenCredentials(source, audience, include_email=True)
    if isinstance(source, google.oauth2.service_account.Credentials):
        email = source.service_account_email
        return google.oauth2.service_account.IDTokenCredentials(source.signer, email, _TOKEN_URI, audience)
    if isinstance(source, google.auth.compute_engine.Credentials):
        return google.auth.compute_engine.IDTokenCredentials(request, audience, use_metadata_identity_endpoint=True)
    kind = "a user's" if isinstance(source, google.oauth2.credentials.Credentials) else type(source).__module__
    raise MlflowException(
        f"The Google credentials found are {kind}, from which Identity-Aware Proxy takes no ID token. Set "
        f"{IMPERSONATE} to the e-mail address of a service account that may pass, on which you have {_ROLE}."
    )


def _refused(error: Exception) -> MlflowException:
    account = os.environ.get(IMPERSONATE)
    hint = (
        f"Check that {account} ({IMPERSONATE}) exists and that you have {_ROLE} on it."
        if account
        else "Check that the service account exists and its key is not disabled; a user signs in again by "
        "`gcloud auth application-default login`."
    )
    return MlflowException(f"Google gave no ID token for Identity-Aware Proxy: {_words(error)} {hint}")


def _words(error: Exception) -> str:
    """Return what an error says, without the answers that google-auth adds to it: those may hold a token."""
    return str(error.args[0] if error.args else type(error).__name__).rstrip(". ") + "."


def _now() -> datetime.datetime:
    """Return the time as google-auth has it in `expiry`: UTC, without saying so."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def _origin(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or {'https': 443, 'http': 80}.get(parts.scheme)}"
