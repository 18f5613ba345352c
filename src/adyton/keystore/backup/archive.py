"""The tar inside a backup: its permitted files, and unpacking without trust.

`tarfile.TarFile.extractall` is not used: its filters came with Python 3.11.4, and they permit more than a backup holds.
A backup holds regular files with two kinds of names. Only these are written, below one folder::

    store.sqlite
    home/NAME[/NAME…]     NAME: at most 255 bytes, no control character, no dot or space at the beginning

The same rule holds when a backup is made, so that every backup can be unpacked.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from typing import TYPE_CHECKING, Final

from adyton.errors import FileFormatError

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILES: Final = 10_000
MAX_HOME_FILE_BYTES: Final = 64 << 20
"""Largest file of the home, in bytes. Only the store may be larger, up to the size of the backup."""

STORE: Final = "store.sqlite"
_REQUIRED: Final = ("home/config.toml", STORE)
_MAX_DEPTH: Final = 6
_NAME: Final = re.compile(r"[^\x00-\x20\x7f./][^\x00-\x1f\x7f/]*")
_MAX_NAME_BYTES: Final = 255


def _is_of_home(name: str) -> bool:
    first, *parts = name.split("/")
    return (
        first == "home"
        and 1 <= len(parts) <= _MAX_DEPTH
        and all(_NAME.fullmatch(part) and len(os.fsencode(part)) <= _MAX_NAME_BYTES for part in parts)
    )


def check_member(member: tarfile.TarInfo, seen: set[str]) -> None:
    """Raise FileFormatError unless a backup may hold this file and its name is not in `seen`."""
    problem = None
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        problem = "an entry that is not a regular file"
    elif member.name != STORE and not _is_of_home(member.name):
        problem = "a file with a name that no backup has"
    elif member.name in seen:
        problem = "a file twice"
    elif member.size > MAX_HOME_FILE_BYTES and member.name != STORE:
        problem = f"a file of {member.size} bytes in the home"
    elif len(seen) >= MAX_FILES:
        problem = f"more than {MAX_FILES} files"
    if problem is not None:
        raise FileFormatError(
            f"the backup holds {problem}",
            check="files of the backup",
            expected=f"{STORE}, and at most {MAX_FILES} regular files below home/ of {MAX_HOME_FILE_BYTES} bytes",
            seen=f"{problem}: {member.name[:200]!a}",
            remedy="restoring: take a backup that adyton backup made. Backing up: move this file out of the home",
        )


def pack(archive: tarfile.TarFile, name: str, path: Path, seen: set[str]) -> None:
    """Add the file at `path` (links are followed) as `name`. Raises FileFormatError where a backup may not hold it."""
    with path.open("rb") as source:
        member = archive.gettarinfo(arcname=name, fileobj=source)
        check_member(member, seen)
        seen.add(member.name)
        archive.addfile(member, source)


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Write the files of an open archive into the new folder `folder`: files of mode 600, folders of mode 700.

    Raises FileFormatError for an archive that is no backup, and tarfile.TarError for one that was cut.
    """
    seen: set[str] = set()
    for member in archive:
        check_member(member, seen)
        seen.add(member.name)
        source = archive.extractfile(member)
        if source is None:  # only entries that are not regular files have no content
            raise FileFormatError("the backup holds an entry without content", check="files of the backup")
        target = folder / member.name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(target, flags, 0o600), "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    lacking = [name for name in _REQUIRED if name not in seen]
    if lacking:
        raise FileFormatError(
            f"the backup lacks {' and '.join(lacking)}",
            check="files of the backup",
            expected=", ".join(_REQUIRED),
            seen=f"{len(seen)} files without {', '.join(lacking)}",
            remedy="take a backup that adyton backup made",
        )
