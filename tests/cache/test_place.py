"""Which place `WHISPER_CACHE` stands for: in a server, and elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest
from click.testing import CliRunner

from whisperlib import WhisperLibraryAdapter, assets, cache, get_adapter
from whisperlib.cli import cli
from whisperlib.settings import Settings, get_settings

SHORT = assets.SAMPLES / "rms_010.flac"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The user's cache directory; nothing is set."""
    monkeypatch.delenv("WHISPER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    get_settings.cache_clear()
    yield tmp_path / "user"
    get_settings.cache_clear()


def test_a_server_keeps_results_in_a_directory_of_its_user_s_own(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "whisperlib.cache"):
        settings = cache.for_server(Settings())
    place = home / "whisperlib" / "results"
    assert settings.cache == "files"
    assert cache.describe(settings, None)["place"] == str(place)
    assert place.stat().st_mode & 0o777 == 0o700
    assert not list(place.iterdir())
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert all(text in record.message for text in (str(place), "2592000 s", "268435456 bytes", "WHISPER_CACHE=off"))


@pytest.mark.parametrize("named", ["off", "files", "/nowhere/kept", "redis://:hush@127.0.0.1:1/0"])
def test_what_is_named_stays_in_a_server_too(home: Path, caplog: pytest.LogCaptureFixture, named: str) -> None:
    settings = Settings(cache=named)
    with caplog.at_level(logging.INFO, "whisperlib.cache"):
        assert cache.for_server(settings) is settings
    assert not caplog.records
    assert not home.exists()


def assert_only_warned(caplog: pytest.LogCaptureFixture, *said: str) -> None:
    with caplog.at_level(logging.INFO, "whisperlib.cache"):
        settings = cache.for_server(Settings())
    assert (settings.cache, cache.open_store(settings)) == ("off", None)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert all(text in record.message for text in said)


def test_a_default_that_cannot_be_written_only_warns(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.write_text("in the way", encoding="utf-8")  # of root, too
    assert_only_warned(
        caplog, f"{home / 'whisperlib' / 'results'} cannot be written (Not a directory)", "WHISPER_CACHE"
    )


def test_a_user_without_a_home_is_only_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A double: whoever runs the tests has a home.
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: Path("~/.cache/whisperlib"))
    assert_only_warned(caplog, "cannot be written (Not a directory)", "XDG_CACHE_HOME")


def test_elsewhere_nothing_is_kept_unless_a_place_is_named(home: Path) -> None:
    assert Settings().cache == "auto"
    for adapter in (WhisperLibraryAdapter("micro", threads=1, concurrency=1), get_adapter("micro", threads=1)):
        with adapter:
            assert [adapter.transcribe(SHORT, beam_size=1).cache for _ in range(2)] == ["off", "off"]
            assert adapter.cache is None
    done = CliRunner().invoke(cli, ["transcribe", "-m", "micro", str(SHORT)])
    assert (done.exit_code, done.stdout) == (0, assets.sample_text(SHORT.name) + "\n")
    assert not list(home.rglob("results"))
