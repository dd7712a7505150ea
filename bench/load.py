"""Loads the server with many clients at once: `make load`.

Starts a server of its own on the loopback and asks it for the bundled samples, short and long, from 1, 4, 16 and 64
clients. Every answer is compared with what is said in its own audio, so nothing can be lost or mixed up. Then a
server that lets nobody wait for long is asked for more than it can do: it may answer 200 and 429, nothing else.
Last, the HTTP layer's own share of a request, all but decoding and inference, is measured with one client.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import requests
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from whisperlib import assets
from whisperlib.errors import WhisperlibError
from whisperlib.web.local import LocalServer

CLIENTS = (1, 4, 16, 64)
LONG_EVERY = 12  # one request in so many is for the long sample
TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Sample:
    """One bundled sample, and its text."""

    name: str
    data: bytes
    text: str


@dataclass
class Tally:
    """What came back. Times are seconds of the accepted requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    layer: list[float] = field(default_factory=list)
    audio_seconds: float = 0.0
    wrong: int = 0
    without_retry_after: int = 0
    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, sample: Sample, answer: requests.Response, seconds: float) -> None:
        """Count an answer, and compare its text with what was said."""
        with self._lock:
            self.statuses[answer.status_code] += 1
            if answer.status_code == 429 and int(answer.headers.get("Retry-After", 0)) < 1:
                self.without_retry_after += 1
            if not answer.ok:
                return
            told = answer.json()
            timings = told["timings"]
            self.latencies.append(seconds)
            self.waits.append(timings["queue"])
            self.layer.append(seconds - timings["decode"] - timings["vad"] - timings["inference"])
            self.audio_seconds += told["duration"]
            self.wrong += told["text"] != sample.text

    def percentile(self, percent: int) -> float:
        """Latency that `percent` of the accepted requests kept, seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else float("nan")

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, wrong or refused in another way than it may be."""
        return not self.wrong and not self.without_retry_after and set(self.statuses) <= {200, 429}


def samples() -> Iterator[Sample]:
    """Yield samples for ever, short ones with a long one now and then."""
    all_of_them = [
        Sample(row["file"], (assets.SAMPLES / row["file"]).read_bytes(), row["text"])
        for row in assets.sample_references()
        if row["micro_f16_exact"]
    ]
    long = next(sample for sample in all_of_them if "long" in sample.name)
    short = itertools.cycle(sample for sample in all_of_them if sample is not long)
    for number in itertools.count(1):
        yield long if number % LONG_EVERY == 0 else next(short)


def ask(url: str, n_clients: int, n_requests: int, progress: Progress) -> Tally:
    """Ask `n_requests` times from `n_clients` at once."""
    tally = Tally()
    task = progress.add_task(f"{n_clients} clients", total=n_requests)
    work = list(itertools.islice(samples(), n_requests))
    sessions = threading.local()

    def one(sample: Sample) -> None:
        if not hasattr(sessions, "session"):
            sessions.session = requests.Session()
            sessions.session.trust_env = False  # a proxy of the environment cannot reach our loopback
        started = time.perf_counter()
        answer = sessions.session.post(f"{url}/transcribe", data=sample.data, timeout=TIMEOUT_SECONDS)
        tally.add(sample, answer, time.perf_counter() - started)
        progress.advance(task)

    started = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as pool:
        list(pool.map(one, work))
    tally.seconds = time.perf_counter() - started
    return tally


def row(name: str, tally: Tally) -> tuple[str, ...]:
    """Write a tally as a row of the table."""
    others = sum(count for status, count in tally.statuses.items() if status not in {200, 429})
    return (
        name,
        str(tally.statuses[200]),
        str(tally.statuses[429]),
        str(others),
        str(tally.wrong),
        f"{tally.audio_seconds / tally.seconds:.1f}",
        *(f"{tally.percentile(percent):.2f}" for percent in (50, 95, 99)),
        f"{max(tally.waits, default=0):.1f}",
    )


def measure(n_requests: int, max_wait_seconds: float) -> bool:
    """Run all of it; say whether every answer was as it should be."""
    table = Table(title="micro, bundled samples; latency and wait in seconds")
    for heading in ("clients", "200", "429", "other", "wrong text", "audio s/s", "p50", "p95", "p99", "longest wait"):
        table.add_column(heading, justify="right")
    tallies = []
    with Progress(transient=True) as progress:
        with LocalServer(model_size="micro", max_wait_seconds=3600, http_threads=128) as server:
            for n_clients in CLIENTS:
                tally = ask(server.url, n_clients, max(n_requests, n_clients), progress)
                tallies.append(tally)
                table.add_row(*row(str(n_clients), tally))
                if tally.statuses[429]:
                    tally.wrong += tally.statuses[429]  # this server has no reason to refuse
            layer = ask(server.url, 1, n_requests, progress).layer
        with LocalServer(model_size="micro", max_wait_seconds=max_wait_seconds, http_threads=128) as server:
            tally = ask(server.url, CLIENTS[-1], 4 * n_requests, progress)
            tallies.append(tally)
            table.add_row(*row(f"{CLIENTS[-1]}, wait ≤ {max_wait_seconds:g} s", tally))
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print(
        f"HTTP layer, one client, all but decoding and inference: median {statistics.median(layer) * 1e3:.1f} ms, "
        f"worst {max(layer) * 1e3:.1f} ms of {len(layer)} requests"
    )
    if not tallies[-1].statuses[429]:
        console.print("[yellow]the last server was never full: it needs more requests[/]")
    return all(tally.sound for tally in tallies)


def main() -> int:
    """Print the table; fail where an answer was lost, wrong, or refused other than by 429."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--requests", type=int, default=100, help="requests for each number of clients (100)")
    parser.add_argument("--max-wait", type=float, default=3.0, help="wait that the full server allows, seconds (3)")
    arguments = parser.parse_args()
    if arguments.requests < 1 or arguments.max_wait < 0:
        parser.error("give at least one request, and a wait of 0 or more")
    try:
        sound = measure(arguments.requests, arguments.max_wait)
    except (WhisperlibError, requests.RequestException) as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
