"""HTTPS that reads once whom it trusts. requests reads that for each connection, which takes longer than all else."""

from __future__ import annotations

import functools
import ssl
from typing import Any

import requests
import urllib3


@functools.cache
def trusting(file: str | None, directory: str | None) -> ssl.SSLContext:
    """Return what trusts the authorities in a file or a directory alone; OSError when they cannot be read."""
    context = urllib3.util.ssl_.create_urllib3_context()
    context.load_verify_locations(file, directory)
    return context


class TrustingAdapter(requests.adapters.HTTPAdapter):
    """Connects as requests does, with one context for all connections of the process."""

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Say whom the pool's connections trust."""
        super().cert_verify(conn, url, verify, cert)
        if conn.ca_certs or conn.ca_cert_dir:
            conn.conn_kw["ssl_context"] = trusting(conn.ca_certs, conn.ca_cert_dir)
            conn.ca_certs = conn.ca_cert_dir = None
