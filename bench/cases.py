"""What is measured: the cases, and how a case asks its engines in turn."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import requests
from rich.console import Console

from bench import clips, engines, machine, models, quality
from bench.crew import Answer, Crew, EngineError, Worker, crew
from bench.engines.base import Request, Setup
from whisperlib.encoder import files
from whisperlib.errors import ModelError

console = Console(stderr=True)


@dataclass(frozen=True)
class Plan:
    """What the command line asks for.

    `engines` empty: those of the case. No round begins that would end after `budget_seconds`.
    """

    size: str = "small"
    kind: str = "q8_0"
    threads: int = 1
    rounds: int = 5
    budget_seconds: float = 240.0
    engines: tuple[str, ...] = ()
    minutes: float = 10.0

    def setup(self, name: str, threads: int | None) -> Setup:
        """Return what the engine called `name` shall load."""
        contestant = engines.CONTESTANTS[name]
        return Setup(self.size, contestant.kind or self.file_kind, threads, contestant.variant)

    @property
    def file_kind(self) -> str:
        """Weight type of the ggml file, where an engine has none of its own."""
        return "f16" if self.size == "micro" else self.kind


@dataclass(frozen=True)
class Trial:
    """One line of a case: what is asked, by how many clients at once."""

    setting: str
    request: Request
    clients: int = 1


@dataclass
class Series:
    """What one engine did in one trial, round by round."""

    trial: Trial
    answers: list[Answer] = field(default_factory=list)


@dataclass
class Outcome:
    """What a case came to: series by setting and engine, versions, and who was left out for which reason.

    `facts` are numbers that no request gives, by what they are and of what.
    """

    series: dict[str, dict[str, Series]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, trial: Trial, engine: str, answer: Answer) -> None:
        """Keep an answer."""
        self.series.setdefault(trial.setting, {}).setdefault(engine, Series(trial)).answers.append(answer)


class Rounds:
    """Counts rounds until there are enough or the time is up; at least one is always made."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._started = time.monotonic()
        self.made = 0

    def __iter__(self) -> Iterator[int]:
        while self.made < self._plan.rounds and not (self.made and self.spent):
            began = time.monotonic()
            yield self.made
            self.made += 1
            self._last = time.monotonic() - began

    @property
    def spent(self) -> bool:
        """Whether another round like the last would end beyond the budget."""
        return time.monotonic() - self._started + self._last > self._plan.budget_seconds


def run(case: str, plan: Plan) -> Outcome:
    """Measure one of `CASES`."""
    return CASES[case].measure(case, plan)


def names_of(case: str, plan: Plan) -> list[str]:
    """Return the engines that take part in a case; none where those that were asked for have no part in it."""
    wanted = plan.engines or CASES[case].engines
    return [name for name in wanted if case in (engines.CONTESTANTS[name].cases or _WITH_TEXT)]


def _clip(seconds: float, beam_size: int, *, detailed: bool = False) -> Request:
    return Request(str(clips.clip(seconds)), seconds, beam_size, detailed=detailed)


def _trial(seconds: float, beam_size: int, *, clients: int = 1, detailed: bool = False) -> Trial:
    width = "greedy" if beam_size == 1 else f"beam {beam_size}"
    setting = f"{seconds:g} s, {width}" + (f", {clients} clients" if clients > 1 else "")
    return Trial(setting, _clip(seconds, beam_size, detailed=detailed), clients)


def _takes_part(engine: str, trial: Trial) -> bool:
    return engines.CONTESTANTS[engine].beam_size in {None, trial.request.beam_size}


@contextlib.contextmanager
def _warm(
    names: Sequence[str], plan: Plan, threads: int | None, outcome: Outcome, options: Sequence[str] = ()
) -> Iterator[Crew]:
    """Start the engines and let each answer once, uncounted."""
    with crew(names, {name: plan.setup(name, threads) for name in names}, options) as running:
        for worker in list(running.workers):
            console.print(f"{worker.name}: {worker.version}, ready in {worker.ready_seconds:.1f} s")
            outcome.versions[worker.name] = worker.version
            _ask(running, worker, _trial(5, 1), lambda *_: None)
        try:
            yield running
        finally:
            outcome.left_out |= running.left_out


def _ask(running: Crew, worker: Worker, trial: Trial, keep: Callable[[Trial, str, Answer], None]) -> None:
    try:
        answer = worker.ask(trial.request, trial.clients)
    except EngineError as error:
        running.dismiss(worker, str(error))
        return
    keep(trial, worker.name, answer)


def _round(running: Crew, trials: Sequence[Trial], number: int, outcome: Outcome) -> None:
    """Ask every engine for every trial; who begins changes from round to round."""
    for trial in trials:
        turn = number % max(1, len(running.workers))
        for worker in [*running.workers[turn:], *running.workers[:turn]]:
            if _takes_part(worker.name, trial):
                _ask(running, worker, trial, outcome.add)


def _in_turn(case: str, plan: Plan, trials: Sequence[Trial]) -> Outcome:
    outcome = Outcome()
    with _warm(names_of(case, plan), plan, plan.threads, outcome) as running:
        for number in Rounds(plan):
            _round(running, trials, number, outcome)
    return outcome


def _clips(case: str, plan: Plan) -> Outcome:
    return _in_turn(case, plan, [_trial(seconds, beams) for seconds in (5, 11, 30) for beams in (1, 5)])


def _long(case: str, plan: Plan) -> Outcome:
    seconds = plan.minutes * 60
    request = Request(str(clips.talk(plan.minutes)), seconds, 1, skip_pauses=True)
    return _in_turn(case, plan, [Trial(f"{plan.minutes:g} minutes, greedy", request)])


def _clients(case: str, plan: Plan) -> Outcome:
    return _in_turn(case, plan, [_trial(11, 1), _trial(11, 1, clients=4)])


def _busy(case: str, plan: Plan) -> Outcome:
    outcome = Outcome()
    quiet = _trial(11, 1)
    with _warm(names_of(case, plan), plan, plan.threads, outcome) as running:
        for number in Rounds(plan):
            _round(running, [Trial("quiet", quiet.request)], number, outcome)
            with machine.neighbours(2):
                _round(running, [Trial("busy", quiet.request)], number, outcome)
            with machine.neighbours(1, apart=True):
                _round(running, [Trial("beside another group", quiet.request)], number, outcome)
    return outcome


def _quota(case: str, plan: Plan) -> Outcome:
    outcome = Outcome()
    with machine.one_cpu() as limit, _warm(names_of(case, plan), plan, None, outcome, limit.options) as running:
        outcome.notes.append(f"{limit.how}; each engine chooses its own number of threads")
        for number in Rounds(plan):
            _round(running, [_trial(11, 1)], number, outcome)
    return outcome


def _start(case: str, plan: Plan) -> Outcome:
    outcome = Outcome()
    trial = _trial(5, 1)
    names = names_of(case, plan)
    for number in Rounds(plan):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            if name in outcome.left_out or not _takes_part(name, trial):
                continue
            with crew([name], {name: plan.setup(name, plan.threads)}) as running:
                for worker in list(running.workers):
                    outcome.versions[name] = worker.version
                    _ask(running, worker, trial, _with_start_of(worker, outcome))
                outcome.left_out |= running.left_out
    outcome.notes.append("from the start of the process to its first answer; files in the page cache")
    return outcome


def _with_start_of(worker: Worker, outcome: Outcome) -> Callable[[Trial, str, Answer], None]:
    def keep(trial: Trial, name: str, answer: Answer) -> None:
        outcome.add(trial, name, first(worker, answer))

    return keep


def first(worker: Worker, answer: Answer) -> Answer:
    """Return `answer` with the start of its engine counted: of the worker, where the worker holds the model."""
    before = worker.load_seconds if worker.outside else worker.ready_seconds
    return Answer(
        [seconds + before for seconds in answer.seconds],
        answer.wall_seconds + before,
        answer.text,
        answer.total_cpu_seconds,
        answer.total_cpu_seconds,
        answer.resident_bytes,
        answer.peak_bytes,
    )


def _profile(case: str, plan: Plan) -> Outcome:
    outcome = Outcome()
    trials = [_trial(seconds, beams, detailed=True) for seconds in (11, 30) for beams in (1, 5)]
    with _warm([name for name in names_of(case, plan) if name in engines.OURS], plan, plan.threads, outcome) as running:
        for number in Rounds(plan):
            _round(running, trials, number, outcome)
    outcome.notes.append(f"HTTP, all of a request but the adapter's stages: {http_seconds(plan) * 1e3:.1f} ms")
    return outcome


def http_seconds(plan: Plan) -> float:
    """Return the least that the server's own part of a request took, of as many requests as rounds."""
    from whisperlib.web.local import LocalServer  # noqa: PLC0415

    path = clips.clip(11)
    shares = []
    with (
        LocalServer(model_size=models.ggml(plan.size, plan.file_kind), threads=plan.threads) as server,
        requests.Session() as session,
    ):
        session.trust_env = False  # a proxy of the environment cannot reach our loopback
        for _ in range(plan.rounds):
            started = time.perf_counter()
            with path.open("rb") as file:
                answer = session.post(
                    f"{server.url}/transcribe", files={"file": file}, data={"language": "en"}, timeout=600
                )
            spent = time.perf_counter() - started
            answer.raise_for_status()
            shares.append(
                spent - sum(answer.json()["timings"][name] for name in ("queue", "decode", "vad", "inference"))
            )
    return float(min(shares))


def _encode(case: str, plan: Plan) -> Outcome:
    outcome = _in_turn(case, plan, [Trial("30 s window", _clip(30, 1))])
    for name, size, kind in (("weights of the run", plan.size, plan.file_kind), ("micro model", "micro", "f16")):
        try:
            errors = quality.encoder_errors(models.ggml(size, kind), plan.threads)
        except ModelError as error:
            outcome.notes.append(f"no error against f32 with the {name}: {error}")
            continue
        outcome.facts[f"error against f32, {name}"] = errors
    if "bf16" not in files.precisions():
        outcome.notes.append("this CPU has no bf16: OpenVINO's encoder runs in f32, and bf16's error was not measured")
    return outcome


def _weights(case: str, plan: Plan) -> Outcome:
    outcome = Outcome()
    trials = [_trial(11, beams, detailed=True) for beams in (1, 5)]
    names = names_of(case, plan)
    third = replace(plan, budget_seconds=plan.budget_seconds / 3)  # the last one is for loading and error rates
    for variant in ("balanced-ggml", "balanced"):  # one after the other, for memory's sake
        group = [name for name in names if engines.CONTESTANTS[name].variant == variant]
        with _warm(group, plan, plan.threads, outcome) as running:
            for number in Rounds(third):
                _round(running, trials, number, outcome)
    made = [kind for kind in engines.WEIGHT_TYPES if any(name.endswith(kind) for name in outcome.versions)]
    outcome.facts["file bytes"] = {kind: models.ggml(plan.size, kind).stat().st_size for kind in made}
    rates = {kind: _error_rate(kind, outcome) for kind in engines.WEIGHT_TYPES}
    outcome.facts["word error rate"] = {kind: rate for kind, rate in rates.items() if rate is not None}
    return outcome


def _error_rate(kind: str, outcome: Outcome) -> float | None:
    try:
        return quality.word_error_rate(kind)
    except (ImportError, ValueError) as error:
        outcome.notes.append(f"no word error rate of {kind}: {error}")
        return None


@dataclass(frozen=True)
class Case:
    """A way to measure, with the engines that fit into its five minutes."""

    measure: Callable[[str, Plan], Outcome]
    engines: tuple[str, ...]


def _only_in(case: str) -> tuple[str, ...]:
    return tuple(name for name, contestant in engines.CONTESTANTS.items() if contestant.cases == (case,))


_FEW = ("whisperlib-balanced", "whisperlib-fast", "whisper-cli", "pywhispercpp", "faster-whisper-int8", "genai-fp16")
CASES = {
    "clips": Case(_clips, (*engines.OURS, *_FEW[2:], "genai-int8")),
    "start": Case(_start, (*_FEW, "whisper-server")),
    "clients": Case(
        _clients, ("whisperlib-balanced", "whisper-cli", "whisper-server", "faster-whisper-int8", "genai-fp16")
    ),
    "busy": Case(_busy, _FEW),
    "quota": Case(_quota, _FEW),
    "profile": Case(_profile, engines.OURS),
    "long": Case(
        _long, ("whisperlib-balanced", "whisperlib-fast", "pywhispercpp", "faster-whisper-int8-batched", "genai-fp16")
    ),
    "encode": Case(_encode, _only_in("encode")),
    "weights": Case(_weights, _only_in("weights")),
}
_WITH_TEXT = CASES.keys() - {"encode", "weights"}
