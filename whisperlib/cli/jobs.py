"""Which files are transcribed, and where to: those that are named, and those that folders hold."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click

SUFFIXES = {"json": ".json", "verbose_json": ".json", "text": ".txt", "srt": ".srt", "vtt": ".vtt", "tsv": ".tsv"}
ONE_AFTER_ANOTHER = ("text", "json", "verbose_json")  # what several files may give on stdout
AUDIO_SUFFIXES = frozenset({
    ".3gp", ".aac", ".aif", ".aiff", ".amr", ".au", ".avi", ".caf", ".flac", ".m4a", ".m4v", ".mka", ".mkv",
    ".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".mpga", ".oga", ".ogg", ".opus", ".ts", ".wav", ".webm",
    ".wma", ".wmv",
})  # fmt: skip


class Job(NamedTuple):
    """What to transcribe, and where to; None: to stdout."""

    source: str
    target: Path | None

    @property
    def unfinished(self) -> Path | None:
        """Where a result goes that is not all that was asked for: no target has such a name."""
        return self.target and self.target.with_name(f"{self.target.name}.partial")


def name_of(source: str) -> str:
    """Return what a source is called."""
    return "stdin" if source == "-" else source


def of_files(files: Sequence[str], response_format: str, output_dir: Path | None) -> list[Job]:
    """Pair every file with its target. Raises UsageError where two would mix, or a source be overwritten."""
    if files.count("-") > 1:
        raise click.UsageError("stdin (-) can be read once only")
    if output_dir is None:
        if len(files) > 1 and response_format not in ONE_AFTER_ANOTHER:
            raise click.UsageError(f"several files as {response_format} need --output-dir")
        return [Job(file, None) for file in files]
    sources = {Path(file).resolve() for file in files}
    jobs: list[Job] = []
    taken: dict[Path, str] = {}
    for file in files:
        target = output_dir / f"{Path(name_of(file)).stem}{SUFFIXES[response_format]}"
        if target in taken:
            raise click.UsageError(
                f"{name_of(taken[target])} and {name_of(file)} would both become {target}: transcribe them one by one, "
                "into different directories"
            )
        if target.resolve() in sources:
            raise click.UsageError(f"{target} would overwrite an input: choose another --output-dir")
        taken[target] = file
        jobs.append(Job(file, target))
    return jobs


def of_folder(folder: Path, response_format: str, output_dir: Path | None, *, recursive: bool) -> list[Job]:
    """Pair the audio and video files in a folder, told by their suffixes, with files beside them or in `output_dir`.

    There they lie in the folders that they lie in here. Files of one name but for the suffix keep it, so that none
    overwrites another. Hidden files and folders are left out, and links to folders. Raises UsageError where there is
    nothing, OSError where a folder cannot be read.
    """
    found = sorted(_audio_files(folder, recursive=recursive))
    if not found:
        hint = "" if recursive else "; --recursive looks into the folders within"
        raise click.UsageError(f"there are no audio files in {folder}{hint}")
    namesakes = Counter(path.with_suffix("") for path in found)
    jobs = []
    for path in found:
        name = path.stem if namesakes[path.with_suffix("")] == 1 else path.name
        place = path.parent if output_dir is None else output_dir / path.parent.relative_to(folder)
        jobs.append(Job(str(path), place / f"{name}{SUFFIXES[response_format]}"))
    return jobs


def _audio_files(folder: Path, *, recursive: bool) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES:
                yield Path(place, name)


def _raise(error: OSError) -> None:
    raise error
