"""What a verb shows: results on standard output, notes and progress on standard error, or one JSON document.

Names and texts in it may be the host's (a file's name, a manifest, a certificate), so nothing that could steer a
terminal or turn text around is passed through.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
    """A progress bar on standard error while something long goes on; silent where that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    shown = TextColumn("{task.description}", markup=False)  # a file's name is no markup of rich's
    columns = (shown, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(what), total=total_bytes)
        yield lambda done: bar.advance(task, done)
