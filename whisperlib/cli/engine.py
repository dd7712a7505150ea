"""The options that choose model, device and threads, and the adapter that they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import click

from whisperlib import WhisperLibraryAdapter, binding, models, tuning
from whisperlib.adapter import MAX_THREADS
from whisperlib.cli.common import SectionOption
from whisperlib.cli.progress import download_bar
from whisperlib.settings import PREFIX, QUANTIZATIONS, Settings, get_settings
from whisperlib.variants import Device

NAMES = ("model", "download", "device", "compute_type", "threads", "concurrency", "library_dir", "flash_attention")


def options() -> Iterator[SectionOption]:
    """Yield an option for each of NAMES, the arguments of the adapter."""

    def option(*names: str, setting: str | None = None, **keywords: Any) -> SectionOption:
        if setting:
            variable, default = f"{PREFIX}{setting.upper()}", Settings.model_fields[setting].default
            keywords["show_default"] = f"{variable}, or else {default}" if default else variable
        return SectionOption(names, section="Model and machine", **keywords)

    yield option("-m", "--model", setting="model_size", metavar="NAME|PATH", help="Name, file or directory of a model.")
    yield option("--download", is_flag=True, help="Fetch the model if it is not there.")
    yield option("--device", setting="device", type=click.Choice(get_args(Device)), help="Where the model runs.")
    yield option(
        "--compute-type",
        setting="quantization",
        type=click.Choice(QUANTIZATIONS),
        help="Weight type; auto takes the best file that is there.",
    )
    yield option(
        "-t",
        "--threads",
        setting="threads",
        type=click.IntRange(1, MAX_THREADS),
        metavar="N",
        help="Threads for one file; as the cgroup allows if not given.",
    )
    yield option(
        "--concurrency",
        setting="concurrency",
        type=click.IntRange(1, tuning.MAX_STATES),
        metavar="N",
        help="Files that are transcribed at once; as the cores allow if not given.",
    )
    yield option(
        "--library-dir",
        setting="lib_dir",
        type=click.Path(),
        metavar="DIRECTORY",
        help="Directory of the native libraries.",
    )
    yield option(
        "--flash-attention/--no-flash-attention",
        default=True,
        help="Attention in one pass; which is faster depends on the processor.",
    )


def open_adapter(given: dict[str, Any], *, quiet: bool) -> WhisperLibraryAdapter:
    """Make the adapter that the options ask for. A missing model is downloaded under a progress bar."""
    wanted = {name: given[name] for name in NAMES}
    if wanted["download"]:
        _fetch_if_missing(wanted, quiet)
    return WhisperLibraryAdapter(**wanted)


def _fetch_if_missing(wanted: dict[str, Any], quiet: bool) -> None:
    settings = get_settings()
    on_gpu = (wanted["device"] or settings.device) != "cpu" and binding.ask_driver().available
    with download_bar(wanted["model"] or settings.model_size, quiet) as progress:
        models.resolve(
            wanted["model"],
            quantization=wanted["compute_type"],
            device="cuda" if on_gpu else "cpu",
            download=True,
            progress=progress,
        )
