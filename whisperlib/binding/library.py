"""Loads the native libraries, once per process, and refuses those that this binding does not fit."""

from __future__ import annotations

import ctypes as c
import logging
import os
import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisperlib import _openmp
from whisperlib.binding import log, prototypes
from whisperlib.binding.search import own_build_root, read_build_info
from whisperlib.binding.structs import MIRRORED, FullParams, mirrored_layout
from whisperlib.errors import AbiMismatchError, ForkedProcessError, LibraryLoadError

logger = logging.getLogger(__name__)

SHIM_NAME = "libwhisperlib-shim.so"
SHIM_ABI = 2
OLDEST_VERSION = (1, 8, 1)  # carry_initial_prompt was inserted then: older structs are laid out otherwise
NEWEST_VERSION = (1, 9, 3)
_BEAM_SEARCH = 1
_DEVICE_TYPES = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel"}


@dataclass(frozen=True)
class Device:
    """A device that ggml found: its short name (`CPU`, `CUDA0`), what it is, and its kind (`cpu`, `gpu`, …)."""

    name: str
    description: str
    kind: str


class Library:
    """The loaded libraries of one directory.

    Raises LibraryLoadError (what failed, and why) or AbiMismatchError.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.build = read_build_info(directory)
        self.pid = os.getpid()
        paths = _files(directory)
        for name in self.build.get("runtime_libraries", []):
            _open_runtime(directory, name)
        shim_path = paths.pop(SHIM_NAME, None)
        opened = {name: _open(path) for name, path in paths.items()}
        whisper, ggml, base = (opened[f"lib{name}.so"] for name in ("whisper", "ggml", "ggml-base"))
        prototypes.declare(whisper, {"whisper_version": prototypes.WHISPER["whisper_version"]})
        self.version = whisper.whisper_version().decode()
        prototypes.declare(whisper, prototypes.WHISPER)
        prototypes.declare(whisper, prototypes.WHISPER_OPTIONAL, optional=True)
        prototypes.declare(ggml, prototypes.GGML)
        prototypes.declare(base, prototypes.GGML_BASE)
        check_version(self.version, str(self.directory))
        shim = _open(shim_path) if shim_path else None  # it needs a libwhisper that has all of these
        if shim:
            prototypes.declare(shim, prototypes.SHIM)
            check_layout(shim, self.version)
            prototypes.guard(whisper, shim)
        else:
            check_sentinels(whisper, self.version)
        self.has_shim = shim is not None
        log.attach(whisper, shim)
        if "libggml-cpu.so" not in opened:
            # Backends as plugins. ggml's own search looks beside the executable, which is Python's.
            ggml.ggml_backend_load_all_from_path(str(self.directory).encode())
        self.devices = _list_devices(ggml, base)
        if not any(device.kind == "cpu" for device in self.devices):
            # whisper_init_state would end the process.
            raise LibraryLoadError(
                f"{self.directory} has no CPU backend that runs on this machine: run `make native-portable`"
            )
        self.c = whisper
        self.variant = str(self.build.get("variant", "unknown"))

    def check_process(self) -> None:
        """Raise ForkedProcessError in a process that was forked after the library was loaded."""
        if os.getpid() != self.pid:
            raise ForkedProcessError(
                f"the native library was loaded by process {self.pid} and this is its fork {os.getpid()}: "
                "load the model after the fork (with Gunicorn: in post_worker_init, without preload)"
            )

    @property
    def takes_encoder(self) -> bool:
        """Whether states can call an encoder of the caller's: our build is needed."""
        return hasattr(self.c, "whisper_init_state_with_encoder")

    @property
    def keeps_listening(self) -> bool:
        """Whether speech detection can go on where its last call ended: not every version can."""
        return hasattr(self.c, "whisper_vad_detect_speech_no_reset")

    @property
    def system_info(self) -> str:
        """CPU features that ggml was built with and uses, as ggml prints them."""
        self.check_process()
        return str(self.c.whisper_print_system_info().decode())


_lock = threading.Lock()
_loaded: Library | None = None
_failed: Path | None = None


def load(directory: str | os.PathLike[str]) -> Library:
    """Load the libraries of `directory`, or return them if this process has them already.

    Raises LibraryLoadError where the process has those of another directory: their names are the same, and the
    dynamic linker would mix the two. Raises AbiMismatchError for another version or struct layout.
    """
    global _loaded, _failed  # noqa: PLW0603  (one per process, as the dynamic linker has it)
    path = Path(directory).expanduser().resolve()
    with _lock:
        if _loaded is None:
            if _failed not in {None, path}:
                raise LibraryLoadError(
                    f"parts of {_failed}, which failed to load, stay in this process and would mix with {path}: "
                    "use another process"
                )
            if _openmp.HINDRANCE:
                logger.warning("%s", _openmp.HINDRANCE)
            try:
                _loaded = Library(path)
            except Exception:
                # Libraries with C++ templates cannot be unloaded, so dlclose would not help.
                _failed = path if _is_mapped(path) else None
                raise
            logger.info("loaded whisper.cpp %s (%s) from %s", _loaded.version, _loaded.variant, path)
        elif _loaded.directory != path:
            _loaded.check_process()
            raise LibraryLoadError(
                f"this process has loaded the libraries of {_loaded.directory} and cannot load those of {path} "
                "beside them: use another process"
            )
        _loaded.check_process()
        return _loaded


def loaded() -> Library | None:
    """Return the library that this process has loaded, if any."""
    return _loaded


def check_version(version: str, where: str) -> None:
    """Raise AbiMismatchError unless `version` is one whose structs this binding mirrors."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if not OLDEST_VERSION <= numbers <= NEWEST_VERSION:
        raise AbiMismatchError(
            f"{where} holds whisper.cpp {version}; whisperlib needs {_dotted(OLDEST_VERSION)} to "
            f"{_dotted(NEWEST_VERSION)}: run `make native`"
        )


def check_layout(shim: c.CDLL, version: str) -> None:
    """Compare every mirrored struct with what the shim was compiled with. Raises AbiMismatchError."""
    if (abi := shim.whisperlib_shim_abi()) != SHIM_ABI:
        raise AbiMismatchError(f"{SHIM_NAME} has interface {abi}, not {SHIM_ABI}: run `make native`")
    if (built := shim.whisperlib_shim_whisper_version().decode()) != version:
        raise AbiMismatchError(f"{SHIM_NAME} was built for whisper.cpp {built}, libwhisper is {version}")
    count = c.c_size_t()
    rows = shim.whisperlib_layout(c.byref(count))
    actual = {rows[i].name.decode(): (rows[i].offset, rows[i].size) for i in range(count.value)}
    mirrored = {name for name in actual if name.split(".")[0] in MIRRORED}
    compare_layouts({name: actual[name] for name in mirrored}, mirrored_layout())


def compare_layouts(actual: dict[str, tuple[int, int]], mirrored: dict[str, tuple[int, int]]) -> None:
    """Raise AbiMismatchError at the first name whose (offset, size) differs or is on one side only."""
    for name in sorted(actual.keys() | mirrored.keys()):
        if actual.get(name) != mirrored.get(name):
            raise AbiMismatchError(
                f"{name} is at (offset, size) {actual.get(name)} in the library and {mirrored.get(name)} in "
                "whisperlib: they are of different versions; run `make native`"
            )


# Defaults of whisper_full_default_params in src/whisper.cpp that tell a field from its neighbours.
_SENTINELS = {
    "n_max_text_ctx": 16384,
    "temperature_inc": 0.2,
    "entropy_thold": 2.4,
    "logprob_thold": -1.0,
    "no_speech_thold": 0.6,
    "grammar_penalty": 100.0,
}
_VAD_SENTINELS = {"threshold": 0.5, "min_speech_duration_ms": 250, "min_silence_duration_ms": 100}


def check_sentinels(whisper: c.CDLL, version: str) -> None:
    """Without a shim: the library's own defaults must stand where this binding reads them.

    Raises AbiMismatchError at the first that does not. In the order of offsets, so that a shorter struct is
    found out before its end is passed.
    """
    pointer = whisper.whisper_full_default_params_by_ref(_BEAM_SEARCH)
    try:
        params = FullParams.from_address(pointer)
        for struct, prefix, sentinels in ((params, "", _SENTINELS), (params.vad_params, "vad_params.", _VAD_SENTINELS)):
            for name, expected in sentinels.items():
                value = getattr(struct, name)
                if not abs(value - expected) <= 1e-6 * abs(expected):
                    raise AbiMismatchError(
                        f"libwhisper {version} has {value!r} where whisperlib expects {prefix}{name} = {expected!r}: "
                        "its structs are laid out otherwise; run `make native`"
                    )
    finally:
        whisper.whisper_free_params(pointer)


def _files(directory: Path) -> dict[str, Path]:
    """Return the libraries to load, in order, after a look at each: nothing is loaded if one cannot be."""
    optional = {"libggml-cpu.so", "libggml-cuda.so", SHIM_NAME}
    paths: dict[str, Path] = {}
    for name in ("libggml-base.so", "libggml-cpu.so", "libggml-cuda.so", "libggml.so", "libwhisper.so", SHIM_NAME):
        if path := _find(directory, name):
            if problem := _not_loadable(path):
                raise LibraryLoadError(f"cannot load {path}: {problem}")
            paths[name] = path
        elif name not in optional:
            raise LibraryLoadError(f"{directory} has no {name}: run `make native`")
    if "libggml-cpu.so" not in paths:
        paths.pop("libggml-cuda.so", None)  # in a build with plugins, ggml loads the backends itself
    return paths


def _is_mapped(directory: Path) -> bool:
    try:
        return f"{directory}/" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _find(directory: Path, name: str) -> Path | None:
    """Return `name` or its versioned form (`libwhisper.so.1`), whichever is there."""
    if (directory / name).exists():
        return directory / name
    versioned = sorted(directory.glob(f"{name}.*"), key=lambda path: len(path.name))
    return versioned[0] if versioned else None


def _open(path: Path, mode: int = c.DEFAULT_MODE) -> c.CDLL:
    try:
        return c.CDLL(str(path), mode=mode)
    except OSError as error:
        raise LibraryLoadError(f"cannot load {path}: {_reason(str(error))}") from None


def _not_loadable(path: Path) -> str | None:
    """Say why a file cannot be a library for this machine, from its ELF header; None if it may be."""
    try:
        with path.open("rb") as file:
            header = file.read(20)
        with Path(sys.executable).open("rb") as file:
            own = file.read(20)
    except OSError as error:
        return error.strerror or str(error)
    if not header.startswith(b"\x7fELF") or len(header) < 20:
        return "it is not a shared library"
    # Class (32 or 64 bit), byte order and machine must be those of this very interpreter.
    if own.startswith(b"\x7fELF") and (header[4:6], header[18:20]) != (own[4:6], own[18:20]):
        machine = int.from_bytes(header[18:20], "little")
        return f"wrong architecture (ELF machine {machine}, class {header[4]}): build it on this machine"
    return None


def _reason(message: str) -> str:
    if match := re.search(r"^([^:]+): cannot open shared object file", message):
        return f"missing dependency {match[1]}"
    if match := re.search(r"undefined symbol: (\w+)", message):
        return f"missing symbol {match[1]}: the libraries beside it are of another build"
    return message


def _open_runtime(directory: Path, name: str) -> c.CDLL:
    """Open a runtime library (CUDA's) from beside the libraries, the Python packages, or the system."""
    for place in (directory, *runtime_directories()):
        if (place / name).exists():
            return _open(place / name, c.RTLD_GLOBAL)
    try:
        return c.CDLL(name, mode=c.RTLD_GLOBAL)
    except OSError:
        raise LibraryLoadError(
            f"{directory} needs {name}, which is neither beside it, nor in the Python packages, nor in the system: "
            "install the CUDA runtime (pip install nvidia-cuda-runtime nvidia-cublas)"
        ) from None


def runtime_directories() -> list[Path]:
    """Directories of the Python packages that hold CUDA's runtime libraries, installed or of the build's toolchain."""
    packages = [*map(Path, sys.path), own_build_root().parent / "build" / "cuda-toolchain"]
    return [place for package in packages for place in sorted(package.glob("nvidia/*/lib"))]


def _list_devices(ggml: c.CDLL, base: c.CDLL) -> tuple[Device, ...]:
    devices: list[Any] = [ggml.ggml_backend_dev_get(i) for i in range(ggml.ggml_backend_dev_count())]
    return tuple(
        Device(
            base.ggml_backend_dev_name(device).decode(),
            base.ggml_backend_dev_description(device).decode("utf-8", "replace"),
            _DEVICE_TYPES.get(base.ggml_backend_dev_type(device), "other"),
        )
        for device in devices
    )
