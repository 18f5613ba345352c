"""Read files that others may have written, up to a limit of bytes. Read secrets only from private files.

The limit holds for every kind of file: a growing log, an endless device, a pipe. A refusal names the file and never
shows its content. The caller chooses the classes of Error. An error of the operating system is always the `__cause__`
of the raised error.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from adyton.errors import Error, StorageFailed, StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_SECRET_FILE_BYTES: Final = 16 * 1024
_CHUNK_BYTES: Final = 1 << 20


def read_prefix(path: Path, limit_bytes: int) -> bytes:
    """The first `limit_bytes` of a file, or all of a shorter one. Raises OSError."""
    with _opened(path, wait=True) as (descriptor, _):
        return _read(descriptor, limit_bytes)


def read_capped(
    path: Path,
    limit_bytes: int,
    what: str,
    *,
    unreadable: type[Error] = StorageFailed,
    too_large: type[Error] = UsageError,
    regular_only: bool = False,
    remedy: str | None = None,
) -> bytes:
    """Read a whole file of at most `limit_bytes`. `what` names the file in an error.

    Raises `unreadable` (with `remedy`) where it cannot be read, and `too_large` where it is larger. With
    `regular_only`, a pipe, a device or a folder is `unreadable` too, and the call does not block on it.
    """
    try:
        with _opened(path, wait=not regular_only) as (descriptor, mode):
            if regular_only and not stat.S_ISREG(mode):
                raise unreadable(
                    f"{what} {path} is no file", check=what, expected="a regular file", seen="something else"
                )
            raw = _read(descriptor, limit_bytes + 1)
    except OSError as error:
        raise _unreadable(path, what, error, unreadable, remedy) from error
    if len(raw) > limit_bytes:
        raise _too_large(path, what, limit_bytes, too_large)
    return raw


def read_private_file(
    path: Path,
    what: str,
    *,
    limit_bytes: int = MAX_SECRET_FILE_BYTES,
    refuse: type[Error] = StoreError,
    pipes: bool = False,
    remedy: str | None = None,
    too_long_remedy: str | None = None,
) -> bytes:
    """Read a secret from a file that only its owner can open. With `pipes`, also from a pipe, which has no mode.

    Raises StorageFailed (with `remedy`) where it cannot be read, and `refuse` where group or others have any
    permission, where it is no regular file, or where it is longer than `limit_bytes` (with `too_long_remedy`).
    """
    try:
        with _opened(path, wait=pipes) as (descriptor, mode):
            is_file = stat.S_ISREG(mode)
            if (is_file and mode & 0o077) or not (is_file or pipes):
                raise refuse(
                    f"{what} is open to others: {path}",
                    check=f"permissions of {what}",
                    expected="a regular file of mode 0600 or stricter",
                    seen=f"mode {stat.filemode(mode)}",
                    remedy=f"chmod 600 {path}",
                )
            raw = _read(descriptor, limit_bytes + 1)
    except OSError as error:
        raise _unreadable(path, what, error, StorageFailed, remedy) from error
    if len(raw) > limit_bytes:
        raise _too_large(path, what, limit_bytes, refuse, too_long_remedy)
    return raw


@contextmanager
def _opened(path: Path, *, wait: bool) -> Iterator[tuple[int, int]]:
    """A descriptor to read from, and the file's mode. Without `wait`, opening a pipe does not block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | (0 if wait else os.O_NONBLOCK))
    try:
        yield descriptor, os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)


def _read(descriptor: int, limit_bytes: int) -> bytes:
    found = bytearray()
    while len(found) < limit_bytes and (more := os.read(descriptor, min(limit_bytes - len(found), _CHUNK_BYTES))):
        found += more
    return bytes(found)


def _unreadable(path: Path, what: str, error: OSError, kind: type[Error], remedy: str | None) -> Error:
    return kind(
        f"{what} cannot be read: {path}: {error.strerror}",
        check=what,
        expected="a readable file",
        seen=error.strerror,
        remedy=remedy,
    )


def _too_large(path: Path, what: str, limit_bytes: int, kind: type[Error], remedy: str | None = None) -> Error:
    return kind(
        f"{what} is longer than {limit_bytes} bytes: {path}",
        check=f"size of {what}",
        expected=f"at most {limit_bytes} bytes",
        seen="more",
        remedy=remedy,
    )
