"""What this installation is and what it would use, as plain data: for `whisperlib info` and a server's health page."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Collection
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from whisperlib import __version__, _openmp, binding, cache, encoder, enhance, models, system, tuning, variants
from whisperlib.binding import Candidate, Library
from whisperlib.errors import LibraryNotFoundError, WhisperlibError
from whisperlib.models import ModelFile
from whisperlib.settings import PREFIX, Settings, get_settings, without_credentials
from whisperlib.variants import Choice

_PACKAGES = ("numpy", "av", "soundfile", "soxr", "pydantic")
# What the x86-64 psABI asks for at each level, in the names of /proc/cpuinfo; a level has all before it.
_LEVELS = {
    "x86-64-v2": "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3",
    "x86-64-v3": "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
}
# Flags that ggml has kernels for, of x86 and of ARM.
_USEFUL_FLAGS = (
    "ssse3 sse4_2 avx avx2 f16c fma bmi2 avx_vnni avx512f avx512bw avx512vl avx512vbmi avx512_vnni avx512_bf16 "
    "avx512_fp16 amx_tile amx_int8 amx_bf16 asimd asimdhp asimddp i8mm bf16 sve sve2 sme"
)


def collect(*, probe: bool = True, parts: Collection[str] | None = None) -> dict[str, Any]:
    """Return all of it, or these parts, ready for JSON; one that cannot be told holds `error` instead. Sizes are bytes.

    Where no library is loaded yet, `probe` chooses one as an adapter would and loads it. That runs its self-test if
    this machine has not done so, which takes seconds; without `probe` only a loaded library is told of. `enhancement`
    asks the language model's server, if there is one, where its model runs.
    """
    tellers: dict[str, Callable[[], dict[str, Any]]] = {
        "versions": _versions,
        "libraries": lambda: _libraries(probe),
        "cpu": _cpu,
        "openmp": _openmp_waiting,
        "cuda": lambda: asdict(binding.ask_driver()),
        "memory": memory,
        "models": lambda: _or_error(_models),
        "encoder": lambda: _or_error(_encoder),
        "threads": lambda: _or_error(_threads),
        "cache": lambda: _or_error(_cache),
        "enhancement": lambda: _or_error(lambda: enhance.describe(get_settings())),
        "settings": lambda: _or_error(_settings),
    }
    return {part: tell() for part, tell in tellers.items() if parts is None or part in parts}


def _or_error(tell: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return tell()
    except WhisperlibError as error:
        return {"error": str(error)}


def _versions() -> dict[str, str | None]:
    own = {"whisperlib": __version__, "python": platform.python_version()}
    return {**own, **{package: _version(package) for package in _PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _libraries(probe: bool) -> dict[str, Any]:
    """Tell which builds there are, which is chosen, and what the loaded one says of itself."""
    told: dict[str, Any] = {"found": [], "chosen": None, "loaded": None}
    try:
        model_dir = _model_directory()
        found = binding.candidates(model_dir=model_dir)
        told["found"] = [_candidate(candidate) for candidate in found]
        if probe:
            choice = variants.choose(get_settings().device, model_dir=model_dir)
            told["found"] = [_candidate(candidate, choice) for candidate in found]
            told["chosen"] = {"directory": str(choice.directory), "variant": choice.variant, "device": choice.device}
            binding.load(choice.directory)
    except WhisperlibError as error:
        told["error"] = str(error)
    if library := binding.loaded():
        told["loaded"] = _or_error(lambda: _loaded(library))
    return told


def _candidate(candidate: Candidate, choice: Choice | None = None) -> dict[str, str | None]:
    return {
        "directory": str(candidate.directory),
        "variant": candidate.variant,
        "origin": candidate.origin,
        "standing": _standing(candidate, choice) if choice else None,
    }


def _standing(candidate: Candidate, choice: Choice) -> str:
    """Say why a build is the choice, or why not."""
    if candidate.directory == choice.directory:
        return "chosen: self-test passed" if candidate.build else "chosen: not self-tested, it has no build-info.json"
    for reason in choice.passed_over:
        if reason.startswith(f"{candidate.directory}: "):
            return f"set aside: {reason.removeprefix(f'{candidate.directory}: ')}"
    if candidate.variant == "cuda" and choice.device == "cpu":
        return f"not needed: {binding.ask_driver().reason}"
    return "not needed: the chosen one comes first"


def _loaded(library: Library) -> dict[str, Any]:
    return {
        "directory": str(library.directory),
        "whisper_cpp": library.version,
        "variant": library.variant,
        "files": _mapped_files(library.directory),
        "layout_checked_by_shim": library.has_shim,
        "devices": [asdict(device) for device in library.devices],
        "system_info": library.system_info.strip(),
        "build": library.build,
    }


def _model_directory() -> Path | None:
    """Return the directory of the default model, which may bring libraries of its own."""
    try:
        return models.resolve().path.parent
    except WhisperlibError:
        return None


def _mapped_files(directory: Path) -> list[str]:
    """Names of the directory's files that this process has loaded; of plugins, they tell the instruction set."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = {Path(line.split(maxsplit=5)[-1]) for line in lines if "/" in line}
    return sorted(path.name for path in paths if path.parent == directory)


def _cpu() -> dict[str, Any]:
    flags = system.cpu_flags()
    allowance = system.cpu_allowance()
    return {
        "model": system.cpu_model(),
        "architecture": platform.machine(),
        "isa_level": isa_level(flags),
        "features": [flag for flag in _USEFUL_FLAGS.split() if flag in flags],
        "usable_cores": allowance.cores,
        "cgroup_quota_cores": allowance.quota,
        "affinity_cores": allowance.affinity,
        "machine_cores": allowance.machine,
    }


def isa_level(flags: tuple[str, ...]) -> str | None:
    """Return the highest x86-64 level that these flags of /proc/cpuinfo reach; None for another processor."""
    if "lm" not in flags:
        return None
    reached = "x86-64-v1"
    for level, needed in _LEVELS.items():
        if not set(needed.split()) <= set(flags):
            break
        reached = level
    return reached


def _openmp_waiting() -> dict[str, Any]:
    return {
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT"),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "runtimes": list(_openmp.loaded_runtimes()),
        "hindrance": _openmp.HINDRANCE,
    }


def memory(root: Path = Path("/")) -> dict[str, int | None]:
    """Tell the machine's memory, the cgroup's limit and what this process holds. `root` stands in for `/` in tests."""
    meminfo = dict(line.split(":", 1) for line in _read(root / "proc/meminfo").splitlines() if ":" in line)
    return {
        "total_bytes": _kibibytes(meminfo.get("MemTotal")),
        "available_bytes": _kibibytes(meminfo.get("MemAvailable")),
        "cgroup_limit_bytes": _memory_limit(root),
        "resident_bytes": system.resident_bytes() or None,
    }


def _kibibytes(field: str | None) -> int | None:
    return int(field.split()[0]) * 1024 if field else None


def _memory_limit(root: Path) -> int | None:
    """Read what a container sees as its own limit, versions 2 and 1; without one, the file says `max` or 2⁶³."""
    found = [_read(root / "sys/fs/cgroup" / name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
    limits = [int(limit) for limit in found if limit.isdigit()]
    return min((limit for limit in limits if limit < 1 << 62), default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _models() -> dict[str, Any]:
    settings = get_settings()
    shelves = models.list_models(settings)
    return {
        "root": str(settings.model_root),
        "default": settings.model_size,
        "default_file": _or_error(lambda: {"path": str(models.resolve(settings=settings).path)}),
        "there": [
            {"name": file.name, "quantization": file.quantization, "path": str(file.path), "size_bytes": file.size}
            for shelf in shelves
            for file in shelf.files
        ],
        "damaged": [problem for shelf in shelves for problem in shelf.damaged],
    }


def _encoder() -> dict[str, Any]:
    """Tell which encoder the default model would run on this machine's CPU, and why."""
    model = models.resolve(device="cpu")
    choice = _encoder_of(model)
    return {"model": str(model.path), "runs": str(choice), "reason": choice.reason, "openvino": _version("openvino")}


def _encoder_of(model: ModelFile) -> encoder.Choice:
    settings = get_settings()
    library = binding.loaded()
    return encoder.choose(
        model.path,
        wanted=settings.encoder,
        precision=settings.encoder_precision,
        device="cpu",
        takes_encoder=library is None or library.takes_encoder,
    )


def _threads() -> dict[str, Any]:
    """Tell how the default model would share the cores of this machine's CPU among requests, and why.

    `threads` and `concurrency` are None where that is measured when the model is next loaded. `set_by` are the
    variables that give one of them.
    """
    settings = get_settings()
    library = binding.loaded()
    if library is None:
        raise LibraryNotFoundError("what was measured is told only where the native libraries are loaded")
    model = models.resolve(device="cpu")
    plan = tuning.known(
        system.cpu_allowance().cores,
        tuning.facts(library, model, str(_encoder_of(model))),
        threads=settings.threads or None,
        concurrency=settings.concurrency or None,
        may_measure=settings.measure_threads,
    )
    return {
        "model": str(model.path),
        "threads": plan.threads if plan else None,
        "concurrency": plan.concurrency if plan else None,
        "reason": plan.reason if plan else "not measured yet: that is done when the model is next loaded",
        "set_by": [f"{PREFIX}{name.upper()}" for name in ("threads", "concurrency") if getattr(settings, name)],
    }


def _cache() -> dict[str, Any]:
    settings = get_settings()
    used_by = {"off": None, "auto": "servers"}.get(settings.cache, "all")
    return {**cache.describe(settings, cache.count(settings)), "used_by": used_by}


def _settings() -> dict[str, Any]:
    """Return the settings by their variables: value, unit, and whether the environment sets them."""
    settings = get_settings()
    properties = Settings.model_json_schema()["properties"]
    return {
        f"{PREFIX}{name.upper()}": {
            "value": without_credentials(value) if isinstance(value, str) else value,
            "unit": properties[name]["unit"],
            "set": name in settings.model_fields_set,
        }
        for name, value in settings.model_dump(mode="json").items()
    }
