"""A target that is whole or absent: written beside its place, made durable, and then put there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from adyton.errors import StorageFailed, TargetExists
from adyton.pfile.backing import storage_failed, sync_directory

PART_SUFFIX: Final = ".adyton-part"


def check_absent(target: Path) -> None:
    """Raise TargetExists if something is there, a dangling link too."""
    if os.path.lexists(target):
        raise _exists(target)


def _exists(target: Path) -> TargetExists:
    return TargetExists(
        f"{target} exists already and was left as it is",
        check="target",
        expected="absent",
        seen="present",
        remedy="choose another target, or say --force to replace it",
    )


def is_part(name: str) -> bool:
    """Whether a name is that of an unfinished target."""
    return name.startswith(".") and name.endswith(PART_SUFFIX)


@contextmanager
def whole_or_absent(target: Path, *, force: bool, sync: bool = True, mode: int = 0o600) -> Iterator[int]:
    """A descriptor to write the target's content to; at the end it takes its place, or on an error it is gone.

    Folders above the target are made where they are missing.
    """
    if not force:
        check_absent(target)
    # a name of fixed length: the target's own may already be as long as a name can be
    part = target.with_name(f".{secrets.token_hex(8)}{PART_SUFFIX}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except OSError as error:
        raise storage_failed(error, str(target), "making") from error
    try:
        try:
            yield fd
            try:
                if sync:
                    os.fsync(fd)
                _put_in_place(part, target, force=force)
                if sync:
                    sync_directory(target.parent)
            except OSError as error:
                raise storage_failed(error, str(target), "putting in place") from error
        finally:
            os.close(fd)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        raise


def _put_in_place(part: Path, target: Path, *, force: bool) -> None:
    if not force:
        try:
            os.link(part, target, follow_symlinks=False)
        except FileExistsError as error:
            raise _exists(target) from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            check_absent(target)  # no hard links there: look, then rename
        else:
            part.unlink()
            return
    if target.is_dir() and not target.is_symlink():
        raise StorageFailed(f"{target} is a directory", check="target", expected="a file", seen="a directory")
    part.replace(target)
