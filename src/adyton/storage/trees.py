"""Whole directories in and out of protected files, resumable. Symbolic links come along, attributes do not.

A journal in the target directory lists what was done. It is a protected file under the same key, so that the storage
cannot forge it.  A file counts as done once it was made durable and entered. An interrupted run continues after the
last such file, and makes every other one again from its start.
"""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from adyton.atomic_file import atomic_target, check_absent, check_no_link, is_part, sync_file_system
from adyton.errors import Error, FileFormatError, IntegrityError, StorageFailed, UsageError, WrongPath
from adyton.os_failure import storage_failed
from adyton.pfile.backing import RECOVERY_SUFFIX, OSFile
from adyton.pfile.committed_state import committed_state
from adyton.pfile.file import ProtectedFile
from adyton.pfile.paths import normalise, path_bytes
from adyton.pfile.side_files import LINK_SUFFIX, ROOTS_SUFFIX, XATTR_SUFFIX, is_reserved
from adyton.storage.files import (
    Advance,
    Done,
    decrypt_file,
    default_jobs,
    encrypt_file,
    rekey_file,
    source_identity,
    verify_file,
)
from adyton.storage.links import (
    check_inside,
    check_links,
    encrypt_link,
    link_name,
    make_links,
    read_link,
    read_links,
)

if TYPE_CHECKING:
    from adyton.values import Key128

JOURNAL: Final = ".adyton-journal"
_BESIDE: Final = (RECOVERY_SUFFIX, ROOTS_SUFFIX)
_LARGE_BYTES: Final = 16 << 20  # from here on one file keeps all workers busy
_BATCH_BYTES: Final = 256 << 20
_BATCH_FILES: Final = 2000
_BATCH_SECONDS: Final = 5.0
_MAX_JOURNAL_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class TreeDone:
    """The result for a tree: files made now, files that an earlier run had made, plaintext bytes of the former."""

    files: int
    resumed: int
    size: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One regular file of a tree, or one link: its path below the root, and its host size."""

    below: str
    size: int
    is_link: bool = False


Links = Literal["refuse", "follow", "keep"]
"""How symbolic links of a tree are taken: not at all, as what they lead to, or as themselves."""


def list_tree(root: Path, *, links: Links = "refuse") -> tuple[list[str], list[Entry]]:
    """The directories, and the regular files and links, below `root`, sorted.

    What is none of these is refused by name. Recovery logs, journals, histories and unfinished targets are left out.
    Raises UsageError, StorageFailed.
    """
    directories: list[str] = []
    entries: list[Entry] = []
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while pending:
        below, above = pending.pop()
        try:
            facts = (root / below).stat()
            here = (facts.st_dev, facts.st_ino)
            if here in above:
                raise UsageError(f"{root / below} is a link to a directory that it lies in", check="symbolic links")
            with os.scandir(root / below) as found:
                for each in sorted(found, key=lambda each: each.name):
                    name = f"{below}/{each.name}" if below else each.name
                    if each.name == JOURNAL or is_part(each.name) or each.name.endswith(_BESIDE):
                        continue
                    if each.is_symlink() and links != "follow":
                        if links == "refuse":
                            raise _odd(root / name, "a symbolic link")
                        entries.append(Entry(name, 0, is_link=True))
                        continue
                    kind = each.stat()
                    if stat.S_ISDIR(kind.st_mode):
                        directories.append(name)
                        pending.append((name, (*above, here)))
                    elif stat.S_ISREG(kind.st_mode):
                        entries.append(Entry(name, kind.st_size))
                    else:
                        raise _odd(root / name, "neither a file nor a directory")
        except OSError as error:
            raise storage_failed(error, str(root / below), "listing") from error
    return sorted(directories), sorted(entries, key=lambda entry: entry.below)


def _odd(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{path} is {what}",
        check="kind of every entry of the tree",
        expected="files and directories",
        seen=what,
        remedy="remove it, or leave it out",
    )


class _Journal:
    """The list of what is done, sealed. Entries are written once their files are durable."""

    def __init__(self, target: Path, key: Key128, task: dict[str, str]) -> None:
        self._place = target / JOURNAL
        self._key = key
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[str, str]] = {}
        self._waiting_bytes = 0
        self._last = time.monotonic()
        self.done: dict[str, tuple[str, str]] = {}
        self.resumed = self._load(task)
        if not self.resumed:
            self._file = self._make(task)

    def _load(self, task: dict[str, str]) -> bool:
        if not os.path.lexists(self._place):
            return False
        try:
            self._file = ProtectedFile.open(OSFile(self._place, writable=True), self._key, path=JOURNAL, writable=True)
            if self._file.size > _MAX_JOURNAL_BYTES:
                raise IntegrityError(f"{self._place} is larger than any journal", check="size of the journal")
            lines = self._file.read_at(0, self._file.size).decode().splitlines()
            begun = json.loads(lines[0]) if lines else None
            done = [json.loads(line) for line in lines[1:]]
        except (FileFormatError, ValueError) as error:
            raise IntegrityError(
                f"{self._place}: the journal of an interrupted run does not open",
                check="journal of the target directory",
                expected="a journal under this key",
                seen=str(error)[:200],
                remedy=f"continue with the key of that run, or remove {self._place} and start again with --force",
            ) from error
        if begun != task:
            self._file.close()
            raise UsageError(
                f"{self._place} belongs to another run that was interrupted",
                check="what the interrupted run was doing",
                expected=json.dumps(begun),
                seen=json.dumps(task),
                remedy=f"finish that run first, or remove {self._place}",
            )
        self.done = {below: (source, target) for below, source, target in done}
        return True

    def _make(self, task: dict[str, str]) -> ProtectedFile:
        with (
            atomic_target(self._place, force=False) as part,
            ProtectedFile.create(OSFile(os.dup(part)), self._key, path=JOURNAL) as file,
        ):
            file.write_at(0, (json.dumps(task) + "\n").encode())
        return ProtectedFile.open(OSFile(self._place, writable=True), self._key, path=JOURNAL, writable=True)

    def add(self, below: str, source: str, target: str, size: int) -> None:
        """A file is in its place. It counts once a batch of them was made durable."""
        with self._lock:
            self._waiting[below] = (source, target)
            self._waiting_bytes += size
            late = time.monotonic() - self._last > _BATCH_SECONDS
            if late or self._waiting_bytes >= _BATCH_BYTES or len(self._waiting) >= _BATCH_FILES:
                self._write()

    def _write(self) -> None:
        if self._waiting:
            sync_file_system(self._place.parent)
            lines = [json.dumps([below, *ids]) + "\n" for below, ids in self._waiting.items()]
            self._file.write_at(self._file.size, "".join(lines).encode())
            self._file.flush(sync=True)
        self._waiting = {}
        self._waiting_bytes = 0
        self._last = time.monotonic()

    def close(self, *, finished: bool) -> None:
        """Make everything durable. The journal of a finished run is removed."""
        with self._lock:
            try:
                self._write()
            finally:
                self._file.close()
            if finished:
                _remove(self._place)
                # a run that was killed may have left the log of a commit that had not begun
                _remove(self._place.with_name(JOURNAL + RECOVERY_SUFFIX))


def _remove(path: Path) -> None:
    """Remove a file, if it is there. Raises StorageFailed where the storage has put something else in its place."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_failed(error, str(path), "removing") from error


@dataclass(slots=True)
class _Task:
    """One tree: how a file of it is made, and how to tell what a source and a target are."""

    source: Path
    target: Path
    make: Callable[[Entry, int], Done]
    source_id: Callable[[Path], str]
    target_id: Callable[[Path], str]
    in_place: bool
    place: Callable[[Entry], str] = lambda entry: entry.below
    """Where an entry of the source goes, below the target."""
    begun: bool = False
    files: int = 0
    resumed: int = 0
    size: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, entry: Entry, jobs: int, journal: _Journal, advance: Advance | None) -> None:
        """Make one file, unless the journal has it and both sides are as they were."""
        source, target = self.source / entry.below, self.target / self.place(entry)
        if (known := journal.done.get(entry.below)) is not None and known == self._seen(source, target, known):
            with self.lock:
                self.resumed += 1
                if advance is not None:
                    advance(entry.size)
            return
        source_id = "" if self.in_place else self.source_id(source)
        self.begun = True
        done = self.make(entry, jobs)
        journal.add(entry.below, source_id, self.target_id(target), done.size)
        with self.lock:
            self.files += 1
            self.size += done.size

    def _seen(self, source: Path, target: Path, known: tuple[str, str]) -> tuple[str, str] | None:
        try:
            return (known[0] if self.in_place else self.source_id(source)), self.target_id(target)
        except Error:
            return None


def _run(
    task: _Task,
    key: Key128,
    directories: list[str],
    entries: list[Entry],
    *,
    what: dict[str, str],
    jobs: int | None,
    force: bool,
    advance: Advance | None,
    last: Callable[[bool], int] = lambda _resumed: 0,
) -> TreeDone:
    """Do a task. `last` is called once every file is there, with whether it is resumed. It returns how many it made."""
    if not task.in_place and _within(task.target, task.source):
        raise UsageError(
            f"{task.target} lies in {task.source}",
            check="target",
            expected="outside the source directory",
            seen=str(task.target),
            remedy="choose a target beside the source",
        )
    try:
        task.target.mkdir(parents=True, exist_ok=True)
        for directory in directories:
            check_no_link(task.target / directory)
        journal = _Journal(task.target, key, what)
        try:
            if not journal.resumed and not force and not task.in_place:
                for entry in entries:
                    check_absent(task.target / task.place(entry))
            for directory in directories:
                (task.target / directory).mkdir(exist_ok=True)
                check_no_link(task.target / directory)
            _remove_parts(task.target, directories)
            _make_all(task, entries, jobs or default_jobs(), journal, advance)
            task.files += last(journal.resumed)
        except BaseException as error:
            # an interruption may come between the placing of a file and its count
            untouched = not task.files if isinstance(error, Exception) else not task.begun
            journal.close(finished=untouched and not journal.resumed)
            raise
        journal.close(finished=True)
    except OSError as error:
        raise storage_failed(error, str(task.target), "making") from error
    return TreeDone(task.files, task.resumed, task.size)


def _within(inner: Path, outer: Path) -> bool:
    return inner.resolve().is_relative_to(outer.resolve())


def _remove_parts(target: Path, directories: list[str]) -> None:
    """Remove what an interrupted run left unfinished."""
    for directory in ["", *directories]:
        for each in (target / directory).iterdir():
            if is_part(each.name):
                each.unlink(missing_ok=True)


def _make_all(task: _Task, entries: list[Entry], jobs: int, journal: _Journal, advance: Advance | None) -> None:
    for entry in entries:
        if entry.size >= _LARGE_BYTES:
            task.run(entry, jobs, journal, advance)
    small: Iterator[Entry] = (entry for entry in entries if entry.size < _LARGE_BYTES)
    taking = threading.Lock()
    failed = threading.Event()

    def work() -> None:
        while not failed.is_set():
            with taking:
                entry = next(small, None)
            if entry is None:
                return
            try:
                task.run(entry, 1, journal, advance)
            except BaseException:
                failed.set()
                raise

    with ThreadPoolExecutor(jobs, thread_name_prefix="adyton-files") as pool:
        workers = [pool.submit(work) for _ in range(jobs)]
    for worker in workers:
        worker.result()


def _plain_id(path: Path) -> str:
    return _identity(path, follow_links=False)


def _followed_id(path: Path) -> str:
    return _identity(path, follow_links=True)


def _identity(path: Path, *, follow_links: bool) -> str:
    try:
        return source_identity(path.stat(follow_symlinks=follow_links))
    except OSError as error:
        raise storage_failed(error, str(path), "looking at") from error


def _root_id(key: Key128) -> Callable[[Path], str]:
    """The root of a protected file, authenticated. A file that is only half there has none."""

    def identify(path: Path) -> str:
        backing = OSFile(path)
        try:
            state = committed_state(backing, key, path=None, writable=False, recover=False, expected_root=None)
        finally:
            backing.close()
        return state.root.hex()

    return identify


def embedded_below(root: str, below: str) -> str:
    """The embedded path of the file `below` a tree that is sealed as `root`."""
    return normalise(f"{root}/{below}") if root else normalise(below)


class _Paths:
    """Holds the files of a sealed tree to one root: their embedded paths are that root and their places below it.

    Without this, whoever stores the tree could swap its files, or put one of another tree among them.
    """

    def __init__(self, key: Key128, root: str | None) -> None:
        self._key = key
        self._root = root
        self._lock = threading.Lock()

    def of(self, place: Path, below: str) -> str:
        """The embedded path that the file `below` must have. Raises WrongPath where its own agrees with no root."""
        with self._lock:
            if self._root is None:
                self._root = self._root_of(place, below)
            return embedded_below(self._root, below)

    def _root_of(self, place: Path, below: str) -> str:
        with ProtectedFile.open(OSFile(place), self._key) as file:
            path = file.path
        if path != below and not path.endswith(f"/{below}"):
            raise WrongPath(
                f"{place} was sealed under a path that does not end with its place in the tree",
                check="embedded path",
                expected=f"ROOT/{below}",
                seen=path,
                remedy="was it moved? decrypt it by itself, or say which paths you want with --check-path",
            )
        return path.removesuffix(below).removesuffix("/") if path != f"/{below}" else "/"


def encrypt_tree(
    source: Path,
    target: Path,
    key: Key128,
    *,
    path: str | None = None,
    version: int = 2,
    jobs: int | None = None,
    force: bool = False,
    follow_links: bool = False,
    all_links: bool = False,
    advance: Advance | None = None,
) -> TreeDone:
    """Seal every file below `source` to the same place below `target`, embedding `path` (or `target`) and that place.

    Symbolic links are sealed as links, or with `follow_links` as what they lead to. Interrupted and called again in the
    same words, it continues.  Raises as `encrypt_file`, and UsageError for what is neither file, directory nor link,
    and for a link that leads out of `source` (unless `all_links` or `follow_links`).
    """
    root = str(target) if path is None else path
    _check_directory(source)
    directories, entries = list_tree(source, links="follow" if follow_links else "keep")
    _check_reserved(source, [*directories, *(entry.below for entry in entries)])
    if not all_links:
        links = read_links(source, (entry.below for entry in entries if entry.is_link))
        check_inside(source, links, "say --follow-links to take what links lead to, or --all-links to keep such links")

    def place(entry: Entry) -> str:
        return entry.below + LINK_SUFFIX if entry.is_link else entry.below

    def other_place(entry: Entry) -> str:
        """Where the name lies if it was sealed as a link before and is a file now, or the other way round."""
        return entry.below if entry.is_link else entry.below + LINK_SUFFIX

    if not force and not (target / JOURNAL).exists():
        for entry in entries:
            check_absent(target / other_place(entry))

    def make(entry: Entry, workers: int) -> Done:
        to, embedded = target / place(entry), embedded_below(root, place(entry))
        if entry.is_link:
            size, file_root = encrypt_link(
                source / entry.below, to, key, path=embedded, version=version, force=True, sync=False
            )
            done = Done(size, file_root, path_bytes(embedded))
        else:
            done = encrypt_file(
                source / entry.below,
                to,
                key,
                path=embedded,
                version=version,
                jobs=workers,
                force=True,
                sync=False,
                advance=advance,
            )
        if force and ((other := target / other_place(entry)).is_file() or other.is_symlink()):
            _remove(other)
        return done

    identify = _followed_id if follow_links else _plain_id
    task = _Task(source, target, make, identify, _root_id(key), in_place=False, place=place)
    what = {"task": "encrypt", "path": normalise(root), "version": str(version), "source": str(source.resolve())}
    return _run(task, key, directories, entries, what=what, jobs=jobs, force=force, advance=advance)


def _check_reserved(source: Path, names: list[str]) -> None:
    for name in names:
        if is_reserved(name):
            raise UsageError(
                f"{source / name} has a name that stands for a link or for attributes in an encrypted folder",
                check="names of the source",
                expected=f"names that do not end in {LINK_SUFFIX} or {XATTR_SUFFIX}",
                seen=name,
                remedy="rename it; a folder that is encrypted already is sealed anew with `adyton rekey`",
            )


def decrypt_tree(
    source: Path,
    target: Path,
    key: Key128,
    *,
    path: str | None = None,
    jobs: int | None = None,
    force: bool = False,
    all_links: bool = False,
    advance: Advance | None = None,
) -> TreeDone:
    """Open every protected file below `source` to the same place below `target`, and make the links.

    Each must carry `path` and its place below it; without `path`, all the same root.  Extended attributes are left out.
    Raises as `decrypt_file`, and UsageError for a link that leads out of the folder (unless `all_links`).
    """
    _check_directory(source)
    paths = _Paths(key, path)
    directories, entries = list_tree(source)
    files = [entry for entry in entries if not is_reserved(entry.below)]
    links: dict[str, str] = {}
    for entry in entries:
        link = link_name(entry.below)
        if link is not None:
            text = read_link(source / entry.below, key, paths.of(source / entry.below, entry.below))
            links |= {link: text} if text else {}
    taken = {*directories, *(entry.below for entry in files)}
    resumable = force or (target / JOURNAL).exists()
    check_links(links, taken=taken, source=source, target=target, all_links=all_links, force=resumable)

    def make_last(resumed: bool) -> int:
        make_links(target, links, replace=force or resumed)
        return len(links)

    def make(entry: Entry, workers: int) -> Done:
        return decrypt_file(
            source / entry.below,
            target / entry.below,
            key,
            path=paths.of(source / entry.below, entry.below),
            jobs=workers,
            force=True,
            sync=False,
            advance=advance,
        )

    task = _Task(source, target, make, _root_id(key), _plain_id, in_place=False)
    what = {"task": "decrypt", "path": "" if path is None else normalise(path), "source": str(source.resolve())}
    return _run(task, key, directories, files, what=what, jobs=jobs, force=force, advance=advance, last=make_last)


def rekey_tree(
    source: Path,
    target: Path,
    key: Key128,
    new_key: Key128,
    *,
    new_path: str | None = None,
    version: int | None = None,
    jobs: int | None = None,
    force: bool = False,
    advance: Advance | None = None,
) -> TreeDone:
    """Seal every protected file below `source` again under another key, in place where `target` is `source`.

    `new_path` is the root to be embedded, for which all must have carried one root before; without it every
    file keeps its path.
    """
    _check_directory(source)
    paths = _Paths(key, None)
    in_place = source.resolve() == target.resolve()

    def make(entry: Entry, workers: int) -> Done:
        place = target / entry.below
        embedded = None if new_path is None else embedded_below(new_path, entry.below)
        try:
            return rekey_file(
                source / entry.below,
                place,
                key,
                new_key,
                path=None if new_path is None else paths.of(source / entry.below, entry.below),
                new_path=embedded,
                version=version,
                jobs=workers,
                force=True,
                sync=in_place,  # the only copy
                advance=advance,
            )
        except IntegrityError as refusal:
            if not in_place:
                raise
            try:  # an interrupted run may have come this far, and not to its journal
                return verify_file(place, new_key, path=embedded, jobs=workers)
            except Error:
                raise refusal from None

    task = _Task(source, target, make, _root_id(key), _root_id(new_key), in_place=in_place)
    what = {
        "task": "rekey",
        "path": "" if new_path is None else normalise(new_path),
        "version": str(version or ""),
        "source": str(source.resolve()),
    }
    directories, entries = list_tree(source)
    return _run(task, new_key, directories, entries, what=what, jobs=jobs, force=force, advance=advance)


def _check_directory(source: Path) -> None:
    if not source.is_dir():
        raise StorageFailed(f"{source} is not a directory", check="kind of source", expected="a directory")
