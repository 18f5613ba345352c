"""The file that holds a folder's history: FOLDER.adyton-roots, beside the folder.

It is the 8 bytes `ADYROOT1` and then frames (`sealing`): a snapshot, and the records after it. A frame is durable
before what it announces is done. A new snapshot is written beside and put in its place in one step. What comes behind
the first frame that does not open was never durable, or is the host's: it is not part of the history, and the key
server's root tells whether something is missing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.atomic_file import write_file
from adyton.errors import IntegrityError, StorageFailed
from adyton.os_failure import storage_failed
from adyton.pfile.side_files import ROOTS_SUFFIX
from adyton.roots.history import History
from adyton.roots.judge import CHECK
from adyton.roots.records import MAX_RECORD_BYTES, Record, Snapshot, encode, malformed, parse_record
from adyton.roots.sealing import LENGTH, SALT_BYTES, TAG_BYTES, first_head, open_frame, seal

if TYPE_CHECKING:
    from adyton.values import Key128

MAGIC: Final = b"ADYROOT1"
MAX_JOURNAL_BYTES: Final = 1 << 30
NEW_AFTER_BYTES: Final = 4 << 20
"""A journal that has grown by this much, and to four times its snapshot, is begun anew."""


def journal_of(folder: str) -> Path:
    """The place of a folder's history."""
    return Path(folder + ROOTS_SUFFIX)


def parse_journal(raw: bytes, key: Key128, folder: str, shown: str) -> tuple[History, int]:
    """The history in a journal, and how many of its bytes hold it. Raises IntegrityError."""
    if not raw.startswith(MAGIC):
        raise malformed(f"beginning of {shown}", MAGIC.decode(), "other bytes")
    at = len(MAGIC)
    head = first_head(folder)
    found = _frame(raw, at, key, head)
    if found is None:
        raise IntegrityError(
            f"{shown}: the key is wrong, or the history of the folder was altered",
            check=CHECK,
            expected=f"a history of {folder} under this key",
            seen="one that does not open",
            remedy="check the key, and that the folder is where it was pinned; else put back the folder with its"
            " .adyton-roots file",
        )
    record, at = found
    first = parse_record(record)
    if not isinstance(first, Snapshot) or first.folder != folder:
        raise malformed(f"first record of {shown}", f"a snapshot of {folder}", "another")
    history = History(first)
    while (found := _frame(raw, at, key, history.head)) is not None:
        history.add(found[0])
        at = found[1]
    return history, at


def _frame(raw: bytes, at: int, key: Key128, head: bytes) -> tuple[bytes, int] | None:
    """The record of the frame at a place, and where the next one begins. None where none opens."""
    if len(raw) - at < LENGTH.size + SALT_BYTES + TAG_BYTES:
        return None
    (size,) = LENGTH.unpack_from(raw, at)
    begin = at + LENGTH.size + SALT_BYTES
    if size > MAX_RECORD_BYTES or len(raw) - begin < size:
        return None
    record = open_frame(key, head, raw[at + LENGTH.size : begin], raw[begin : begin + size])
    return None if record is None else (record, begin + size)


def read_journal(place: Path, key: Key128, folder: str) -> tuple[History, int]:
    """The history beside a folder, and its length in bytes. Raises IntegrityError, StorageFailed."""
    try:
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            raw = file.read(MAX_JOURNAL_BYTES + 1)
    except FileNotFoundError:
        raise IntegrityError(
            f"the history of {folder} is gone: there is no {place}",
            check=CHECK,
            expected=f"{place}, as it was left beside the folder",
            seen="nothing",
            remedy="put it back together with the folder; if it is lost, the owner looks at the folder and accepts it:"
            " adyton pin --accept",
        ) from None
    except OSError as error:
        raise storage_failed(error, str(place), "reading") from error
    if len(raw) > MAX_JOURNAL_BYTES:
        raise malformed(f"size of {place}", f"at most {MAX_JOURNAL_BYTES} bytes", "more")
    return parse_journal(raw, key, folder, str(place))


class Journal:
    """A history that is written on. One process writes to it, which has the lock of the folder."""

    def __init__(self, place: Path, key: Key128, history: History) -> None:
        """Begin a new file with the history as its snapshot, in place of the old one. Raises StorageFailed."""
        self._place = place
        self._key = key
        self.history = history
        self._fd = -1
        self._begin()

    def _begin(self) -> None:
        snapshot = self.history.snapshot()
        folder = self.history.folder
        raw = MAGIC + seal(self._key, first_head(folder), encode(snapshot))
        write_file(self._place, raw, 0o600, make_folders=False)
        try:
            fd = os.open(self._place, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise storage_failed(error, str(self._place), "opening") from error
        self.close()
        self._fd, self._size, self._snapshot_size = fd, len(raw), len(raw)
        self.history = History(snapshot)

    def append(self, record: Record) -> None:
        """Add a record. It is durable on return. Raises StorageFailed, and then the record does not count."""
        raw = encode(record)
        frame = seal(self._key, self.history.head, raw)
        try:
            done = 0
            while done < len(frame):
                done += os.pwrite(self._fd, frame[done:], self._size + done)
            os.fdatasync(self._fd)
        except OSError as error:
            raise storage_failed(error, str(self._place), "writing") from error
        self._size += len(frame)
        self.history.apply(record, raw)

    def begin_anew_if_long(self) -> None:
        """Put a snapshot in the place of a long file. Only right after a commit."""
        if self._size - self._snapshot_size > NEW_AFTER_BYTES and self._size > 4 * self._snapshot_size:
            self._begin()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def append_to(place: Path, key: Key128, folder: str, record: Record) -> None:
    """Add one record to the history beside a folder, behind its last whole record. Durable on return."""
    history, size = read_journal(place, key, folder)
    frame = seal(key, history.head, encode(record))
    try:
        fd = os.open(place, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.ftruncate(fd, size)
            if os.pwrite(fd, frame, size) != len(frame):
                raise StorageFailed(f"{place} took a part of a record only", check="writing", seen="a short write")
            os.fdatasync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise storage_failed(error, str(place), "writing") from error
