"""`whisperlib transcribe`: audio files → text, subtitles or JSON."""

from __future__ import annotations

import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
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
from whisperlib.errors import DeadlineExceeded, LanguageModelError, OptionError, WhisperlibError
from whisperlib.options import CancelToken, ProgressCallback
from whisperlib.settings import get_settings

if TYPE_CHECKING:
    from whisperlib.enhance import Enhancement, Enhancer, Mode

ENHANCE = ("never", "auto", "always")
# Here, what the adapter gets is what each request gets; and nobody else makes it wait.
LEFT_OUT = ("threads", "max_wait_seconds", "background")
CLEAN_UPS = 2  # at once, of files of folders, beside those that are transcribed


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
    stopped: a result that is there is not made again. What a deadline cut off, or the language model failed at, has a
    name that ends in .partial, and is made again.

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
        run = _Run(whisper, options, response_format, bars, quiet, work.of_folders, clean_up)
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
    """Has a language model correct results."""

    enhancer: Enhancer
    mode: Mode

    def run(self, result: Transcription, cancel: CancelToken) -> Enhancement:
        from whisperlib.enhance import Enhancement, why_not  # noqa: PLC0415  (the same)

        if reason := why_not(self.mode, result.model):
            return Enhancement("skipped", reason=reason)
        language = "en" if result.task == "translate" else result.language
        return self.enhancer.enhance(result.text, language, cancel)


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

    job: Job
    outcome: TranscriptionStream | Exception
    remove_bar: Callable[[], None]


@dataclass
class _Made:
    """A file's result, and what came of its clean-up, if there was one."""

    result: Transcription
    enhancement: Enhancement | None


@dataclass
class _Run:
    """Takes files through an adapter, as many at once as it runs.

    Those that are named are delivered in their order, those of folders as they end. `status` is that of the first file
    that failed, `failed` are all that did.
    """

    whisper: WhisperLibraryAdapter
    options: TranscribeOptions
    response_format: str
    bars: FileBars
    quiet: bool
    of_folders: bool = False
    clean_up: _CleanUp | None = None
    cancel: CancelToken = field(default_factory=CancelToken)
    status: Status = Status.OK
    failed: list[str] = field(default_factory=list)

    def transcribe(self, work: Sequence[Job]) -> None:
        if self.of_folders:
            self.as_they_end(work)
        else:
            self.in_order(work)

    def in_order(self, work: Sequence[Job]) -> None:
        running: deque[_Started] = deque()
        for job in work:
            if len(running) == self.whisper.config.concurrency:
                self.finish(running.popleft())
            running.append(self.start(job))
        while running:
            self.finish(running.popleft())

    def as_they_end(self, work: Sequence[Job]) -> None:
        """Deliver each file when it is done; the clean-ups take no slot."""
        n_slots = self.whisper.config.concurrency
        slots = threading.Semaphore(n_slots)
        with ThreadPoolExecutor(n_slots + (CLEAN_UPS if self.clean_up else 0)) as pool:
            try:
                on_their_way = {}
                for job in work:
                    progress, remove_bar = self.bars.add(Path(name_of(job.source)).name)
                    on_their_way[pool.submit(self.make, job, progress, slots)] = job, remove_bar
                for ended in as_completed(on_their_way):
                    job, remove_bar = on_their_way.pop(ended)  # with it goes the result
                    with self.reported(job):
                        self.put(job, ended.result())
                    remove_bar()
            except BaseException:  # Ctrl-C
                self.cancel.cancel()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def make(self, job: Job, progress: ProgressCallback, slots: threading.Semaphore) -> _Made:
        with slots:
            result = self.open(job, progress).result
        return self.cleaned_up(result)

    def open(self, job: Job, progress: ProgressCallback) -> TranscriptionStream:
        options = self.options.replace(cancel=self.cancel)
        return self.whisper.stream(audio_source(job.source), options, progress=progress)

    def cleaned_up(self, result: Transcription) -> _Made:
        return _Made(result, self.clean_up.run(result, self.cancel) if self.clean_up else None)

    def start(self, job: Job) -> _Started:
        progress, remove_bar = self.bars.add(Path(name_of(job.source)).name)
        outcome: TranscriptionStream | Exception
        try:
            outcome = self.open(job, progress)
        except Exception as error:  # the other files go on, whatever it is
            outcome = error
        return _Started(job, outcome, remove_bar)

    def finish(self, started: _Started) -> None:
        try:
            with self.reported(started.job):
                if isinstance(started.outcome, Exception):
                    raise started.outcome
                self.deliver(started.job, started.outcome)
        finally:
            started.remove_bar()

    def deliver(self, job: Job, stream: TranscriptionStream) -> None:
        if job.target is None and self.response_format == "text" and not self.clean_up:
            for segment in stream:
                self.to_stdout(_lines([segment]))
            if not stream.result.complete:
                raise _late(None)
        else:
            self.put(job, self.cleaned_up(stream.result))

    @contextmanager
    def reported(self, job: Job) -> Iterator[None]:
        """Have what goes wrong with a file said; the others go on, whatever it is."""
        try:
            yield
        except BrokenPipeError:
            raise
        except Exception as error:
            status = complain(error, name_of(job.source))
            self.status = self.status or status
            self.failed.append(name_of(job.source))

    def put(self, job: Job, made: _Made) -> None:
        """Write a result. Of a folder's file, what is not all that was asked for has a name that does not count."""
        enhancement = made.enhancement
        text = f"{enhancement.text}\n" if enhancement and enhancement.text else self.rendered(made.result)
        lacking = job.unfinished if self.of_folders else job.target
        lack = self.lack(made, lacking)
        self.write(lacking if lack else job.target, text)
        if enhancement:
            say(f"{name_of(job.source)}: {_told(enhancement)}")
        if lack:
            raise lack
        if self.of_folders and job.unfinished:
            job.unfinished.unlink(missing_ok=True)
        if job.target and not self.quiet:
            times = f"{made.result.duration:.1f} s of audio in {made.result.timings.total:.1f} s"
            say(f"{name_of(job.source)}: {job.target}, language {made.result.language or 'none'}, {times}")

    def lack(self, made: _Made, target: Path | None) -> WhisperlibError | None:
        """Say what a result lacks, and where it is all the same."""
        if not made.result.complete:
            return _late(target)
        if self.of_folders and made.enhancement and made.enhancement.status == "failed":
            return LanguageModelError(f"the text is written to {target} as it was: the same command tries it again")
        return None

    def rendered(self, result: Transcription) -> str:
        if self.response_format == "text":
            return _lines(result.segments)
        text = formats.render(result, self.response_format)
        return text if text.endswith("\n") else f"{text}\n"

    def write(self, target: Path | None, text: str) -> None:
        if target is None:
            self.to_stdout(text)
        else:
            _write(target, text)

    def to_stdout(self, text: str) -> None:
        with self.bars.hidden():
            sys.stdout.buffer.write(text.encode("utf-8", "replace"))  # whatever encoding the locale has
            sys.stdout.buffer.flush()


def _told(enhancement: Enhancement) -> str:
    """Say what came of a clean-up."""
    if enhancement.text is None:
        return f"not cleaned up: {enhancement.reason}"
    return f"cleaned up by {enhancement.model}{f'; {enhancement.reason}' if enhancement.reason else ''}"


def _late(target: Path | None) -> DeadlineExceeded:
    where = target or "stdout"
    return DeadlineExceeded(f"the deadline has passed; what was finished by then is written to {where}")


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
