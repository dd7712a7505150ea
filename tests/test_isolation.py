"""A result depends on nothing but its own audio and options.

One test per trap of the native library. Each runs twice: on the naive way, where it must fail (a strict xfail
says so, and tells us when upstream mends it), and on the adapter.
"""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisperlib import CancelToken, Transcription, WhisperLibraryAdapter, assets, binding
from whisperlib.errors import DeadlineExceeded, OptionError, TranscriptionCancelled, WhisperlibError
from whisperlib.pcm import Samples

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

PLAIN: dict[str, Any] = {"language": "en", "vad": False}
SAMPLED: dict[str, Any] = {**PLAIN, "temperature": 0.8, "temperature_increment": 0.0, "beam_size": 1, "best_of": 2}


class Naive:
    """One state, used again and again: what most bindings do."""

    def __init__(self, library_dir: Path) -> None:
        self.context = binding.Context(binding.load(library_dir), assets.MICRO_MODEL)
        self.state = self.context.new_state()

    def transcribe(self, samples: Samples, **options: Any) -> Any:
        arguments = binding.FullArguments(
            n_threads=1,
            language=options["language"],
            audio_ctx=options.get("audio_ctx", 0),
            beam_size=options.get("beam_size", 5),
            best_of=options.get("best_of", 5),
            temperature=options.get("temperature", 0.0),
            temperature_inc=options.get("temperature_increment", 0.2),
        )
        self.state.full(arguments, samples)
        return self.state.segments()

    def detect_language(self, samples: Samples) -> Any:
        return self.state.detect_language(samples, 1)


class Ours:
    """The adapter."""

    def __init__(self, adapter: WhisperLibraryAdapter) -> None:
        self.adapter = adapter

    def transcribe(self, samples: Samples, **options: Any) -> Any:
        return self.adapter.transcribe(samples, **options)

    def detect_language(self, samples: Samples) -> Any:
        return self.adapter.detect_language(samples, vad=False)


NAIVE_FAILS = pytest.mark.xfail(strict=True, raises=AssertionError, reason="state of an earlier request leaks in")


@pytest.fixture(params=[pytest.param("naive", marks=NAIVE_FAILS), "adapter"])
def engine(request: pytest.FixtureRequest, adapter: WhisperLibraryAdapter) -> Iterator[Any]:
    if request.param == "adapter":
        yield Ours(adapter)
        return
    naive = Naive(adapter.config.library_directory)
    yield naive
    naive.context.close()


class TestTraps:
    def test_rows_of_another_audio_ctx_are_not_attended(self, engine: Any, sample: Callable[[str], Samples]) -> None:
        clip, other = sample("seen_020"), sample("rms_010")
        first = engine.transcribe(clip, **PLAIN, audio_ctx=256)
        engine.transcribe(other, **PLAIN)
        assert engine.transcribe(clip, **PLAIN, audio_ctx=256) == first

    def test_language_detection_does_not_use_the_last_audio_ctx(
        self, engine: Any, sample: Callable[[str], Samples]
    ) -> None:
        first = engine.detect_language(sample("german_001"))
        engine.transcribe(sample("seen_020"), **PLAIN, audio_ctx=256)
        assert engine.detect_language(sample("german_001")) == first

    def test_random_numbers_begin_anew(self, engine: Any, sample: Callable[[str], Samples]) -> None:
        first = engine.transcribe(sample("rms_010"), **SAMPLED)
        for _ in range(3):
            assert engine.transcribe(sample("rms_010"), **SAMPLED) == first

    def test_a_fallback_leaves_nothing_behind(self, engine: Any, sample: Callable[[str], Samples]) -> None:
        first = engine.transcribe(sample("seen_002"), **PLAIN)
        engine.transcribe(sample("ked_002"), **SAMPLED)
        assert engine.transcribe(sample("seen_002"), **PLAIN) == first


# What the library's own entry points do, through ctypes, in a process of their own.
RAW = """
import ctypes as c, sys
import numpy as np
from whisperlib import assets, audio
from whisperlib.binding import load, structs
library = load({directory!r}).c
library.whisper_init_from_file_with_params.restype = c.c_void_p
library.whisper_init_from_file_with_params.argtypes = [c.c_char_p, structs.ContextParams]
context_params = library.whisper_context_default_params()
model = str(assets.MICRO_MODEL).encode()
params = library.whisper_full_default_params(0)
params.n_threads, params.language = 1, b"en"
params.vad_model_path = str(assets.VAD_MODEL).encode()
pointer = c.POINTER(c.c_float)
library.whisper_full.argtypes = [c.c_void_p, structs.FullParams, pointer, c.c_int]
library.whisper_full_parallel.argtypes = [c.c_void_p, structs.FullParams, pointer, c.c_int, c.c_int]
for name in ("n_segments", "get_segment_text", "get_segment_t0"):
    getattr(library, "whisper_full_" + name).argtypes = [c.c_void_p] + [c.c_int] * (name != "n_segments")
library.whisper_full_get_segment_text.restype = c.c_char_p
library.whisper_full_get_segment_t0.restype = c.c_int64
clip = np.concatenate([np.zeros(5 * 16000, np.float32), audio.load(assets.SAMPLES / "seen_020.flac")])
silence = np.zeros(5 * 16000, np.float32)
def full(context, samples):
    assert library.whisper_full(context, params, samples.ctypes.data_as(pointer), len(samples)) == 0
def parallel(context, samples):
    assert library.whisper_full_parallel(context, params, samples.ctypes.data_as(pointer), len(samples), 2) == 0
def text(context):
    n = library.whisper_full_n_segments(context)
    return b"".join(library.whisper_full_get_segment_text(context, i) for i in range(n)).decode().strip()
"""


class TestTheLibrarysOwnEntryPoints:
    @pytest.fixture
    def raw(self, run_python: RunPython, adapter: WhisperLibraryAdapter) -> Callable[[str], Any]:
        return lambda code: run_python(RAW.format(directory=str(adapter.config.library_directory)) + code)

    def test_vad_without_a_state_of_its_own_ends_the_naive_process(self, raw: Callable[[str], Any]) -> None:
        child = raw(
            """
library.whisper_init_from_file_with_params_no_state.argtypes = [c.c_char_p, structs.ContextParams]
context = library.whisper_init_from_file_with_params_no_state(model, context_params)
params.vad = True
full(context, clip)
"""
        )
        assert child.returncode < 0

    def test_vad_is_a_stage_of_the_adapters_own(
        self, adapter: WhisperLibraryAdapter, sample: Callable[[str], Samples]
    ) -> None:
        assert adapter.transcribe(sample("seen_020"), vad=True).text == "Call the doctor on Thursday."

    def test_times_after_a_request_with_vad_are_wrong_on_the_naive_way(self, raw: Callable[[str], Any]) -> None:
        child = raw(
            """
context = library.whisper_init_from_file_with_params(model, context_params)
full(context, clip)
before = library.whisper_full_get_segment_t0(context, 0)
params.vad = True
full(context, np.concatenate([clip, clip]))
params.vad = False
full(context, clip)
print(before, library.whisper_full_get_segment_t0(context, 0))
"""
        )
        before, after = child.stdout.split()
        assert before != after

    def test_times_after_a_request_with_vad_are_right(
        self, adapter: WhisperLibraryAdapter, sample: Callable[[str], Samples]
    ) -> None:
        clip = np.concatenate([np.zeros(5 * 16_000, np.float32), sample("seen_020")])
        before = adapter.transcribe(clip, **PLAIN)
        adapter.transcribe(np.concatenate([clip, clip]), vad=True)
        assert adapter.transcribe(clip, **PLAIN) == before

    def test_silence_gives_the_last_callers_text_on_the_naive_way(self, raw: Callable[[str], Any]) -> None:
        child = raw(
            """
context = library.whisper_init_from_file_with_params(model, context_params)
full(context, clip)
assert text(context) == "Call the doctor on Thursday.", text(context)
params.vad = True
parallel(context, silence)
print(text(context))
"""
        )
        assert child.stdout.strip() == "Call the doctor on Thursday."

    @pytest.mark.parametrize("vad", [True, False])
    def test_silence_gives_nothing(
        self, adapter: WhisperLibraryAdapter, sample: Callable[[str], Samples], silence: Samples, vad: bool
    ) -> None:
        adapter.transcribe(sample("seen_020"))
        for quiet in (silence, silence[:1000]):
            assert adapter.transcribe(quiet, vad=vad, language="en").text == ""


def _vad(adapter: WhisperLibraryAdapter, clip: Samples) -> None:
    adapter.transcribe(np.concatenate([clip, np.zeros(80_000, np.float32), clip]), vad=True, word_timestamps=True)


def _another_audio_ctx(adapter: WhisperLibraryAdapter, clip: Samples) -> None:
    adapter.transcribe(clip, **PLAIN, audio_ctx=512)


def _cancelled(adapter: WhisperLibraryAdapter, clip: Samples) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(TranscriptionCancelled):
        adapter.transcribe(clip, cancel=token)


def _cancelled_midway(adapter: WhisperLibraryAdapter, clip: Samples) -> None:
    token = CancelToken()
    with pytest.raises(TranscriptionCancelled):
        adapter.transcribe(clip, **PLAIN, cancel=token, progress=lambda _: token.cancel())


def _late(adapter: WhisperLibraryAdapter, clip: Samples) -> None:
    with pytest.raises(DeadlineExceeded):
        adapter.transcribe(clip, timeout_seconds=1e-4)


def _failed(adapter: WhisperLibraryAdapter, clip: Samples) -> None:
    with pytest.raises(OptionError, match="audio_ctx"):
        adapter.transcribe(np.tile(clip, 10), **PLAIN, audio_ctx=256)


def _failed_in_a_callback(adapter: WhisperLibraryAdapter, clip: Samples) -> None:
    def fail(_: float) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        adapter.transcribe(clip, **PLAIN, progress=fail)


def _fell_back(adapter: WhisperLibraryAdapter, clip: Samples) -> None:
    # A log probability that nothing reaches: every temperature up to 1 is tried.
    result = adapter.transcribe(clip, **PLAIN, logprob_threshold=0.0, no_speech_threshold=1.0)
    assert result.segments[0].temperature == 1.0


def _silent(adapter: WhisperLibraryAdapter, clip: Samples) -> None:
    adapter.transcribe(np.zeros_like(clip), **PLAIN)


def _prompted(adapter: WhisperLibraryAdapter, clip: Samples) -> None:
    adapter.transcribe(clip, **PLAIN, initial_prompt="Call the garden.", carry_initial_prompt=True)


def _translated(adapter: WhisperLibraryAdapter, clip: Samples) -> None:
    adapter.transcribe(clip, language="de", task="translate")


DISTURBANCES = [
    _vad,
    _another_audio_ctx,
    _cancelled,
    _cancelled_midway,
    _late,
    _failed,
    _failed_in_a_callback,
    _fell_back,
    _silent,
    _prompted,
    _translated,
]
PROBES: list[dict[str, Any]] = [
    PLAIN,
    {"word_timestamps": True},
    {**PLAIN, "audio_ctx": 256},
    SAMPLED,
]


@pytest.fixture(scope="module")
def alone(adapter: WhisperLibraryAdapter, sample: Callable[[str], Samples]) -> list[Any]:
    """What every probe gives by itself."""
    return [_frozen(adapter.transcribe(sample("seen_020"), **probe)) for probe in PROBES]


@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda function: function.__name__.strip("_"))
def test_nothing_is_left_after(
    adapter: WhisperLibraryAdapter,
    sample: Callable[[str], Samples],
    alone: list[Any],
    disturb: Callable[..., None],
) -> None:
    disturb(adapter, sample("seen_002"))
    assert [_frozen(adapter.transcribe(sample("seen_020"), **probe)) for probe in PROBES] == alone


def test_nothing_leaks_from_beside(adapter: WhisperLibraryAdapter, sample: Callable[[str], Samples]) -> None:
    """Every kind of request beside every other, and each result is what it is alone."""
    names = ("seen_002", "german_001", "telephone_005")
    alone = {(name, i): _frozen(adapter.transcribe(sample(name), **p)) for name in names for i, p in enumerate(PROBES)}
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            for disturbance in DISTURBANCES:
                disturbance(adapter, sample("rms_002"))

    noise = threading.Thread(target=disturb)
    noise.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            beside = {key: pool.submit(adapter.transcribe, sample(key[0]), **PROBES[key[1]]) for key in alone}
            assert {key: _frozen(future.result()) for key, future in beside.items()} == alone
    finally:
        stop.set()
        noise.join()


# A double of a machine without memory: once armed, it refuses the size that the decoders' cache needs.
STINGY_ALLOCATOR = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
int armed;
int posix_memalign(void ** out, size_t alignment, size_t size) {
    static int (*real)(void **, size_t, size_t);
    if (!real) real = (int (*)(void **, size_t, size_t)) dlsym(RTLD_NEXT, "posix_memalign");
    return armed && size > 3000000 ? ENOMEM : real(out, alignment, size);
}
"""


FAILED_ALLOCATION = """
import ctypes, sys
from whisperlib import WhisperLibraryAdapter, assets, binding
from whisperlib.errors import OutOfMemoryError
sampled = {"temperature": 0.8, "temperature_increment": 0.0, "best_of": 8, "beam_size": 1}
sampled |= {"language": "en", "vad": False}
clip = assets.SAMPLES / "seen_020.flac"
armed = ctypes.c_int.in_dll(ctypes.CDLL(None), "armed")
with WhisperLibraryAdapter("micro", threads=1, concurrency=1) as whisper:
    before = whisper.transcribe(clip, **sampled)
    def starve(_):
        armed.value = 1
    try:
        whisper.transcribe(clip, **sampled, progress=starve)
    except OutOfMemoryError as error:
        print("out of memory", error.code)
    armed.value = 0
    print(whisper.transcribe(clip, **sampled).segments == before.segments)
"""


@pytest.fixture
def starved(run_python: RunPython, tmp_path: Path) -> Callable[[str], Any]:
    """Run code in a process whose memory can be made to end."""
    (tmp_path / "stingy.c").write_text(STINGY_ALLOCATOR, encoding="utf-8")
    library = tmp_path / "stingy.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c", str(tmp_path / "stingy.c"), "-o", str(library)], check=True)
    return lambda code: run_python(code, environment={"LD_PRELOAD": str(library)})


def test_an_allocation_that_fails_costs_one_request(starved: Callable[[str], Any]) -> None:
    """whisper_full frees the state itself when the decoders' cache cannot be had: it must not be freed again."""
    child = starved(FAILED_ALLOCATION)
    assert (child.returncode, child.stdout.splitlines()) == (0, ["out of memory -7", "True"]), child.stderr


def test_an_allocation_that_fails_ends_the_naive_process(starved: Callable[[str], Any]) -> None:
    child = starved(FAILED_ALLOCATION.replace("sampled = ", "binding.State._disown = lambda self: None\nsampled = ", 1))
    assert child.returncode < 0


def _frozen(result: Transcription) -> tuple[Any, ...]:
    """Everything in a result but the clock."""
    return tuple(getattr(result, field.name) for field in dataclasses.fields(result) if field.name != "timings")


def test_errors_are_ours(adapter: WhisperLibraryAdapter, sample: Callable[[str], Samples]) -> None:
    with pytest.raises(WhisperlibError):
        adapter.transcribe(sample("seen_020"), beam_size=9)


# Real memory that really ends: whisper.cpp copies the samples, and the limit leaves no room for that.
THROWN_EXCEPTION = """
import resource
import numpy as np
from whisperlib import assets, audio, binding, variants
from whisperlib.errors import OutOfMemoryError
english = binding.FullArguments(n_threads=1, language="en")
clip = audio.load(assets.SAMPLES / "seen_020.flac")
hour = np.zeros(3600 * 16_000, np.float32)
UNGUARDED
with binding.Context(binding.load(variants.choose("cpu").directory), assets.MICRO_MODEL) as context:
    with context.new_state() as state:
        in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 50_000_000, unlimited[1]))
        try:
            state.full(english, hour)
        except OutOfMemoryError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
    with context.new_state() as state:
        state.full(english, clip)
        print(b"".join(segment.text for segment in state.segments()).decode().strip())
"""


def test_an_exception_of_the_library_costs_one_request(run_python: RunPython) -> None:
    child = run_python(THROWN_EXCEPTION.replace("UNGUARDED", ""))
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines() == [
        "whisper_full failed with -100: memory ended (whisper_full: std::bad_alloc)",
        assets.sample_text("seen_020.flac"),
    ]


def test_an_exception_of_the_library_ends_the_naive_process(run_python: RunPython) -> None:
    child = run_python(THROWN_EXCEPTION.replace("UNGUARDED", "binding.library.prototypes.guard = lambda *_: None"))
    assert child.returncode == -signal.SIGABRT
    assert "std::bad_alloc" in child.stderr
