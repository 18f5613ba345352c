"""Feeds one parser with mutated input for so much processor time, and keeps what reaches new lines of it.

An input may be refused with an error of Adyton's or be taken. Anything else that is raised, and processor time out of
proportion to its length, fails with the input, so that it can be made a test.
"""

from __future__ import annotations

import base64
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import adyton
from adyton.errors import Error
from tests.fuzz.mutate import mutate

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

PACKAGE: Final = str(Path(adyton.__file__).parent)
ALLOWED_S: Final = 2.0
ALLOWED_S_PER_BYTE: Final = 20e-6
_MAX_KEPT: Final = 400
_TRACED: Final = 5
"""One input in so many is run with its lines watched."""


@dataclass(frozen=True, slots=True)
class Target:
    """A parser, good inputs for it, and the names of the functions that it goes through."""

    parse: Callable[[bytes], object]
    given: tuple[bytes, ...] | Callable[[], tuple[bytes, ...]]
    covers: tuple[str, ...]
    seconds: Callable[[], float] = time.thread_time
    """The processor time that has been used so far: this thread's, or also that of children."""

    @property
    def seeds(self) -> tuple[bytes, ...]:
        """The good inputs, made when they are first needed."""
        return self.given if isinstance(self.given, tuple) else self.given()


@dataclass(slots=True)
class Report:
    """What was done: inputs tried, inputs taken, inputs kept for the lines that they reached."""

    tried: int = 0
    taken: int = 0
    kept: list[bytes] = field(default_factory=list)
    slowest_s: float = 0.0


class _Lines:
    """Which lines of Adyton ran."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()
        self.new = False

    def watch(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, _argument: Any) -> Any:
        place = (frame.f_code.co_filename, frame.f_lineno)
        if place not in self.seen:
            self.seen.add(place)
            self.new = True
        return self._line


def fuzz(target: Target, budget_s: float, seed: int) -> Report:
    """Try mutated inputs until so much processor time was used; raises AssertionError with the input."""
    chance, report, lines = random.Random(seed), Report(), _Lines()
    corpus = list(target.seeds)
    end = target.seconds() + budget_s
    for raw in tuple(corpus):
        _try(target, raw, report, lines)
    while target.seconds() < end:
        watched = report.tried % _TRACED == 0
        raw = mutate(chance.choice(corpus), chance, corpus)
        lines.new = False
        _try(target, raw, report, lines if watched else None)
        if watched and lines.new and len(corpus) < _MAX_KEPT and len(raw) < 16_384:
            corpus.append(raw)
            report.kept.append(raw)
    return report


def _try(target: Target, raw: bytes, report: Report, lines: _Lines | None) -> None:
    report.tried += 1
    before = target.seconds()
    former = sys.gettrace()
    if lines is not None:
        sys.settrace(lines.watch)
    try:
        target.parse(raw)
        report.taken += 1
    except Error:
        pass
    except BaseException as error:
        sys.settrace(former)
        raise AssertionError(f"{type(error).__name__}: {str(error)[:200]}; the input: {_shown(raw)}") from error
    finally:
        sys.settrace(former)
    used = target.seconds() - before
    allowed = (ALLOWED_S + len(raw) * ALLOWED_S_PER_BYTE) * (_TRACED if lines is not None else 1)
    if used > allowed:
        raise AssertionError(f"{used:.1f} seconds for {len(raw)} bytes; the input: {_shown(raw)}")
    report.slowest_s = max(report.slowest_s, used)


def _shown(raw: bytes) -> str:
    import zlib

    return f"zlib.decompress(base64.b85decode({base64.b85encode(zlib.compress(raw, 9)).decode()!r}))"
