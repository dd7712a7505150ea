"""Runs a build of the native libraries in a child process before a user meets it.

A compiler or an instruction set can break one weight type and leave the others alone, so each type that people
download is tried with the embedded model on a bundled sample: `python -m whisperlib.selftest DIRECTORY`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from whisperlib import assets, system
from whisperlib.binding import Candidate, runtime_directories
from whisperlib.binding.search import read_build_info
from whisperlib.settings import user_cache_path

logger = logging.getLogger(__name__)

WEIGHT_TYPES = ("f16", "q8_0", "q5_1", "q4_0")
SAMPLE = "seen_020.flac"
TIMEOUT_SECONDS = 120
FILE_NAME = "selftest.json"
# What a machine without memory or time does to a sound build: tried anew next time.
PASSING_FAILURES = ("timed out", "SIGKILL")


@dataclass(frozen=True)
class Verdict:
    """What the self-test of one build on one machine found. `failures` maps a weight type to what went wrong."""

    machine: str
    build: str
    failures: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether every weight type gave the right text."""
        return not self.failures

    def __str__(self) -> str:
        if self.passed:
            return "passed"
        return "failed: " + ", ".join(f"{kind} {what}" for kind, what in self.failures.items())


def verdict(candidate: Candidate, *, use_gpu: bool = False) -> Verdict | None:
    """Return the verdict on a build, testing it if this machine has not done so yet.

    None for libraries without a build-info.json: they are somebody else's, and nothing is known of them.
    """
    if not candidate.build:
        return None
    build = _build_id(candidate.directory) + ("-gpu" if use_gpu else "")
    places = (candidate.directory / FILE_NAME, _cache_file(candidate.directory))
    for place in places:
        known = _read(place)
        if known and (known.machine, known.build) == (system.machine_id(), build):
            return known
    found = run(candidate.directory, build, use_gpu=use_gpu)
    if any(passing in failure for failure in found.failures.values() for passing in PASSING_FAILURES):
        return found
    for place in places:
        if _write(place, found):
            break
    return found


def run(directory: Path, build: str, *, use_gpu: bool = False) -> Verdict:
    """Try every weight type in a child process each."""
    logger.info("testing the native libraries of %s on this machine", directory)
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="whisperlib-selftest-") as scratch:
        for kind in WEIGHT_TYPES:
            model = assets.MICRO_MODEL
            if kind != "f16":
                quantizer = directory / "whisper-quantize"
                if not quantizer.exists():
                    continue
                model = Path(scratch) / f"{kind}.bin"
                if problem := _problem([str(quantizer), str(assets.MICRO_MODEL), str(model), kind])[1]:
                    failures[kind] = f"could not be made: {problem}"
                    continue
            command = [sys.executable, "-m", "whisperlib.selftest", "--child", str(directory), str(model)]
            text, problem = _problem(command + (["--gpu"] if use_gpu else []))
            expected = assets.sample_text(SAMPLE)
            if problem:
                failures[kind] = problem
            elif text != expected:
                failures[kind] = f"gave {text!r} instead of {expected!r}"
    return Verdict(system.machine_id(), build, failures)


def _problem(command: list[str]) -> tuple[str, str]:
    """Run `command`; return its last line of output and, if it failed, why."""
    # Programs find CUDA's runtime by this path only; a Python child loads it itself.
    libraries = [*map(str, runtime_directories()), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(assets.PACKAGE.parent), *sys.path]),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
    }
    try:
        child = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    if child.returncode < 0:
        return "", f"died with {signal.Signals(-child.returncode).name}"
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no output"])[-1]
        return "", f"exited with {child.returncode}: {last}"
    return (child.stdout.strip().splitlines() or [""])[-1], ""


def _child(directory: Path, model: Path, *, use_gpu: bool) -> str:
    """Transcribe the sample with one model file, greedily and with beams, through the binding alone."""
    from whisperlib import audio, binding  # noqa: PLC0415  (only a child may load a library that can crash)

    library = binding.load(directory)
    samples = audio.load(assets.SAMPLES / SAMPLE)
    texts = []
    with binding.Context(library, model, use_gpu=use_gpu) as context:
        for beam_size in (1, 5):  # one column at a time and several have kernels of their own
            arguments = binding.FullArguments(
                n_threads=system.cpu_allowance().cores, language="en", beam_size=beam_size
            )
            with context.new_state() as state:
                state.full(arguments, samples)
                texts.append(b"".join(segment.text for segment in state.segments()).decode().strip())
    return " / ".join(dict.fromkeys(texts))


def _build_id(directory: Path) -> str:
    """Identify a build by what it says of itself and by the size and date of its files."""
    files = sorted(path for path in directory.glob("lib*.so*") if not path.is_symlink())
    facts = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    info = json.dumps(read_build_info(directory), sort_keys=True)
    return hashlib.sha256("\n".join([info, *facts]).encode()).hexdigest()[:16]


def _cache_file(directory: Path) -> Path:
    name = hashlib.sha256(str(directory).encode()).hexdigest()[:16]
    return user_cache_path() / f"selftest-{name}.json"


def _read(path: Path) -> Verdict | None:
    try:
        return Verdict(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, found: Verdict) -> bool:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(asdict(found), indent=2), encoding="utf-8")
        scratch.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()
        return False
    return True


def main() -> int:
    """Test a directory, write the verdict beside it, and say it in one line."""
    parser = argparse.ArgumentParser(prog="python -m whisperlib.selftest", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("model", type=Path, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--gpu", action="store_true", help="run the model on the GPU")
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    if arguments.child:
        sys.stdout.write(_child(directory, arguments.model, use_gpu=arguments.gpu) + "\n")
        return 0
    found = verdict(Candidate(directory, "argument", read_build_info(directory)), use_gpu=arguments.gpu)
    if found is None:
        sys.stderr.write(f"{directory} has no build-info.json: it is not a build of this project\n")
        return 2
    sys.stdout.write(f"self-test of {directory.name}: {found}\n")
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
