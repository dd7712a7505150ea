"""`whisperlib transcribe`: audio files → text, subtitles or JSON."""

from __future__ import annotations

import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from whisperlib import Segment, TranscribeOptions, Transcription, TranscriptionStream, WhisperLibraryAdapter, formats
from whisperlib.cli import engine, fields, jobs
from whisperlib.cli.common import SectionCommand, Status, audio_source, complain, say, verbosity
from whisperlib.cli.jobs import Job, name_of
from whisperlib.cli.progress import FileBars, FolderBar
from whisperlib.errors import DeadlineExceeded, OptionError
from whisperlib.settings import get_settings

if TYPE_CHECKING:
    from whisperlib.enhance import Enhancer, Mode

ENHANCE = ("never", "auto", "always")
# Here, what the adapter gets is what each request gets; and nobody else makes it wait.
LEFT_OUT = ("threads", "max_wait_seconds", "background")


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
    help="Write one file for each input here, named after it; otherwise all goes to stdout, or, of folders, beside the "
    "audio.",
)
@click.option("-r", "--recursive", is_flag=True, help="Take the folders within a folder, too.")
@click.option("--overwrite", is_flag=True, help="Do what folders hold anew; otherwise what is there is left.")
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
    recursive: bool,
    overwrite: bool,
    enhance: Mode,
    translate: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Transcribe audio and video files, and those that folders hold; - is stdin.

    Only the result goes to stdout. `text` is a line for each segment, written as soon as it is settled; `json` and
    `verbose_json` are one line for each file. Errors and progress go to stderr. A file that cannot be transcribed
    does not stop the others; the exit status is that of the first such file.

    What a folder holds is written beside the audio, or below --output-dir. To repeat the command goes on where it
    stopped: a result that is there is not made again.

    With --enhance the text comes at once, as the language model corrected it; where it could not, as it was. stderr
    says which.
    """
    # A profile gives its own defaults to what the command line leaves out.
    explicit = {name: given[name] for name in given if ctx.get_parameter_source(name) != ParameterSource.DEFAULT}
    options = _options({**explicit, "task": "translate"} if translate else explicit)
    work = _work(files, response_format, output_dir, recursive=recursive, overwrite=overwrite)
    clean_up = _clean_up(enhance, response_format)
    if output_dir:
        output_dir.mkdir(parents=True, exist_ok=True)
    if not work.jobs:
        say(f"all {work.n_done_before} files were transcribed before; --overwrite does them anew")
        return
    bars = FolderBar(quiet, len(work.jobs)) if work.of_folders else FileBars(quiet)
    with engine.open_adapter(given, quiet=quiet) as whisper, bars:
        run = _Run(whisper, options, response_format, bars, quiet, clean_up)
        run.transcribe(work.jobs)
    if not quiet and (output_dir or work.of_folders):
        _sum_up(work, run)
    ctx.exit(run.status)


def _sum_up(work: _Work, run: _Run) -> None:
    before = f", {work.n_done_before} were before" if work.n_done_before else ""
    say(f"{len(work.jobs) - len(run.failed)} of {len(work.jobs)} files transcribed{before}")
    if work.of_folders:
        for source in run.failed:
            say(f"  failed: {source}")


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


@dataclass
class _Work:
    """What is to be done. `n_done_before` results of folders were there already; `of_folders`: folders were named."""

    jobs: list[Job]
    n_done_before: int = 0
    of_folders: bool = False


def _work(
    files: Sequence[str], response_format: str, output_dir: Path | None, *, recursive: bool, overwrite: bool
) -> _Work:
    folders = [file for file in files if file != "-" and Path(file).is_dir()]
    named = jobs.of_files([file for file in files if file not in folders], response_format, output_dir)
    if not folders:
        for flag, given in (("--recursive", recursive), ("--overwrite", overwrite)):
            if given:
                raise click.UsageError(f"{flag} is for folders, and there is none among {', '.join(files)}")
        return _Work(named)
    if output_dir is None and named:
        raise click.UsageError("files and folders together need --output-dir")
    found = dict.fromkeys(  # a folder may be named twice, or lie in another
        job
        for folder in folders
        for job in jobs.of_folder(Path(folder), response_format, output_dir, recursive=recursive)
    )
    _refuse_two_into_one([*named, *found])
    left = [job for job in found if overwrite or not (job.target and job.target.exists())]
    return _Work([*named, *left], len(found) - len(left), of_folders=True)


def _refuse_two_into_one(all_jobs: Sequence[Job]) -> None:
    taken: dict[Path | None, str] = {}
    for source, target in all_jobs:
        if taken.setdefault(target, source) != source:
            raise click.UsageError(
                f"{taken[target]} and {source} would both become {target}: take one folder at a time"
            )


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

    `status` is that of the first file that failed, `failed` are all that did.
    """

    whisper: WhisperLibraryAdapter
    options: TranscribeOptions
    response_format: str
    bars: FileBars
    quiet: bool
    clean_up: _CleanUp | None = None
    status: Status = Status.OK
    failed: list[str] = field(default_factory=list)

    def transcribe(self, work: Sequence[Job]) -> None:
        running: deque[_Started] = deque()
        for source, target in work:
            if len(running) == self.whisper.config.concurrency:
                self.finish(running.popleft())
            running.append(self.start(source, target))
        while running:
            self.finish(running.popleft())

    def start(self, source: str, target: Path | None) -> _Started:
        progress, remove_bar = self.bars.add(Path(name_of(source)).name)
        outcome: TranscriptionStream | Exception
        try:
            outcome = self.whisper.stream(audio_source(source), self.options, progress=progress)
        except Exception as error:  # the other files go on, whatever it is
            outcome = error
        return _Started(source, target, outcome, remove_bar)

    def finish(self, started: _Started) -> None:
        name = name_of(started.source)
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
            self.failed.append(name)
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
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        scratch.write_bytes(text.encode("utf-8", "replace"))
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
