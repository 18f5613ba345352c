"""Unpack Debian packages and wheels in memory. Pure.

Their bytes were checked against the lock file before. They are limited here all the same.
Sources: deb(5); PEP 427.
"""

from __future__ import annotations

import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Final

from adyton.errors import UsageError
from adyton.image.erofs import Node

MAX_UNPACKED_BYTES: Final = 1 << 30
MAX_MEMBERS: Final = 100_000


def unpack_deb(raw: bytes, name: str) -> Iterator[tuple[str, Node]]:
    """The files and links of a package: path (relative, as in the package) and node. Raises UsageError.

    Set-uid bits, owners and times are dropped. A hard link becomes a second file.
    """
    files: dict[str, Node] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_data(raw, name)), mode="r:") as archive:
            for count, member in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise _wrong(name, f"at most {MAX_MEMBERS} files", "more")
                path = member.name.removeprefix("./").strip("/")
                if member.isfile():
                    content = archive.extractfile(member)
                    if content is None:
                        raise _wrong(name, "files with content", path)
                    files[path] = Node.file(content.read(), executable=bool(member.mode & stat.S_IXUSR))
                elif member.issym():
                    files[path] = Node.link(member.linkname)
                elif member.islnk():
                    files[path] = files[member.linkname.removeprefix("./")]
                elif not member.isdir():
                    raise _wrong(name, "files, folders and links", f"something else at {path}")
    except (tarfile.TarError, KeyError) as error:
        raise _wrong(name, "an archive of files", str(error)) from error
    yield from files.items()


def _data(raw: bytes, name: str) -> bytes:
    """The archive of files in a package, without its compression."""
    if raw[:8] != b"!<arch>\n":
        raise _wrong(name, "a Debian package", "something else")
    at = 8
    while at + 60 <= len(raw):
        member, size = raw[at : at + 16].rstrip(b" /"), raw[at + 48 : at + 58].strip()
        if not size.isdigit():
            break
        content = raw[at + 60 : at + 60 + int(size)]
        if member == b"data.tar.xz":
            unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=1 << 30)
            try:
                data = unpacker.decompress(content, MAX_UNPACKED_BYTES)
            except lzma.LZMAError as error:
                raise _wrong(name, "xz", str(error)) from error
            if not unpacker.eof:
                raise _wrong(name, f"at most {MAX_UNPACKED_BYTES} bytes unpacked", "more")
            return data
        at += 60 + int(size) + int(size) % 2
    raise _wrong(name, "a data.tar.xz in it", "none")


def unpack_wheel(raw: bytes, name: str) -> Iterator[tuple[str, Node]]:
    """The files of a wheel, as they come to lie in the folder for packages. Raises UsageError.

    Programs and headers of its `.data` folder are left out.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS or sum(item.file_size for item in members) > MAX_UNPACKED_BYTES:
                raise _wrong(name, f"at most {MAX_UNPACKED_BYTES} bytes unpacked", "more")
            for item in sorted(members, key=lambda member: member.filename):
                if not item.is_dir() and not item.filename.partition("/")[0].endswith(".data"):
                    yield item.filename, Node.file(archive.read(item))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _wrong(name, "a wheel", str(error)) from error


def _wrong(name: str, expected: str, seen: str) -> UsageError:
    return UsageError(
        f"{name} cannot be unpacked: expected {expected}, seen {seen}",
        check=f"package {name}",
        expected=expected,
        seen=seen,
        remedy="build anew with `adyton image build --update-lock`, or mend the lock file",
    )
