"""The text as a language model corrects it, beside the transcript. The language model is a double."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.chat_server import Call, ChatServer, chat_server, stall
from tests.page.actions import SAMPLE, SPOKEN, drop, finished
from tests.page.app import COMMAND
from tests.page.conftest import OpenPage
from tests.web.running_server import RunningServer, running_server

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page").expect

if TYPE_CHECKING:
    from playwright.sync_api import Page

CORRECTED = SPOKEN.replace("five thirty-six", "5:36")
POEM = "The waves roll in beneath the moon,\nand gulls will sing their salty tune."
WAIT_SECONDS = 60.0


class Writer:
    """A language model that writes half of its correction, and the rest when it is told to."""

    def __init__(self) -> None:
        self.answer: Callable[[Call], None] = self.correct
        self.go_on = threading.Event()

    def __call__(self, call: Call) -> None:
        self.answer(call)

    def correct(self, call: Call) -> None:
        if call.path == "/api/ps":
            call.send(b'{"models": []}')
        else:
            call.reply(call.transcript.replace("five thirty-six", "5:36"))

    def write_slowly(self, call: Call) -> None:
        call.begin_stream()
        call.delta(CORRECTED[:20])
        assert self.go_on.wait(WAIT_SECONDS)
        call.delta(CORRECTED[20:])
        call.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        call.end_stream()

    def begin(self, call: Call) -> None:
        """Write a little, and then nothing."""
        call.begin_stream()
        call.delta(CORRECTED[:20])
        call.await_hang_up()
        self.go_on.set()


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def model() -> Writer:
    return Writer()


@pytest.fixture(scope="module")
def chat(stack: ExitStack, model: Writer) -> ChatServer:
    return stack.enter_context(chat_server(model))


@pytest.fixture(autouse=True)
def _corrects(model: Writer) -> None:
    model.answer = model.correct
    model.go_on.clear()


def enhancing_server(chat: ChatServer, **others: Any) -> AbstractContextManager[RunningServer]:
    return running_server(llm_base_url=chat.base_url, llm_model="gemma3", **others)


@pytest.fixture(scope="module")
def url(stack: ExitStack, chat: ChatServer) -> str:
    """A server that takes its model for a small one."""
    return stack.enter_context(enhancing_server(chat)).url


@pytest.fixture(scope="module")
def accurate_url(stack: ExitStack, chat: ChatServer) -> str:
    """A server that takes its model for one that needs no clean-up."""
    return stack.enter_context(enhancing_server(chat, command=COMMAND, environment={"TEST_MODEL_NAME": "medium"})).url


def only_when_asked(page: Page) -> None:
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Clean-up by gemma3").select_option("Only when I ask for it")


def test_the_corrected_text_grows_beside_the_transcript(open_page: OpenPage, url: str, model: Writer) -> None:
    model.answer = model.write_slowly
    page = open_page(url)
    drop(page, SAMPLE)
    found = finished(page, SAMPLE.name)
    expect(found.locator(".enhanced")).to_have_text(CORRECTED[:20].strip())
    expect(found.locator(".segments .text")).to_have_text([SPOKEN])
    expect(found.get_by_text("The language model is writing …")).to_be_visible()
    model.go_on.set()
    expect(found.locator(".verdict")).to_contain_text("Corrected by gemma3 in")
    expect(found.locator(".enhanced")).to_have_text(CORRECTED)
    expect(found.get_by_role("button", name="Enhance now")).to_be_hidden()
    with page.expect_download() as download:
        found.get_by_role("button", name="json").click()
    saved = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert (saved["text"], saved["enhancement"]["text"]) == (SPOKEN, CORRECTED)


def test_it_is_done_when_it_is_asked_for(open_page: OpenPage, url: str) -> None:
    page = open_page(url)
    only_when_asked(page)
    drop(page, SAMPLE)
    found = finished(page, SAMPLE.name)
    expect(found.locator(".enhancement")).to_be_hidden()
    found.get_by_role("button", name="Enhance now").click()
    expect(found.locator(".enhanced")).to_have_text(CORRECTED)
    expect(found.locator(".verdict")).to_contain_text("Corrected by gemma3")


def test_what_is_skipped_says_why_and_can_be_done_anyway(open_page: OpenPage, accurate_url: str) -> None:
    page = open_page(accurate_url)
    drop(page, SAMPLE)
    found = finished(page, SAMPLE.name)
    expect(found.locator(".verdict")).to_contain_text("Skipped: auto cleans up after micro, tiny, base, small only")
    found.get_by_role("button", name="Enhance anyway").click()
    expect(found.locator(".enhanced")).to_have_text(CORRECTED)


def test_what_is_no_correction_is_shown_as_not_used(open_page: OpenPage, url: str, model: Writer) -> None:
    model.answer = lambda call: call.reply(POEM)
    page = open_page(url)
    drop(page, SAMPLE)
    found = finished(page, SAMPLE.name)
    expect(found.locator(".verdict")).to_contain_text("Not used: ")
    expect(found.locator(".enhanced")).to_have_css("text-decoration-line", "line-through")
    model.answer = model.correct
    found.get_by_role("button", name="Try again").last.click()
    expect(found.locator(".verdict")).to_contain_text("Corrected by gemma3")


@pytest.mark.parametrize("asked", [False, True])
def test_it_can_be_stopped_while_it_grows(open_page: OpenPage, url: str, model: Writer, asked: bool) -> None:
    model.answer = model.begin
    page = open_page(url)
    if asked:
        only_when_asked(page)
    drop(page, SAMPLE)
    found = finished(page, SAMPLE.name)
    if asked:
        found.get_by_role("button", name="Enhance now").click()
    expect(found.locator(".enhanced")).to_have_text(CORRECTED[:20].strip())
    found.get_by_role("button", name="Stop").click()
    expect(found.locator(".verdict")).to_have_text("Stopped: what was written is not used.")
    assert model.go_on.wait(WAIT_SECONDS)  # the language model was hung up on
    expect(found).to_have_attribute("data-state", "done")
    expect(found.locator(".segments .text")).to_have_text([SPOKEN])


def test_the_next_file_does_not_wait_for_it(open_page: OpenPage, url: str, model: Writer) -> None:
    model.answer = model.begin
    page = open_page(url)
    drop(page, SAMPLE, ("second.flac", SAMPLE.read_bytes()))
    finished(page, "second.flac")
    expect(finished(page, SAMPLE.name).locator(".enhancement")).to_have_attribute("data-status", "growing")


def test_an_error_is_told_in_the_servers_words(open_page: OpenPage, url: str) -> None:
    page = open_page(url)
    only_when_asked(page)
    gone = {"error": {"message": "there is no transcription 't7' any more", "code": "not_found"}}
    page.route("**/enhance-stream?enhance=always", lambda route: route.fulfill(status=404, json=gone))
    drop(page, SAMPLE)
    found = finished(page, SAMPLE.name)
    found.get_by_role("button", name="Enhance now").click()
    expect(found.locator(".verdict")).to_have_text("there is no transcription 't7' any more")


def test_a_key_is_asked_for_where_it_is_wrong(open_page: OpenPage, url: str) -> None:
    page = open_page(url)
    only_when_asked(page)
    wrong = {"error": {"message": "incorrect API key", "code": "invalid_api_key"}}
    page.route("**/enhance-stream?enhance=always", lambda route: route.fulfill(status=401, json=wrong), times=2)
    drop(page, SAMPLE)
    found = finished(page, SAMPLE.name)
    found.get_by_role("button", name="Enhance now").click()
    expect(page.get_by_role("alert").filter(has_text="incorrect API key")).to_be_visible()
    page.get_by_role("button", name="Not now").click()
    expect(found.locator(".verdict")).to_have_text("incorrect API key")
    found.get_by_role("button", name="Try again").last.click()
    page.get_by_label("Key", exact=True).fill("another")
    page.get_by_role("button", name="Continue").click()
    expect(found.locator(".enhanced")).to_have_text(CORRECTED)


def test_a_language_model_that_does_not_answer_leaves_the_transcript(
    open_page: OpenPage, stack: ExitStack, chat: ChatServer, model: Writer
) -> None:
    model.answer = stall
    page = open_page(stack.enter_context(enhancing_server(chat, llm_timeout=1)).url)
    drop(page, SAMPLE)
    found = finished(page, SAMPLE.name)
    expect(found.locator(".verdict")).to_contain_text("Not used: ")
    expect(found.locator(".segments .text")).to_have_text([SPOKEN])
