"""Transcribes the bundled samples with the embedded micro model: `python -m whisperlib.demo`."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.markup import escape

from whisperlib import WhisperLibraryAdapter, assets
from whisperlib.errors import WhisperlibError


def main() -> int:
    """Print segments, language, time and real-time factor of every sample."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    console = Console(highlight=False, soft_wrap=True)
    try:
        with WhisperLibraryAdapter("micro") as whisper:
            config = whisper.config
            console.print(
                f"[bold]{config.model}[/] ({config.compute_type}) on {config.device}, whisper.cpp "
                f"{config.library_version} ({config.library_variant}), "
                f"{config.concurrency} × {config.threads} threads, loaded in {config.load_seconds:.2f} s"
            )
            for reference in assets.sample_references():
                _show(console, whisper, reference["file"], reference["text"])
    except WhisperlibError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return 1
    return 0


def _show(console: Console, whisper: WhisperLibraryAdapter, file_name: str, said: str) -> None:
    result = whisper.transcribe(assets.SAMPLES / file_name)
    heard = "as spoken" if result.text == said else "differs from what was spoken"
    console.print(
        f"\n[bold]{file_name}[/]  {result.duration:.1f} s, language {result.language or 'none'}, "
        f"took {result.timings.total:.2f} s, real-time factor {result.real_time_factor:.3f}, {heard}"
    )
    for segment in result.segments:
        console.print(f"  [cyan]{segment.start:6.2f} – {segment.end:6.2f}[/]  {escape(segment.text)}")
    if not result.segments:
        console.print("  [dim](no speech)[/]")


if __name__ == "__main__":
    sys.exit(main())
