"""The comparison: its engines that need no peer, its arithmetic, and what it writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as judge
from bench import cases, claims, clips, crew, engines, figures, machine, models, quality, report, stopwatch, usage
from bench.cases import Outcome, Plan, Trial
from bench.crew import Answer, EngineError, Worker
from bench.engines.base import Request, Setup
from tools.ggml_file import REPOSITORY, tensor_layout
from tools.random_weights import SIZES
from whisperlib import encoder
from whisperlib.encoder import files


def answer(seconds: float, *, cpu: float = 1.0, peak: int = 1000, text: str = "a") -> Answer:
    return Answer([seconds], seconds, text, cpu, cpu, 500, peak)


def outcome(**by_engine: list[float]) -> Outcome:
    made = Outcome()
    trial = Trial("10 s, greedy", Request("a.wav", 10.0, 1))
    for engine, times in by_engine.items():
        for seconds in times:
            made.add(trial, engine.replace("_", "-"), answer(seconds, cpu=2 * seconds))
    return made


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what is made out of the repository: here, and in the workers."""
    cache = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "CACHE", cache)
        patch.setenv(models.CACHE_VARIABLE, str(cache))
        yield cache


@pytest.fixture(scope="module")
def speech(own_cache: Path) -> Request:
    crew.prepare("whisperlib-balanced", Setup("micro", "f16", 1, "balanced"))
    return Request(str(clips.clip(5)), 5.0, 1)


def test_figures_are_medians_and_rates() -> None:
    figure = figures.of_outcome(outcome(whisperlib_balanced=[1.0, 9.0, 2.0]))["figures"]["10 s, greedy"]
    one = figure["whisperlib-balanced"]
    assert (one["median_seconds"], one["best_seconds"], one["worst_seconds"], one["rounds"]) == (2.0, 1.0, 9.0, 3)
    assert one["real_time_factor"] == pytest.approx(0.2)
    assert one["throughput"] == pytest.approx(5.0)
    assert one["cpu_per_audio_second"] == pytest.approx(0.4)


def test_several_clients_share_the_wall_time() -> None:
    made = Outcome()
    trial = Trial("4 clients", Request("a.wav", 10.0, 1), clients=4)
    made.add(trial, "whisper-cli", Answer([1.0, 2.0, 3.0, 4.0], 4.0, "a", 8.0, 8.0, 0, 1000))
    one = figures.of_outcome(made)["figures"]["4 clients"]["whisper-cli"]
    assert one["median_seconds"] == 2.5
    assert one["throughput"] == pytest.approx(10.0)
    assert one["cpu_per_audio_second"] == pytest.approx(0.2)


def test_ratios_are_ours_over_theirs() -> None:
    told = figures.of_outcome(
        outcome(whisperlib_balanced=[1.0], whisperlib_fast=[0.5], whisper_cli=[4.0], genai_fp16=[2.0])
    )["ratios"]["10 s, greedy"]
    assert {pair: ratio["median_seconds"] for pair, ratio in told.items()} == {
        "whisperlib-balanced : whisper-cli": 0.25,
        "whisperlib-balanced : genai-fp16": 0.5,
        "whisperlib-fast : whisper-cli": 0.125,
        "whisperlib-fast : genai-fp16": 0.25,
    }
    assert told["whisperlib-fast : genai-fp16"]["cpu_seconds"] == 0.25


def test_busy_is_told_over_quiet() -> None:
    made = Outcome()
    request = Request("a.wav", 10.0, 1)
    for setting, times in {"quiet": (1.0, 2.0, 3.0), "busy": (4.0, 20.0, 6.0)}.items():
        for seconds in times:
            made.add(Trial(setting, request), "whisper-cli", answer(seconds))
    told = figures.of_outcome(made)
    assert told["notes"] == ["whisper-cli busy: median 3.0 and worst 10.0 times the quiet median"]
    busy = told["figures"]["busy"]["whisper-cli"]
    assert (busy["median_over_quiet"], busy["worst_over_quiet"]) == (3.0, 10.0)


def test_rounds_end_with_the_budget_but_one_is_always_made() -> None:
    assert len([*cases.Rounds(Plan(rounds=3))]) == 3
    assert len([*cases.Rounds(Plan(rounds=3, budget_seconds=0))]) == 1


def test_a_profile_that_sets_the_beams_stands_aside_for_others() -> None:
    assert engines.CONTESTANTS["whisperlib-accurate"].beam_size == 5
    assert engines.CONTESTANTS["whisperlib-fast"].beam_size == 1
    assert engines.CONTESTANTS["whisperlib-balanced"].beam_size is None


def test_every_case_names_engines_that_there_are() -> None:
    for case in cases.CASES.values():
        assert set(case.engines) <= set(engines.CONTESTANTS)


def test_stages_are_told_from_looks() -> None:
    windows = [10.0, 14.0, 20.0]  # two windows, and the end
    looks = [9.0, 10.0, 10.001, 12.0, 12.5, 13.0, 13.5, 14.0, 14.001, 17.0, 17.5, 18.0, 20.0]
    assert stopwatch.split(looks, windows, 12.0) == pytest.approx(
        {"state and mel": 2.0, "encode and cross": 5.0, "prompt": 1.0, "decode": 4.0}
    )


def test_merges_follow_from_ranks() -> None:
    ranks = {token: rank for rank, token in enumerate([b"a", b"b", b"c", b"bc", b"ab", b"abc"])}
    assert models.parts_of(b"abc", ranks) == (b"a", b"bc")


@pytest.mark.parametrize(
    ("ggml", "transformers"),
    [
        ("encoder.conv1.bias", "model.encoder.conv1.bias"),
        ("encoder.ln_post.weight", "model.encoder.layer_norm.weight"),
        ("encoder.positional_embedding", "model.encoder.embed_positions.weight"),
        ("encoder.blocks.11.attn_ln.bias", "model.encoder.layers.11.self_attn_layer_norm.bias"),
        ("decoder.blocks.0.cross_attn.query.weight", "model.decoder.layers.0.encoder_attn.q_proj.weight"),
        ("decoder.blocks.0.cross_attn_ln.weight", "model.decoder.layers.0.encoder_attn_layer_norm.weight"),
        ("decoder.blocks.0.mlp_ln.weight", "model.decoder.layers.0.final_layer_norm.weight"),
        ("decoder.blocks.0.mlp.2.bias", "model.decoder.layers.0.fc2.bias"),
        ("decoder.token_embedding.weight", "model.decoder.embed_tokens.weight"),
        ("decoder.ln.bias", "model.decoder.layer_norm.bias"),
    ],
)
def test_tensors_have_the_names_of_transformers(ggml: str, transformers: str) -> None:
    assert models.transformers_name(ggml) == transformers


def test_transformers_names_are_all_different() -> None:
    names = Counter(models.transformers_name(spec.name) for spec in tensor_layout(SIZES["tiny"]))
    assert set(names.values()) == {1}


def test_a_file_that_could_not_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "CACHE", tmp_path)

    def write(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        models._made(tmp_path / "small" / "file", write)
    assert not any((tmp_path / "small").iterdir())


@pytest.mark.parametrize("name", ["whisperlib-balanced", "whisperlib-fast", "whisper-cli"])
def test_engines_answer_with_the_same_text(name: str, speech: Request) -> None:
    worker = Worker(name, Setup("micro", "f16", 1, engines.CONTESTANTS[name].variant))
    try:
        told = worker.ask(speech)
        both = worker.ask(speech, clients=2)
    finally:
        worker.close()
    assert told.text
    assert told.text == both.text
    assert len(told.seconds) == 1
    assert len(both.seconds) == 2
    assert both.wall_seconds >= max(both.seconds)
    assert told.cpu_seconds > 0
    assert told.peak_bytes > 30e6
    assert bool(told.resident_bytes) == (not name.endswith("cli"))
    assert worker.outside == name.endswith("cli")


def test_a_detailed_request_tells_its_stages(speech: Request) -> None:
    worker = Worker("whisperlib-balanced", Setup("micro", "f16", 1, "balanced"))
    try:
        told = worker.ask(Request(speech.audio, speech.seconds, 5, detailed=True))
    finally:
        worker.close()
    assert told.stages["encode and cross"] > 0
    assert told.stages["decode"] > 0
    assert sum(told.stages.values()) == pytest.approx(told.wall_seconds, rel=0.2)


def test_a_missing_peer_is_left_out_with_the_reason() -> None:
    running = crew.Crew([], {})
    running.hire("whisperlib-balanced", Setup("no such size", "f16", 1, "balanced"))
    assert not running.workers
    assert "give one of micro, tiny" in running.left_out["whisperlib-balanced"]


def test_an_engine_that_dies_is_dismissed(speech: Request) -> None:
    worker = Worker("whisperlib-balanced", Setup("micro", "f16", 1, "balanced"))
    running = crew.Crew([worker], {})
    with pytest.raises(EngineError, match="exit status"):
        worker.ask(Request("/no/such/file.wav", 1.0, 1))
    running.dismiss(worker, "gone")
    assert running.left_out == {"whisperlib-balanced": "gone"}


def test_other_engines_run_without_our_settings() -> None:
    code = "import sys, bench.worker, bench.engines.programs; print('whisperlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "False"


def test_usage_counts_this_process() -> None:
    before = usage.of_self_and(())
    sum(number * number for number in range(2_000_000))
    after = usage.of_self_and(())
    assert after.cpu_seconds > before.cpu_seconds
    assert 0 < after.resident_bytes <= after.peak_bytes


def test_neighbours_end_with_the_block() -> None:
    with machine.neighbours(1):
        pass  # the block's end waits for the process


def test_one_cpu_leaves_no_cgroup_behind(tmp_path: Path) -> None:
    with machine.one_cpu(tmp_path) as limit:
        assert limit.options[0] == "--core"
    (tmp_path / "cgroup.procs").touch()
    with machine.one_cpu(tmp_path) as limit:  # a directory that is no cgroup has no cpu.max
        assert limit.options[0] == "--core"
    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.procs"]


ZEN_3 = {"cpu": "AMD EPYC", "instruction_sets": ["avx2"], "cores": 2}
ZEN_4 = {"cpu": "AMD EPYC", "instruction_sets": ["avx2", "avx512_bf16", "avx512f"], "cores": 2}


def described(about: dict[str, Any]) -> dict[str, Any]:
    return {**about, "memory_bytes": 8e9, "system": "Linux", "python": "3.11"}


@pytest.mark.parametrize(
    ("about", "name"),
    [
        (ZEN_3, "amd-epyc-avx2-2-cores"),
        (ZEN_4, "amd-epyc-avx512-bf16-2-cores"),
        (
            {"cpu": "Intel(R) Xeon(R) Platinum 8480+", "instruction_sets": ["amx_bf16", "avx512_bf16"], "cores": 8},
            "intel-xeon-platinum-8480-amx-bf16-8-cores",
        ),
        ({"cpu": "Neoverse-N1", "instruction_sets": [], "cores": 4}, "neoverse-n1-4-cores"),
    ],
)
def test_a_machine_is_named_by_its_widest_instructions_too(about: dict[str, Any], name: str) -> None:
    assert machine.slug(about) == name


def test_this_machine_has_a_name() -> None:
    about = machine.describe()
    assert machine.slug(about)
    assert machine.same(about, machine.describe())


def test_results_of_other_cases_stay_on_the_same_machine(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"machine": ZEN_3, "cases": {"long": {}, "clips": {"old": 1}}}))
    assert report.merged(path, ZEN_3, {"clips": {}})["cases"] == {"long": {}, "clips": {}}
    assert report.merged(path, ZEN_4, {"clips": {}})["cases"] == {"clips": {}}
    assert report.merged(path, {**ZEN_3, "cores": 4}, {"clips": {}})["cases"] == {"clips": {}}
    assert report.merged(tmp_path / "none", ZEN_3, {"clips": {}})["cases"] == {"clips": {}}


def clips_case(**seconds: float) -> dict[str, Any]:
    made = Outcome()
    for engine, each in seconds.items():
        trial = Trial("30 s, greedy", Request("a.wav", 30.0, 1))
        made.add(trial, engine.replace("_", "-"), answer(each))
    return {"model": "small", "weights": "q8_0", "threads": 2, "load_before": 0.1, **figures.of_outcome(made)}


def test_a_page_says_how_its_figures_were_made() -> None:
    case = clips_case(whisperlib_balanced=3.0)
    results = {"machine": described(ZEN_4), "cases": {"clips": case}}
    assert "make bench ARGS" not in report.page(results).partition("## clips")[2], "those of before do not say"
    case |= {"command": "make bench ARGS='--rounds 2'", "commit": "0123456789"}
    assert "`make bench ARGS='--rounds 2'`, of commit 0123456789." in report.page(results)


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="this is no git checkout")
def test_the_commit_that_is_measured_is_named() -> None:
    assert re.fullmatch(r"[0-9a-f]{10,}(-dirty)?", machine.commit() or "")


def small(**case: Any) -> dict[str, Any]:
    return {"model": "small", "weights": "q8_0", **case}


def claim(name: str, results: dict[str, Any]) -> claims.Row:
    return next(row for row in claims.rows(results) if row.claim.name == name)


def test_a_claim_is_a_ratio_beside_its_target() -> None:
    results = {
        "machine": described(ZEN_4),
        "cases": {"clips": clips_case(whisperlib_balanced=3.0, genai_fp16=2.0, whisper_cli=10.0)},
    }
    missed = claim("30 s, greedy: balanced / GenAI fp16", results)
    assert missed.cells()[1:] == ("3.00 s", "2.00 s", "1.50", "≤ 1", "no", "small q8_0")
    assert claim("30 s, greedy: balanced / whisper-cli spawned", results).verdict == "yes"
    absent = claim("11 s, greedy: balanced / stock wheel", results)
    assert absent.cells()[1:6] == ("–", "–", "–", "≤ 0.35", "not measured")


def test_a_claim_of_other_instructions_is_shown_without_a_target() -> None:
    results = {
        "machine": described(ZEN_3),
        "cases": {"clips": clips_case(whisperlib_balanced=3.0, genai_fp16=2.0)},
    }
    assert claim("30 s, greedy: balanced / GenAI fp16", results).cells()[3:6] == ("1.50", "–", "–")


def test_throughput_is_at_least_and_facts_and_shares_are_at_most() -> None:
    together = {"whisperlib-balanced": {"throughput": 9.0}}
    alone = {"whisperlib-balanced": {"throughput": 10.0}}
    staged = {"whisperlib-balanced": {"stages": {"decode": 0.98, "Python": 0.02}}}
    results = {
        "machine": described(ZEN_4),
        "cases": {
            "clients": small(figures={"11 s, greedy": alone, "11 s, greedy, 4 clients": together}),
            "profile": small(figures={"11 s, greedy": staged}),
            "encode": small(facts={"error against f32, micro model": {"bf16": 0.02}}),
        },
    }
    clients = claim("4 clients: throughput of balanced / of one client", results)
    assert clients.cells()[3:6] == ("0.90", "≥ 0.95", "no")
    share = claim("11 s, greedy: Python's share of balanced", results)
    assert share.cells()[1:6] == ("2.00%", "", "", "≤ 2%", "yes")
    error = claim("encoder: bf16 against f32, relative error, micro model", results)
    assert error.cells()[1:6] == ("0.0200", "", "", "≤ 0.01", "no")


def test_every_claim_names_a_case_and_engines_of_it() -> None:
    for each in claims.CLAIMS:
        for place in filter(None, (each.ours, each.theirs)):
            assert place.case in cases.CASES
            assert not place.engine or place.engine in cases.CASES[place.case].engines
    assert len({each.name for each in claims.CLAIMS}) == len(claims.CLAIMS)


def test_machines_stand_side_by_side() -> None:
    fast = {"machine": described(ZEN_4), "cases": {"clips": clips_case(whisperlib_balanced=1.0, whisper_cli=4.0)}}
    slow = {"machine": described(ZEN_3), "cases": {"clips": clips_case(whisperlib_balanced=3.0, whisper_cli=4.0)}}
    lines = report.summary([fast, slow]).splitlines()
    assert "performance/amd-epyc-avx512-bf16-2-cores/README.md" in lines[0]
    assert "| 30 s, greedy: balanced / whisper-cli spawned | ≤ 0.5 | 0.25 | **0.75** |" in lines


def test_weight_types_have_a_table_of_their_own() -> None:
    stages = {"encode and cross": 2.0, "prompt": 0.03, "decode": 0.3}
    one = {"stages": stages, "peak_bytes": 5e8, "steady_bytes": 4e8}
    case = {
        "model": "small",
        "figures": {"11 s, greedy": {"whisperlib-ggml-q4_k": one}, "11 s, beam 5": {"whisperlib-ggml-q4_k": one}},
        "facts": {"file bytes": {"q4_k": 150_000_000}, "word error rate": {"q8_0": 0.0244}},
    }
    cells = {row[0]: row[1:] for row in report.weight_rows(case)}
    assert cells["q4_k"] == ("150", "10.0", "10.0", "2.00", "–", "500", "400", "–", "–", "–")
    assert cells["q8_0"][-1] == "2.4%"


def test_the_summary_is_written_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_summary(page, "new")
    assert page.read_text() == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="there is no"):
        report.write_summary(page, "new")


def test_the_pages_are_those_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    machines = report.every(judge.RESULTS)
    text = judge.PAGE.read_text(encoding="utf-8")
    assert f"{report.BEGIN}\n\n{report.summary(machines)}\n\n{report.END}" in text
    for results in machines:
        directory = judge.RESULTS / machine.slug(results["machine"])
        assert (directory / "README.md").read_text(encoding="utf-8") == report.page(results)
        assert json.loads((directory / "results.json").read_text(encoding="utf-8")) == results
    assert judge.main(["--claims"]) == 0
    printed = capsys.readouterr().out
    assert all(machine.slug(results["machine"]) in printed for results in machines)


def test_claims_without_results_say_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge.main(["--claims", "--output", str(tmp_path)]) == 1
    assert "make bench" in capsys.readouterr().err


def test_another_text_is_marked() -> None:
    made = outcome(whisperlib_balanced=[1.0], whisper_cli=[2.0])
    made.add(Trial("10 s, greedy", Request("a.wav", 10.0, 1)), "genai-fp16", answer(1.0, text="something else"))
    case = figures.of_outcome(made)
    assert [row[1] for row in report.rows(case)] == ["whisperlib-balanced", "whisper-cli", "genai-fp16*"]


def test_spaces_do_not_make_another_text() -> None:
    made = outcome(whisperlib_balanced=[1.0])
    made.add(Trial("10 s, greedy", Request("a.wav", 10.0, 1)), "whisper-server", answer(1.0, text=" a "))
    assert [row[1] for row in report.rows(figures.of_outcome(made))] == ["whisperlib-balanced", "whisper-server"]


def test_the_judge_writes_results(tmp_path: Path, own_cache: Path) -> None:
    arguments = ["--case", "clients", "--size", "micro", "--rounds", "1", "--threads", "1", "--output", str(tmp_path)]
    assert judge.main([*arguments, "--engine", "whisperlib-balanced", "--engine", "whisper-cli"]) == 0
    (results,) = report.every(tmp_path)
    directory = tmp_path / machine.slug(results["machine"])
    case = results["cases"]["clients"]
    assert set(case["figures"]) == {"11 s, greedy", "11 s, greedy, 4 clients"}
    assert case["ratios"]["11 s, greedy"]["whisperlib-balanced : whisper-cli"]["median_seconds"] > 0
    assert case["left_out"] == {}
    assert "whisperlib-balanced" in (directory / "README.md").read_text(encoding="utf-8")
    assert (own_cache / "micro" / "ggml-micro-f16.bin").exists()


def test_a_case_without_its_engines_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--case", "clips", "--engine", "whisperlib-encoder", "--output", str(tmp_path)]
    assert judge.main(arguments) == 0
    assert "clips: none of the engines" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_the_encoder_alone_is_timed_without_what_surrounds_it(own_cache: Path) -> None:
    setups = {"whisperlib-encoder": "float", "whisperlib-encoder-ggml": "ggml"}
    request = Request(str(clips.clip(30)), 30.0, 1)
    for name, variant in setups.items():
        crew.prepare(name, Setup("micro", "f16", 1, variant))
        worker = Worker(name, Setup("micro", "f16", 1, variant))
        try:
            told = worker.ask(request)
        finally:
            worker.close()
        assert told.text == ""
        assert 0 < told.seconds[0] == told.wall_seconds
        assert told.cpu_seconds > 0


def test_a_precision_is_compared_with_float32(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # int8 needs an extra that the tests do without. The float encoder stands for it, which differs by bf16 at most.
    find, accelerate = encoder.find, models.accelerate
    monkeypatch.setattr(encoder, "find", lambda model, _kind: find(model, "float"))
    monkeypatch.setattr(models, "accelerate", lambda model, _kind: accelerate(model, "float"))
    errors = quality.encoder_errors(models.ggml("micro"), 1)
    assert set(errors) == {*files.precisions(), "int8"} - {"f32"}
    assert errors["int8"] == pytest.approx(errors.get("bf16", 0.0), abs=1e-6)


def test_weight_types_are_scored_on_the_samples(own_cache: Path) -> None:
    assert quality.word_error_rate("q8_0") < 0.1
    with pytest.raises(ValueError, match="a multiple of 256"):
        quality.word_error_rate("q4_k")
