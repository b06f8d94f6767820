#!/usr/bin/python3 -I
"""Says to NGINX's auth_request whether a request came through Google's Identity-Aware Proxy, and whose it is.

The answer is 200 with the header `X-Authenticated-User: <address of e-mail, in lower case>` when the request has one
header `X-Goog-IAP-JWT-Assertion`, which Google signed for the backend service of `--audience`, and else 401. Google's
keys are read from `--keys-url` and kept in $STATE_DIRECTORY, so that a start without a network serves. systemd gives
the socket. Only what Debian packages: python3-jwt and python3-cryptography.

https://cloud.google.com/iap/docs/signed-headers-howto
"""

import argparse
import asyncio
import collections
import contextlib
import hashlib
import http.client
import json
import math
import os
import pathlib
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

ASSERTION_HEADER = b"x-goog-iap-jwt-assertion"
ISSUER = "https://cloud.google.com/iap"
ALGORITHM = "ES256"
SKEW_SECONDS = 30
# Plain ASCII: it becomes a header, a name in MLflow and a field of a log, and other signs may have these as lower case.
EMAIL = re.compile(r"[A-Za-z0-9._%+'-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
LONGEST_ASSERTION = 8192
# NGINX lets no longer one through.
LONGEST_HEAD = 65536
LARGEST_DOCUMENT = 1 << 20
# However many assertions name a key that is not known.
SECONDS_BETWEEN_FETCHES = 60.0
OLDEST_DOCUMENT_SECONDS = 6 * 3600.0
FETCH_TIMEOUT_SECONDS = 5.0
# How many verified assertions are remembered; a browser sends one many times.
REMEMBERED = 10_000
SECONDS_BETWEEN_LINES = 10.0


class RefusedError(Exception):
    """Why a request is not let in, without anything of what it holds."""


def parse_keys(document: bytes) -> dict[str, EllipticCurvePublicKey]:
    """Return the keys of a JWK set by their id; raises `ValueError` unless there is one that can be used."""
    try:
        listed = json.loads(document)["keys"]
        wanted = {"kty": "EC", "crv": "P-256", "alg": ALGORITHM}
        keys = {
            str(one["kid"]): jwt.algorithms.ECAlgorithm.from_jwk(json.dumps(one))
            for one in listed
            if all(one.get(name) == value for name, value in wanted.items())
        }
    except (LookupError, TypeError, AttributeError, jwt.PyJWTError) as error:
        raise ValueError(f"not a set of keys ({type(error).__name__})") from error
    found = {name: key for name, key in keys.items() if isinstance(key, EllipticCurvePublicKey)}
    if not found:
        raise ValueError(f"no key for {ALGORITHM}")
    return found


def download(url: str) -> bytes:
    """Return what is at the URL, by the proxy and the certificates that the environment names; raises `OSError`."""
    with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_SECONDS) as response:  # noqa: S310 - the role demands https
        content: bytes = response.read(LARGEST_DOCUMENT)
    return content


class Keys:
    """Google's keys, of the last document that could be fetched. Never empty once there was one."""

    def __init__(
        self,
        url: str,
        path: pathlib.Path,
        fetch: Callable[[str], bytes] = download,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._path = path
        self._fetch = fetch
        self._clock = clock
        self._tried = self._fetched = -math.inf
        self._fetching: asyncio.Task[None] | None = None
        self.generation = 0
        self._known: dict[str, EllipticCurvePublicKey] = {}
        try:
            self._known = parse_keys(path.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            say(f"The keys in {path} cannot be used: {error}")

    async def find(self, key_id: str) -> EllipticCurvePublicKey | None:
        """Return a key; one that is not known is looked for in a new document, unless there was one just now."""
        if key_id not in self._known:
            await self.refresh()
        return self._known.get(key_id)

    async def refresh(self) -> None:
        """Fetch the document; who comes meanwhile waits for the same one, and nobody longer than a fetch may take."""
        if self._fetching is None:
            if self._clock() - self._tried < SECONDS_BETWEEN_FETCHES:
                return
            self._tried = self._clock()
            self._fetching = asyncio.create_task(self._renew())
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._fetching), FETCH_TIMEOUT_SECONDS)

    async def keep_fresh(self) -> None:
        """Fetch the document at once, and anew when it is old."""
        while True:
            if self._clock() - self._fetched >= OLDEST_DOCUMENT_SECONDS:
                await self.refresh()
            await asyncio.sleep(SECONDS_BETWEEN_FETCHES)

    async def _renew(self) -> None:
        try:
            document = await asyncio.to_thread(self._fetch, self._url)
            known = parse_keys(document)
        except (OSError, ValueError, http.client.HTTPException) as error:
            say(f"{self._url} cannot be read, {len(self._known)} key(s) of before serve on: {error}")
        else:
            self._fetched = self._clock()
            if set(known) != set(self._known):
                say(f"{self._url} has {len(known)} key(s)")
            # What was verified with a key that is gone is verified again.
            self.generation += 1
            self._known = known
            self._keep(document)
        finally:
            self._fetching = None

    def _keep(self, document: bytes) -> None:
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(document)
            new.replace(self._path)
        except OSError as error:
            say(f"The keys cannot be kept over a restart: {error}")


class Verifier:
    """Takes assertions for one audience, and remembers those it has verified until they end."""

    def __init__(self, audience: str, keys: Keys, clock: Callable[[], float] = time.time) -> None:
        self._audience = audience
        self._keys = keys
        self._clock = clock
        # Address and end of an assertion, by its hash and the keys that it was verified with.
        self._verified: collections.OrderedDict[tuple[bytes, int], tuple[str, float]] = collections.OrderedDict()

    async def email_of(self, assertions: list[str]) -> str:
        """Return whose request it is that has these assertions; raises `RefusedError`."""
        if len(assertions) != 1:
            raise RefusedError("more than one assertion" if assertions else "no assertion")
        (assertion,) = assertions
        if len(assertion) > LONGEST_ASSERTION:
            raise RefusedError("an assertion that is too long")
        digest = hashlib.sha256(assertion.encode("latin-1")).digest()
        email, ends = self._verified.get((digest, self._keys.generation), ("", -math.inf))
        if self._clock() >= ends:
            try:
                email, ends = await self._verify(assertion)
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
                raise RefusedError(f"an assertion that does not hold ({type(error).__name__})") from error
            self._verified[digest, self._keys.generation] = email, ends
            if len(self._verified) > REMEMBERED:
                self._verified.popitem(last=False)
        return email

    async def _verify(self, assertion: str) -> tuple[str, float]:
        header = jwt.get_unverified_header(assertion)
        key_id = header.get("kid")
        # Before any key is looked for, so that only what could be Google's is worth a fetch.
        if header.get("alg") != ALGORITHM or not isinstance(key_id, str) or "crit" in header:
            raise RefusedError("an assertion of another kind")
        key = await self._keys.find(key_id)
        if key is None:
            raise RefusedError("an assertion by a key that is not Google's")
        claims: dict[str, Any] = jwt.decode(
            assertion,
            key,
            algorithms=[ALGORITHM],
            audience=self._audience,
            leeway=SKEW_SECONDS,
            options={"require": ["exp", "iat", "aud", "iss"]},
        )
        # PyJWT takes a list that the audience is in, and some versions of it a part of the issuer.
        if claims["aud"] != self._audience or claims["iss"] != ISSUER:
            raise RefusedError("an assertion for another audience, or by another issuer")
        # https://cloud.google.com/iap/docs/external-identities: such an address need not be anybody's own.
        if "gcip" in claims:
            raise RefusedError("an identity that is not Google's")
        email = claims.get("email")
        if not isinstance(email, str) or not EMAIL.fullmatch(email):
            raise RefusedError("an assertion without an address of e-mail")
        return email.lower(), float(claims["exp"]) + SKEW_SECONDS


class Refusals:
    """Says why requests are refused: each reason at once, and then so often a minute, with how many there were."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._unsaid: collections.Counter[str] = collections.Counter()
        self._said: dict[str, float] = {}

    def count(self, reason: str) -> None:
        """Count one more refusal."""
        self._unsaid[reason] += 1
        now = self._clock()
        if now - self._said.get(reason, -math.inf) >= SECONDS_BETWEEN_LINES:
            say(f"Refused {self._unsaid.pop(reason)} request(s): {reason}")
            self._said[reason] = now


def say(text: str) -> None:
    """Write one line for the journal."""
    print(text, file=sys.stderr, flush=True)


def header_values(head: bytes, name: bytes) -> list[str]:
    """Return the values of all headers of one name, which is in lower case."""
    pairs = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return [value.strip().decode("latin-1") for given, _, value in pairs if given.strip().lower() == name]


async def answer(verifier: Verifier, refusals: Refusals, head: bytes) -> bytes:
    """Return the response to one request."""
    try:
        email = await verifier.email_of(header_values(head, ASSERTION_HEADER))
    except RefusedError as error:
        refusals.count(str(error))
        return b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
    return f"HTTP/1.1 200 OK\r\nX-Authenticated-User: {email}\r\nContent-Length: 0\r\n\r\n".encode()


def tell_systemd(text: str) -> None:
    """Send a notification where systemd waits for one: sd_notify(3)."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto(text.encode(), path.replace("@", "\0", 1))


async def keep_watchdog_quiet() -> None:
    """Tell systemd that the loop goes round, twice as often as it demands."""
    seconds = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000 / 2
    while seconds:
        tell_systemd("WATCHDOG=1")
        await asyncio.sleep(seconds)


async def serve(audience: str, keys_url: str, listener: socket.socket) -> None:
    """Answer until systemd says to stop."""
    keys = Keys(keys_url, pathlib.Path(os.environ["STATE_DIRECTORY"], "keys.json"))
    verifier, refusals = Verifier(audience, keys), Refusals()

    async def serve_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # NGINX asks many times over one connection, without bodies.
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await answer(verifier, refusals, head))
                await writer.drain()
                if header_values(head, b"content-length") or header_values(head, b"transfer-encoding"):
                    break
        writer.close()

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    background = [asyncio.create_task(work) for work in (keys.keep_fresh(), keep_watchdog_quiet())]
    server = await asyncio.start_unix_server(serve_client, sock=listener, limit=LONGEST_HEAD)
    tell_systemd("READY=1")
    await stopped.wait()
    server.close()
    for task in background:
        task.cancel()


def main() -> None:
    """Serve on the socket that systemd gives: sd_listen_fds(3)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audience", required=True, help="/projects/<number>/global/backendServices/<id>")
    parser.add_argument("--keys-url", required=True, help="Google's keys as a set of JWK")
    arguments = parser.parse_args()
    with socket.socket(fileno=3) as listener:
        asyncio.run(serve(arguments.audience, arguments.keys_url, listener))


if __name__ == "__main__":
    main()
