"""From a name, a directory or a path to a checked model file, and how a missing one comes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whisperlib.errors import LibraryNotFoundError, ModelError, ModelFileError, ModelNotFoundError, OptionError
from whisperlib.models.catalogue import CATALOGUE, Artifact, Catalogue, Model
from whisperlib.models.disk import Progress, disk_errors, exclusive, sha256_of
from whisperlib.models.header import Header, check_header
from whisperlib.models.quantizer import PROGRAM, find_quantizer, quantize
from whisperlib.settings import QUANTIZATIONS, Settings, get_settings

logger = logging.getLogger(__name__)

# What `auto` takes, best first. q8_0 is the fastest on a CPU of those that lose nothing measurable; those with
# four bits lose some, and are taken by name only.
BEST = {"cpu": ("q8_0", "q5_1", "q5_0", "f16"), "cuda": ("f16", "q8_0", "q5_1", "q5_0")}


@dataclass(frozen=True)
class ModelFile:
    """A checked model file: what it is called, its weight type ("q5_1") as its header has it, size in bytes."""

    name: str
    path: Path
    quantization: str
    size: int
    header: Header


@dataclass(frozen=True)
class Shelf:
    """What is there of a named model. `damaged` says of each file that cannot be used why."""

    model: Model
    directory: Path
    files: tuple[ModelFile, ...]
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class Verified:
    """A file that `verify` found sound: against its pinned SHA-256, or, made here, by its header alone."""

    file: ModelFile
    pinned: bool


def resolve(
    model: str | os.PathLike[str] | None = None,
    *,
    quantization: str | None = None,
    device: str = "cpu",
    download: bool = False,
    progress: Progress | None = None,
    settings: Settings | None = None,
    catalogue: Catalogue = CATALOGUE,
) -> ModelFile:
    """Return the checked file of a model: a name, a model file, or a directory of model files.

    A name's files are looked for in its directory below `WHISPER_MODEL_ROOT`. `quantization` is a weight type, or
    `auto`: on `cuda` f16 first, on `cpu` q8_0, q5_1, q5_0, f16; others are taken by name only. Left out, `model`
    and `quantization` are as the settings say. With `download`, what is missing of a name is fetched, as `fetch`
    does; without, nothing is ever fetched. Other types of the embedded model are made when they are asked for.

    Raises ModelNotFoundError, which names the path and the remedy, ModelFileError for a damaged file, OptionError
    for an unknown weight type or one that the given file does not have.
    """
    settings = settings or get_settings()
    wanted = _weight_type(quantization, settings)
    asked = settings.model_size if model is None else model
    if not isinstance(asked, str) or asked not in catalogue:
        return _from_path(asked, wanted, device, catalogue)
    known = catalogue[asked]
    if known.embedded and wanted == "auto":
        wanted = "f16"  # always there: what was made of it is taken by name
    choice = "" if wanted == "auto" else f" --compute-type {wanted}"
    try:
        return _best(
            _places(known, settings),
            wanted,
            device,
            f"run `whisperlib models download {asked}{choice}`, or set WHISPER_MODEL_ROOT",
            asked,
        )
    except ModelNotFoundError:
        if not (download or known.embedded):
            raise
    return fetch(asked, quantization=wanted, device=device, progress=progress, settings=settings, catalogue=catalogue)


def fetch(
    name: str,
    *,
    quantization: str | None = None,
    device: str = "cpu",
    quantizer: Path | None = None,
    progress: Progress | None = None,
    settings: Settings | None = None,
    catalogue: Catalogue = CATALOGUE,
) -> ModelFile:
    """Download the file of a named model, or make it from the f16 file where its weight type is not published.

    `auto` is f16 for `cuda` and the model's preferred type for a CPU; where that would have to be made and no
    `whisper-quantize` runs, its fallback comes in its place, and the log says so. A file that is there is checked
    and returned. `quantizer` is the program to run in place of the one that is found.

    Raises ModelNotFoundError, DownloadError, ModelFileError, and LibraryNotFoundError where a type asked for by
    name cannot be made here.
    """
    settings = settings or get_settings()
    model = _known(name, catalogue)
    wanted = _weight_type(quantization, settings)
    supplier = _Supplier(model, settings, progress)
    if wanted != "auto":
        return supplier.get(wanted, quantizer)
    try:
        return supplier.get("f16" if device == "cuda" else model.preferred, quantizer)
    except LibraryNotFoundError as error:
        if not model.fallback:
            raise
        logger.warning("%s; taking the published %s", error, model.fallback)
    return supplier.get(model.fallback, quantizer)


def list_models(settings: Settings | None = None, catalogue: Catalogue = CATALOGUE) -> tuple[Shelf, ...]:
    """Tell of every named model which files are there."""
    settings = settings or get_settings()
    shelves = []
    for model in catalogue.values():
        places = _places(model, settings)
        files, damaged = _scan(places, model.name)
        shelves.append(Shelf(model, places[0], tuple(files), tuple(str(error) for error in damaged)))
    return tuple(shelves)


def verify(name: str, settings: Settings | None = None, catalogue: Catalogue = CATALOGUE) -> tuple[Verified, ...]:
    """Check every file of a named model again, published ones by their SHA-256: seconds for a gigabyte.

    Raises ModelFileError for the first that is not right, ModelNotFoundError where there is none.
    """
    settings = settings or get_settings()
    model = _known(name, catalogue)
    places = _places(model, settings)
    files, damaged = _scan(places, name)
    if damaged:
        raise damaged[0]
    if not files:
        raise ModelNotFoundError(f"no model file in {places[0]}: run `whisperlib models download {name}`")
    pins = {artifact.file_name: artifact for artifact in model.artifacts}
    return tuple(Verified(file, _is_pinned(file, pins.get(file.path.name))) for file in files)


def _is_pinned(file: ModelFile, artifact: Artifact | None) -> bool:
    if artifact is None:
        return False
    try:
        found = sha256_of(file.path)
    except OSError as error:
        raise ModelFileError(f"{file.path} cannot be read: {error.strerror or error}") from None
    if found != artifact.sha256:
        raise ModelFileError(
            f"{file.path} has the SHA-256 {found}, not {artifact.sha256}: delete it and run "
            f"`whisperlib models download {file.name}`"
        )
    return True


class _Supplier:
    """Gets files of one model into its directory."""

    def __init__(self, model: Model, settings: Settings, progress: Progress | None) -> None:
        self._model = model
        self._settings = settings
        self._progress = progress
        self._directory = settings.model_root / model.directory

    def get(self, quantization: str, quantizer: Path | None) -> ModelFile:
        target = self._directory / self._model.file_name(quantization)
        if self._model.embedded and quantization == "f16":
            target = self._model.embedded
        with disk_errors(target):
            there = target.exists()
        if not there:
            if artifact := self._model.artifact(quantization):
                self._download(artifact, target)
            else:
                self._make(target, quantization, quantizer)
        return _open(target, self._model.name)

    def _download(self, artifact: Artifact, target: Path) -> None:
        # Its HTTP client takes long to import, and most processes find their model.
        from whisperlib.models.transfer import transfer  # noqa: PLC0415

        transfer(
            f"{self._settings.artifact_url}/{artifact.file_name}",
            target,
            size=artifact.size,
            sha256=artifact.sha256,
            timeout_seconds=self._settings.download_timeout_seconds,
            retries=self._settings.download_retries,
            progress=self._progress,
        )

    def _make(self, target: Path, quantization: str, quantizer: Path | None) -> None:
        name = self._model.name
        published = self._model.artifact("f16")
        source = self._model.embedded or self._directory / self._model.file_name("f16")
        if not (published or source.exists()):
            there = ", ".join(artifact.quantization for artifact in self._model.artifacts)
            raise ModelNotFoundError(f"{name} is not published in {quantization}: set WHISPER_QUANTIZATION to {there}")
        # Before the download: f16 is large.
        program = quantizer or find_quantizer(self._settings.lib_dir)
        if program is None:
            raise LibraryNotFoundError(
                f"{name} is not published in {quantization}, and no {PROGRAM} runs to make it: run `make native`, "
                "or set WHISPER_LIB_DIR"
            )
        with exclusive(target):
            if target.exists():
                return
            borrowed = target.with_name(f".{target.name}.source")
            if published and not source.exists():
                self._download(published, borrowed)
                source = borrowed
            logger.info("making %s from %s", target, source)
            quantize(source, target, quantization, program)
            borrowed.unlink(missing_ok=True)


def _weight_type(quantization: str | None, settings: Settings) -> str:
    wanted = quantization or settings.quantization
    if wanted not in QUANTIZATIONS:
        raise OptionError(f"quantization = {wanted!r}: give {', '.join(QUANTIZATIONS)}")
    return wanted


def _known(name: str, catalogue: Catalogue) -> Model:
    if name not in catalogue:
        raise ModelNotFoundError(f"no model is called {name!r}: the names are {', '.join(catalogue)}")
    return catalogue[name]


def _places(model: Model, settings: Settings) -> list[Path]:
    own = settings.model_root / model.directory
    return [model.embedded.parent, own] if model.embedded else [own]


def _from_path(model: str | os.PathLike[str], wanted: str, device: str, catalogue: Catalogue) -> ModelFile:
    try:
        path = Path(model).expanduser()
        exists, is_directory = path.exists(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # no permission; no such home directory; a NUL
        raise ModelFileError(f"{model} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if isinstance(model, str) and os.sep not in model and not exists:
        raise ModelNotFoundError(f"no model is called {model!r}: the names are {', '.join(catalogue)}, or give a path")
    if is_directory:
        return _best([path], wanted, device, "put one there, or give another path")
    file = _open(path, path.stem)
    if wanted not in {"auto", file.quantization}:
        raise OptionError(f"quantization = {wanted!r}, but {path} is {file.quantization}: leave it at auto")
    return file


def _best(places: Sequence[Path], wanted: str, device: str, remedy: str, name: str | None = None) -> ModelFile:
    files, damaged = _scan(places, name)
    order = (BEST["cuda"] if device == "cuda" else BEST["cpu"]) if wanted == "auto" else (wanted,)
    if best := next((file for kind in order for file in files if file.quantization == kind), None):
        for error in damaged:
            logger.warning("passed over: %s", error)
        return best
    if damaged:
        raise damaged[0]
    there = ", ".join(f"{file.path.name} ({file.quantization})" for file in files) or "none"
    missing = "model file" if wanted == "auto" else f"{wanted} model file"
    raise ModelNotFoundError(f"no {missing} in {places[-1]} (there: {there}): {remedy}")


def _scan(places: Sequence[Path], name: str | None) -> tuple[list[ModelFile], list[ModelError]]:
    """Check the model files of these directories; returns the sound ones, and what is wrong with the others."""
    paths = [path for place in places for path in sorted(place.glob("*.bin")) if "silero" not in path.name]
    looked_at = [_open_or_error(path, name or path.stem) for path in paths]
    files = [file for file in looked_at if isinstance(file, ModelFile)]
    return files, [error for error in looked_at if isinstance(error, ModelError)]


def _open_or_error(path: Path, name: str) -> ModelFile | ModelError:
    try:
        return _open(path, name)
    except ModelError as error:
        return error


def _open(path: Path, name: str) -> ModelFile:
    header = check_header(path)
    return ModelFile(name, path, header.quantization, path.stat().st_size, header)
