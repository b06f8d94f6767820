"""What is closed around the plugin for OpenID providers, without the plugin."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.util
import pathlib
import sys
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
# https://github.com/mlflow-oidc/mlflow-oidc-auth, mlflow_oidc_auth/middleware/route_path.py
PLUGIN_OPENS = (
    "/health",
    "/login",
    "/callback",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/oidc/ui",
    "/scim/v2/",
    "/slo/",
)


@pytest.fixture(scope="module")
def oidc() -> ModuleType:
    """Return the program; what only a release with the plugin has stands in for itself."""
    spec = importlib.util.spec_from_file_location("mlflow_oidc", ROOT / "roles/mlflow/files/mlflow_oidc.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    bridge = mock.Mock(WsgiToAsgi=object, WsgiToAsgiInstance=object)
    absent = {"asgiref": mock.Mock(), "asgiref.sync": mock.Mock(), "asgiref.wsgi": bridge, "mlflow_keys": mock.Mock()}
    with mock.patch.dict(sys.modules, absent):
        spec.loader.exec_module(module)
    return module


def asked(oidc: ModuleType, path: str, **headers: str) -> tuple[int, dict[bytes, bytes], dict[str, Any]]:
    """Return status and headers of the answer, and the request as the plugin saw it; 200 is the plugin's."""
    sent: list[Any] = []
    seen: dict[str, Any] = {}

    async def plugin(scope: Any, _receive: Any, send: Any) -> None:
        seen.update(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"it"})

    async def note(message: Any) -> None:
        sent.append(message)

    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    closed = oidc.Closed(plugin, lambda one: one == "/providers" or one.startswith(PLUGIN_OPENS), "a policy")
    asyncio.run(closed({"type": "http", "path": path, "scheme": "http", "headers": given}, mock.AsyncMock(), note))
    return sent[0]["status"], dict(sent[0]["headers"]), seen


@pytest.mark.parametrize(
    "path",
    [
        *("/health", "/login", "/login/default", "/callback", "/providers", "/oidc/ui", "/oidc/ui/", "/oidc/ui/a/b"),
        # Which the plugin itself refuses without a login.
        *("/", "/api/2.0/mlflow/runs/search", "/logout", "/oidc/trash/runs"),
    ],
)
def test_what_a_sign_in_needs_reaches_the_plugin(oidc: ModuleType, path: str) -> None:
    assert asked(oidc, path)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/health/ready", "/healthx", "/health/", "/login/other", "/login/", "/login/default/x", "/loginx"),
        *("/callback/default", "/callback/", "/metrics", "/docs", "/openapi.json", "/scim/v2/Users", "/slo/x"),
        *("/oidc/uix", "/login\n", "/health\n"),
    ],
)
def test_all_else_that_the_plugin_opens_is_not_there(oidc: ModuleType, path: str) -> None:
    status, _, seen = asked(oidc, path)
    assert (status, seen) == (404, {})


def test_the_plugins_own_pages_alone_have_its_policy(oidc: ModuleType) -> None:
    assert asked(oidc, "/oidc/ui/auth")[1] == {b"content-security-policy": b"a policy"}
    assert asked(oidc, "/")[1] == {}


def test_the_plugin_leads_to_where_nginx_was_asked(oidc: ModuleType) -> None:
    assert asked(oidc, "/", x_forwarded_proto="https")[2]["scheme"] == "https"
    assert asked(oidc, "/")[2]["scheme"] == "http"


def test_a_policy_allows_the_scripts_of_the_page_by_their_hashes(oidc: ModuleType, tmp_path: pathlib.Path) -> None:
    page = tmp_path / "index.html"
    page.write_text("<head><script>one()\n</script><script src='x.js'></script></head><script>two</script>")
    policy = oidc.content_security_policy(page)
    for script in (b"one()\n", b"two"):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" in policy
    assert policy.count("sha256-") == 2
    assert "script-src 'self' 'sha256-" in policy


@pytest.mark.parametrize(
    ("header", "login"),
    [
        ("", None),
        ("Bearer abc", None),
        ("Basic", ("", "")),
        ("Basic !", ("", "")),
        ("Basic /w==", None),
        ("Basic " + base64.b64encode(b"Ann:a:b").decode(), ("ann", "a:b")),
        ("BASIC " + base64.b64encode(b"ann").decode(), ("ann", "")),
    ],
)
def test_a_login_is_read_as_the_plugin_reads_it(oidc: ModuleType, header: str, login: tuple[str, str] | None) -> None:
    headers = [(b"authorization", header.encode()), (b"authorization", b"Basic eDp5")] if header else []
    assert oidc.basic_login({"headers": headers}) == login
