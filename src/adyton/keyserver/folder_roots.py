"""The roots of pinned folders: what a grant says of them, and what a run that writes to one says back.

A run that writes first says so (`root-intent`), with the root from which it goes on. It gets a fencing number, which is
one more than that of the last writer. With that number it commits (`root-commit`), and names the root that it commits
after. A run whose number is no longer the last one is refused: another run writes to the folder now. So is a run that
does not name the newest root: a clone of it, which has the same number, has committed meanwhile.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import OutOfOrder
from adyton.keystore.clock import now_ms
from adyton.keystore.stored_folder import BEGUN, COMMITTED, ENDED, MAX_FENCE
from adyton.release.root_messages import parse_commit, parse_intent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.keyserver.run_messages import VerifiedMessage
    from adyton.keystore.reader import Reader
    from adyton.keystore.store import Store
    from adyton.keystore.stored_folder import Event, StoredFolder
    from adyton.keystore.transaction import Transaction
    from adyton.roots.root import Root

CHECK: Final = "root of the folder"


def granted_roots(view: Reader, folders: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The newest root of each of these folders. A folder that is not pinned has an empty one."""
    found = {folder: view.folder(folder) for folder in folders}
    return {folder: {} if stored is None else stored.root.to_dict() for folder, stored in found.items()}


class FolderRoots:
    """The handlers of `root-intent` and `root-commit`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, message: VerifiedMessage) -> Mapping[str, Any]:
        """A run is about to write. Raises OutOfOrder where its root is not the newest, nor came from it."""
        intent = parse_intent(message.payload)
        grant = message.run.grant
        with self._store.write() as change:
            stored = _stored(change, message, intent.folder)
            _check_goes_on(stored, intent.root)
            if stored.holder == grant:  # the answer was lost
                return {"fence": stored.fence}
            _check_given(stored, message, intent.root)
            fence = min(stored.fence + 1, MAX_FENCE)
            change.set_folder(replace(stored, root=intent.root, fence=fence, holder=grant), BEGUN, now_ms())
        return {"fence": fence}

    def commit(self, message: VerifiedMessage) -> Mapping[str, Any]:
        """A run has written. Raises OutOfOrder where it is no longer the writer, or its root is an older one."""
        commit = parse_commit(message.payload)
        with self._store.write() as change:
            stored = _stored(change, message, commit.folder)
            if stored.fence != commit.fence:
                raise OutOfOrder(
                    f"another run writes to {commit.folder} now",
                    check=CHECK,
                    expected=f"the last writer, number {stored.fence}",
                    seen=f"number {commit.fence}",
                    remedy="run one program at a time on a pinned folder; the next run takes what the last writer left",
                )
            holder = "" if commit.is_last else message.run.grant
            if stored.root.is_same(commit.root) and stored.holder == holder:  # the answer was lost
                return {"sequence": stored.root.sequence}
            if commit.before != stored.root.head:
                raise _of_another_run(stored, commit.root)
            _check_goes_on(stored, commit.root)
            event: Event = ENDED if commit.is_last else COMMITTED
            change.set_folder(replace(stored, root=commit.root, holder=holder), event, now_ms())
        return {"sequence": commit.root.sequence}


def _stored(change: Transaction, message: VerifiedMessage, folder: str) -> StoredFolder:
    """The folder, if this run was given its root."""
    given = message.run.facts.get("folders")
    stored = change.folder(folder)
    if not isinstance(given, dict) or folder not in given or stored is None:
        raise OutOfOrder(
            "this run was not given the root of this folder",
            check=CHECK,
            expected="a pinned folder of the run's manifest",
            seen="another one",
        )
    return stored


def _check_goes_on(stored: StoredFolder, root: Root) -> None:
    newest = stored.root
    if root.sequence < newest.sequence or (root.sequence == newest.sequence and root.head != newest.head):
        raise _of_another_run(stored, root)


def _check_given(stored: StoredFolder, message: VerifiedMessage, root: Root) -> None:
    """A run knows only of the root in its grant that its own came from it. Raises OutOfOrder where that is not enough.

    A newer root has its place only after that one: its owner may have accepted another state since, and the host may
    have kept the message until then.
    """
    if not root.is_same(stored.root) and message.run.facts["folders"][stored.folder] != stored.root.sequence:
        raise _of_another_run(stored, root)


def _of_another_run(stored: StoredFolder, root: Root) -> OutOfOrder:
    newest, fork = stored.root, ", which did not" if root.sequence >= stored.root.sequence else ""
    return OutOfOrder(
        f"{stored.folder} was written to by another run meanwhile",
        check=CHECK,
        expected=f"commit {newest.sequence}, or one that came from it",
        seen=f"commit {root.sequence}{fork}",
        remedy="start the run again, with the folder as the last writer left it",
    )


def given_folders(roots: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """What the record of a release says of the folders: the sequence number of each, 0 where it is not pinned."""
    return {folder: int(root.get("sequence", 0)) for folder, root in roots.items()}
