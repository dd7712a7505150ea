"""Results in a real Redis server, and what happens without it."""

from __future__ import annotations

import logging
import socket

import pytest
import redis

from tests.cache.conftest import PASSWORD, StartRedis
from tests.web.running_server import free_port, wait_until
from whisperlib.cache import redis as redis_store
from whisperlib.cache.redis import PREFIX, RedisStore
from whisperlib.cache.store import Stats
from whisperlib.errors import OptionError

KEY, VALUE = "ab" * 32, b"\x00value\xff"


def open_redis(url: str, max_age_seconds: float = 60.0) -> RedisStore:
    return RedisStore(url, max_bytes=1000, max_age_seconds=max_age_seconds)


def test_what_was_put_is_there_until_it_is_deleted(redis_url: str) -> None:
    store, other = open_redis(redis_url), open_redis(redis_url)
    assert store.get(KEY) is None
    store.put(KEY, VALUE)
    store.touch(KEY)
    assert other.get(KEY) == VALUE
    other.delete(KEY)
    assert store.get(KEY) is None
    assert store.stats() == store.count() == Stats(None, 0)
    for one in (store, other, other):
        one.close()


def test_the_server_forgets_what_is_too_old(redis_url: str) -> None:
    store = open_redis(redis_url, max_age_seconds=1000)
    store.put(KEY, VALUE)
    with redis.Redis.from_url(redis_url) as server:
        assert 999_000 < server.pttl(PREFIX + KEY) <= 1_000_000
    short = open_redis(redis_url, max_age_seconds=0.05)
    short.put(KEY, VALUE)
    wait_until(lambda: short.get(KEY) is None, "it is forgotten")


def test_a_value_larger_than_the_limit_is_not_kept(redis_url: str) -> None:
    store = open_redis(redis_url)
    store.put(KEY, b"x" * 1001)
    assert store.get(KEY) is None


def test_a_server_that_is_away_is_a_miss_that_is_told_once_without_its_password(
    start_redis: StartRedis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "PAUSE_SECONDS", 0.0)
    port = free_port()
    store = open_redis(f"redis://:{PASSWORD}@127.0.0.1:{port}/0")
    with caplog.at_level(logging.INFO, "whisperlib.cache"):
        for _ in range(3):
            store.put(KEY, VALUE)
            assert store.get(KEY) is None
            store.delete(KEY)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"redis://127.0.0.1:{port}/0" in caplog.text
        with start_redis(port):
            store.put(KEY, VALUE)
            assert store.get(KEY) == VALUE
            assert caplog.records[-1].levelname == "INFO"
        assert store.get(KEY) is None  # it went while a connection to it was open
        assert caplog.records[-1].levelname == "WARNING"
    assert PASSWORD not in caplog.text


def test_a_wrong_password_is_a_miss(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    store = open_redis(redis_url.replace(PASSWORD, "wrong-secret"))
    store.put(KEY, VALUE)
    assert store.get(KEY) is None
    assert "password" in caplog.text
    assert "wrong-secret" not in caplog.text


def test_a_server_that_says_nothing_is_asked_once_and_then_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(redis_store, "PAUSE_SECONDS", 1000.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = open_redis(f"redis://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(3):
            assert store.get(KEY) is None
            store.put(KEY, VALUE)
        silent.settimeout(0)
        silent.accept()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_what_a_url_says_of_the_connection_may_be_wrong(caplog: pytest.LogCaptureFixture) -> None:
    assert open_redis(f"redis://127.0.0.1:{free_port()}/?flavour=odd").get(KEY) is None
    assert "flavour" in caplog.text
    with pytest.raises(OptionError, match="not a URL of a Redis server") as caught:
        open_redis(f"http://:{PASSWORD}@127.0.0.1")
    assert PASSWORD not in str(caught.value)
