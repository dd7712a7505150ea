"""The `whisperlib` command. Each command is a module here, imported when it is called, and a row in COMMANDS."""

from __future__ import annotations

import importlib
import logging
import signal
from types import FrameType
from typing import Any

import click

from whisperlib import __version__
from whisperlib.cli.common import Status, complain, log_from, say, verbosity
from whisperlib.errors import OptionError
from whisperlib.settings import get_settings

COMMANDS = {
    "transcribe": "Transcribe or translate audio files.",
    "detect": "Tell the language of audio files.",
    "serve": "Answer transcription requests over HTTP.",
    "models": "List, download, verify and quantise models.",
    "info": "Show versions, libraries, machine, models and settings.",
    "prepare": "Get model and libraries ready for the server.",
    "selftest": "Try the native libraries on this machine.",
    "demo": "Transcribe the bundled samples.",
}


class _Commands(click.Group):
    """Imports a command's module only when it is called, and turns exceptions into one line and a status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"whisperlib.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own, and a reader that went away: click ends quietly
        except KeyboardInterrupt:
            say("whisperlib: interrupted")
            raise click.exceptions.Exit(Status.INTERRUPTED) from None
        except Exception as error:
            raise click.exceptions.Exit(complain(error)) from None


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@verbosity
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Whisper speech-to-text on your own machine.

    `whisperlib COMMAND --help` explains a command. Settings are environment variables that begin with WHISPER_;
    `whisperlib info` shows them.
    """
    try:
        level = get_settings().log_level
    except OptionError:
        level = "auto"  # a command that needs the settings will say what is wrong with them
    log_from(ctx, getattr(logging, "WARNING" if level == "auto" else level))


class _StderrHandler(logging.Handler):
    """Logs to what is stderr at the moment, which a progress bar replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record))
        except Exception:
            self.handleError(record)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    # Stopping takes one step of the model, seconds with a large one: a second Ctrl-C does not wait for it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line, and exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's `&` has it ignored
        signal.signal(signal.SIGINT, _stop)
    logging.basicConfig(format="whisperlib: %(levelname)s: %(message)s", handlers=[_StderrHandler()])
    cli(prog_name="whisperlib")
