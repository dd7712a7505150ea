"""Runs whisper.cpp's `whisper-quantize` in a child process: another weight type of a model, made on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from whisperlib import assets
from whisperlib.errors import LibraryNotFoundError, ModelError, ModelFileError, OptionError
from whisperlib.models.disk import disk_errors
from whisperlib.models.header import Header, check_header

PROGRAM = "whisper-quantize"
TYPES = ("q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0")
VARIANTS = ("cpu", "cpu-portable", "cuda")  # of our builds; the first needs nothing that this machine may lack
TIMEOUT_SECONDS = 1800


def find_quantizer(lib_dir: Path | None = None) -> Path | None:
    """Find a `whisper-quantize` that runs: in `lib_dir` or its variants, else in our own build, else in `PATH`."""
    root = lib_dir or assets.PACKAGE.parent / "native" / "lib"
    places = [root / PROGRAM, *(root / variant / PROGRAM for variant in VARIANTS)]
    if not lib_dir and (installed := shutil.which(PROGRAM)):
        places.append(Path(installed))
    return next((place for place in places if _runs(place)), None)


def quantize(source: Path, target: Path, quantization: str, quantizer: Path | None = None) -> Header:
    """Make `target` from `source`, an f16 model, in another weight type: seconds for small.

    `target` appears, or is replaced, when it is whole and checked. `quantizer` is the program to run; left out,
    it is searched. Raises OptionError for an unknown type, LibraryNotFoundError where no program is found,
    ModelFileError where `source` cannot be used or the program fails, DownloadError where nothing can be written.
    """
    if quantization not in TYPES:
        raise OptionError(f"quantization = {quantization!r}: give {', '.join(TYPES)}")
    if (found := check_header(source).quantization) != "f16":
        raise ModelFileError(f"{source} is {found} already: give an f16 file")
    quantizer = quantizer or find_quantizer()
    if quantizer is None:
        raise LibraryNotFoundError(f"no {PROGRAM} that runs was found: run `make native`, or set WHISPER_LIB_DIR")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        directory = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    with directory:
        scratch = Path(directory.name, target.name)
        _run(quantizer, source, scratch, quantization)
        made = _checked(scratch, quantization)
        with disk_errors(target):
            scratch.replace(target)
    return made


def _run(quantizer: Path, source: Path, target: Path, quantization: str) -> None:
    command = [str(quantizer), str(source), str(target), quantization]
    try:
        child = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelFileError(f"{quantizer} could not make {quantization} of {source}: {error}") from None
    if child.returncode:
        said = (child.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise ModelFileError(f"{quantizer} failed on {source} with {child.returncode}: {said}")


def _checked(path: Path, quantization: str) -> Header:
    # The program does not notice a full disk.
    try:
        header = check_header(path)
    except ModelError as error:
        raise ModelFileError(f"{PROGRAM} made a damaged file: {error}; is the disk full?") from None
    if header.quantization != quantization:
        raise ModelFileError(f"{PROGRAM} made {header.quantization} where {quantization} was asked for")
    return header


def _runs(program: Path) -> bool:
    """Whether it prints its usage; one for another CPU or without its libraries does not."""
    if not os.access(program, os.X_OK):
        return False
    try:
        child = subprocess.run([str(program)], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"usage" in child.stdout + child.stderr
