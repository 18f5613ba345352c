"""The form of a pack: one plain tar file that carries a program, its ciphertext and its trusted files to a machine.

::

    README.txt      what it is, and how it is run
    work/…          the folder in which it runs: manifest, signature, program, ciphertext
    host/…          trusted files by their absolute paths: host/usr/lib/… is /usr/lib/…
    pack.json       {"format": "adyton-pack/1", "manifest": NAME, "folders": [empty folders], "sha256": of all before}

A pack is believed nothing. What it brings is checked where it is used: the manifest by its signature and by the owner's
approval, trusted files by their hashes, ciphertext by its keys. `sha256` only tells a pack that was damaged on its way.

Python's tarfile reads it, through a file that bounds what tarfile may read at once and never goes back. Everything is
looked at before the first byte is written. Only regular files with plain names are taken: no links, no devices, no
sparse files, nothing twice. A tar file of this form holds at most its own size.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, NoReturn, cast

from adyton.atomic_file import PART_SUFFIX, atomic_target, sync_file_system
from adyton.capped_read import read_prefix
from adyton.errors import DigestMismatch, FileFormatError, IntegrityError, TargetExists
from adyton.os_failure import storage_failed
from adyton.typed_document import TypedDocument
from adyton.untrusted import parse_json_object

FORMAT: Final = "adyton-pack/1"
SUFFIX: Final = ".adyton"
WORK: Final = "work"
HOST: Final = "host"
README: Final = "README.txt"
INDEX: Final = "pack.json"

MAX_FILES: Final = 100_000
MAX_FOLDERS: Final = 10_000
MAX_PATH_BYTES: Final = 4000
MAX_DEPTH: Final = 64
MAX_INDEX_BYTES: Final = 1 << 20
MAX_HEADER_BYTES: Final = 16 << 10
"""The most that tarfile may read at once: a header, or a record of long names."""

CHECKED_BYTES: Final = 4096
_MAX_PART_BYTES: Final = 255
_COPY_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f/]+")
_MANIFEST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.manifest")
_TIME_S: Final = 315_532_800  # 1980-01-01
_REMEDY: Final = (
    "packing: rename this file or leave it out. Running: take a pack that `adyton pack` made, and carry it whole"
)


@dataclass(frozen=True, slots=True)
class Index:
    """What stands in `pack.json`."""

    manifest: str
    folders: tuple[str, ...]
    sha256: str


def parse_index(raw: bytes) -> Index:
    """The index of a pack. Raises FileFormatError where it has another form."""
    try:
        found = TypedDocument(parse_json_object(raw, what=INDEX, refuse=FileFormatError), _wrong_member)
    except FileFormatError as error:
        _refuse(f"no index of the form: {error.message[:200]}", INDEX, "a JSON object")
    if found.get("format") != FORMAT:
        _refuse(f"another format: {str(found.get('format'))[:40]!a}", "format of the pack", FORMAT)
    found.only(("format", "manifest", "folders", "sha256"))
    manifest, folders = found.text("manifest", 255), found["folders"]
    if _MANIFEST.fullmatch(manifest) is None:
        raise _wrong_member("manifest", "the name of a manifest", "another text")
    if not isinstance(folders, list) or len(folders) > MAX_FOLDERS or not all(type(name) is str for name in folders):
        raise _wrong_member("folders", f"a list of at most {MAX_FOLDERS} texts", "something else")
    return Index(manifest, tuple(folders), found.hexadecimal("sha256", 32).hex())


def _wrong_member(path: str, expected: str, seen: str) -> FileFormatError:
    return FileFormatError(
        f"{INDEX} of the pack has a wrong {path}",
        check=f"{INDEX}: {path}",
        expected=expected,
        seen=seen,
        remedy=_REMEDY,
    )


@dataclass(frozen=True, slots=True)
class Contents:
    """What a pack holds, looked at and found to be of the form."""

    index: Index
    index_bytes: bytes
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """A file for a pack: its name there, the file, and the SHA-256 that it must have (None: any).

    `check` looks at the first 4 KiB of the very file that is packed, and raises where they may not go into a pack.
    """

    name: str
    path: Path
    sha256: bytes | None = None
    check: Callable[[bytes], object] | None = field(default=None, compare=False)


def write_pack(
    target: Path, items: Iterable[Item], *, manifest: str, folders: Iterable[str], readme: str, force: bool = False
) -> Contents:
    """Write a pack of these files and empty folders. The same files make the same bytes.

    Raises FileFormatError for a name that no pack may hold, DigestMismatch for a file that is not what it must be,
    StorageFailed, and TargetExists without `force`.
    """
    names, digest, size = _Names(), hashlib.sha256(), 0
    with (
        atomic_target(target, force=force, mode=0o644) as fd,
        open(fd, "w+b", closefd=False) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive,
    ):
        _add_bytes(archive, README, readme.encode())
        names.take(README)
        digest.update(_line(README, hashlib.sha256(readme.encode()).digest()))
        for item in sorted(items):
            names.take(item.name)
            count, found = _add_file(archive, item)
            size += count
            digest.update(_line(item.name, found))
        empty = sorted(set(folders))
        for name in empty:
            names.take_folder(name)
        text = {"format": FORMAT, "manifest": manifest, "folders": empty, "sha256": digest.hexdigest()}
        raw = json.dumps(text, indent=1).encode()
        _add_bytes(archive, INDEX, raw)
        names.take(INDEX)
        if len(raw) > MAX_INDEX_BYTES or len(empty) > MAX_FOLDERS:
            _refuse("too many empty folders", "number of empty folders", f"at most {MAX_FOLDERS}")
    return Contents(parse_index(raw), raw, names.count, size)


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mtime = size, _TIME_S
    return header


def _add_bytes(archive: tarfile.TarFile, name: str, raw: bytes) -> None:
    archive.addfile(_header(name, len(raw)), io.BytesIO(raw))


def _add_file(archive: tarfile.TarFile, item: Item) -> tuple[int, bytes]:
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if item.check is not None else 0)
        with os.fdopen(os.open(item.path, flags), "rb") as source:
            found = os.fstat(source.fileno())
            if not stat.S_ISREG(found.st_mode):
                _refuse(f"a folder, a pipe or a device: {item.path}", "kinds of the files", "regular files")
            if item.check is not None:  # its folder may be a share, where somebody else puts links
                item.check(os.pread(source.fileno(), CHECKED_BYTES, 0))
            hashed = _Hashed(source)
            archive.addfile(_header(item.name, found.st_size), cast("IO[bytes]", hashed))
    except OSError as error:
        raise storage_failed(error, str(item.path), "packing") from error
    digest = hashed.digest.digest()
    if item.sha256 is not None and item.sha256 != digest:
        raise DigestMismatch(
            f"{item.path} is not what the manifest was built from",
            check=f"SHA-256 of {item.path}",
            expected=item.sha256.hex(),
            seen=digest.hex(),
            remedy="build the manifest again (`adyton build`), and approve it again",
        )
    return found.st_size, digest


def _line(name: str, digest: bytes) -> bytes:
    return name.encode() + b"\0" + digest


@contextmanager
def open_pack(path: Path) -> Iterator[IO[bytes]]:
    """A pack, opened. Raises StorageFailed where it cannot be read, FileFormatError where it is no regular file."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except OSError as error:
        raise storage_failed(error, str(path), "opening") from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            _refuse("a folder, a pipe or a device", "kind of file", "a regular file")
        yield file


def read_contents(file: IO[bytes]) -> Contents:
    """Look at every header of a pack, and read its index. Raises FileFormatError where a pack may not be like this."""
    names, size, raw = _Names(), 0, b""
    with _read(file) as archive:
        for member in _members(archive, names):
            size += member.size
            if member.name == INDEX:
                raw = archive.content(member).read()
    return Contents(_index(raw, names), raw, names.count, size)


def unpack(path: Path, folder: Path) -> Contents:
    """Unpack into the new folder `folder`, whole or not at all: folders of mode 700, files of mode 600.

    A folder into which the same pack was unpacked before is left as it is. Raises TargetExists where something else is
    there, FileFormatError, IntegrityError where the pack was damaged on its way, and StorageFailed.
    """
    with open_pack(path) as file:
        contents = read_contents(file)
        if os.path.lexists(folder):
            _check_same(folder, contents)
            return contents
        part = folder.with_name(f".{secrets.token_hex(8)}{PART_SUFFIX}")
        try:
            part.mkdir(mode=0o700)
            try:
                file.seek(0)
                _unpack(file, part)
                sync_file_system(part)
                part.rename(folder)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
        except OSError as error:
            raise storage_failed(error, str(folder), "unpacking") from error
    return contents


def _unpack(file: IO[bytes], part: Path) -> None:
    names, digest, raw = _Names(), hashlib.sha256(), b""
    with _read(file) as archive:
        for member in _members(archive, names):
            target = part / member.name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(target, flags, 0o600), "wb") as sink:
                source = archive.content(member)
                if member.name == INDEX:
                    raw = source.read()
                    sink.write(raw)
                else:
                    hashed = _Hashed(source)
                    while content := hashed.read(_COPY_BYTES):
                        sink.write(content)
                    digest.update(_line(member.name, hashed.digest.digest()))
    index = _index(raw, names)
    if index.sha256 != digest.hexdigest():
        raise IntegrityError(
            "the pack was damaged on its way",
            check="SHA-256 of the pack's files",
            expected=index.sha256,
            seen=digest.hexdigest(),
            remedy=_REMEDY,
        )
    for name in index.folders:
        (part / name).mkdir(mode=0o700, parents=True, exist_ok=True)


def _check_same(folder: Path, contents: Contents) -> None:
    try:
        seen = read_prefix(folder / INDEX, MAX_INDEX_BYTES)
    except OSError:
        seen = b""
    if seen != contents.index_bytes:
        raise TargetExists(
            f"{folder} is there, and is not what this pack was unpacked to",
            check="folder to unpack to",
            expected="nothing, or the folder into which the same pack was unpacked",
            seen="something else",
            remedy=f"move {folder} away: it may hold outputs",
        )


def _index(raw: bytes, names: _Names) -> Index:
    index = parse_index(raw)
    for name in index.folders:
        names.take_folder(name)
    if f"{WORK}/{index.manifest}" not in names.files:
        _refuse(f"no {index.manifest}", "manifest of the pack", f"a file {WORK}/{index.manifest}")
    return index


class _Names:
    """The names that a pack has, each looked at when it is taken. Raises FileFormatError."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._folders: set[str] = set()

    @property
    def count(self) -> int:
        return len(self.files)

    def take(self, name: str) -> None:
        self._check(name)
        if len(self.files) >= MAX_FILES:
            _refuse(f"more than {MAX_FILES} files", "number of files", f"at most {MAX_FILES}")
        if name in self.files or name in self._folders:
            _refuse(f"twice: {name[:200]!a}", "names of the files", "each once")
        self.files.add(name)

    def take_folder(self, name: str) -> None:
        self._check(name)
        if name in self.files:
            _refuse(f"a file and a folder: {name[:200]!a}", "names of the files", "each once")
        self._folders.add(name)

    def _check(self, name: str) -> None:
        parts = name.split("/")
        try:
            length = len(name.encode())
            good = all(
                _NAME.fullmatch(part) and part not in (".", "..") and len(part.encode()) <= _MAX_PART_BYTES
                for part in parts
            )
        except UnicodeEncodeError:
            length, good = 0, False
        good = good and 2 <= len(parts) <= MAX_DEPTH and parts[0] in (WORK, HOST)
        if not (good or name in (README, INDEX)) or length > MAX_PATH_BYTES:
            _refuse(f"{name[:200]!a}", "names of the files", f"{WORK}/… and {HOST}/…, plain, below {MAX_PATH_BYTES} B")
        for end in (at for at, letter in enumerate(name) if letter == "/"):
            if name[:end] in self.files:
                _refuse(f"a file and a folder: {name[:end][:200]!a}", "names of the files", "each once")
            self._folders.add(name[:end])


def _members(archive: _Archive, names: _Names) -> Iterator[tarfile.TarInfo]:
    """The files of a pack, each looked at; the last one is the index."""
    last = ""
    while (member := archive.next()) is not None:
        if last == INDEX:
            _refuse(f"files after {INDEX}", "order of the files", f"{INDEX} last")
        if member.type != tarfile.REGTYPE or member.issparse() or set(member.pax_headers) - {"path", "size"}:
            _refuse(f"something else: {member.name[:200]!a}", "kinds of the files", "regular files")
        if member.size < 0 or member.offset_data + member.size > archive.size_bytes:
            _refuse(f"cut in {member.name[:200]!a}", "size of the pack", "all of it")
        if member.name == INDEX and member.size > MAX_INDEX_BYTES:
            _refuse(f"{member.size} bytes", f"size of {INDEX}", f"at most {MAX_INDEX_BYTES}")
        names.take(member.name)
        last = member.name
        yield member
    if last != INDEX:
        _refuse(f"no {INDEX} at its end", "end of the pack", f"{INDEX}, which stands last")


class _Archive:
    """A tar file as tarfile reads it, without what it raises."""

    def __init__(self, archive: tarfile.TarFile, file: _Bounded) -> None:
        self._archive, self._file = archive, file
        self.size_bytes = file.size_bytes

    def next(self) -> tarfile.TarInfo | None:
        self._file.most_bytes = MAX_HEADER_BYTES
        return self._archive.next()

    def content(self, member: tarfile.TarInfo) -> IO[bytes]:
        self._file.most_bytes = _COPY_BYTES
        found = self._archive.extractfile(member)
        if found is None:
            _refuse("a file without content", "kinds of the files", "regular files")
        return found


@contextmanager
def _read(file: IO[bytes]) -> Iterator[_Archive]:
    bounded = _Bounded(file)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r:", encoding="utf-8", errors="strict") as archive:
            yield _Archive(archive, bounded)
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:  # what tarfile raises
        raise FileFormatError(
            "this is no pack, or it was damaged on its way",
            check="form of the pack",
            expected="a tar file as `adyton pack` writes it",
            seen=str(error)[:200],
            remedy=_REMEDY,
        ) from error


class _Bounded:
    """A file that tarfile reads: a bounded part at once, and only ever onwards."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size_bytes = file.seek(0, os.SEEK_END)
        self.most_bytes = MAX_HEADER_BYTES
        file.seek(0)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int) -> int:
        if not self._file.tell() - tarfile.BLOCKSIZE < offset <= self.size_bytes:
            _refuse("a place before or outside of it", "order of the pack", "one file after the other")
        return self._file.seek(offset)

    def read(self, length: int) -> bytes:
        if not 0 <= length <= self.most_bytes:
            _refuse(f"a header of {length} bytes", "size of a header", f"at most {self.most_bytes} bytes")
        return self._file.read(length)


class _Hashed:
    """A file whose content is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, length: int) -> bytes:
        raw = self._file.read(length)
        self.digest.update(raw)
        return raw


def _refuse(seen: str, check: str, expected: str) -> NoReturn:
    raise FileFormatError(f"the pack has {seen}", check=check, expected=expected, seen=seen, remedy=_REMEDY)
