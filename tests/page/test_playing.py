"""Hearing what was said, by mouse and by keys alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.page.actions import LONG_SAMPLE, SAMPLE, audio_of, drop, finished, until
from tests.page.conftest import Launch
from tests.web.running_server import RunningServer
from tests.web.test_running import file_server, send_audio

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page").expect

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


@pytest.fixture
def long(page: Page) -> Locator:
    """A transcript of many lines."""
    drop(page, LONG_SAMPLE)
    return finished(page, LONG_SAMPLE.name)


def current(found: Locator) -> Locator:
    return found.locator(".segments li[aria-current]")


def test_a_click_on_a_line_plays_it_and_shows_where_it_is(page: Page, long: Locator) -> None:
    line = long.locator(".segments li").nth(9)
    line.locator(".text").click()
    expect(current(long)).to_have_text("0:25I need cheese, butter and potatoes.")
    expect(long.get_by_role("button", name="Pause")).to_be_visible()
    until(page, "document.querySelector('audio').currentTime > 25.5")
    long.get_by_role("button", name="Pause").click()
    expect(long.get_by_role("button", name="Play", exact=True)).to_be_visible()


def test_the_line_that_is_heard_is_scrolled_to(page: Page, long: Locator) -> None:
    page.set_viewport_size({"width": 390, "height": 500})
    page.evaluate("scrollTo(0, 0)")
    last = long.locator(".segments li").last
    expect(last).not_to_be_in_viewport()
    long.get_by_role("slider", name="Position").evaluate(
        "range => { range.value = 75; range.dispatchEvent(new Event('input')) }"
    )
    expect(last).to_have_attribute("aria-current", "true")
    expect(last).to_be_in_viewport()


def test_one_file_is_heard_at_a_time(page: Page, long: Locator) -> None:
    drop(page, SAMPLE)
    other = finished(page, SAMPLE.name)
    long.locator(".segments .text").first.click()
    until(page, "[...document.querySelectorAll('audio')].some(audio => !audio.paused)")
    other.locator(".segments .text").first.click()
    expect(other.get_by_role("button", name="Pause")).to_be_visible()
    expect(long.get_by_role("button", name="Play", exact=True)).to_be_visible()
    assert audio_of(long, "paused")


def test_a_word_is_heard_where_it_is_said(page: Page) -> None:
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Times of every word").check()
    drop(page, SAMPLE)
    found = finished(page, SAMPLE.name)
    word = found.locator(".word", has_text="platform")
    start = float(word.get_attribute("data-start") or 0)
    assert start > 2
    word.click()
    expect(word).to_have_class("word spoken")
    assert audio_of(found, "currentTime") >= start - 0.1
    assert found.locator(".segments .text").inner_text().endswith("from platform five.")


def test_audio_of_another_host_is_played_from_there_and_only_when_asked(launch: Launch, server: RunningServer) -> None:
    with launch() as browser, file_server(send_audio) as url:
        page, asked = browser.new_page(), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.url)
        page.get_by_label("or fetch from an address").fill(url)
        page.keyboard.press("Enter")
        found = finished(page, "a.flac")
        expect(found.locator(".length")).to_have_text("0:06")
        assert url not in asked
        found.get_by_role("button", name="Play", exact=True).click()
        until(page, "document.querySelector('audio').currentTime > 0.5")
        assert url in asked


def test_everything_can_be_done_by_keys(page: Page) -> None:
    page.locator("#server[data-state=ready]").wait_for()
    with page.expect_file_chooser() as chooser:
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "choose":
                break
        page.keyboard.press("Enter")
    chooser.value.set_files(LONG_SAMPLE)
    found = finished(page, LONG_SAMPLE.name)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "time":
            break
    lines = found.locator(".segments .time")
    expect(lines.nth(0)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(lines.nth(2)).to_be_focused()
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Space")
    expect(current(found)).to_contain_text("My birthday is on August twenty-eighth.")
    page.keyboard.press("Space")
    expect(found.get_by_role("button", name="Play", exact=True)).to_be_visible()
    before = audio_of(found, "currentTime")
    page.keyboard.press("ArrowRight")
    assert audio_of(found, "currentTime") == pytest.approx(before + 5, abs=0.01)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("End")
    expect(lines.last).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(lines.last).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(current(found)).to_contain_text("The code is five zero one nine.")
    page.keyboard.press("Tab")
    expect(found.get_by_role("button", name="Copy text")).to_be_focused()
    with page.expect_download() as download:
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "long_slt75.srt"
