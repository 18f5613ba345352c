"""What a verb shows: results on standard output, notes and progress on standard error, or one JSON document.

Names and texts in it may be the host's (a file's name, a manifest, a certificate), so nothing that could steer a
terminal or turn text around is passed through.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.console import Console
    from rich.progress import Progress

    from adyton.workflow.progress import Advance
    from adyton.workflow.sources import Moved

_STEERING: Final = (range(0x20), range(0x7F, 0xA0), range(0x200E, 0x2010), range(0x2028, 0x202F), range(0x2066, 0x206A))
"""C0 and C1 controls; marks, separators and overrides of direction."""

_SHOWN: Final = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for codes in (*_STEERING, range(0xDC80, 0xDD00))
    for code in codes
    if chr(code) not in "\t\n"
}


FIRST_LINE_S: Final = 10.0
"""Without a terminal, what takes no longer than this says nothing of its progress."""


def printable(text: str) -> str:
    """`text` with every character that could steer a terminal, or that no encoding has, written as an escape."""
    return text.translate(_SHOWN)


def say(text: str) -> None:
    """One line of a result, on standard output."""
    sys.stdout.write(printable(text) + "\n")


def note(text: str) -> None:
    """One line beside the result, on standard error."""
    sys.stderr.write(printable(text) + "\n")


def say_json(document: Mapping[str, Any]) -> None:
    """The whole result as one JSON document, on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, sort_keys=False, default=str) + "\n")


def say_moved(item: Moved) -> None:
    """One line on what came of a source; none where its result itself went to standard output."""
    if item.target == "-":
        return
    line = f"{item.source} -> {item.target}  {item.size_bytes} bytes"
    if item.files is not None:
        line += f", {item.files} files"
        if item.resumed:
            line += f" ({item.resumed} were done before)"
    say(line)


@contextmanager
def results_alone(*, alone: bool) -> Iterator[None]:
    """While this lasts, what other programs print goes to standard error, so that the result stands alone."""
    if not alone:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def progress(what: str, total_bytes: int | None, *, quiet: bool = False) -> Iterator[Advance]:
    """Progress on standard error while something long goes on: a bar, or where that is no terminal a line at times."""
    if quiet:
        yield lambda _done: None
    elif sys.stderr.isatty():
        from rich.console import Console

        with progress_bar(Console(stderr=True)) as bar:
            task = bar.add_task(printable(what), total=total_bytes)
            yield lambda done: bar.advance(task, done)
    else:
        yield ProgressLines(what, total_bytes)


def progress_bar(console: Console) -> Progress:
    """A bar on one line of this terminal; where the line is short, the name is cut and not the time."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.table import Column

    name = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=name),  # a file's name is no markup of rich's
        BarColumn(bar_width=16, table_column=Column(no_wrap=True)),
        DownloadColumn(table_column=Column(no_wrap=True)),
        TransferSpeedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        expand=True,
    )


class ProgressLines:
    """Progress as plain lines, for a log: the first after ten seconds, then at longer and longer distances.

    Called with the bytes that were done since the last call, also by several threads.
    """

    def __init__(self, what: str, total_bytes: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._total = what, total_bytes
        self._clock = clock
        self._began_s = clock()
        self._next_s = self._began_s + FIRST_LINE_S
        self._done = 0
        self._lock = Lock()

    def __call__(self, done_bytes: int, /) -> None:
        """Take in what was done, and say so where it is time."""
        with self._lock:
            self._done += done_bytes
            now_s = self._clock()
            if now_s < self._next_s:
                return
            elapsed_s = now_s - self._began_s
            self._next_s = now_s + max(FIRST_LINE_S, elapsed_s / 4)
            note(f"{self._what}: {self._amount()} after {timedelta(seconds=int(elapsed_s))}")

    def _amount(self) -> str:
        if not self._total:
            return f"{self._done / 1e6:,.1f} MB"
        return f"{self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB ({100 * self._done // self._total} %)"
