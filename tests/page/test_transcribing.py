"""From audio to text and files, and what the page says when that does not work."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests
import soundfile

from tests.page.actions import LONG_SAMPLE, SAMPLE, SPOKEN, drop, finished, job, until
from tests.page.app import COMMAND, PREFIX
from tests.page.conftest import MICROPHONE, Launch, OpenPage
from tests.test_formats import of
from tests.web.running_server import RunningServer, running_server, wait_until
from tests.web.test_running import file_server, send_audio
from whisperlib import assets, formats

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page").expect

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

GERMAN = assets.SAMPLES / "german_001.flac"
SILENCE = assets.SAMPLES / "silence_white5_0001.flac"
NO_AUDIO = ("notes.txt", b"this is no audio at all")


def told_by(server: RunningServer, file: Path | bytes, response_format: str, **fields: str) -> requests.Response:
    data = file.read_bytes() if isinstance(file, Path) else file
    fields = {"response_format": response_format, **fields}
    return server.post("/transcribe", files={"file": ("a", data)}, data=fields)


def test_a_file_is_dropped_and_its_text_appears(page: Page) -> None:
    drop(page, SAMPLE)
    found = finished(page, SAMPLE.name)
    expect(found.locator(".segments .text")).to_have_text([SPOKEN])
    expect(found.locator(".segments .time")).to_have_text(["0:00"])
    expect(found.locator(".facts")).to_contain_text("0:06 · English · micro · took")
    expect(page.locator("#announcer")).to_have_text(f"{SAMPLE.name}: done, 1 line.")
    expect(found.locator(".enhance")).to_be_hidden()


def test_files_are_chosen_and_worked_in_their_order(page: Page) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose files").click()
    chooser.value.set_files([LONG_SAMPLE, GERMAN])
    first, second = job(page, LONG_SAMPLE.name), job(page, GERMAN.name)
    expect(second.locator(".state")).to_have_text("Waits for what is before it")
    finished(page, GERMAN.name)
    expect(first).to_have_attribute("data-state", "done")
    expect(second.locator(".facts")).to_contain_text("German")
    assert page.locator(".job h2").all_inner_texts() == [LONG_SAMPLE.name, GERMAN.name]


def test_upload_progress_and_segments_are_shown_as_they_come(page: Page) -> None:
    watch = """() => {
        window.seen = [];
        new MutationObserver(() => {
            const job = document.querySelector(".job");
            const [lines, bar] = [job.querySelectorAll("li").length, job.querySelector("progress")];
            window.seen.push([job.dataset.state, job.querySelector(".state").textContent, bar.value, lines]);
        }).observe(document.querySelector("#jobs"), {subtree: true, childList: true, characterData: true});
    }"""
    page.evaluate(watch)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 1_000_000}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    drop(page, LONG_SAMPLE)
    finished(page, LONG_SAMPLE.name)
    seen = page.evaluate("seen")
    uploading = [text for state, text, value, _ in seen if state == "sending" and 0 < value < 1]
    assert uploading
    assert all(re.fullmatch(r"Uploading \d\d? %", text) for text in uploading)
    working = [(text, lines) for state, text, value, lines in seen if state == "working" and 0 < value < 1]
    assert any(re.fullmatch(r"Transcribing \d\d? %", text) and lines for text, lines in working)


def test_a_download_is_what_the_server_writes(page: Page, server: RunningServer) -> None:
    drop(page, LONG_SAMPLE)
    found = finished(page, LONG_SAMPLE.name)
    for suffix, response_format in {"txt": "text", "srt": "srt", "vtt": "vtt"}.items():
        with page.expect_download() as download:
            found.get_by_role("button", name=suffix, exact=True).click()
        assert download.value.suggested_filename == f"long_slt75.{suffix}"
        assert Path(download.value.path()).read_bytes() == told_by(server, LONG_SAMPLE, response_format).content


def test_the_json_has_all_that_the_server_tells(page: Page, server: RunningServer) -> None:
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Times of every word").check()
    drop(page, SAMPLE)
    with page.expect_download() as download:
        finished(page, SAMPLE.name).get_by_role("button", name="json").click()
    saved = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    told = told_by(server, SAMPLE, "json", word_timestamps="true").json()
    varies = {"timings", "id", "cached"}
    assert {name: saved[name] for name in saved if name not in varies} == {
        name: told[name] for name in told if name not in varies
    }
    assert saved["words"]


AWKWARD = [
    (-0.2, 0.0, " a  <b>\u2028& c --> d ---> e "),
    (3599.9996, 3600.25, "ümläut\x85\x1fend"),
    (359999.5, 360001.0, "long"),
    (5.0, 6.0, " \n"),
]


@pytest.mark.parametrize("suffix", ["srt", "vtt"])
def test_awkward_texts_and_times_are_written_as_by_the_server(page: Page, suffix: str) -> None:
    segments = [{"start": start, "end": end, "text": text} for start, end, text in AWKWARD]
    written = page.evaluate(
        "async ([result, suffix]) => (await import('./page/downloads.js')).FORMATS[suffix].write(result)",
        [{"segments": segments}, suffix],
    )
    assert written == formats.render(of(*AWKWARD), suffix)


def test_the_text_can_be_copied(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server.url, permissions=["clipboard-read", "clipboard-write"])
    drop(page, SAMPLE)
    found = finished(page, SAMPLE.name)
    found.get_by_role("button", name="Copy text").click()
    expect(found.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == SPOKEN


def test_the_text_can_be_copied_where_browsers_offer_no_clipboard(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server.url, permissions=["clipboard-read"])
    drop(page, SAMPLE)
    found = finished(page, SAMPLE.name)
    page.evaluate("navigator.clipboard.writeText = undefined")  # as at plain http:// addresses
    found.get_by_role("button", name="Copy text").click()
    expect(found.get_by_role("button", name="Copied")).to_be_focused()
    assert page.evaluate("navigator.clipboard.readText()") == SPOKEN


def test_silence_is_said_to_be_silent(page: Page) -> None:
    drop(page, SILENCE)
    expect(finished(page, SILENCE.name).get_by_text("No speech was found")).to_be_visible()


def test_what_is_no_audio_is_refused_in_the_servers_words_and_the_next_file_goes_on(
    page: Page, server: RunningServer
) -> None:
    drop(page, NO_AUDIO, SAMPLE)
    found = finished(page, NO_AUDIO[0], "failed")
    message = told_by(server, NO_AUDIO[1], "json").json()["error"]["message"]
    expect(found.get_by_role("alert")).to_have_text(message)
    finished(page, SAMPLE.name)
    found.get_by_role("button", name="Remove").click()
    expect(found).to_have_count(0)


def test_what_is_removed_is_forgotten(page: Page) -> None:
    drop(page, SAMPLE)
    browser = page.context.new_cdp_session(page)
    job_class = browser.send(
        "Runtime.evaluate",
        {"expression": "import('./page/job.js').then(({ Job }) => Job.prototype)", "awaitPromise": True},
    )

    def n_jobs() -> int:
        found = browser.send(
            "Runtime.queryObjects", {"prototypeObjectId": job_class["result"]["objectId"], "objectGroup": "found"}
        )
        told = browser.send(
            "Runtime.callFunctionOn",
            {"objectId": found["objects"]["objectId"], "functionDeclaration": "function () { return this.length; }"},
        )
        browser.send("Runtime.releaseObjectGroup", {"objectGroup": "found"})  # which would keep them
        return int(told["result"]["value"])

    finished(page, SAMPLE.name)
    assert n_jobs() == 1
    job(page, SAMPLE.name).get_by_role("button", name="Remove").click()
    expect(job(page, SAMPLE.name)).to_have_count(0)
    wait_until(lambda: n_jobs() == 0, "nothing holds it")


def test_a_file_that_is_too_large_is_not_sent(open_page: OpenPage) -> None:
    with running_server(max_body_bytes=100_000) as server:
        page = open_page(server.url)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.method))
        drop(page, SAMPLE)
        expect(finished(page, SAMPLE.name, "failed").get_by_role("alert")).to_have_text(
            "It has 121 kB, and this server takes at most 100 kB."
        )
        assert "POST" not in asked


def test_choices_are_sent_and_outlive_a_reload(page: Page) -> None:
    page.get_by_label("Fast").check()
    page.get_by_label("Language").select_option("German")
    page.get_by_label("Translate into English").check()
    page.reload()
    expect(page.get_by_label("Fast")).to_be_checked()
    expect(page.get_by_label("Language")).to_have_value("de")
    expect(page.get_by_label("Translate into English")).to_be_checked()
    with file_server(send_audio) as url:
        page.get_by_label("or fetch from an address").fill(url)
        with page.expect_request("**/transcribe") as asked:
            page.keyboard.press("Enter")
        sent = asked.value.post_data or ""
        finished(page, "a.flac")
    fields = {"stream": "true", "profile": "fast", "language": "de", "task": "translate", "audio_url": url}
    assert dict(re.findall(r'name="(\w+)"\r\n\r\n(.*?)\r\n', sent)) == fields
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage])")
    assert set(json.loads(json.loads(kept)[0]["whisperlib.choices"])) == {
        *("profile", "language", "model", "translate", "words", "enhance")
    }
    assert "train" not in kept


def test_a_choice_that_is_no_longer_there_is_forgotten(page: Page) -> None:
    page.evaluate("""localStorage["whisperlib.choices"] = '{"language": "xx", "profile": 7, "words": "yes", "x": 1}'""")
    page.reload()
    expect(page.get_by_label("Language")).to_have_value("")
    expect(page.get_by_label("Balanced")).to_be_checked()


def test_the_server_fetches_an_address(page: Page) -> None:
    with file_server(send_audio) as url:
        page.get_by_label("or fetch from an address").fill(url)
        page.get_by_role("button", name="Transcribe", exact=True).click()
        expect(finished(page, "a.flac").locator(".segments .text")).to_have_text([SPOKEN])


@pytest.mark.parametrize(("path", "name"), [("/a%20b.flac", "a b.flac"), ("/%E0%A4", "%E0%A4"), ("/", "127.0.0.1")])
def test_an_address_gives_the_name(page: Page, path: str, name: str) -> None:
    refused = {"error": {"message": "no", "code": "url_refused"}}
    page.route("**/transcribe", lambda route: route.fulfill(status=400, json=refused))
    page.get_by_label("or fetch from an address").fill(f"http://127.0.0.1{path}")
    page.keyboard.press("Enter")
    finished(page, name, "failed")


def test_an_address_that_may_not_be_fetched_is_refused_in_the_servers_words(page: Page, server: RunningServer) -> None:
    page.get_by_label("or fetch from an address").fill("http://10.0.0.1/talk.mp3")
    page.keyboard.press("Enter")
    refused = server.post("/transcribe", json={"audio_url": "http://10.0.0.1/talk.mp3"}).json()
    expect(finished(page, "talk.mp3", "failed").get_by_role("alert")).to_have_text(refused["error"]["message"])


@pytest.fixture
def stalled_url() -> Iterator[tuple[str, threading.Event]]:
    """An address that never answers, and what is set when the client has gone."""
    gone = threading.Event()

    def stall(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.recv(1)
        gone.set()
        handler.close_connection = True

    with file_server(stall) as url:
        yield url, gone


def test_cancel_stops_the_work_on_the_server_and_it_can_be_tried_again(
    page: Page, stalled_url: tuple[str, threading.Event]
) -> None:
    url, gone = stalled_url
    page.get_by_label("or fetch from an address").fill(url)
    page.keyboard.press("Enter")
    found = job(page, "a.flac")
    expect(found.locator(".elapsed")).to_have_text("0:01")
    drop(page, SAMPLE)
    expect(job(page, SAMPLE.name)).to_have_attribute("data-state", "waiting")
    found.get_by_role("button", name="Cancel").click()
    finished(page, "a.flac", "cancelled")
    assert gone.wait(60)
    expect(found.get_by_role("button", name="Try again")).to_be_focused()
    finished(page, SAMPLE.name)
    found.get_by_role("button", name="Try again").click()
    expect(found).to_have_attribute("data-state", "sending")
    found.get_by_role("button", name="Cancel").click()
    finished(page, "a.flac", "cancelled")


def test_what_waits_can_be_cancelled(page: Page, stalled_url: tuple[str, threading.Event]) -> None:
    page.get_by_label("or fetch from an address").fill(stalled_url[0])
    page.keyboard.press("Enter")
    drop(page, SAMPLE)
    job(page, SAMPLE.name).get_by_role("button", name="Cancel").click()
    finished(page, SAMPLE.name, "cancelled")
    job(page, "a.flac").get_by_role("button", name="Cancel").click()
    finished(page, "a.flac", "cancelled")
    expect(job(page, SAMPLE.name)).to_have_attribute("data-state", "cancelled")


@pytest.mark.parametrize(("status", "seconds"), [(429, "1"), (503, "1")])
def test_a_busy_server_is_asked_again_when_it_says(page: Page, status: int, seconds: str) -> None:
    refusals = [{"error": {"message": "9 s of work are waiting already", "code": "overloaded"}}]

    def answer(route: Route) -> None:  # a double of a full server
        if refusals:
            route.fulfill(status=status, json=refusals.pop(), headers={"Retry-After": seconds})
        else:
            route.continue_()

    page.route("**/transcribe", answer)
    drop(page, SAMPLE)
    found = job(page, SAMPLE.name)
    expect(found.get_by_role("alert")).to_have_text("9 s of work are waiting already")
    finished(page, SAMPLE.name)
    expect(found.get_by_role("alert")).to_be_hidden()


def test_the_wait_is_shown_and_can_be_cancelled(page: Page) -> None:
    busy = {"error": {"message": "much is waiting", "code": "overloaded"}}
    page.route("**/transcribe", lambda route: route.fulfill(status=429, json=busy, headers={"Retry-After": "90"}))
    drop(page, SAMPLE)
    found = job(page, SAMPLE.name)
    expect(found.locator(".state")).to_have_text("Trying again in 89 s")
    found.get_by_role("button", name="Cancel").click()
    finished(page, SAMPLE.name, "cancelled")


def test_a_broken_connection_is_told(page: Page) -> None:
    page.route("**/transcribe", lambda route: route.fulfill(status=200, body="event: progress\ndata: {}\n\n"))
    drop(page, SAMPLE)
    expect(finished(page, SAMPLE.name, "failed").get_by_role("alert")).to_have_text(
        "The answer broke off before its end."
    )


def test_a_failure_on_the_way_is_told(page: Page) -> None:
    body = 'event: error\ndata: {"error": {"message": "the deadline has passed", "code": "deadline_exceeded"}}\n\n'
    page.route("**/transcribe", lambda route: route.fulfill(status=200, body=body))
    drop(page, SAMPLE)
    expect(finished(page, SAMPLE.name, "failed").get_by_role("alert")).to_have_text("the deadline has passed")


def test_events_are_read_in_whatever_pieces_they_come(page: Page) -> None:
    read = """async size => {
        const { EventParser } = await import("./page/sse.js");
        const text = ': keep-alive\\n\\nevent: a\\r\\ndata: {"n":\\r\\ndata: 1}\\r\\n\\r\\ndata: 2\\n\\nevent: b\\n\\n';
        const events = [];
        const parser = new EventParser((...event) => events.push(event));
        for (let at = 0; at < text.length; at += size) parser.feed(text.slice(at, at + size));
        return events;
    }"""
    for size in (1, 2, 7, 1000):
        assert page.evaluate(read, size) == [["a", {"n": 1}], ["message", 2]]


@pytest.fixture(scope="module")
def keyed_server() -> Iterator[RunningServer]:
    with running_server(api_keys="schlüssel") as server:
        yield server


def test_a_server_with_keys_is_asked_with_one(open_page: OpenPage, keyed_server: RunningServer) -> None:
    page = open_page(keyed_server.url)
    page.get_by_label("Key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="incorrect API key")).to_be_visible()
    page.get_by_label("Key", exact=True).fill("schlüssel")
    page.keyboard.press("Enter")
    drop(page, SAMPLE)
    finished(page, SAMPLE.name)
    page.reload()
    drop(page, SAMPLE)
    finished(page, SAMPLE.name)
    assert page.evaluate("JSON.stringify(localStorage)") == "{}"


def test_without_the_key_the_work_waits_for_it(open_page: OpenPage, keyed_server: RunningServer) -> None:
    page = open_page(keyed_server.url)
    page.get_by_role("button", name="Not now").click()
    expect(page.locator("#server")).to_have_text("This server needs an API key")
    page.locator("#files").set_input_files(SAMPLE)
    page.get_by_label("Key", exact=True).fill("schlüssel")
    page.get_by_role("button", name="Continue").click()
    finished(page, SAMPLE.name)


def test_below_a_prefix_everything_works(open_page: OpenPage) -> None:
    with running_server(command=COMMAND) as server:
        page = open_page(f"{server.url}{PREFIX}/")
        drop(page, SAMPLE)
        finished(page, SAMPLE.name)


KEEP_STREAMS = """() => {
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    const allowed = new Promise((resolve) => (window.allow = resolve));
    window.streams = [];
    navigator.mediaDevices.getUserMedia = async (wanted) => {
        window.streams.push(await ask(wanted));
        await allowed;
        return window.streams.at(-1);
    };
}"""
TRACKS = "streams.flatMap((stream) => stream.getTracks()).map((track) => track.readyState)"


def test_two_clicks_begin_one_recording(page: Page) -> None:
    page.evaluate(KEEP_STREAMS)
    page.get_by_role("button", name="Record").dblclick()
    page.evaluate("allow()")
    page.get_by_role("button", name="Discard").click()
    assert page.evaluate(TRACKS) == ["ended"]
    page.get_by_role("button", name="Record").click()
    expect(page.locator("#recorder")).to_be_visible()


@pytest.mark.parametrize("part", ["MediaRecorder", "AudioContext"])
def test_a_recording_that_cannot_begin_leaves_the_microphone(page: Page, part: str) -> None:
    page.evaluate(KEEP_STREAMS)
    broken = "part => { window[part] = class { constructor() { throw new Error('no more of them'); } }; }"
    page.evaluate(broken, part)
    page.evaluate("allow()")
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("alert").filter(has_text="no more of them")).to_be_visible()
    assert page.evaluate(TRACKS) == ["ended"]


def test_the_microphone_is_recorded_and_transcribed(server: RunningServer, launch: Launch, tmp_path: Path) -> None:
    samples, rate = soundfile.read(SAMPLE, dtype="int16")
    soundfile.write(tmp_path / "said.wav", samples, rate, subtype="PCM_16")
    with launch(*MICROPHONE, f"--use-file-for-fake-audio-capture={tmp_path / 'said.wav'}%noloop") as browser:
        page = browser.new_page()
        page.goto(server.url)
        page.get_by_role("button", name="Record").click()
        until(page, "document.querySelector('#level').value > 0.3")
        expect(page.locator("#recorded")).to_have_text("0:07", timeout=60_000)
        page.get_by_role("button", name="Stop and transcribe").click()
        found = page.locator(".job[data-state=done]")
        expect(found.locator(".segments .text")).to_have_text([SPOKEN], timeout=60_000)
        expect(found.locator("h2")).to_contain_text("Recording")
        # The clock runs from the click, the sound from when the browser has the microphone.
        expect(found.locator(".length")).to_have_text(re.compile("0:0[67]"), timeout=60_000)
