"""Staging: what the program only reads is copied once into private memory, hashed or decrypted on the way.

The host's copy of a file is read exactly once, so it cannot change under the program. Hashing runs in forked
workers that hold no keys: they start before any key has been released and run beside its release. Modes and times
are fixed or the manifest's, never the host's.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import selectors
import signal
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adyton.errors import DigestMismatch, Error, MountFailed
from adyton.pfile.side_files import is_reserved
from adyton.storage.files import decrypt_into
from adyton.storage.links import link_name, read_link
from adyton.values import Digest, Key128
from adyton.vfs import syscalls
from adyton.vfs.owner import Owner
from adyton.vfs.storage_watchdog import START_S, StorageWatchdog

FIXED_TIME_S: Final = 315_532_800
"""1980-01-01: the time of everything that has none in the manifest (the earliest that zip files can hold)."""

RECOVERY_SUFFIX: Final = ".gramine.recovery"
MAX_FOLDERS: Final = 100_000
"""Of one encrypted input: the host can plant any number of empty ones, and each takes memory."""
_CHUNK_BYTES: Final = 256 << 10
_SMALL_BYTES: Final = 1 << 20
_BATCH_BYTES: Final = 8 << 20
_BATCH_FILES: Final = 128
_LINK_AT_LEAST_BYTES: Final = 64 << 10
_END_LIMIT_S: Final = 2.0
_SOURCE_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_TARGET_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

Advance = Callable[[int], None]
Seen = Callable[[str, bytes], object]
"""Told the stored path and the root of each protected file whose content is taken."""


def _unseen(_path: str, _root: bytes) -> None:
    """Nobody asks which states were taken."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A trusted file: where it lies on the host, what it must hash to, and where inside it is seen."""

    source: str
    digest: Digest
    targets: tuple[str, ...]
    size_bytes: int | None = None
    executable: bool = False
    mtime_s: int | None = None


def read_verified(source: str, digest: Digest, *, most_bytes: int) -> bytes:
    """The content of a small trusted file. Raises DigestMismatch or MountFailed with its name."""
    fd = _open_source(source)
    try:
        content = bytearray()
        while len(content) <= most_bytes:
            more = os.read(fd, _CHUNK_BYTES)
            if not more:
                break
            content += more
    except OSError as error:
        raise _unreadable(source, error) from error
    finally:
        os.close(fd)
    if len(content) > most_bytes:
        raise MountFailed(f"{source} is longer than {most_bytes} bytes", check="length of the file", seen=len(content))
    _check(source, digest, hashlib.sha256(content).digest())
    return bytes(content)


class Staging:
    """Trusted files on their way into a memory file system at `root`: `start`, then `finish` (or `abandon`)."""

    def __init__(self, root: str, files: Sequence[StagedFile], *, jobs: int, owner: Owner | None = None) -> None:
        self._root = root
        self._owner = owner or Owner.caller()
        self._files = files
        self._jobs = max(1, jobs)
        self._workers: dict[int, int] = {}
        self._folders: list[str] = []

    def start(self) -> None:
        """Make the folders and fork the workers. Returns while they work."""
        self._folders = _make_folders(
            self._root, (target for entry in self._files for target in entry.targets), self._owner
        )
        batches = _batches(self._files)
        if not batches:
            return
        queue_out, queue_in = os.pipe2(os.O_CLOEXEC)
        jobs = min(self._jobs, len(batches))
        parent = os.getpid()
        for _ in range(jobs):
            report_out, report_in = os.pipe2(os.O_CLOEXEC)
            worker = os.fork()
            if worker == 0:
                status = 1
                try:
                    os.close(queue_in)
                    os.close(report_out)
                    syscalls.die_with_parent(parent)
                    syscalls.name_process("adyton-stage")
                    status = _work(self._root, self._owner, batches, queue_out, report_in)
                finally:
                    os._exit(status)
            os.close(report_in)
            self._workers[report_out] = worker
        os.close(queue_out)
        _feed(queue_in, len(batches))

    def finish(self, advance: Advance | None = None) -> int:
        """Wait for the workers, and return the bytes staged. The first error of any ends all and is raised."""
        done_bytes = 0
        failure: Error | None = None
        with selectors.DefaultSelector() as selector:
            pending: dict[int, bytearray] = {fd: bytearray() for fd in self._workers}
            for fd in pending:
                selector.register(fd, selectors.EVENT_READ)
            while pending and failure is None:
                for key, _ in selector.select():
                    data = os.read(key.fd, 65_536)
                    if not data:
                        selector.unregister(key.fd)
                        failure = failure or self._ended(key.fd, bytes(pending.pop(key.fd)))
                        continue
                    pending[key.fd] += data
                    *lines, rest = bytes(pending[key.fd]).split(b"\n")
                    pending[key.fd] = bytearray(rest)
                    for line in lines:
                        message = json.loads(line)
                        if "error" in message:
                            failure = failure or Error.from_dict(message, unknown=MountFailed)
                            continue
                        done_bytes += message["done"]
                        if advance is not None:
                            advance(message["done"])
        if failure is not None:
            self.abandon()
            raise failure
        self._keep_bytecode_valid()
        for folder in reversed(self._folders):
            os.utime(folder, (FIXED_TIME_S, FIXED_TIME_S))
        return done_bytes

    def _ended(self, fd: int, rest: bytes) -> Error | None:
        os.close(fd)
        _, status = os.waitpid(self._workers.pop(fd), 0)
        if status == 0 and not rest:
            return None
        return MountFailed(
            "a staging worker ended before its work was done",
            check="exit status of the worker",
            expected=0,
            seen=os.waitstatus_to_exitcode(status),
            remedy="see whether memory ran out (`dmesg`), and lower adyton.memory_budget",
        )

    def abandon(self) -> None:
        """End the workers, if any are left. One that hangs in stalled storage ends when the storage answers."""
        for fd, worker in self._workers.items():
            os.close(fd)
            os.kill(worker, signal.SIGKILL)
        deadline = time.monotonic() + _END_LIMIT_S
        for worker in self._workers.values():
            while not os.waitpid(worker, os.WNOHANG)[0] and time.monotonic() < deadline:
                time.sleep(0.002)
        self._workers.clear()

    def _keep_bytecode_valid(self) -> None:
        """Without times in the manifest, a source gets the one that its cached bytecode records, or it recompiles."""
        targets = {target: entry for entry in self._files if entry.size_bytes is None for target in entry.targets}
        for target in targets:
            source = bytecode_source(target)
            if source is None or source not in targets:
                continue
            with Path(self._root + target).open("rb") as compiled:
                header = compiled.read(16)
            if len(header) == 16 and header[4:8] == bytes(4):
                mtime = int.from_bytes(header[8:12], "little")
                size = int.from_bytes(header[12:16], "little")
                path = self._root + source
                if os.stat(path).st_size & 0xFFFFFFFF == size:
                    os.utime(path, (mtime, mtime))


def bytecode_source(path: str) -> str | None:
    """The source that a cached bytecode file (PEP 3147) belongs to, or None."""
    folder, _, name = path.rpartition("/")
    if not name.endswith(".pyc") or not folder.endswith("/__pycache__"):
        return None
    stem = name.removesuffix(".pyc")
    stem = stem.partition(".opt-")[0]
    module, dot, _tag = stem.rpartition(".")
    return f"{folder.removesuffix('/__pycache__')}/{module}.py" if dot else None


def _make_folders(root: str, targets: Iterable[str], owner: Owner) -> list[str]:
    """Make every folder above the targets. Returns them, parents first."""
    made: dict[str, None] = {}
    for target in targets:
        folder = target.rpartition("/")[0]
        missing: list[str] = []
        while folder and folder not in made:
            missing.append(folder)
            folder = folder.rpartition("/")[0]
        for path in reversed(missing):
            made[path] = None
    for path in made:
        try:
            owner.make_folder(root + path)
        except FileExistsError:
            if not os.path.isdir(root + path):
                raise MountFailed(f"{path} is to be a folder and a file at once", check="paths inside") from None
    return [root + path for path in made]


def _batches(files: Sequence[StagedFile]) -> list[list[StagedFile]]:
    """Pieces of work, largest files first. The same content at several paths stays in one piece, to be linked."""
    groups: dict[tuple[bytes, int | None, bool], list[StagedFile]] = {}
    single: list[list[StagedFile]] = []
    for entry in files:
        size = entry.size_bytes
        if size is not None and size < _LINK_AT_LEAST_BYTES:
            single.append([entry])
        else:
            groups.setdefault((entry.digest.raw, entry.mtime_s, entry.executable), []).append(entry)
    pieces = sorted((*single, *groups.values()), key=lambda group: group[0].size_bytes or 0, reverse=True)
    batches: list[list[StagedFile]] = []
    batch: list[StagedFile] = []
    batch_bytes = 0
    for group in pieces:
        batch += group
        batch_bytes += group[0].size_bytes or _CHUNK_BYTES
        if batch_bytes >= _BATCH_BYTES or len(batch) >= _BATCH_FILES:
            batches.append(batch)
            batch, batch_bytes = [], 0
    if batch:
        batches.append(batch)
    return batches


def _feed(queue: int, count: int) -> None:
    """Write the numbers of all batches for the workers to take. They read while this writes."""
    try:
        for number in range(count):
            os.write(queue, number.to_bytes(4, "little"))
    except BrokenPipeError:
        pass
    finally:
        os.close(queue)


def _work(root: str, owner: Owner, batches: list[list[StagedFile]], queue: int, report: int) -> int:
    """A worker: take batches until there are none. It speaks to the parent in lines of JSON only."""
    os.umask(0)
    buffer = bytearray(_CHUNK_BYTES)

    def tell(error: Error) -> None:
        os.write(report, error.to_bytes() + b"\n")

    watchdog = StorageWatchdog(answer_s=START_S)
    watchdog.watch(lambda late: tell(_stalled(late)))
    while number := os.read(queue, 4):
        done_bytes = 0
        links: dict[tuple[bytes, int | None, bool], str] = {}
        try:
            for entry in batches[int.from_bytes(number, "little")]:
                watchdog.start(entry.source)
                done_bytes += _stage_one(root, owner, entry, links, buffer, watchdog)
                watchdog.stop()
        except Error as error:
            tell(error)
            return 0
        os.write(report, b'{"done": %d}\n' % done_bytes)
    return 0


def _stalled(late: str) -> MountFailed:
    return MountFailed(
        late,
        check="the host's storage",
        expected="an answer in time",
        seen="none",
        remedy="see what is wrong with the disk or share where the trusted files lie",
    )


def _stage_one(
    root: str,
    owner: Owner,
    entry: StagedFile,
    links: dict[tuple[bytes, int | None, bool], str],
    buffer: bytearray,
    watchdog: StorageWatchdog,
) -> int:
    identity = (entry.digest.raw, entry.mtime_s, entry.executable)
    first = links.get(identity)
    targets = entry.targets
    size = 0
    try:
        if first is None:
            first, *rest = targets
            targets = tuple(rest)
            size = _copy(root + first, owner, entry, buffer, watchdog)
            if size >= _LINK_AT_LEAST_BYTES:
                links[identity] = first
        for target in targets:
            os.link(root + first, root + target)
    except OSError as error:
        raise _unstageable(entry.source, error) from error
    return size


def _copy(target: str, owner: Owner, entry: StagedFile, buffer: bytearray, watchdog: StorageWatchdog) -> int:
    source = _open_source(entry.source)
    try:
        known = entry.size_bytes
        most = known if known is not None else os.fstat(source).st_size
        if most <= _SMALL_BYTES:
            content = _read_small(source, entry.source, most)
            _check(entry.source, entry.digest, hashlib.sha256(content).digest())
            head = content[:4]
            out = os.open(target, _TARGET_FLAGS, _mode(entry, head))
            try:
                if content and os.write(out, content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                owner.give(out)
                _set_time(out, entry)
            finally:
                os.close(out)
            return len(content)
        return _copy_large(source, target, owner, entry, most, buffer, watchdog)
    finally:
        os.close(source)


def _read_small(source: int, name: str, most: int) -> bytes:
    try:
        content = os.read(source, most + 1)
        while 0 < len(content) < most:
            more = os.read(source, most + 1 - len(content))
            if not more:
                break
            content += more
    except OSError as error:
        raise _unreadable(name, error) from error
    return content


def _copy_large(
    source: int, target: str, owner: Owner, entry: StagedFile, most: int, buffer: bytearray, watchdog: StorageWatchdog
) -> int:
    view = memoryview(buffer)
    digest = hashlib.sha256()
    out = os.open(target, _TARGET_FLAGS, 0o600)
    try:
        size = 0
        head = b""
        while size <= most:
            try:
                got = os.readv(source, (buffer,))
            except OSError as error:
                raise _unreadable(entry.source, error) from error
            if got == 0:
                break
            watchdog.progress()
            if not head:
                head = bytes(view[:4])
            part = view[:got]
            digest.update(part)
            size += got
            while part:
                part = part[os.write(out, part) :]
        _check(entry.source, entry.digest, digest.digest())
        owner.give(out)
        os.fchmod(out, _mode(entry, head))
        _set_time(out, entry)
    finally:
        os.close(out)
    return size


def _mode(entry: StagedFile, head: bytes) -> int:
    """Read-only. Executable if the manifest says so or, where it says nothing, if the verified content does."""
    runs = entry.executable or (entry.size_bytes is None and (head == b"\x7fELF" or head[:2] == b"#!"))
    return 0o555 if runs else 0o444


def _set_time(fd: int, entry: StagedFile) -> None:
    time_s = FIXED_TIME_S if entry.mtime_s is None else entry.mtime_s
    os.utime(fd, (time_s, time_s))


def _open_source(path: str) -> int:
    try:
        fd = os.open(path, _SOURCE_FLAGS)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _unreadable(path, OSError(errno.EINVAL, "not a regular file"))
    return fd


def _check(path: str, expected: Digest, seen: bytes) -> None:
    if seen != expected.raw:
        raise DigestMismatch(
            f"{path} is not the file that the manifest lists",
            check=f"SHA-256 of {path}",
            expected=expected.hex(),
            seen=seen.hex(),
            remedy="put the right file back, or build the manifest again and have its owner approve it",
        )


def _unreadable(path: str, error: OSError) -> MountFailed:
    return MountFailed(
        f"{path} cannot be read: {error.strerror or error}",
        check="trusted file",
        expected="a readable file",
        seen=error.strerror or str(error),
        remedy="put the file back where the manifest names it",
    )


def _unstageable(path: str, error: OSError) -> MountFailed:
    full = error.errno in (errno.ENOSPC, errno.ENOMEM)
    return MountFailed(
        f"{path} cannot be staged: {'the memory budget is used up' if full else error.strerror or error}",
        check="staging into private memory",
        expected="room for every trusted file and read-only input" if full else "success",
        seen=error.strerror or str(error),
        remedy="raise adyton.memory_budget" if full else "see the system's log",
    )


class StagedLinks:
    """Symbolic links of encrypted inputs, to be made once nothing else is made in private memory.

    Before that a link could lead what is still made out of that memory, into the files of the machine.
    """

    def __init__(self) -> None:
        self._links: list[tuple[int, str, str, bytes]] = []
        self._folders: list[int] = []

    def keep(self, target: str) -> int:
        """Hold a folder of private memory that is free of links still. Returns its descriptor."""
        self._folders.append(os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
        return self._folders[-1]

    def add(self, base: int, path: str, stored: str, text: bytes) -> None:
        """A link at `path` below the folder `base`."""
        self._links.append((base, path, stored, text))

    def make(self, owner: Owner) -> None:
        """Make them. Raises MountFailed where something has the name of a link."""
        try:
            for base, path, stored, text in self._links:
                folder, _, name = path.rpartition("/")
                try:
                    above = syscalls.open_beneath(base, folder or ".", os.O_RDONLY | os.O_DIRECTORY)
                    try:
                        os.symlink(text, os.fsencode(name), dir_fd=above)
                        os.chown(name, owner.uid, owner.gid, dir_fd=above, follow_symlinks=False)
                        times = (FIXED_TIME_S, FIXED_TIME_S)
                        os.utime(name, times, dir_fd=above, follow_symlinks=False)
                        os.utime(above, times)
                    finally:
                        os.close(above)
                except OSError as error:
                    raise _no_input(stored, error) from error
        finally:
            for base in self._folders:
                os.close(base)
            self._folders.clear()
            self._links.clear()


def stage_encrypted(
    source: str,
    target: str,
    key: Key128,
    *,
    jobs: int,
    links: StagedLinks | None = None,
    owner: Owner | None = None,
    advance: Advance | None = None,
    seen: Seen = _unseen,
) -> int:
    """Decrypt a protected file, or every one below a folder, to `target` in private memory. Returns the bytes.

    `source` is the mount's normalised host path: the paths sealed into the files must be it, or below it. The links of
    the folder are added to `links`. Without `links` their files are plain files, as for Gramine. `seen` is told of each
    file once its content is verified. Raises what the format raises, with the file's name. Links and special files of
    the host are refused.
    """
    owner = owner or Owner.caller()
    try:
        base = os.open(source or ".", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _no_input(source, error) from error
    try:
        if stat.S_ISREG(os.fstat(base).st_mode):
            owner.make_folders(os.path.dirname(target))
            return _decrypt(base, source, target, key, jobs, owner, advance, seen)
        return _decrypt_folder(base, source, target, key, jobs, links, owner, advance, seen)
    finally:
        os.close(base)


def _decrypt_folder(
    base: int,
    source: str,
    target: str,
    key: Key128,
    jobs: int,
    links: StagedLinks | None,
    owner: Owner,
    advance: Advance | None,
    seen: Seen,
) -> int:
    done_bytes = 0
    owner.make_folders(target)
    top = -1 if links is None else links.keep(target)
    folders = [""]
    made = [target]
    while folders:
        folder = folders.pop()
        for name, mode in _listing(base, folder, source):
            path = f"{folder}/{name}" if folder else name
            stored = f"{source}/{path}" if source else path
            if stat.S_ISDIR(mode):
                if len(made) >= MAX_FOLDERS:
                    raise _no_input(stored, OSError(errno.EMFILE, f"more than {MAX_FOLDERS} folders"))
                try:
                    owner.make_folder(f"{target}/{path}")
                except OSError as error:
                    raise _no_input(stored, error) from error
                made.append(f"{target}/{path}")
                folders.append(path)
                continue
            if name.endswith(RECOVERY_SUFFIX):
                continue
            try:
                fd = syscalls.open_beneath(base, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError as error:
                raise _no_input(stored, error) from error
            if advance is not None:
                advance(0)  # the host has answered
            try:
                link = None if links is None else link_name(path)
                if link is not None and links is not None:
                    text = read_link(fd, key, stored, seen)
                    if text:
                        links.add(top, link, stored, os.fsencode(text))
                elif links is None or not is_reserved(name):
                    done_bytes += _decrypt(fd, stored, f"{target}/{path}", key, jobs, owner, advance, seen)
            finally:
                os.close(fd)
    for folder in reversed(made):
        os.utime(folder, (FIXED_TIME_S, FIXED_TIME_S))
    return done_bytes


def _listing(base: int, folder: str, source: str) -> list[tuple[str, int]]:
    try:
        fd = syscalls.open_beneath(base, folder or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = sorted(os.listdir(fd))
            return [(name, os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode) for name in names]
        finally:
            os.close(fd)
    except OSError as error:
        raise _no_input(f"{source}/{folder}", error) from error


def _decrypt(
    source: int, stored: str, target: str, key: Key128, jobs: int, owner: Owner, advance: Advance | None, seen: Seen
) -> int:
    if not stat.S_ISREG(os.fstat(source).st_mode):
        raise _no_input(stored, OSError(errno.EINVAL, "not a regular file"))
    try:
        out = os.open(target, _TARGET_FLAGS & ~os.O_WRONLY | os.O_RDWR, 0o600)
    except OSError as error:
        raise _unstageable(stored, error) from error
    try:
        done = decrypt_into(source, out, key, path=stored, jobs=jobs, advance=advance)
        seen(stored, done.root)
        owner.give(out)
        os.fchmod(out, 0o444)
        os.utime(out, (FIXED_TIME_S, FIXED_TIME_S))
    except OSError as error:
        raise _unstageable(stored, error) from error
    finally:
        os.close(out)
    return done.size


def _no_input(path: str, error: OSError) -> MountFailed:
    return MountFailed(
        f"encrypted input {path} cannot be read: {error.strerror or error}",
        check="encrypted input",
        expected="a protected file, or a folder of them, one for each name and without links of the host",
        seen=error.strerror or str(error),
        remedy="put it where the manifest's mount says, relative to where `adyton run` is started",
    )
