"""Whether a folder on the host is the one that its history says, and whether that is the key server's. Pure.

Between two commits a crash may have left each path in one of the states that it had since the last commit. Everything
else is refused: what is older, what is missing, and what is there and should not be.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from adyton.dates import timestamp
from adyton.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set

    from adyton.roots.entry import Entry
    from adyton.roots.history import History
    from adyton.roots.root import Root

CHECK: Final = "root of the folder"
_SHOWN: Final = 5
_LAST_S: Final = 253_402_300_799
"""The last second of the year 9999."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the host shows at a path. `root` is None for a file that does not verify, and for a folder."""

    is_folder: bool
    root: bytes | None = None
    is_empty: bool = False
    """A file of no bytes: one that was made and never written. No protected file is."""
    is_other: bool = False
    """Neither a file nor a folder: a link of the host's, a device."""


def judge_staged(
    shown: str,
    entries: Mapping[str, Entry],
    files: Mapping[str, bytes],
    folders: Set[str],
    *,
    left_out: Callable[[str], bool],
    now_s: int,
) -> None:
    """Hold what was copied out of a folder against its entries. Raises IntegrityError.

    `files` has the root of each file whose content was taken, by its path. `folders` are the folders that were made.
    `left_out` says of a path whether its file is none that is copied.
    """
    taken = {path: Seen(is_folder=False, root=root) for path, root in files.items()}
    taken |= {path: Seen(is_folder=True) for path in folders}
    expected = {path: entry for path, entry in entries.items() if entry.is_folder or not left_out(path)}
    wrong = [
        _told(path, expected.get(path), taken.get(path), now_s)
        for path in sorted({*expected, *taken})
        if not _is(expected.get(path), taken.get(path))
    ]
    if wrong:
        raise IntegrityError(
            f"{shown} was changed while it was read: {wrong[0]}",
            check=CHECK,
            expected=f"the {len(expected)} files and folders that were there at the start",
            seen="; ".join(wrong[:_SHOWN]),
            remedy="somebody exchanged files of the folder during the start: look at who can write to it",
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """What is in the folder, and by path what a crash took back since the last commit."""

    entries: dict[str, Entry]
    taken_back: tuple[str, ...]
    left_over: tuple[str, ...]
    """Files that the host shows and that count as not there: a crash came before they were written.

    A file of no bytes at all always does: it is no protected file, and nothing of it reaches a program.
    """


def judge_server(shown: str, history: History, granted: Root, now_s: int) -> None:
    """Hold the history against the root that the key server gave with the keys. Raises IntegrityError."""
    mine = history.root
    if history.heads.get(granted.sequence) == granted.head and history.confirmed <= granted.sequence:
        return
    seen = f"commit {mine.sequence}, written {_when(mine.at_s, now_s)} by {mine.writer}"
    expected = f"commit {granted.sequence}, written {_when(granted.at_s, now_s)} by {granted.writer}"
    if granted.sequence > mine.sequence:
        raise IntegrityError(
            f"{shown} is older than its key server knows it",
            check=CHECK,
            expected=f"{expected}, or a later one",
            seen=seen,
            remedy=f"put back the newest {shown}, with its .adyton-roots file; if that is lost, its owner accepts what"
            " is left: adyton pin --accept",
        )
    if history.confirmed > granted.sequence:
        raise IntegrityError(
            f"{shown} is newer than its key server, which had a later root before: the server was put back",
            check=CHECK,
            expected=f"a key server that knows commit {history.confirmed}, or a later one",
            seen=f"a key server that knows commit {granted.sequence}, of {_when(granted.at_s, now_s)}",
            remedy="the owner restores the newest backup of her home; if there is none, she looks at the folder and"
            " accepts it: adyton pin --accept",
        )
    raise IntegrityError(
        f"{shown} does not come from the state that its key server knows",
        check=CHECK,
        expected=expected,
        seen=f"{seen}, and no such commit before it: a copy of the folder was written to by another run",
        remedy=f"put back the {shown} that this run's predecessor wrote; or its owner accepts this one: adyton pin"
        " --accept",
    )


def judge_folder(shown: str, history: History, seen: Mapping[str, Seen], now_s: int) -> Judged:
    """Hold what the host shows against the history. Raises IntegrityError that names what is wrong."""
    window = history.window
    accepted: dict[str, Entry] = {}
    taken_back: list[str] = []
    left_over: list[str] = []
    wrong: list[str] = []
    for path in sorted({*history.entries, *seen}):
        newest, found = history.entries.get(path), seen.get(path)
        if _is(newest, found):
            if newest is not None:
                accepted[path] = newest
            continue
        fits, before = _fits_earlier(window.states.get(path, ()), found)
        if fits:
            if before is not None:
                accepted[path] = before
            elif found is not None:
                left_over.append(path)
            taken_back.append(path)
        elif newest is None and found is not None and found.is_empty:
            left_over.append(path)
        else:
            wrong.append(_told(path, newest, found, now_s))
    for path in history.entries:  # what was moved must be under one of its names
        names = window.names.get(path)
        if names and not any(name in accepted and accepted[name].root == root for name, root in names):
            once = {name for name, _ in names} - {path}
            wrong.append(f"{path}: missing, and was {' or '.join(sorted(once))} before")
    if wrong:
        root = history.root
        raise IntegrityError(
            f"{shown} is not what was written last: {wrong[0]}",
            check=CHECK,
            expected=f"the {len(history.entries)} files and folders of commit {root.sequence}, written"
            f" {_when(root.at_s, now_s)} by {root.writer}",
            seen="; ".join(wrong[:_SHOWN]) + (f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""),
            remedy=f"put back the newest {shown}; what is there and should not be is to be moved away; if the newest"
            " is lost, its owner accepts what is left: adyton pin --accept",
        )
    return Judged(accepted, tuple(taken_back), tuple(left_over))


def _fits_earlier(states: Sequence[Entry | None], found: Seen | None) -> tuple[bool, Entry | None]:
    """Whether the host shows an earlier state, and the newest such one. A file that was made since may be unwritten."""
    for state in reversed(states):
        if _is(state, found):
            return True, state
    unwritten = found is not None and not found.is_folder and not found.is_other and found.root is None
    return None in states and unwritten, None


def _is(entry: Entry | None, found: Seen | None) -> bool:
    if entry is None or found is None:
        return entry is None and found is None
    if found.is_other or found.is_folder != entry.is_folder:
        return False
    return entry.is_folder or found.root == entry.root


def _told(path: str, newest: Entry | None, found: Seen | None, now_s: int) -> str:
    if newest is None:
        return f"{path}: is there, and was not there or was removed"
    written = f"the newest was written {_when(newest.at_s, now_s)} by {newest.writer}"
    if found is None:
        return f"{path}: missing; {written}"
    if found.is_other or found.is_folder != newest.is_folder:
        return f"{path}: something else is in its place; {written}"
    if found.root is None:
        return f"{path}: cannot be read; {written}"
    return f"{path}: an older or another version; {written}"


def _when(at_s: int, now_s: int) -> str:
    """A time, and how long ago it was."""
    moment = timestamp(datetime.fromtimestamp(min(at_s, _LAST_S), UTC))
    ago = max(0, now_s - at_s)
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if ago >= size:
            count = ago // size
            return f"{moment} ({count} {unit}{'s' if count > 1 else ''} ago)"
    return f"{moment} (just now)"
