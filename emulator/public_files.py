"""What anyone may fetch: the Cloud SQL Auth Proxy's bucket, the Ops Agent's apt repository, discovery documents."""

import importlib.resources
import re
import urllib.parse

from aiohttp import web

from emulator.cloud import Cloud
from emulator.discovery import APIS
from emulator.errors import ApiError
from emulator.standins import CLOUD_SQL_PROXY

_CONNECTOR = re.compile(r"/cloud-sql-connectors/cloud-sql-proxy/v[0-9.]+/cloud-sql-proxy\.linux\.(amd64|arm64)")


# Both addresses at which Google's older clients look: https://developers.google.com/discovery/v1/reference/apis/getRest
_DISCOVERY = re.compile(r"/discovery/v1/apis/([a-z]+)/(v[0-9a-z]+)/rest")
_DOCUMENTS = importlib.resources.files("googleapiclient.discovery_cache") / "documents"


def _api(request: web.Request, host: str, path: str) -> str | None:
    """Return the API whose discovery document is asked for."""
    found = _DISCOVERY.fullmatch(path) if host == "www.googleapis.com" else None
    if found:
        return ".".join(found.groups())
    if path == "/$discovery/rest" and host.endswith(".googleapis.com"):
        return f"{host.partition('.')[0]}.{request.query.get('version', '')}"
    return None


async def answer(cloud: Cloud, request: web.Request, host: str, path: str) -> web.StreamResponse | None:
    """Serves a public file; None when the request is for something else."""
    api = _api(request, host, path)
    if api in APIS and request.method == "GET":
        return web.Response(body=(_DOCUMENTS / f"{api}.json").read_bytes(), content_type="application/json")
    if host == "packages.cloud.google.com":
        root = (cloud.state.directory / "apt").resolve()
        # apt writes the ~ of a version as %7e.
        file = (root / urllib.parse.unquote(path).removeprefix("/apt/").lstrip("/")).resolve()
        found = file.is_relative_to(root) and file.is_file()
    elif host == "storage.googleapis.com" and path.startswith("/cloud-sql-connectors/"):
        file, found = CLOUD_SQL_PROXY, bool(_CONNECTOR.fullmatch(path))
    else:
        return None
    if request.method not in ("GET", "HEAD") or not found:
        raise ApiError(404, f"There is no file at {path}.")
    return web.FileResponse(file)
