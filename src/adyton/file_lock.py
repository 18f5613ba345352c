"""A lock between processes (flock) on a folder or a file. It is free again when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adyton.os_failure import storage_failed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def file_lock(path: Path, *, create: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a folder or file until the block ends. Yields whether this process has it.

    With `wait`, it waits for another holder and then always has it. With `create`, `path` is a file of mode 0600 that
    is made where it is missing. Raises StorageFailed where `path` cannot be opened or locked.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW if create else os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_failed(error, str(path), "opening the lock") from error
    try:
        yield _lock(descriptor, path, wait=wait)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise storage_failed(error, str(path), "locking") from error
    return True
