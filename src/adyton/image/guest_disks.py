"""The two raw disks that a guest shares with its host: one with its inputs, and one to which it appends its outputs.

Both hold one plain archive (`plain_archive`). A machine in a cloud has no shared folder, so this is how files get in
and out everywhere. Whoever has the disks sees names and ciphertext. What comes back may be anybody's, so it is data.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from adyton.atomic_file import atomic_target
from adyton.errors import RunError, UsageError
from adyton.image.disk import ALIGNMENT
from adyton.image.guest import OUTPUT_MARK, first_settings
from adyton.image.guest_settings import MAX_BYTES, MEMBER, GuestSettings
from adyton.image.plain_archive import BLOCK, MAX_MEMBERS, Member, Reader, Source, Writer

OUTPUT_BYTES: Final = 1 << 30
"""Size of the disk for outputs. It is a sparse file."""
_MOST_INPUT_BYTES: Final = 1 << 50


def pack_inputs(settings: GuestSettings, source: Path, target: Path, *, force: bool = True) -> int:
    """Write the disk for a guest's inputs: its settings, then a file, or everything below a folder. Gives its size.

    The disk is filled up with zeros to whole MiB. A link inside a folder is written as the file or folder that it leads
    to. Raises UsageError for anything else, MalformedManifest for settings or names that an archive cannot have, and
    TargetExists without `force`.
    """
    raw = settings.to_bytes()
    with (
        atomic_target(target, force=force, mode=0o666) as descriptor,
        open(descriptor, "wb", buffering=1 << 20, closefd=False) as stream,
    ):
        writer = Writer(stream, _MOST_INPUT_BYTES)
        writer.add(Member(MEMBER, len(raw)), io.BytesIO(raw))
        for path, name in _files(source):
            if path.is_dir():
                writer.add(Member(name, 0, is_folder=True))
                continue
            with path.open("rb") as content:
                found = os.fstat(content.fileno())
                writer.add(Member(name, found.st_size, executable=bool(found.st_mode & 0o100)), content)
        writer.close()
        size = -(-stream.tell() // ALIGNMENT) * ALIGNMENT
        stream.truncate(size)
    return size


def _files(source: Path) -> Iterator[tuple[Path, str]]:
    """A file, or every folder and file below a folder, with its name in the archive. A folder comes first."""
    if not source.is_dir():
        yield source, source.name
        return
    count = 0
    for parent, folders, names in os.walk(source, followlinks=True):
        folders.sort()
        for name in sorted([*folders, *names]):
            path = Path(parent, name)
            count += 1
            if count > MAX_MEMBERS or not (path.is_file() or path.is_dir()):
                raise UsageError(
                    f"{path} cannot go into the guest's archive",
                    check="files for the guest",
                    expected=f"at most {MAX_MEMBERS} files and folders, and nothing else",
                    seen="too many" if count > MAX_MEMBERS else "neither",
                )
            shown = path.relative_to(source).as_posix()
            if shown != MEMBER:
                yield path, shown


def settings_on(disk: Source) -> GuestSettings:
    """The settings of the guest that a disk for inputs is for. Raises RunError and MalformedManifest."""
    reader = Reader(disk, MAX_BYTES)
    return first_settings(reader, iter(reader))


def new_output_disk(path: Path, size_bytes: int = OUTPUT_BYTES, *, force: bool = True) -> None:
    """Make the disk to which a guest appends its outputs. Raises TargetExists without `force`."""
    with atomic_target(path, force=force, mode=0o666) as descriptor:
        os.write(descriptor, OUTPUT_MARK)
        os.truncate(descriptor, size_bytes)


def unpack_outputs(stream: Source, limit_bytes: int, folder: Path) -> list[str]:
    """Unpack what a guest wrote into a folder; gives the names. Files there are replaced, other files stay.

    `stream` is the disk for outputs, from its start. At most `limit_bytes` of files are taken. The guest may be
    anybody's, so names are taken only as `plain_archive` allows, and no link is followed. Raises MalformedManifest
    where the archive is not plain or has no end, and RunError where the guest wrote nothing.
    """
    first = stream.read(BLOCK)
    if first.startswith(OUTPUT_MARK):
        raise RunError(
            "the guest wrote no outputs",
            check="outputs of the guest",
            expected="an archive",
            seen="an empty disk",
            remedy="the machine's console says why it ended",
        )
    names: list[str] = []
    reader = Reader(_Resumed(first, stream), limit_bytes)
    for member in reader:
        target = folder / member.name
        for above in reversed(target.relative_to(folder).parents[:-1]):
            _real_folder(folder / above)
        if member.is_folder:
            _real_folder(target)
            continue
        part = target.with_name(f".{len(names)}.adyton-part")
        part.unlink(missing_ok=True)
        with part.open("xb") as file:
            for piece in reader.content():
                file.write(piece)
        part.replace(target)
        names.append(member.name)
    return names


class _Resumed:
    """A stream whose first block was read already: that block comes again first."""

    def __init__(self, first: bytes, rest: Source) -> None:
        self._first = first
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        piece, self._first = self._first[:size], self._first[size:]
        return piece or self._rest.read(size)


def _real_folder(path: Path) -> None:
    path.mkdir(exist_ok=True)
    if path.is_symlink():
        raise UsageError(f"{path} is a link", check="folder for outputs", expected="a folder", seen="a link")
