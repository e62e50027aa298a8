"""A real browser for tests of pages, where there is one: Chromium without a window, told what to do by Selenium."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from tests.running import PATIENCE_S

SCHEMES_OF_ITS_OWN = ("data:", "blob:", "about:", "chrome:", "devtools:")


class Browser:
    """driver: Selenium's, for all that is not here."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1400, height: int = 1000, dark: bool = False) -> None:
        """Open a page at a width in CSS pixels."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.resize(width, height)
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(url)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def ask(self, script: str) -> Any:
        """What an expression of JavaScript is in the page."""
        return self.driver.execute_script(f"return {script}")

    def wait(self, script: str) -> Any:
        """The same once it is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE_S, 0.05).until(lambda _: self.ask(script))

    def violations(self) -> list[tuple[str, list[str]]]:
        """What axe-core finds wrong for people with disabilities, everything unfolded: rule and elements. Skips without it."""
        axe = pytest.importorskip("axe_core_python", reason="axe-core is not here: pip install axe-core-python")
        self.driver.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
        self.driver.execute_script(files(axe).joinpath("axe.min.js").read_text())
        found = self.driver.execute_async_script("axe.run({resultTypes: ['violations']}).then(arguments[0])")
        assert len(found["passes"]) > 10
        return [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]

    def console(self) -> list[str]:
        """What it has said since the page was opened, warnings and refusals of the page's own policy among it."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """URLs that were asked for since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(SCHEMES_OF_ITS_OWN)]


def missing() -> str:
    """What a browser test lacks here, "" where nothing is."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "no selenium; it comes with the dev extra"
    if not shutil.which("chromedriver"):
        return "no chromedriver; Debian's chromium-driver brings it and Chromium"
    return ""


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Skips the test, with the reason, where there is none."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(PATIENCE_S)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
