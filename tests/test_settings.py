"""The settings: what the environment may say, what it may not, and that the documentation has them all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from tests.conftest import ROOT
from whisperlib import models
from whisperlib.errors import OptionError
from whisperlib.settings import MODEL_NAMES, Settings, allowed, get_settings, user_cache_path


@pytest.fixture(autouse=True)
def _nothing_set(_own_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHISPER_MEASURE_THREADS")
    monkeypatch.delenv("WHISPER_BATCHES")
    monkeypatch.delenv("WHISPER_CACHE")


def test_the_documentation_has_every_setting_as_it_is() -> None:
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in (ROOT / "docs/settings.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `WHISPER_")
    ]
    properties = Settings.model_json_schema()["properties"]
    assert rows == [
        (f"`WHISPER_{name.upper()}`", shown_default(name), properties[name]["unit"], allowed(name), field.description)
        for name, field in Settings.model_fields.items()
    ]


def test_the_documentation_has_every_other_variable_that_is_read() -> None:
    files = [path for top in ("whisperlib", "native") for path in (ROOT / top).glob("*.py")]
    files += (ROOT / "whisperlib").glob("*/*.py")
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    read = set(re.findall(r'environ(?:\.get\(|\[)\s*"(\w+)"', sources))
    documented = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert {"WHISPER_LIB_DIR", "LD_LIBRARY_PATH", "WHISPER_CPP_SRC"} <= read
    assert not [name for name in sorted(read) if f"`{name}`" not in documented]


def shown_default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default_factory:
        return "the user's data directory"
    if field.default in {None, ()}:
        return "unset"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


def test_no_variable_gives_the_defaults() -> None:
    settings = Settings()
    assert settings.model_dump(exclude={"model_root"}) == {
        name: field.default for name, field in Settings.model_fields.items() if name != "model_root"
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model_size", "medium", "medium"),
        ("model_size", " Large-V3-Turbo ", "large-v3-turbo"),
        ("model_size", "./My Models/x.bin", "./My Models/x.bin"),
        ("model_root", "/data/models ", Path("/data/models")),
        ("model_root", "~/models", Path.home() / "models"),
        ("model_root", "models", Path.cwd() / "models"),
        ("artifact_url", "http://user:pass@mirror.local:8080/models/", "http://user:pass@mirror.local:8080/models"),
        ("quantization", "Q8_0", "q8_0"),
        ("device", "CUDA", "cuda"),
        ("lib_dir", "/opt/whisper", Path("/opt/whisper")),
        ("preload", "Tiny, base,tiny", ("tiny", "base")),
        ("pinned", "SMALL", ("small",)),
        ("memory_budget", "6GB", 6_000_000_000),
        ("memory_budget", "500 mb", 500_000_000),
        ("memory_budget", "1.5GiB", 1_610_612_736),
        ("memory_budget", "1048576", 1 << 20),
        ("keep_alive_seconds", "0", 0.0),
        ("isolation", "Process", "process"),
        ("cache", "Files", "files"),
        ("cache", "OFF", "off"),
        ("cache", "~/kept", str(Path.home() / "kept")),
        ("cache", "./kept", str(Path.cwd() / "kept")),
        ("cache", "rediss://:pass@cache.local:6380/1", "rediss://:pass@cache.local:6380/1"),
        ("cache_seconds", "60", 60),
        ("batches", "AUTO", "auto"),
        ("batches", "~/lists", str(Path.home() / "lists")),
        ("threads", "512", 512),
        ("concurrency", " 3 ", 3),
        ("max_audio_seconds", "1.5", 1.5),
        ("download_timeout_seconds", "1e1", 10.0),
        ("download_retries", "0", 0),
        ("log_level", "debug", "DEBUG"),
        ("log_level", "Auto", "auto"),
        ("log_format", "JSON", "json"),
        ("host", "::1", "::1"),
        ("port", "80", 80),
        ("http_threads", "8", 8),
        ("cors_origins", "https://a.example, https://b.example", ("https://a.example", "https://b.example")),
        ("url_allow", "127.0.0.1,10.0.0.0/8,", ("127.0.0.1", "10.0.0.0/8")),
        ("max_body_bytes", "1048576", 1 << 20),
        ("max_wait_seconds", "0", 0.0),
        ("keep_results_seconds", "0", 0.0),
        ("keep_results_max", "0", 0),
        ("llm_base_url", " http://127.0.0.1:11434/v1/ ", "http://127.0.0.1:11434/v1"),
        ("llm_model", "gemma3:4b", "gemma3:4b"),
        ("llm_temperature", "0", 0.0),
        ("llm_timeout", "5", 5.0),
    ],
)
def test_a_variable_sets_its_field(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any) -> None:
    monkeypatch.setenv(f"WHISPER_{name.upper()}", text)
    assert getattr(Settings(), name) == value


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    default = getattr(Settings(), name)
    monkeypatch.setenv(f"WHISPER_{name.upper()}", "")
    assert getattr(Settings(), name) == default


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model_size", "enormous"),
        ("model_size", " "),
        ("model_root", " "),
        ("model_root", "~nobody-of-this-name/models"),
        ("artifact_url", "ftp://mirror.local/models"),
        ("artifact_url", "mirror.local/models"),
        ("artifact_url", "https://"),
        ("artifact_url", "https://mirror.local:none/models"),
        ("artifact_url", "https://[mirror.local/models"),
        ("artifact_url", "https://mirror.local/my models"),
        ("artifact_url", "https://mirror.local/models?x"),
        ("quantization", "q9"),
        ("device", "tpu"),
        ("lib_dir", " "),
        ("preload", "small,enormous"),
        ("preload", "./x.bin"),
        ("pinned", ","),
        ("memory_budget", "much"),
        ("memory_budget", "6 elephants"),
        ("memory_budget", "-1GB"),
        ("memory_budget", "0"),
        ("memory_budget", "9" * 5000),
        ("keep_alive_seconds", "-1"),
        ("keep_alive_seconds", "1h"),
        ("admin_keys", "two words"),
        ("isolation", "thread"),
        ("cache", "fils"),
        ("cache", "~nobody-of-this-name/kept"),
        ("cache", "http://cache.local"),
        ("cache", "redis://"),
        ("cache", "redis://cache.local:none"),
        ("cache_bytes", "1GB"),
        ("cache_seconds", "0"),
        ("batches", "on"),
        ("batches", "~nobody-of-this-name/lists"),
        ("batch_max_items", "0"),
        ("threads", "many"),
        ("threads", "-1"),
        ("threads", "513"),
        ("threads", "1.5"),
        ("threads", "9" * 5000),
        ("concurrency", "65"),
        ("max_audio_seconds", "0"),
        ("max_audio_seconds", "nan"),
        ("max_audio_seconds", "inf"),
        ("download_timeout_seconds", "0"),
        ("download_retries", "101"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("host", "two words"),
        ("host", "http://localhost"),
        ("port", "0"),
        ("port", "65536"),
        ("http_threads", "7"),
        ("api_keys", ","),
        ("cors_origins", "https://a.example https://b.example"),
        ("url_allow", " "),
        ("max_body_bytes", "1e3"),
        ("shutdown_seconds", "-1"),
        ("keep_results_seconds", "-1"),
        ("keep_results_max", "1.5"),
        ("llm_base_url", "127.0.0.1:11434/v1"),
        ("llm_base_url", "localhost:11434/v1"),
        ("llm_base_url", "ftp://127.0.0.1/v1"),
        ("llm_base_url", "http://127.0.0.1/v1?key=x"),
        ("llm_base_url", "http://127.0.0.1/v1#x"),
        ("llm_temperature", "2.1"),
        ("llm_timeout", "0"),
        ("llm_api_key", "two words"),
    ],
)
def test_a_bad_value_is_one_line_that_helps(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"WHISPER_{name.upper()}", text)
    with pytest.raises(OptionError, match=re.escape(f"WHISPER_{name.upper()} = ")) as caught:
        Settings()
    message = str(caught.value)
    assert message.endswith(f": give {allowed(name)}")
    assert name in {"admin_keys", "api_keys", "llm_api_key"} or text.partition("?")[0][:20].lower() in message.lower()
    assert len(message.splitlines()) == 1
    assert len(message) < 300
    assert caught.value.__cause__ is None


def test_no_message_tells_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_ARTIFACT_URL", "ftp://user:pa/ss@mirror.local/models?token=secret")
    with pytest.raises(OptionError, match=r"'ftp://mirror\.local/models'"):
        Settings()
    monkeypatch.setenv("WHISPER_ARTIFACT_URL", "https://user:hush@mirror.local/models")
    assert "hush" not in repr(Settings())
    monkeypatch.setenv("WHISPER_CACHE", "redis://:hush@cache.local:6379/0")
    assert "hush" not in repr(Settings())
    for mistyped in ("redis:/:hush@cache.local", "redis//:hush@cache.local", "redis://:hu/sh@:none"):
        monkeypatch.setenv("WHISPER_CACHE", mistyped)
        with pytest.raises(OptionError, match=r"WHISPER_CACHE = \(hidden\)"):
            Settings()


def test_keys_are_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_API_KEYS", "hush-one,hush-two")
    monkeypatch.setenv("WHISPER_ADMIN_KEYS", "hush-five")
    monkeypatch.setenv("WHISPER_LLM_API_KEY", "hush-three")
    monkeypatch.setenv("WHISPER_LLM_BASE_URL", "http://user:hush-four@127.0.0.1/v1")
    settings = Settings()
    assert settings.llm_api_key
    assert settings.llm_api_key.get_secret_value() == "hush-three"
    assert [key.get_secret_value() for key in settings.api_keys] == ["hush-one", "hush-two"]
    assert "hush" not in f"{settings!r}{settings}{settings.model_dump_json(exclude={'llm_base_url'})}"
    monkeypatch.setenv("WHISPER_API_KEYS", "hush one")
    with pytest.raises(OptionError, match="WHISPER_API_KEYS") as caught:
        Settings()
    assert "hush" not in str(caught.value)


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(OptionError, match="unknown setting 'modell'.*model_size"):
        Settings(modell="small")


def test_other_variables_are_nobody_s_concern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_FAVOURITE_COLOUR", "green")
    Settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().threads = 2  # type: ignore[misc]


def test_settings_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    get_settings.cache_clear()
    try:
        before = get_settings()
        monkeypatch.setenv("WHISPER_THREADS", "3")
        assert get_settings() is before
        get_settings.cache_clear()
        assert get_settings().threads == 3
    finally:
        get_settings.cache_clear()


def test_models_lie_in_the_user_s_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Settings().model_root.name == "models"
    assert Settings().model_root.parent.name == "whisperlib"


def test_a_user_without_a_home_has_no_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_path() == tmp_path / "whisperlib"

    def unknown(*_: object, **__: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    # Doubles: what it does depends on its version, and whoever runs the tests has a home.
    for answer in (unknown, lambda *_, **__: Path("~/.cache/whisperlib")):
        monkeypatch.setattr(platformdirs, "user_cache_path", answer)
        with pytest.raises(NotADirectoryError):
            user_cache_path().mkdir(parents=True)


def test_the_names_are_those_of_the_catalogue() -> None:
    assert tuple(models.CATALOGUE) == MODEL_NAMES
