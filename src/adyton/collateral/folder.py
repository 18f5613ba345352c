"""The store's folder: JSON files that are read up to a limit and replaced whole, and a lock against other processes."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from adyton.errors import StorageFailed
from adyton.untrusted import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_STATE_BYTES: Final = 4 << 20
"""The size limit of the files that hold the store's own state."""

FileIdentity: TypeAlias = tuple[int, int, int]
"""Inode, time of change and size: another file in the same place differs in one of them."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make this folder if it is missing, and hold its lock against other processes; raises StorageFailed."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageFailed(f"cannot use {folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def identity_of(path: str) -> FileIdentity | None:
    """The identity of the file at this path, or None where there is none; raises StorageFailed."""
    try:
        state = os.stat(path)  # noqa: PTH116 - asked for with every quote
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageFailed(f"cannot read {path}: {error.strerror}") from error
    return state.st_ino, state.st_mtime_ns, state.st_size


def read_json(path: Path, default: Any, *, limit_bytes: int = MAX_STATE_BYTES) -> Any:
    """The JSON in this file, or `default` where there is no file; raises StorageFailed."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit_bytes + 1)
    except FileNotFoundError:
        return default
    except OSError as error:
        raise StorageFailed(f"cannot read {path}: {error.strerror}") from error
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
    """Write a file beside this one, sync it, and rename it into place; raises StorageFailed."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(data, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StorageFailed(f"cannot write {path}: {error.strerror}") from error
