"""Turn a failure of the operating system into a StorageFailed."""

from __future__ import annotations

import errno
import os

from adyton.errors import StorageFailed


def storage_failed(error: OSError, name: str, doing: str) -> StorageFailed:
    """The error for a failure of the operating system. Raise it `from` the OSError, so that the errno is kept."""
    remedy = {
        errno.ENOSPC: "free some space, or write elsewhere",
        errno.EDQUOT: "free some space, or write elsewhere",
        errno.EACCES: "check who may read and write it",
        errno.EPERM: "check who may read and write it",
        errno.ENOENT: "check the name",
        errno.EROFS: "write elsewhere: that file system is read-only",
    }.get(error.errno or 0, "look for errors of this disk in the system's log")
    return StorageFailed(
        f"{doing} {name} failed: {os.strerror(error.errno) if error.errno else error}",
        check=doing,
        expected="success",
        seen=errno.errorcode.get(error.errno or 0, str(error)),
        remedy=remedy,
    )
