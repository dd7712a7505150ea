"""`whisperlib selftest`: whether the builds of the native libraries work on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from whisperlib import binding, selftest
from whisperlib.cli.common import Status, verbosity


@click.command("selftest")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path), required=False)
@verbosity
@click.pass_context
def command(ctx: click.Context, /, directory: Path | None) -> None:
    """Transcribe a sample with every weight type, in a child process each.

    Tries the libraries of DIRECTORY, or all that are found. A verdict is kept beside the libraries, or in the
    user's cache, and holds until the libraries or the processor change.
    """
    on_gpu = binding.ask_driver().available
    status = Status.OK
    for candidate in binding.candidates(directory):
        verdict = selftest.verdict(candidate, use_gpu=on_gpu and candidate.variant == "cuda")
        click.echo(f"{candidate.directory}: {verdict or 'not tried: no build of this project (no build-info.json)'}")
        if verdict and not verdict.passed:
            status = Status.FAILURE
    ctx.exit(status)
