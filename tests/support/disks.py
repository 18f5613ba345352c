"""Disks for tests: one that records all operations and can be cut off anywhere, and one that fills up."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adyton.errors import StorageFailed
from adyton.pfile.backing import Memory

if TYPE_CHECKING:
    from typing_extensions import Buffer

SECTOR = 512

Kind = Literal["write", "truncate", "sync", "create", "remove"]


@dataclass(frozen=True)
class Operation:
    """One operation on the main file or on its log."""

    file: Literal["main", "log"]
    kind: Kind
    offset: int = 0
    data: bytes = b""


@dataclass
class Journal:
    """All operations in order, and the disk before them."""

    main: bytes
    log: bytes | None
    operations: list[Operation] = field(default_factory=list)


class RecordingDisk:
    """A backing in memory that writes down every operation on it and on its log."""

    def __init__(self, main: bytes = b"", log: bytes | None = None) -> None:
        self.memory = Memory(main, name="disk")
        if log is not None:
            self.memory.open_log(create=True).write_at(0, log)  # type: ignore[union-attr]
        self.journal = Journal(main, log)

    @property
    def name(self) -> str:
        return "disk"

    def _note(self, kind: Kind, offset: int = 0, data: bytes = b"") -> None:
        self.journal.operations.append(Operation("main", kind, offset, data))

    def size(self) -> int:
        return self.memory.size()

    def read_into(self, offset: int, target: Buffer, /) -> int:
        return self.memory.read_into(offset, target)

    def will_read(self, offset: int, size: int, /) -> None:
        """Does nothing: the content is in memory."""

    def write_at(self, offset: int, data: Buffer, /) -> None:
        self._note("write", offset, bytes(data))
        self.memory.write_at(offset, data)

    def truncate(self, size: int, /) -> None:
        self._note("truncate", size)
        self.memory.truncate(size)

    def sync(self) -> None:
        self._note("sync")

    def open_log(self, *, create: bool) -> RecordingLog | None:
        if self.memory.log is None:
            if not create:
                return None
            self.journal.operations.append(Operation("log", "create"))
            self.memory.open_log(create=True)
        return RecordingLog(self)

    def remove_log(self) -> None:
        if self.memory.log is not None:
            self.journal.operations.append(Operation("log", "remove"))
            self.memory.remove_log()

    def moved_to(self, place: Path, /, *, sync: bool) -> None:
        self.remove_log()

    def close(self) -> None:
        """Does nothing: there is nothing to close."""


class RecordingLog:
    """The log of a RecordingDisk."""

    def __init__(self, disk: RecordingDisk) -> None:
        assert disk.memory.log is not None
        self._journal = disk.journal
        self._memory = disk.memory.log

    @property
    def name(self) -> str:
        return "disk.gramine.recovery"

    def size(self) -> int:
        return self._memory.size()

    def read_into(self, offset: int, target: Buffer, /) -> int:
        return self._memory.read_into(offset, target)

    def will_read(self, offset: int, size: int, /) -> None:
        """Does nothing: the content is in memory."""

    def write_at(self, offset: int, data: Buffer, /) -> None:
        self._journal.operations.append(Operation("log", "write", offset, bytes(data)))
        self._memory.write_at(offset, data)

    def truncate(self, size: int, /) -> None:
        self._journal.operations.append(Operation("log", "truncate", size))
        self._memory.truncate(size)

    def sync(self) -> None:
        self._journal.operations.append(Operation("log", "sync"))

    def open_log(self, *, create: bool) -> None:
        return None

    def remove_log(self) -> None:
        raise AssertionError("a log has no log")

    def moved_to(self, place: Path, /, *, sync: bool) -> None:
        raise AssertionError("a log is not renamed")

    def close(self) -> None:
        """Does nothing: there is nothing to close."""


def _apply(content: bytearray, operation: Operation) -> None:
    if operation.kind == "write":
        if operation.offset > len(content):
            content.extend(bytes(operation.offset - len(content)))
        content[operation.offset : operation.offset + len(operation.data)] = operation.data
    elif operation.kind == "truncate":
        del content[operation.offset :]
        content.extend(bytes(operation.offset - len(content)))


def after_kill(journal: Journal, cut: int, *, part_of_next: int = 0) -> Memory:
    """The disk after the process was killed: the first `cut` operations, and whole pages of the next write."""
    main = bytearray(journal.main)
    log = None if journal.log is None else bytearray(journal.log)
    operations = journal.operations[:cut]
    if part_of_next and cut < len(journal.operations):
        following = journal.operations[cut]
        if following.kind == "write":
            pages = min(len(following.data), 4096 * part_of_next)
            operations = [*operations, Operation(following.file, "write", following.offset, following.data[:pages])]
    for operation in operations:
        if operation.kind == "create":
            log = bytearray()
        elif operation.kind == "remove":
            log = None
        elif operation.file == "main":
            _apply(main, operation)
        elif log is not None:
            _apply(log, operation)
    return _disk(main, log)


def _disk(main: bytes | bytearray, log: bytes | bytearray | None) -> Memory:
    disk = Memory(main, name="disk")
    if log is not None:
        disk.open_log(create=True)
        assert disk.log is not None
        disk.log.write_at(0, log)
    return disk


def after_power_cut(journal: Journal, cut: int, chance: random.Random) -> Memory:
    """The disk after a power cut: everything synced before `cut`, and any sectors of later writes, of any age.

    Every unsynced write may have reached the disk in part, in any order. The length of a file may be any
    that it had since its last sync. An unsynced creation or removal of the log may be undone.
    """
    done = journal.operations[:cut]
    if cut < len(journal.operations) and chance.random() < 0.5:
        done = journal.operations[: cut + 1]  # the next one may be on its way
        if done[-1].kind == "sync":
            done = done[:-1]
    mood = chance.choice(("none", "all", "some", "few", "most"))
    share = {"none": 0.0, "all": 1.0, "some": 0.5, "few": 0.1, "most": 0.9}[mood]
    main = _file_after_power_cut(journal.main, [each for each in done if each.file == "main"], chance, share)
    return _disk(main, _log_after_power_cut(journal, done, chance, share))


def _log_after_power_cut(
    journal: Journal, done: list[Operation], chance: random.Random, share: float
) -> bytes | bytearray | None:
    """One life of the log: from its creation to its removal. Of several, the last or an unsynced one before it."""
    durable: bytes | bytearray | None = journal.log
    history: list[Operation] = []
    base: bytes | None = journal.log
    candidates: list[bytes | bytearray | None] = [durable]
    for operation in done:
        if operation.file != "log":
            continue
        if operation.kind == "create":
            base, history = b"", []
            candidates.append(b"")
        elif operation.kind == "remove":
            # the removal may not have reached the disk: then the log is as it was
            candidates = [_file_after_power_cut(base or b"", history, chance, share), None]
            base, history = None, []
        else:
            history.append(operation)
            if operation.kind == "sync":
                candidates = []
    if base is not None:
        present = _file_after_power_cut(base, history, chance, share)
        if any(each.kind == "sync" for each in history):
            return present
        candidates.append(present)
    return chance.choice(candidates) if candidates else None


def _file_after_power_cut(before: bytes, done: list[Operation], chance: random.Random, share: float) -> bytearray:
    content = bytearray(before)
    last_sync = max((i for i, each in enumerate(done) if each.kind == "sync"), default=-1)
    for operation in done[: last_sync + 1]:
        _apply(content, operation)
    lengths = [len(content)]
    newest = bytearray(content)
    versions: dict[int, list[bytes]] = {}
    for operation in done[last_sync + 1 :]:
        _apply(newest, operation)
        lengths.append(len(newest))
        if operation.kind == "write":
            first, last = operation.offset // SECTOR, (operation.offset + len(operation.data) - 1) // SECTOR
            for sector in range(first, last + 1):
                start = sector * SECTOR
                versions.setdefault(sector, []).append(bytes(newest[start : start + SECTOR]).ljust(SECTOR, b"\0"))
    length = lengths[-1] if share == 1 else lengths[0] if share == 0 else chance.choice(lengths)
    out = bytearray(content[:length].ljust(length, b"\0"))
    for sector, ages in versions.items():
        if chance.random() < share:
            start = sector * SECTOR
            age = ages[-1] if share == 1 else chance.choice(ages)
            room = max(0, min(SECTOR, length - start))
            out[start : start + room] = age[:room]
    return out


class FillingDisk(Memory):
    """A disk with a given number of operations left before it fails. A failing write leaves a part behind."""

    def __init__(
        self, content: bytes = b"", *, good_writes: int = 1 << 30, chance: random.Random | None = None
    ) -> None:
        super().__init__(content, name="filling disk")
        self.good_writes = good_writes
        self.chance = chance or random.Random(0)

    def _count(self) -> None:
        if self.good_writes <= 0:
            raise StorageFailed("no space left on device", check="writing", expected="success", seen="ENOSPC")
        self.good_writes -= 1

    def write_at(self, offset: int, data: Buffer, /) -> None:
        try:
            self._count()
        except StorageFailed:
            super().write_at(offset, bytes(data)[: self.chance.randrange(memoryview(data).nbytes + 1)])
            raise
        super().write_at(offset, data)

    def truncate(self, size: int, /) -> None:
        self._count()
        super().truncate(size)

    def open_log(self, *, create: bool) -> Memory | None:
        if self.log is None and create:
            self._count()
            self.log = FillingLog(self)
        return self.log


class FillingLog(Memory):
    """The log of a FillingDisk, on the same disk."""

    def __init__(self, disk: FillingDisk) -> None:
        super().__init__(name="filling log")
        self._disk = disk

    def write_at(self, offset: int, data: Buffer, /) -> None:
        self._disk._count()
        super().write_at(offset, data)
