"""What the commands share: exit statuses, the one line of an error, verbosity, and sections in their help."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from enum import IntEnum
from typing import Any, BinaryIO, TypeVar

import click

from whisperlib.errors import AudioError, DeadlineExceeded, ModelError, OptionError, WhisperlibError

_LOG_LEVEL = "whisperlib.log_level"
_Decorated = TypeVar("_Decorated", bound="Callable[..., Any] | click.Command")


class Status(IntEnum):
    """Exit statuses; docs/command-line.md explains them."""

    OK = 0
    FAILURE = 1
    USAGE = 2  # click's
    INPUT = 3
    DEADLINE = 124  # as timeout(1) has it
    INTERRUPTED = 130  # 128 + SIGINT


def say(line: str) -> None:
    """Write a line to stderr. Unlike click.echo it goes the way that keeps it out of a progress bar."""
    sys.stderr.write(f"{line}\n")


def complain(error: BaseException, about: str = "") -> Status:
    """Say on stderr, in one line, what went wrong with `about`; return the status that stands for it."""
    if click.get_current_context().meta.get(_LOG_LEVEL) == logging.DEBUG:
        say("".join(traceback.format_exception(error)).rstrip())
    message = " ".join(str(error).split())
    if not isinstance(error, (WhisperlibError, OSError)):
        message = f"internal error: {type(error).__name__}: {message} (--debug shows where)"
    if about not in message:
        message = f"{about}: {message}"
    say(f"whisperlib: {message}")
    return status_of(error)


def audio_source(file: str) -> str | BinaryIO:
    """Return what a file argument means: - is stdin."""
    if file != "-":
        return file
    if sys.stdin is None:  # `<&-` in a shell
        raise AudioError("stdin is closed")
    return sys.stdin.buffer


def status_of(error: BaseException) -> Status:
    """Return the exit status for an exception."""
    if isinstance(error, DeadlineExceeded):
        return Status.DEADLINE
    if isinstance(error, (AudioError, ModelError, OptionError)):
        return Status.INPUT
    return Status.FAILURE


def log_from(ctx: click.Context, level: int) -> None:
    """Log what whisperlib says from `level` on, unless more was asked for already."""
    ctx.meta[_LOG_LEVEL] = min(level, ctx.meta.get(_LOG_LEVEL, level))
    chosen = ctx.meta[_LOG_LEVEL]
    logging.getLogger("whisperlib").setLevel(chosen)
    # What native code calls an error is in the exception that it ends in, or is a stop that was asked for.
    logging.getLogger("whisperlib.native").setLevel(chosen if chosen <= logging.INFO else logging.CRITICAL)


def verbosity(function: _Decorated) -> _Decorated:
    """Add `--verbose` and `--debug`, which work before and after the command's name."""

    def chosen(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            log_from(ctx, logging.DEBUG if parameter.name == "debug" else logging.INFO)

    for names, text in (
        (("--debug",), "Log everything to stderr, and show the traceback of an error."),
        (("-v", "--verbose"), "Log to stderr what is done."),
    ):
        function = click.option(*names, is_flag=True, expose_value=False, callback=chosen, help=text)(function)
    return function


class SectionOption(click.Option):
    """An option that stands under a heading of its own in the help."""

    def __init__(self, *arguments: Any, section: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.section = section


class SectionCommand(click.Command):
    """A command with so many options that its help has headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a heading first."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
