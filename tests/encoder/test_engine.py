"""The graph as OpenVINO runs it, against ggml's encoder, in a state of whisper.cpp."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from whisperlib import assets, encoder, models
from whisperlib.binding import Context, CrossAttention, EncoderWindow, FullArguments, Library
from whisperlib.encoder import files
from whisperlib.encoder.engine import OpenVinoEncoder
from whisperlib.errors import EngineError, ModelFileError
from whisperlib.pcm import Samples


@pytest.fixture
def context(library: Library, accelerated_model: Path) -> Iterator[Context]:
    with Context(library, accelerated_model) as handle:
        yield handle


@pytest.fixture(scope="module")
def engine(accelerated_model: Path) -> OpenVinoEncoder:
    return OpenVinoEncoder(encoder.find(accelerated_model).graph, precision="f32", threads=1, concurrency=2)


def text(context: Context, samples: Samples, audio_ctx: int = 0) -> str:
    with context.new_state() as state:
        state.full(FullArguments(n_threads=1, language="en", audio_ctx=audio_ctx), samples)
        return b"".join(segment.text for segment in state.segments()).decode().strip()


def distance(got: CrossAttention, expected: CrossAttention) -> float:
    pairs = ((got.keys, expected.keys), (got.values, expected.values))
    return max(
        float(np.linalg.norm(a.astype("f4") - b.astype("f4")) / np.linalg.norm(b.astype("f4"))) for a, b in pairs
    )


@pytest.mark.parametrize("name", ["seen_020", "german_001", "silence_white5_0001"])
def test_gives_what_ggml_gives(
    context: Context, engine: OpenVinoEncoder, sample: Callable[[str], Samples], name: str
) -> None:
    with context.new_state() as state:
        expected = state.encode(sample(name), 1)
    context.use_encoder(engine)
    with context.new_state() as state:
        got = state.encode(sample(name), 1)
    assert 0.0 < distance(got, expected) < 0.01  # ggml's gelu is an approximation


@pytest.mark.parametrize("audio_ctx", [256, 512, 768, 0])
def test_any_length_of_the_window_gives_ggmls_text(
    context: Context, engine: OpenVinoEncoder, sample: Callable[[str], Samples], audio_ctx: int
) -> None:
    clip = sample("seen_020")
    expected = text(context, clip, audio_ctx)
    context.use_encoder(engine)
    assert text(context, clip, audio_ctx) == expected != ""


def test_bf16_differs_by_rounding_only(accelerated_model: Path) -> None:
    errors = encoder.find(accelerated_model).relative_errors
    assert errors["f32"] < 0.01
    assert all(error < 0.03 for error in errors.values())


def test_more_states_than_requests_wait_for_one(
    context: Context, engine: OpenVinoEncoder, sample: Callable[[str], Samples]
) -> None:
    names = ["seen_020", "seen_010", "seen_002", "ked_002", "rms_002"]
    alone = [text(context, sample(name)) for name in names]
    context.use_encoder(engine)
    together: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda name=name: together.__setitem__(name, text(context, sample(name))))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[name] for name in names] == alone


def test_it_is_compiled_anew_for_other_numbers_only(
    context: Context, accelerated_model: Path, sample: Callable[[str], Samples]
) -> None:
    engine = OpenVinoEncoder(encoder.find(accelerated_model).graph, precision="f32", threads=1, concurrency=2)
    context.use_encoder(engine)
    expected = text(context, sample("seen_020"))
    first = engine._idle
    engine.share(1, 2)
    assert engine._idle is first
    engine.share(2, 1)
    assert (engine._idle.qsize(), engine._idle is first) == (1, False)
    assert text(context, sample("seen_020")) == expected != ""


def test_a_decoder_with_8_bit_weights_goes_on_after_it(
    library: Library, sample: Callable[[str], Samples], tmp_path: Path
) -> None:
    """Both use AMX where the CPU has it, and each releases the tiles that the other has configured in its thread."""
    model = tmp_path / "ggml-micro-q8_0.bin"
    models.quantize(assets.MICRO_MODEL, model, "q8_0")
    graph = encoder.accelerate(model, library).graph
    seen = sample("seen_020")
    with Context(library, model) as handle:
        expected = text(handle, seen)
        handle.use_encoder(OpenVinoEncoder(graph, precision=files.precisions()[0], threads=1))
        assert [text(handle, seen) for _ in range(2)] == [expected] * 2


def test_what_openvino_refuses_is_an_engine_error_and_loses_nothing(engine: OpenVinoEncoder) -> None:
    wrong = CrossAttention(np.zeros((3, 10, 128), np.float16), np.zeros((3, 128, 10), np.float16))
    for _ in range(3):  # more often than there are requests: none is lost
        with pytest.raises(EngineError, match="the OpenVINO encoder failed: "):
            engine(EncoderWindow(np.zeros((81, 3000), np.float32), wrong, 1))


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    xml = tmp_path / "encoder.xml"
    xml.write_text("<net/>")
    with pytest.raises(ModelFileError, match=r"encoder\.xml cannot be used: .*; make it anew"):
        OpenVinoEncoder(xml, precision="f32", threads=1)
