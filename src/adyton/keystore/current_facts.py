"""The facts of the audit record for one reader or transaction: up to its first entry, plus its own entries.

All threads share the ledger, and it grows. So each query names the last entry that counts here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adyton.keystore.audit_facts import Facts

if TYPE_CHECKING:
    from adyton.keystore.audit import Entry
    from adyton.keystore.audit_facts import AgreementChange, ApprovalChange, Candidate, KeyVersion, Lease
    from adyton.keystore.ledger import Ledger
    from adyton.keystore.stored_folder import StoredFolder


@dataclass(frozen=True, slots=True)
class Usage:
    """The use of an approval's limits, for one run."""

    runs: int
    active: int
    own: Lease | None
    """This run's lease, if it still lasts."""


class RecordedFacts:
    """The facts of the record up to entry `to`, and of later entries added with `note`."""

    def __init__(self, ledger: Ledger, to: int) -> None:
        self._ledger = ledger
        self._to = to
        self._end = to
        self._added = Facts(is_whole=False)
        self._entries: list[Entry] = []

    def note(self, entry: Entry) -> None:
        """Add an entry that follows all others."""
        self._added.note(entry)
        self._entries.append(entry)
        self._end = entry.seq

    @property
    def has_changes(self) -> bool:
        """Whether an added entry changes a key or an approval or removes evidence."""
        return bool(self._added.changes)

    def changed_at(self) -> int:
        """The last entry up to `to` that changed a key or an approval. Added entries do not count."""
        return self._ledger.changed_at(self._to)

    def newest_change(self, approval: str) -> ApprovalChange | None:
        """The last change of an approval. None where there is none."""
        return self._added.newest_change(approval, self._end) or self._ledger.newest_change(approval, self._to)

    def newest_changes(self) -> dict[str, ApprovalChange]:
        """The last change of every approval."""
        return {**self._ledger.newest_changes(self._to), **self._added.newest_changes(self._end)}

    def changes_of(self, approval: str | None) -> list[int]:
        """The numbers of the entries that changed an approval, or any approval (None), in order."""
        added = self._added.approvals
        own = [change.seq for name in added if approval in (None, name) for change in added[name]]
        return self._ledger.changes_of(approval, self._to) + sorted(own)

    def agreement(self, agreement: str) -> AgreementChange | None:
        """The last change of an agreement. None where there is none."""
        return self._added.agreement(agreement, self._end) or self._ledger.agreement(agreement, self._to)

    def agreement_ids(self) -> list[str]:
        """The ids of all agreements, in the order in which they came."""
        return list(dict.fromkeys([*self._ledger.agreement_ids(self._to), *self._added.agreements]))

    def agreed_runs(self, agreement: str) -> int:
        """The number of runs that had a key on the ground of an agreement. As for `usage`, the newest count."""
        return self._ledger.agreed_runs(agreement) + self._added.agreed_runs.get(agreement, 0)

    def privacy_steps(self, agreement: str) -> int:
        """The steps that are used or reserved of the privacy budget of an agreement."""
        return self._ledger.privacy_steps(agreement) + self._added.privacy_steps.get(agreement, 0)

    def reserved(self, grant: str) -> tuple[str, int] | None:
        """The reservation of a grant that is not settled yet, as of the first entry of this transaction."""
        return self._ledger.reserved(grant)

    def key_names(self) -> list[str]:
        """The names of all keys and secrets, sorted."""
        return sorted({*self._ledger.key_names(self._to), *self._added.keys})

    def versions(self, name: str) -> list[KeyVersion]:
        """The versions of a key or secret, the oldest first. Empty for an unknown name."""
        return self._ledger.versions(name, self._to) + self._added.keys.get(name, [])

    def data_key(self) -> int:
        """The version of the data key that wraps all keys."""
        return self._added.data_keys[-1][1] if self._added.data_keys else self._ledger.data_key(self._to)

    def usage(self, approval: str, run: str, at_ms: int, *, counted: bool) -> Usage:
        """The use of an approval's limits (unless not `counted`), and this run's lease.

        The ledger counts everything that it has read, also beyond `to`, so a reader sees the newest releases.
        """
        runs, active, own = self._ledger.used(approval, run, at_ms, counted=counted)
        own = own or self._added.lease(approval, run, at_ms)
        if not counted:
            return Usage(0, 0, own)
        held = self._added.leases.get(approval, {}).items()
        lasting = [run for run, lease in held if lease.until_ms > at_ms]
        more = sum(self._ledger.lease(approval, run, at_ms) is None for run in lasting)
        return Usage(runs + self._added.runs.get(approval, 0), active + more, own)

    def folder(self, folder: str) -> StoredFolder | None:
        """The newest root of a pinned folder. A reader sees the newest, also beyond `to`."""
        return self._added.folders.get(folder) or self._ledger.folder(folder)

    def folders(self) -> list[StoredFolder]:
        """The newest root of every pinned folder, by its id."""
        return [item for _, item in sorted({**self._ledger.folders(), **self._added.folders}.items())]

    def candidates(self) -> list[Candidate]:
        """Programs that asked without an approval, the latest request first."""
        return self._ledger.candidates(self._entries)
