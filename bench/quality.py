"""What a type or a precision costs in accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench import clips, models
from bench.engines.programs import LIBRARIES
from whisperlib import assets, audio, binding, encoder, variants
from whisperlib.encoder import files

WINDOW_SECONDS = 30


def encoder_errors(model: Path, threads: int) -> dict[str, float]:
    """Return how far OpenVINO's encoder is from itself in float32, on real speech, by the precisions that this CPU has.

    ‖x − f32‖ / ‖f32‖ of the cross-attention's keys or values, whichever is larger. Raises ModelError where an encoder
    cannot be made.
    """
    library = binding.load(variants.choose("cpu").directory)
    samples = audio.load(clips.clip(WINDOW_SECONDS))
    with binding.Context(library, model) as context:

        def encoded(kind: str, computes_in: str) -> binding.CrossAttention:
            models.accelerate(model, kind)
            context.use_encoder(encoder.load(encoder.find(model, kind), computes_in, threads, 1))
            with context.new_state() as state:
                return state.encode(samples, threads)

        exact = encoded("float", "f32")
        tried = {each: ("float", each) for each in files.precisions() if each != "f32"}
        tried["int8"] = ("int8", files.precisions()[0])
        return {name: _distance(encoded(*how), exact) for name, how in tried.items()}


def word_error_rate(kind: str) -> float:
    """Return the word error rate, 0 to 1 and above, of the micro model in a weight type on the bundled samples.

    With whisper-cli as it comes. Raises ImportError without jiwer, ValueError for a type that the model cannot have.
    """
    from tools.micro_model import evaluate  # noqa: PLC0415 - an extra

    recordings = evaluate.read_recordings(assets.SAMPLES / "refs.json")
    found = evaluate.score(models.ggml("micro", kind), assets.SAMPLES, recordings, LIBRARIES / "whisper-cli")
    return float(found.error_rate or 0.0)


def _distance(got: binding.CrossAttention, exact: binding.CrossAttention) -> float:
    return max(_relative(got.keys, exact.keys), _relative(got.values, exact.values))


def _relative(got: npt.NDArray[np.float16], exact: npt.NDArray[np.float16]) -> float:
    reference = exact.astype(np.float32)
    return float(np.linalg.norm(got.astype(np.float32) - reference) / np.linalg.norm(reference))
