"""One file in or out of a protected file: several workers, bounded memory, the target whole or absent."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.errors import SourceChanged, StorageFailed
from adyton.pfile import seal, tree
from adyton.pfile.backing import Backing, OSFile, storage_failed
from adyton.pfile.bulk import SEGMENT_DATA_BYTES, Buffers, SegmentSealer, segment_offset
from adyton.pfile.file import ProtectedFile
from adyton.pfile.layout import INLINE_BYTES, Metadata
from adyton.pfile.paths import path_bytes
from adyton.storage.target import whole_or_absent

if TYPE_CHECKING:
    from adyton.values import Key128

Advance = Callable[[int], None]
"""Called with the plaintext bytes done since the last call, by one thread at a time."""

_MIN_SEGMENTS_PER_JOB: Final = 4


@dataclass(frozen=True, slots=True)
class Sealed:
    """A file that was encrypted or decrypted: its plaintext size, and the root of the protected file."""

    size: int
    root: bytes


def default_jobs() -> int:
    """As many workers as this process may use processors."""
    return len(os.sched_getaffinity(0))


def _unwatched(_done: int) -> None:
    """Nobody watches."""


def _in_parallel(segments: int, jobs: int | None, work: Callable[[int, Buffers], int], advance: Advance | None) -> None:
    """Do `work` for every segment with up to `jobs` threads; the first error stops all and is raised."""
    tell = advance or _unwatched
    workers = max(1, min(jobs or default_jobs(), segments // _MIN_SEGMENTS_PER_JOB))
    numbers = count()
    errors: list[BaseException] = []
    telling = threading.Lock()

    def run() -> None:
        try:
            buffers = Buffers()
            while not errors and (number := next(numbers)) < segments:
                done = work(number, buffers)
                with telling:
                    tell(done)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, name=f"adyton-segments-{i}") for i in range(1, workers)]
    for thread in threads:
        thread.start()
    try:
        run()
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


# ---------------------------------------------------------------- encrypting


def open_source(source: Path) -> int:
    """A descriptor of a regular file to read; raises StorageFailed for anything else."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise storage_failed(error, str(source), "reading") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StorageFailed(
            f"{source} is not a regular file",
            check="kind of source",
            expected="a regular file or a directory",
            seen="a device, a pipe or a socket",
            remedy="read a pipe from standard input, as `-`",
        )
    return fd


def _identity(fd: int) -> tuple[int, int, int]:
    facts = os.fstat(fd)
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _changed(source: Path) -> SourceChanged:
    return SourceChanged(
        f"{source} changed while it was being read",
        check="size and times of the source, before and after",
        expected="the same",
        seen="others",
        remedy="let its writer finish, then try again",
    )


def encrypt_file(
    source: Path,
    target: Path,
    key: Key128,
    *,
    path: str | None = None,
    version: int = 2,
    jobs: int | None = None,
    force: bool = False,
    sync: bool = True,
    advance: Advance | None = None,
) -> Sealed:
    """Seal `source` into the protected file `target`, which is whole or absent whatever happens.

    The embedded path is `path`, or `target` as written, normalised.  Raises StorageFailed, SourceChanged,
    TargetExists, UsageError.
    """
    embedded = path_bytes(str(target) if path is None else path)
    fd = open_source(source)
    try:
        before = _identity(fd)
        with whole_or_absent(target, force=force, sync=sync) as part:
            sealed = _seal_descriptor(fd, before[0], source, part, key, embedded, version, jobs, advance)
            if _identity(fd) != before:
                raise _changed(source)
    finally:
        os.close(fd)
    return sealed


def _read_exactly(fd: int, offset: int, view: memoryview, source: Path) -> None:
    while view:
        try:
            got = os.preadv(fd, (view,), offset)
        except OSError as error:
            raise storage_failed(error, str(source), "reading") from error
        if got == 0:
            raise _changed(source)
        view = view[got:]
        offset += got


def _seal_descriptor(
    fd: int,
    size: int,
    source: Path,
    part: int,
    key: Key128,
    embedded: bytes,
    version: int,
    jobs: int | None,
    advance: Advance | None,
) -> Sealed:
    target = OSFile(os.dup(part))
    try:
        inline = bytearray(min(size, INLINE_BYTES))
        _read_exactly(fd, 0, memoryview(inline), source)
        segments = tree.tree_nodes(size)
        sealer = SegmentSealer(target, segments)

        def work(number: int, buffers: Buffers) -> int:
            offset = segment_offset(number)
            length = min(SEGMENT_DATA_BYTES, size - offset)
            _read_exactly(fd, offset, buffers.plain[:length], source)
            sealer.seal(number, length, buffers)
            return length

        _in_parallel(segments, jobs, work, advance)
        sealed = write_node_0(target, key, version, Metadata(embedded, size, sealer.finish(segments), bytes(inline)))
        (advance or _unwatched)(len(inline))
        return sealed
    finally:
        target.close()


def write_node_0(target: Backing, key: Key128, version: int, metadata: Metadata) -> Sealed:
    """Seal and write node 0 of a file whose other nodes stand."""
    envelope = seal.seal_metadata(key, version, metadata.to_bytes())
    target.write_at(0, envelope.to_bytes())
    return Sealed(metadata.size, envelope.nonce + envelope.tag)


# ---------------------------------------------------------------- decrypting


def decrypt_file(
    source: Path,
    target: Path,
    key: Key128,
    *,
    path: str | None = None,
    jobs: int | None = None,
    force: bool = False,
    sync: bool = True,
    advance: Advance | None = None,
) -> Sealed:
    """Open the protected file `source` into `target`, which is whole or absent whatever happens.

    `path`, if given, must be the one sealed in.  Raises NotProtectedFile, UnsupportedVersion,
    IntegrityError (naming file and node), WrongPath, StorageFailed, TargetExists.
    """
    with (
        ProtectedFile.open(OSFile(source), key, path=path) as file,
        whole_or_absent(target, force=force, sync=sync) as part,
    ):
        return _open_into(file, part, jobs, advance)


def decrypt_into(
    source: Path | int,
    target_fd: int,
    key: Key128,
    *,
    path: str | None = None,
    jobs: int | None = None,
    advance: Advance | None = None,
) -> int:
    """Open a protected file into a descriptor that is open already (at its offset 0); the plaintext size.

    `source` as a descriptor stays the caller's.  Each segment is written once all of it was verified; on an
    error the target is cut to nothing.  Raises as `decrypt_file`.
    """
    backing = OSFile(os.dup(source) if isinstance(source, int) else source)
    with ProtectedFile.open(backing, key, path=path) as file:
        try:
            return _open_into(file, target_fd, jobs, advance).size
        except BaseException:
            os.ftruncate(target_fd, 0)
            raise


def _open_into(file: ProtectedFile, target_fd: int, jobs: int | None, advance: Advance | None) -> Sealed:
    target = OSFile(os.dup(target_fd))
    try:
        opener = file.segments()
        inline = file.read_at(0, INLINE_BYTES)
        target.truncate(file.size)
        target.write_at(0, inline)

        def work(number: int, buffers: Buffers) -> int:
            plain = opener.open(number, buffers)
            target.write_at(segment_offset(number), plain)
            return len(plain)

        _in_parallel(opener.count, jobs, work, advance)
        (advance or _unwatched)(len(inline))
        return Sealed(file.size, file.root)
    finally:
        target.close()
