"""Fetching a file: from a real HTTP server on this machine that behaves, and that misbehaves in every known way."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar

import pytest

from tests.conftest import ROOT
from whisperlib.errors import DownloadError, ModelFileError
from whisperlib.models.transfer import CHUNK_BYTES, transfer

BODY = random.Random(1).randbytes(10 * CHUNK_BYTES)
HALF = 5 * CHUNK_BYTES
SHA256 = hashlib.sha256(BODY).hexdigest()

Reply = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request; the host's script says how it is answered."""

    protocol_version = "HTTP/1.1"
    host: ClassVar[Host]

    def do_GET(self) -> None:
        self.host.requests.append(SimpleNamespace(path=self.path, **{k.lower(): v for k, v in self.headers.items()}))
        reply = self.host.script.pop(0) if self.host.script else behave()
        try:
            reply(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"", *, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body) if length is None else length)} | headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.host.sent += len(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Clients of these tests hang up when they like."""

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*_)  # type: ignore[arg-type]


class Host:
    """A server that answers the first requests as `script` says and the others as it should."""

    def __init__(self) -> None:
        self.script: list[Reply] = []
        self.requests: list[Any] = []
        self.sent = 0
        self.asked = threading.Event()
        self.released = threading.Event()
        handler = type("Handler", (Request,), {"host": self})
        self.server = Server(("127.0.0.1", 0), handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.address}/models/model.bin"

    def ranges(self) -> list[str | None]:
        return [getattr(request, "range", None) for request in self.requests]


def behave(*, stop: int | None = None, etag: str = '"one"', body: bytes = BODY, hold: bool = False) -> Reply:
    """Answer as a server should. `stop` ends the body there; `hold` keeps the connection open and silent."""

    def reply(request: Request) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and request.headers.get("If-Range", etag) == etag else 0
        headers = {"ETag": etag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        request.answer(206 if start else 200, headers, body[start:stop], length=len(body) - start)
        if stop is not None:
            request.close_connection = True
        if hold:
            request.wfile.flush()
            request.host.asked.set()
            request.host.released.wait(60)

    return reply


def silent(request: Request) -> None:
    request.host.released.wait(60)


def say(status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: request.answer(status, named, body, length=length)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    host = Host()
    thread = threading.Thread(target=host.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield host
    host.released.set()
    host.server.shutdown()
    host.server.server_close()
    thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "model.bin"


@pytest.fixture
def waits() -> list[float]:
    """Seconds that the downloader would have slept."""
    return []


@pytest.fixture
def fetch(host: Host, target: Path, waits: list[float]) -> Callable[..., None]:
    def run(url: str = "", **changes: Any) -> None:
        arguments: dict[str, Any] = {"size": len(BODY), "sha256": SHA256, "retries": 2, "timeout_seconds": 10} | changes
        transfer(url or host.url, target, sleep=waits.append, **arguments)

    return run


Fetch = Callable[..., None]


def part_of(target: Path) -> Path:
    return target.with_name("model.bin.part")


def leave_part(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(content)


def assert_fetched(target: Path) -> None:
    assert target.read_bytes() == BODY
    assert [path.name for path in sorted(target.parent.iterdir())] == [".model.bin.lock", "model.bin"]


def test_a_file_is_fetched_once_with_progress(host: Host, target: Path, fetch: Fetch) -> None:
    seen: list[tuple[int, int]] = []
    fetch(progress=lambda done, size: seen.append((done, size)))
    assert_fetched(target)
    assert seen == [(CHUNK_BYTES * count, len(BODY)) for count in range(1, 11)]
    fetch(progress=None)
    assert len(host.requests) == 1
    assert getattr(host.requests[0], "accept-encoding") == "identity"
    assert host.ranges() == [None]


def test_a_connection_cut_half_way_is_resumed(host: Host, target: Path, fetch: Fetch, waits: list[float]) -> None:
    seen: list[int] = []
    host.script = [behave(stop=HALF), behave(stop=HALF + CHUNK_BYTES)]
    fetch(progress=lambda done, _: seen.append(done))
    assert_fetched(target)
    assert host.ranges() == [None, f"bytes={HALF}-", f"bytes={HALF + CHUNK_BYTES}-"]
    assert [getattr(request, "if-range", None) for request in host.requests] == [None, '"one"', '"one"']
    assert host.sent == len(BODY)
    assert seen == sorted(set(seen))
    assert seen[-1] == len(BODY)
    assert len(waits) == 2
    assert 0 < waits[0] < waits[1] + 1


def test_what_came_stays_for_the_next_run(host: Host, target: Path, fetch: Fetch) -> None:
    host.script = [behave(stop=HALF)]
    with pytest.raises(DownloadError, match=f"IncompleteRead.*{HALF} bytes"):
        fetch(retries=0)
    assert not target.exists()
    assert part_of(target).read_bytes() == BODY[:HALF]
    fetch()
    assert_fetched(target)
    assert host.ranges() == [None, f"bytes={HALF}-"]
    assert host.sent == len(BODY)


def test_a_silent_server_is_given_up_and_resumed(host: Host, target: Path, fetch: Fetch) -> None:
    host.script = [behave(stop=HALF, hold=True)]
    fetch(timeout_seconds=0.3)
    assert_fetched(target)
    assert host.ranges() == [None, f"bytes={HALF}-"]


def test_a_server_that_never_answers(host: Host, target: Path, fetch: Fetch) -> None:
    host.script = [silent, silent]
    with pytest.raises(DownloadError, match=r"silent for 0\.2 s \(WHISPER_DOWNLOAD_TIMEOUT_SECONDS\)"):
        fetch(timeout_seconds=0.2, retries=1)
    assert len(host.requests) == 2
    assert not target.exists()


def test_a_server_that_ignores_ranges_begins_anew(host: Host, target: Path, fetch: Fetch) -> None:
    host.script = [behave(stop=HALF), say(200, BODY)]
    fetch()
    assert_fetched(target)
    assert host.ranges()[1] == f"bytes={HALF}-"


def test_a_file_that_changed_on_the_server_begins_anew(host: Host, target: Path, fetch: Fetch) -> None:
    other = bytes(len(BODY))
    host.script = [behave(stop=HALF, body=other, etag='"old"')]
    fetch()
    assert_fetched(target)
    assert host.sent == HALF + len(BODY)


def test_another_etag_in_a_partial_answer_begins_anew(
    host: Host, target: Path, fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    content_range = f"bytes {HALF}-{len(BODY) - 1}/{len(BODY)}"
    rest = say(206, bytes(len(BODY) - HALF), Content_Range=content_range, ETag='"two"')
    host.script = [behave(stop=HALF, etag='"one"'), rest]
    fetch()
    assert_fetched(target)
    assert host.ranges() == [None, f"bytes={HALF}-", None]
    assert "another part than was asked for" in caplog.text


def test_a_weak_etag_is_never_sent_back(host: Host, target: Path, fetch: Fetch) -> None:
    host.script = [behave(stop=HALF, etag='W/"one"')]
    fetch()
    assert_fetched(target)
    assert not any(hasattr(request, "if-range") for request in host.requests)


@pytest.mark.parametrize(
    "content_range",
    [
        "",
        "bytes",
        f"bytes 0-{len(BODY) - 1}/{len(BODY)}",
        f"bytes {HALF + 1}-{len(BODY) - 1}/{len(BODY)}",
        f"items {HALF}-{len(BODY) - 1}/{len(BODY)}",
        f"bytes ²-{len(BODY) - 1}/{len(BODY)}",
    ],
)
def test_another_range_than_was_asked_for_begins_anew(
    host: Host, target: Path, fetch: Fetch, content_range: str
) -> None:
    host.script = [behave(stop=HALF), say(206, BODY[HALF:], Content_Range=content_range)]
    fetch()
    assert_fetched(target)
    assert host.ranges()[2] is None


def test_a_range_of_another_file_is_refused(host: Host, target: Path, fetch: Fetch) -> None:
    host.script = [behave(stop=HALF), say(206, BODY[HALF:], Content_Range=f"bytes {HALF}-{len(BODY) - 1}/{HALF * 7}")]
    with pytest.raises(DownloadError, match=f"{HALF * 7:,} bytes, not {len(BODY):,}"):
        fetch()
    assert not target.exists()


def test_a_range_that_the_server_does_not_have_begins_anew(host: Host, target: Path, fetch: Fetch) -> None:
    host.script = [behave(stop=HALF), say(416, Content_Range="bytes */17")]
    fetch()
    assert_fetched(target)


@pytest.mark.parametrize("offered", [len(BODY) - 1, len(BODY) + 1, 0])
def test_another_length_than_is_known_is_refused_at_once(host: Host, target: Path, fetch: Fetch, offered: int) -> None:
    host.script = [behave(stop=HALF), say(200, b"<html>", length=offered)]
    with pytest.raises(DownloadError, match=f"has {offered:,} bytes, not {len(BODY):,}"):
        fetch()
    assert len(host.requests) == 2
    assert part_of(target).stat().st_size == HALF


def test_more_than_is_known_is_refused(host: Host, target: Path, fetch: Fetch) -> None:
    def chunked(request: Request) -> None:
        request.answer(200, {"Content-Length": "", "Transfer-Encoding": "chunked"})
        for _ in range(11):
            request.wfile.write(b"%x\r\n" % CHUNK_BYTES + bytes(CHUNK_BYTES) + b"\r\n")

    host.script = [chunked]
    with pytest.raises(DownloadError, match=f"sends more than {len(BODY):,} bytes"):
        fetch()
    assert not part_of(target).exists()
    assert not target.exists()
    assert len(host.requests) == 1


def test_a_body_without_a_length_is_counted(host: Host, target: Path, fetch: Fetch) -> None:
    def until_closed(body: bytes) -> Reply:
        def reply(request: Request) -> None:
            request.answer(200, {"Content-Length": "", "ETag": '"one"'}, body)
            request.close_connection = True

        return reply

    host.script = [until_closed(BODY[:HALF])]
    fetch()
    assert_fetched(target)
    assert host.ranges() == [None, f"bytes={HALF}-"]


def test_a_wrong_body_leaves_nothing(host: Host, target: Path, fetch: Fetch) -> None:
    wrong = BODY[:-1] + bytes([BODY[-1] ^ 1])
    host.script = [behave(body=wrong)] * 3
    with pytest.raises(ModelFileError, match=f"SHA-256 is {hashlib.sha256(wrong).hexdigest()}, not {SHA256}"):
        fetch()
    assert len(host.requests) == 1
    assert [path.name for path in target.parent.iterdir()] == [".model.bin.lock"]


def test_a_part_of_another_file_is_given_up(host: Host, target: Path, fetch: Fetch) -> None:
    leave_part(target, bytes(HALF))
    fetch()
    assert_fetched(target)
    assert host.ranges() == [f"bytes={HALF}-", None]


def test_a_part_that_is_too_long_is_given_up(host: Host, target: Path, fetch: Fetch) -> None:
    leave_part(target, BODY + b"!")
    fetch()
    assert_fetched(target)
    assert host.ranges() == [None]


def test_a_part_that_is_whole_needs_no_server(host: Host, target: Path, fetch: Fetch) -> None:
    leave_part(target, BODY)
    fetch()
    assert_fetched(target)
    assert not host.requests


def test_a_lock_file_that_was_left_is_harmless(target: Path, fetch: Fetch) -> None:
    target.parent.mkdir()
    (target.parent / ".model.bin.lock").write_text("4711")
    fetch()
    assert target.read_bytes() == BODY


def test_another_file_under_the_name_is_left_alone(host: Host, target: Path, fetch: Fetch) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(ModelFileError, match="is not the published file: move it away"):
        fetch()
    assert target.read_bytes() == b"mine"
    assert not host.requests


@pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 410, 501])
def test_a_refusal_is_not_tried_again(host: Host, target: Path, fetch: Fetch, status: int) -> None:
    host.script = [say(status)] * 3
    with pytest.raises(DownloadError, match=rf"{host.url}: {status} .*(WHISPER_ARTIFACT_URL|HTTPS_PROXY)"):
        fetch()
    assert len(host.requests) == 1
    assert not part_of(target).exists()


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(
    host: Host, target: Path, fetch: Fetch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    host.script = [say(status), say(status)]
    with caplog.at_level(logging.WARNING, "whisperlib"):
        fetch()
    assert_fetched(target)
    assert len(host.requests) == 3
    assert [record.message for record in caplog.records if f"{status}" in record.message and "again" in record.message]


def test_tries_end(host: Host, fetch: Fetch, waits: list[float]) -> None:
    host.script = [say(500)] * 9
    with pytest.raises(DownloadError, match="500"):
        fetch(retries=3)
    assert len(host.requests) == 4
    assert len(waits) == 3


def test_retry_after_is_heeded(host: Host, target: Path, fetch: Fetch, waits: list[float]) -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=40), usegmt=True)
    host.script = [say(429, Retry_After="7"), say(503, Retry_After=date)]
    fetch()
    assert_fetched(target)
    assert waits[0] == 7
    assert 30 < waits[1] <= 40


@pytest.mark.parametrize("value", ["soon", "-3", "²", "1e3", "Mon, 99 Foo 2026", "Mon, 01 Jan 0001 00:00:00 +2359"])
def test_a_senseless_retry_after_is_passed_over(
    host: Host, target: Path, fetch: Fetch, waits: list[float], value: str
) -> None:
    host.script = [say(429, Retry_After=value)]
    fetch()
    assert_fetched(target)
    assert 0 <= waits[0] <= 3


@pytest.mark.parametrize("value", ["86400", "9" * 400])
def test_a_long_retry_after_ends_it(host: Host, fetch: Fetch, value: str) -> None:
    host.script = [say(429, Retry_After=value)]
    with pytest.raises(DownloadError, match="the host asks to wait"):
        fetch()
    assert len(host.requests) == 1


def test_redirects_are_followed_with_the_range(host: Host, target: Path, fetch: Fetch) -> None:
    move = say(302, Location="/elsewhere/model.bin?signature=secret")
    host.script = [move, behave(stop=HALF), move, behave()]
    fetch()
    assert_fetched(target)
    assert [request.path.partition("?")[0] for request in host.requests[2:]] == [
        "/models/model.bin",
        "/elsewhere/model.bin",
    ]
    assert host.ranges()[3] == f"bytes={HALF}-"


def test_redirects_without_end_are_one_error(host: Host, fetch: Fetch) -> None:
    host.script = [say(302, Location="/models/model.bin")] * 40
    with pytest.raises(DownloadError, match="30 redirects"):
        fetch()


def test_a_compressed_answer_is_read(host: Host, target: Path, fetch: Fetch) -> None:
    host.script = [say(200, gzip.compress(BODY, 1), Content_Encoding="gzip", ETag='"gz"')]
    fetch()
    assert_fetched(target)


def test_a_part_is_never_completed_from_a_compressed_answer(host: Host, target: Path, fetch: Fetch) -> None:
    packed = gzip.compress(BODY, 1)
    content_range = f"bytes {HALF}-{len(BODY) - 1}/{len(BODY)}"
    host.script = [behave(stop=HALF), say(206, packed, Content_Encoding="gzip", Content_Range=content_range)]
    fetch()
    assert_fetched(target)


def test_a_broken_compressed_answer_is_an_error(host: Host, target: Path, fetch: Fetch) -> None:
    host.script = [say(200, b"not gzip at all", Content_Encoding="gzip")] * 3
    with pytest.raises(DownloadError):
        fetch()
    assert not target.exists()


def test_no_server(target: Path, fetch: Fetch, host: Host, waits: list[float]) -> None:
    closed = Host()
    closed.server.server_close()
    with pytest.raises(DownloadError, match="Connection refused"):
        fetch(closed.url)
    assert len(waits) == 2


def test_the_cause_is_the_download_s_own(fetch: Fetch) -> None:
    """A caller that handles another error has it in the context of all that follows."""
    closed = Host()
    closed.server.server_close()
    try:
        raise TimeoutError("something else")
    except TimeoutError:
        with pytest.raises(DownloadError, match="Connection refused"):
            fetch(closed.url, retries=0)


SECRETS = ("user", "hush", "token", "signature", "tell")


@pytest.mark.parametrize(
    "script",
    [
        [say(404)],
        [say(500)] * 3,
        [say(429, Retry_After="86400")],
        [say(200, length=3)],
        [behave(body=bytes(len(BODY)))],
        [behave(stop=HALF)] * 3,
        [say(302, Location="http://user:hush@127.0.0.1:1/x?signature=tell")] * 3,
        [say(302, Location="ftp://user:hush@127.0.0.1/x?signature=tell")],
        [say(302, Location="http://user:hush@127.0.0.1:none/x?signature=tell")],
        [say(302, Location="http://[user:hush/x?signature=tell")],
        [say(302, Location="?signature=tell")] * 40,
    ],
)
def test_no_message_holds_credentials_or_a_query(
    host: Host, fetch: Fetch, caplog: pytest.LogCaptureFixture, script: list[Reply]
) -> None:
    host.script = list(script)
    with caplog.at_level(logging.DEBUG, "whisperlib"), pytest.raises((DownloadError, ModelFileError)) as caught:
        fetch(f"http://user:hush@{host.address}/models/model.bin?token=tell")
    assert host.requests[0].authorization.startswith("Basic ")
    said = " ".join([str(caught.value), *(record.getMessage() for record in caplog.records)])
    assert host.address in said
    assert "\n" not in str(caught.value)
    assert not [secret for secret in SECRETS if secret in said]


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "model.bin", "http://", "http://127.0.0.1:none/x", "http://[x"])
def test_an_address_that_is_none(fetch: Fetch, url: str) -> None:
    with pytest.raises(DownloadError):
        fetch(url)


CHILD = """
import logging, sys
from pathlib import Path
from whisperlib.models.transfer import transfer
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s", force=True)
url, target, size, sha256 = sys.argv[1:]
transfer(url, Path(target), size=int(size), sha256=sha256, progress=lambda done, _: print(done, flush=True))
print("done", flush=True)
"""


@pytest.fixture
def child(host: Host, target: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    children: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, host.url, str(target), str(len(BODY)), SHA256]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        children.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        )
        return children[-1]

    yield start
    for process in children:
        process.kill()
        process.communicate()


Child = Callable[[], "subprocess.Popen[str]"]


def read_until(output: IO[str] | None, wanted: str) -> None:
    assert output
    seen = []
    for line in output:
        seen.append(line)
        if wanted in line:
            return
    pytest.fail(f"no {wanted!r} in {seen}")


def test_two_processes_fetch_it_once(host: Host, target: Path, child: Child) -> None:
    host.script = [behave(hold=True, stop=HALF), behave()]
    first = child()
    assert host.asked.wait(60)
    second = child()
    read_until(second.stdout, "another process is at work")
    host.released.set()
    for process in (first, second):
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert output.endswith("done\n")
    assert host.sent == len(BODY)
    assert host.ranges() == [None, f"bytes={HALF}-"]
    assert target.read_bytes() == BODY


def test_ctrl_c_keeps_the_part(host: Host, target: Path, child: Child, fetch: Fetch) -> None:
    host.script = [behave(hold=True, stop=HALF)]
    process = child()
    read_until(process.stdout, f"{HALF}\n")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in output
    assert not target.exists()
    assert part_of(target).read_bytes() == BODY[:HALF]
    fetch()
    assert_fetched(target)
    assert host.sent == len(BODY)


def test_a_killed_process_holds_nobody_up(host: Host, target: Path, child: Child, fetch: Fetch) -> None:
    host.script = [behave(hold=True, stop=HALF)]
    process = child()
    assert host.asked.wait(60)
    process.kill()
    process.wait(60)
    fetch()
    assert_fetched(target)


def test_an_error_of_the_progress_reaches_the_caller(target: Path, fetch: Fetch) -> None:
    def fail(_: int, __: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fetch(progress=fail)
    assert part_of(target).stat().st_size == CHUNK_BYTES


def test_too_little_room_is_said_before_the_first_byte(
    host: Host, target: Path, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A double: the disk's size is made up."""
    leave_part(target, BODY[:HALF])
    needed = len(BODY) - HALF
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(DownloadError, match="make room, or set WHISPER_MODEL_ROOT"):
        fetch()
    assert not host.requests
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    fetch()
    assert_fetched(target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_clear_error(host: Host, target: Path, fetch: Fetch) -> None:
    """The kernel's own ENOSPC, from a device that is always full."""
    target.parent.mkdir()
    part_of(target).symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="No space left on device: make room, or set WHISPER_MODEL_ROOT"):
        fetch()
    assert len(host.requests) == 1
    assert not target.exists()


def test_a_directory_that_cannot_be_made(host: Host, target: Path, fetch: Fetch) -> None:
    target.parent.write_text("a file where the directory should be")
    with pytest.raises(DownloadError, match="cannot be written: .*WHISPER_MODEL_ROOT"):
        fetch()
    assert not host.requests


def test_a_directory_without_permission(
    host: Host, target: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    target.parent.mkdir(mode=0o555)
    child = run_python(f"""
import os
from pathlib import Path
from whisperlib.errors import DownloadError
from whisperlib.models.transfer import transfer
if os.geteuid() == 0:
    os.chmod({str(target.parent.parent)!r}, 0o755)
    os.seteuid(65534)
try:
    transfer({host.url!r}, Path({str(target)!r}), size=1, sha256="")
except DownloadError as error:
    print(error)
""")
    assert re.search("Permission denied: make room, or set WHISPER_MODEL_ROOT", child.stdout), child.stderr
    assert not host.requests
