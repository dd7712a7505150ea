"""Build one variant of the native libraries: python -m native.build cpu|cpu-portable|cuda.

Does nothing when the installed variant was built from the same sources, flags and compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from native import amx, cuda
from native.source import (
    BUILD,
    NATIVE,
    PATCHES,
    BuildError,
    Source,
    current,
    locked,
    patches_are_applied,
    prepare,
    write_json,
)

ROOT = NATIVE.parent
LIB = NATIVE / "lib"
TARGETS = ("ggml", "whisper", "whisperlib-shim", "whisper-cli", "whisper-quantize")
SERVER = "whisper-server"

COMMON = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_LLAMAFILE": "ON",  # off upstream; halves the encode time of q8_0 and f16
    "GGML_OPENMP": "ON",
    "CMAKE_REQUIRE_FIND_PACKAGE_OpenMP": "ON",  # without it ggml would use its own pool and only warn
    "WHISPER_BUILD_EXAMPLES": "ON",  # whisper-cli and whisper-quantize; TARGETS keeps the others out
    "WHISPER_BUILD_TESTS": "OFF",
}


@dataclass(frozen=True)
class Variant:
    """One way to build: a row of the table below."""

    flags: Mapping[str, str] = field(default_factory=dict)
    native: bool = False  # for this machine's CPU only
    plugins: bool = False  # backends are files that ggml chooses from at run time
    gpu: bool = False


VARIANTS = {
    "cpu": Variant({"GGML_NATIVE": "ON"}, native=True),
    "cpu-portable": Variant(
        {"GGML_NATIVE": "OFF", "GGML_BACKEND_DL": "ON", "GGML_CPU_ALL_VARIANTS": "ON"}, plugins=True
    ),
    # The CPU part is for any CPU with AVX2: these libraries take an hour to build and are carried to other
    # machines, where a native CPU part could die. Plugins would do too, but then libwhisper is compiled
    # without its CUDA parts.
    "cuda": Variant(
        {
            "GGML_NATIVE": "OFF",
            "GGML_CUDA": "ON",
            "GGML_CUDA_GRAPHS": "ON",  # off upstream
            "GGML_CUDA_NO_VMM": "ON",  # with it the library needs libcuda.so to load, so a driver
            "GGML_CUDA_NCCL": "OFF",  # several GPUs in one model: whisper does not
        },
        gpu=True,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the variant named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m native.build", description=__doc__)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="compilers at once")
    parser.add_argument("--server", action="store_true", help="build whisper-server too, from now on")
    options = parser.parse_args(arguments)
    try:
        with locked(BUILD / f"{options.variant}.lock", f"the {options.variant} build"):
            build(options.variant, options.jobs, targets_of(options.variant, server=options.server))
    except BuildError as error:
        print(f"native build: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("native build: interrupted; run it again to go on from here", file=sys.stderr)
        return 130
    return 0


def targets_of(name: str, *, server: bool) -> tuple[str, ...]:
    """Return what to build; the server, once built, stays, or each build without it would link all anew."""
    built = server or (LIB / name / SERVER).is_file()
    return (*TARGETS, SERVER) if built else TARGETS


def build(name: str, jobs: int, targets: Sequence[str]) -> None:
    """Bring native/lib/`name` up to date and self-test it. Raises BuildError."""
    variant = VARIANTS[name]
    source = prepare()
    flags = dict(COMMON) | dict(variant.flags)
    if variant.gpu:
        flags["CMAKE_CUDA_ARCHITECTURES"] = cuda.architectures()
    key = _key(source, flags, targets, variant)
    installed = LIB / name
    if _installed_key(installed) != key:
        started = time.monotonic()
        check_machine()
        if not patches_are_applied([PATCHES / patch for patch in source.patches], BUILD / "source"):
            raise BuildError("native/build/source has not all of native/patches applied: remove that directory")
        flags |= cuda.toolkit_flags(BUILD) if variant.gpu else {}
        products = _compile(name, flags, targets, jobs)
        if current() != source:
            raise BuildError("another build changed the source tree meanwhile: run this one again")
        amx.check_objects((BUILD / name).rglob("mmq.cpp.o"))
        info = _build_info(variant, source, flags, products) | {"variant": name, "key": key}
        install(products, installed, targets, info)
        print(f"{installed.relative_to(ROOT)}: built in {time.monotonic() - started:.0f} s", flush=True)
    _selftest(installed)


def _key(source: Source, flags: Mapping[str, str], targets: Iterable[str], variant: Variant) -> str:
    """Return a digest of everything that decides what comes out."""
    ours = [*NATIVE.glob("*.py"), *NATIVE.glob("*.txt"), *NATIVE.glob("shim/*")]
    parts: list[object] = [source.key, flags, list(targets), _compilers(), _compiler_version()]
    parts += [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(ours)]
    parts += [_cpu()] if variant.native else []
    parts += [str(cuda.installed_toolkit())] if variant.gpu else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _installed_key(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / "build-info.json").read_text())["key"])
    except (OSError, ValueError, KeyError):
        return None


def _compilers() -> dict[str, str]:
    names = {"CMAKE_C_COMPILER": ("CC", "gcc"), "CMAKE_CXX_COMPILER": ("CXX", "g++")}
    return {flag: os.environ.get(variable) or default for flag, (variable, default) in names.items()}


def _compiler_version() -> str:
    with contextlib.suppress(OSError):
        command = [_compilers()["CMAKE_CXX_COMPILER"], "--version"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0]
    return "none"


def _cpu() -> tuple[str, str]:
    """Return this machine's CPU model and the instruction sets it has."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    sets = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return (model[1] if model else "unknown", sets[1] if sets else "")


def check_machine() -> None:
    """Raise BuildError, after a line for each thing missing, if this machine cannot compile."""
    result = subprocess.run(["/bin/sh", str(NATIVE / "check_machine.sh"), "compiler"], check=False)
    if result.returncode != 0:
        raise BuildError("the build needs the above")


def _tool(name: str) -> str:
    beside = Path(sys.executable).parent / name  # the virtual environment's
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise BuildError(f"{name} is missing: pip install -e '.[build]'")
    return found


def _compile(name: str, flags: Mapping[str, str], targets: Sequence[str], jobs: int) -> Path:
    """Configure and compile in native/build/`name`; return the folder with the results."""
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"WHISPER_TREE": str(BUILD / "source"), "CMAKE_MAKE_PROGRAM": _tool("ninja")}
    definitions = paths | _compilers() | dict(flags)
    configure = [_tool("cmake"), "--fresh", "-G", "Ninja", "-S", str(NATIVE), "-B", str(folder)]
    configure += [f"-D{flag}={value}" for flag, value in definitions.items()]
    # Linked anew each time: ninja leaves libraries of another version lying there.
    shutil.rmtree(folder / "bin", ignore_errors=True)
    log = BUILD / f"{name}.log"
    log.unlink(missing_ok=True)
    run_step(configure, log, f"configuring {name}")
    run_step([_tool("ninja"), "-C", str(folder), "-j", str(jobs), *targets], log, f"compiling {name}")
    return folder / "bin"


def run_step(command: Sequence[str], log: Path, what: str) -> None:
    """Run `command` with one progress line; on failure show the end of its output."""
    # ggml's CMake files ask git for a commit: without the ceiling it would be whisperlib's own.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(BUILD), "LC_ALL": "C"}
    tail: deque[str] = deque(maxlen=30)
    shown = 0
    print(what, end="" if sys.stdout.isatty() else "\n", flush=True)
    with (
        log.open("a") as sink,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        for output in process.stdout or ():
            line = output.decode(errors="replace")
            sink.write(line)
            tail.append(line)
            step = re.match(r"\[(\d+)/(\d+)\]", line)
            if step and sys.stdout.isatty():
                print(f"\r{what} {step[0]}\033[K", end="", flush=True)
            elif step and (percent := 100 * int(step[1]) // int(step[2])) >= shown + 20:
                print(f"{what} {step[0]}", flush=True)
                shown = percent
    if sys.stdout.isatty():
        print()
    if process.returncode != 0:
        sys.stderr.writelines(tail)
        raise BuildError(f"{what} failed; all of its output is in {log.relative_to(ROOT)}")


def _build_info(variant: Variant, source: Source, flags: Mapping[str, str], products: Path) -> dict[str, object]:
    return {
        "whisperlib_build": 1,
        "whisper_version": source.whisper_version,
        "source": source.origin,
        "source_sha256": source.sha256,
        "patches": source.patches,
        "flags": dict(flags),
        "compiler": _compiler_version(),
        "cpu": _cpu()[0] if variant.native else None,
        "backend_plugins": variant.plugins,
        "cuda_architectures": flags.get("CMAKE_CUDA_ARCHITECTURES"),
        "runtime_libraries": cuda.runtime_libraries(products / "libggml-cuda.so") if variant.gpu else [],
        "built_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def install(products: Path, installed: Path, targets: Iterable[str], info: dict[str, object]) -> None:
    """Put the libraries and programs in place all at once."""
    fresh, old = installed.with_name(f".{installed.name}.new"), installed.with_name(f".{installed.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    programs = [target for target in targets if (products / target).is_file()]
    for path in [*products.glob("lib*.so*"), *(products / program for program in programs)]:
        shutil.copy2(path, fresh / path.name, follow_symlinks=False)
    write_json(fresh / "build-info.json", info)
    if installed.exists():
        installed.rename(old)
    fresh.rename(installed)
    shutil.rmtree(old, ignore_errors=True)


def _selftest(installed: Path) -> None:
    """Let the library say which weight types this machine runs; its findings stay beside the libraries."""
    if (installed / "selftest.json").exists() or not (ROOT / "whisperlib" / "selftest.py").exists():
        return
    command = [sys.executable, "-m", "whisperlib.selftest", str(installed.relative_to(ROOT))]
    subprocess.run(command, cwd=ROOT, check=False)


if __name__ == "__main__":
    sys.exit(main())
