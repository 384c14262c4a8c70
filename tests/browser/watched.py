"""A page that is watched: whatever it asks of a network or complains about is noted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page


@dataclass
class Watched:
    """An open page and what it did.

    Attributes:
        page: the page.
        requests: addresses other than data URIs, the file itself first.
        complaints: messages of the console and uncaught errors.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def asked(self, url: str) -> None:
        """Note an address that the page asked for."""
        if not url.startswith("data:"):
            self.requests.append(url)


@contextmanager
def opened(browser: Browser, path: Path, *, scheme: str = "light", width: int = 1280) -> Iterator[Watched]:
    """Open a file and watch it.

    Args:
        browser: the browser.
        path: the HTML file.
        scheme: what the system prefers, "light" or "dark".
        width: of the window in pixels.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light"
    )
    page = context.new_page()
    watched = Watched(page)
    page.on("request", lambda request: watched.asked(request.url))
    page.on("console", lambda message: watched.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    page.goto(path.as_uri())
    yield watched
    context.close()
