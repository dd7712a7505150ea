"""What is claimed: each claim's figure, taken from the results by name, beside its target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

Results = dict[str, Any]
HEADINGS = ("claim", "ours", "theirs", "ratio", "target", "met", "measured with")
BF16 = frozenset({"avx512_bf16", "amx_bf16"})
BALANCED, FAST, WHEEL, CLI = "whisperlib-balanced", "whisperlib-fast", "pywhispercpp", "whisper-cli"
CTRANSLATE, GENAI = "faster-whisper-int8", "genai-fp16"
WIDTHS = ("greedy", "beam 5")
UNITS = {"median_seconds": "{:.2f} s", "throughput": "{:.2f} s/s", "python_share": "{:.2%}"}
OTHER_UNIT = "{:.4f}"


@dataclass(frozen=True)
class Place:
    """Where a figure stands in the results; without an engine it is one of the setting's facts."""

    case: str
    setting: str
    engine: str = ""
    figure: str = "median_seconds"

    def find(self, results: Results) -> float | None:
        """Return the figure, or None where it was not measured."""
        case = results["cases"].get(self.case, {})
        if not self.engine:
            return _number(case.get("facts", {}).get(self.setting, {}).get(self.figure))
        one = case.get("figures", {}).get(self.setting, {}).get(self.engine, {})
        if self.figure == "python_share":
            stages = one.get("stages", {})
            return stages["Python"] / sum(stages.values()) if "Python" in stages else None
        return _number(one.get(self.figure))


@dataclass(frozen=True)
class Claim:
    """Ours, over theirs where there are any, is at most or at least `target`.

    `needs`: instruction sets of which the machine must have one; elsewhere the ratio is shown without a target.
    """

    name: str
    ours: Place
    theirs: Place | None
    target: float
    at_least: bool = False
    needs: frozenset[str] = frozenset()

    def row(self, results: Results) -> Row:
        """Return this claim's line."""
        ours = self.ours.find(results)
        theirs = self.theirs.find(results) if self.theirs else None
        ratio = ours if self.theirs is None else ours / theirs if ours is not None and theirs else None
        aimed = not self.needs or bool(self.needs & set(results["machine"].get("instruction_sets", ())))
        met = None
        if ratio is not None and aimed:
            met = ratio >= self.target if self.at_least else ratio <= self.target
        return Row(self, ours, theirs, ratio, aimed, met, _weights(results["cases"].get(self.ours.case)))


@dataclass(frozen=True)
class Row:
    """A claim on one machine; `ratio` is None where something was not measured, `met` also where there is no target."""

    claim: Claim
    ours: float | None
    theirs: float | None
    ratio: float | None
    aimed: bool
    met: bool | None
    weights: str

    @property
    def target(self) -> str:
        """The target in words, "–" where this machine has none."""
        return wanted(self.claim) if self.aimed else "–"

    @property
    def verdict(self) -> str:
        """Whether it is met, in words."""
        if self.ratio is None:
            return "not measured"
        return "–" if self.met is None else "yes" if self.met else "no"

    def cells(self) -> tuple[str, ...]:
        """Return the cells below `HEADINGS`."""
        figure = self.claim.ours.figure
        theirs = _shown(self.theirs, figure) if self.claim.theirs else ""
        ratio = ("–" if self.ratio is None else f"{self.ratio:.2f}") if self.claim.theirs else ""
        return self.claim.name, _shown(self.ours, figure), theirs, ratio, self.target, self.verdict, self.weights


def rows(results: Results) -> Iterator[Row]:
    """Yield every claim's line for one machine's results."""
    return (claim.row(results) for claim in CLAIMS)


def wanted(claim: Claim) -> str:
    """Return a claim's target: "≤ 0.35"."""
    shown = f"{claim.target:.0%}" if claim.ours.figure == "python_share" else f"{claim.target:g}"
    return f"{'≥' if claim.at_least else '≤'} {shown}"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _shown(value: float | None, figure: str) -> str:
    return "–" if value is None else UNITS.get(figure, OTHER_UNIT).format(value)


def _weights(case: dict[str, Any] | None) -> str:
    return f"{case['model']} {case['weights']}" if case else ""


def _over(name: str, ours: Place, engine: str, target: float, **further: Any) -> Claim:
    return Claim(name, ours, replace(ours, engine=engine), target, **further)


def _clips() -> Iterator[Claim]:
    def clip(seconds: int, width: str, engine: str = BALANCED) -> Place:
        return Place("clips", f"{seconds} s, {width}", engine)

    for width in WIDTHS:
        yield _over(f"11 s, {width}: balanced / stock wheel", clip(11, width), WHEEL, 0.35)
        yield _over(f"11 s, {width}: balanced / faster-whisper int8", clip(11, width), CTRANSLATE, 0.80)
    yield _over("11 s, greedy: fast / stock wheel", clip(11, "greedy", FAST), WHEEL, 0.15)
    yield _over("11 s, greedy: fast / faster-whisper int8", clip(11, "greedy", FAST), CTRANSLATE, 0.40)
    for width in WIDTHS:
        yield _over(f"30 s, {width}: balanced / GenAI fp16", clip(30, width), GENAI, 1.0, needs=BF16)
    for seconds in (5, 11, 30):
        for width in WIDTHS:  # 50 to 90 % lower
            yield _over(f"{seconds} s, {width}: balanced / whisper-cli spawned", clip(seconds, width), CLI, 0.50)


def _load() -> Iterator[Claim]:
    long = Place("long", "10 minutes, greedy", BALANCED, "throughput")
    yield _over("10 minutes: throughput of balanced / stock wheel", long, WHEEL, 3.0, at_least=True)
    batched = "10 minutes: throughput of balanced / faster-whisper int8 batched"
    yield _over(batched, long, f"{CTRANSLATE}-batched", 1.3, at_least=True)
    alone = Place("clients", "11 s, greedy", BALANCED, "throughput")
    together = replace(alone, setting="11 s, greedy, 4 clients")
    yield Claim("4 clients: throughput of balanced / of one client", together, alone, 0.95, at_least=True)
    quiet = Place("busy", "quiet", BALANCED)
    yield Claim("busy machine: balanced / quiet", replace(quiet, setting="busy"), quiet, 2.5)
    yield Claim("beside another group: balanced / quiet", replace(quiet, setting="beside another group"), quiet, 2.5)


def _encode() -> Iterator[Claim]:
    ours = Place("encode", "30 s window", "whisperlib-encoder")
    ctranslate = "ctranslate2-encoder-int8"
    yield _over("encoder / stock wheel q5_1", ours, "pywhispercpp-encoder-q5_1", 0.20)
    yield _over("encoder / CTranslate2 int8", ours, ctranslate, 0.70)
    int8 = replace(ours, engine="whisperlib-encoder-int8")
    yield _over("encoder in int8 / CTranslate2 int8", int8, ctranslate, 0.55)
    for model in ("weights of the run", "micro model"):
        error = Place("encode", f"error against f32, {model}", figure="bf16")
        yield Claim(f"encoder: bf16 against f32, relative error, {model}", error, None, 0.01, needs=BF16)


def _python() -> Iterator[Claim]:
    for seconds in (11, 30):
        for width in WIDTHS:
            share = Place("profile", f"{seconds} s, {width}", BALANCED, "python_share")
            yield Claim(f"{seconds} s, {width}: Python's share of balanced", share, None, 0.02)


CLAIMS = (*_clips(), *_load(), *_encode(), *_python())
