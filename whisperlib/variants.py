"""Chooses the native libraries and the device: the best build that loads, passes its self-test, and fits."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from whisperlib import binding
from whisperlib.binding import Candidate
from whisperlib.errors import LibraryLoadError, OptionError

logger = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Choice:
    """The libraries to load, the device to run on, and what was passed over, with the reason of each."""

    directory: Path
    variant: str
    origin: str
    device: Literal["cpu", "cuda"]
    passed_over: tuple[str, ...]


def choose(
    device: str = "auto", library_dir: str | os.PathLike[str] | None = None, model_dir: Path | None = None
) -> Choice:
    """Choose among the builds found; see `binding.search` for where they are looked for.

    A build whose self-test failed on this machine is set aside for the next best, with a warning. Raises
    LibraryNotFoundError where there is none, LibraryLoadError where none can be used, OptionError for an
    unknown device or for `cuda` where there is none.
    """
    from whisperlib import selftest  # noqa: PLC0415  (`python -m whisperlib.selftest` must be its first import)

    if device not in get_args(Device):
        raise OptionError(f"device = {device!r}: give {', '.join(get_args(Device))}")
    found = _loaded_first(binding.candidates(library_dir, model_dir))
    cuda = binding.ask_driver() if device != "cpu" else None
    passed_over: list[str] = []
    for candidate in _in_order(found, prefer_cuda=bool(cuda and cuda.available)):
        on_gpu = candidate.variant == "cuda" and bool(cuda and cuda.available)
        if device == "cuda" and not on_gpu:
            why = cuda.reason if cuda and not cuda.available else "not a CUDA build"
            passed_over.append(f"{candidate.directory}: {why}")
            continue
        found_out = selftest.verdict(candidate, use_gpu=on_gpu)
        if found_out and not found_out.passed:
            passed_over.append(f"{candidate.directory}: self-test {found_out}")
            logger.warning("set aside the libraries of %s: self-test %s", candidate.directory, found_out)
            continue
        if device == "auto" and cuda and cuda.available and not on_gpu:
            logger.warning("a GPU is there but no CUDA build that works: run `make native-cuda`")
        return Choice(
            candidate.directory,
            candidate.variant,
            candidate.origin,
            "cuda" if on_gpu else "cpu",
            tuple(passed_over),
        )
    error = OptionError if device == "cuda" else LibraryLoadError
    raise error(f"device = {device!r}: no build can be used: {'; '.join(passed_over)}")


def _loaded_first(found: list[Candidate]) -> list[Candidate]:
    """A process can have the libraries of one directory only: where it has some, they are the choice."""
    library = binding.loaded()
    same = [candidate for candidate in found if library and candidate.directory == library.directory]
    return same or found


def _in_order(found: list[Candidate], *, prefer_cuda: bool) -> list[Candidate]:
    """Keep the order of the search, but a CUDA build without a GPU to run on comes last."""
    if prefer_cuda:
        return found
    return sorted(found, key=lambda candidate: candidate.variant == "cuda")
