"""One file in or out of a protected file: several workers, bounded memory, the target whole or absent."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.atomic_file import atomic_target
from adyton.errors import IntegrityError, SourceChanged, StorageFailed
from adyton.os_failure import storage_failed
from adyton.pfile import geometry, seal
from adyton.pfile.backing import Backing, Memory, OSFile
from adyton.pfile.bulk import SEGMENT_DATA_BYTES, Buffers, SegmentOpener, SegmentSealer, segment_offset
from adyton.pfile.committed_state import committed_state
from adyton.pfile.file import ProtectedFile
from adyton.pfile.layout import INLINE_BYTES, NODE_BYTES, Metadata
from adyton.pfile.paths import path_bytes

if TYPE_CHECKING:
    from adyton.values import Key128

Advance = Callable[[int], None]
"""Called with the plaintext bytes done since the last call, by one thread at a time."""

_MIN_SEGMENTS_PER_JOB: Final = 4
_COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Done:
    """A file that was encrypted, decrypted or keyed anew: plaintext size, and root and path of the protected file."""

    size: int
    root: bytes
    path: bytes


def default_jobs() -> int:
    """As many workers as this process may use processors."""
    return len(os.sched_getaffinity(0))


def _unwatched(_done: int) -> None:
    """Nobody watches."""


def _host(fd: int, name: Path | str) -> contextlib.closing[OSFile]:
    """A descriptor as the host's file, called `name` in errors. The caller keeps the descriptor."""
    return contextlib.closing(OSFile(os.dup(fd), name=str(name)))


def _each_segment(
    segments: int, jobs: int | None, work: Callable[[int, Buffers], int], advance: Advance | None
) -> None:
    """Do `work` for every segment with up to `jobs` threads. The first error stops all of them and is raised."""
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
    run()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# ---------------------------------------------------------------- encrypting


@contextmanager
def open_source(source: Path) -> Iterator[int]:
    """A descriptor of a regular file to read. Raises SourceChanged at the end if its size or times changed."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise storage_failed(error, str(source), "reading") from error
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise StorageFailed(
                f"{source} is not a regular file",
                check="kind of source",
                expected="a regular file or a directory",
                seen="a device, a pipe or a socket",
                remedy="give a pipe as standard input, `-`",
            )
        yield fd
        if source_identity(os.fstat(fd)) != source_identity(before):
            raise _changed(str(source))
    finally:
        os.close(fd)


def source_identity(facts: os.stat_result) -> str:
    """Facts that change when a file's content does: size, modification and change time."""
    return f"{facts.st_size}:{facts.st_mtime_ns}:{facts.st_ctime_ns}"


def _changed(name: str) -> SourceChanged:
    return SourceChanged(
        f"{name} changed while it was being read",
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
) -> Done:
    """Seal `source` into the protected file `target`, which is whole or absent whatever happens.

    The embedded path is `path`, or `target` as written, normalised.  Raises StorageFailed, SourceChanged,
    TargetExists, UsageError.
    """
    embedded = path_bytes(str(target) if path is None else path)
    with atomic_target(target, force=force, sync=sync) as part, open_source(source) as fd:
        return _seal_descriptor(fd, str(source), part, str(target), key, embedded, version, jobs, advance)


def encrypt_stream(
    source: int,
    target: Path,
    key: Key128,
    *,
    path: str | None = None,
    version: int = 2,
    force: bool = False,
    sync: bool = True,
    advance: Advance | None = None,
) -> Done:
    """Seal what comes from a descriptor, a pipe say, until its end; otherwise as `encrypt_file`, with one worker."""
    embedded = path_bytes(str(target) if path is None else path)
    tell = advance or _unwatched
    with atomic_target(target, force=force, sync=sync) as part, _host(part, target) as host:
        inline = memoryview(bytearray(INLINE_BYTES))
        size = _read_up_to(source, inline)
        tell(size)
        sealer = SegmentSealer(host, None)
        buffers = Buffers()
        segments = 0
        while size == segment_offset(segments) and (got := _read_up_to(source, buffers.plain)):
            sealer.seal(segments, got, buffers)
            segments += 1
            size += got
            tell(got)
        metadata = Metadata(embedded, size, sealer.finish(segments), bytes(inline[:size]))
        return _write_node_0(host, key, version, metadata)


def _read_up_to(fd: int, view: memoryview) -> int:
    """Fill `view` from a stream. It is filled less only at the stream's end."""
    got = 0
    while got < len(view):
        try:
            more = os.readv(fd, [view[got:]])
        except OSError as error:
            raise storage_failed(error, f"descriptor {fd}", "reading") from error
        if more == 0:
            break
        got += more
    return got


def _read_exactly(fd: int, offset: int, view: memoryview, name: str) -> None:
    while view:
        try:
            got = os.preadv(fd, (view,), offset)
        except OSError as error:
            raise storage_failed(error, name, "reading") from error
        if got == 0:
            raise _changed(name)
        view = view[got:]
        offset += got


def _seal_descriptor(
    source: int,
    name: str,
    part: int,
    target: str,
    key: Key128,
    embedded: bytes,
    version: int,
    jobs: int | None,
    advance: Advance | None,
) -> Done:
    size = os.fstat(source).st_size
    with _host(part, target) as host:
        inline = bytearray(min(size, INLINE_BYTES))
        _read_exactly(source, 0, memoryview(inline), name)
        segments = geometry.tree_nodes(size)
        sealer = SegmentSealer(host, segments)

        def work(number: int, buffers: Buffers) -> int:
            offset = segment_offset(number)
            length = min(SEGMENT_DATA_BYTES, size - offset)
            _read_exactly(source, offset, buffers.plain[:length], name)
            sealer.seal(number, length, buffers)
            return length

        _each_segment(segments, jobs, work, advance)
        (advance or _unwatched)(len(inline))
        return _write_node_0(host, key, version, Metadata(embedded, size, sealer.finish(segments), bytes(inline)))


def _write_node_0(host: Backing, key: Key128, version: int, metadata: Metadata) -> Done:
    envelope = seal.seal_metadata(key, version, metadata.to_bytes())
    host.write_at(0, envelope.to_bytes())
    return Done(metadata.size, envelope.nonce + envelope.tag, metadata.path)


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
) -> Done:
    """Open the protected file `source` into `target`, which is whole or absent whatever happens.

    `path`, if given, must be the one sealed in.  Raises NotProtectedFile, UnsupportedVersion,
    IntegrityError (naming file and node), WrongPath, StorageFailed, TargetExists.
    """
    with (
        ProtectedFile.open(OSFile(source), key, path=path) as file,
        atomic_target(target, force=force, sync=sync) as part,
    ):
        return _open_into(file, part, jobs, advance, name=str(target))


def decrypt_into(
    source: Path | int,
    target_fd: int,
    key: Key128,
    *,
    path: str | None = None,
    jobs: int | None = None,
    advance: Advance | None = None,
) -> Done:
    """Open a protected file into a regular file that is open already, from its start.

    The caller keeps `source` if it is a descriptor.  A segment is written once all of it was verified. On an
    error the target is cut to nothing.  Raises as `decrypt_file`.
    """
    backing = OSFile(os.dup(source), name=path) if isinstance(source, int) else OSFile(source)
    with ProtectedFile.open(backing, key, path=path) as file:
        try:
            return _open_into(file, target_fd, jobs, advance)
        except BaseException:
            os.ftruncate(target_fd, 0)
            raise


def _open_into(
    file: ProtectedFile, target_fd: int, jobs: int | None, advance: Advance | None, *, name: str | None = None
) -> Done:
    with _host(target_fd, name or f"descriptor {target_fd}") as target:
        opener = file.segments()
        inline = file.read_at(0, INLINE_BYTES)
        target.truncate(file.size)
        target.write_at(0, inline)

        def work(number: int, buffers: Buffers) -> int:
            plain = opener.open(number, buffers)
            target.write_at(segment_offset(number), plain)
            return len(plain)

        _each_segment(opener.count, jobs, work, advance)
        (advance or _unwatched)(len(inline))
        return Done(file.size, file.root, path_bytes(file.path))


def verify_file(
    source: Path, key: Key128, *, path: str | None = None, jobs: int | None = None, advance: Advance | None = None
) -> Done:
    """Verify every node of a protected file and write nothing.  Raises as `decrypt_file`."""
    with ProtectedFile.open(OSFile(source), key, path=path) as file:
        opener = file.segments()
        _each_segment(opener.count, jobs, lambda number, buffers: len(opener.open(number, buffers)), advance)
        (advance or _unwatched)(min(file.size, INLINE_BYTES))
        return Done(file.size, file.root, path_bytes(file.path))


def decrypt_stream(
    source: Path | int,
    write: Callable[[memoryview], object],
    key: Key128,
    *,
    path: str | None = None,
    advance: Advance | None = None,
) -> Done:
    """Open a protected file, from a path or from a descriptor that need not be seekable, into `write`, in order.

    Every segment is handed to `write` once it was verified: when a later one is refused, what was
    written is right but not all, and only the error says so.
    """
    if isinstance(source, Path):
        with ProtectedFile.open(OSFile(source), key, path=path) as file:
            opener = file.segments()
            write(memoryview(file.read_at(0, INLINE_BYTES)))
            buffers = Buffers()
            for number in range(opener.count):
                plain = opener.open(number, buffers)
                write(plain)
                (advance or _unwatched)(len(plain))
            return Done(file.size, file.root, path_bytes(file.path))
    return _decrypt_pipe(source, write, key, path, advance or _unwatched)


def _decrypt_pipe(
    source: int, write: Callable[[memoryview], object], key: Key128, path: str | None, advance: Advance
) -> Done:
    buffers = Buffers()
    node_0 = Memory(name="standard input" if source == 0 else f"descriptor {source}")
    got = _read_up_to(source, buffers.host[:NODE_BYTES])
    node_0.write_at(0, buffers.host[:got])
    # the size on the host is not known before its end: it is checked there
    expected = None if path is None else path_bytes(path)
    state = committed_state(node_0, key, path=expected, writable=False, recover=False, expected_root=None, whole=False)
    metadata = state.metadata
    opener = SegmentOpener(node_0, metadata.size, metadata.root_slot, in_order=True)
    write(memoryview(metadata.inline)[: metadata.size])
    total = NODE_BYTES
    for number in range(opener.count):
        got = _read_up_to(source, buffers.host[: opener.host_bytes(number)])
        plain = opener.open_read(number, got, buffers)
        write(plain)
        advance(len(plain))
        total += got
    while rest := _read_up_to(source, buffers.host):
        total += rest
    if total % NODE_BYTES:
        raise IntegrityError(
            f"{node_0.name}: {total} bytes are no whole number of nodes",
            check="size of the host file",
            expected=f"a multiple of {NODE_BYTES}",
            seen=f"{total} bytes",
            remedy="the file was extended; get it again from its owner",
        )
    return Done(metadata.size, state.root, metadata.path)


# ---------------------------------------------------------------- another key


def rekey_file(
    source: Path,
    target: Path,
    key: Key128,
    new_key: Key128,
    *,
    path: str | None = None,
    new_path: str | None = None,
    version: int | None = None,
    jobs: int | None = None,
    force: bool = False,
    sync: bool = True,
    advance: Advance | None = None,
) -> Done:
    """Seal the content of a protected file again: under another key, path or version, every node under a new key.

    `target` may be `source` (with `force`): it is replaced at the end, in one step.  The plaintext stays in
    memory.  Sealing only node 0 again would be quicker and is not done: who had the old key could then
    still forge nodes.  Raises as `decrypt_file`.
    """
    with (
        ProtectedFile.open(OSFile(source), key, path=path) as file,
        atomic_target(target, force=force, sync=sync) as part,
        _host(part, target) as host,
    ):
        opener = file.segments()
        sealer = SegmentSealer(host, opener.count)

        def work(number: int, buffers: Buffers) -> int:
            size = len(opener.open(number, buffers))
            sealer.seal(number, size, buffers)
            return size

        _each_segment(opener.count, jobs, work, advance)
        inline = file.read_at(0, INLINE_BYTES)
        (advance or _unwatched)(len(inline))
        embedded = path_bytes(file.path if new_path is None else new_path)
        metadata = Metadata(embedded, file.size, sealer.finish(opener.count), inline)
        return _write_node_0(host, new_key, version or file.version, metadata)


def copy_out(source: int, write: Callable[[memoryview], object]) -> None:
    """All of a regular file, from its start, into `write`."""
    buffer = memoryview(bytearray(_COPY_BYTES))
    offset = 0
    while got := os.preadv(source, [buffer], offset):
        write(buffer[:got])
        offset += got
