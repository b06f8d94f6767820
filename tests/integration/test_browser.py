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
from playwright.sync_api import BrowserContext, ConsoleMessage, Error, Response, expect, sync_playwright

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
# MLflow's bundles ask these hosts for an editor and for charts, and NGINX refuses the assistant to everybody.
EXPECTED = re.compile(r"https://(cdn\.jsdelivr\.net|cdn\.plot\.ly)/|/ajax-api/3\.0/mlflow/assistant/")
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
def run_name(tracking: Callable[..., requests.Response]) -> Iterator[tuple[str, str]]:
    """Yield an experiment's id and the name of its run."""
    now = time.time_ns()
    experiment = tracking("POST", "experiments/create", json={"name": f"browser-{now}"}).json()["experiment_id"]
    name = f"seen-{now}"
    started = {"experiment_id": experiment, "run_name": name, "start_time": int(time.time() * 1000)}
    run = tracking("POST", "runs/create", json=started).json()["run"]["info"]["run_id"]
    tracking("POST", "runs/log-parameter", json={"run_id": run, "key": "alpha", "value": "0.5"}).raise_for_status()
    yield experiment, name
    tracking("POST", "experiments/delete", json={"experiment_id": experiment}).raise_for_status()


def test_the_page_shows_the_run_after_login(
    deployment: Any, open_browser: Callable[..., BrowserContext], run_name: tuple[str, str]
) -> None:
    experiment, name = run_name
    context = open_browser(http_credentials={"username": "admin", "password": deployment.admin_password})
    page = context.new_page()
    wrong: list[str] = []

    def note_status(response: Response) -> None:
        if response.status >= 400:
            wrong.append(f"status {response.status}: {response.url}")

    def note_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrong.append(f"console: {message.text} at {message.location}")

    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url} {request.failure}"))
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("response", note_status)
    page.on("console", note_console)

    page.goto(f"{URL}/#/experiments/{experiment}/runs")
    link = page.get_by_role("link", name=name)
    expect(link).to_be_visible(timeout=PATIENCE_MILLISECONDS)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "runs.png")
    link.click()
    expect(page.get_by_text("alpha", exact=True)).to_be_visible(timeout=PATIENCE_MILLISECONDS)
    page.screenshot(path=SCREENSHOTS / "run.png")
    assert [one for one in wrong if not EXPECTED.search(one)] == []


def test_the_page_is_not_shown_without_a_login(open_browser: Callable[..., BrowserContext]) -> None:
    page = open_browser().new_page()
    # Chromium's word for a 401 whose login nobody answers; a certificate it does not trust has another.
    with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
        page.goto(URL)
