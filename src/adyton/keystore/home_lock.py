"""The lock of a home: a backup and a rotation of the master key each have the home to themselves."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adyton.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def try_lock(folder: Path) -> Iterator[bool]:
    """Whether this process alone has the lock of a folder, which it holds until the block ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes from exchanging the home's master key meanwhile; raises StoreError where one does."""
    with try_lock(folder) as mine:
        if not mine:
            raise StoreError(
                f"another process has this home to itself: {folder}",
                check=what,
                expected="no backup and no rotation of the master key under way",
                seen="one",
                remedy="wait until it has ended, and try again",
            )
        yield
