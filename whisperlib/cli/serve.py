"""`whisperlib serve`: the web server."""

from __future__ import annotations

from typing import Any

import click

from whisperlib.cli.common import verbosity
from whisperlib.settings import Settings
from whisperlib.web import server


@click.command("serve")
@click.option("--host", metavar="ADDRESS", help="Where to listen, instead of WHISPER_HOST.")
@click.option("--port", type=click.IntRange(1, 65_535), help="Where to listen, instead of WHISPER_PORT.")
@click.option("--model", "model_size", metavar="MODEL", help="Name or path of a model, instead of WHISPER_MODEL_SIZE.")
@verbosity
def command(**given: Any) -> None:
    """Answer transcription requests over HTTP, as OpenAI's API does.

    The model loads in the background: /ready says when it is there. Everything else is set by WHISPER_ variables.
    Ctrl-C or SIGTERM lets running requests end; a second one does not wait for them.
    """
    server.serve(Settings(**{name: value for name, value in given.items() if value is not None}))
