"""A headless Chromium for tests, found on the machine and never downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_DRIVERS = ("chromedriver", "chromium.chromedriver")


@contextmanager
def browser(width: int = 1200, height: int = 900) -> Iterator[Any]:
    """Drive a Chromium while inside, its viewport of that size in CSS pixels.

    Without one the test is skipped, or fails where ANISOALIGN_REQUIRE_BROWSER is set.
    """
    binary = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = next(filter(None, map(shutil.which, _DRIVERS)), None)
    if binary is None or driver is None:
        message = "no Chromium found; install chromium and chromium-driver"
        if os.environ.get("ANISOALIGN_REQUIRE_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    opened = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    try:
        resize(opened, width, height)
        yield opened
    finally:
        opened.quit()


def resize(opened: Any, width: int, height: int = 900) -> None:
    """Give the viewport a size, a phone's below 600; no window can be made that narrow."""
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
