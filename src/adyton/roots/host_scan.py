"""What the host shows in a folder: every name, and the root that each file has now. Nothing is believed yet.

Node 0 of each file is opened with the key, so a file that is torn or altered there is not taken for whole. The other
nodes are checked when they are read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.errors import FileFormatError, IntegrityError
from adyton.os_failure import storage_failed
from adyton.pfile.backing import RECOVERY_SUFFIX, OSFile
from adyton.pfile.committed_state import committed_state
from adyton.pfile.paths import path_bytes
from adyton.roots.entry import MAX_ENTRIES, MAX_PATH_BYTES
from adyton.roots.judge import CHECK, Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adyton.values import Key128

_FILE: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_FOLDER: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY


def scan(
    source: str,
    key: Key128,
    *,
    sealed_as: str,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Seen]:
    """Everything below a folder by its path. Raises StorageFailed, and IntegrityError where there is too much."""
    found: dict[str, Seen] = {}
    try:
        top = os.open(source or ".", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            for path, folder, name, has_log in _walk(top, progress):
                if len(found) >= MAX_ENTRIES or len(os.fsencode(path)) > MAX_PATH_BYTES:
                    raise IntegrityError(
                        f"{source} holds more than a pinned folder can",
                        check=CHECK,
                        expected=f"at most {MAX_ENTRIES} files and folders, paths of at most {MAX_PATH_BYTES} bytes",
                        seen="more",
                        remedy="move away what is not part of the folder",
                    )
                progress()
                found[path] = _look(source, path, folder, name, key, sealed_as, has_log=has_log)
        finally:
            os.close(top)
    except OSError as error:
        raise storage_failed(error, source, "looking into the pinned folder") from error
    return found


def remove_beneath(top: Path, path: str) -> None:
    """Remove a file below a folder, through folders and no links. Raises OSError."""
    *folders, name = path.split("/")
    folder = os.open(top, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        for below in folders:
            inner = os.open(below, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)


def _walk(top: int, progress: Callable[[], None]) -> Iterator[tuple[str, int, str, bool]]:
    """Every name below a folder: its path, the descriptor of its folder, itself, whether a recovery log is beside."""
    pending = [("", os.dup(top))]
    try:
        while pending:
            below, folder = pending.pop()
            try:
                progress()
                with os.scandir(folder) as listed:
                    names = {each.name for each in listed}
                for name in sorted(names):
                    if name.endswith(RECOVERY_SUFFIX):
                        continue
                    path = f"{below}/{name}" if below else name
                    yield path, folder, name, name + RECOVERY_SUFFIX in names
                    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                        pending.append((path, os.open(name, _FOLDER, dir_fd=folder)))
            finally:
                os.close(folder)
    finally:
        for _, folder in pending:
            os.close(folder)


def _look(source: str, path: str, folder: int, name: str, key: Key128, sealed_as: str, *, has_log: bool) -> Seen:
    """What a name is. A file has the root of the state that verifies. An unfinished flush is undone in what is read."""
    facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISDIR(facts.st_mode):
        return Seen(is_folder=True)
    if not stat.S_ISREG(facts.st_mode):
        return Seen(is_folder=False, is_other=True)
    if not facts.st_size:
        return Seen(is_folder=False, is_empty=True)
    # only a file that is opened by its name can have a recovery log beside it
    backing = OSFile(Path(source or ".") / path if has_log else os.open(name, _FILE, dir_fd=folder), name=path)
    try:
        sealed = path_bytes(f"{sealed_as}/{path}" if sealed_as else path)
        state = committed_state(backing, key, path=sealed, writable=False, recover=has_log, expected_root=None)
        if state.backing is not backing:
            state.backing.close()
    except FileFormatError:
        return Seen(is_folder=False)
    finally:
        backing.close()
    return Seen(is_folder=False, root=state.root)
