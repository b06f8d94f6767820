"""An OpenID provider: discovery, the code flow with PKCE and nonce, ID tokens by RS256, and a strict token endpoint.

Who comes to the authorization endpoint is signed in as the person of the file `person`, claims in JSON. There `_` says
what is to be wrong with the ID token, and `_seconds` how long it lasts. `tokens` has the ID tokens that were given.
https://openid.net/specs/openid-connect-core-1_0.html
"""

import base64
import hashlib
import http.server
import json
import pathlib
import secrets
import ssl
import threading
import time
import urllib.parse

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

PLACE = pathlib.Path("/srv/provider")
ISSUER = "https://provider.test:8443"
CLIENT_ID = "mlflow-client"
CLIENT_SECRET = "client-secret-77aa"
REDIRECT_URI = "https://mlflow.test/callback"
KEYS = {kid: rsa.generate_private_key(65537, 2048) for kid in ("first", "foreign")}
# What is known of the sign-ins under way, by their codes.
codes: dict[str, dict] = {}
lock = threading.Lock()


def b64(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def id_token(person: dict, nonce: str) -> str:
    """Return the signed claims of a person; with what is asked to be wrong."""
    wrong = person.get("_", "")
    now = int(time.time())
    claims = {
        "iss": "https://other.test" if wrong == "issuer" else ISSUER,
        "aud": "another-client" if wrong == "audience" else CLIENT_ID,
        "iat": now - 7200 if wrong == "expired" else now,
        "exp": now - 3600 if wrong == "expired" else now + int(person.get("_seconds", 600)),
        "nonce": "another" if wrong == "nonce" else nonce,
        **{name: value for name, value in person.items() if not name.startswith("_")},
    }
    if wrong == "none":
        return b64(b'{"alg":"none"}') + "." + b64(json.dumps(claims).encode()) + "."
    if wrong == "hmac":
        return jwt.encode(claims, CLIENT_SECRET, "HS256", headers={"kid": "first"})
    key = KEYS["foreign" if wrong == "key" else "first"]
    return jwt.encode(claims, key, "RS256", headers={"kid": "first"})


class Handler(http.server.BaseHTTPRequestHandler):
    """The provider's endpoints."""

    protocol_version = "HTTP/1.1"

    def answer(self, status: int, content: object = None, **headers: str) -> None:
        """Send JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Discovery, keys, and the authorization endpoint."""
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/.well-known/openid-configuration":
            self.answer(200, discovery())
        elif url.path == "/keys":
            key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEYS["first"].public_key()))
            self.answer(200, {"keys": [{**key, "kid": "first", "use": "sig", "alg": "RS256"}]})
        elif url.path == "/authorize":
            self.authorize(query)
        else:
            self.answer(404)

    def authorize(self, query: dict) -> None:
        """Sign the person in, and lead back with a code; refuse what a strict provider would."""
        wanted = {"response_type": "code", "client_id": CLIENT_ID, "redirect_uri": REDIRECT_URI}
        wanted["code_challenge_method"] = "S256"
        wrong = [name for name, value in wanted.items() if query.get(name) != value]
        wrong += [name for name in ("state", "nonce", "code_challenge") if len(query.get(name, "")) < 16]
        if wrong or "openid" not in query.get("scope", "").split():
            self.answer(400, {"error": "invalid_request", "wrong": wrong})
            return
        code = secrets.token_urlsafe(16)
        codes[code] = {**query, "person": json.loads((PLACE / "person").read_text())}
        back = urllib.parse.urlencode({"code": code, "state": query["state"]})
        self.answer(302, Location=f"{query['redirect_uri']}?{back}")

    def do_POST(self) -> None:
        """The token endpoint: each code once, with the client's secret and the verifier of its challenge."""
        body = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        client = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        if self.path != "/token" or client != f"{CLIENT_ID}:{CLIENT_SECRET}":
            self.answer(401, {"error": "invalid_client"})
            return
        with lock:
            began = codes.pop(body.get("code", ""), None)
        verifier = b64(hashlib.sha256(body.get("code_verifier", "").encode()).digest())
        fits = (
            began
            and body.get("grant_type") == "authorization_code"
            and body.get("redirect_uri") == REDIRECT_URI
            and verifier == began["code_challenge"]
        )
        if not fits:
            self.answer(400, {"error": "invalid_grant"})
            return
        token = id_token(began["person"], began["nonce"])
        with (PLACE / "tokens").open("a") as file:
            file.write(f"{token}\n")
        answer = {"access_token": secrets.token_urlsafe(16), "token_type": "Bearer", "id_token": token}
        self.answer(200, {**answer, "expires_in": int(began["person"].get("_seconds", 600))})

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


def discovery() -> dict:
    """Return the discovery document."""
    return {
        "issuer": ISSUER,
        "authorization_endpoint": f"{ISSUER}/authorize",
        "token_endpoint": f"{ISSUER}/token",
        "jwks_uri": f"{ISSUER}/keys",
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic"],
    }


server = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(PLACE / "certificate.pem", PLACE / "key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
