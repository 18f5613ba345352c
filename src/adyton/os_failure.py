"""A failure of the operating system as the StorageFailed that a person reads."""

from __future__ import annotations

import errno
import os

from adyton.errors import StorageFailed


def storage_failed(error: OSError, name: str, doing: str) -> StorageFailed:
    """What to raise for a failure of the operating system; raise it `from` the OSError, whose errno is wanted."""
    remedy = {
        errno.ENOSPC: "free some space, or write elsewhere",
        errno.EDQUOT: "free some space, or write elsewhere",
        errno.EACCES: "check who may read and write it",
        errno.EPERM: "check who may read and write it",
        errno.ENOENT: "check the name",
        errno.EROFS: "write elsewhere: that file system is read-only",
    }.get(error.errno or 0, "see what the system's log says of this disk")
    return StorageFailed(
        f"{doing} {name} failed: {os.strerror(error.errno) if error.errno else error}",
        check=doing,
        expected="success",
        seen=errno.errorcode.get(error.errno or 0, str(error)),
        remedy=remedy,
    )
