"""The part of the audit record that this process has verified, and its facts.

The record is read once. Each entry's hash is checked against the one before it, up to a head with the store's MAC
(`Keyring.head_mac`). A range of entries counts only once it is shown to lead to such a head. The hash of every 64th
entry is kept, so that any older entry can be verified again when it is shown.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import AuditError
from adyton.keystore.audit import Head, linked, start_hash
from adyton.keystore.audit_facts import Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from adyton.keystore.audit import Entry
    from adyton.keystore.audit_facts import AgreementChange, ApprovalChange, Candidate, KeyVersion, Lease
    from adyton.keystore.stored_folder import StoredFolder

STEP: Final = 64
"""The hash of every STEP-th entry is kept."""

MAX_AT_ONCE: Final = 10_000
"""Most entries in memory before their head is reached."""

RECENT: Final = 8192
"""The number of newest hashes that are kept. Readers that began a moment ago end at one of them."""

FORM: Final = 2
"""The format version of `to_dict`."""


class _State:
    """A verified range of the record, from its beginning."""

    def __init__(self, store_id: bytes) -> None:
        self.head = Head(0, start_hash(store_id))
        self.facts = Facts()
        self.anchors = bytearray(self.head.hash)
        self.recent: deque[bytes] = deque([self.head.hash], RECENT)

    def take(self, entry: Entry) -> None:
        """Add the next verified entry."""
        self.facts.note(entry)
        self.head = Head(entry.seq, entry.hash)
        self.recent.append(entry.hash)
        if entry.seq % STEP == 0:
            self.anchors += entry.hash


class Ledger:
    """The verified record of one store, read incrementally. Thread-safe."""

    def __init__(self, store_id: bytes) -> None:
        self._store_id = store_id
        self._lock = threading.RLock()
        self._state = _State(store_id)
        self.kept_to = 0
        """The last entry in the last stored `to_dict`."""

    @property
    def head(self) -> Head:
        """The last entry that is verified."""
        return self._state.head

    def follow(self, head: Head, load: Callable[[int, int], Generator[Entry, None, None]]) -> None:
        """Read on up to an authenticated head. `load` gives the entries of a range (after, to).

        Raises AuditError where they do not lead there, and then adds none of them.
        """
        with self._lock:
            there = self._state.head
            if head.seq <= there.seq:
                self._check_passed(head)
                return
            with closing(load(there.seq, head.seq)) as found:
                self._read_on(head, linked(there, found))

    def _read_on(self, head: Head, new: Iterable[Entry]) -> None:
        there = self._state.head
        if head.seq - there.seq > MAX_AT_ONCE:
            state = copy.deepcopy(self._state)
            for entry in new:
                state.take(entry)
            check_end(state.head, head)
            self._state = state
            return
        entries = list(new)
        check_end(Head(entries[-1].seq, entries[-1].hash) if entries else there, head)
        self._take(entries)

    def _take(self, entries: Iterable[Entry]) -> None:
        try:
            for entry in entries:
                self._state.take(entry)
        except BaseException:
            self._state, self.kept_to = _State(self._store_id), 0  # half of it is taken in: all is read again
            raise

    def noting(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Yield the entries. Each is added when the caller asks for the next, which means that it verified this one."""
        for entry in entries:
            yield entry
            self._state.take(entry)

    def absorb(self, after: Head, entries: Sequence[Entry]) -> None:
        """Add entries that this process has just committed after a verified head."""
        with self._lock:
            if self._state.head == after:  # otherwise another thread has read them already
                self._take(entries)

    def anchor(self, number: int) -> Head | None:
        """The last verified entry of a block of 64 (0: the beginning). None where it is not verified yet."""
        with self._lock:
            raw = bytes(self._state.anchors[32 * number : 32 * number + 32])
        return Head(STEP * number, raw) if raw else None

    def _check_passed(self, head: Head) -> None:
        """Refuse a head that contradicts the entries of this process."""
        back = self._state.head.seq - head.seq
        recent = self._state.recent
        if back >= len(recent) or recent[-1 - back] != head.hash:
            raise AuditError(
                "the audit record is not the one that this process has read before",
                check=f"entry {head.seq} of the audit record",
                expected="the entry that was verified before",
                seen=f"the hash {head.hash.hex()}",
                remedy="another history was put in this one's place: restore the newest backup (adyton restore)",
            )

    # --- what the record says ---------------------------------------------------------------------------------------

    def newest_change(self, approval: str, to: int) -> ApprovalChange | None:
        """As `Facts.newest_change`."""
        with self._lock:
            return self._state.facts.newest_change(approval, to)

    def newest_changes(self, to: int) -> dict[str, ApprovalChange]:
        """As `Facts.newest_changes`."""
        with self._lock:
            return self._state.facts.newest_changes(to)

    def changes_of(self, approval: str | None, to: int) -> list[int]:
        """The entries up to `to` that changed an approval, or any approval (None)."""
        with self._lock:
            found = self._state.facts.approvals
            chosen = found.values() if approval is None else [found.get(approval, [])]
            return sorted(change.seq for changes in chosen for change in changes if change.seq <= to)

    def agreement(self, agreement: str, to: int) -> AgreementChange | None:
        """As `Facts.agreement`."""
        with self._lock:
            return self._state.facts.agreement(agreement, to)

    def agreement_ids(self, to: int) -> list[str]:
        """The ids of all agreements at entry `to`, in the order in which they came."""
        with self._lock:
            found = self._state.facts
            return [name for name in found.agreements if found.agreement(name, to) is not None]

    def agreed_runs(self, agreement: str) -> int:
        """The number of runs that had a key on the ground of an agreement."""
        with self._lock:
            return self._state.facts.agreed_runs.get(agreement, 0)

    def privacy_steps(self, agreement: str) -> int:
        """The steps that are used or reserved of the privacy budget of an agreement."""
        with self._lock:
            return self._state.facts.privacy_steps.get(agreement, 0)

    def reserved(self, grant: str) -> tuple[str, int] | None:
        """The reservation of a grant that is not settled yet: agreement and steps."""
        with self._lock:
            return self._state.facts.reserved.get(grant)

    def prunings(self, to: int) -> list[int]:
        """The entries up to `to` that record a pruning of evidence."""
        with self._lock:
            return [seq for seq in self._state.facts.prunings if seq <= to]

    def versions(self, name: str, to: int) -> list[KeyVersion]:
        """As `Facts.versions`."""
        with self._lock:
            return self._state.facts.versions(name, to)

    def key_names(self, to: int) -> list[str]:
        """The names of all keys and secrets at entry `to`."""
        with self._lock:
            return sorted(name for name in self._state.facts.keys if self._state.facts.versions(name, to))

    def data_key(self, to: int) -> int:
        """As `Facts.data_key`."""
        with self._lock:
            return self._state.facts.data_key(to)

    def changed_at(self, to: int) -> int:
        """As `Facts.changed_at`."""
        with self._lock:
            return self._state.facts.changed_at(to)

    def used(self, approval: str, run: str, at_ms: int, *, counted: bool) -> tuple[int, int, Lease | None]:
        """The number of runs that had an approval's key, the number of active leases, and this run's lease."""
        with self._lock:
            facts = self._state.facts
            own = facts.lease(approval, run, at_ms)
            return (facts.runs.get(approval, 0), facts.active(approval, at_ms), own) if counted else (0, 0, own)

    def lease(self, approval: str, run: str, at_ms: int) -> Lease | None:
        """As `Facts.lease`."""
        with self._lock:
            return self._state.facts.lease(approval, run, at_ms)

    def folder(self, folder: str) -> StoredFolder | None:
        """The newest root of a pinned folder."""
        with self._lock:
            return self._state.facts.folders.get(folder)

    def folders(self) -> dict[str, StoredFolder]:
        """The newest root of each pinned folder, by its id."""
        with self._lock:
            return dict(self._state.facts.folders)

    def candidates(self, own: Sequence[Entry] = ()) -> list[Candidate]:
        """The programs that wait once these further entries are written, the latest request first."""
        with self._lock:
            found = Facts(waiting=dict(self._state.facts.waiting), is_whole=False)
        for entry in own:
            found.note(entry)
        return found.candidates()

    # --- written down, so that the next process need not read it all ------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The verified state as JSON data. The caller authenticates it."""
        with self._lock:
            state = self._state
            return {
                "form": FORM,
                "seq": state.head.seq,
                "hash": state.head.hash.hex(),
                "anchors": state.anchors.hex(),
                "facts": state.facts.to_dict(),
            }

    def resume(self, document: Mapping[str, Any]) -> None:
        """Continue from the data of `to_dict`. Another format version is ignored, and the whole record is read."""
        if document.get("form") != FORM:
            return
        state = _State(self._store_id)
        state.head = Head(document["seq"], bytes.fromhex(document["hash"]))
        state.anchors = bytearray.fromhex(document["anchors"])
        state.recent = deque([state.head.hash], RECENT)
        state.facts = Facts.from_dict(document["facts"])
        with self._lock:
            if state.head.seq > self._state.head.seq:
                self._state, self.kept_to = state, state.head.seq


def check_end(last: Head, head: Head) -> None:
    """Refuse a record whose last verified entry is not the head that the store names. Raises AuditError."""
    if last != head:
        raise AuditError(
            "the audit record does not end where the store says it ends",
            check="head of the audit record",
            expected=f"entry {head.seq} with the hash {head.hash.hex()}",
            seen=f"entry {last.seq} with the hash {last.hash.hex()}",
            remedy="entries were removed or altered: restore a backup, and compare with the checkpoints that clients"
            " hold",
        )
