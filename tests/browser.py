"""A real headless Chromium that reaches this machine's loopback and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

NEEDED = "tests of the dashboard need Chromium and its driver; on Debian: apt-get install chromium chromium-driver"
NAMES = ("chromium", "chromium-browser", "google-chrome")


def found() -> tuple[str, str]:
    """Paths of Chromium and of its driver."""
    browser = next((path for path in map(shutil.which, NAMES) if path), None)
    driver = shutil.which("chromedriver")
    assert browser is not None, NEEDED
    assert driver is not None, NEEDED
    return browser, driver


@contextmanager
def chromium(width: int = 1360, height: int = 1000) -> Iterator[Chrome]:
    """Start Chromium; it logs each request, and resolves no name but loopback's."""
    browser, driver = found()
    options = ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--force-device-scale-factor=1",
        "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--window-size={width},{height}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    window = Chrome(options, Service(driver))
    try:
        yield window
    finally:
        window.quit()


def requested(window: Chrome) -> list[str]:
    """Addresses that pages have asked for since the last call; the browser's own pages and what has no address are left out."""
    events = [json.loads(entry["message"])["message"] for entry in window.get_log("performance")]
    told = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    told += [event["params"]["url"] for event in events if event["method"] == "Network.webSocketCreated"]
    return [url for url in told if not url.startswith(("data:", "blob:", "chrome:"))]


def prefer(window: Chrome, scheme: str) -> None:
    """Let the system prefer `light` or `dark`."""
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
