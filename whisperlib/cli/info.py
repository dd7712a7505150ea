"""`whisperlib info`: what is installed and what would be used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from whisperlib import info
from whisperlib.cli.common import verbosity

_WIDTH = 34  # of the names

Line = tuple[str, object]


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="Write it as JSON; sizes are bytes.")
@verbosity
def command(as_json: bool) -> None:
    """Show versions, native libraries and why these, processor, memory, CUDA, models, threads and settings.

    Loads the libraries as a transcription would; what is missing or broken is said in its place.
    """
    told = info.collect()
    if as_json:
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for title, lines in (
        ("Versions", told["versions"].items()),
        ("Native libraries", _libraries(told["libraries"])),
        ("Processor", _processor(told["cpu"], told["openmp"])),
        ("Memory", ((_words(name), size and _size(size)) for name, size in told["memory"].items())),
        ("CUDA", ((_words(name), value) for name, value in told["cuda"].items())),
        ("Models", _models(told["models"])),
        ("Encoder on the CPU", _encoder(told["encoder"])),
        ("Threads on the CPU", _threads(told["threads"])),
        ("Cache of results", _cache(told["cache"])),
        ("Clean-up of transcripts", ((_words(name), value) for name, value in told["enhancement"].items())),
        ("Settings", _settings(told["settings"])),
    ):
        click.echo(f"{title}\n" + "".join(f"  {name:<{_WIDTH}}{_shown(value)}\n" for name, value in lines))


def _libraries(told: dict[str, Any]) -> Iterator[Line]:
    if "error" in told:
        yield "problem", told["error"]
    for build in told["found"]:
        yield build["variant"], f"{build['directory']} ({build['origin']})"
        if build["standing"]:
            yield "", build["standing"]
    if told["chosen"]:
        yield "device", told["chosen"]["device"]
    loaded = told["loaded"] or {}
    if "error" in loaded:
        yield "problem", loaded["error"]
    elif loaded:
        yield "whisper.cpp", loaded["whisper_cpp"]
        yield "files", loaded["files"]
        yield "devices", [f"{device['name']} ({device['description']})" for device in loaded["devices"]]
        yield "system info", loaded["system_info"]
        yield "struct layout", "checked by the shim" if loaded["layout_checked_by_shim"] else "told from defaults"


def _processor(cpu: dict[str, Any], openmp: dict[str, Any]) -> Iterator[Line]:
    yield "model", f"{cpu['model']} ({cpu['isa_level'] or cpu['architecture']})"
    yield "features", cpu["features"]
    yield "cores that may be used", cpu["usable_cores"]
    yield "cores of the machine", cpu["machine_cores"]
    yield "cores by cpuset or affinity", cpu["affinity_cores"]
    yield "cores by cgroup quota", cpu["cgroup_quota_cores"]
    yield "OpenMP runtimes", openmp["runtimes"]
    for variable in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        yield variable, openmp[variable]
    if openmp["hindrance"]:
        yield "problem", openmp["hindrance"]


def _models(told: dict[str, Any]) -> Iterator[Line]:
    if "error" in told:
        yield "problem", told["error"]
        return
    yield "directory", told["root"]
    yield f"default, {told['default']}", told["default_file"].get("path") or told["default_file"]["error"]
    for file in told["there"]:
        yield f"{file['name']} {file['quantization']}, {_size(file['size_bytes'])}", file["path"]
    for problem in told["damaged"]:
        yield "problem", problem


def _encoder(told: dict[str, Any]) -> Iterator[Line]:
    if "error" in told:
        yield "problem", told["error"]
        return
    yield "of the default model", told["runs"]
    yield "reason", told["reason"]
    yield "openvino", told["openvino"]


def _threads(told: dict[str, Any]) -> Iterator[Line]:
    if "error" in told:
        yield "problem", told["error"]
        return
    yield "requests at once × threads", f"{told['concurrency']} × {told['threads']}" if told["threads"] else None
    yield "reason", told["reason"]
    if told["set_by"]:
        yield "set by", told["set_by"]


def _cache(told: dict[str, Any]) -> Iterator[Line]:
    if "error" in told:
        yield "problem", told["error"]
        return
    yield "place", told["place"] or "off"
    if told["place"]:
        yield "used by", told["used_by"]
        for name in ("size_bytes", "max_bytes"):
            yield _words(name), None if told[name] is None else _size(told[name])
        yield "seconds that a result is kept", told["max_age_seconds"]


def _settings(told: dict[str, Any]) -> Iterator[Line]:
    if "error" in told:
        yield "problem", told["error"]
        return
    for variable, setting in told.items():
        yield variable, f"{_shown(setting['value'])}{'  (set)' if setting['set'] else ''}"


def _words(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")


def _size(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _shown(value: object) -> str:
    if value is None or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
