"""Decides which encoder runs, and says why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whisperlib.encoder import files
from whisperlib.errors import ModelError, ModelFileError

if TYPE_CHECKING:
    from whisperlib.encoder.engine import OpenVinoEncoder
    from whisperlib.encoder.files import Accelerated


@dataclass(frozen=True)
class Choice:
    """The encoder that runs: `name` is "ggml", or "openvino" with its `precision`; `reason` is for people.

    `computes_in` is what an int8 encoder does the rest in; else it is the precision. `refused`: OpenVINO's lies beside
    the model but cannot be used.
    """

    name: str
    reason: str
    precision: str | None = None
    computes_in: str = ""
    accelerated: Accelerated | None = None
    refused: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.precision}" if self.precision else self.name


def choose(model: Path, *, wanted: str, precision: str, device: str, takes_encoder: bool) -> Choice:
    """Choose for the model file `model`.

    `wanted` is "auto", "ggml" or "openvino", `precision` "auto", "bf16", "f32" or "int8" (`Settings`). "auto" takes
    OpenVINO's where it is installed, made and verified; asked for by name, whatever is missing raises ModelError.
    """
    if wanted == "ggml":
        return Choice("ggml", "asked for")
    try:
        return _openvino(model, precision, device, takes_encoder, asked=wanted == "openvino")
    except ModelError as error:
        if wanted == "openvino":
            raise
        return Choice("ggml", str(error), refused=isinstance(error, ModelFileError))


def _openvino(model: Path, precision: str, device: str, takes_encoder: bool, *, asked: bool) -> Choice:
    if device != "cpu":
        raise ModelError(f"the OpenVINO encoder runs on a CPU, and the model on {device}")
    if not takes_encoder:
        raise ModelError("these native libraries take no other encoder: run `make native`")
    files.require_openvino()
    accelerated = files.find(model, "int8" if precision == "int8" else "float")
    if precision in {"bf16", "f32"} and precision not in files.precisions():
        raise ModelError(f"this CPU does not compute in {precision}: give {' or '.join(files.precisions())}")
    compared = accelerated.relative_errors
    usable = [each for each in files.precisions() if each in compared and precision in {each, "auto", "int8"}]
    if not usable:
        raise ModelFileError(
            f"{accelerated.directory.name} was not compared with ggml's encoder in {precision}: run "
            f"`whisperlib models accelerate {model}` on this machine"
        )
    runs_in = usable[0]
    reason = "asked for" if asked else "made and verified"
    return Choice(
        "openvino",
        f"{reason}; it differs from ggml's encoder by {100 * compared[runs_in]:.1f} %",
        "int8" if precision == "int8" else runs_in,
        runs_in,
        accelerated,
    )


def load(accelerated: Accelerated, computes_in: str, threads: int, concurrency: int) -> OpenVinoEncoder:
    """Compile the chosen encoder for `concurrency` states of `threads` threads. Raises ModelFileError."""
    from whisperlib.encoder import engine  # noqa: PLC0415  (it imports the extra)

    return engine.OpenVinoEncoder(accelerated.graph, precision=computes_in, threads=threads, concurrency=concurrency)
