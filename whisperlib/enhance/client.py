"""A language model behind OpenAI's chat API, as Ollama, vLLM and llama.cpp's server speak it."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import requests
import urllib3
from pydantic import SecretStr
from requests.adapters import HTTPAdapter

from whisperlib.errors import LanguageModelError
from whisperlib.options import CancelToken
from whisperlib.settings import without_credentials
from whisperlib.watch import Watch, shut

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
MAX_BODY_BYTES = 4 << 20  # of an answer in one piece
MAX_LINE_BYTES = 1 << 20  # of a stream
READ_BYTES = 1 << 16
SHOWN_CHARACTERS = 200  # of what a server says is wrong, in the log

_NO_CHAT_API = "what the language model's server answered is not OpenAI's chat API"


def watched(seconds: float, cancel: CancelToken | None = None, *, given_seconds: float | None = None) -> Watch:
    """Return what ends requests to a language model after so long, or by a cancel; it raises LanguageModelError.

    `given_seconds` is what its message tells where `seconds` are what is left of them.
    """
    told = seconds if given_seconds is None else given_seconds
    return Watch(
        seconds,
        cancel,
        late=lambda: LanguageModelError(f"the language model was not done within {told:.3g} s"),
        cancelled=lambda: LanguageModelError("the clean-up was cancelled"),
    )


class LanguageModel:
    """One model on one server. `base_url` is what `/chat/completions` follows; it may hold a user and a password.

    `api_key` is sent as a bearer token. Safe to use from many threads; nothing that it raises or logs tells the key.
    """

    def __init__(self, base_url: str, name: str, *, temperature: float = 0.3, api_key: SecretStr | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self.name = name
        self._temperature = temperature
        self._api_key = api_key

    def __repr__(self) -> str:
        return f"LanguageModel({without_credentials(self.base_url)!r}, {self.name!r})"

    def ask(
        self, messages: list[dict[str, str]], *, max_tokens: int, watch: Watch, stream: bool = False
    ) -> Generator[str, None, str | None]:
        """Give the answer's text, in one piece or, with `stream`, as it comes; return the API's `finish_reason`.

        To close the generator hangs up, and the server stops working. Raises LanguageModelError.
        """
        body = {
            "model": self.name,
            "messages": messages,
            "temperature": self._temperature,
            "max_tokens": max_tokens,
            "stream": stream,
        }
        with self.request("POST", f"{self.base_url}/chat/completions", watch, body) as response:
            if stream:
                return (yield from _streamed(response))
            choice = _choice(parse(read(response)))
            yield _text(choice.get("message"))
            return _finish_reason(choice)

    @contextmanager
    def request(self, method: str, url: str, watch: Watch, body: Any = None) -> Iterator[requests.Response]:
        """Send a request; what is read of its answer in the block ends with `watch`. Raises LanguageModelError."""
        connected = False

        def hold(connection: Any) -> None:
            nonlocal connected
            connected = True
            held.enter_context(watch.ending(partial(shut, connection)))

        with requests.Session() as session, ExitStack() as held:
            for scheme in ("http://", "https://"):
                session.mount(scheme, _Adapter(hold))
            try:
                remaining = watch.remaining_seconds()
                with session.request(
                    method,
                    url,
                    json=body,
                    auth=self._sign if self._api_key else None,
                    stream=True,
                    allow_redirects=False,  # the key and the transcript go where they were meant to
                    timeout=(min(CONNECT_SECONDS, remaining), remaining),
                ) as response:
                    self._check_status(response)
                    yield response
            except LanguageModelError:
                watch.check()  # what came of shutting the connection is not the reason
                raise
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                watch.check()
                raise LanguageModelError(_reason(error, connected)) from None

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the key; as a function it also keeps ~/.netrc from taking its place."""
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key.get_secret_value()}"
        return request

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        if status not in {401, 403}:  # these servers quote the key
            logger.warning("the language model's server answered %d: %s", status, self._shown(read(response)))
        hint = {
            401: ": check WHISPER_LLM_API_KEY",
            403: ": check WHISPER_LLM_API_KEY",
            404: ": check WHISPER_LLM_MODEL, and that WHISPER_LLM_BASE_URL ends as the server wants it, mostly in /v1",
        }.get(status, "")
        raise LanguageModelError(f"the language model's server answered {status}{hint}")

    def _shown(self, body: bytes) -> str:
        text = " ".join(body.decode("utf-8", "replace").split())
        if self._api_key:
            text = text.replace(self._api_key.get_secret_value(), "(hidden)")
        return without_credentials(text)[:SHOWN_CHARACTERS]


class _Adapter(HTTPAdapter):
    """Hands every connection that it opens to `hold`: to shut it is the only way to wake who reads from it."""

    def __init__(self, hold: Any) -> None:
        self._hold = hold
        super().__init__()

    def get_connection_with_tls_context(self, *arguments: Any, **keywords: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*arguments, **keywords)
        hold = self._hold

        class Held(pool.ConnectionCls):  # type: ignore[misc]
            def connect(self) -> None:
                super().connect()
                hold(self.sock)

        pool.ConnectionCls = Held
        return pool


def _reason(error: Exception, connected: bool) -> str:
    """Say which step failed, without a word of what the other side sent or where it is."""
    if isinstance(error, requests.exceptions.SSLError):
        return "TLS to the language model's server failed"
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)):
        return "WHISPER_LLM_BASE_URL is not an address that can be asked"
    if not connected:
        return "there is no connection to the language model's server"
    return "the connection to the language model's server broke off"


def _streamed(response: requests.Response) -> Generator[str, None, str | None]:
    """Read server-sent events: a JSON object on one line each, and `[DONE]`."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        raise LanguageModelError("the language model's server does not stream")
    finish_reason = None
    for line in _lines(response):
        field, _, value = line.partition(b":")
        if field == b"error":
            raise LanguageModelError("the language model's server reported an error")
        if field != b"data":
            continue
        if value.strip() == b"[DONE]":
            return finish_reason
        event = parse(value)
        if event.get("choices") == []:  # counts of tokens
            continue
        choice = _choice(event)
        if text := _text(choice.get("delta")):
            yield text
        finish_reason = _finish_reason(choice) or finish_reason
    if finish_reason is None:
        raise LanguageModelError("the language model's answer broke off")
    return finish_reason


def _lines(response: requests.Response) -> Iterator[bytes]:
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    rest = b""
    for data in response.iter_content(READ_BYTES if chunked else 1):  # what is not chunked would be waited for
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise LanguageModelError(_NO_CHAT_API)
        yield from lines
    yield rest


def read(response: requests.Response) -> bytes:
    """Read an answer that comes in one piece. Raises LanguageModelError where it is larger than any should be."""
    body = b""
    for data in response.iter_content(READ_BYTES):
        body += data
        if len(body) > MAX_BODY_BYTES:
            raise LanguageModelError("the language model's answer is far too large")
    return body


def parse(data: bytes) -> dict[str, Any]:
    """Read a JSON object. Raises LanguageModelError where it is none, or tells of an error."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise LanguageModelError(_NO_CHAT_API)
    if value.get("error"):
        raise LanguageModelError("the language model's server reported an error")
    return value


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise LanguageModelError(_NO_CHAT_API)
    return choices[0]


def _text(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""


def _finish_reason(choice: dict[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) else None
