"""One page tells how the deployment is, changes nothing, and answers a script by its exit code."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHROMIUM = "/usr/bin/chromium"
Play = Callable[..., Any]


def systemctl(server: str, verb: str) -> None:
    subprocess.run(["docker", "exec", server, "systemctl", verb, "nginx"], check=True, timeout=60)


def photograph(page: pathlib.Path, scheme: Any) -> str:
    """Open a page from its file, without a network, and return its text; the screenshot is for people."""
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        tab = browser.new_page(color_scheme=scheme)
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        shot = ROOT / "build" / "screenshots" / f"{page.stem}-{scheme}.png"
        shot.parent.mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=shot, full_page=True)
        text = tab.inner_text("body")
        browser.close()
    assert asked == [page.as_uri()], "the page needs something else"
    return text


@pytest.mark.usefixtures("deployment")
def test_a_healthy_deployment_ends_well_and_nothing_is_written(
    play: Play, written: Callable[..., list[str]], tmp_path: pathlib.Path
) -> None:
    page = tmp_path / "new" / "status.html"
    runs = []

    assert written(lambda: runs.append(play("playbooks/status.yml", "-e", f"status_page_path={page}"))) == []

    assert runs[0].code == 0, runs[0].output
    assert runs[0].changed == 0, runs[0].output
    assert stat.S_IMODE(os.stat(page).st_mode) == 0o600
    text = photograph(page, "light")
    assert text == photograph(page, "dark")
    assert text.lower().startswith("✓ healthy")
    for one in (
        "3.17.2",
        "VM mlflow-1",
        "nginx",
        "Cloud SQL Auth Proxy",
        "days left",
        "of 100 (",
        "is what the inventory",
    ):
        assert one.lower() in text.lower(), text


def test_a_stopped_component_is_named_with_what_to_run(
    play: Play,
    deployment: Any,
    make_inventory: Callable[..., pathlib.Path],
    written: Callable[..., list[str]],
    tmp_path: pathlib.Path,
) -> None:
    page = tmp_path / "broken.html"
    options = ("--check", "-e", f"status_page_path={page}")
    # As if somebody had taken the label away in the cloud.
    inventory = make_inventory(platform_labels={"team": "research"})
    runs = []
    systemctl(deployment.server, "stop")
    try:
        assert written(lambda: runs.append(play("playbooks/status.yml", *options, inventory=inventory))) == []
    finally:
        systemctl(deployment.server, "start")

    assert runs[0].code != 0
    assert runs[0].changed == 0
    assert "NGINX is down: nginx.service is inactive" in runs[0].output
    command = f"ansible-playbook playbooks/configure.yml -i {os.path.relpath(inventory, ROOT)} --tags nginx"
    text = photograph(page, "light")
    assert text.lower().startswith("✗ down")
    assert f"Next: NGINX: {command}" in text
    assert "update storage.buckets demo-project-mlflow-artifacts: labels" in text
