"""Only what Google signed for this backend service, and just now, says who somebody is."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import pathlib
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ROOT = pathlib.Path(__file__).resolve().parents[3]
AUDIENCE = "/projects/123/global/backendServices/456"
URL = "https://keys.test/"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("iap_verifier", ROOT / "roles/iap_verifier/files/iap_verifier.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Google:
    """Signs assertions, and has the document of the keys."""

    def __init__(self) -> None:
        self.keys = {"first": ec.generate_private_key(ec.SECP256R1())}
        self.fetched = 0
        self.away = False

    def document(self, _url: str = URL) -> bytes:
        self.fetched += 1
        if self.away:
            raise OSError("no route to host")
        return jwk_set(self.keys)

    def claims(self, **claims: Any) -> dict[str, Any]:
        now = int(time.time())
        usual = {"iss": "https://cloud.google.com/iap", "aud": AUDIENCE, "iat": now, "exp": now + 600}
        return {**usual, "sub": "accounts.google.com:1", "email": "Ann@Example.com", **claims}

    def sign(self, key_id: str = "first", *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        whole = {name: value for name, value in self.claims(**claims).items() if value is not None}
        return jwt.encode(whole, self.keys[key_id], "ES256", headers={"kid": key_id, **(header or {})})


def jwk_set(keys: dict[str, ec.EllipticCurvePrivateKey]) -> bytes:
    listed = []
    for key_id, key in keys.items():
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        listed.append({**jwk, "kid": key_id, "alg": "ES256", "use": "sig"})
    return json.dumps({"keys": listed}).encode()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def google() -> Google:
    return Google()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def begin(program: ModuleType, google: Google, clock: Clock, tmp_path: pathlib.Path) -> Callable[[], Any]:
    """Return a new verifier, as a start of the service has it."""

    def begin() -> Any:
        keys = program.Keys(URL, tmp_path / "keys.json", google.document, clock)
        return program.Verifier(AUDIENCE, keys)

    return begin


def ask(program: ModuleType, verifier: Any, *assertions: str) -> str:
    """Return whose the request is, or why it is refused."""
    try:
        email: str = asyncio.run(verifier.email_of(list(assertions)))
    except program.RefusedError as error:
        return f"refused: {error}"
    return email


def unsigned(claims: dict[str, Any], signature: bytes = b"", **header: Any) -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def public_key_as_secret(google: Google) -> str:
    """Sign by HMAC with what everybody knows, which PyJWT itself refuses to do."""
    import hashlib
    import hmac

    secret = google.keys["first"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    token = unsigned(google.claims(), alg="HS256", kid="first").removesuffix(".")
    signature = hmac.digest(secret, token.encode(), hashlib.sha256)
    return f"{token}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def other_key(google: Google) -> str:
    return jwt.encode(google.claims(), ec.generate_private_key(ec.SECP256R1()), "ES256", headers={"kid": "first"})


def other_curve(google: Google) -> str:
    return jwt.encode(google.claims(), ec.generate_private_key(ec.SECP384R1()), "ES384", headers={"kid": "first"})


def altered(google: Google) -> str:
    head, _, signature = google.sign().split(".")
    return f"{head}.{unsigned(google.claims(email='eve@example.com')).split('.')[1]}.{signature}"


FORGED: dict[str, Callable[[Google], str]] = {
    "another key": other_key,
    "another curve": other_curve,
    "the public key as a secret": public_key_as_secret,
    "no algorithm": lambda google: unsigned(google.claims(), alg="none", kid="first"),
    "no signature": lambda google: unsigned(google.claims(), alg="ES256", kid="first"),
    "altered claims": altered,
    "no key id": lambda google: jwt.encode(google.claims(), google.keys["first"], "ES256"),
    "a key id that is a number": lambda google: unsigned(google.claims(), alg="ES256", kid=1),
    "an unknown extension": lambda google: google.sign(header={"crit": ["b64"]}),
    "expired": lambda google: google.sign(exp=int(time.time()) - 40),
    "issued in the future": lambda google: google.sign(iat=int(time.time()) + 40),
    "no end": lambda google: google.sign(exp=None),
    "no beginning": lambda google: google.sign(iat=None),
    "an end beyond numbers": lambda google: google.sign(exp=float("inf")),
    "another audience": lambda google: google.sign(aud=AUDIENCE + "7"),
    "several audiences": lambda google: google.sign(aud=[AUDIENCE, "/projects/9/global/backendServices/9"]),
    "no audience": lambda google: google.sign(aud=None),
    "another issuer": lambda google: google.sign(iss="https://cloud.google.com/iap/"),
    "no issuer": lambda google: google.sign(iss=None),
    "no address": lambda google: google.sign(email=None),
    "an address that is a list": lambda google: google.sign(email=["ann@example.com"]),
    "an address with a line break": lambda google: google.sign(email="ann@example.com\r\nX-Admin: 1"),
    "an address with a sign that looks like another": lambda google: google.sign(email="mi\u212ae@example.com"),
    "an identity of elsewhere": lambda google: google.sign(gcip={"email": "ann@example.com"}),
    "no JWT": lambda google: "Bearer x",
    "too long": lambda google: google.sign(padding="x" * 9000),
}


def test_an_assertion_says_who_it_is_in_lower_case(program: ModuleType, google: Google, begin: Any) -> None:
    assert ask(program, begin(), google.sign()) == "ann@example.com"


@pytest.mark.parametrize("skewed", [{"exp": -20}, {"iat": 20}], ids=["just ended", "about to begin"])
def test_clocks_may_differ_by_half_a_minute(
    program: ModuleType, google: Google, begin: Any, skewed: dict[str, int]
) -> None:
    claims = {name: int(time.time()) + seconds for name, seconds in skewed.items()}
    assert ask(program, begin(), google.sign(**claims)) == "ann@example.com"


@pytest.mark.parametrize("kind", FORGED)
def test_what_is_forged_is_refused(program: ModuleType, google: Google, begin: Any, kind: str) -> None:
    verifier = begin()
    forged = FORGED[kind](google)
    answer = ask(program, verifier, forged)
    assert answer.startswith("refused: ")
    assert forged not in answer
    # Also by one who knows the key and has let somebody in.
    assert ask(program, verifier, google.sign()) == "ann@example.com"
    assert ask(program, verifier, forged).startswith("refused: ")


@pytest.mark.parametrize("kind", ["the public key as a secret", "no algorithm", "no key id", "no JWT", "too long"])
def test_what_cannot_be_googles_is_worth_no_fetch(program: ModuleType, google: Google, begin: Any, kind: str) -> None:
    assert ask(program, begin(), FORGED[kind](google)).startswith("refused: ")
    assert google.fetched == 0


def test_one_assertion_is_wanted(program: ModuleType, google: Google, begin: Any) -> None:
    assert ask(program, begin()) == "refused: no assertion"
    assert ask(program, begin(), google.sign(), google.sign()) == "refused: more than one assertion"


def test_what_was_verified_is_not_verified_again_until_it_ends(
    program: ModuleType, google: Google, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier, assertion = begin(), google.sign()
    assert ask(program, verifier, assertion) == "ann@example.com"
    monkeypatch.setattr(program.jwt, "decode", lambda *_, **__: pytest.fail("verified again"))
    assert ask(program, verifier, assertion) == "ann@example.com"
    monkeypatch.undo()
    ends = time.time() + 640
    verifier._clock = lambda: ends
    monkeypatch.setattr(program.jwt, "decode", lambda *_, **__: {**google.claims(), "email": "verified@again.test"})
    assert ask(program, verifier, assertion) == "verified@again.test"


def test_what_is_remembered_is_bounded(
    program: ModuleType, google: Google, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "REMEMBERED", 3)
    verifier = begin()
    for number in range(9):
        assert ask(program, verifier, google.sign(number=number)) == "ann@example.com"
    assert len(verifier._verified) == 3


def test_a_new_key_is_looked_for_and_a_gone_one_is_refused(
    program: ModuleType, google: Google, begin: Any, clock: Clock
) -> None:
    verifier, before = begin(), google.sign()
    assert ask(program, verifier, before) == "ann@example.com"
    google.keys = {"second": ec.generate_private_key(ec.SECP256R1())}
    # No minute later.
    assert ask(program, verifier, google.sign("second")) == "refused: an assertion by a key that is not Google's"
    clock.now += 61
    assert ask(program, verifier, google.sign("second")) == "ann@example.com"
    assert ask(program, verifier, before) == "refused: an assertion by a key that is not Google's"


def test_unknown_keys_cost_one_fetch_a_minute(program: ModuleType, google: Google, begin: Any, clock: Clock) -> None:
    verifier = begin()
    google.keys["other"] = ec.generate_private_key(ec.SECP256R1())
    flood = [google.sign("other", header={"kid": f"unknown-{number}"}) for number in range(50)]

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(verifier.email_of([one]) for one in flood), return_exceptions=True)

    for seconds, fetches in ((0, 1), (59, 1), (1, 2)):
        clock.now += seconds
        answers = asyncio.run(all_at_once())
        assert {type(answer) for answer in answers} == {program.RefusedError}
        assert google.fetched == fetches


def test_a_fetch_that_hangs_keeps_nobody_waiting_whose_key_is_known(
    program: ModuleType, google: Google, begin: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = begin()
    assert ask(program, verifier, google.sign()) == "ann@example.com"
    clock.now += 61
    hanging = google.sign(header={"kid": "unknown"})
    monkeypatch.setattr(program, "FETCH_TIMEOUT_SECONDS", 1.0)

    def hang(_url: str) -> bytes:
        time.sleep(2)
        raise OSError

    verifier._keys._fetch = hang

    async def both() -> tuple[str, float, Any]:
        begun = time.monotonic()
        waiting = asyncio.create_task(verifier.email_of([hanging]))
        await asyncio.sleep(0.1)
        email = await verifier.email_of([google.sign(another=True)])
        seconds = time.monotonic() - begun
        return email, seconds, (await asyncio.gather(waiting, return_exceptions=True))[0]

    email, seconds, refused = asyncio.run(both())
    assert (email, seconds < 0.9) == ("ann@example.com", True)
    assert isinstance(refused, program.RefusedError)


def test_keys_are_kept_while_google_is_away_and_over_a_restart(
    program: ModuleType, google: Google, begin: Any, clock: Clock
) -> None:
    verifier = begin()
    assert ask(program, verifier, google.sign()) == "ann@example.com"
    google.away = True
    clock.now += 7 * 3600
    asyncio.run(verifier._keys.refresh())
    assert google.fetched == 2
    assert ask(program, verifier, google.sign(later=True)) == "ann@example.com"
    assert ask(program, begin(), google.sign()) == "ann@example.com"
    assert google.fetched == 2


def ec_jwk(curve: ec.EllipticCurve) -> dict[str, Any]:
    return jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(curve).public_key(), as_dict=True)


NOT_KEYS = {
    "no JSON": b"<html>",
    "no set": b"[]",
    "no keys": b'{"keys": []}',
    "keys without an id": json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256"}]}).encode(),
    "a secret": json.dumps({"keys": [{"kid": "first", "kty": "oct", "alg": "HS256", "k": "c2VjcmV0"}]}).encode(),
    "a key of another curve": json.dumps(
        {"keys": [{**ec_jwk(ec.SECP384R1()), "kid": "first", "alg": "ES384"}]}
    ).encode(),
    "no point of the curve": json.dumps(
        {"keys": [{"kid": "first", "kty": "EC", "crv": "P-256", "alg": "ES256", "x": "AA", "y": "AA"}]}
    ).encode(),
}


@pytest.mark.parametrize("kind", NOT_KEYS)
def test_a_document_without_keys_takes_no_ones_place(
    program: ModuleType, google: Google, begin: Any, clock: Clock, tmp_path: pathlib.Path, kind: str
) -> None:
    verifier = begin()
    assert ask(program, verifier, google.sign()) == "ann@example.com"
    kept = (tmp_path / "keys.json").read_bytes()
    clock.now += 61
    verifier._keys._fetch = lambda _url: NOT_KEYS[kind]
    asyncio.run(verifier._keys.refresh())
    assert ask(program, verifier, google.sign(later=True)) == "ann@example.com"
    assert (tmp_path / "keys.json").read_bytes() == kept


def test_kept_keys_that_are_spoilt_are_fetched_again(
    program: ModuleType, google: Google, begin: Any, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "keys.json").write_bytes(b"\0")
    assert ask(program, begin(), google.sign()) == "ann@example.com"


def test_refusals_are_told_at_once_and_then_counted(
    program: ModuleType, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    refusals = program.Refusals(clock)
    for _ in range(100):
        refusals.count("no assertion")
    clock.now += 11
    refusals.count("no assertion")
    refusals.count("an assertion that is too long")
    assert capsys.readouterr().err.splitlines() == [
        "Refused 1 request(s): no assertion",
        "Refused 100 request(s): no assertion",
        "Refused 1 request(s): an assertion that is too long",
    ]


def test_a_header_is_found_by_its_whole_name_whatever_its_case(program: ModuleType) -> None:
    head = (
        b"GET / HTTP/1.0\r\nX-GOOG-iap-jwt-assertion: a.b.c\r\nX-Goog-IAP-JWT-Assertion2: no\r\nX: X-Goog-IAP\r\n\r\n"
    )
    assert program.header_values(head, program.ASSERTION_HEADER) == ["a.b.c"]
