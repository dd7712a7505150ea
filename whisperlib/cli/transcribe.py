"""`whisperlib transcribe`: audio files → text, subtitles or JSON."""

from __future__ import annotations

import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from whisperlib import Segment, TranscribeOptions, Transcription, TranscriptionStream, WhisperLibraryAdapter, formats
from whisperlib.cli import engine, fields
from whisperlib.cli.common import SectionCommand, Status, audio_source, complain, say, verbosity
from whisperlib.cli.progress import FileBars
from whisperlib.errors import DeadlineExceeded, OptionError
from whisperlib.settings import get_settings

if TYPE_CHECKING:
    from whisperlib.enhance import Enhancer, Mode

SUFFIXES = {"json": ".json", "verbose_json": ".json", "text": ".txt", "srt": ".srt", "vtt": ".vtt", "tsv": ".tsv"}
ONE_AFTER_ANOTHER = ("text", "json", "verbose_json")  # what several files may give on stdout
ENHANCE = ("never", "auto", "always")
# Here, what the adapter gets is what each request gets; and nobody else makes it wait.
LEFT_OUT = ("threads", "max_wait_seconds")

Job = tuple[str, "Path | None"]  # what to transcribe, and where to; None: to stdout


@click.command(
    "transcribe",
    cls=SectionCommand,
    params=[*fields.options(TranscribeOptions, "Recognition", leave_out=LEFT_OUT), *engine.options()],
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(allow_dash=True))
@click.option(
    "-f", "--format", "response_format", type=click.Choice(formats.FORMATS), default="text", help="What is written."
)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIRECTORY",
    help="Write one file for each input here, named after it; otherwise all goes to stdout.",
)
@click.option(
    "--enhance",
    type=click.Choice(ENHANCE),
    default="never",
    help="Clean the text up by the language model of WHISPER_LLM_BASE_URL; auto: where the Whisper model is small.",
)
@click.option("--translate", is_flag=True, help="The same as --task translate.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress and no summary.")
@verbosity
@click.pass_context
def command(
    ctx: click.Context,
    /,
    files: Sequence[str],
    *,
    response_format: str,
    output_dir: Path | None,
    enhance: Mode,
    translate: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Transcribe audio and video files; - is stdin.

    Only the result goes to stdout. `text` is a line for each segment, written as soon as it is settled; `json` and
    `verbose_json` are one line for each file. Errors and progress go to stderr. A file that cannot be transcribed
    does not stop the others; the exit status is that of the first such file.

    With --enhance the text comes at once, as the language model corrected it; where it could not, as it was. stderr
    says which.
    """
    # A profile gives its own defaults to what the command line leaves out.
    explicit = {name: given[name] for name in given if ctx.get_parameter_source(name) != ParameterSource.DEFAULT}
    options = _options({**explicit, "task": "translate"} if translate else explicit)
    jobs = _jobs(files, response_format, output_dir)
    clean_up = _clean_up(enhance, response_format)
    if output_dir:
        output_dir.mkdir(parents=True, exist_ok=True)
    with engine.open_adapter(given, quiet=quiet) as whisper, FileBars(quiet) as bars:
        run = _Run(whisper, options, response_format, bars, quiet, clean_up)
        run.transcribe(jobs)
    if output_dir and not quiet:
        say(f"{len(jobs) - run.failed} of {len(jobs)} files transcribed")
    ctx.exit(run.status)


def _options(given: dict[str, Any]) -> TranscribeOptions:
    try:
        return TranscribeOptions(**fields.values(TranscribeOptions, given, leave_out=LEFT_OUT))
    except OptionError as error:
        raise click.UsageError(str(error)) from None


def _clean_up(mode: Mode, response_format: str) -> _CleanUp | None:
    if mode == "never":
        return None
    if response_format != "text":
        raise click.UsageError(f"--enhance gives text, and --format is {response_format}")
    from whisperlib.enhance import Enhancer  # noqa: PLC0415  (it imports the HTTP client)

    enhancer = Enhancer.from_settings(get_settings())
    if enhancer is None:
        raise OptionError("--enhance needs a language model: set WHISPER_LLM_BASE_URL and WHISPER_LLM_MODEL")
    return _CleanUp(enhancer, mode)


@dataclass(frozen=True)
class _CleanUp:
    """Has a language model correct a result, and says on stderr what came of it."""

    enhancer: Enhancer
    mode: Mode

    def lines(self, result: Transcription, name: str) -> str:
        from whisperlib.enhance import why_not  # noqa: PLC0415  (the same)

        if reason := why_not(self.mode, result.model):
            say(f"{name}: not cleaned up: {reason}")
            return _lines(result.segments)
        language = "en" if result.task == "translate" else result.language
        enhancement = self.enhancer.enhance(result.text, language)
        if enhancement.text is None:
            say(f"{name}: not cleaned up: {enhancement.reason}")
            return _lines(result.segments)
        say(f"{name}: cleaned up by {enhancement.model}{f'; {enhancement.reason}' if enhancement.reason else ''}")
        return f"{enhancement.text}\n"


def _jobs(files: Sequence[str], response_format: str, output_dir: Path | None) -> list[Job]:
    """Pair every file with its target. Raises UsageError where two would mix, or a source be overwritten."""
    if files.count("-") > 1:
        raise click.UsageError("stdin (-) can be read once only")
    if output_dir is None:
        if len(files) > 1 and response_format not in ONE_AFTER_ANOTHER:
            raise click.UsageError(f"several files as {response_format} need --output-dir")
        return [(file, None) for file in files]
    sources = {Path(file).resolve() for file in files}
    jobs: list[Job] = []
    taken: dict[Path, str] = {}
    for file in files:
        target = output_dir / f"{Path(_name(file)).stem}{SUFFIXES[response_format]}"
        if target in taken:
            raise click.UsageError(
                f"{_name(taken[target])} and {_name(file)} would both become {target}: transcribe them one by one, "
                "into different directories"
            )
        if target.resolve() in sources:
            raise click.UsageError(f"{target} would overwrite an input: choose another --output-dir")
        taken[target] = file
        jobs.append((file, target))
    return jobs


@dataclass
class _Started:
    """A file on its way. `outcome` is an exception where its audio could not be read."""

    source: str
    target: Path | None
    outcome: TranscriptionStream | Exception
    remove_bar: Callable[[], None]


@dataclass
class _Run:
    """Takes files through an adapter, as many at once as it runs, and delivers them in their order.

    `status` is that of the first file that failed, `failed` how many did.
    """

    whisper: WhisperLibraryAdapter
    options: TranscribeOptions
    response_format: str
    bars: FileBars
    quiet: bool
    clean_up: _CleanUp | None = None
    status: Status = Status.OK
    failed: int = 0

    def transcribe(self, jobs: list[Job]) -> None:
        running: deque[_Started] = deque()
        for source, target in jobs:
            if len(running) == self.whisper.config.concurrency:
                self.finish(running.popleft())
            running.append(self.start(source, target))
        while running:
            self.finish(running.popleft())

    def start(self, source: str, target: Path | None) -> _Started:
        progress, remove_bar = self.bars.add(Path(_name(source)).name)
        outcome: TranscriptionStream | Exception
        try:
            outcome = self.whisper.stream(audio_source(source), self.options, progress=progress)
        except Exception as error:  # the other files go on, whatever it is
            outcome = error
        return _Started(source, target, outcome, remove_bar)

    def finish(self, started: _Started) -> None:
        name = _name(started.source)
        try:
            if isinstance(started.outcome, Exception):
                raise started.outcome
            result = self.deliver(started.outcome, started.target, name)
            if not result.complete:
                raise DeadlineExceeded("the deadline has passed; what was finished by then is written")
            if started.target and not self.quiet:
                times = f"{result.duration:.1f} s of audio in {result.timings.total:.1f} s"
                say(f"{name}: {started.target}, language {result.language or 'none'}, {times}")
        except BrokenPipeError:
            raise
        except Exception as error:
            status = complain(error, name)
            self.status = self.status or status
            self.failed += 1
        finally:
            started.remove_bar()

    def deliver(self, stream: TranscriptionStream, target: Path | None, name: str) -> Transcription:
        if self.clean_up:
            self.write(target, self.clean_up.lines(stream.result, name))
        elif target is None and self.response_format == "text":
            for segment in stream:
                self.to_stdout(_lines([segment]))
        else:
            self.write(target, _rendered(stream.result, self.response_format))
        return stream.result

    def write(self, target: Path | None, text: str) -> None:
        if target is None:
            self.to_stdout(text)
        else:
            _write(target, text)

    def to_stdout(self, text: str) -> None:
        with self.bars.hidden():
            sys.stdout.buffer.write(text.encode("utf-8", "replace"))  # whatever encoding the locale has
            sys.stdout.buffer.flush()


def _rendered(result: Transcription, response_format: str) -> str:
    if response_format == "text":
        return _lines(result.segments)
    text = formats.render(result, response_format)
    return text if text.endswith("\n") else f"{text}\n"


def _lines(segments: Iterable[Segment]) -> str:
    """Write a line for each segment, as the .txt of OpenAI's `whisper` command has it."""
    return "".join(f"{' '.join(segment.text.split())}\n" for segment in segments if segment.text)


def _write(target: Path, text: str) -> None:
    """Write a file that appears under its name when it is whole."""
    scratch = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        scratch.write_bytes(text.encode("utf-8", "replace"))
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def _name(source: str) -> str:
    return "stdin" if source == "-" else source
