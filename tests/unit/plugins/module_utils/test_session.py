from __future__ import annotations

import datetime
import email.utils
import http.client
import ssl

import google.auth.credentials
import google.auth.exceptions
import google.oauth2.credentials
import pytest
import requests
import urllib3
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.discovery import method
from ansible_collections.mlops.mlflow_gcp.plugins.module_utils.session import (
    AmbiguousError,
    ApiError,
    CloudError,
    GoogleTransport,
)

GET = method("storage.v1", "buckets", "get")
BUCKET = "/storage/v1/b/a"
INSERT = method("storage.v1", "buckets", "insert")
COMPUTE_INSERT = method("compute.v1", "networks", "insert")


def get(cloud):
    return cloud.call(GET, {"bucket": "a"}, "Reading bucket a")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_read_is_repeated_with_growing_pauses(cloud, google, fault, clock, status):
    google.store[BUCKET] = {"name": "a"}
    google.faults.append(fault("GET", BUCKET, status, times=4))
    assert get(cloud) == {"name": "a"}
    assert len(google.calls) == 5
    assert 2 < clock.now < 16


def test_repeating_ends_with_googles_words(cloud, google, fault, clock):
    google.faults.append(fault("GET", BUCKET, 503, "backendError", "try later", times=99))
    with pytest.raises(ApiError, match=r"^Reading bucket a: try later \(HTTP 503 backendError\)$"):
        get(cloud)
    assert len(google.calls) == 7
    assert clock.now < 180


def test_a_refusal_is_not_repeated(cloud, google, fault):
    google.faults.append(fault("GET", BUCKET, 403, "forbidden", "no access", times=9))
    with pytest.raises(ApiError, match=r"Reading bucket a: no access \(HTTP 403 forbidden\)"):
        get(cloud)
    assert len(google.calls) == 1


def behind_a_proxy(original: Exception) -> requests.exceptions.ProxyError:
    """What requests raises when a connection through a proxy fails, whenever it does."""
    reason = urllib3.exceptions.ProxyError("Unable to connect to proxy", original)
    return requests.exceptions.ProxyError(urllib3.exceptions.MaxRetryError(None, "/", reason))


REFUSED = urllib3.exceptions.NewConnectionError(None, "refused")


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 500},
        {"status": 503},
        {"raises": behind_a_proxy(http.client.RemoteDisconnected("closed"))},
        {"raises": requests.ConnectionError("reset")},
        {"raises": requests.ReadTimeout()},
    ],
)
def test_a_post_without_an_answer_is_not_repeated(cloud, google, fault, failure):
    google.faults.append(fault("POST", "/b$", times=9, **failure))
    with pytest.raises(AmbiguousError, match="Creating bucket a"):
        cloud.call(INSERT, {}, "Creating bucket a", {"name": "a"})
    assert len(google.calls) == 1


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 429},
        {"raises": requests.ConnectTimeout()},
        {"raises": behind_a_proxy(REFUSED)},
        {"raises": behind_a_proxy(OSError("Tunnel connection failed: 502 Bad Gateway"))},
    ],
)
def test_a_post_that_did_not_land_is_repeated(cloud, google, fault, failure):
    google.faults.append(fault("POST", "/b$", times=2, **failure))
    cloud.call(INSERT, {}, "Creating bucket a", {"name": "a"})
    assert google.store[f"{BUCKET}"] == {"name": "a"}


def in_seconds(seconds: float) -> str:
    return email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds), True)


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("17", 17, 17),
        (40, 20, 40),
        ("86400", 120, 120),
        ("0", 0, 1),
        (-40, 0, 1),
        ("soon", 0, 1),
        ("-7", 0, 1),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_google_is_left_alone_for_as_long_as_it_asks(cloud, google, fault, clock, status, asked, least, most):
    google.store[BUCKET] = {"name": "a"}
    text = asked if isinstance(asked, str) else in_seconds(asked)
    google.faults.append(fault("GET", BUCKET, status, headers={"Retry-After": text}))
    assert get(cloud) == {"name": "a"}
    assert least <= clock.now <= most


@pytest.mark.parametrize("failure", [{"status": 503}, {"raises": requests.ReadTimeout(), "lands": True}])
def test_compute_recognises_a_repeated_post_by_its_id(cloud, google, fault, failure):
    google.special["/networks$"] = lambda _: {"name": "o", "status": "RUNNING"}
    google.faults.append(fault("POST", "networks", times=2, **failure))
    cloud.call(COMPUTE_INSERT, {"project": "demo"}, "Creating network a", {"name": "a"})
    assert len({call.query["requestId"] for call in google.calls}) == 1
    assert len(google.calls) == 3


def test_a_refused_token_comes_with_its_fix(cloud, google, fault):
    google.faults.append(fault("GET", BUCKET, raises=google_refresh_error()))
    with pytest.raises(CloudError, match="gcloud auth application-default login"):
        get(cloud)


def google_refresh_error():
    return google.auth.exceptions.RefreshError("invalid_grant")


def test_missing_credentials_come_with_their_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(CloudError, match="gcloud auth application-default login"):
        GoogleTransport("demo")


def test_a_tls_failure_comes_with_its_fix(cloud, google, fault):
    google.faults.append(fault("GET", BUCKET, raises=requests.exceptions.SSLError("self-signed")))
    with pytest.raises(CloudError, match=r"TLS failed \(self-signed\): .*REQUESTS_CA_BUNDLE"):
        get(cloud)


def test_a_connection_that_is_cut_off_within_tls_is_tried_again(cloud, google, fault):
    google.store[BUCKET] = {"name": "a"}
    cut = requests.exceptions.SSLError(ssl.SSLEOFError(8, "[SSL: UNEXPECTED_EOF_WHILE_READING]"))
    google.faults.append(fault("GET", BUCKET, raises=cut))
    assert get(cloud)


def test_a_failure_on_the_way_to_a_token_is_told_like_any_other(cloud, monkeypatch):
    credentials = Credentials()
    monkeypatch.setattr(google.auth, "default", lambda **_: (credentials, "demo"))
    cloud._transport = GoogleTransport("demo")
    with pytest.raises(CloudError, match=r"^Reading bucket a: TLS failed"):
        get(cloud)


@pytest.mark.parametrize(("stated", "used"), [(None, "demo"), ("billing", "billing")])
def test_a_persons_calls_count_for_the_project(monkeypatch, stated, used):
    person = google.oauth2.credentials.Credentials("token", quota_project_id=stated)
    monkeypatch.setattr(google.auth, "default", lambda **_: (person, None))
    assert GoogleTransport("demo")._credentials.quota_project_id == used


class Credentials(google.auth.credentials.Credentials):
    def refresh(self, request):
        try:
            raise requests.exceptions.SSLError("self-signed")
        except requests.exceptions.SSLError as error:
            raise google.auth.exceptions.TransportError(error) from error


def test_an_error_page_that_is_no_json_is_quoted(cloud, google, monkeypatch):
    monkeypatch.setattr(google, "request", lambda *_, **__: page("<html>blocked by the proxy</html>"))
    with pytest.raises(ApiError, match="blocked by the proxy"):
        get(cloud)


def page(text: str):
    response = requests.Response()
    response.status_code, response._content, response.url = 407, text.encode(), "https://storage.googleapis.com/"
    return response


SERVICE = "/v1/projects/demo/services/storage.googleapis.com"


def test_a_service_that_was_just_enabled_is_waited_for(cloud, google, fault, clock):
    google.store |= {BUCKET: {"name": "a"}, SERVICE: {"state": "ENABLED"}}
    google.faults.append(fault("GET", BUCKET, 403, "SERVICE_DISABLED", times=6))
    assert get(cloud) == {"name": "a"}
    assert clock.now > 5


def test_waiting_for_a_service_ends(cloud, google, fault, clock):
    google.store[SERVICE] = {"state": "ENABLED"}
    google.faults.append(fault("GET", BUCKET, 403, "SERVICE_DISABLED", times=999))
    with pytest.raises(ApiError, match="SERVICE_DISABLED"):
        get(cloud)
    assert 180 < clock.now < 300


def test_a_service_that_is_not_enabled_comes_with_its_fix(cloud, google, fault):
    google.store[SERVICE] = {"state": "DISABLED"}
    google.faults.append(fault("GET", BUCKET, 403, "accessNotConfigured"))
    with pytest.raises(CloudError, match=r"gcloud services enable storage\.googleapis\.com"):
        get(cloud)


def test_the_projects_number_is_read_once(cloud, google):
    google.store["/v1/projects/demo"] = {"projectNumber": "42"}
    assert (cloud.project_number(), cloud.project_number()) == ("42", "42")
    assert len(google.calls) == 1
