"""`python -m tests.page.picture`: the picture of the page for the README. The language model in it is a double."""

from __future__ import annotations

import re

from playwright.sync_api import sync_playwright

from tests.chat_server import Call, chat_server
from tests.conftest import ROOT
from tests.page.actions import LONG_SAMPLE, drop, finished, until
from tests.page.conftest import CHROMIUM
from tests.web.running_server import running_server

PICTURE = ROOT / "docs" / "page.png"
LINE = 2
CORRECTIONS = {
    "five zero one nine": "5019",
    "one nine four six one eight": "194618",
    "eight zero four eight nine five": "804895",
    "nine six zero three": "9603",
    "twenty-eighth": "28",
    "twenty-eight": "28",
    "ninety-four": "94",
    "half past twelve": "12:30",
}


def correct(call: Call) -> None:
    if call.path == "/api/ps":
        call.send(b'{"models": []}')
        return
    said = re.compile("|".join(CORRECTIONS), re.IGNORECASE)
    call.reply(said.sub(lambda match: CORRECTIONS[match[0].lower()], call.transcript))


def main() -> None:
    with (
        chat_server(correct) as chat,
        running_server(llm_base_url=chat.base_url, llm_model="gemma3") as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(server.url)
        drop(page, ("voice-notes.flac", LONG_SAMPLE.read_bytes()))
        found = finished(page, "voice-notes.flac")
        found.locator(".enhancement[data-status=enhanced]").wait_for()
        found.locator(".segments li").nth(LINE).locator(".text").click()
        until(page, "document.querySelector('audio').currentTime > 7")
        page.evaluate("scrollTo(0, 0)")
        page.mouse.move(0, 0)
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
