"""`whisperlib detect`: which language is spoken in audio files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from whisperlib.cli import engine
from whisperlib.cli.common import SectionCommand, Status, audio_source, complain, verbosity
from whisperlib.languages import LANGUAGES


@click.command("detect", cls=SectionCommand, params=[*engine.options()])
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(allow_dash=True))
@click.option("-q", "--quiet", is_flag=True, help="Show no progress of a download.")
@verbosity
@click.pass_context
def command(ctx: click.Context, /, files: Sequence[str], quiet: bool, **given: Any) -> None:
    """Tell the language of the first 30 s of speech; - is stdin.

    Writes a line for each file: code, probability (0 to 1), English name and file, with tabs between them.
    """
    status = Status.OK
    with engine.open_adapter(given, quiet=quiet) as whisper:
        for file in files:
            try:
                guess = whisper.detect_language(audio_source(file))
            except Exception as error:  # the other files go on, whatever it is
                failure = complain(error, file)
                status = status or failure
                continue
            name = LANGUAGES.get(guess.language, guess.language)
            click.echo(f"{guess.language}\t{guess.probability:.3f}\t{name}\t{click.format_filename(file)}")
    ctx.exit(status)
