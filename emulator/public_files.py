"""Files that anyone may fetch: the Cloud SQL Auth Proxy's bucket and the Ops Agent's apt repository."""

import re
import urllib.parse

from aiohttp import web

from emulator.cloud import Cloud
from emulator.errors import ApiError
from emulator.standins import CLOUD_SQL_PROXY

_CONNECTOR = re.compile(r"/cloud-sql-connectors/cloud-sql-proxy/v[0-9.]+/cloud-sql-proxy\.linux\.(amd64|arm64)")


async def answer(cloud: Cloud, request: web.Request, host: str, path: str) -> web.StreamResponse | None:
    """Serves a public file; None when the request is for something else."""
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
