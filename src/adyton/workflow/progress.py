"""Callbacks of a function to its caller: notices as text, and progress in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias

Notice: TypeAlias = Callable[[str], None]
"""Called with a line of text for people, beside the result."""


class Advance(Protocol):
    """Called with the number of bytes done since the last call."""

    def __call__(self, done_bytes: int, /) -> None: ...


Progress: TypeAlias = Callable[[str, int | None], AbstractContextManager[Advance]]
"""Called with the name of a step and its size in bytes, if known. The context lasts until the step ends."""


def unheard(_text: str) -> None:
    """Ignore a notice."""


@contextmanager
def unwatched(_what: str, _total_bytes: int | None) -> Iterator[Advance]:
    """Ignore progress."""
    yield lambda _done: None
