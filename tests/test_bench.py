"""The comparison: its engines that need no peer, its arithmetic, and what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench import __main__ as judge
from bench import cases, clips, crew, engines, figures, machine, models, report, stopwatch, usage
from bench.cases import Outcome, Plan, Trial
from bench.crew import Answer, EngineError, Worker
from bench.engines.base import Request, Setup
from tools.ggml_file import tensor_layout
from tools.random_weights import SIZES


def answer(seconds: float, *, cpu: float = 1.0, peak: int = 1000, text: str = "a") -> Answer:
    return Answer([seconds], seconds, text, cpu, cpu, 500, peak)


def outcome(**by_engine: list[float]) -> Outcome:
    made = Outcome()
    trial = Trial("10 s, greedy", Request("a.wav", 10.0, 1))
    for engine, times in by_engine.items():
        for seconds in times:
            made.add(trial, engine.replace("_", "-"), answer(seconds, cpu=2 * seconds))
    return made


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Request:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips, "CACHE", tmp_path_factory.mktemp("bench"))
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
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=models.CACHE.parent
    )
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


def test_results_of_other_cases_stay_on_the_same_machine(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    here = {"cpu": "a", "cores": 2}
    path.write_text(json.dumps({"machine": here, "cases": {"long": {}, "clips": {"old": 1}}}))
    assert report.merged(path, here, {"clips": {}})["cases"] == {"long": {}, "clips": {}}
    assert report.merged(path, {"cpu": "b", "cores": 2}, {"clips": {}})["cases"] == {"clips": {}}
    assert report.merged(tmp_path / "none", here, {"clips": {}})["cases"] == {"clips": {}}


def test_the_page_is_written_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_page(page, "new")
    assert page.read_text() == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="there is no"):
        report.write_page(page, "new")


def test_the_page_has_its_markers() -> None:
    text = judge.PAGE.read_text(encoding="utf-8")
    assert text.index(report.BEGIN) < text.index(report.END)


def test_another_text_is_marked() -> None:
    made = outcome(whisperlib_balanced=[1.0], whisper_cli=[2.0])
    made.add(Trial("10 s, greedy", Request("a.wav", 10.0, 1)), "genai-fp16", answer(1.0, text="something else"))
    case = figures.of_outcome(made)
    assert [row[1] for row in report.rows(case)] == ["whisperlib-balanced", "whisper-cli", "genai-fp16*"]


def test_spaces_do_not_make_another_text() -> None:
    made = outcome(whisperlib_balanced=[1.0])
    made.add(Trial("10 s, greedy", Request("a.wav", 10.0, 1)), "whisper-server", answer(1.0, text=" a "))
    assert [row[1] for row in report.rows(figures.of_outcome(made))] == ["whisperlib-balanced", "whisper-server"]


def test_the_judge_writes_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "CACHE", tmp_path / "cache")
    arguments = ["--case", "clients", "--size", "micro", "--rounds", "1", "--threads", "1", "--output", str(tmp_path)]
    assert judge.main([*arguments, "--engine", "whisperlib-balanced", "--engine", "whisper-cli"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    case = results["cases"]["clients"]
    assert set(case["figures"]) == {"11 s, greedy", "11 s, greedy, 4 clients"}
    assert case["ratios"]["11 s, greedy"]["whisperlib-balanced : whisper-cli"]["median_seconds"] > 0
    assert case["left_out"] == {}
    assert "whisperlib-balanced" in report.markdown(results)
