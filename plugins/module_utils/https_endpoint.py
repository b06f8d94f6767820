"""What anybody on the network sees of an HTTPS server, without a login."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import os
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

import requests

TIMEOUT_SECONDS = 30
FOREIGN_HOST = "not-this-server.invalid"


def go_to(address: str, domain: str) -> None:
    """Let this process find a domain at an address, whatever DNS says, and without a proxy."""
    ask = socket.getaddrinfo

    def found(host: Any, *arguments: Any, **options: Any) -> Any:
        return ask(address if host == domain else host, *arguments, **options)

    vars(socket)["getaddrinfo"] = found
    os.environ |= dict.fromkeys(("NO_PROXY", "no_proxy"), "*")


def certificate_facts(peer: dict[str, Any], now: datetime.datetime) -> dict[str, Any]:
    """Return `names`, `issuer`, `not_after` (RFC 3339) and `days_left` of what `SSLSocket.getpeercert` returned."""
    not_after = datetime.datetime.strptime(peer["notAfter"], "%b %d %H:%M:%S %Y %Z").replace(tzinfo=datetime.UTC)
    return {
        "names": [name for kind, name in peer.get("subjectAltName", ()) if kind == "DNS"],
        "issuer": ", ".join(f"{key}={value}" for part in peer["issuer"] for key, value in part),
        "not_after": not_after.isoformat(),
        "days_left": (not_after - now).days,
    }


def peer_certificate(domain: str) -> dict[str, Any]:
    """Return `SSLSocket.getpeercert` of a domain whose certificate is trusted; requests does not hand it out.

    Trusts what requests trusts, and raises what requests raises: `SSLError` or `ConnectionError`.
    """
    named = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    trusted = named or requests.utils.DEFAULT_CA_BUNDLE_PATH
    in_directory = os.path.isdir(trusted)
    context = ssl.create_default_context(
        cafile=None if in_directory else trusted, capath=trusted if in_directory else None
    )
    proxy = requests.utils.get_environ_proxies(f"https://{domain}/").get("https")
    first = urlsplit(proxy or f"https://{domain}:443")
    connection = http.client.HTTPSConnection(
        first.hostname or domain, first.port, timeout=TIMEOUT_SECONDS, context=context
    )
    if proxy:
        connection.set_tunnel(domain, 443)
    with contextlib.closing(connection):
        try:
            connection.connect()
        except ssl.SSLError as error:
            raise requests.exceptions.SSLError(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise requests.ConnectionError(error) from error
        tunnel: Any = connection.sock
        return tunnel.getpeercert()


def read(domain: str, path: str) -> dict[str, Any]:
    """Ask https://<domain><path>, the same under a foreign Host header, and plain HTTP.

    The certificate has to be valid for the domain and trusted, else `requests.exceptions.SSLError` is raised;
    other `requests.RequestException` when nothing answers over HTTPS. A status of 0 says that there was no answer
    over plain HTTP, or that the connection was closed without one. The proxy and the trusted authorities come from
    the environment, as requests reads it.
    """
    url = f"https://{domain}{path}"
    secure = requests.get(url, timeout=TIMEOUT_SECONDS, allow_redirects=False)
    # Port 80 may be closed.
    redirect = {"status": 0, "location": ""}
    with contextlib.suppress(requests.ConnectionError, requests.Timeout):
        plain = requests.get(f"http://{domain}{path}", timeout=TIMEOUT_SECONDS, allow_redirects=False)
        redirect = {"status": plain.status_code, "location": plain.headers.get("location", "")}
    try:
        foreign = requests.get(
            url, headers={"Host": FOREIGN_HOST}, timeout=TIMEOUT_SECONDS, allow_redirects=False
        ).status_code
    except requests.ConnectionError:
        foreign = 0
    return {
        "certificate": certificate_facts(peer_certificate(domain), datetime.datetime.now(datetime.UTC)),
        "status": secure.status_code,
        "headers": {name.lower(): value for name, value in secure.headers.items()},
        "redirect": redirect,
        "foreign_host_status": foreign,
    }
