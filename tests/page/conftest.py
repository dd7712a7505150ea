"""The page in a headless Chromium of the system, driven by playwright, against real servers with the micro model.

Every page is watched: a test fails where the console has an error, or where anything is asked of another host.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.web.running_server import RunningServer, running_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TIMEOUT_MILLISECONDS = 60_000  # on a busy machine
REFUSED = "Failed to load resource: the server responded with a status of"  # shown, in its own words, by the page

MICROPHONE = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")

Launch = Callable[..., "Browser"]
OpenPage = Callable[..., "Page"]


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """Start the system's Chromium, with arguments of its own."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  (the suite is skipped where it is not installed)

    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        yield lambda *arguments: playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)


@pytest.fixture(scope="session")
def browser(launch: Launch) -> Iterator[Browser]:
    """One browser for all tests, which has a microphone."""
    with launch(*MICROPHONE) as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open a page at an address, in a context of its own with the given options."""
    pages: list[tuple[Page, list[str]]] = []

    def open_(url: str, /, **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(TIMEOUT_MILLISECONDS)
        page, wrong = context.new_page(), list[str]()
        watch(page, urlsplit(url).netloc, wrong)
        pages.append((page, wrong))
        page.goto(url)
        return page

    yield open_
    for page, wrong in pages:
        page.context.close()
        assert not wrong


def watch(page: Page, host: str, wrong: list[str]) -> None:
    """Write down every error of the console, every exception, and every request to another host than `host`."""
    page.on("pageerror", lambda error: wrong.append(f"uncaught: {error}"))
    page.on(
        "console",
        lambda message: (
            wrong.append(message.text) if message.type == "error" and not message.text.startswith(REFUSED) else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            wrong.append(f"asked {request.url}")
            if urlsplit(request.url).scheme not in {"blob", "data"} and urlsplit(request.url).netloc != host
            else None
        ),
    )


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A server without keys and language model, which may fetch from the loopback."""
    with running_server(url_allow="127.0.0.1") as server:
        yield server


@pytest.fixture
def page(open_page: OpenPage, server: RunningServer) -> Page:
    """The page of `server`, ready."""
    return open_page(server.url)
