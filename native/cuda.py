"""The CUDA compiler: the machine's own, or one from Python packages that needs no root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from native.source import NATIVE, BuildError, locked

# Ampere, RTX 30, RTX 40 and Hopper as machine code; newer cards compile Hopper's PTX on their first run.
DEFAULT_ARCHITECTURES = "80-real;86-real;89-real;90"


def architectures() -> str:
    """Return what CMAKE_CUDA_ARCHITECTURES gets: CUDA_ARCHITECTURES from the environment, or the default."""
    value = os.environ.get("CUDA_ARCHITECTURES") or DEFAULT_ARCHITECTURES
    if not re.fullmatch(r"\d+[af]?(-real|-virtual)?(;\d+[af]?(-real|-virtual)?)*", value):
        raise BuildError(f"CUDA_ARCHITECTURES={value}: expected numbers joined by semicolons, as in 80;90")
    return value


def installed_toolkit() -> Path | None:
    """Return the machine's own toolkit: CUDA_HOME, or where the nvcc in PATH belongs."""
    home = os.environ.get("CUDA_HOME")
    if home and not (Path(home) / "bin" / "nvcc").exists():
        raise BuildError(f"CUDA_HOME={home}: no bin/nvcc there")
    nvcc = str(Path(home) / "bin" / "nvcc") if home else shutil.which("nvcc")
    return Path(nvcc).resolve().parent.parent if nvcc else None


def toolkit_flags(build: Path) -> dict[str, str]:
    """Return the CMake flags that name nvcc and its toolkit, installing one in `build` if there is none."""
    root = installed_toolkit() or _install_toolchain(build)
    return {"CMAKE_CUDA_COMPILER": str(root / "bin" / "nvcc"), "CUDAToolkit_ROOT": str(root)}


def runtime_libraries(library: Path) -> list[str]:
    """Return the CUDA libraries that `library` needs, in the order to load them."""
    command = ["readelf", "--dynamic", "--wide", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(lib(?:cudart|cublasLt|cublas)\.so\.\d+)\]", text)
    # libcublas needs libcublasLt of the same major version, which libggml-cuda does not name.
    needed += [name.replace("cublas.", "cublasLt.") for name in needed if name.startswith("libcublas.")]
    order = ("libcudart.", "libcublasLt.", "libcublas.")
    return sorted(set(needed), key=lambda name: [name.startswith(prefix) for prefix in order].index(True))


def _install_toolchain(build: Path) -> Path:
    requirements = NATIVE / "cuda-toolchain.txt"
    folder = build / "cuda-toolchain"
    stamp = folder / requirements.name
    with locked(build / "cuda-toolchain.lock", "the CUDA toolchain"):
        if not stamp.exists() or stamp.read_bytes() != requirements.read_bytes():
            print("no nvcc here: installing one from Python packages (about 1 GB)", flush=True)
            with tempfile.TemporaryDirectory(dir=build, prefix="cuda-") as scratch:
                fresh = Path(scratch) / "toolchain"
                command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
                command += ["--no-deps", "--target", str(fresh), "--requirement", str(requirements)]
                if subprocess.run(command, check=False).returncode != 0:
                    raise BuildError("pip cannot install the CUDA compiler: set CUDA_HOME to a toolkit")
                _complete(_root(fresh))
                shutil.copyfile(requirements, fresh / requirements.name)
                if folder.exists():
                    shutil.rmtree(folder)
                fresh.rename(folder)
    return _root(folder)


def _root(folder: Path) -> Path:
    nvcc = next(folder.glob("nvidia/*/bin/nvcc"), None)
    if nvcc is None:
        raise BuildError("the CUDA compiler's packages hold no nvcc: their layout has changed")
    return nvcc.parent.parent


def _complete(root: Path) -> None:
    """Add what the packages leave out: lib64 and the links that a linker looks for."""
    if not (root / "lib64").exists():
        (root / "lib64").symlink_to("lib")
    for library in ("libcudart", "libcublas", "libcublasLt"):
        link = root / "lib" / f"{library}.so"
        versioned = next((root / "lib").glob(f"{library}.so.*"), None)
        if versioned and not link.exists():
            link.symlink_to(versioned.name)
