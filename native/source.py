"""The whisper.cpp tree that is compiled: fetched or copied, checked, patched.

It ends up in native/build/source. Only files whose bytes differ are replaced there, so a changed
patch recompiles what it touches and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
PATCHES = NATIVE / "patches"
BUILD = NATIVE / "build"

# What the build, the tests and the micro model need of the tree. A user's checkout also holds
# models of several gigabytes and build folders.
NEEDED = (
    "CMakeLists.txt",
    "LICENSE",
    "cmake/**/*",
    "examples/**/*",
    "ggml/**/*",
    "include/*",
    "src/**/*",
    "models/for-tests-*.bin",
    "samples/jfk.*",
)


class BuildError(Exception):
    """The build cannot go on; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class Pin:
    """The source distribution that is built unless the user points elsewhere."""

    name: str
    version: str
    sha256: str
    whisper_version: str
    tree: str


@dataclass(frozen=True)
class Source:
    """What lies in native/build/source. `key` changes whenever a byte of it would."""

    key: str
    whisper_version: str
    origin: str
    sha256: str | None
    patches: list[str]


def read_pin(path: Path = NATIVE / "source.json") -> Pin:
    """Return the pinned source distribution."""
    return Pin(**json.loads(path.read_text()))


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, saying so when another process holds it first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process to finish with {what}", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def prepare(build: Path = BUILD, patches: Path = PATCHES, checkout: str | None = None) -> Source:
    """Bring `build`/source up to date and describe it.

    `checkout` is a whisper.cpp tree to copy (WHISPER_CPP_SRC when None); it is never written to.
    Raises BuildError.
    """
    checkout = os.environ.get("WHISPER_CPP_SRC", "") if checkout is None else checkout
    pin = read_pin()
    patch_files = sorted(patches.glob("*.patch"))
    key = hashlib.sha256()
    if checkout:
        origin = Path(checkout).expanduser().resolve()
        _require_whisper_tree(origin, f"WHISPER_CPP_SRC={checkout}")
        for name in _needed_files(origin):
            key.update(f"{name}\0".encode() + hashlib.sha256((origin / name).read_bytes()).digest())
    else:
        key.update(pin.sha256.encode())
    for patch in patch_files:
        key.update(patch.read_bytes())

    target, stamp = build / "source", build / "source.json"
    with locked(build / "source.lock", "the source tree"):
        present = current(build)
        if present and present.key == key.hexdigest():
            return present
        with tempfile.TemporaryDirectory(dir=build, prefix="source-") as scratch:
            tree = Path(scratch) / "tree"
            if checkout:
                _copy(origin, tree)
            else:
                unpacked = _unpack(_download(pin, build / "download"), Path(scratch) / "sdist")
                _copy(unpacked / f"{pin.name}-{pin.version}" / pin.tree, tree)
            for patch in patch_files:
                apply_patch(patch, tree)
            version = _whisper_version(tree)
            if not checkout and version != pin.whisper_version:
                raise BuildError(f"{pin.name} {pin.version} has whisper.cpp {version}, not {pin.whisper_version}")
            stamp.unlink(missing_ok=True)
            _sync(tree, target)
        source = Source(
            key=key.hexdigest(),
            whisper_version=version,
            origin=str(origin) if checkout else f"{pin.name} {pin.version}",
            sha256=None if checkout else pin.sha256,
            patches=[patch.name for patch in patch_files],
        )
        write_json(stamp, asdict(source))
        return source


def current(build: Path = BUILD) -> Source | None:
    """Describe what lies in `build`/source, None when it is not whole."""
    stamp = build / "source.json"
    if not stamp.exists() or not (build / "source").is_dir():
        return None
    return Source(**json.loads(stamp.read_text()))


def write_json(path: Path, value: object) -> None:
    """Write `value` so that an interruption leaves the old file or the new one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)


def verify(path: Path, sha256: str) -> None:
    """Remove `path` and raise BuildError unless its bytes have this SHA-256."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        path.unlink()
        raise BuildError(f"{path.name}: SHA-256 is {found}, native/source.json says {sha256}; removed it")


def apply_patch(patch: Path, tree: Path) -> None:
    """Apply one patch to `tree`, or find it applied already. Raises BuildError naming the patch."""
    if patches_are_applied([patch], tree):
        return
    result = _git_apply(patch.read_text(), tree)
    if result.returncode != 0 or not patches_are_applied([patch], tree):
        reason = (result.stderr.strip().splitlines() or ["git skipped it"])[0]
        raise BuildError(f"{patch.name} does not fit this whisper.cpp: {reason}")


def patches_are_applied(patches: Sequence[Path], tree: Path) -> bool:
    """Tell whether every change of `patches`, in the order in which they build on one another, is in `tree`."""
    text = "".join(patch.read_text() for patch in patches)
    # As one input git takes them back one after the other, the last one first.
    # --verbose names each file it looked at: a file that git skips in silence is not named.
    result = _git_apply(text, tree, "--reverse", "--check", "--verbose")
    files = re.findall(r"^\+\+\+ b/(\S+)", text, re.MULTILINE)
    return result.returncode == 0 and all(f"Checking patch {name}" in result.stderr for name in files)


def _git_apply(patch: str, tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # The tree lies inside whisperlib's own repository, which ignores it: seen from there git would
    # skip every file without a word. The ceiling keeps git from finding that repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CEILING_DIRECTORIES": str(tree.resolve().parent), "LC_ALL": "C"}
    return subprocess.run(
        ["git", "apply", "--whitespace=nowarn", *options, "-"],
        cwd=tree,
        input=patch,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _download(pin: Pin, folder: Path) -> Path:
    archive = folder / f"{pin.name}-{pin.version}.tar.gz"
    if not archive.exists():
        print(f"downloading whisper.cpp {pin.whisper_version} in {pin.name} {pin.version}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            # With the hash in a requirements file pip checks it before it runs anything of the archive.
            requirements = Path(scratch) / "requirements.txt"
            requirements.write_text(f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}\n")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            command += ["--no-deps", "--no-binary", pin.name, "--dest", scratch]
            command += ["--requirement", str(requirements)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if "DO NOT MATCH THE HASHES" in result.stderr:
                raise BuildError(f"{archive.name}: SHA-256 is not that in native/source.json; discarded it")
            if result.returncode != 0 or not (Path(scratch) / archive.name).exists():
                reason = (result.stderr.strip().splitlines() or ["no archive came"])[-1]
                raise BuildError(f"cannot download {pin.name} {pin.version}: {reason}")
            (Path(scratch) / archive.name).replace(archive)
    verify(archive, pin.sha256)
    return archive


def _unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        # Python before 3.10.12 and 3.11.4 has no filters; the checksum has vouched for the content all the same.
        if hasattr(tarfile, "data_filter"):
            tar.extraction_filter = tarfile.data_filter
        tar.extractall(folder)  # noqa: S202
    return folder


def _require_whisper_tree(tree: Path, name: str) -> None:
    if not tree.is_dir():
        raise BuildError(f"{name}: no such directory")
    parts = ("CMakeLists.txt", "include/whisper.h", "ggml/CMakeLists.txt")
    if not all((tree / part).is_file() for part in parts):
        raise BuildError(f"{name}: not a whisper.cpp tree (no include/whisper.h and ggml/ in it)")


def _needed_files(tree: Path) -> list[str]:
    found = {path for pattern in NEEDED for path in tree.glob(pattern) if path.is_file()}
    return sorted(str(path.relative_to(tree)) for path in found)


def _copy(tree: Path, target: Path) -> None:
    for name in _needed_files(tree):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tree / name, target / name)


def _sync(new: Path, target: Path) -> None:
    """Make `target` equal to `new`, touching only what differs: its new mtime makes ninja recompile it."""
    wanted = {path.relative_to(new) for path in new.rglob("*") if path.is_file()}
    for name in wanted:
        old = target / name
        if old.is_file() and old.read_bytes() == (new / name).read_bytes():
            continue
        old.parent.mkdir(parents=True, exist_ok=True)
        (new / name).replace(old)
    for path in list(target.rglob("*")):
        if path.is_file() and path.relative_to(target) not in wanted:
            path.unlink()


def _whisper_version(tree: Path) -> str:
    match = re.search(r'project\("whisper\.cpp" VERSION ([0-9.]+)\)', (tree / "CMakeLists.txt").read_text())
    if not match:
        raise BuildError("CMakeLists.txt of the whisper.cpp tree names no version")
    return match[1]
