"""Fetches the audio behind a URL that somebody else chose, without being led where they could not go themselves.

Every hop's name is resolved once, all its addresses are checked, and the connection goes to an address that was
checked; TLS and the Host header still have the name. What is not reachable by everybody (private, loopback,
link-local, metadata services, and IPv6 addresses that stand for such) is refused unless `WHISPER_URL_ALLOW` names it.
Proxies of the environment are not used: they would resolve the name themselves.

Every port may be named, for audio is served on many. What is sent there is one GET whose lines the URL cannot break,
and what comes back is audio or nothing.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import ipaddress
import os
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH, requote_uri

from whisperlib.errors import (
    FetchError,
    FetchTimeoutError,
    FetchTooLargeError,
    OptionError,
    OverloadedError,
    TranscriptionCancelled,
    UrlRefusedError,
    WhisperlibError,
)
from whisperlib.options import CancelToken
from whisperlib.settings import Settings, get_settings, without_credentials
from whisperlib.watch import Watch, shut

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_REDIRECTS = 5
MAX_URL_CHARACTERS = 8192
RETRY_SECONDS = 5.0  # when another fetch may have ended

_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 429, 502, 503, 504)
_SPOOL_BYTES = 1 << 20  # in memory up to here, in a temporary file beyond
_READ_BYTES = 1 << 16
_PORTS = {"http": 80, "https": 443}
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out of IPv6
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # leads to the IPv4 address in its last four bytes
# What `is_global` of some Python version takes for global, though it is not or leads elsewhere.
_NOT_PUBLIC: tuple[Network, ...] = (
    ipaddress.IPv4Network("168.63.129.16/32"),  # public by number, a metadata service by route: Azure
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocol assignments, and a metadata service: Oracle
    ipaddress.IPv4Network("192.88.99.0/24"),  # relays of 6to4
    ipaddress.IPv6Network("2001::/23"),  # protocol assignments, of which Teredo leads to the IPv4 address inside
    ipaddress.IPv6Network("2002::/16"),  # 6to4 leads to the IPv4 address inside
    ipaddress.IPv6Network("3fff::/20"),  # documentation
)


@dataclass(frozen=True)
class Fetched:
    """A fetched file, which stands at 0; its size in bytes, and the seconds that it took."""

    file: BinaryIO
    size_bytes: int
    seconds: float


class Fetcher:
    """Fetches up to `max_fetches` files at once, each within `fetch_timeout_seconds` and `max_body_bytes`.

    Safe to use from many threads. Certificates are checked against the bundle of `REQUESTS_CA_BUNDLE` or
    `SSL_CERT_FILE`, else against certifi's. Raises OptionError for a `url_allow` or a bundle that cannot be read.

    `url_allow` holds names (`audio.local`; `*.local` for all below it), addresses and networks; a name or an address
    may have a `:port`. A name that it holds may lead to any address.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or get_settings()
        self._rules = [_rule(word) for word in self._settings.url_allow]
        self._tls = _tls_context()
        self._places = threading.BoundedSemaphore(self._settings.max_fetches)
        # A look-up cannot be stopped, and may outlast the fetch that asked for it.
        self._look_ups = threading.BoundedSemaphore(2 * self._settings.max_fetches)

    @contextlib.contextmanager
    def fetch(
        self, url: str, *, cancel: CancelToken | None = None, timeout_seconds: float | None = None
    ) -> Iterator[Fetched]:
        """Fetch a file; it is closed at the end of the block.

        A user and password in the URL are sent to that host and port as HTTP Basic authentication, until a redirect
        leads elsewhere. Redirects are followed, five at most, each checked anew; none from https to http.

        Raises UrlRefusedError, FetchTooLargeError, FetchTimeoutError after `timeout_seconds` (at most
        `fetch_timeout_seconds`, all in all), FetchError, OverloadedError where `max_fetches` run already, and
        TranscriptionCancelled. No message tells what the other side said.
        """
        longest = self._settings.fetch_timeout_seconds
        limit = longest if timeout_seconds is None else min(timeout_seconds, longest)
        with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spooled:
            file = cast(BinaryIO, spooled)
            started = time.monotonic()
            with self._place(), _watched(limit, cancel) as watch:
                size_bytes = self._follow(_split(url), watch, file)
            file.seek(0)
            yield Fetched(file, size_bytes, time.monotonic() - started)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            most = self._settings.max_fetches
            raise OverloadedError(f"{most} files are being fetched, as many as may be at once", RETRY_SECONDS)
        try:
            yield
        finally:
            self._places.release()

    def _follow(self, url: SplitResult, watch: Watch, file: BinaryIO) -> int:
        credentials = _credentials(url)
        for _ in range(MAX_REDIRECTS + 1):
            with self._ask(url, credentials, watch) as answer:
                if answer.status not in _REDIRECTS:
                    return self._receive(answer, _host(url), watch, file)
                target = _redirected(url, answer.getheader("Location"))
            if _origin(target) != _origin(url):
                credentials = None
            url = target
        raise FetchError(f"the URL redirects more than {MAX_REDIRECTS} times")

    @contextlib.contextmanager
    def _ask(self, url: SplitResult, credentials: str | None, watch: Watch) -> Iterator[http.client.HTTPResponse]:
        host, port = _host(url), _port(url)
        addresses = self._checked_addresses(host, port, watch)
        headers = {"Host": _host_header(url), "User-Agent": "whisperlib", "Accept": "*/*", "Connection": "close"}
        if credentials:
            headers["Authorization"] = credentials
        connection = http.client.HTTPConnection(host, port)
        connection.auto_open = 0  # it would resolve the name again
        with _explained(host, watch), contextlib.closing(connection):
            connection.sock = _connect(host, addresses, port, watch)
            # TLS takes the socket over, and a response may: a second handle stays ours to shut it by.
            with connection.sock.dup() as handle, watch.ending(functools.partial(shut, handle)):
                connection.sock.settimeout(watch.remaining_seconds())
                if url.scheme == "https":
                    connection.sock = self._tls.wrap_socket(connection.sock, server_hostname=host)
                connection.request("GET", _target(url), headers=headers)  # with Accept-Encoding: identity
                with contextlib.closing(connection.getresponse()) as answer:
                    yield answer

    def _receive(self, answer: http.client.HTTPResponse, host: str, watch: Watch, file: BinaryIO) -> int:
        if answer.status != 200:
            raise FetchError(f"{host} answered with status {answer.status}", transient=answer.status in _TRANSIENT)
        if answer.getheader("Content-Encoding", "").strip().lower() not in {"", "identity"}:
            raise FetchError(f"{host} sends the file compressed, though asked not to: give a URL of plain audio")
        most = self._settings.max_body_bytes
        too_large = FetchTooLargeError(f"the file behind the URL is larger than the {most} bytes that are allowed")
        if answer.length is not None and answer.length > most:
            raise too_large
        size_bytes = 0
        while data := answer.read(_READ_BYTES):
            size_bytes += len(data)
            if size_bytes > most:
                raise too_large
            _keep(data, file)
        watch.check()  # a connection that we shut ends like one that is complete
        if answer.length:
            raise http.client.IncompleteRead(b"", answer.length)
        if not size_bytes:
            raise FetchError(f"the file behind the URL at {host} is empty")
        return size_bytes

    def _checked_addresses(self, host: str, port: int, watch: Watch) -> list[Address]:
        try:
            found = self._looked_up(host, port, watch)
        except (OSError, ValueError) as error:
            if isinstance(error, WhisperlibError):
                raise
            raise FetchError(f"the name {host} cannot be resolved") from None
        for address in found:
            if not (is_public(address) or any(rule.allows(host, address, port) for rule in self._rules)):
                raise UrlRefusedError(
                    f"{host} is not a public address: the server fetches from such only if WHISPER_URL_ALLOW names it"
                )
        return found

    def _looked_up(self, host: str, port: int, watch: Watch) -> list[Address]:
        if not self._look_ups.acquire(blocking=False):
            raise OverloadedError("too many host names are still being resolved", RETRY_SECONDS)
        answer: Future[list[Address]] = Future()

        def look_up() -> None:
            try:
                with contextlib.suppress(InvalidStateError):  # nobody waits any more
                    try:
                        answer.set_result(resolve(host, port))
                    except (OSError, ValueError) as error:
                        answer.set_exception(error)
            finally:
                self._look_ups.release()

        threading.Thread(target=look_up, name="resolve", daemon=True).start()
        with watch.ending(answer.cancel):
            try:
                return answer.result()
            except CancelledError:
                watch.check()
                raise


def check_url(url: str) -> None:
    """Raise UrlRefusedError where a URL cannot be fetched wherever it leads: malformed, or of another scheme."""
    _split(url)


def resolve(host: str, port: int) -> list[Address]:
    """Resolve a name, or any of the ways to write an address; IPv6 addresses that stand for IPv4 ones become those."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [_unmapped(ipaddress.ip_address(str(address[0]).partition("%")[0])) for *_, address in found]


def is_public(address: Address) -> bool:
    """Whether everybody can reach an address, so that to fetch from it tells nobody more than they could ask."""
    address = _unmapped(address)
    if address in _NAT64:
        address = ipaddress.IPv4Address(address.packed[-4:])
    if address.is_multicast or not address.is_global or any(address in network for network in _NOT_PUBLIC):
        return False
    return address.version == 4 or address in _GLOBAL_UNICAST


def _watched(seconds: float, cancel: CancelToken | None) -> Watch:
    """Return what ends a fetch whatever it waits for: no drip of bytes outlasts that."""
    return Watch(
        seconds,
        cancel,
        late=lambda: FetchTimeoutError(f"the file behind the URL was not there within {seconds:.3g} s", transient=True),
        cancelled=lambda: TranscriptionCancelled("the request was cancelled while its audio was fetched"),
    )


def _unmapped(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


@contextlib.contextmanager
def _explained(host: str, watch: Watch) -> Iterator[None]:
    """Say in our words what went wrong with a connection."""
    try:
        yield
    except WhisperlibError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        watch.check()
        transient = not isinstance(error, ssl.SSLError)
        raise FetchError(f"the file could not be fetched from {host}: {_reason(error)}", transient=transient) from None


def _reason(error: Exception) -> str:
    """Say which step failed, without a word of what the other side sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    if isinstance(error, ssl.SSLError):
        return "TLS failed"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended before the file did"
    return "the connection broke off, or what came is not HTTP"


def _connect(host: str, addresses: list[Address], port: int, watch: Watch) -> socket.socket:
    """Connect to the first address that answers; each gets its share of the time that is left."""
    for tried, address in enumerate(addresses):
        with contextlib.ExitStack() as stack:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.settimeout(watch.remaining_seconds() / (len(addresses) - tried))
            with contextlib.suppress(OSError):
                with watch.ending(functools.partial(shut, sock)):
                    sock.connect((str(address), port))
                stack.pop_all()
                return sock
        watch.check()
    raise FetchError(f"the file could not be fetched from {host}: no connection", transient=True)


def _keep(data: bytes, file: BinaryIO) -> None:
    try:
        file.write(data)
    except OSError as error:
        raise FetchError(f"the fetched file cannot be kept in a temporary file: {error}") from error


def _tls_context() -> ssl.SSLContext:
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or DEFAULT_CA_BUNDLE_PATH
    try:
        if Path(bundle).is_dir():
            return ssl.create_default_context(capath=bundle)
        return ssl.create_default_context(cafile=bundle)
    except OSError:
        raise OptionError(
            f"no certificates can be read from {bundle!r}: check REQUESTS_CA_BUNDLE and SSL_CERT_FILE"
        ) from None


def _split(url: str) -> SplitResult:
    """Take a URL apart. Raises UrlRefusedError."""
    if len(url) > MAX_URL_CHARACTERS:
        raise UrlRefusedError(f"the URL has {len(url)} characters: at most {MAX_URL_CHARACTERS} are taken")
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise UrlRefusedError("the URL holds a space, a backslash or a control character: write it as %XX")
    try:
        url.encode()
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UrlRefusedError("the URL is malformed") from None
    if parts.scheme not in _PORTS:
        raise UrlRefusedError("the URL is of another kind than http and https: give one of these")
    if not parts.hostname or port == 0:
        raise UrlRefusedError("the URL names no host, or port 0")
    _host(parts)
    return parts


def _redirected(url: SplitResult, location: str | None) -> SplitResult:
    if not location:
        raise FetchError(f"{_host(url)} redirects, but does not say where to")
    try:
        target = _split(urljoin(url.geturl(), location))
    except UrlRefusedError as error:
        raise UrlRefusedError(f"{_host(url)} redirects to a URL that is refused: {error}") from None
    except ValueError:
        raise UrlRefusedError(f"{_host(url)} redirects to a URL that is malformed") from None
    if url.scheme == "https" and target.scheme == "http":
        raise UrlRefusedError(f"{_host(url)} redirects from https to http: give the http URL if that is meant")
    return target


def _host(url: SplitResult) -> str:
    try:
        return _ascii_host(url.hostname or "")
    except ValueError:
        raise UrlRefusedError("the URL's host is not a name or an address") from None


def _ascii_host(text: str) -> str:
    """Return a name in the form that is resolved: lower case, ASCII, without a last dot. Raises ValueError."""
    if ":" in text and "%" not in text:
        return str(ipaddress.IPv6Address(text))
    host = text.encode("idna").decode("ascii").lower().removesuffix(".")
    if len(host) > 253 or not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", host):
        raise ValueError("not a host name")
    return host


def _port(url: SplitResult) -> int:
    return url.port or _PORTS[url.scheme]


def _origin(url: SplitResult) -> tuple[str, str, int]:
    return url.scheme, _host(url), _port(url)


def _host_header(url: SplitResult) -> str:
    host, port = _host(url), _port(url)
    name = f"[{host}]" if ":" in host else host
    return name if port == _PORTS[url.scheme] else f"{name}:{port}"


def _target(url: SplitResult) -> str:
    return requote_uri((url.path or "/") + (f"?{url.query}" if url.query else ""))


def _credentials(url: SplitResult) -> str | None:
    if url.username is None and url.password is None:
        return None
    pair = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


@dataclass(frozen=True)
class _Rule:
    """One word of `WHISPER_URL_ALLOW`: a network or a name, on one port or all."""

    network: Network | None
    name: str
    port: int | None

    def allows(self, host: str, address: Address, port: int) -> bool:
        if self.port not in {None, port}:
            return False
        if self.network is not None:
            return address in self.network
        return host.endswith(self.name[1:]) if self.name.startswith("*.") else host == self.name


def _rule(word: str) -> _Rule:
    """Read `host`, `*.domain` or an address, each perhaps with `:port`, or a network. Raises OptionError."""
    text, port = word.lower(), None
    if match := re.fullmatch(r"(\[[^]]+\]|[^][:/]+):([0-9]{1,5})", text):
        text, port = match[1], int(match[2])
    text = re.sub(r"^\[([^]]+)\]$", r"\1", text)
    try:
        if port is not None and not 1 <= port <= 65_535:
            raise ValueError("not a port")
        if re.search(r"[:/]|^[\d.]+$", text):
            return _Rule(ipaddress.ip_network(text), "", port)
        wildcard = "*." if text.startswith("*.") else ""
        return _Rule(None, wildcard + _ascii_host(text.removeprefix("*.")), port)
    except ValueError:
        raise OptionError(
            f"WHISPER_URL_ALLOW has {without_credentials(word)!r}: give names, *.names, addresses or networks",
            "url_allow",
        ) from None
