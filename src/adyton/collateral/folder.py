"""The store's folder: JSON files, read up to a limit and replaced atomically, and a lock between processes."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from adyton.atomic_file import write_file
from adyton.capped_read import read_prefix
from adyton.errors import StorageFailed
from adyton.file_lock import file_lock
from adyton.os_failure import storage_failed
from adyton.untrusted import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_STATE_BYTES: Final = 4 << 20
"""The size limit of the files that hold the store's own state."""

FileIdentity: TypeAlias = tuple[int, int, int]
"""Inode, time of change and size. Another file under the same name differs in one of them."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make this folder if it is missing, and hold its lock between processes. Raises StorageFailed."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFailed(f"cannot use {folder}: {error.strerror}") from error
    with file_lock(folder):
        yield


def identity_of(path: str) -> FileIdentity | None:
    """The identity of the file at this path, or None where there is none. Raises StorageFailed."""
    try:
        state = os.stat(path)  # noqa: PTH116 - asked for with every quote
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageFailed(f"cannot read {path}: {error.strerror}") from error
    return state.st_ino, state.st_mtime_ns, state.st_size


def read_json(path: Path, default: Any, *, limit_bytes: int = MAX_STATE_BYTES) -> Any:
    """The JSON in this file, or `default` where there is no file. Raises StorageFailed."""
    try:
        raw = read_prefix(path, limit_bytes + 1)
    except FileNotFoundError:
        return default
    except OSError as error:
        raise storage_failed(error, str(path), "reading") from error
    try:
        return parse_json(raw, what=f"file {path}", refuse=StorageFailed, limit_bytes=limit_bytes)
    except StorageFailed as error:
        raise StorageFailed(
            error.message,
            check=error.check,
            expected=error.expected,
            seen=error.seen,
            remedy="remove it and fetch the collateral again",
        ) from None


def write_json(path: Path, data: object) -> None:
    """Replace this file atomically: write beside it, sync, rename. Raises StorageFailed."""
    write_file(path, json.dumps(data, indent=1).encode(), 0o600)
