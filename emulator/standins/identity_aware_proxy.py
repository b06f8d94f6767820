"""Identity-Aware Proxy before one backend: who has an ID token for its OAuth client gets through, with signed headers.

After https://cloud.google.com/iap/docs/authentication-howto and https://cloud.google.com/iap/docs/signed-headers-howto.
A browser's way in, by redirects and cookies, is left out: who brings no token is told so by 401.
"""

import pathlib
import ssl
import time
from collections.abc import Container
from typing import Any

import aiohttp
import jwt
import multidict
import yarl
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from emulator import certificates
from emulator.cloud import Cloud
from emulator.errors import ApiError
from emulator.state import Resource, write_private

ISSUER = "https://cloud.google.com/iap"
ASSERTION_SECONDS = 600
_TOKEN_ISSUERS = ("https://accounts.google.com", "accounts.google.com")
_NAMESPACE = "accounts.google.com"
_ONE_HOP = {
    *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    *("proxy-authenticate", "proxy-authorization"),
}


class SigningKey:
    """The key that signs what the backend gets to know; made at first use, kept in a directory."""

    def __init__(self, directory: pathlib.Path) -> None:
        file = directory / "iap.key"
        if not file.exists():
            write_private(file, certificates.key_pem(certificates.new_key()))
        key = serialization.load_pem_private_key(file.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("iap.key is not an elliptic key")
        self._key, self._id = key, certificates.key_id(key)

    def assertion(self, email: str, subject: str, audience: str) -> str:
        """Return the content of `X-Goog-IAP-JWT-Assertion`; `audience` names the backend service."""
        now = int(time.time())
        claims: Resource = {"iss": ISSUER, "aud": audience, "sub": subject, "email": email}
        claims |= {"iat": now, "exp": now + ASSERTION_SECONDS}
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self._id})

    def jwk_set(self) -> Resource:
        """Return what verifies it, as `public_key-jwk` has it."""
        public = ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {"keys": [{**public, "kid": self._id, "alg": "ES256", "use": "sig"}]}

    def pem_map(self) -> dict[str, str]:
        """Return what verifies it, as `public_key` has it: `{kid: PEM}`."""
        form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return {self._id: self._key.public_key().public_bytes(*form).decode()}


async def answer(cloud: Cloud, request: web.Request, host: str, path: str) -> web.StreamResponse | None:
    """Serves the public keys from the emulated cloud; None when the request is for another host."""
    if host != "www.gstatic.com":
        return None
    key = SigningKey(cloud.state.directory)
    files = {"/iap/verify/public_key-jwk": key.jwk_set, "/iap/verify/public_key": key.pem_map}
    if request.method not in ("GET", "HEAD") or path not in files:
        raise ApiError(404, f"There is no file at {path}.")
    return web.json_response(files[path]())


class _RefusedError(Exception):
    """Why a token does not get through, in the proxy's words."""


class IdentityAwareProxy:
    """A reverse proxy that forwards, as a stream, what brings an ID token of someone who may pass."""

    def __init__(
        self,
        backend: str,
        client_id: str,
        audience: str,
        members: Container[str],
        google_keys: Resource,
        key: SigningKey,
    ) -> None:
        """Take the backend's URL, the OAuth client's ID, `/projects/<number>/global/backendServices/<id>`.

        `members` are the e-mail addresses with roles/iap.httpsResourceAccessor; `google_keys` is the JWK set that
        verifies ID tokens.
        """
        self._backend, self._client_id, self._audience = backend, client_id, audience
        self._members, self._key = members, key
        self._google_keys = {one["kid"]: jwt.PyJWK(one).key for one in google_keys["keys"]}
        # Claims of each request's token that got through, and what the others were told, for tests to read.
        self.admitted: list[Resource] = []
        self.refused: list[tuple[int, str]] = []

    async def start(self, tls: ssl.SSLContext) -> int:
        """Listens on loopback; returns the port."""
        self._client = aiohttp.ClientSession(
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=tls).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stops listening."""
        await self._runner.cleanup()
        await self._client.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        try:
            claims = self._identify(request.headers)
        except _RefusedError as error:
            return self._refuse(401, f"Invalid IAP credentials: {error}")
        if claims["email"] not in self._members:
            return self._refuse(403, "You don't have access")
        self.admitted.append(claims)
        return await self._forward(request, claims["email"], f"{_NAMESPACE}:{claims['sub']}")

    def _refuse(self, status: int, text: str) -> web.Response:
        self.refused.append((status, text))
        return web.Response(status=status, text=text, headers={"X-Goog-IAP-Generated-Response": "true"})

    def _identify(self, headers: multidict.CIMultiDictProxy[str]) -> Resource:
        """Return the claims of the token in `Proxy-Authorization`, or of that in `Authorization`."""
        refusal = _RefusedError("empty token")
        for name in ("Proxy-Authorization", "Authorization"):
            scheme, _, token = headers.get(name, "").partition(" ")
            if scheme.lower() != "bearer":
                continue
            try:
                return self._verified(token)
            except _RefusedError as error:
                refusal = error
        raise refusal

    def _verified(self, token: str) -> Resource:
        try:
            claims: Resource = jwt.decode(
                token,
                self._google_keys[jwt.get_unverified_header(token).get("kid", "")],
                algorithms=["RS256"],
                audience=self._client_id,
                issuer=_TOKEN_ISSUERS,
                options={"require": ["iss", "aud", "sub", "iat", "exp"], "strict_aud": True},
            )
        except jwt.InvalidAudienceError as error:
            raise _RefusedError("Invalid bearer token. Invalid JWT audience.") from error
        except (jwt.InvalidSignatureError, KeyError) as error:  # KeyError: nobody's key
            raise _RefusedError("JWT signature is invalid") from error
        except jwt.DecodeError as error:
            raise _RefusedError("Unable to parse JWT") from error
        except jwt.PyJWTError as error:
            raise _RefusedError(f"Invalid bearer token. {error}") from error
        if not isinstance(claims.get("email"), str):
            raise _RefusedError("JWT 'email' claim isn't a string")
        return claims

    async def _forward(self, request: web.Request, email: str, subject: str) -> web.StreamResponse:
        headers = _kept(request.headers)
        headers["X-Goog-IAP-JWT-Assertion"] = self._key.assertion(email, subject, self._audience)
        headers["X-Goog-Authenticated-User-Email"] = f"{_NAMESPACE}:{email}"
        headers["X-Goog-Authenticated-User-Id"] = subject
        url = yarl.URL(self._backend + request.raw_path, encoded=True)
        body: Any = request.content if request.body_exists else None
        try:
            # As Google's front ends, it takes any certificate of a backend:
            # https://cloud.google.com/load-balancing/docs/ssl-certificates/encryption-to-the-backends
            async with self._client.request(
                request.method, url, headers=headers, data=body, allow_redirects=False, ssl=False
            ) as found:
                response = web.StreamResponse(status=found.status, reason=found.reason, headers=_kept(found.headers))
                await response.prepare(request)
                async for chunk in found.content.iter_any():
                    await response.write(chunk)
        except aiohttp.ClientConnectorError as error:
            return web.Response(status=502, text=f"The backend does not answer: {error}\n")
        await response.write_eof()
        return response


def _kept(headers: multidict.CIMultiDictProxy[str]) -> multidict.CIMultiDict[str]:
    """Return the headers that go on: none of one hop only, and none that only this proxy may say."""
    dropped = _ONE_HOP | {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    kept = [(name, text) for name, text in headers.items() if name.lower() not in dropped]
    return multidict.CIMultiDict((name, text) for name, text in kept if not name.lower().startswith("x-goog-"))
