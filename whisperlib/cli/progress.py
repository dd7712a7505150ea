"""Progress bars on stderr, where that is a terminal; elsewhere nothing is drawn."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column


class _Bars(Progress):
    def stop(self) -> None:
        if not self.disable:  # rich before 14.1 writes an empty line for bars that it has not drawn
            super().stop()


def _bars(quiet: bool, *columns: ProgressColumn) -> _Bars:
    name = TextColumn("{task.description}", markup=False, table_column=Column(max_width=40, no_wrap=True))
    return _Bars(
        name,
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )


class FileBars:
    """A bar for each file that is being transcribed."""

    def __init__(self, quiet: bool) -> None:
        self._bars = _bars(quiet, TaskProgressColumn())

    def __enter__(self) -> FileBars:
        self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bars.stop()

    def add(self, name: str) -> tuple[Callable[[float], None], Callable[[], None]]:
        """Add a bar; return what takes the fraction done, 0 to 1, and what removes the bar."""
        task: TaskID = self._bars.add_task(name, total=1.0)
        return lambda done: self._bars.update(task, completed=done), lambda: self._bars.remove_task(task)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bars off the terminal while something else is written to it."""
        self._bars.stop()
        try:
            yield
        finally:
            self._bars.start()


class FolderBar(FileBars):
    """One bar for all files of folders, however many are on their way at once."""

    def __init__(self, quiet: bool, n_files: int) -> None:
        super().__init__(quiet)
        self._lock = threading.Lock()
        self._n_files = n_files
        self._n_ended = 0
        self._fractions: dict[object, float] = {}  # of those on their way
        self._task = self._bars.add_task("", total=float(n_files))
        self._show()

    def add(self, name: str) -> tuple[Callable[[float], None], Callable[[], None]]:
        """Count a file in; return what takes the fraction done, 0 to 1, and what counts it as ended."""
        file = object()

        def report(done: float) -> None:
            with self._lock:
                self._fractions[file] = done
                self._show()

        def end() -> None:
            with self._lock:
                self._fractions.pop(file, None)
                self._n_ended += 1
                self._show()

        return report, end

    def _show(self) -> None:
        done = self._n_ended + sum(self._fractions.values())
        self._bars.update(self._task, completed=done, description=f"{self._n_ended} of {self._n_files} files")


@contextmanager
def download_bar(name: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Give a callback for bytes done and bytes in all; the bar appears with the first."""
    with _bars(quiet, DownloadColumn(), TransferSpeedColumn()) as bars:
        task = bars.add_task(name, visible=False)
        yield lambda done, total: bars.update(task, completed=done, total=total, visible=True)
