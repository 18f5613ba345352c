"""The root of a folder as its owner has it: the first one, or one of what is left after a loss.

It is made on the owner's machine. So every name is taken as it is, once its file verifies under the key and its path.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from adyton.errors import IntegrityError
from adyton.os_failure import storage_failed
from adyton.pfile.backing import RECOVERY_SUFFIX, OSFile
from adyton.pfile.committed_state import committed_state
from adyton.pfile.paths import path_bytes
from adyton.roots.entry import Entry
from adyton.roots.history import History
from adyton.roots.journal import Journal, journal_of, read_journal
from adyton.roots.judge import CHECK
from adyton.roots.root import OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adyton.roots.root import Root
    from adyton.values import Key128


def pin_folder(source: str, key: Key128, folder: str, *, sealed_as: str, known: Root | None) -> Root:
    """Begin, or go on with, the history of a folder with what is there now. `known` is the key server's root.

    Files that are as the history says keep their writer and time. Raises IntegrityError for a file that does not
    verify, and StorageFailed.
    """
    place, at_s = journal_of(source), int(time.time())
    before = None
    if place.exists():
        try:
            before = read_journal(place, key, folder)[0]
        except IntegrityError:
            if known is None:
                raise
    entries = dict(_every(source, key, sealed_as, at_s))
    if before is not None:
        old = before.entries
        entries = {
            path: old[path] if path in old and old[path].root == entry.root else entry
            for path, entry in entries.items()
        }
    after = known if before is None or (known and known.sequence > before.root.sequence) else before.root
    history = History.create(folder, entries, at_s=at_s, after=after, earlier=before.heads if before else None)
    Journal(place, key, history).close()
    return history.root


def _every(source: str, key: Key128, sealed_as: str, at_s: int) -> Iterator[tuple[str, Entry]]:
    top = Path(source or ".")
    pending = [""]
    while pending:
        below = pending.pop()
        try:
            with os.scandir(top / below) as found:
                names = sorted((each.name, each.stat(follow_symlinks=False).st_mode) for each in found)
        except OSError as error:
            raise storage_failed(error, str(top / below), "listing") from error
        for name, mode in names:
            path = f"{below}/{name}" if below else name
            if name.endswith(RECOVERY_SUFFIX):
                continue
            if stat.S_ISDIR(mode):
                yield path, Entry(b"", 0, at_s, OWNER)
                pending.append(path)
            elif stat.S_ISREG(mode):
                yield path, _file(top / path, key, f"{sealed_as}/{path}" if sealed_as else path, at_s)
            else:
                raise IntegrityError(
                    f"{top / path} is neither a protected file nor a folder",
                    check=CHECK,
                    expected="protected files and folders (a symbolic link is a protected file, too)",
                    seen="a link of the host's, or a device",
                    remedy="move it out of the folder, then pin the folder again",
                )


def _file(place: Path, key: Key128, sealed: str, at_s: int) -> Entry:
    backing = OSFile(place, writable=True)
    try:
        state = committed_state(backing, key, path=path_bytes(sealed), writable=True, recover=True, expected_root=None)
        return Entry(state.root, state.metadata.size, at_s, OWNER)
    finally:
        backing.close()
