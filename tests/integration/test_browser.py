"""MLflow's page in a real browser, over HTTPS, after login."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from playwright.sync_api import BrowserContext, ConsoleMessage, Error, Locator, Response, expect, sync_playwright

SCREENSHOTS = pathlib.Path(__file__).resolve().parents[2] / "build" / "screenshots"
# As people open it: the port of the server that this machine publishes.
URL = "https://mlflow.localhost:8443"
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
# MLflow's bundles ask these hosts for an editor, charts and a film; NGINX refuses assistant and gateway to everybody.
EXPECTED = re.compile(
    r"https://(cdn\.jsdelivr\.net|cdn\.plot\.ly|mlflow\.org)/|/ajax-api/3\.0/mlflow/assistant/|/mlflow/gateway-proxy"
)
PATIENCE_MILLISECONDS = 90_000


@pytest.fixture
def home(tmp_path: pathlib.Path, deployment: Any) -> pathlib.Path:
    """Return a home directory whose browser trusts the root of our own certificate authority, and nothing else new."""
    database = tmp_path / ".pki" / "nssdb"
    database.mkdir(parents=True)
    subprocess.run(["certutil", "-d", f"sql:{database}", "-N", "--empty-password"], check=True)
    roots = x509.load_pem_x509_certificates((deployment.ca_bundle.parent / "acme-roots.pem").read_bytes())
    for number, root in enumerate(roots):
        add = ["certutil", "-d", f"sql:{database}", "-A", "-a", "-t", "C,,", "-n", f"local root {number}"]
        subprocess.run(add, input=root.public_bytes(Encoding.PEM), check=True)
    return tmp_path


@pytest.fixture
def open_browser(home: pathlib.Path) -> Iterator[Callable[..., BrowserContext]]:
    """Yield a function that opens a fresh browser context. The machine's proxy is not for it."""
    assert pathlib.Path(CHROMIUM).exists(), "apt-get install chromium"
    with sync_playwright() as playwright:
        environment: dict[str, str | float | bool] = {"HOME": str(home), "PATH": os.environ["PATH"]}
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, env=environment)
        yield browser.new_context
        browser.close()


@pytest.fixture
def run_name(deployment: Any, tracking: Callable[..., requests.Response]) -> Iterator[tuple[str, str, str]]:
    """Yield an experiment's id, the id of its run and the run's name."""
    now = time.time_ns()
    experiment = tracking("POST", "experiments/create", json={"name": f"browser-{now}"}).json()["experiment_id"]
    name = f"seen-{now}"
    started = {"experiment_id": experiment, "run_name": name, "start_time": int(time.time() * 1000)}
    run = tracking("POST", "runs/create", json=started).json()["run"]["info"]["run_id"]
    tracking("POST", "runs/log-parameter", json={"run_id": run, "key": "alpha", "value": "0.5"}).raise_for_status()
    for step in range(5):
        metric = {"run_id": run, "key": "loss", "value": 1 / (step + 1), "timestamp": now // 1_000_000, "step": step}
        tracking("POST", "runs/log-metric", json=metric).raise_for_status()
    html = "<h1>A page</h1><script>document.body.id = 'ran'</script>"
    with requests.Session() as session:
        session.trust_env = False
        for file, content in (("note.txt", "a note"), ("page.html", html)):
            session.put(
                f"{deployment.url}/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/{file}",
                data=content,
                auth=("admin", deployment.admin_password),
                proxies={"https": deployment.environment["HTTPS_PROXY"]},
                verify=str(deployment.ca_bundle),
                timeout=60,
            ).raise_for_status()
    yield experiment, run, name
    tracking("POST", "experiments/delete", json={"experiment_id": experiment}).raise_for_status()


def test_the_pages_show_what_is_there_after_login_and_break_no_rule(
    deployment: Any, open_browser: Callable[..., BrowserContext], run_name: tuple[str, str, str]
) -> None:
    experiment, run, name = run_name
    context = open_browser(http_credentials={"username": "admin", "password": deployment.admin_password})
    page = context.new_page()
    wrong: list[str] = []

    def note_status(response: Response) -> None:
        if response.status >= 400:
            wrong.append(f"status {response.status}: {response.url}")

    def note_console(message: ConsoleMessage) -> None:
        # What breaks the Content-Security-Policy is among it.
        if message.type == "error":
            wrong.append(f"console: {message.text} at {message.location}")

    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url} {request.failure}"))
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("response", note_status)
    page.on("console", note_console)

    def shown(path: str, what: Locator, picture: str) -> None:
        page.goto(f"{URL}/#/{path}")
        expect(what.first).to_be_visible(timeout=PATIENCE_MILLISECONDS)
        page.screenshot(path=SCREENSHOTS / f"{picture}.png")

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    of_run = f"experiments/{experiment}/runs/{run}"
    shown(f"experiments/{experiment}/runs", page.get_by_role("link", name=name), "runs")
    shown(of_run, page.get_by_text("alpha", exact=True), "run")
    shown(f"{of_run}/model-metrics", page.locator(".js-plotly-plot"), "charts")
    shown(f"{of_run}/artifacts/note.txt", page.get_by_text("a note"), "artifact")
    shown(f"experiments/{experiment}/traces", page.get_by_text("trace").first, "traces")
    shown("models", page.get_by_role("heading", name="Model"), "models")
    assert [one for one in wrong if not EXPECTED.search(one)] == []

    shown(f"{of_run}/artifacts/page.html", page.frame_locator("iframe").get_by_role("heading", name="A page"), "html")
    assert page.frame_locator("iframe").locator("#ran").count() == 0
    assert any("Content Security Policy" in one for one in wrong)


def test_the_page_is_not_shown_without_a_login(open_browser: Callable[..., BrowserContext]) -> None:
    page = open_browser().new_page()
    # Chromium's word for a 401 whose login nobody answers; a certificate it does not trust has another.
    with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
        page.goto(URL)
