"""The child process that holds one engine: `python -m bench.worker NAME`.

The first line on stdin is the setup, then each line is a request; each is answered by one line of JSON on stdout.
What libraries print goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from bench import engines, usage
from bench.engines.base import Engine, Request, Setup


def main() -> None:
    """Load the engine that the command line names, and answer until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description=__doc__)
    parser.add_argument("engine", choices=engines.CONTESTANTS)
    parser.add_argument("--prepare", action="store_true", help="only make the files that are missing")
    parser.add_argument("--cgroup", type=Path, action="append", default=[], help="join it before anything is loaded")
    parser.add_argument("--core", type=int, help="run on this core only")
    arguments = parser.parse_args()
    if arguments.prepare:
        engines.find(arguments.engine).prepare(Setup(**json.loads(sys.stdin.readline())))
        return
    for cgroup in arguments.cgroup:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    serve(arguments.engine, Setup(**json.loads(sys.stdin.readline())), replies)


def serve(name: str, setup: Setup, replies: TextIO) -> None:
    """Answer requests on stdin, the first answer being what was loaded or why it could not be."""
    started = time.perf_counter()
    try:
        engine = engines.find(name)(setup)
    except ImportError as error:
        _say(replies, missing=str(error))
        return
    _say(
        replies,
        version=engine.version,
        load_seconds=time.perf_counter() - started,
        outside=engine.spawns or bool(engine.process_ids),
    )
    try:
        for line in sys.stdin:
            message = json.loads(line)
            clients = message.pop("clients")
            _say(replies, **_answer(engine, Request(**message), clients))
    finally:
        engine.close()


def _answer(engine: Engine, request: Request, clients: int) -> dict[str, Any]:
    before = usage.of_self_and(engine.process_ids, engine.spawns)

    def one(_client: int) -> tuple[float, str, dict[str, float]]:
        started = time.perf_counter()
        reply = engine.transcribe(request)
        spent = time.perf_counter() - started
        return spent if reply.seconds is None else reply.seconds, reply.text, reply.stages

    started = time.perf_counter()
    if clients == 1:
        done = [one(0)]
    else:
        with ThreadPoolExecutor(clients) as pool:
            done = list(pool.map(one, range(clients)))
    wall_seconds = done[0][0] if clients == 1 else time.perf_counter() - started
    after = usage.of_self_and(engine.process_ids, engine.spawns)
    return {
        "seconds": [seconds for seconds, _, _ in done],
        "wall_seconds": wall_seconds,
        "text": done[0][1],
        "stages": done[0][2],
        "cpu_seconds": after.cpu_seconds - before.cpu_seconds,
        "total_cpu_seconds": after.cpu_seconds,
        "resident_bytes": after.resident_bytes,
        "peak_bytes": after.peak_bytes * (clients if engine.spawns else 1),
    }


def _say(replies: TextIO, **values: Any) -> None:
    replies.write(json.dumps(values) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
