"""A plain archive of files, as it crosses the border of a guest on a raw disk: read strictly, written in one pass.

It is a ustar archive (POSIX.1-1988), so that `tar` makes and reads it, with less in it than tar knows: files and
folders only. There are no links, no devices, no owners, no extensions. Each name is plain and stands once. The reader
goes through a stream once, from its start to its end, and never further than its limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from adyton.errors import MalformedManifest, UsageError

BLOCK: Final = 512
MAX_MEMBERS: Final = 200_000
MAX_NAME_BYTES: Final = 255
MAX_DEPTH: Final = 32
MAX_FILE_BYTES: Final = 0o77777777777
"""The most that a size in a ustar header can say: 8 GiB less one byte."""
_CHUNK: Final = 1 << 20

_MAGIC: Final = b"ustar\x0000"
_NUMBER: Final = re.compile(rb" *([0-7]{1,11})[ \0]*")
_FILE, _FOLDER = b"0", b"5"


class Source(Protocol):
    """A stream that is read from its start to its end."""

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes, and fewer only at the stream's end."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file or a folder of an archive."""

    name: str
    size: int
    is_folder: bool = False
    executable: bool = False


class Reader:
    """Reads an archive from a stream. Iterate over it, and read each file to its end with `content` or not at all."""

    def __init__(self, stream: Source, limit_bytes: int) -> None:
        self._stream = stream
        self._left = limit_bytes
        self._unread = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        """The members. Raises MalformedManifest at the first thing that is not plain, or beyond a limit."""
        seen: dict[str, bool] = {}
        while True:
            self._skip()
            header = self._stream.read(BLOCK)
            if header == bytes(BLOCK):
                return
            member = parse_header(header)
            if len(seen) >= MAX_MEMBERS:
                raise _wrong("members", f"at most {MAX_MEMBERS}", "more")
            if member.name in seen:
                raise _wrong("names", "each once", f"{member.name} twice")
            above = member.name.rpartition("/")[0]
            while above:
                if seen.setdefault(above, True) is False:
                    raise _wrong("names", "files in folders", f"{member.name} below a file")
                above = above.rpartition("/")[0]
            seen[member.name] = member.is_folder
            if member.size > self._left:
                raise _wrong("size in all", "less than the limit", f"{member.name} has {member.size} bytes")
            self._left -= member.size
            self._unread, self._padding = member.size, -member.size % BLOCK
            yield member

    def content(self) -> Iterator[bytes]:
        """The bytes of the current file, in pieces. Raises MalformedManifest where the stream ends before."""
        while self._unread:
            piece = self._stream.read(min(_CHUNK, self._unread))
            if not piece:
                raise _wrong("length", "whole files", "a file that is cut")
            self._unread -= len(piece)
            yield piece

    def _skip(self) -> None:
        for _ in self.content():
            pass
        if self._padding and len(self._stream.read(self._padding)) != self._padding:
            raise _wrong("length", "whole blocks", "a block that is cut")
        self._padding = 0


def parse_header(header: bytes) -> Member:
    """One header of 512 bytes. Raises MalformedManifest where it is not that of a plain file or folder."""
    if len(header) != BLOCK or header[257:265] != _MAGIC:
        raise _wrong("header", "a header of ustar", "something else")
    checksum = sum(header) - sum(header[148:156]) + 8 * 0x20
    if _number(header[148:156]) != checksum:
        raise _wrong("checksum of a header", str(checksum), "another")
    kind = header[156:157]
    if kind not in (_FILE, _FOLDER) or header[157:257].strip(b"\0"):
        raise _wrong("kind of a member", "a file or a folder", f"kind {kind!r}, or a link")
    name, prefix = (part.split(b"\0", 1)[0] for part in (header[:100], header[345:500]))
    raw = prefix + b"/" + name if prefix else name
    size, mode = _number(header[124:136]), _number(header[100:108])
    if kind == _FOLDER:
        raw = raw.removesuffix(b"/")
        if size:
            raise _wrong("size of a folder", "0", str(size))
    return Member(plain_name(raw), size, kind == _FOLDER, bool(mode & 0o100))


def plain_name(raw: bytes) -> str:
    """A name of a file in an archive: relative, of UTF-8, without dots, control characters and empty parts.

    Raises MalformedManifest.
    """
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    parts = name.split("/")
    if (
        not 1 <= len(raw) <= MAX_NAME_BYTES
        or len(parts) > MAX_DEPTH
        or any(part in ("", ".", "..") for part in parts)
        or not name.isprintable()
    ):
        raise _wrong("name", f"relative, printable, without dots, at most {MAX_NAME_BYTES} bytes", repr(raw[:80]))
    return name


class Writer:
    """Writes an archive to a stream, from its start to its end and never back."""

    def __init__(self, stream: BinaryIO, limit_bytes: int) -> None:
        self._stream = stream
        self._left = limit_bytes - 2 * BLOCK

    def add(self, member: Member, content: BinaryIO | None = None) -> None:
        """Append a file with exactly `member.size` bytes of `content`, or a folder.

        Raises UsageError where it does not fit, and MalformedManifest where the name is not plain.
        """
        padding = -member.size % BLOCK
        if BLOCK + member.size + padding > self._left:
            raise UsageError(
                f"{member.name} does not fit in the archive",
                check="size of the archive",
                expected=f"at most {self._left} bytes more",
                seen=f"{member.size} bytes",
                remedy="give a larger disk for the outputs",
            )
        self._left -= BLOCK + member.size + padding
        self._stream.write(build_header(member))
        left = member.size
        while left:
            piece = b"" if content is None else content.read(min(_CHUNK, left))
            if not piece:
                raise UsageError(f"{member.name} became shorter while it was read", seen=f"{left} bytes less")
            self._stream.write(piece)
            left -= len(piece)
        self._stream.write(bytes(padding))

    def close(self) -> None:
        """Mark the archive's end. An archive without it was cut."""
        self._stream.write(bytes(2 * BLOCK))


def build_header(member: Member) -> bytes:
    """The header of a member. Raises MalformedManifest where its name is not plain or does not fit in a header."""
    raw = member.name.encode("utf-8", "surrogateescape")
    plain_name(raw)
    prefix, name = b"", raw
    if len(raw) > 100:
        at = raw.find(b"/", len(raw) - 101)
        prefix, name = raw[:at], raw[at + 1 :]
        if at < 0 or len(prefix) > 155:
            raise _wrong("length of a name", "100 bytes behind a slash, 155 before it", repr(raw[:80]))
    if not 0 <= member.size <= MAX_FILE_BYTES:
        raise _wrong("size of a file", f"at most {MAX_FILE_BYTES} bytes", str(member.size))
    mode = 0o755 if member.is_folder or member.executable else 0o644
    out = bytearray(BLOCK)
    out[: len(name)] = name
    out[345 : 345 + len(prefix)] = prefix
    for at, size, value in ((100, 8, mode), (108, 8, 0), (116, 8, 0), (124, 12, member.size), (136, 12, 0)):
        out[at : at + size] = b"%0*o\0" % (size - 1, value)
    out[148:156] = b" " * 8
    out[156:157] = _FOLDER if member.is_folder else _FILE
    out[257:265] = _MAGIC
    out[148:156] = b"%06o\0 " % sum(out)
    return bytes(out)


def _number(field: bytes) -> int:
    match = _NUMBER.fullmatch(field)
    if match is None:
        raise _wrong("number in a header", "octal digits", repr(field))
    return int(match[1], 8)


def _wrong(check: str, expected: str, seen: str) -> MalformedManifest:
    return MalformedManifest(
        f"the archive on the disk is not plain: {check}: expected {expected}, seen {seen}",
        check=f"archive: {check}",
        expected=expected,
        seen=seen,
        remedy="make it with `adyton image disk`, or with `tar --format=ustar` from plain files",
    )
