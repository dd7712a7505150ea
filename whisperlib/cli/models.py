"""`whisperlib models`: the model files that are there, and how others come."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from whisperlib import binding, encoder, models, variants
from whisperlib.cli.common import Status, complain, verbosity
from whisperlib.cli.progress import download_bar
from whisperlib.errors import ModelError
from whisperlib.models.quantizer import TYPES
from whisperlib.settings import PREFIX, QUANTIZATIONS, get_settings

NAME = click.Choice(list(models.CATALOGUE))


@click.group("models")
@verbosity
def command() -> None:
    """List, download, verify and quantise models.

    A model's files lie in its directory below WHISPER_MODEL_ROOT. `micro` comes with the package.
    """


@command.command("list")
@verbosity
def list_models() -> None:
    """List the models that have a name.

    Shows the weight types that are there and those that can be downloaded; * marks the model that is used when none
    is named.
    """
    settings = get_settings()
    table = Table("model", "there", "can be downloaded", box=None, pad_edge=False, header_style="bold")
    for shelf in models.list_models(settings):
        there = ", ".join(f"{file.quantization} ({_size(file.size)})" for file in shelf.files)
        published = ", ".join(f"{artifact.quantization} ({_size(artifact.size)})" for artifact in shelf.model.artifacts)
        marker = " *" if shelf.model.name == settings.model_size else ""
        table.add_row(f"{shelf.model.name}{marker}", there or "-", published or "-")
        for problem in shelf.damaged:
            complain(ModelError(problem))
    Console(width=None if sys.stdout.isatty() else 1000).print(table)  # a pipe has no width to fit into
    click.echo(f"\nin {settings.model_root}")


@command.command()
@click.argument("name", type=NAME, metavar="NAME")
@click.option(
    "--compute-type",
    type=click.Choice(QUANTIZATIONS),
    help="Weight type; auto takes what suits the machine.",
    show_default=f"{PREFIX}QUANTIZATION",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@verbosity
def download(name: str, compute_type: str | None, quiet: bool) -> None:
    """Download a model and write its path.

    A weight type that is not published is made from f16. An interrupted download goes on where it stopped. The file
    is checked by its SHA-256; one that is there is not fetched again.
    """
    settings = get_settings()
    on_gpu = settings.device != "cpu" and binding.ask_driver().available
    with download_bar(name, quiet) as progress:
        file = models.fetch(
            name, quantization=compute_type, device="cuda" if on_gpu else "cpu", progress=progress, settings=settings
        )
    click.echo(file.path)


@command.command()
@click.argument("name", type=NAME, metavar="[NAME]", required=False)
@verbosity
@click.pass_context
def verify(ctx: click.Context, /, name: str | None) -> None:
    """Check the files of a model again, or of all.

    Published files are checked by their SHA-256, others by header and tensors.
    """
    there = [shelf.model.name for shelf in models.list_models() if shelf.files or shelf.damaged]
    statuses = [_verify(each) for each in ([name] if name else there)]
    ctx.exit(max(statuses))


@command.command()
@click.argument("source", metavar="SRC")
@click.argument("weight_type", type=click.Choice(TYPES))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File to make; left out, it lies beside SRC or in the named model's directory.",
)
@verbosity
def quantize(source: str, weight_type: str, output: Path | None) -> None:
    """Make another weight type, and write its path.

    SRC is an f16 model, by name or file.
    """
    settings = get_settings()
    if output is None and source in models.CATALOGUE:
        model = models.CATALOGUE[source]
        if model.artifact(weight_type):  # `verify` would miss the published SHA-256
            raise click.UsageError(
                f"{source} is published as {weight_type}: run `whisperlib models download {source} --compute-type "
                f"{weight_type}`, or choose an --output"
            )
        output = settings.model_root / model.directory / model.file_name(weight_type)
    path = models.resolve(source, quantization="f16", settings=settings).path
    target = output or path.with_name(f"{path.stem.removesuffix('-f16')}-{weight_type}{path.suffix}")
    if target.exists():
        raise click.UsageError(f"{target} is there already: delete it, or choose another --output")
    models.quantize(path, target, weight_type, models.find_quantizer(settings.lib_dir))
    click.echo(target)


@command.command()
@click.argument("model", metavar="MODEL")
@click.option("--compute-type", type=click.Choice(QUANTIZATIONS), help="Weight type of the model.", default=None)
@click.option("--int8", is_flag=True, help="Make the int8 form, which is less exact.")
@click.option("-q", "--quiet", is_flag=True, help="Do not tell what is being done.")
@verbosity
def accelerate(model: str, compute_type: str | None, int8: bool, quiet: bool) -> None:
    """Make the OpenVINO encoder of a model, and write its path.

    MODEL is a name or a file. The encoder is made from that file, compared with ggml's on real speech, and put beside
    it; from then on it is used wherever the model runs on a CPU. Needs `pip install 'whisperlib[openvino]'`.
    """
    settings = get_settings()
    file = models.resolve(model, quantization=compute_type, device="cpu", settings=settings)
    library = binding.load(variants.choose("cpu", model_dir=file.path.parent).directory)
    made = encoder.accelerate(
        file.path,
        library,
        "int8" if int8 else "float",
        report=lambda step: None if quiet else click.echo(step, err=True),
    )
    for precision, error in made.relative_errors.items():
        if not quiet:
            click.echo(f"{precision}: differs from ggml's encoder by {100 * error:.2f} %", err=True)
    click.echo(made.directory)


def _verify(name: str) -> Status:
    try:
        for verified in models.verify(name):
            how = "SHA-256" if verified.pinned else "header and tensors; no SHA-256 is published"
            click.echo(f"{verified.file.path}: ok ({how})")
    except ModelError as error:
        return complain(error)
    return Status.OK


def _size(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
