"""Google's token endpoint: service account keys are exchanged for access and ID tokens."""

import time
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from emulator import certificates
from emulator.cloud import Cloud
from emulator.errors import ApiError
from emulator.iam import TOKEN_SECONDS, Access
from emulator.state import Resource, write_private

_EXCHANGE_URL = "https://oauth2.googleapis.com/token"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ISSUER = "https://accounts.google.com"
IDENTITY_TOKEN_SECONDS = 3600


def credentials(access: Access, email: str, key: rsa.RSAPrivateKey) -> Resource:
    """Registers a key; returns the content of a service account's credentials file."""
    return {
        "type": "service_account",
        "project_id": email.partition("@")[2].partition(".")[0],
        "private_key_id": access.add_key(email, key),
        "private_key": certificates.key_pem(key),
        "client_email": email,
        "client_id": str(abs(hash(email)) % 10**20),
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": _EXCHANGE_URL,
        "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
        "universe_domain": "googleapis.com",
    }


class IdentityKey:
    """The key with which the emulated Google signs ID tokens; made at first use, kept in the state directory."""

    def __init__(self, cloud: Cloud) -> None:
        file = cloud.state.directory / "identity.key"
        if not file.exists():
            write_private(file, certificates.key_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
        key = serialization.load_pem_private_key(file.read_bytes(), None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise TypeError("identity.key is not an RSA key")
        self._key = key
        self._access = cloud.access
        self._id = certificates.key_id(key)

    def token(self, email: str, audience: str, include_email: bool = True, more: Resource | None = None) -> str:
        """Return a signed ID token of a service account; `more` are further claims."""
        unique, now = self._access.unique_id(email), int(time.time())
        claims: Resource = {"iss": ISSUER, "aud": audience, "sub": unique, "azp": unique, **(more or {})}
        claims |= {"email": email, "email_verified": True} if include_email else {}
        claims |= {"iat": now, "exp": now + IDENTITY_TOKEN_SECONDS}
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": self._id})

    def certificate_map(self) -> dict[str, str]:
        """Return what verifies ID tokens as `{kid: PEM certificate}`."""
        return {self._id: certificates.self_signed(self._key, "federated-signon")}

    def jwk_set(self) -> Resource:
        """Return what verifies ID tokens as a JWK set."""
        public = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        shown = {name: public[name] for name in ("kty", "n", "e")}
        return {"keys": [{**shown, "kid": self._id, "alg": "RS256", "use": "sig"}]}


async def answer(cloud: Cloud, request: web.Request, host: str, path: str) -> web.StreamResponse | None:
    """Serves the token hosts' own paths; None for anything else."""
    if (host, path) == ("www.googleapis.com", "/oauth2/v1/certs"):
        return web.json_response(IdentityKey(cloud).certificate_map())
    if (host, path) == ("www.googleapis.com", "/oauth2/v3/certs"):
        return web.json_response(IdentityKey(cloud).jwk_set())
    if path in ("/token", "/oauth2/v4/token") and host in ("oauth2.googleapis.com", "www.googleapis.com"):
        form = await request.post()
        return _exchange(cloud, str(form.get("grant_type", "")), str(form.get("assertion", "")))
    if path in ("/tokeninfo", "/oauth2/v3/tokeninfo") and host in ("oauth2.googleapis.com", "www.googleapis.com"):
        return _token_info(cloud, request.query.get("access_token", ""))
    return None


def _exchange(cloud: Cloud, grant: str, assertion: str) -> web.Response:
    if grant != _GRANT:
        return _refused("unsupported_grant_type", f"Invalid grant_type: {grant}")
    try:
        claims = cloud.access.verify_assertion(assertion, _EXCHANGE_URL)
    except jwt.PyJWTError as error:
        return _refused("invalid_grant", f"Invalid JWT Signature. ({error})")
    email = claims["iss"]
    if not cloud.access.account_exists(email):
        return _refused("invalid_grant", "Invalid grant: account not found")
    if "target_audience" in claims:
        # One assertion asks for one kind of token.
        if not claims["target_audience"] or "scope" in claims:
            return _refused("invalid_request", "target_audience must be one audience, without a scope.")
        return web.json_response({"id_token": IdentityKey(cloud).token(email, claims["target_audience"])})
    scopes = claims.get("scope", "").split()
    if not scopes:
        return _refused("invalid_scope", "Empty or missing scope not allowed.")
    token = cloud.access.issue_token(email, scopes)
    return web.json_response({"access_token": token, "expires_in": TOKEN_SECONDS - 1, "token_type": "Bearer"})


def _token_info(cloud: Cloud, token: str) -> web.Response:
    try:
        claims: dict[str, Any] = cloud.access.read_token(token)
    except ApiError:
        return _refused("invalid_token", "Invalid Value")
    left = int(claims["exp"] - time.time())
    shown = {"email": claims["email"], "email_verified": "true", "scope": " ".join(claims["scopes"])}
    return web.json_response(shown | {"exp": str(claims["exp"]), "expires_in": str(left), "access_type": "online"})


def _refused(error: str, description: str) -> web.Response:
    return web.json_response({"error": error, "error_description": description}, status=400)
