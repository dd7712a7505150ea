"""The command line: what goes to stdout, what to stderr, and how it ends."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from pydantic import Field

from tests.chat_server import WAIT_SECONDS, Call, ChatServer, chat_server
from whisperlib import TranscribeOptions, VadOptions, WhisperLibraryAdapter, __version__, assets, formats, models
from whisperlib.cli import COMMANDS, cli, engine, fields, jobs, transcribe
from whisperlib.cli.common import Status
from whisperlib.cli.progress import FolderBar
from whisperlib.enhance import MODES
from whisperlib.options import CancelToken
from whisperlib.settings import get_settings

DOCUMENTATION = Path(__file__).resolve().parents[1] / "docs" / "command-line.md"
ONE = assets.SAMPLES / "esp_010.flac"
TWO = assets.SAMPLES / "seen_020.flac"
GERMAN = assets.SAMPLES / "german_001.flac"
LONG = assets.SAMPLES / "long_slt75.flac"
SILENCE = assets.SAMPLES / "silence_white5_0001.flac"
SAID = {path: assets.sample_text(path.name) for path in (ONE, TWO, GERMAN)}
NOT_TYPED = {"cancel", "progress", "max_wait_seconds", "background"}  # objects of a Python caller; for a server

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Invoke]:
    """Run a command in this process, with the micro model and no other model there."""
    monkeypatch.setenv("WHISPER_MODEL_SIZE", "micro")
    monkeypatch.setenv("WHISPER_THREADS", "1")
    monkeypatch.setenv("WHISPER_MODEL_ROOT", str(tmp_path / "models"))
    monkeypatch.setenv("WHISPER_DOWNLOAD_RETRIES", "0")
    loggers = [logging.getLogger(name) for name in ("whisperlib", "whisperlib.native")]
    levels = [logger.level for logger in loggers]

    def run(*arguments: object, stdin: bytes | None = None) -> Result:
        get_settings.cache_clear()
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin, prog_name="whisperlib")

    yield run
    get_settings.cache_clear()
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "whisperlib", *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "WHISPER_MODEL_SIZE": "micro", "WHISPER_THREADS": "1", **variables}


def run(*arguments: object, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own, as a shell does."""
    return subprocess.run(
        command_line(*arguments),
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env=environment(**variables),
    )


def use_language_model(monkeypatch: pytest.MonkeyPatch, server: ChatServer) -> None:
    monkeypatch.setenv("WHISPER_LLM_BASE_URL", server.base_url)
    monkeypatch.setenv("WHISPER_LLM_MODEL", "gemma3")


def a_line(text: str, *parts: str) -> bool:
    """Whether `text` is one line, an error of ours, with these parts."""
    return text.startswith("whisperlib: ") and text.count("\n") == 1 and all(part in text for part in parts)


class TestProcess:
    """In a process of its own: the streams, the locale and the signals are real."""

    def test_json_alone_is_on_stdout(self) -> None:
        done = run("transcribe", "--format", "json", TWO)
        assert json.loads(done.stdout) == {"text": SAID[TWO]}
        assert (done.returncode, done.stderr) == (0, b"")

    def test_a_pipe_on_stdin_and_utf_8_in_any_locale(self) -> None:
        ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        done = run("transcribe", "--format", "srt", "-", stdin=GERMAN.read_bytes(), **ascii_only)
        assert (done.returncode, done.stderr) == (0, b"")
        assert re.fullmatch(rf"1\n00:00:\S+ --> 00:00:\S+\n{SAID[GERMAN]}\n\n", done.stdout.decode("utf-8"))
        assert "ü" in SAID[GERMAN]

    def test_a_broken_file_does_not_stop_the_others(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken.mp3"
        broken.write_bytes(b"no sound in here")
        done = run("transcribe", ONE, broken, TWO, WHISPER_CONCURRENCY="2")
        assert done.stdout.decode() == f"{SAID[ONE]}\n{SAID[TWO]}\n"
        assert a_line(done.stderr.decode(), str(broken), "is not audio")
        assert done.returncode == Status.INPUT

    @pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="a background job ignores Ctrl-C")
    def test_ctrl_c(self) -> None:
        with subprocess.Popen(
            command_line("transcribe", "--beam-size", 1, LONG, LONG, LONG),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as process:
            assert process.stdout
            first = process.stdout.readline()  # a segment comes as soon as it is settled
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
        assert first.endswith(b".\n")
        assert len(rest.splitlines()) < 3 * assets.sample_text(LONG.name).count(".") - 1
        assert errors == b"whisperlib: interrupted\n"
        assert process.returncode == Status.INTERRUPTED

    def test_a_reader_that_goes_away(self) -> None:
        with subprocess.Popen(
            command_line("transcribe", "--beam-size", 1, LONG),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as process:
            assert process.stdout
            assert process.stderr
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == Status.FAILURE

    def test_bars_on_a_terminal_and_only_there(self) -> None:
        terminal, end = pty.openpty()
        with subprocess.Popen(
            command_line("transcribe", "--format", "json", ONE, "missing.wav"),
            stdout=subprocess.PIPE,
            stderr=end,
            env=environment(TERM="xterm", COLUMNS="200"),
        ) as process:
            os.close(end)
            assert process.stdout
            drawn = b"".join(iter(lambda: read_terminal(terminal), b"")).decode()
            assert json.loads(process.stdout.read()) == {"text": SAID[ONE]}
        os.close(terminal)
        assert ONE.name in drawn
        assert "100%" in drawn
        # The error stands alone on its line, and the bar is drawn again below it.
        assert re.search(r"\x1b\[2Kwhisperlib: cannot open 'missing.wav': No such file\r\n", drawn)

    def test_without_native_libraries(self, tmp_path: Path) -> None:
        done = run("transcribe", ONE, WHISPER_LIB_DIR=str(tmp_path))
        assert a_line(done.stderr.decode(), str(tmp_path), "make native")
        assert (done.returncode, done.stdout) == (Status.FAILURE, b"")
        told = run("info", WHISPER_LIB_DIR=str(tmp_path))
        assert told.returncode == 0
        assert "make native" in told.stdout.decode()
        assert "WHISPER_MODEL_SIZE" in told.stdout.decode()

    def test_help_imports_no_command(self, run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        done = run_python(
            "import sys\nfrom whisperlib.cli import main\n"
            "sys.argv = ['whisperlib', '--help']\n"
            "try: main()\n"
            "finally: sys.stderr.write(' '.join(m for m in sys.modules if m.startswith(('whisperlib.cli.', 'rich'))))"
        )
        assert "transcribe" in done.stdout
        assert done.stderr == "whisperlib.cli.common"


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # nobody writes to it any more
        return b""


class TestOptions:
    def options_of(self, command: click.Command) -> dict[str, click.Option]:
        return {str(p.name): p for p in command.params if isinstance(p, click.Option)}

    def test_every_field_has_an_option_and_every_option_a_meaning(self) -> None:
        recognition = set(TranscribeOptions.model_fields) - NOT_TYPED - {"vad_options"}
        recognition |= {f"vad_{name}" for name in VadOptions.model_fields}
        adapter = set(inspect.signature(WhisperLibraryAdapter.__init__).parameters) - {"self", "settings"}
        assert adapter == set(engine.NAMES)
        own = {"response_format", "output_dir", "recursive", "overwrite", "enhance", "translate", "quiet"}
        own |= {"verbose", "debug"}
        assert set(self.options_of(transcribe.command)) == recognition | adapter | own

    def test_help_comes_from_the_fields_and_names_the_unit(self, invoke: Invoke) -> None:
        shown = invoke("transcribe", "--help").stdout
        for name, option in self.options_of(transcribe.command).items():
            assert option.help, name
            assert option.opts[0] in shown
            if name.endswith("_seconds"):
                assert f"{option.opts[0]} SECONDS" in shown
        assert str(TranscribeOptions.model_fields["beam_size"].description) in shown
        assert "1<=x<=8" in shown
        assert "0.0<x<=" in shown

    def test_every_value_reaches_its_field(self) -> None:
        wanted = TranscribeOptions(
            profile="fast",
            language="de",
            task="translate",
            beam_size=2,
            best_of=3,
            temperature=0.1,
            temperature_increment=0.3,
            logprob_threshold=-0.5,
            entropy_threshold=2.0,
            no_speech_threshold=0.5,
            suppress_non_speech=True,
            initial_prompt="Guten Tag",
            carry_initial_prompt=True,
            condition_on_previous_text=False,
            word_timestamps=True,
            max_segment_length=42,
            offset_seconds=0.5,
            duration_seconds=1.5,
            vad=False,
            vad_options=VadOptions(threshold=0.4, min_speech_seconds=0.3, min_silence_seconds=0.2, pad_seconds=0.1),
            audio_ctx=512,
            fit_audio_ctx=True,
            chunking="parallel",
            timeout_seconds=9.0,
            on_interrupt="partial",
        )
        arguments = []
        for name, value in {**dict(wanted), **{f"vad_{k}": v for k, v in wanted.vad_options}}.items():
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool) and name not in NOT_TYPED:
                arguments.append(flag if value else flag.replace("--", "--no-"))
            elif name not in {*NOT_TYPED, "vad_options", "threads"}:
                assert value != TranscribeOptions.model_fields.get(name, VadOptions.model_fields["threshold"]).default
                arguments.append(f"{flag}={value}")
        given = transcribe.command.make_context("transcribe", [*arguments, "a.wav"]).params
        assert transcribe._options(given) == wanted

    def test_left_out_options_are_the_defaults(self) -> None:
        given = transcribe.command.make_context("transcribe", ["a.wav"]).params
        assert transcribe._options(given) == TranscribeOptions()

    def test_a_new_field_has_an_option_by_itself(self) -> None:
        class More(TranscribeOptions):
            loudness: int | None = Field(None, ge=0, description="Loudness.")
            token: CancelToken | None = None

        names = [option.name for option in fields.options(More, "Recognition")]
        assert "loudness" in names
        assert "token" not in names

    def test_translate(self, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
        seen: list[TranscribeOptions] = []
        monkeypatch.setattr(transcribe._Run, "transcribe", lambda self, _jobs: seen.append(self.options))
        assert invoke("transcribe", "--translate", ONE).exit_code == 0
        assert seen[0].task == "translate"

    def test_a_profile_sets_what_the_command_line_leaves_out(
        self, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
    ) -> None:
        seen: list[TranscribeOptions] = []
        monkeypatch.setattr(transcribe._Run, "transcribe", lambda self, _jobs: seen.append(self.options))
        arguments = ["--profile", "fast", "--chunking", "sequential", "--vad-threshold", "0.4"]
        assert invoke("transcribe", *arguments, ONE).exit_code == 0
        options = seen[0].with_profile()
        assert (options.beam_size, options.chunking, options.fit_audio_ctx) == (1, "sequential", True)
        assert seen[0].vad_options == VadOptions(threshold=0.4)
        assert invoke("transcribe", "--profile", "fast", "--beam-size", "5", ONE).exit_code == 0
        assert seen[1].with_profile().beam_size == 5

    def test_the_documentation_has_them_all(self) -> None:
        text = DOCUMENTATION.read_text(encoding="utf-8")
        for option in self.options_of(transcribe.command).values():
            assert f"`{option.opts[0]}" in text
        for command in COMMANDS:
            assert f"whisperlib {command}" in text
        for status in Status:
            assert f"| {status.value} |" in text


class TestTranscribe:
    def test_every_format_has_a_suffix(self, tmp_path: Path) -> None:
        for response_format in formats.FORMATS:
            [(_, target)] = jobs.of_files(["a/talk.1.mp3"], response_format, tmp_path)
            suffix = {"text": "txt", "verbose_json": "json"}.get(response_format, response_format)
            assert target == tmp_path / f"talk.1.{suffix}"

    @pytest.mark.parametrize("response_format", ["text", "verbose_json"])
    def test_stdout_and_a_file_get_the_same(self, invoke: Invoke, tmp_path: Path, response_format: str) -> None:
        result = invoke("transcribe", "-f", response_format, TWO)
        assert (result.exit_code, result.stderr) == (0, "")
        written = invoke("transcribe", "-f", response_format, "-o", tmp_path / "new" / "out", TWO)
        assert (written.exit_code, written.stdout) == (0, "")
        [file] = (tmp_path / "new" / "out").iterdir()
        assert file.read_bytes() == result.stdout_bytes
        assert SAID[TWO] in result.stdout
        assert result.stdout.endswith("\n")

    def test_text_is_a_line_for_each_segment(self, invoke: Invoke) -> None:
        quick = ("--duration-seconds", 25, "--beam-size", 1, LONG)
        lines = invoke("transcribe", *quick).stdout.splitlines()
        segments = json.loads(invoke("transcribe", "-f", "verbose_json", *quick).stdout)["segments"]
        assert lines == [segment["text"] for segment in segments]
        assert len(lines) > 5

    def test_summary(self, invoke: Invoke, tmp_path: Path) -> None:
        result = invoke("transcribe", "-o", tmp_path, ONE, "missing.wav", TWO)
        first, problem, second, last = result.stderr.splitlines()
        assert first.startswith(f"{ONE}: {tmp_path / 'esp_010.txt'}, language en, 2.1 s of audio in ")
        assert "missing.wav" in problem
        assert second.startswith(f"{TWO}: ")
        assert last == "2 of 3 files transcribed"
        assert result.exit_code == Status.INPUT
        assert sorted(path.name for path in tmp_path.iterdir()) == ["esp_010.txt", "seen_020.txt"]

    def test_quiet_and_the_name_of_stdin(self, invoke: Invoke, tmp_path: Path) -> None:
        result = invoke("transcribe", "-q", "-o", tmp_path, "-", stdin=ONE.read_bytes())
        assert (result.exit_code, result.output) == (0, "")
        assert (tmp_path / "stdin.txt").read_text(encoding="utf-8") == f"{SAID[ONE]}\n"

    def test_the_text_of_a_language_model(self, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
        right = SAID[ONE].replace(".", "!")
        with chat_server(lambda call: call.reply(right)) as server:
            use_language_model(monkeypatch, server)
            result = invoke("transcribe", ONE, "--enhance", "auto")
        assert result.stdout == f"{right}\n"
        assert f"{ONE}: cleaned up by gemma3" in result.stderr

    def test_the_text_as_it_was_where_the_language_model_fails(
        self, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with chat_server(lambda call: call.reply("Roses and violets, all in a row.")) as server:
            use_language_model(monkeypatch, server)
            result = invoke("transcribe", ONE, "--enhance", "always", "-o", tmp_path)
        assert result.exit_code == Status.OK
        assert (tmp_path / f"{ONE.stem}.txt").read_text(encoding="utf-8") == f"{SAID[ONE]}\n"
        assert f"{ONE}: not cleaned up: the language model's answer was refused" in result.stderr

    def test_a_clean_up_needs_a_language_model_and_text(self, invoke: Invoke) -> None:
        assert "WHISPER_LLM_BASE_URL" in invoke("transcribe", ONE, "--enhance", "auto").output
        assert "--format is srt" in invoke("transcribe", ONE, "--enhance", "auto", "-f", "srt").output
        assert transcribe.ENHANCE == MODES

    def test_several_in_json_are_lines(self, invoke: Invoke) -> None:
        result = invoke("transcribe", "-f", "json", "--concurrency", 2, "--threads", 1, ONE, SILENCE, TWO)
        texts = [json.loads(line)["text"] for line in result.stdout.splitlines()]
        assert texts == [SAID[ONE], "", SAID[TWO]]

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["-f", "srt", ONE, TWO], "--output-dir"),
            (["-", ONE, "-"], "once only"),
            (["--beam-size", "9", ONE], "--beam-size"),
            (["--temperature", "nan", ONE], "temperature"),
            (["--audio-ctx", "7", ONE], "multiple of 256"),
            (["--language", "klingon", ONE], "klingon"),
            (["--format", "docx", ONE], "docx"),
            (["--nonsense", ONE], "--nonsense"),
            ([], "FILE"),
        ],
    )
    def test_bad_usage(self, invoke: Invoke, arguments: list[object], problem: str) -> None:
        result = invoke("transcribe", *arguments)
        assert (result.exit_code, result.stdout) == (Status.USAGE, "")
        assert problem in result.stderr

    def test_results_do_not_overwrite_each_other(self, invoke: Invoke, tmp_path: Path) -> None:
        result = invoke("transcribe", "-o", tmp_path / "out", tmp_path / "a" / "talk.wav", tmp_path / "talk.mp3")
        assert result.exit_code == Status.USAGE
        assert "would both become" in result.stderr
        assert not (tmp_path / "out").exists()

    def test_results_do_not_overwrite_a_source(self, invoke: Invoke, tmp_path: Path) -> None:
        audio = tmp_path / "talk.json"
        audio.write_bytes(ONE.read_bytes())
        result = invoke("transcribe", "-f", "json", "-o", tmp_path, audio)
        assert result.exit_code == Status.USAGE
        assert "overwrite" in result.stderr
        assert audio.read_bytes() == ONE.read_bytes()

    def test_nothing_half_written_is_left(
        self, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full_disk(path: Path, _target: Path) -> None:
            raise OSError(28, "No space left on device", str(path))

        monkeypatch.setattr(Path, "replace", full_disk)
        result = invoke("transcribe", "-q", "-o", tmp_path, ONE)
        assert a_line(result.stderr, str(ONE), "No space left on device")
        assert result.exit_code == Status.FAILURE
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("on_interrupt", ["raise", "partial"])
    def test_deadline(self, invoke: Invoke, on_interrupt: str) -> None:
        result = invoke("transcribe", "-f", "json", "--timeout-seconds", 0.001, "--on-interrupt", on_interrupt, ONE)
        assert result.exit_code == Status.DEADLINE
        assert a_line(result.stderr, str(ONE), "deadline")
        assert result.stdout == ('{"text": ""}\n' if on_interrupt == "partial" else "")

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["missing.wav"], "missing.wav"),
            ([DOCUMENTATION], "is not audio"),
            (["--model", "nobody", ONE], "nobody"),
            (["--model", DOCUMENTATION, ONE], "command-line.md"),
            (["--offset-seconds", 99, ONE], "past the end"),
            (["--audio-ctx", 256, LONG], "audio_ctx"),
        ],
    )
    def test_bad_input(self, invoke: Invoke, arguments: list[object], problem: str) -> None:
        result = invoke("transcribe", *arguments)
        assert (result.exit_code, result.stdout) == (Status.INPUT, "")
        assert a_line(result.stderr, problem)

    def test_a_bad_setting(self, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WHISPER_THREADS", "many")
        result = invoke("transcribe", ONE)
        assert (result.exit_code, result.stdout) == (Status.INPUT, "")
        assert a_line(result.stderr, "WHISPER_THREADS = 'many'")
        assert invoke("--help").exit_code == 0

    def test_the_first_failure_tells_the_status(self, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = WhisperLibraryAdapter.stream

        def failing(self: WhisperLibraryAdapter, source: Any, *arguments: Any, **keywords: Any) -> Any:
            if source == str(TWO):
                raise ZeroDivisionError("a mistake")
            return stream(self, source, *arguments, **keywords)

        monkeypatch.setattr(WhisperLibraryAdapter, "stream", failing)
        result = invoke("transcribe", TWO, ONE, "missing.wav")
        assert result.stdout == f"{SAID[ONE]}\n"
        assert result.exit_code == Status.FAILURE
        assert invoke("transcribe", "missing.wav", TWO).exit_code == Status.INPUT
        first, second = result.stderr.splitlines()
        assert first == f"whisperlib: {TWO}: internal error: ZeroDivisionError: a mistake (--debug shows where)"
        assert "missing.wav" in second

    @pytest.mark.parametrize("arguments", [["--debug", "transcribe"], ["transcribe", "--debug"]])
    def test_debug_shows_the_traceback(self, invoke: Invoke, arguments: list[str]) -> None:
        result = invoke(*arguments, "missing.wav")
        assert "Traceback" in result.stderr
        assert a_line(result.stderr.splitlines()[-1] + "\n", "missing.wav")
        assert result.exit_code == Status.INPUT

    def test_verbose_logs(self, invoke: Invoke, caplog: pytest.LogCaptureFixture) -> None:
        assert invoke("transcribe", "missing.wav").stdout == ""
        assert not caplog.records
        assert invoke("transcribe", "-v", "missing.wav").stdout == ""
        assert any("loaded micro" in record.message for record in caplog.records)

    def test_a_failure_outside_of_any_file(self, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_arguments: object, **_keywords: object) -> None:
            raise KeyError("of nothing")

        monkeypatch.setattr(engine, "open_adapter", broken)
        result = invoke("transcribe", ONE)
        assert result.exit_code == Status.FAILURE
        assert a_line(result.stderr, "internal error: KeyError")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clips, one of them in a folder within, beside what is no audio, what is hidden, and a damaged file."""
    audio = tmp_path / "audio"
    (audio / "within").mkdir(parents=True)
    (audio / ".hidden").mkdir()
    shutil.copy(ONE, audio / f"one{ONE.suffix}")
    for place in ("within", ".hidden"):
        shutil.copy(TWO, audio / place / f"two{TWO.suffix.upper()}")
    (audio / "damaged.mp3").write_bytes(b"no audio")
    (audio / "notes.txt").write_text("no audio either", encoding="utf-8")
    return audio


class TestFolders:
    def test_texts_lie_beside_the_audio_and_failures_are_summed_up(self, invoke: Invoke, folder: Path) -> None:
        result = invoke("transcribe", folder, "--recursive", "--concurrency", 2, "--threads", 1)
        assert (result.exit_code, result.stdout) == (Status.INPUT, "")
        assert (folder / "one.txt").read_text(encoding="utf-8").split() == SAID[ONE].split()
        assert (folder / "within" / "two.txt").read_text(encoding="utf-8").split() == SAID[TWO].split()
        assert not (folder / "damaged.txt").exists()
        assert not list((folder / ".hidden").glob("*.txt"))
        assert result.stderr.endswith(f"2 of 3 files transcribed\n  failed: {folder / 'damaged.mp3'}\n")

    def test_it_goes_on_where_it_stopped(self, invoke: Invoke, folder: Path) -> None:
        (folder / "damaged.mp3").unlink()
        (folder / "one.txt").write_text("mine", encoding="utf-8")
        result = invoke("transcribe", folder, "-r")
        assert result.exit_code == Status.OK
        assert (folder / "one.txt").read_text(encoding="utf-8") == "mine"
        assert result.stderr.endswith("1 of 1 files transcribed, 1 were before\n")
        again = invoke("transcribe", folder, "-r", "--model", folder / "is-not-loaded.bin")
        assert (again.exit_code, again.stdout) == (Status.OK, "")
        assert "all 2 files were transcribed before" in again.stderr
        assert invoke("transcribe", folder, "--overwrite", "-q").exit_code == Status.OK
        assert (folder / "one.txt").read_text(encoding="utf-8").split() == SAID[ONE].split()

    def test_what_a_deadline_cut_off_is_made_again(self, invoke: Invoke, folder: Path) -> None:
        (folder / "damaged.mp3").unlink()
        (folder / "one.txt.srt").write_text("mine", encoding="utf-8")
        cut_off = ("--timeout-seconds", 0.001, "--on-interrupt", "partial")
        for _ in range(2):
            result = invoke("transcribe", folder, *cut_off)
            assert result.exit_code == Status.DEADLINE
            assert f"written to {folder / 'one.txt.partial'}" in result.stderr
            assert (folder / "one.txt.partial").exists()
            assert not (folder / "one.txt").exists()
        assert invoke("transcribe", folder).exit_code == Status.OK
        assert (folder / "one.txt").read_text(encoding="utf-8").split() == SAID[ONE].split()
        assert {path.name for path in folder.glob("one*")} == {ONE.with_stem("one").name, "one.txt", "one.txt.srt"}
        assert "were transcribed before" in invoke("transcribe", folder, *cut_off).stderr

    def test_what_the_language_model_failed_at_is_made_again(
        self, invoke: Invoke, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "damaged.mp3").unlink()
        right = SAID[ONE].replace(".", "!")
        answers = iter(["Roses and violets, all in a row.", right])
        with chat_server(lambda call: call.reply(next(answers))) as server:
            use_language_model(monkeypatch, server)
            failed = invoke("transcribe", folder, "--enhance", "always")
            assert failed.exit_code == Status.FAILURE
            assert "not cleaned up: the language model's answer was refused" in failed.stderr
            assert (folder / "one.txt.partial").read_text(encoding="utf-8") == f"{SAID[ONE]}\n"
            assert not (folder / "one.txt").exists()
            assert invoke("transcribe", folder, "--enhance", "always").exit_code == Status.OK
        assert (folder / "one.txt").read_text(encoding="utf-8") == f"{right}\n"
        assert not (folder / "one.txt.partial").exists()

    def test_what_has_ended_is_written_while_an_earlier_file_runs(
        self, invoke: Invoke, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream, write, written = WhisperLibraryAdapter.stream, transcribe._write, threading.Event()

        def in_turn(self: WhisperLibraryAdapter, source: Any, *arguments: Any, **keywords: Any) -> Any:
            if "one" in Path(source).name:
                assert written.wait(WAIT_SECONDS)
            return stream(self, source, *arguments, **keywords)

        def tell(target: Path, text: str) -> None:
            write(target, text)
            written.set()

        monkeypatch.setattr(WhisperLibraryAdapter, "stream", in_turn)
        monkeypatch.setattr(transcribe, "_write", tell)
        (folder / "damaged.mp3").unlink()
        result = invoke("transcribe", folder, "-r", "--concurrency", 2, "--threads", 1)
        assert result.exit_code == Status.OK
        first, second, _ = result.stderr.splitlines()
        assert "two.txt" in first
        assert "one.txt" in second

    def test_a_clean_up_holds_no_slot(self, invoke: Invoke, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        both = threading.Barrier(2, timeout=WAIT_SECONDS)

        def answer(call: Call) -> None:
            both.wait()
            call.reply(call.transcript)

        (folder / "damaged.mp3").unlink()
        with chat_server(answer) as server:
            use_language_model(monkeypatch, server)
            result = invoke("transcribe", folder, "-r", "--concurrency", 1, "--enhance", "always")
        assert result.exit_code == Status.OK
        assert result.stderr.count("cleaned up by gemma3") == 2

    @pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="a background job ignores Ctrl-C")
    def test_ctrl_c_keeps_what_is_finished(self, folder: Path) -> None:
        shutil.rmtree(folder / "within")
        (folder / "damaged.mp3").unlink()
        for number in range(3):
            shutil.copy(LONG, folder / f"z{number}{LONG.suffix}")
        arguments = ("--concurrency", 2, "--threads", 1, "--beam-size", 8, "--on-interrupt", "partial")
        with subprocess.Popen(
            command_line("transcribe", *arguments, folder), stderr=subprocess.PIPE, env=environment()
        ) as process:
            assert process.stderr
            assert b"one.txt" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert process.stderr.read() == b"whisperlib: interrupted\n"
        assert process.returncode == Status.INTERRUPTED
        assert (folder / "one.txt").exists()
        assert not list(folder.glob("z2.*txt*"))

    def test_only_its_own_files_without_recursive(self, invoke: Invoke, folder: Path, tmp_path: Path) -> None:
        invoke("transcribe", folder, "-f", "srt", "-o", tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").rglob("*.srt")] == ["one.srt"]

    def test_output_has_the_same_folders_and_keeps_namesakes_apart(
        self, invoke: Invoke, folder: Path, tmp_path: Path
    ) -> None:
        (folder / "damaged.mp3").unlink()
        shutil.copy(ONE, folder / "within" / f"two{ONE.suffix}x.wav")
        shutil.copy(ONE, folder / "one.wav")
        out = tmp_path / "out"
        assert invoke("transcribe", folder, folder, "-r", "-o", out).exit_code == Status.OK
        made = {str(path.relative_to(out)) for path in out.rglob("*.txt")}
        assert made == {f"one{ONE.suffix}.txt", "one.wav.txt", "within/two.txt", f"within/two{ONE.suffix}x.txt"}

    def test_bad_usage(self, invoke: Invoke, folder: Path, tmp_path: Path) -> None:
        empty, out = tmp_path / "empty", tmp_path / "out"
        (empty / "within").mkdir(parents=True)
        other = shutil.copytree(folder, tmp_path / "other")
        for arguments, problem in (
            ([ONE, "--recursive"], "--recursive is for folders"),
            ([ONE, "--overwrite"], "--overwrite is for folders"),
            ([empty], "no audio files in"),
            ([empty, "-r"], "no audio files in"),
            ([folder, ONE], "need --output-dir"),
            ([folder, other, "-o", out], "would both become"),
        ):
            result = invoke("transcribe", *arguments)
            assert (result.exit_code, result.stdout) == (Status.USAGE, "")
            assert problem in result.stderr
        assert not out.exists()


class TestFolderBar:
    def test_one_bar_counts_files_and_what_is_done_of_those_on_their_way(self) -> None:
        bar = FolderBar(quiet=True, n_files=4)
        (first, end_first), (second, _) = bar.add("a"), bar.add("b")
        first(0.5)
        second(0.25)
        (task,) = bar._bars.tasks
        assert (task.completed, task.total, task.description) == (0.75, 4.0, "0 of 4 files")
        end_first()
        assert (task.completed, task.description) == (1.25, "1 of 4 files")


class TestDetect:
    def test_languages(self, invoke: Invoke) -> None:
        result = invoke("detect", GERMAN, SILENCE, "-", stdin=(assets.SAMPLES / "spanish_003.flac").read_bytes())
        german, spanish = [line.split("\t") for line in result.stdout.splitlines()]
        assert (german[0], *german[2:]) == ("de", "german", str(GERMAN))
        assert (spanish[0], *spanish[2:]) == ("es", "spanish", "-")
        assert 0.5 < float(german[1]) <= 1.0
        assert a_line(result.stderr, str(SILENCE), "no speech")
        assert result.exit_code == Status.INPUT


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A server that has the micro model under the name of tiny, and a catalogue that says so."""
    (tmp_path / "server").mkdir()
    data = assets.MICRO_MODEL.read_bytes()
    (tmp_path / "server" / "ggml-tiny.bin").write_bytes(data)
    artifact = models.Artifact("f16", "ggml-tiny.bin", len(data), hashlib.sha256(data).hexdigest())
    catalogue = {"tiny": models.Model("tiny", "tiny", "f16", (artifact,))}

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            pass

    for function in (models.fetch, models.resolve, models.verify):
        monkeypatch.setattr(models, function.__name__, functools.partial(function, catalogue=catalogue))
    handler = functools.partial(Quiet, directory=str(tmp_path / "server"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("WHISPER_ARTIFACT_URL", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
        thread.join()


class TestModels:
    def test_list(self, invoke: Invoke) -> None:
        result = invoke("models", "list")
        rows = {line.split()[0]: line for line in result.stdout.splitlines() if line}
        assert set(models.CATALOGUE) <= set(rows)
        assert "f16 (19 MB)" in rows["micro"]
        assert "*" in rows["micro"].split()
        assert "q5_1 (190 MB)" in rows["small"]
        assert result.exit_code == 0

    def test_download_and_verify(self, invoke: Invoke, published: None, tmp_path: Path) -> None:
        result = invoke("models", "download", "tiny")
        target = tmp_path / "models" / "tiny" / "ggml-tiny.bin"
        assert (result.exit_code, result.output) == (0, f"{target}\n")
        assert target.read_bytes() == assets.MICRO_MODEL.read_bytes()
        assert invoke("models", "verify", "tiny").stdout == f"{target}: ok (SHA-256)\n"
        damaged = bytearray(target.read_bytes())
        damaged[-1] ^= 1
        target.write_bytes(damaged)
        result = invoke("models", "verify", "tiny")
        assert (result.exit_code, result.stdout) == (Status.INPUT, "")
        assert a_line(result.stderr, str(target), "SHA-256")

    def test_transcribe_fetches_a_missing_model_when_asked(self, invoke: Invoke, published: None) -> None:
        missing = invoke("transcribe", "--model", "tiny", ONE)
        assert missing.exit_code == Status.INPUT
        assert a_line(missing.stderr, "whisperlib models download tiny")
        result = invoke("transcribe", "--model", "tiny", "--download", ONE)
        assert (result.exit_code, result.output) == (0, f"{SAID[ONE]}\n")

    def test_a_host_that_does_not_answer(self, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WHISPER_ARTIFACT_URL", "http://127.0.0.1:9")
        result = invoke("models", "download", "tiny")
        assert (result.exit_code, result.stdout) == (Status.INPUT, "")
        assert a_line(result.stderr, "http://127.0.0.1:9/")

    def test_verify_without_a_name_takes_what_is_there(self, invoke: Invoke) -> None:
        result = invoke("models", "verify")
        assert result.exit_code == 0
        assert result.stdout.startswith(f"{assets.MICRO_MODEL}: ok")

    def test_quantize(self, invoke: Invoke, tmp_path: Path) -> None:
        target = tmp_path / "models" / "whisper_micro" / "ggml-micro-q8_0.bin"
        assert invoke("models", "quantize", "micro", "q8_0").output == f"{target}\n"
        assert models.check_header(target).quantization == "q8_0"
        again = invoke("models", "quantize", "micro", "q8_0")
        assert again.exit_code == Status.USAGE
        assert "is there already" in again.stderr
        assert invoke("transcribe", "--compute-type", "q8_0", ONE).exit_code == 0

    def test_quantize_a_file(self, invoke: Invoke, tmp_path: Path) -> None:
        source = tmp_path / "mine-f16.bin"
        source.symlink_to(assets.MICRO_MODEL)
        assert invoke("models", "quantize", source, "q4_0").output == f"{tmp_path / 'mine-q4_0.bin'}\n"
        named = tmp_path / "other.bin"
        assert invoke("models", "quantize", source, "q4_0", "--output", named).output == f"{named}\n"
        assert named.read_bytes() == (tmp_path / "mine-q4_0.bin").read_bytes()

    def test_what_is_published_is_not_made(self, invoke: Invoke) -> None:
        result = invoke("models", "quantize", "small", "q8_0")
        assert result.exit_code == Status.USAGE
        assert "whisperlib models download small --compute-type q8_0" in " ".join(result.stderr.split())

    def test_an_unknown_name(self, invoke: Invoke) -> None:
        assert invoke("models", "download", "gigantic").exit_code == Status.USAGE
        assert invoke("models", "quantize", "gigantic", "q8_0").exit_code == Status.INPUT


class TestOtherCommands:
    def test_version(self) -> None:
        assert run("--version").stdout.decode() == f"whisperlib {__version__}\n"

    def test_every_command_says_what_it_does(self, invoke: Invoke) -> None:
        shown = invoke("--help").stdout
        for name, what in COMMANDS.items():
            assert re.search(rf"^  {name} +{re.escape(what)}$", shown, re.MULTILINE)
            assert invoke(name, "--help").exit_code == 0

    def test_an_unknown_command(self, invoke: Invoke) -> None:
        assert invoke("dance").exit_code == Status.USAGE

    def test_info(self, invoke: Invoke, library_dir: Path) -> None:
        shown = invoke("info").stdout
        assert str(library_dir) in shown
        assert re.search(r"WHISPER_MODEL_SIZE +micro  \(set\)", shown)
        encoder = (
            r"Encoder on the CPU\n +of the default model +ggml\n +reason +ggml-micro-f16\.bin has no OpenVINO encoder"
        )
        assert re.search(encoder, shown)
        assert re.search(r"Cache of results\n +place +off\n", shown)
        assert re.search(r"Threads on the CPU\n +requests at once × threads +\d+ × 1\n +reason +threads set; ", shown)
        assert re.search(r"\n +set by +WHISPER_THREADS\n", shown)
        told = json.loads(invoke("info", "--json").stdout)
        assert told["libraries"]["chosen"]["directory"] == str(library_dir)

    def test_info_with_a_bad_setting(self, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WHISPER_THREADS", "many")
        result = invoke("info")
        assert (result.exit_code, result.stderr) == (0, "")
        assert "WHISPER_THREADS = 'many'" in result.stdout

    def test_selftest(self, invoke: Invoke, library_dir: Path, tmp_path: Path) -> None:
        result = invoke("selftest", library_dir)
        assert (result.exit_code, result.stdout) == (0, f"{library_dir}: passed\n")
        result = invoke("selftest", tmp_path)
        assert (result.exit_code, result.stdout) == (Status.FAILURE, "")
        assert a_line(result.stderr, "no libwhisper.so found")
