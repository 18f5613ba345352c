"""The pinned folders of a run: checked when the keys are there, followed to the end, told to their key servers.

A local commit is durable before the program's call returns (`roots.pinned_folder`). The key server learns of it a
little later, from a thread of its own, and of the last one before the run ends. What is lost in between, the next run
finds from the history beside the folder.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import Error, IntegrityError, KeyReleaseError, MountFailed
from adyton.pfile.side_files import XATTR_SUFFIX
from adyton.release.root_messages import RootCommit, RootIntent, parse_fence
from adyton.release.run_messages import ROOT_COMMIT, ROOT_INTENT
from adyton.roots.judge import CHECK, judge_staged
from adyton.roots.pinned_folder import Checked, check_folder, confirm
from adyton.roots.root import Root
from adyton.typed_document import TypedDocument

if TYPE_CHECKING:
    from adyton.runtime.run_plan import EncryptedMount
    from adyton.values import Key128

SEND_EVERY_S: Final = 10.0
"""A key server learns of a local commit after so long at the latest, if it can be reached."""
END_LIMIT_S: Final = 40.0
_SHOWN: Final = 3

Tell = Callable[[str, str, bytes], TypedDocument]
"""Says something to the key server of a folder: the folder's id, the action, the payload. Returns its answer."""


@dataclass(frozen=True, slots=True)
class GivenRoots:
    """What the grants say of the pinned folders, and how to answer."""

    roots: Mapping[str, Mapping[str, object]]
    """By folder: the key server's newest root, empty where it has none."""
    grants: Mapping[str, str]
    """By folder: the grant that brought its root."""
    tell: Tell


@dataclass(slots=True)
class _Written:
    """A folder that this run writes to."""

    mount: EncryptedMount
    key: Key128
    fence: int
    newest: Root
    taken: Root
    """The last root that the key server has taken."""
    pending: Root | None = None
    """One that was sent, and whose answer did not come."""


@dataclass(slots=True)
class PinnedFolders:
    """The pinned folders of one run."""

    given: GivenRoots
    event: Callable[[str], None]
    checked: dict[str, Checked] = field(default_factory=dict)
    """By folder: what is in it."""
    _written: dict[str, _Written] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _trouble: list[str] = field(default_factory=list)

    def check(self, mounts: Iterable[EncryptedMount], keys: Mapping[str, Key128], progress: Callable[[], None]) -> None:
        """Hold every pinned folder to its root. Raises IntegrityError (check `root of the folder`), StorageFailed."""
        for mount in mounts:
            key, granted = keys[mount.key_name], self._granted(mount)
            checked = check_folder(mount.source, key, mount.pinned, granted, sealed_as=mount.source, progress=progress)
            self.checked[mount.pinned] = checked
            taken_back = checked.judged.taken_back
            if taken_back:
                more = f" and {len(taken_back) - _SHOWN} more" if len(taken_back) > _SHOWN else ""
                self.event(
                    f"{mount.source}: the last run did not end by itself, and its last changes are lost to:"
                    f" {', '.join(taken_back[:_SHOWN])}{more}"
                )

    def begin(self, mounts: Iterable[EncryptedMount], keys: Mapping[str, Key128]) -> None:
        """Tell the key servers which folders this run writes to, before it does. Raises what they answer."""
        for mount in mounts:
            if not mount.read_only:
                root = self.checked[mount.pinned].history.root
                intent = RootIntent(mount.pinned, root)
                fence = parse_fence(self.given.tell(mount.pinned, ROOT_INTENT, intent.to_bytes()))
                self._written[mount.pinned] = _Written(mount, keys[mount.key_name], fence, root, root)

    def _granted(self, mount: EncryptedMount) -> Root:
        given = self.given.roots.get(mount.pinned)
        if not given:
            raise IntegrityError(
                f"the key server keeps no root of {mount.pinned}",
                check=CHECK,
                expected="a folder that its owner has pinned",
                seen="none",
                remedy=f"the owner pins it: adyton pin {mount.source} --key {mount.key_name}",
            )
        return Root.parse(TypedDocument(dict(given), _malformed))

    def check_staged(self, mount: EncryptedMount, files: Mapping[str, bytes], target: str, *, links: bool) -> None:
        """Hold what was copied out of a folder that is only read to its root.

        `files` has the root of each file by its stored path. `target` is the copy. With `links` the files of links are
        links there, and attributes are left out. Raises IntegrityError.
        """
        base = f"{mount.source}/"
        folders = {
            os.path.relpath(os.path.join(at, name), target) for at, names, _ in os.walk(target) for name in names
        }
        judge_staged(
            mount.source,
            self.checked[mount.pinned].entries,
            {path.removeprefix(base): root for path, root in files.items()},
            folders,
            left_out=lambda path: links and path.endswith(XATTR_SUFFIX),
            now_s=int(time.time()),
        )

    def writer(self, folder: str) -> str:
        """The name under which this run writes to a folder: its grant."""
        return self.given.grants[folder]

    def start_telling(self) -> None:
        """From now on the key servers learn of each commit, beside the run."""
        if self._written and self._thread is None:
            self._thread = threading.Thread(target=self._tell_on, name="adyton-roots", daemon=True)
            self._thread.start()

    def heard(self, folder: str, root: Mapping[str, Any]) -> None:
        """The file server has committed."""
        found = Root.parse(TypedDocument(dict(root), _malformed))
        with self._lock:
            self._written[folder].newest = found

    def _tell_on(self) -> None:
        while not self._end.wait(SEND_EVERY_S):
            for written in self._written.values():
                with self._lock:
                    newest = written.newest
                if not newest.is_same(written.taken):
                    try:
                        self._commit(written, newest, is_last=False)
                    except Error as error:
                        with self._lock:
                            self._trouble.append(f"{written.mount.source}: {error.message}")

    def _commit(self, written: _Written, root: Root, *, is_last: bool) -> None:
        if written.pending is not None and not written.pending.is_same(root):
            self._send(written, written.pending, is_last=False)  # the key server may have it, or not
        self._send(written, root, is_last=is_last)

    def _send(self, written: _Written, root: Root, *, is_last: bool) -> None:
        folder = written.mount.pinned
        written.pending = root
        commit = RootCommit(folder, written.fence, written.taken.head, root, is_last)
        self.given.tell(folder, ROOT_COMMIT, commit.to_bytes())
        written.taken, written.pending = root, None

    def tell_trouble(self) -> None:
        """Say what went wrong beside the run."""
        with self._lock:
            trouble, self._trouble = self._trouble, []
        for text in trouble:
            self.event(f"the key server did not take a root: {text}")

    def finish(self) -> MountFailed | None:
        """Tell the key servers the last roots. A root that one refuses is the error that is returned."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(END_LIMIT_S)
        self.tell_trouble()
        failure: MountFailed | None = None
        for written in self._written.values():
            source, root = written.mount.source, written.newest
            try:
                self._commit(written, root, is_last=True)
            except KeyReleaseError as error:
                failure = MountFailed(
                    f"the key server does not take what this run left in {source}: {error.message}",
                    checks=error.checks,
                )
            except Error as error:
                self.event(
                    f"{source}: the key server did not learn of the last commit, number {root.sequence}, and until the"
                    f" next run tells it the host can put back what was there before: {error.message}"
                )
            else:
                self._confirm(written, root)
        return failure

    def _confirm(self, written: _Written, root: Root) -> None:
        """Write beside the folder that the key server has this root, so that an older server is told from a newer."""
        try:
            confirm(written.mount.source, written.key, written.mount.pinned, root)
        except Error as error:
            self.event(f"{written.mount.source}: its history could not be written to at the end: {error.message}")


def _malformed(member: str, expected: str, seen: str) -> IntegrityError:
    return IntegrityError(
        "the root in the grant is malformed", check=f"{member} of the root", expected=expected, seen=seen
    )
