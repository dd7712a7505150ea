"""Fetches a file of known size and SHA-256: resumed when broken off, and under its final name only when right."""

from __future__ import annotations

import http.client
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import requests
import tenacity

from whisperlib.errors import DownloadError, ModelFileError
from whisperlib.models.disk import Progress, check_space, disk_errors, exclusive, sha256_of

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 16  # of a chunk that is broken off nothing is kept
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
REMEDIES = {
    401: "the host wants a login: put it into WHISPER_ARTIFACT_URL",
    403: "the host refuses: check WHISPER_ARTIFACT_URL",
    404: "the host does not have it: check WHISPER_ARTIFACT_URL",
    407: "the proxy wants a login: put it into HTTPS_PROXY",
}
LONGEST_WAIT_SECONDS = 120.0
_BACK_OFF = tenacity.wait_exponential_jitter(initial=1, max=30)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)")


def transfer(
    url: str,
    target: Path,
    *,
    size: int,
    sha256: str,
    timeout_seconds: float = 30.0,
    retries: int = 5,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch `url`, which has `size` bytes and this SHA-256, to `target`. Nothing happens if it is there.

    One process at a time fetches a target; others wait and find it. What a broken transfer got stays in
    `<target>.part`, and the next goes on from there. `timeout_seconds` limits connecting and every silence.
    Failures that may pass are tried again `retries` times, after growing waits or what the server asks for.

    Raises DownloadError, and ModelFileError where `target` or what the server sends has another SHA-256.
    """
    with exclusive(target):
        if target.exists():
            with disk_errors(target):
                if sha256_of(target) != sha256:
                    raise ModelFileError(f"{target} is there and is not the published file: move it away")
            return
        with requests.Session() as session:
            part = target.with_name(f"{target.name}.part")
            work = _Transfer(session, url, part, size, sha256, timeout_seconds, progress)
            check_space(target.parent, size - work.done())
            for attempt in tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(_PassingError),
                stop=tenacity.stop_after_attempt(1 + retries),
                wait=_wait_seconds,
                before_sleep=_log_retry,
                sleep=sleep,
                reraise=True,
            ):
                with attempt:
                    work.run()
        with disk_errors(target):
            part.replace(target)


class _PassingError(DownloadError):
    """May pass: worth another try. `wait_seconds` is what the server asked for."""

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


@dataclass
class _Transfer:
    """One file on its way into `part`."""

    session: requests.Session
    url: str
    part: Path
    size: int
    sha256: str
    timeout_seconds: float
    progress: Progress | None
    etag: str = ""  # of the file that the bytes of this process belong to

    @property
    def shown(self) -> str:
        """The URL as messages show it: no user, no password, and no query, which may be a signature."""
        return _shown(self.url)

    def done(self) -> int:
        """Bytes that are there already."""
        with disk_errors(self.part):
            return self.part.stat().st_size if self.part.exists() else 0

    def run(self) -> None:
        """Fetch what is missing and check the whole; raises _PassingError where another try is worth it."""
        resumed = self.done()
        if resumed > self.size:
            self._drop()
            resumed = 0
        if resumed < self.size:
            done = self._receive(resumed)
            if done < self.size:
                raise _PassingError(f"{self.shown}: broken off after {done:,} of {self.size:,} bytes")
        with disk_errors(self.part):
            found = sha256_of(self.part)
        if found == self.sha256:
            return
        self._drop()
        # A part of another process may be the wrong one; the pin, not an ETag on disk, tells.
        error = _PassingError if resumed else ModelFileError
        raise error(f"{self.shown}: the SHA-256 is {found}, not {self.sha256}: check WHISPER_ARTIFACT_URL")

    def _receive(self, offset: int) -> int:
        headers = {"Accept-Encoding": "identity", "User-Agent": "whisperlib"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self.etag:
                headers["If-Range"] = self.etag
        with self._network():
            response = self.session.get(self.url, headers=headers, stream=True, timeout=self.timeout_seconds)
        with response:
            return self._write(response, self._accept(response, offset))

    def _accept(self, response: requests.Response, offset: int) -> int:
        """Check the head of the answer; returns the offset at which its body begins."""
        status = response.status_code
        answer = f"{self.shown}: {status} {http.client.responses.get(status, '')}".rstrip()
        hops = [hop.url for hop in (*response.history, response)]
        if "https:" in {hop[:6] for hop in hops} and not hops[-1].startswith("https:"):
            raise DownloadError(f"{answer}: redirected from https to {_shown(hops[-1])}: check WHISPER_ARTIFACT_URL")
        if status in PASSING:
            raise _PassingError(answer, self._retry_after(response))
        if status == 416:
            self._drop()
            raise _PassingError(f"{answer}: the part is no part of this file")
        if status not in {200, 206}:
            raise DownloadError(f"{answer}: {REMEDIES.get(status, 'check WHISPER_ARTIFACT_URL')}")

        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        etag = response.headers.get("ETag", "")
        total = "*" if encoded else response.headers.get("Content-Length", "*")
        if status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != offset or encoded or (self.etag and etag not in {"", self.etag}):
                self._drop()
                raise _PassingError(f"{answer}: this is another part than was asked for")
            total = match[2]
        else:
            offset = 0
        if re.fullmatch(r"\d{1,18}", total) and int(total) != self.size:
            raise DownloadError(
                f"{answer}: the file has {int(total):,} bytes, not {self.size:,}: check WHISPER_ARTIFACT_URL"
            )
        self.etag = "" if etag.startswith("W/") else etag  # If-Range takes strong ones only
        return offset

    def _write(self, response: requests.Response, done: int) -> int:
        with disk_errors(self.part), self.part.open("ab" if done else "wb") as file:
            for chunk in self._body(response):
                done += len(chunk)
                if done > self.size:
                    break
                file.write(chunk)
                if self.progress:
                    self.progress(done, self.size)
            file.flush()
            os.fsync(file.fileno())
        if done > self.size:
            self._drop()
            raise DownloadError(f"{self.shown}: sends more than {self.size:,} bytes: check WHISPER_ARTIFACT_URL")
        return done

    def _body(self, response: requests.Response) -> Iterator[bytes]:
        with self._network():
            yield from response.iter_content(CHUNK_BYTES)

    def _drop(self) -> None:
        with disk_errors(self.part):
            self.part.unlink(missing_ok=True)
        self.etag = ""

    @contextmanager
    def _network(self) -> Iterator[None]:
        """Sort the failures of a request into those that may pass and the others."""
        try:
            yield
        except (requests.RequestException, ValueError) as error:  # ValueError: an address that cannot be parsed
            cause = _root(error)
            if isinstance(cause, TimeoutError):
                said = f"silent for {self.timeout_seconds:g} s (WHISPER_DOWNLOAD_TIMEOUT_SECONDS)"
            elif isinstance(error, ValueError):  # says the address, in full, that it or a redirection had
                said = f"no usable address ({type(error).__name__})"
            else:
                said = str(cause) or type(cause).__name__
            # ConnectionError has SSLError below it; a wrong certificate stays wrong.
            broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
            passing = isinstance(error, broken) and not isinstance(error, requests.exceptions.SSLError)
            # Not `from error`: a traceback would show the address in full.
            raise (_PassingError if passing else DownloadError)(f"{self.shown}: {said}") from None

    def _retry_after(self, response: requests.Response) -> float | None:
        """Seconds that the server asks to wait: a number, or a date."""
        value = response.headers.get("Retry-After", "").strip()
        if value.isdecimal():
            seconds = float(value)
        else:
            try:
                date = parsedate_to_datetime(value)
            except (ValueError, OverflowError):
                return None
            if date.tzinfo is None:
                date = date.replace(tzinfo=timezone.utc)
            seconds = max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
        if seconds > LONGEST_WAIT_SECONDS:
            raise DownloadError(f"{self.shown}: {response.status_code}: the host asks to wait {seconds:,.0f} s")
        return seconds


def _wait_seconds(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait_seconds if isinstance(error, _PassingError) else None
    return _BACK_OFF(state) if asked is None else asked


def _log_retry(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("%s; trying again in %.0f s", error, state.upcoming_sleep)


def _root(error: BaseException) -> BaseException:
    """Follow an error to what set it off. Not by `__context__`: that leads on into what the caller was handling."""
    while isinstance(cause := error.__cause__ or next(iter(error.args), None), BaseException):
        error = cause
    return error


def _shown(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that is none"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
