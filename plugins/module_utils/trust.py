"""HTTPS that reads once whom it trusts. requests reads that for each connection, which takes longer than all else."""

from __future__ import annotations

import functools
import os
import ssl
from typing import Any

import certifi
import requests
import urllib3


@functools.cache
def trusting(place: str) -> ssl.SSLContext:
    """Return what trusts the authorities in a file or a directory alone; OSError when they cannot be read."""
    context = urllib3.util.ssl_.create_urllib3_context()
    directory = os.path.isdir(place)
    context.load_verify_locations(None if directory else place, place if directory else None)
    context.set_alpn_protocols(urllib3.util.ssl_.ALPN_PROTOCOLS)
    # Each connection would set them again, under the feet of threads that are connecting.
    setattr(context, "set_alpn_protocols", lambda _protocols: None)  # noqa: B010
    return context


class TrustingAdapter(requests.adapters.HTTPAdapter):
    """Connects as requests does, with one context for all connections of the process; knows no client certificates."""

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """Return what a pool of connections is told apart by, and whom it trusts."""
        host, _tls = super().build_connection_pool_key_attributes(request, verify, cert)
        if host["scheme"] != "https":
            return host, {}
        place = certifi.where() if verify is True else verify
        if not place or not os.path.exists(place):
            raise OSError(f"Could not find whom to trust in TLS: {place} is not there")
        return host, {"ssl_context": trusting(place), "cert_reqs": "CERT_REQUIRED"}

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Change nothing: a pool may be at work for other threads, and knows whom it trusts."""
