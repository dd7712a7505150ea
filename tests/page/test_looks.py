"""Widths, light and dark, motion, and where there is no microphone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.page.actions import LONG_SAMPLE, SAMPLE, drop, finished, overflows
from tests.page.conftest import OpenPage
from tests.web.running_server import RunningServer

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page").expect

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

# Texts and what they stand on, as the style sheet names them.
PAIRS = [
    *(("ink", ground) for ground in ("paper", "surface", "sunken", "accent-soft")),
    *(("muted", ground) for ground in ("paper", "surface", "sunken", "accent-soft")),
    ("accent-strong", "accent-soft"),
    ("on-accent", "accent"),
    ("on-accent", "accent-strong"),
    ("danger", "danger-soft"),
]
LONG_NAME = f"{'a_very_long_name_without_a_space' * 4}.flac"


@pytest.mark.parametrize("width", [320, 390, 768, 1920])
def test_nothing_is_wider_than_the_window(open_page: OpenPage, server: RunningServer, width: int) -> None:
    page = open_page(server.url, viewport={"width": width, "height": 740})
    page.locator("#server[data-state=ready]").wait_for()
    assert not overflows(page)
    page.get_by_text("More", exact=True).click()
    drop(page, (LONG_NAME, SAMPLE.read_bytes()), (f"no{LONG_NAME}", b"x" * 2000))
    finished(page, LONG_NAME)
    finished(page, f"no{LONG_NAME}", "failed")
    assert not overflows(page)
    page.get_by_role("button", name="Record").click()
    expect(page.locator("#recorder")).to_be_visible()
    assert not overflows(page)
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("button", name="Record")).to_be_focused()


def test_who_is_quicker_than_the_server_loses_nothing(page: Page) -> None:
    held: list[Route] = []
    page.route("**/page/config.json", lambda route: held.append(route))  # noqa: PLW0108  (playwright marks its handlers)
    page.reload()
    page.locator("#files").set_input_files(SAMPLE)
    expect(page.locator(".job")).to_have_count(0)
    held[0].continue_()
    finished(page, SAMPLE.name)


def test_a_page_whose_server_has_gone_says_so(page: Page) -> None:
    page.route("**/page/config.json", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
    page.reload()
    expect(page.locator("#server")).to_have_text("The server answered 502. Reload the page to try again.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(open_page: OpenPage, server: RunningServer, scheme: str) -> None:
    page = open_page(server.url, color_scheme=scheme)
    assert (luminance(page, "paper") < 0.1) == (scheme == "dark")
    for text, ground in PAIRS:
        darker, lighter = sorted((luminance(page, text), luminance(page, ground)))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, f"{text} on {ground}"  # WCAG's AA
    for ground in ("paper", "surface"):
        darker, lighter = sorted((luminance(page, "edge"), luminance(page, ground)))
        assert (lighter + 0.05) / (darker + 0.05) >= 3  # of what can be pressed


def luminance(page: Page, name: str) -> float:
    """Return a colour's relative luminance, as WCAG has it."""
    color = page.evaluate("name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`)", name)
    digits = color.strip().removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_who_wants_no_motion_gets_none(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server.url, reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.querySelector('progress, body')).animationName") == "none"
    drop(page, LONG_SAMPLE)
    bar = "getComputedStyle(document.querySelector('.job progress')).animationName"
    assert page.evaluate(bar) == "none"
    finished(page, LONG_SAMPLE.name)


def test_everything_that_can_be_used_has_a_name(page: Page) -> None:
    drop(page, SAMPLE)
    finished(page, SAMPLE.name)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, select, meter, progress")]
            .filter(one => one.checkVisibility())
            .filter(one => !(one.textContent.trim() || one.getAttribute("aria-label") || one.labels?.length))
            .map(one => one.outerHTML)"""
    )
    assert unnamed == []


def test_the_page_says_what_it_is_dropped_on(page: Page) -> None:
    page.locator("#server[data-state=ready]").wait_for()
    page.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File(["x"], "x.mp3"));
            document.body.dispatchEvent(new DragEvent("dragenter", {bubbles: true, dataTransfer}));
        }"""
    )
    expect(page.get_by_text("Drop to transcribe")).to_be_visible()
    page.evaluate("document.body.dispatchEvent(new DragEvent('dragleave', {bubbles: true}))")
    expect(page.get_by_text("Drop to transcribe")).to_be_hidden()


def test_without_a_secure_address_recording_says_so(page: Page) -> None:
    page.evaluate("Object.defineProperty(window, 'isSecureContext', {value: false})")  # the loopback always is one
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("alert").filter(has_text=re.compile("https://"))).to_be_visible()


@pytest.mark.parametrize(
    ("name", "said"), [("NotAllowedError", "may not use the microphone"), ("NotFoundError", "No microphone was found")]
)
def test_without_a_microphone_recording_says_why(page: Page, name: str, said: str) -> None:
    refuse = "name => (navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', name)))"
    page.evaluate(refuse, name)
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("alert").filter(has_text=said)).to_be_visible()


def test_a_server_that_loads_its_model_says_so_until_it_is_ready(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server.url)
    loading = [{"error": {"message": "the model is still loading", "code": "unavailable"}}]

    def answer(route: Route) -> None:  # a double: this server has loaded its model
        if loading:
            route.fulfill(status=503, json=loading.pop(), headers={"Retry-After": "1"})
        else:
            route.continue_()

    page.route("**/v1/models", answer)
    page.reload()
    expect(page.locator("#server")).to_have_text("the model is still loading")
    expect(page.locator("#server")).to_have_text("Ready")
