"""The lock of a home, for a backup and for a rotation of the master key."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from adyton.errors import StoreError
from adyton.file_lock import file_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes from replacing the home's master key. Raises StoreError where one does so now."""
    with file_lock(folder, wait=False) as mine:
        if not mine:
            raise StoreError(
                f"another process has this home to itself: {folder}",
                check=what,
                expected="no backup and no rotation of the master key under way",
                seen="one",
                remedy="wait until it has ended, and try again",
            )
        yield
