"""`whisperlib prepare`: what has to be there before the server starts, and the environment for it."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from whisperlib import binding, encoder, models, variants
from whisperlib.cli import serve
from whisperlib.cli.common import say
from whisperlib.cli.progress import download_bar
from whisperlib.errors import DownloadError, ModelFileError, ModelNotFoundError, WhisperlibError
from whisperlib.models import ModelFile, Progress
from whisperlib.settings import Settings
from whisperlib.variants import Choice

SAY_EVERY_SECONDS = 5.0  # of a download, where no bar can be drawn


@click.command("prepare", params=serve.command.params)
def command(**given: Any) -> None:
    """Fetch the models that are missing, choose the libraries, and print the environment as shell commands.

    The models are those of WHISPER_MODEL_SIZE and WHISPER_PRELOAD. An OpenVINO encoder that lies beside one but is
    refused is made anew; where WHISPER_ENCODER is openvino, one that is missing is made, too. What was chosen and
    why goes to stderr, as does the progress of a download. `eval "$(whisperlib prepare)"` sets LD_LIBRARY_PATH and
    WHISPER_LIB_DIR. The options are those of `serve`, so that the same can be given to both.
    """
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    served = [_model(settings, name) for name in dict.fromkeys((settings.model_size, *settings.preload))]
    choice = variants.choose(settings.device, model_dir=served[0].path.parent)
    for model in served:
        say(f"whisperlib: model {model.name} ({model.quantization}, {model.size / 1e6:,.0f} MB): {model.path}")
    say(f"whisperlib: libraries {choice.variant} on {choice.device}{_why(choice, settings)}: {choice.directory}")
    for model in served if choice.device == "cpu" else ():
        say(f"whisperlib: encoder {_encoder(settings, model, choice)}")
    path = [str(choice.directory), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    click.echo(f"export WHISPER_LIB_DIR={shlex.quote(str(_library_dir(choice)))}")
    click.echo(f"export LD_LIBRARY_PATH={shlex.quote(':'.join(path))}")


def _model(settings: Settings, name: str) -> ModelFile:
    on_gpu = settings.device != "cpu" and binding.ask_driver().available
    try:
        with _progress(name) as progress:
            return models.resolve(
                name, device="cuda" if on_gpu else "cpu", download=True, progress=progress, settings=settings
            )
    except DownloadError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        raise DownloadError(
            f"{settings.model_root} cannot be written by the user with the id {os.geteuid()}: {error.__cause__}: "
            "let this user write there, run as another, or set WHISPER_MODEL_ROOT"
        ) from error


def _encoder(settings: Settings, model: ModelFile, choice: Choice) -> str:
    """Say which encoder the server will run and why, after making it if it is refused, or asked for and missing."""
    choose = partial(
        encoder.choose,
        model.path,
        wanted=settings.encoder,
        precision=settings.encoder_precision,
        device=choice.device,
        takes_encoder=True,
    )
    try:
        chosen = choose()
        make = chosen.refused
    except (ModelFileError, ModelNotFoundError):
        make = True
    if make:
        try:
            encoder.accelerate(
                model.path,
                binding.load(choice.directory),
                "int8" if settings.encoder_precision == "int8" else "float",
                report=lambda step: say(f"whisperlib: encoder: {step}"),
            )
        except WhisperlibError as error:
            if settings.encoder == "openvino":
                raise
            say(f"whisperlib: encoder: not made anew: {error}")
        chosen = choose()
    return f"{chosen} ({chosen.reason})"


def _library_dir(choice: Choice) -> Path:
    """Return what the server is to choose from: what was passed over, too, where it can, so that /health says why."""
    parent = choice.directory.parent
    beside = choice.passed_over and all(reason.startswith(f"{parent}{os.sep}") for reason in choice.passed_over)
    return parent if beside else choice.directory


def _why(choice: Choice, settings: Settings) -> str:
    reasons = list(choice.passed_over)
    cuda = binding.ask_driver()
    if choice.device == "cpu" and not cuda.available and settings.device == "auto":
        reasons.append(f"no GPU: {cuda.reason}")
    return f" ({'; '.join(reasons)})" if reasons else ""


@contextmanager
def _progress(name: str) -> Iterator[Progress]:
    """Draw a bar on a terminal; in a log, say now and then how far it is."""
    said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= SAY_EVERY_SECONDS:
            said = time.monotonic()
            say(f"whisperlib: downloading {name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

    if sys.stderr.isatty():
        with download_bar(name) as bar:
            yield bar
    else:
        yield tell
