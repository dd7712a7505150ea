"""What the installation says of itself."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chat_server import chat_server
from whisperlib import WhisperLibraryAdapter, binding, info, system, variants
from whisperlib.settings import Settings, get_settings

V2 = ["lm", "cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"]
V3 = [*V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"]
V4 = [*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]


@pytest.fixture(autouse=True)
def _fresh_settings() -> None:
    get_settings.cache_clear()


def test_all_parts_are_told_and_fit_into_json(library_dir: Path) -> None:
    told = info.collect()
    assert json.loads(json.dumps(told)) == told
    machine = {"versions", "libraries", "cpu", "openmp", "cuda", "memory"}
    assert set(told) == machine | {"models", "encoder", "threads", "cache", "enhancement", "settings"}
    libraries = told["libraries"]
    assert "error" not in libraries
    [chosen] = [build for build in libraries["found"] if build["standing"].startswith("chosen")]
    assert chosen["directory"] == libraries["chosen"]["directory"] == libraries["loaded"]["directory"]
    assert str(library_dir) == chosen["directory"]
    assert "libwhisperlib-shim.so" in libraries["loaded"]["files"]
    assert "OPENMP = 1" in libraries["loaded"]["system_info"]
    assert told["memory"]["resident_bytes"] > 1 << 20
    assert told["models"]["there"][0]["name"] == "micro"


def test_settings_with_their_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_CONCURRENCY", "3")
    monkeypatch.setenv("WHISPER_ARTIFACT_URL", "https://user:secret@mirror.example/models")
    told = info.collect(probe=False)["settings"]
    assert set(told) == {f"WHISPER_{name.upper()}" for name in Settings.model_fields}
    assert told["WHISPER_CONCURRENCY"] == {"value": 3, "unit": "requests", "set": True}
    assert told["WHISPER_THREADS"]["set"] is False
    assert told["WHISPER_ARTIFACT_URL"]["value"] == "https://mirror.example/models"


def test_where_transcripts_are_cleaned_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert info.collect(parts=["enhancement"])["enhancement"]["base_url"] is None
    with chat_server(lambda call: call.send(b'{"models": []}')) as server:
        monkeypatch.setenv("WHISPER_LLM_BASE_URL", server.base_url.replace("//", "//user:secret@"))
        get_settings.cache_clear()
        assert "WHISPER_LLM_MODEL" in info.collect(parts=["enhancement"])["enhancement"]["error"]
        monkeypatch.setenv("WHISPER_LLM_MODEL", "gemma3")
        monkeypatch.setenv("WHISPER_LLM_API_KEY", "hush")
        get_settings.cache_clear()
        told = info.collect(parts=["enhancement", "settings"])
    assert told["enhancement"] == {"base_url": server.base_url, "model": "gemma3", "ollama_placement": "not loaded"}
    assert not re.search("hush|secret", json.dumps(told))


def test_where_results_are_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def told(place: str) -> dict[str, Any]:
        monkeypatch.setenv("WHISPER_CACHE", place)
        get_settings.cache_clear()
        return dict(info.collect(parts=["cache"])["cache"])

    assert set(told("off").values()) == {None}
    limits = {"max_bytes": 268_435_456, "max_age_seconds": 2_592_000, "used_by": "all"}
    assert told(str(tmp_path)) == {"place": str(tmp_path / "results"), "size_bytes": 0, **limits}
    (tmp_path / "results" / "ab").mkdir(parents=True)
    (tmp_path / "results" / "ab" / "abc").write_bytes(b"kept")
    assert told(str(tmp_path))["size_bytes"] == 4
    redis = {"place": "redis://127.0.0.1:1/0", "size_bytes": None, **limits, "max_bytes": None}
    assert told("redis://:hush@127.0.0.1:1/0") == redis


def test_where_a_server_keeps_results_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WHISPER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = info.collect(parts=["cache"])["cache"]
    place = tmp_path / "whisperlib" / "results"
    assert (told["place"], told["size_bytes"], told["used_by"]) == (str(place), 0, "servers")
    assert not place.exists()


def test_a_bad_setting_is_told_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_DEVICE", "abacus")
    told = info.collect()
    assert "WHISPER_DEVICE" in told["settings"]["error"]
    assert "WHISPER_DEVICE" in told["libraries"]["error"]
    assert told["libraries"]["found"]


def test_a_build_that_failed_its_self_test(monkeypatch: pytest.MonkeyPatch, library_dir: Path) -> None:
    found = [
        binding.Candidate(Path("/somewhere/cuda"), "own build", {"variant": "cuda"}),
        binding.Candidate(Path("/somewhere/bad"), "own build", {"variant": "cpu"}),
        binding.Candidate(library_dir, "own build"),
        binding.Candidate(Path("/somewhere/last"), "own build", {"variant": "cpu-portable"}),
    ]
    passed_over = ("/somewhere/bad: self-test failed: f16 died with SIGILL",)
    choice = variants.Choice(library_dir, "unknown", "own build", "cpu", passed_over)
    monkeypatch.setattr(binding, "candidates", lambda **_: found)
    monkeypatch.setattr(binding, "ask_driver", lambda: binding.CudaAvailability(False, None, 0, "no driver"))
    monkeypatch.setattr(variants, "choose", lambda *_arguments, **_keywords: choice)
    assert [build["standing"] for build in info.collect()["libraries"]["found"]] == [
        "not needed: no driver",
        "set aside: self-test failed: f16 died with SIGILL",
        "chosen: not self-tested, it has no build-info.json",
        "not needed: the chosen one comes first",
    ]


def test_without_a_probe_nothing_is_loaded(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_python(
        "from whisperlib import binding, info\n"
        "libraries = info.collect(probe=False)['libraries']\n"
        "print(bool(libraries['found']), libraries['chosen'], libraries['loaded'], binding.loaded())"
    )
    assert done.stdout == "True None None None\n"


def test_without_native_libraries(run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = run_python(
        "import json\nfrom whisperlib import info\nprint(json.dumps(info.collect()))",
        environment={"WHISPER_LIB_DIR": str(tmp_path)},
    )
    told = json.loads(done.stdout)
    assert str(tmp_path) in told["libraries"]["error"]
    assert (told["libraries"]["found"], told["libraries"]["loaded"]) == ([], None)
    assert told["cpu"]["usable_cores"] >= 1


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (V4, "x86-64-v4"),
        (V3, "x86-64-v3"),
        ([flag for flag in V4 if flag != "movbe"], "x86-64-v2"),
        (V2, "x86-64-v2"),
        (["lm"], "x86-64-v1"),
        (["asimd", "sve"], None),
    ],
)
def test_isa_level(flags: list[str], level: str | None) -> None:
    assert info.isa_level(tuple(flags)) == level


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"sys/fs/cgroup/memory.max": "1073741824\n"}, 1 << 30),
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648\n"}, 1 << 31),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({}, None),
    ],
)
def test_memory(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    for name, text in {**files, "proc/meminfo": "MemTotal:  16 kB\nMemFree: 1 kB\nMemAvailable:  8 kB\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    told = info.memory(tmp_path)
    assert (told["total_bytes"], told["available_bytes"]) == (16 * 1024, 8 * 1024)
    assert told["cgroup_limit_bytes"] == limit


def test_memory_where_the_system_tells_nothing(tmp_path: Path) -> None:
    assert info.memory(tmp_path)["total_bytes"] is None


def test_tells_which_encoder_the_default_model_runs_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_MODEL_SIZE", "micro")
    monkeypatch.setenv("WHISPER_ENCODER", "ggml")
    get_settings.cache_clear()
    told = info.collect(parts=["encoder"])["encoder"]
    assert (told["runs"], told["reason"]) == ("ggml", "asked for")
    assert told["model"].endswith("ggml-micro-f16.bin")
    monkeypatch.setenv("WHISPER_ENCODER", "auto")
    get_settings.cache_clear()
    told = info.collect(parts=["encoder"])["encoder"]
    assert told["runs"] == "ggml"
    assert told["reason"].startswith("ggml-micro-f16.bin has no OpenVINO encoder beside it: ")


class TestThreads:
    """Two cores, and a cache of measurements of the test's own."""

    @pytest.fixture
    def told(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library_dir: Path) -> Callable[..., dict[str, Any]]:
        binding.load(library_dir)
        monkeypatch.setattr(system, "cpu_allowance", lambda: system.CpuAllowance(2, None, 2, 2))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("WHISPER_MODEL_SIZE", "micro")

        def tell(**settings: object) -> dict[str, Any]:
            for name, value in settings.items():
                monkeypatch.setenv(f"WHISPER_{name.upper()}", str(value))
            get_settings.cache_clear()
            return dict(info.collect(parts=["threads"])["threads"])

        return tell

    def test_what_was_measured_is_told_from_then_on(self, told: Callable[..., dict[str, Any]]) -> None:
        before = told(measure_threads=True)
        assert (before["threads"], before["concurrency"]) == (None, None)
        assert before["reason"] == "not measured yet: that is done when the model is next loaded"
        with WhisperLibraryAdapter("micro", settings=get_settings()) as whisper:
            config = whisper.config
        after = told()
        assert (after["threads"], after["concurrency"]) == (config.threads, config.concurrency)
        assert after["reason"] == config.sharing_reason.replace("measured", "remembered")
        assert after["model"] == str(config.path)

    def test_what_is_set_is_told_with_its_variable(self, told: Callable[..., dict[str, Any]]) -> None:
        one = told(measure_threads=True, concurrency=2)
        assert (one["threads"], one["concurrency"], one["set_by"]) == (1, 2, ["WHISPER_CONCURRENCY"])
        assert one["reason"] == "concurrency set; 2 cores may be used"
        assert told(threads=3)["set_by"] == ["WHISPER_THREADS", "WHISPER_CONCURRENCY"]

    def test_without_a_measurement_the_cores_count(self, told: Callable[..., dict[str, Any]]) -> None:
        by_cores = told(measure_threads=False)
        assert (by_cores["threads"], by_cores["concurrency"]) == (2, 1)
        assert by_cores["reason"] == "2 cores may be used"

    def test_without_a_library_that_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binding, "loaded", lambda: None)
        assert "native libraries are loaded" in info.collect(parts=["threads"])["threads"]["error"]
