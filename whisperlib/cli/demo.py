"""`whisperlib demo`: the bundled samples."""

from __future__ import annotations

import click

from whisperlib import demo
from whisperlib.cli.common import verbosity


@click.command("demo")
@verbosity
@click.pass_context
def command(ctx: click.Context) -> None:
    """Transcribe the bundled samples with the embedded micro model."""
    ctx.exit(demo.main())
