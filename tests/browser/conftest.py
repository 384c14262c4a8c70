"""A real browser: the Chromium of the system, headless, driven over the DevTools protocol."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str | None:
    """The program, from TOKENPRUNE_BROWSER or the search path; None when there is none."""
    named = os.environ.get("TOKENPRUNE_BROWSER")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")  # not longer: while it is open, no other event loop can run in this thread
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here: `apt-get install chromium`, or name one in TOKENPRUNE_BROWSER")
    with sync_playwright() as playwright:
        # A sandbox needs rights that a container rarely has; the pages are our own.
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()
