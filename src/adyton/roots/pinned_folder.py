"""A pinned folder for the length of a run: checked against the key server's root, then followed change by change."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.atomic_file import sync_file_system
from adyton.errors import IntegrityError
from adyton.os_failure import storage_failed
from adyton.roots.entry import Entry
from adyton.roots.history import History
from adyton.roots.host_scan import remove_beneath, scan
from adyton.roots.journal import Journal, append_to, journal_of, read_journal
from adyton.roots.judge import CHECK, Judged, judge_folder, judge_server
from adyton.roots.records import Change, Commit, Confirmed, Step, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from adyton.roots.root import Root
    from adyton.values import Key128

WINDOW_S: Final = 5.0
"""A commit is made before the first change that comes so long after the last one."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A folder that is the one its key server knows, or came from it."""

    source: str
    sealed_as: str
    key: Key128
    history: History
    judged: Judged

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Everything in it, by path."""
        return self.judged.entries


def check_folder(
    source: str,
    key: Key128,
    folder: str,
    granted: Root | None,
    *,
    sealed_as: str,
    progress: Callable[[], None] = lambda: None,
) -> Checked:
    """Hold a folder and its history against each other and against the key server's root, if one is known.

    Raises IntegrityError (check `root of the folder`), StorageFailed.
    """
    now_s = int(time.time())
    history, _ = read_journal(journal_of(source), key, folder)
    if granted is not None:
        judge_server(source, history, granted, now_s)
    seen = scan(source, key, sealed_as=sealed_as, progress=progress)
    return Checked(source, sealed_as, key, history, judge_folder(source, history, seen, now_s))


class PinnedFolder:
    """A folder that is written to. Every change is told here before it is done on the host.

    `told` is called with the root of each commit.
    """

    def __init__(self, checked: Checked, writer: str, *, told: Callable[[Root], None] = lambda _root: None) -> None:
        """Begin to write. What a crash took back since the last commit is a commit of its own.

        The caller has the folder's lock. Raises StorageFailed, and IntegrityError where another run wrote meanwhile.
        """
        self._place = Path(checked.source or ".").absolute()  # a file server leaves its working folder
        place = journal_of(str(self._place))
        if read_journal(place, checked.key, checked.history.folder)[0].head != checked.history.head:
            raise IntegrityError(
                f"{checked.source} was written to by another run since it was checked",
                check=CHECK,
                expected="one run at a time",
                seen="a longer history",
                remedy="wait until the other run has ended, then start this one again",
            )
        self._writer = writer
        self._told = told
        self._committed_s = time.monotonic()
        self._syncing: Callable[[], AbstractContextManager[object]] = nullcontext
        history, entries = checked.history, checked.judged.entries
        at_s, begun = int(time.time()), history.root
        self._remove(checked.judged.left_over)
        if history.has_changed:
            steps = [Step(path, entries.get(path)) for path in checked.judged.taken_back]
            _follow(history, Change(at_s, writer, tuple(steps)))
            sync_file_system(self._place)
            _follow(history, Commit(history.root.sequence + 1, at_s, writer, history.tree.digest()))
        self._journal = Journal(place, checked.key, history)
        if history.root != begun:
            told(history.root)

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            try:
                remove_beneath(self._place, path)
            except OSError as error:
                raise storage_failed(error, str(self._place / path), "removing what a crash left") from error

    def sync_within(self, syncing: Callable[[], AbstractContextManager[object]]) -> None:
        """Enter this context around whatever waits for the disk."""
        self._syncing = syncing

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Everything in the folder, by path."""
        return self._journal.history.entries

    @property
    def root(self) -> Root:
        """The root of the last commit."""
        return self._journal.history.root

    # ---------------------------------------------------------------- what is about to be done

    def writing(self, path: str, root: bytes, size: int) -> None:
        """A file is about to have this content. Raises StorageFailed, and then it must not."""
        known = self.entries.get(path)
        if known is None or known.root != root:
            self._record([Step(path, self._entry(root, size))])

    def making_folder(self, path: str) -> None:
        """A folder is about to be made."""
        self._record([Step(path, self._entry(b"", 0))])

    def removing(self, path: str) -> None:
        """A file or an empty folder is about to be removed."""
        if path in self.entries:
            self._record([Step(path, None)])

    def moving(
        self, moves: Iterable[tuple[str, str]], roots: Mapping[str, tuple[bytes, int]]
    ) -> dict[str, Entry | None]:
        """Paths are about to be moved, all in one step, each with what lies below it. Returns what `put_back` takes.

        `roots` has the new root and size of each moved file, by its new path.
        """
        pairs = [pair for old, new in moves for pair in self._all_below(old, new)]
        before = {path: self.entries.get(path) for pair in pairs for path in pair}
        entries = {
            new: self._entry(*roots.get(new, (self.entries[old].root, self.entries[old].size))) for old, new in pairs
        }
        steps = [Step(old, None) for old, _ in pairs if old not in entries]
        steps += [Step(new, entries[new], moved_from=old) for old, new in pairs]
        if steps:
            self._record(steps)
        return before

    def put_back(self, before: Mapping[str, Entry | None]) -> None:
        """What was told was not done: these paths are as they were."""
        steps = [
            Step(path, None if entry is None else self._entry(entry.root, entry.size))
            for path, entry in before.items()
            if not _is_same(self.entries.get(path), entry)
        ]
        if steps:
            self._record(steps)

    def commit(self) -> Root:
        """Make everything until now durable, and a commit of it. Raises StorageFailed."""
        history = self._journal.history
        if history.has_changed:
            with self._syncing():
                sync_file_system(self._place)
                at_s = int(time.time())
                self._journal.append(Commit(history.root.sequence + 1, at_s, self._writer, history.tree.digest()))
                self._journal.begin_anew_if_long()
            self._told(self.root)
        self._committed_s = time.monotonic()
        return self.root

    def close(self) -> None:
        """Let go of the journal. It does not commit."""
        self._journal.close()

    def _entry(self, root: bytes, size: int) -> Entry:
        return Entry(root, size, int(time.time()), self._writer)

    def _all_below(self, old: str, new: str) -> list[tuple[str, str]]:
        found = [(old, new)] if old in self.entries else []
        begin = old + "/"
        if found and self.entries[old].is_folder:
            found += [(path, new + path[len(old) :]) for path in self.entries if path.startswith(begin)]
        return found

    def _record(self, steps: Iterable[Step]) -> None:
        if time.monotonic() - self._committed_s > WINDOW_S:
            self.commit()
        with self._syncing():
            self._journal.append(Change(int(time.time()), self._writer, tuple(steps)))


def _is_same(one: Entry | None, other: Entry | None) -> bool:
    return one is other or (one is not None and other is not None and one.root == other.root)


def _follow(history: History, record: Change | Commit) -> None:
    history.apply(record, encode(record))


def confirm(source: str, key: Key128, folder: str, root: Root) -> None:
    """Write beside a folder that its key server has this root. Raises IntegrityError, StorageFailed."""
    append_to(journal_of(source), key, folder, Confirmed(root.sequence))
