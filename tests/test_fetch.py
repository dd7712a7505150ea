"""Fetching audio by URL: from real servers on loopback, of which some are where nobody may be led."""

from __future__ import annotations

import contextlib
import gzip
import ipaddress
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.web_server import Answer, Request, head, redirect, reply, serve
from whisperlib import assets, fetch
from whisperlib.errors import (
    FetchError,
    FetchTimeoutError,
    FetchTooLargeError,
    OptionError,
    OverloadedError,
    TranscriptionCancelled,
    UrlRefusedError,
)
from whisperlib.fetch import Fetcher
from whisperlib.options import CancelToken
from whisperlib.settings import Settings

BODY = bytes(range(256)) * 1000
INNER = "127.0.0.2"  # where the tests let nobody in
SECRET = "the inner server's secret"  # noqa: S105


def fetcher(*allow: str, **settings: Any) -> Fetcher:
    return Fetcher(Settings(url_allow=allow or ("127.0.0.1",), **settings))


def fetched(url: str, *allow: str, **settings: Any) -> bytes:
    with fetcher(*allow, **settings).fetch(url) as file:
        data = file.file.read()
        assert file.size_bytes == len(data)
        assert file.seconds > 0
        return data


Names = dict[str, list[list[str]]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """What names resolve to, one answer after the other. The system reads addresses and is asked for no other name."""
    table: Names = {}
    system = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        found = table[host].pop(0) if host in table else [host]
        kwargs["flags"] = socket.AI_NUMERICHOST
        return [entry for address in found for entry in system(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return table


def test_a_file_is_fetched_as_it_is() -> None:
    sample = (assets.SAMPLES / "rms_010.flac").read_bytes()
    with serve(reply(sample, Content_Type="text/html")) as server:
        with fetcher().fetch(f"{server.url}/a%20b/é.flac?x=1&y=ü#part") as result:
            assert result.file.read() == sample
            assert result.size_bytes == len(sample)
        assert result.file.closed
    (request,) = server.requests
    assert request.target == "/a%20b/%C3%A9.flac?x=1&y=%C3%BC"
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "accept-encoding": "identity",
        "user-agent": "whisperlib",
        "accept": "*/*",
        "connection": "close",
    }


@pytest.mark.parametrize(
    "answer",
    [
        reply(BODY),
        lambda request: request.send(head(Transfer_Encoding="chunked") + b"3e800\r\n" + BODY + b"\r\n0\r\n\r\n"),
        lambda request: request.send(head() + BODY),
        reply(BODY, Content_Encoding="identity"),
    ],
    ids=["length", "chunked", "to the end", "identity"],
)
def test_a_body_may_be_framed_in_every_way(answer: Answer) -> None:
    with serve(answer) as server:
        assert fetched(server.url) == BODY


def test_a_file_larger_than_the_memory_for_it_is_whole() -> None:
    body = BODY * 20
    with serve(reply(body)) as server:
        assert fetched(server.url) == body


def test_many_threads_may_fetch_at_once() -> None:
    with serve(lambda request: reply(request.target.encode() * 1000)(request)) as server:
        shared = fetcher(max_fetches=64)

        def one(number: int) -> bytes:
            with shared.fetch(f"{server.url}/{number}") as result:
                return result.file.read()

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(one, range(64))) == [f"/{number}".encode() * 1000 for number in range(64)]


# Where it may go


@pytest.mark.parametrize(
    "allow",
    [
        "127.0.0.1",
        "127.0.0.0/8",
        "127.0.0.1:{port}",
        "audio.example",
        "AUDIO.example.",
        "audio.example:{port}",
        "*.example",
        "*.example:{port}",
    ],
)
def test_an_inner_server_is_reached_if_the_setting_names_it(names: Names, allow: str) -> None:
    names["audio.example"] = [["127.0.0.1"]]
    with serve(reply(BODY)) as server:
        url = f"http://Audio.example.:{server.port}/"
        assert fetched(url, "10.0.0.0/8", allow.format(port=server.port)) == BODY
        assert server.requests[0].headers["host"] == f"audio.example:{server.port}"


@pytest.mark.parametrize(
    "allow",
    ["127.0.0.1:1", "127.0.0.2", "::1", "::/0", "audio.example:1", "udio.example", "*.audio.example", "*.ample"],
)
def test_an_inner_server_is_not_reached_if_the_setting_names_something_else(names: Names, allow: str) -> None:
    names["audio.example"] = [["127.0.0.1"]]
    with serve(reply(BODY)) as server:
        with pytest.raises(UrlRefusedError, match="WHISPER_URL_ALLOW"):
            fetched(f"http://audio.example:{server.port}/", allow)
        assert not server.requests


@pytest.mark.parametrize("allow", ["::1", "[::1]", "[::1]:{port}", "::/64"])
def test_an_ipv6_server_is_reached_if_the_setting_names_it(allow: str) -> None:
    try:
        with serve(reply(BODY), "::1") as server:
            assert fetched(server.url, allow.format(port=server.port)) == BODY
            assert server.requests[0].headers["host"] == f"[::1]:{server.port}"
    except OSError as error:
        if isinstance(error, FetchError):
            raise
        pytest.skip(f"no IPv6 on loopback: {error}")


@pytest.mark.parametrize(
    "word",
    [
        "10.0.0.0/99",
        "10.0.0.1/8",
        "10.0.0",
        "1.2.3.4:0",
        "1.2.3.4:65536",
        "10.0.0.0/8:80",
        "http://user:hush@host/",
        "a..b",
        "*",
        "a*.b",
        "[::1",
        ":80",
    ],
)
def test_a_word_that_cannot_be_read_is_an_option_error(word: str) -> None:
    with pytest.raises(OptionError, match="WHISPER_URL_ALLOW") as caught:
        fetcher(word)
    assert caught.value.option == "url_allow"
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.2",
        "2130706434",
        "0x7f000002",
        "0x7f.0.0.2",
        "0177.0.0.2",
        "127.2",
        "127.0.2",
        "127.0.0.2.",
        "\uff11\uff12\uff17.0.0.2",
        "127。0。0。2",
        "①②⑦.0.0.2",
        "user@127.0.0.2",
        "[::ffff:127.0.0.2]",
        "[::ffff:7f00:2]",
        "[0:0:0:0:0:ffff:7f00:0002]",
    ],
)
def test_every_way_to_write_an_inner_address_is_refused(host: str) -> None:
    with serve(reply(BODY), INNER) as inner:
        with pytest.raises(UrlRefusedError):
            fetched(f"http://{host}:{inner.port}/")
        assert not inner.requests
        # The same ways lead there if they may.
        assert fetched(f"http://{host}:{inner.port}/", INNER) == BODY


@pytest.mark.parametrize(
    "host",
    [
        "[::]",
        "[::1]",
        "[0:0::0:1]",
        "[::127.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "0",
        "0x0",
    ],
)
def test_a_literal_address_that_stands_for_an_inner_one_is_refused(host: str) -> None:
    with serve(reply(BODY)) as server:
        with pytest.raises(UrlRefusedError, match="WHISPER_URL_ALLOW"):
            fetched(f"http://{host}:{server.port}/")
        assert not server.requests


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::8.8.8.8",
        "::ffff:10.0.0.1",
        "::ffff:0:8.8.8.8",
        "64:ff9b::a00:1",
        "64:ff9b::169.254.169.254",
        "64:ff9b::168.63.129.16",
        "64:ff9b:1::808:808",
        "100::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:808:808::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_an_address_that_not_everybody_reaches_is_refused(names: Names, address: str) -> None:
    assert not fetch.is_public(ipaddress.ip_address(address))
    names["audio.example"] = [[address]]
    with pytest.raises(UrlRefusedError, match="audio.example is not a public address"):
        fetched("http://audio.example/", "other.example")


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "192.0.1.1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2606:4700::1111", "2a00:1450::1"]
)
def test_an_address_that_everybody_reaches_is_public(address: str) -> None:
    assert fetch.is_public(ipaddress.ip_address(address))


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_checked(names: Names) -> None:
    names["audio.example"] = [["127.0.0.1"], [INNER], [INNER]]
    with serve(reply(BODY)) as server, serve(reply(SECRET.encode()), INNER, server.port) as inner:
        assert fetched(f"http://audio.example:{server.port}/") == BODY
        assert server.requests[0].headers["host"] == f"audio.example:{server.port}"
        assert not inner.requests
    assert names["audio.example"] == [[INNER], [INNER]]


def test_a_name_is_resolved_and_checked_anew_for_every_hop(names: Names) -> None:
    names["audio.example"] = [["127.0.0.1"], [INNER]]
    with serve(redirect("/there")) as server, serve(reply(BODY), INNER, server.port) as inner:
        with pytest.raises(UrlRefusedError, match="not a public address"):
            fetched(f"http://audio.example:{server.port}/")
        assert [request.target for request in server.requests] == ["/"]
        assert not inner.requests


@pytest.mark.parametrize("addresses", [["127.0.0.1", INNER], [INNER, "127.0.0.1"]])
def test_one_bad_address_among_several_is_enough_to_refuse(names: Names, addresses: list[str]) -> None:
    names["audio.example"] = [addresses]
    with serve(reply(BODY)) as server:
        with pytest.raises(UrlRefusedError):
            fetched(f"http://audio.example:{server.port}/")
        assert not server.requests


def test_the_next_address_is_tried_where_one_does_not_answer(names: Names) -> None:
    names["audio.example"] = [[INNER, "127.0.0.1"]]
    with serve(reply(BODY)) as server:
        assert fetched(f"http://audio.example:{server.port}/", "127.0.0.0/8") == BODY


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(reply(BODY)) as server, serve(reply(b"proxy")) as proxy:
        for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]:
            monkeypatch.setenv(name, proxy.url)
        for name in ["no_proxy", "NO_PROXY"]:
            monkeypatch.delenv(name, raising=False)
        assert fetched(server.url) == BODY
        assert not proxy.requests


@pytest.mark.parametrize(
    "url",
    [
        "",
        "audio.flac",
        "//127.0.0.1/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "data:audio/wav;base64,AAAA",
        "http://",
        "http:///path",
        "http://:80/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:65536/",
        "http://127.0.0.1:x/",
        "http://127.0.0.1:-1/",
        "http://127.0.0.1 /",
        " http://127.0.0.1/",
        "http://127.0.0.1/a\r\nX-Header: y",
        "http://127.0.0.1/\0",
        "http://127.0.0.1\\@8.8.8.8/",
        "http://127.0.0.1%2f/",
        "http://%31%32%37.0.0.1/",
        "http://[::1/",
        "http://[::1%25lo]/",
        "http://[fe80::1%eth0]/",
        "http://::1/",
        "http://a..b/",
        "http://127.0.0.1../",
        "http://" + "a" * 64 + ".example/",
        "http://" + "a." * 200 + "example/",
        "http://127.0.0.1/\ud800",
        "http://127.0.0.1/" + "a" * 9000,
    ],
)
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(UrlRefusedError) as caught:
        fetched(url, "0.0.0.0/0", "::/0")
    assert len(str(caught.value)) < 200


def test_a_name_that_nobody_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(FetchError, match=r"^the name audio\.example cannot be resolved$"):
        fetched("http://user:hush@audio.example/?token=hush")


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(status: int) -> None:
    with serve(reply(BODY)) as target, serve(redirect(f"{target.url}/there?x=1", status)) as server:
        assert fetched(server.url) == BODY
        assert target.requests[0].target == "/there?x=1"


@pytest.mark.parametrize("host", ["127.0.0.2", "2130706434", "[::ffff:127.0.0.2]", "localhost.", "0.0.0.0"])  # noqa: S104
def test_a_redirect_to_the_inside_is_refused(names: Names, host: str) -> None:
    names["localhost"] = [[INNER]]
    with serve(reply(SECRET.encode()), INNER) as inner:
        with serve(redirect(f"http://{host}:{inner.port}/hush")) as server, pytest.raises(UrlRefusedError) as caught:
            fetched(server.url)
        assert not inner.requests
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "location", ["file:///etc/hush", "//:1/hush", "http://[hush", "http://a b/hush", "gopher://hush:1/"]
)
def test_a_redirect_to_what_is_no_web_address_is_refused_without_a_word_of_it(location: str) -> None:
    with serve(redirect(location)) as server, pytest.raises(UrlRefusedError, match="redirects to a URL") as caught:
        fetched(server.url)
    assert "hush" not in str(caught.value)


def test_a_redirect_to_nowhere_is_an_error() -> None:
    with serve(reply(b"", 302)) as server, pytest.raises(FetchError, match="does not say where to"):
        fetched(server.url)


def test_five_redirects_are_followed_and_no_more() -> None:
    def count(request: Request) -> None:
        left = int(request.target[1:])
        (redirect(f"/{left - 1}") if left else reply(BODY))(request)

    with serve(count) as server:
        assert fetched(f"{server.url}/5") == BODY
        with pytest.raises(FetchError, match="redirects more than 5 times"):
            fetched(f"{server.url}/6")
        assert len(server.requests) == 12


def test_a_redirect_loop_ends() -> None:
    with serve(redirect("/")) as server:
        with pytest.raises(FetchError, match="redirects more than 5 times"):
            fetched(server.url)
        assert len(server.requests) == 6


def test_credentials_go_to_their_own_host_only() -> None:
    with serve(reply(BODY)) as other:
        hops: dict[str, Answer] = {"/": redirect("/again"), "/again": redirect(other.url)}
        with serve(lambda request: hops[request.target](request)) as server:
            assert fetched(f"http://us%40er:p%3Aw@127.0.0.1:{server.port}/") == BODY
        basic = "Basic dXNAZXI6cDp3"  # us@er:p:w
        assert [request.headers.get("authorization") for request in server.requests] == [basic, basic]
        assert "authorization" not in other.requests[0].headers
        assert "dXNAZXI6cDp3" not in str(other.requests[0].headers)


def test_credentials_are_not_sent_again_on_the_way_back() -> None:
    hops: dict[str, Answer] = {"/back": reply(BODY)}
    with serve(lambda request: hops[request.target](request)) as server:
        with serve(redirect(f"{server.url}/back")) as other:
            hops["/"] = redirect(other.url)
            assert fetched(f"http://user:hush@127.0.0.1:{server.port}/") == BODY
        assert ["authorization" in request.headers for request in server.requests] == [True, False]


# What comes back


@pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 401, 403, 404, 500, 503])
def test_another_status_is_an_error_that_tells_its_number_alone(status: int) -> None:
    body = b"" if status in {204, 304} else SECRET.encode()
    with serve(reply(body, status, X_Hush="hush")) as server, pytest.raises(FetchError) as caught:
        fetched(f"http://user:hush@127.0.0.1:{server.port}/?token=hush")
    assert str(caught.value) == f"127.0.0.1 answered with status {status}"


def test_an_empty_body_is_an_error() -> None:
    with serve(reply(b"")) as server, pytest.raises(FetchError, match="is empty"):
        fetched(server.url)


def test_a_length_over_the_limit_is_refused_before_the_body() -> None:
    def announce(request: Request) -> None:
        request.send(head(Content_Length=1025))
        request.await_hang_up()

    with serve(announce) as server, pytest.raises(FetchTooLargeError, match="1024 bytes"):
        fetched(server.url, max_body_bytes=1024)


@pytest.mark.parametrize("framing", [{}, {"Transfer_Encoding": "chunked"}, {"Content_Length": "-1"}])
def test_an_endless_body_is_cut_off_at_the_limit(framing: dict[str, Any]) -> None:
    def endless(request: Request) -> None:
        request.send(head(**framing))
        while True:
            request.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")

    with serve(endless) as server, pytest.raises(FetchTooLargeError):
        fetched(server.url, max_body_bytes=1_000_000)


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    with serve(reply(BODY)) as server:
        assert fetched(server.url, max_body_bytes=len(BODY)) == BODY
        with pytest.raises(FetchTooLargeError):
            fetched(server.url, max_body_bytes=len(BODY) - 1)


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: request.send(head(Content_Length=len(BODY) + 1) + BODY),
        lambda request: request.send(head(Transfer_Encoding="chunked") + b"3e800\r\n" + BODY),
        lambda request: request.send(head(Transfer_Encoding="chunked") + b"hush\r\n" + BODY),
    ],
    ids=["length", "chunked", "no chunk"],
)
def test_a_body_that_breaks_off_is_an_error(answer: Answer) -> None:
    with serve(answer) as server, pytest.raises(FetchError, match="ended before the file did"):
        fetched(server.url)


def test_what_goes_beyond_the_length_is_not_read() -> None:
    with serve(lambda request: request.send(head(Content_Length=10) + BODY)) as server:
        assert fetched(server.url) == BODY[:10]


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "identity, gzip"])
def test_a_compressed_answer_is_refused_unread(encoding: str) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    with serve(reply(bomb, Content_Encoding=encoding)) as server, pytest.raises(FetchError, match="compressed"):
        fetched(server.url, max_body_bytes=1_000_000)


def test_a_gzip_file_that_is_not_declared_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    with serve(reply(bomb, Content_Type="application/gzip")) as server:
        assert fetched(server.url) == bomb


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hush\r\n\r\n",
        b"SSH-2.0-hush\r\n",
        b"HTTP/1.1 hush Said\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Hush: hush\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX-Hush: " + b"h" * 100_000 + b"\r\n\r\n",
        b"\xff" * 100,
    ],
)
def test_what_is_not_http_is_an_error_without_a_word_of_it(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with serve(lambda request: request.send(raw)) as server, pytest.raises(FetchError) as caught:
        fetched(f"http://user:hush@127.0.0.1:{server.port}/?token=hush")
    assert "127.0.0.1" in str(caught.value)
    assert "hush" not in f"{caught.value}{caplog.text}".lower()


def test_nothing_tells_whether_something_listens_inside() -> None:
    with serve(reply(SECRET.encode()), INNER) as inner, pytest.raises(UrlRefusedError) as open_port:
        fetched(f"http://{INNER}:{inner.port}/?token=hush")
    with pytest.raises(UrlRefusedError) as closed_port:
        fetched(f"http://{INNER}:{inner.port}/?token=hush")
    assert str(open_port.value) == str(closed_port.value)
    assert "hush" not in str(open_port.value)


def test_a_closed_port_is_an_error_that_names_the_host() -> None:
    with serve(reply(BODY)) as server:
        pass
    with pytest.raises(FetchError, match=r"from 127\.0\.0\.1: no connection$") as caught:
        fetched(server.url)
    assert not isinstance(caught.value, FetchTimeoutError)


# When it ends


def silent(request: Request) -> None:
    request.await_hang_up()


def drip_head(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\n")
    request.drip(b"x")


def drip_interim(request: Request) -> None:
    request.drip(b"HTTP/1.1 100 Continue\r\n\r\n")


def drip_body(request: Request) -> None:
    request.send(head(Content_Length=1_000_000))
    request.drip(b"x")


def drip_to_the_end(request: Request) -> None:
    request.send(head(Connection="close"))
    request.drip(b"x")


def drip_chunks(request: Request) -> None:
    request.send(head(Transfer_Encoding="chunked"))
    request.drip(b"1\r\nx\r\n")


def drip_redirects(request: Request) -> None:
    request.send(head(302, Location="/", Content_Length=1000))
    request.drip(b"x")


STALLS = [silent, drip_head, drip_interim, drip_body, drip_to_the_end, drip_chunks]


@pytest.mark.parametrize("answer", STALLS)
def test_the_deadline_holds_against_every_stall(answer: Answer) -> None:
    hung_up = threading.Event()

    def stall(request: Request) -> None:
        try:
            answer(request)
        finally:
            hung_up.set()

    with serve(stall) as server, pytest.raises(FetchTimeoutError, match=r"0\.3 s"):
        fetched(server.url, fetch_timeout_seconds=0.3)
    assert hung_up.wait(60)


def test_the_deadline_holds_where_no_connection_comes_about() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as stack:
        for _ in range(4):  # they fill the queue, and the next is not answered
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        with pytest.raises(FetchTimeoutError):
            fetched(f"http://127.0.0.1:{server.getsockname()[1]}/", fetch_timeout_seconds=0.3)


def test_a_redirect_s_body_is_not_waited_for() -> None:
    with serve(drip_redirects) as server, pytest.raises(FetchError, match="redirects more than"):
        fetched(server.url)


def test_the_shorter_of_both_timeouts_holds() -> None:
    with serve(silent) as server:
        with pytest.raises(FetchTimeoutError, match=r"0\.2 s"), fetcher().fetch(server.url, timeout_seconds=0.2):
            pass
        short = fetcher(fetch_timeout_seconds=0.1)
        with pytest.raises(FetchTimeoutError, match=r"0\.1 s"), short.fetch(server.url, timeout_seconds=9):
            pass
        with pytest.raises(FetchTimeoutError), fetcher().fetch(server.url, timeout_seconds=0):
            pass


def test_a_look_up_that_hangs_ends_at_the_deadline_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        found.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    shared = fetcher(max_fetches=1)
    try:
        for _ in range(2):
            with pytest.raises(FetchTimeoutError), shared.fetch("http://audio.example/", timeout_seconds=0.05):
                pass
        with pytest.raises(OverloadedError, match="resolved"), shared.fetch("http://audio.example/"):
            pass
    finally:
        found.set()


def cancel_when(started: threading.Event, url: str) -> None:
    token = CancelToken()

    def cancel() -> None:
        if started.wait(60):
            token.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(TranscriptionCancelled), fetcher().fetch(url, cancel=token):
        pass
    canceller.join()


@pytest.mark.parametrize("answer", STALLS)
def test_a_cancel_ends_every_stall(answer: Answer) -> None:
    started = threading.Event()

    def stall(request: Request) -> None:
        started.set()
        answer(request)

    with serve(stall) as server:
        cancel_when(started, server.url)


def test_a_cancel_ends_a_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    started, found = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        started.set()
        found.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        cancel_when(started, "http://audio.example/")
    finally:
        found.set()


def test_a_cancel_ends_a_tls_handshake() -> None:
    started = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            with server.accept()[0] as connection:
                connection.recv(1)
                started.set()
                while connection.recv(4096):
                    pass

        listener = threading.Thread(target=listen)
        listener.start()
        cancel_when(started, f"https://127.0.0.1:{server.getsockname()[1]}/")
        listener.join()


def test_a_token_that_is_cancelled_already_lets_nothing_out() -> None:
    token = CancelToken()
    token.cancel()
    with serve(reply(BODY)) as server:
        with pytest.raises(TranscriptionCancelled), fetcher().fetch(server.url, cancel=token):
            pass
        assert not server.requests


def test_a_token_forgets_a_fetch_that_is_over() -> None:
    token = CancelToken()
    with serve(reply(BODY)) as server, fetcher().fetch(server.url, cancel=token) as result:
        token.cancel()
        assert result.file.read() == BODY


def test_more_fetches_than_allowed_are_refused_at_once() -> None:
    started, token = threading.Semaphore(0), CancelToken()

    def stall(request: Request) -> None:
        started.release()
        request.await_hang_up()

    with serve(stall) as server, serve(reply(BODY)) as other, ThreadPoolExecutor(2) as pool:
        shared = fetcher(max_fetches=2)

        def one() -> None:
            with shared.fetch(server.url, cancel=token):
                pass

        running = [pool.submit(one) for _ in range(2)]
        for _ in running:
            assert started.acquire(timeout=60)
        with pytest.raises(OverloadedError, match="2 files") as caught, shared.fetch(other.url):
            pass
        assert caught.value.retry_after_seconds > 0
        assert not other.requests
        token.cancel()
        for fetch_ in running:
            assert isinstance(fetch_.exception(), TranscriptionCancelled)
        # The places are free again, and a file that is still used takes none.
        with shared.fetch(other.url), shared.fetch(other.url), shared.fetch(other.url) as third:
            assert third.file.read() == BODY


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that nobody but these tests knows."""
    return trustme.CA()


@pytest.fixture(scope="module")
def bundle(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that vouches for the authority."""
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """What a server needs to be audio.example."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("audio.example").configure_cert(context)
    return context


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_tls_verifies_the_name_at_the_address_that_was_checked(
    names: Names, tls: ssl.SSLContext, bundle: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(variable, str(bundle))
    asked: list[str | None] = []
    tls.sni_callback = lambda _, name, __: asked.append(name)
    names["audio.example"] = [["127.0.0.1"], [INNER]]
    names["other.example"] = [["127.0.0.1"]]
    with serve(reply(BODY), tls=tls) as server:
        assert fetched(f"https://audio.example:{server.port}/") == BODY
        assert asked == ["audio.example"]
        assert server.requests[0].headers["host"] == f"audio.example:{server.port}"
        with pytest.raises(FetchError, match="certificate is not trusted"):
            fetched(f"https://other.example:{server.port}/")
        assert len(server.requests) == 1


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    names: Names, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    names["audio.example"] = [["127.0.0.1"]]
    with serve(reply(BODY), tls=tls) as server:
        with pytest.raises(FetchError, match="certificate is not trusted"):
            fetched(f"https://audio.example:{server.port}/")
        assert not server.requests


def test_a_server_without_tls_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 hush\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(FetchError, match="TLS failed") as caught:
            fetched(f"https://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("answer", STALLS)
def test_deadlines_hold_over_tls(
    names: Names, tls: ssl.SSLContext, bundle: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    names["audio.example"] = [["127.0.0.1"]]
    with serve(answer, tls=tls) as server, pytest.raises(FetchTimeoutError):
        fetched(f"https://audio.example:{server.port}/", fetch_timeout_seconds=0.4)


def test_a_redirect_from_https_to_http_is_refused(
    names: Names, tls: ssl.SSLContext, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    names["audio.example"] = [["127.0.0.1"]]
    with serve(reply(BODY)) as plain, serve(redirect(plain.url), tls=tls) as server:
        with pytest.raises(UrlRefusedError, match="from https to http"):
            fetched(f"https://audio.example:{server.port}/")
        assert not plain.requests


def test_a_redirect_from_http_to_https_is_followed(
    names: Names, tls: ssl.SSLContext, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    names["audio.example"] = [["127.0.0.1"]]
    with serve(reply(BODY), tls=tls) as server, serve(redirect(f"https://audio.example:{server.port}/")) as plain:
        assert fetched(plain.url) == BODY


def test_a_bundle_that_is_not_there_is_an_option_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(OptionError, match="REQUESTS_CA_BUNDLE"):
        fetcher()
