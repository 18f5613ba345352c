"""What a verb shows: results on standard output, notes and progress on standard error, or one JSON document."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Advance(Protocol):
    """Called with the number of bytes that were done since the last call."""

    def __call__(self, done_bytes: int, /) -> None: ...


def say(text: str) -> None:
    """One line of a result, on standard output."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """One line beside the result, on standard error."""
    sys.stderr.write(text + "\n")


def say_json(document: Mapping[str, Any]) -> None:
    """The whole result as one JSON document, on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, sort_keys=False, default=str) + "\n")


@contextmanager
def progress(what: str, total_bytes: int | None, *, quiet: bool = False) -> Iterator[Advance]:
    """A progress bar on standard error while something long goes on; silent where that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda done: bar.advance(task, done)
