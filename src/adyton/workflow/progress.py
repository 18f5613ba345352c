"""How a function tells its caller what it is doing: notices in words, and progress in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias

Notice: TypeAlias = Callable[[str], None]
"""Called with one line that a person should read beside the result."""


class Advance(Protocol):
    """Called with the number of bytes that were done since the last call."""

    def __call__(self, done_bytes: int, /) -> None: ...


Progress: TypeAlias = Callable[[str, int | None], AbstractContextManager[Advance]]
"""Called with what begins and its size in bytes, where that is known. The context lasts until it has ended."""


def unheard(_text: str) -> None:
    """Take a notice that nobody reads."""


@contextmanager
def unwatched(_what: str, _total_bytes: int | None) -> Iterator[Advance]:
    """Progress that nobody watches."""
    yield lambda _done: None
