"""Where the native libraries may be, in the order in which they are tried."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whisperlib.errors import LibraryNotFoundError

MAIN_LIBRARY = "libwhisper.so"
# Best first: a GPU where one answers, then this machine's own instructions, then what runs anywhere.
VARIANTS = ("cuda", "cpu", "cpu-portable")


@dataclass(frozen=True)
class Candidate:
    """A directory that holds libwhisper. `origin` says why it was looked at; `build` is its build-info.json."""

    directory: Path
    origin: str
    build: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def variant(self) -> str:
        """`cpu`, `cpu-portable`, `cuda`, or `unknown` without a build-info.json."""
        return str(self.build.get("variant", "unknown"))


def own_build_root() -> Path:
    """Directory of the project's own builds: `native/lib` of a checkout."""
    return Path(__file__).resolve().parents[2] / "native" / "lib"


def candidates(library_dir: str | os.PathLike[str] | None = None, model_dir: Path | None = None) -> list[Candidate]:
    """List the directories that hold libwhisper, best first.

    A directory given by argument or by `WHISPER_LIB_DIR` is the only one looked at: the user chose it. Else the
    model's directory, `LD_LIBRARY_PATH` and the project's own build follow. A directory may hold the libraries
    itself or in sub-directories named after the variants.

    Raises LibraryNotFoundError, which names every directory that was tried.
    """
    tried: list[str] = []
    found: list[Candidate] = []
    for origin, directory in _search_path(library_dir, model_dir):
        here = [c for place in (directory, *(directory / v for v in VARIANTS)) if (c := _look(place, origin))]
        if not here:
            tried.append(f"{directory} ({origin})")
        found += [c for c in here if c.directory not in {f.directory for f in found}]
    if not found:
        raise LibraryNotFoundError(
            f"no {MAIN_LIBRARY} found; tried {', '.join(tried) or 'nothing'}: "
            "run `make native`, or name the directory in WHISPER_LIB_DIR"
        )
    return found


def _search_path(library_dir: str | os.PathLike[str] | None, model_dir: Path | None) -> list[tuple[str, Path]]:
    if library_dir is not None:
        return [("argument", Path(library_dir).expanduser().absolute())]
    if chosen := os.environ.get("WHISPER_LIB_DIR"):
        return [("WHISPER_LIB_DIR", Path(chosen).expanduser().absolute())]
    places = [("model directory", model_dir.absolute())] if model_dir else []
    places += [
        ("LD_LIBRARY_PATH", Path(entry).absolute())
        for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":")
        if entry
    ]
    return [*places, ("own build", own_build_root())]


def _look(directory: Path, origin: str) -> Candidate | None:
    if not any((directory / name).exists() for name in (MAIN_LIBRARY, f"{MAIN_LIBRARY}.1")):
        return None
    return Candidate(directory.resolve(), origin, read_build_info(directory))


def read_build_info(directory: Path) -> dict[str, Any]:
    """Return build-info.json of `directory`; empty where there is none or it cannot be read."""
    try:
        info = json.loads((directory / "build-info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}
