"""The records of a pinned folder's history, as bytes. Big-endian.

::

    snapshot    1 ‖ folder id ‖ root ‖ confirmed u64 ‖ count u32 ‖ (sequence u64 ‖ head 32)…
                  ‖ count u32 ‖ writer… ‖ count u32 ‖ (path ‖ writer u32 ‖ at_s u64 ‖ content)…
    change      2 ‖ at_s u64 ‖ writer ‖ count u32 ‖ (path ‖ content ‖ path that it was moved from, or empty)…
    commit      3 ‖ sequence u64 ‖ at_s u64 ‖ writer ‖ state 32
    confirmed   4 ‖ sequence u64

    root        sequence u64 ‖ head 32 ‖ state 32 ‖ at_s u64 ‖ writer
    content     0 (nothing is there)  |  1 (a folder)  |  2 ‖ size u64 ‖ root 48
    text        its length u16, then its bytes: paths, writers, ids

A history is a snapshot and the records after it. This module is pure.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from adyton.errors import IntegrityError
from adyton.roots.entry import FILE_ROOT_BYTES, MAX_ENTRIES, MAX_PATH_BYTES, MAX_WRITER_BYTES, Entry, is_path
from adyton.roots.folder_id import MAX_ID_BYTES, is_folder_id
from adyton.roots.root import MAX_SEQUENCE, MAX_TIME_S, Root, is_writer

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_COMMITS: Final = 65_536
"""The most earlier commits that a snapshot names."""
MAX_RECORD_BYTES: Final = 256 << 20

_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")
_SNAPSHOT, _CHANGE, _COMMIT, _CONFIRMED = 1, 2, 3, 4
_GONE, _FOLDER, _FILE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is in a folder at a commit, and the commits before it that a key server may know still."""

    folder: str
    root: Root
    confirmed: int
    """The newest sequence number that the key server is known to have had. 0: none."""
    earlier: Mapping[int, bytes]
    """Sequence number -> head of earlier commits."""
    entries: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Step:
    """What is at a path from now on, None for nothing, and the path that it was moved from, if it was."""

    path: str
    entry: Entry | None
    moved_from: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """What is about to be done on the host, as one."""

    at_s: int
    writer: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """Every change until here is durable on the host."""

    sequence: int
    at_s: int
    writer: str
    state: bytes


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The key server has this commit."""

    sequence: int


Record: TypeAlias = Snapshot | Change | Commit | Confirmed


def encode(record: Record) -> bytes:
    """The bytes of a record."""
    if isinstance(record, Snapshot):
        return _encode_snapshot(record)
    if isinstance(record, Change):
        head = bytes([_CHANGE]) + _U64.pack(record.at_s) + _text(record.writer) + _U32.pack(len(record.steps))
        steps = (_text(step.path) + _content(step.entry) + _text(step.moved_from) for step in record.steps)
        return head + b"".join(steps)
    if isinstance(record, Commit):
        numbers = _U64.pack(record.sequence) + _U64.pack(record.at_s)
        return bytes([_COMMIT]) + numbers + _text(record.writer) + record.state
    return bytes([_CONFIRMED]) + _U64.pack(record.sequence)


def _encode_snapshot(record: Snapshot) -> bytes:
    root = record.root
    writers = {writer: number for number, writer in enumerate(sorted({e.writer for e in record.entries.values()}))}
    parts = [
        bytes([_SNAPSHOT]),
        _text(record.folder),
        _U64.pack(root.sequence),
        root.head,
        root.state,
        _U64.pack(root.at_s),
        _text(root.writer),
        _U64.pack(record.confirmed),
        _U32.pack(len(record.earlier)),
    ]
    parts += [_U64.pack(sequence) + head for sequence, head in sorted(record.earlier.items())]
    parts.append(_U32.pack(len(writers)))
    parts += [_text(writer) for writer in writers]
    parts.append(_U32.pack(len(record.entries)))
    parts += [
        _text(path) + _U32.pack(writers[entry.writer]) + _U64.pack(entry.at_s) + _content(entry)
        for path, entry in sorted(record.entries.items())
    ]
    return b"".join(parts)


def _text(text: str) -> bytes:
    raw = os.fsencode(text)
    return _U16.pack(len(raw)) + raw


def _content(entry: Entry | None) -> bytes:
    if entry is None:
        return bytes([_GONE])
    return bytes([_FOLDER]) if entry.is_folder else bytes([_FILE]) + _U64.pack(entry.size) + entry.root


def parse_record(raw: bytes) -> Record:
    """One record. Raises IntegrityError where it is not in its one form."""
    fields = _Fields(raw)
    kind = fields.byte()
    record: Record
    if kind == _SNAPSHOT:
        record = _parse_snapshot(fields)
    elif kind == _CHANGE:
        at_s, writer = fields.time(), fields.writer()
        record = Change(
            at_s, writer, tuple(_parse_step(fields, at_s, writer) for _ in range(fields.count(MAX_ENTRIES)))
        )
    elif kind == _COMMIT:
        record = Commit(fields.number(MAX_SEQUENCE), fields.time(), fields.writer(), fields.take(32))
    elif kind == _CONFIRMED:
        record = Confirmed(fields.number(MAX_SEQUENCE))
    else:
        raise malformed("kind of a record", "1 to 4", kind)
    fields.end()
    return record


def _parse_step(fields: _Fields, at_s: int, writer: str) -> Step:
    path, entry = fields.path(), fields.content(at_s, writer)
    return Step(path, entry, fields.path(or_empty=True))


def _parse_snapshot(fields: _Fields) -> Snapshot:
    folder = fields.text(MAX_ID_BYTES)
    if not is_folder_id(folder):
        raise malformed("folder", "the id of a folder", "something else")
    sequence, head, state, at_s, writer = (
        fields.number(MAX_SEQUENCE),
        fields.take(32),
        fields.take(32),
        fields.time(),
        fields.writer(),
    )
    confirmed = fields.number(MAX_SEQUENCE)
    earlier: dict[int, bytes] = {}
    for _ in range(fields.count(MAX_COMMITS)):
        before = fields.number(MAX_SEQUENCE)
        if not (next(reversed(earlier)) if earlier else 0) < before < sequence:
            raise malformed("earlier commits", f"ascending, below {sequence}", before)
        earlier[before] = fields.take(32)
    writers = [fields.writer() for _ in range(fields.count(MAX_ENTRIES))]
    entries: dict[str, Entry] = {}
    last = ""
    for _ in range(fields.count(MAX_ENTRIES)):
        path, who, at = fields.path(), fields.number(MAX_ENTRIES, short=True), fields.time()
        if who >= len(writers) or path <= last:
            raise malformed("entries", "ascending paths, each with a writer", "others")
        entry = fields.content(at, writers[who])
        if entry is None:
            raise malformed("entries", "files and folders", "nothing")
        entries[path] = entry
        last = path
    return Snapshot(folder, Root(sequence, head, state, len(entries), at_s, writer), confirmed, earlier, entries)


@dataclass(slots=True)
class _Fields:
    """Reads the fields of a record, one after the other, each within its bound."""

    raw: bytes
    at: int = field(default=0)

    def take(self, size: int) -> bytes:
        found = self.raw[self.at : self.at + size]
        if len(found) != size:
            raise malformed("length of a record", f"{size} bytes more", f"{len(found)} bytes")
        self.at += size
        return found

    def end(self) -> None:
        if self.at != len(self.raw):
            raise malformed("length of a record", f"{self.at} bytes", f"{len(self.raw)} bytes")

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, top: int, *, short: bool = False) -> int:
        form = _U32 if short else _U64
        (found,) = form.unpack(self.take(form.size))
        if found > top:
            raise malformed("number in a record", f"at most {top}", found)
        return int(found)

    def count(self, top: int) -> int:
        found = self.number(top, short=True)
        if found > len(self.raw) - self.at:  # each item has a byte at least
            raise malformed("count in a record", "as many as there are", found)
        return found

    def time(self) -> int:
        return self.number(MAX_TIME_S)

    def text(self, most: int) -> str:
        (size,) = _U16.unpack(self.take(2))
        if size > most:
            raise malformed("text in a record", f"at most {most} bytes", size)
        return os.fsdecode(self.take(size))

    def path(self, *, or_empty: bool = False) -> str:
        found = self.text(MAX_PATH_BYTES)
        if not is_path(found) and not (or_empty and not found):
            raise malformed("path in a record", "a path below the folder", "something else")
        return found

    def writer(self) -> str:
        found = self.text(MAX_WRITER_BYTES)
        if not is_writer(found):
            raise malformed("writer in a record", "a grant, or `owner`", "something else")
        return found

    def content(self, at_s: int, writer: str) -> Entry | None:
        kind = self.byte()
        if kind == _GONE:
            return None
        if kind == _FOLDER:
            return Entry(b"", 0, at_s, writer)
        if kind != _FILE:
            raise malformed("kind of an entry", "0 to 2", kind)
        size = self.number(2**63 - 1)
        return Entry(self.take(FILE_ROOT_BYTES), size, at_s, writer)


def malformed(check: str, expected: object, seen: object) -> IntegrityError:
    """The refusal of a history that its writer did not make in its one form."""
    return IntegrityError(
        "the history of the pinned folder is malformed",
        check=check,
        expected=expected,
        seen=seen,
        remedy="use the Adyton that wrote it; or its owner pins the folder again: `adyton pin`",
    )
