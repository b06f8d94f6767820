"""The stand-in of Identity-Aware Proxy, and the signed headers by which a backend knows its users."""

import http.server
import os
import threading
import time
from typing import Any

import jwt
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa

from emulator.oauth import IdentityKey
from tests.unit.emulator.conftest import IAP_AUDIENCE, IAP_CLIENT_ID, Backend, Guarded, new_account

KEYS = "https://www.gstatic.com/iap/verify/public_key"
TRAINER = "trainer@demo-project.iam.gserviceaccount.com"


@pytest.fixture
def token(iap: Guarded, backend: Backend) -> str:
    """A token of who may pass, once the proxy stands before the backend."""
    assert new_account(iap.cloud, "trainer")["client_email"] == TRAINER
    iap.guard(backend.url, TRAINER)
    return IdentityKey(iap.cloud.server.cloud).token(TRAINER, IAP_CLIENT_ID)


def asked(iap: Guarded, token: str, name: str = "Authorization", **headers: str) -> requests.Response:
    return requests.get(f"{iap.url}/api?q=%2F", headers={name: f"Bearer {token}", **headers}, timeout=5)


def test_the_backend_is_told_who_calls_in_words_that_only_the_proxy_can_say(
    iap: Guarded, backend: Backend, token: str
) -> None:
    forged = {"X-Goog-Authenticated-User-Email": "accounts.google.com:root@example.com", "X-Goog-Other": "x"}
    forged["x-goog-iap-jwt-assertion"] = "x"
    assert asked(iap, token, **forged).status_code == 200
    _, path, headers, _ = backend.requests[0]
    unique = jwt.decode(token, options={"verify_signature": False})["sub"]
    assert path == "/api?q=%2F"
    assert headers.get_all("X-Goog-Authenticated-User-Email") == [f"accounts.google.com:{TRAINER}"]
    assert headers.get_all("X-Goog-Authenticated-User-Id") == [f"accounts.google.com:{unique}"]
    assert headers["X-Goog-Other"] is None
    (assertion,) = headers.get_all("X-Goog-IAP-JWT-Assertion")
    header = jwt.get_unverified_header(assertion)
    assert header["alg"] == "ES256"
    jwk = jwt.PyJWKSet.from_dict(requests.get(f"{KEYS}-jwk", timeout=5).json())[header["kid"]]
    pem = requests.get(KEYS, timeout=5).json()[header["kid"]]
    for key in (jwk, pem):
        claims = jwt.decode(assertion, key, ["ES256"], audience=IAP_AUDIENCE, issuer="https://cloud.google.com/iap")
        assert set(claims) == {"iss", "aud", "sub", "email", "iat", "exp"}
        assert (claims["sub"], claims["email"]) == (f"accounts.google.com:{unique}", TRAINER)
        assert claims["exp"] - claims["iat"] == 600
    assert requests.get("https://www.gstatic.com/other", timeout=5).status_code == 404


def wrong_tokens(key: IdentityKey) -> dict[str, tuple[str, str]]:
    """Return tokens that must not pass, and what the proxy says of each."""
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    kid = key.jwk_set()["keys"][0]["kid"]
    now = int(time.time())
    claims = {"iss": "https://accounts.google.com", "aud": IAP_CLIENT_ID, "sub": "1", "email": TRAINER}
    claims |= {"iat": now, "exp": now + 60}  # type: ignore[dict-item]

    def signed(**changes: Any) -> str:
        return jwt.encode({**claims, **changes}, key._key, algorithm="RS256", headers={"kid": kid})

    assert signed()
    return {
        "no token": ("", "empty token"),
        "no JWT": ("abc", "Unable to parse JWT"),
        "another audience": (key.token(TRAINER, "another"), "Invalid bearer token. Invalid JWT audience."),
        "several audiences": (signed(aud=[IAP_CLIENT_ID, "another"]), "Invalid bearer token. Invalid JWT audience."),
        "no email": (key.token(TRAINER, IAP_CLIENT_ID, False), "JWT 'email' claim isn't a string"),
        "expired": (signed(exp=now - 1), "Invalid bearer token. Signature has expired"),
        "another issuer": (signed(iss="https://example.com"), "Invalid bearer token. Invalid issuer"),
        "another key": (jwt.encode(claims, other, "RS256", {"kid": kid}), "JWT signature is invalid"),
        "nobody's key": (jwt.encode(claims, other, "RS256", {"kid": "x"}), "JWT signature is invalid"),
        "a shared secret": (jwt.encode(claims, "s" * 32, "HS256", {"kid": kid}), "Invalid bearer token."),
        "unsigned": (jwt.encode(claims, None, "none", {"kid": kid}), "Invalid bearer token."),
    }


def test_a_token_that_is_not_right_in_every_way_is_401_and_reaches_nobody(
    iap: Guarded, backend: Backend, token: str
) -> None:
    for name, (wrong, why) in wrong_tokens(IdentityKey(iap.cloud.server.cloud)).items():
        headers = {"Authorization": f"Bearer {wrong}"} if wrong else {}
        answer = requests.get(iap.url, headers=headers, timeout=5)
        assert (answer.status_code, answer.headers["X-Goog-IAP-Generated-Response"]) == (401, "true"), name
        assert answer.text.startswith(f"Invalid IAP credentials: {why}"), name
    assert backend.requests == []
    assert asked(iap, token).status_code == 200


def test_who_was_not_let_in_is_403(iap: Guarded, backend: Backend, token: str) -> None:
    email = new_account(iap.cloud, "stranger")["client_email"]
    answer = asked(iap, IdentityKey(iap.cloud.server.cloud).token(email, IAP_CLIENT_ID))
    assert (answer.status_code, answer.headers["X-Goog-IAP-Generated-Response"]) == (403, "true")
    assert backend.requests == []


def test_the_second_header_leaves_the_first_to_the_backend(iap: Guarded, backend: Backend, token: str) -> None:
    assert asked(iap, token, "Proxy-Authorization", Authorization="Basic YTpi").status_code == 200
    assert asked(iap, token, **{"Proxy-Authorization": "Bearer wrong"}).status_code == 200
    assert asked(iap, "wrong", "Proxy-Authorization", Authorization="Basic YTpi").status_code == 401
    seen = [(headers["Authorization"], headers["Proxy-Authorization"]) for *_, headers, _ in backend.requests]
    assert seen == [("Basic YTpi", None), (f"Bearer {token}", None)]


def test_an_answer_of_the_backend_is_its_own(iap: Guarded, backend: Backend, token: str) -> None:
    where = {"Location": "https://example.com/", "X-Goog-IAP-Generated-Response": "true", "Set-Cookie": "a=b"}
    backend.answers["/api?q=%2F"] = (302, where)
    answer = requests.get(
        f"{iap.url}/api?q=%2F", headers={"Authorization": f"Bearer {token}"}, allow_redirects=False, timeout=5
    )
    assert (answer.status_code, answer.headers["Location"]) == (302, "https://example.com/")
    assert answer.headers["Set-Cookie"] == "a=b"
    assert "X-Goog-IAP-Generated-Response" not in answer.headers
    iap.proxy._backend = "http://127.0.0.1:1"
    assert asked(iap, token).status_code == 502


def test_any_certificate_of_the_backend_is_taken(iap: Guarded, token: str) -> None:
    # Whose authority the proxy does not know.
    backend = Backend(iap.tls)
    iap.proxy._backend = backend.url
    assert asked(iap, token).status_code == 200
    backend.close()


def test_bodies_of_any_size_pass_as_they_are(iap: Guarded, backend: Backend, token: str) -> None:
    body = os.urandom(3_000_000)
    headers = {"Authorization": f"Bearer {token}", "Content-Encoding": "gzip"}
    answer = requests.put(iap.url, data=body, headers=headers, timeout=30)
    assert answer.content == body
    assert backend.requests[0][3] == body


def test_an_answer_is_passed_on_while_it_is_made(iap: Guarded, token: str) -> None:
    read = threading.Event()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"first")
            self.wfile.flush()
            self.wfile.write(b"last" if read.wait(10) else b"never")

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    iap.proxy._backend = f"http://127.0.0.1:{server.server_address[1]}"
    answer = requests.get(iap.url, headers={"Authorization": f"Bearer {token}"}, stream=True, timeout=30)
    pieces = answer.iter_content(None)
    assert next(pieces) == b"first"
    read.set()
    assert b"".join(pieces) == b"last"
    server.shutdown()
    server.server_close()
