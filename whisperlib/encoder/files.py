"""The encoder's files beside the model: made once from it, checked against ggml's encoder, found again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whisperlib import assets, audio, system
from whisperlib.binding import Context, CrossAttention, EncoderWindow, Library
from whisperlib.errors import ModelError, ModelFileError, ModelNotFoundError
from whisperlib.models.disk import disk_errors, exclusive
from whisperlib.pcm import SAMPLE_RATE, Samples

logger = logging.getLogger(__name__)

FORMAT = 2  # of the files: raised when graph.py makes another graph
KINDS = ("float", "int8")
GRAPH, ABOUT = "encoder.xml", "about.json"
# ggml itself is off by about this much in its 5-bit types; the sound ones stay well below.
MAX_RELATIVE_ERROR = 0.08
MAX_INT8_RELATIVE_ERROR = 0.2
WINDOW_SECONDS = 30
SAMPLE = "long_slt75.flac"
CALIBRATION_SAMPLES = ("long_slt75.flac", "ked_020.flac", "rms_010.flac", "german_001.flac", "spanish_003.flac")
PROBED_BLOCKS, BLOCK_BYTES = 64, 4096
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Accelerated:
    """An encoder that was made for a model.

    `relative_errors` maps each precision that it was tried in to its distance from ggml's encoder:
    ‖ours − ggml's‖ / ‖ggml's‖ over all keys and values of a bundled sample.
    """

    directory: Path
    kind: str
    format: int
    model: str
    relative_errors: dict[str, float]

    @property
    def graph(self) -> Path:
        """The file that OpenVINO reads."""
        return self.directory / GRAPH


def directory_of(model: Path, kind: str) -> Path:
    """Return where the encoder of this model lies: `ggml-small-q5_1-encoder-float`, beside it."""
    return model.with_name(f"{model.stem}-encoder-{kind}")


def find(model: Path, kind: str = "float") -> Accelerated:
    """Return the encoder that lies beside `model`.

    Raises ModelNotFoundError where there is none, ModelFileError where it is damaged or of another model file.
    """
    directory = directory_of(model, kind)
    remedy = f"run `whisperlib models accelerate {model}{' --int8' if kind == 'int8' else ''}`"
    try:
        found = Accelerated(directory=directory, **json.loads((directory / ABOUT).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ModelNotFoundError(f"{model.name} has no OpenVINO encoder beside it: {remedy}") from None
    except (OSError, ValueError, TypeError) as error:
        raise ModelFileError(f"{directory / ABOUT} cannot be read: {error}; {remedy}") from None
    if not isinstance(found.relative_errors, dict):
        raise ModelFileError(f"{directory / ABOUT}: relative_errors is no table of errors; {remedy}")
    missing = [path.name for path in (found.graph, found.graph.with_suffix(".bin")) if not path.is_file()]
    if missing:
        raise ModelFileError(f"{directory} lacks {' and '.join(missing)}: {remedy}")
    if found.format != FORMAT or found.kind != kind:
        raise ModelFileError(f"{directory} was made by another version of whisperlib: {remedy}")
    if found.model != fingerprint(model):
        raise ModelFileError(f"{directory} was made from another file than {model.name}: {remedy}")
    return found


def accelerate(model: Path, library: Library, kind: str = "float", report: Report = logger.info) -> Accelerated:
    """Make the encoder of `model`, a ggml file, and put it beside it, whole or not at all; replaces an older one.

    It is compared with ggml's encoder in every precision that this CPU runs. `report` is told of each step. Takes
    seconds for small. Raises ModelError where the extra is missing, ModelFileError where the model cannot be used or
    the two differ by more than rounding, DownloadError where nothing can be written.
    """
    require_openvino()
    target = directory_of(model, kind)
    with exclusive(target), disk_errors(target):
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            made = _make(model, library, kind, scratch, report)
            (scratch / ABOUT).write_text(json.dumps(_about(made), indent=2) + "\n", encoding="utf-8")
            scratch.chmod(0o755)  # mkdtemp's is for its owner alone
            shutil.rmtree(target, ignore_errors=True)
            scratch.replace(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return find(model, kind)


def require_openvino() -> None:
    """Raise ModelError where what makes and runs the encoder is not installed."""
    missing = [name for name in ("openvino", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(f"{' and '.join(missing)} not installed: pip install 'whisperlib[openvino]'")


def precisions() -> tuple[str, ...]:
    """Return the precisions that this CPU computes in, the fastest first."""
    return ("bf16", "f32") if BF16_FLAGS & set(system.cpu_flags()) else ("f32",)


def fingerprint(model: Path) -> str:
    """Tell this model file from another in milliseconds: its size, and a hash of blocks from all over it."""
    size = model.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with model.open("rb") as file:
        for block in range(PROBED_BLOCKS):
            file.seek(max(0, size - BLOCK_BYTES) * block // (PROBED_BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def _about(made: Accelerated) -> dict[str, object]:
    return {name: value for name, value in asdict(made).items() if name != "directory"}


def _make(model: Path, library: Library, kind: str, scratch: Path, report: Report) -> Accelerated:
    from whisperlib.encoder import graph, int8, weights  # noqa: PLC0415  (they import the extra)

    report(f"reading {model.name}")
    graph_model = graph.build(weights.read(model))
    with Context(library, model) as context:
        report("running ggml's encoder to compare with")
        with context.new_state() as state:
            expected = state.encode(_speech(SAMPLE), system.cpu_allowance().cores)
        if kind == "int8":
            report("quantising to int8")
            graph_model = int8.quantize(graph_model, _mels(context))
        report("writing")
        graph.save(graph_model, scratch / GRAPH)
        errors = {}
        for precision in precisions():
            report(f"comparing in {precision}")
            errors[precision] = _relative_error(context, scratch / GRAPH, precision, expected)
    allowed = MAX_INT8_RELATIVE_ERROR if kind == "int8" else MAX_RELATIVE_ERROR
    if max(errors.values()) > allowed:
        raise ModelFileError(
            f"the encoder made from {model.name} differs from ggml's by {max(errors.values()):.3f}, more than "
            f"{allowed:g}: it is not used; is the model file sound (`whisperlib models verify`)?"
        )
    return Accelerated(scratch, kind, FORMAT, fingerprint(model), errors)


def _relative_error(context: Context, xml: Path, precision: str, expected: CrossAttention) -> float:
    from whisperlib.encoder.engine import OpenVinoEncoder  # noqa: PLC0415  (it imports the extra)

    threads = system.cpu_allowance().cores
    context.use_encoder(OpenVinoEncoder(xml, precision=precision, threads=threads))
    with context.new_state() as state:
        got = state.encode(_speech(SAMPLE), threads)
    return max(_distance(got.keys, expected.keys), _distance(got.values, expected.values))


def _distance(got: npt.NDArray[np.float16], expected: npt.NDArray[np.float16]) -> float:
    reference = expected.astype(np.float32)
    distance = float(np.linalg.norm(got.astype(np.float32) - reference) / np.linalg.norm(reference))
    return distance if np.isfinite(distance) else float("inf")


def _mels(context: Context) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the log-mel windows of speech that int8 is calibrated on, as whisper.cpp computes them."""
    captured: list[npt.NDArray[np.float32]] = []

    def capture(window: EncoderWindow) -> None:
        captured.append(window.mel.copy())

    context.use_encoder(capture)
    for name in CALIBRATION_SAMPLES:
        with context.new_state() as state:
            state.encode(_speech(name), 1)
        yield captured.pop()


def _speech(name: str) -> Samples:
    return audio.load(assets.SAMPLES / name)[: WINDOW_SECONDS * SAMPLE_RATE]
