"""Facts of the audit record: approvals, keys, leases, and programs that wait for the owner. Pure.

Others may be able to write to the database, but a change of the record is noticed. So the facts that decide a release
are read from verified entries and kept here. Rows of other tables count only where they agree with these facts.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right, insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from adyton.errors import AuditError, UsageError
from adyton.keystore.approval import REVOKED
from adyton.keystore.audit import canonical
from adyton.keystore.stored_folder import StoredFolder
from adyton.values import Measurement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from adyton.keystore.audit import Entry

POLICY: Final = "policy"
KEY_ADDED: Final = "key-added"
DATA_KEY_ROTATED: Final = "data-key-rotated"
MASTER_KEY_ROTATED: Final = "master-key-rotated"
RECORD_SIGNED: Final = "record-signed"
RELEASE: Final = "release"
DENIAL: Final = "denial"
EXPLANATION: Final = "explanation"
DISMISSED: Final = "candidate-dismissed"
PRUNED: Final = "evidence-pruned"
AGREEMENT: Final = "agreement"
PRIVACY_SETTLED: Final = "privacy-settled"
USED: Final = "used"
FOLDER_ROOT: Final = "folder-root"
RECEIPT: Final = "receipt"
"""Kinds of entries, one for each event."""

AWAITED: Final = "awaited"
"""The state of a grant that was not acknowledged yet. An acknowledged one is USED."""

WAITS: Final = "waits"
"""The member of a refusal or explanation that names the program that waits for the owner from then on."""

MAX_CANDIDATES: Final = 200
"""Most programs that wait for the owner. Beyond that the program with the oldest request is dropped."""

AGREEMENT_SIGNED: Final = "signed"
AGREEMENT_COMPLETE: Final = "complete"
AGREEMENT_REVOKED: Final = "revoked"
"""The states of an agreement: the owner signed it; the signatures of all parties are here; the owner ended it."""

AGREEMENT_STATES: Final = (AGREEMENT_SIGNED, AGREEMENT_COMPLETE, AGREEMENT_REVOKED)

_SUBJECTS: Final[Mapping[str, str]] = {
    POLICY: "approval",
    AGREEMENT: "agreement",
    PRIVACY_SETTLED: "grant",
    KEY_ADDED: "key",
    RELEASE: "grant",
    DENIAL: "denial",
    EXPLANATION: "denial",
    USED: "grant",
    RECEIPT: "grant",
    "key-exported": "key",
    "backup": "backup",
}
_LEASES_KEPT: Final = 10_000


def waiting(measurement: Measurement, tee: str, key: str) -> dict[str, str]:
    """The member `WAITS` of an entry, for a program that waits from then on."""
    return {"measurement": measurement.hex(), "tee": tee, "key": key}


def subject_of(kind: str, body: str) -> str | None:
    """The id by which an entry is looked up, from its own text. None for kinds without one."""
    name = _SUBJECTS.get(kind)
    if name is None:
        return None
    try:
        return str(json.loads(body)[name])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""  # no entry of this kind is like that


@dataclass(frozen=True, slots=True)
class ApprovalRevision:
    """One revision of an approval: its number, state and content."""

    number: int
    state: str
    document_sha256: bytes

    @classmethod
    def create(cls, number: int, state: str, document: str) -> ApprovalRevision:
        """Make one from the number, the state and the canonical JSON text of an approval."""
        return cls(number, state, hashlib.sha256(document.encode()).digest())

    def __str__(self) -> str:
        return f"revision {self.number}, {self.state}, SHA-256 of its text {self.document_sha256.hex()[:16]}…"


class ApprovalChange(NamedTuple):
    """A change of an approval: number of its entry, time, and the new revision."""

    seq: int
    at_ms: int
    revision: ApprovalRevision


class AgreementChange(NamedTuple):
    """A change of an agreement: number of its entry, time, the new state, and the agreement's canonical text."""

    seq: int
    at_ms: int
    state: str
    document: str


class KeyVersion(NamedTuple):
    """A version of a key or secret: number of its entry, version number, kind, and time."""

    seq: int
    version: int
    kind: str
    at_ms: int


class Lease(NamedTuple):
    """A run's lease: its end and its id."""

    until_ms: int
    release: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A program on a genuine platform that asked for a key without an approval."""

    measurement: Measurement
    tee: str
    key: str
    first_at_ms: int
    last_at_ms: int
    requests: int
    denial: str


@dataclass(slots=True)
class Facts:
    """The facts of a range of the record. The argument `to` of a query is the last entry that counts."""

    changes: list[int] = field(default_factory=list)
    """Numbers of the entries that changed keys or approvals or removed evidence."""
    approvals: dict[str, list[ApprovalChange]] = field(default_factory=dict)
    keys: dict[str, list[KeyVersion]] = field(default_factory=dict)
    data_keys: list[tuple[int, int]] = field(default_factory=list)
    prunings: list[int] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)
    """By approval: the number of runs that had its key."""
    agreements: dict[str, list[AgreementChange]] = field(default_factory=dict)
    agreed_runs: dict[str, int] = field(default_factory=dict)
    """By agreement: the number of runs that had a key on its ground."""
    privacy_steps: dict[str, int] = field(default_factory=dict)
    """By agreement: the steps of its mechanism (`agreement.budget`) that are used, or reserved for runs."""
    reserved: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By grant: agreement and steps of a reservation that no run has settled yet."""
    leases: dict[str, dict[str, Lease]] = field(default_factory=dict)
    """By approval and run: leases, also ended ones."""
    ends: dict[str, list[int]] = field(default_factory=dict)
    """By approval: the sorted ends of its leases, so that active ones are counted by bisection."""
    waiting: dict[tuple[bytes, str, str], Candidate] = field(default_factory=dict)
    """By measurement, platform and key, ordered by the time of the last request."""
    folders: dict[str, StoredFolder] = field(default_factory=dict)
    """By id: the newest root of each pinned folder."""
    leases_kept: int = 0
    forget_above: int = _LEASES_KEPT
    is_whole: bool = True
    """Whether the range begins with the record. Then each revision and version must follow the one before it."""

    def note(self, entry: Entry) -> None:
        """Add the next verified entry. Raises AuditError where its text does not fit its kind."""
        reader = _READERS.get(entry.kind)
        if reader is None:
            return
        try:
            reader(self, entry, json.loads(entry.body))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, UsageError):
            raise AuditError(
                f"audit entry {entry.seq} does not say what an entry of its kind says",
                check=f"body of audit entry {entry.seq}",
                expected=f"a {entry.kind} as Adyton records it",
                seen=entry.body[:80],
                remedy="the record was altered: adyton audit verify, and restore a backup",
            ) from None

    def newest_change(self, approval: str, to: int) -> ApprovalChange | None:
        """The last change of an approval up to entry `to`, or None."""
        found = self.approvals.get(approval, ())
        return next((change for change in reversed(found) if change.seq <= to), None)

    def newest_changes(self, to: int) -> dict[str, ApprovalChange]:
        """The last change of every approval up to entry `to`."""
        found = {approval: self.newest_change(approval, to) for approval in self.approvals}
        return {approval: change for approval, change in found.items() if change is not None}

    def agreement(self, agreement: str, to: int) -> AgreementChange | None:
        """The last change of an agreement up to entry `to`, or None."""
        found = self.agreements.get(agreement, ())
        return next((change for change in reversed(found) if change.seq <= to), None)

    def versions(self, name: str, to: int) -> list[KeyVersion]:
        """The versions of a key up to entry `to`, the oldest first."""
        return [version for version in self.keys.get(name, ()) if version.seq <= to]

    def data_key(self, to: int) -> int:
        """The version of the data key that wrapped all keys at entry `to`."""
        return next((version for seq, version in reversed(self.data_keys) if seq <= to), 1)

    def changed_at(self, to: int) -> int:
        """The last entry up to `to` that changed a key or an approval. 0 where there is none."""
        after = bisect_right(self.changes, to)
        return self.changes[after - 1] if after else 0

    def lease(self, approval: str, run: str, at_ms: int) -> Lease | None:
        """A run's lease, if it still lasts."""
        found = self.leases.get(approval, {}).get(run)
        return found if found is not None and found.until_ms > at_ms else None

    def active(self, approval: str, at_ms: int) -> int:
        """The number of active leases."""
        ends = self.ends.get(approval, [])
        return len(ends) - bisect_right(ends, at_ms)

    def candidates(self) -> list[Candidate]:
        """The programs that wait, the latest request first."""
        return sorted(self.waiting.values(), key=lambda item: item.last_at_ms, reverse=True)

    def to_dict(self) -> dict[str, Any]:
        """All facts as JSON data."""
        return {
            "changes": self.changes,
            "approvals": {
                name: [(seq, at_ms, item.number, item.state, item.document_sha256.hex()) for seq, at_ms, item in found]
                for name, found in self.approvals.items()
            },
            "keys": self.keys,
            "data_keys": self.data_keys,
            "prunings": self.prunings,
            "runs": self.runs,
            "agreements": self.agreements,
            "agreed_runs": self.agreed_runs,
            "privacy_steps": self.privacy_steps,
            "reserved": self.reserved,
            "leases": self.leases,
            "waiting": [
                (
                    item.measurement.hex(),
                    item.tee,
                    item.key,
                    item.first_at_ms,
                    item.last_at_ms,
                    item.requests,
                    item.denial,
                )
                for item in self.waiting.values()
            ],
            "folders": [item.to_dict() for item in self.folders.values()],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Facts:
        """Parse the data of `to_dict`. The caller has authenticated it."""
        found = cls(
            changes=list(document["changes"]),
            data_keys=[(seq, version) for seq, version in document["data_keys"]],
            prunings=list(document["prunings"]),
            runs=dict(document["runs"]),
            agreed_runs=dict(document["agreed_runs"]),
            privacy_steps=dict(document["privacy_steps"]),
            reserved={grant: (agreement, steps) for grant, (agreement, steps) in document["reserved"].items()},
        )
        found.agreements = {
            name: [AgreementChange(*item) for item in items] for name, items in document["agreements"].items()
        }
        for name, changes in document["approvals"].items():
            found.approvals[name] = [
                ApprovalChange(seq, at_ms, ApprovalRevision(number, state, bytes.fromhex(sha256)))
                for seq, at_ms, number, state, sha256 in changes
            ]
        found.keys = {name: [KeyVersion(*item) for item in items] for name, items in document["keys"].items()}
        found.leases = {
            name: {run: Lease(*lease) for run, lease in leases.items()} for name, leases in document["leases"].items()
        }
        found._count_leases()
        for measurement, tee, key, first, last, requests, denial in document["waiting"]:
            item = Candidate(Measurement.from_hex(measurement), tee, key, first, last, requests, denial)
            found.waiting[item.measurement.raw, tee, key] = item
        # facts that were stored before there were pinned folders have no list of them
        folders = [StoredFolder.from_dict(item) for item in document.get("folders", ())]
        found.folders = {item.folder: item for item in folders}
        return found

    def _must_follow(self, before: int, number: int) -> None:
        if self.is_whole and number != before + 1:
            raise ValueError(f"{number} does not follow {before}")

    # --- one kind of entry each -------------------------------------------------------------------------------------

    def _policy(self, entry: Entry, body: Mapping[str, Any]) -> None:
        policy = body["policy"]
        revision = ApprovalRevision.create(body["revision"], body["state"], canonical(policy))
        changes = self.approvals.setdefault(str(body["approval"]), [])
        before = changes[-1].revision if changes else None
        self._must_follow(0 if before is None else before.number, revision.number)
        if before is not None and before.state == REVOKED and revision.state != REVOKED:
            raise ValueError("what was revoked stays so")
        changes.append(ApprovalChange(entry.seq, entry.at_ms, revision))
        self.changes.append(entry.seq)
        if revision.number == 1 and "measurement" in policy:
            self._forget(policy["measurement"], policy["key"])

    def _key_added(self, entry: Entry, body: Mapping[str, Any]) -> None:
        version = KeyVersion(entry.seq, int(body["version"]), str(body["kind"]), entry.at_ms)
        versions = self.keys.setdefault(str(body["key"]), [])
        self._must_follow(versions[-1].version if versions else 0, version.version)
        versions.append(version)
        self.changes.append(entry.seq)

    def _data_key_rotated(self, entry: Entry, body: Mapping[str, Any]) -> None:
        self._must_follow(self.data_keys[-1][1] if self.data_keys else 1, int(body["version"]))
        self.data_keys.append((entry.seq, int(body["version"])))
        self.changes.append(entry.seq)

    def _pruned(self, entry: Entry, _body: Mapping[str, Any]) -> None:
        self.prunings.append(entry.seq)
        self.changes.append(entry.seq)

    def _agreement(self, entry: Entry, body: Mapping[str, Any]) -> None:
        state, document = str(body["state"]), canonical(body["document"])
        changes = self.agreements.setdefault(str(body["agreement"]), [])
        before = changes[-1] if changes else None
        if state not in AGREEMENT_STATES or (before is not None and before.document != document):
            raise ValueError("no state of an agreement, or another agreement")
        if before is not None and before.state == AGREEMENT_REVOKED:
            raise ValueError("what was revoked stays so")
        changes.append(AgreementChange(entry.seq, entry.at_ms, state, document))
        self.changes.append(entry.seq)

    def _release(self, entry: Entry, body: Mapping[str, Any]) -> None:
        run = str(body["run"])
        for agreement in {
            str(item["agreement"]) for item in body["keys"] if "agreement" in item and not item["renewed"]
        }:
            self.agreed_runs[agreement] = self.agreed_runs.get(agreement, 0) + 1
        for item in body["keys"]:
            if "privacy_steps" in item and not item["renewed"]:
                reserved = str(item["agreement"]), int(item["privacy_steps"])
                self.reserved[str(body["grant"])] = reserved
                self._use(*reserved)
        for item in body["keys"]:
            approval = str(item["approval"])
            held = self.leases.setdefault(approval, {})
            before = held.get(run)
            if before is not None and before.until_ms > entry.at_ms:
                continue
            self.leases_kept += before is None
            held[run] = lease = Lease(int(item["lease_until_ms"]), str(item["release"]))
            insort(self.ends.setdefault(approval, []), lease.until_ms)
            if not item["renewed"]:
                self.runs[approval] = self.runs.get(approval, 0) + 1
        if self.leases_kept > self.forget_above:
            self._forget_leases(entry.at_ms)

    def _use(self, agreement: str, steps: int) -> None:
        self.privacy_steps[agreement] = self.privacy_steps.get(agreement, 0) + steps

    def _privacy_settled(self, _entry: Entry, body: Mapping[str, Any]) -> None:
        """What a run used, in the place of what was reserved for it."""
        reserved = str(body["agreement"]), int(body["reserved"])
        there = self.reserved.pop(str(body["grant"]), None)
        if self.is_whole and there != reserved:
            raise ValueError("another reservation, or none")
        self._use(reserved[0], int(body["used"]) - reserved[1])

    def _forget_leases(self, at_ms: int) -> None:
        self.leases = {
            approval: {run: lease for run, lease in held.items() if lease.until_ms > at_ms}
            for approval, held in self.leases.items()
        }
        self._count_leases()

    def _count_leases(self) -> None:
        self.ends = {
            approval: sorted(lease.until_ms for lease in held.values()) for approval, held in self.leases.items()
        }
        self.leases_kept = sum(map(len, self.leases.values()))
        self.forget_above = 2 * self.leases_kept + _LEASES_KEPT

    def _waits(self, entry: Entry, body: Mapping[str, Any]) -> None:
        waits = body.get(WAITS)
        if waits is None:
            return
        measurement, tee, key = Measurement.from_hex(waits["measurement"]), str(waits["tee"]), str(waits["key"])
        before = self.waiting.pop((measurement.raw, tee, key), None)
        first, requests = (entry.at_ms, 0) if before is None else (before.first_at_ms, before.requests)
        if len(self.waiting) >= MAX_CANDIDATES:
            del self.waiting[next(iter(self.waiting))]
        item = Candidate(measurement, tee, key, first, entry.at_ms, requests + 1, str(body["denial"]))
        self.waiting[measurement.raw, tee, key] = item

    def _folder_root(self, _entry: Entry, body: Mapping[str, Any]) -> None:
        found = StoredFolder.from_dict(body)
        before = self.folders.get(found.folder)
        if before is not None and not found.may_follow(before):
            raise ValueError("a root does not go back")
        self.folders[found.folder] = found

    def _dismissed(self, _entry: Entry, body: Mapping[str, Any]) -> None:
        self._forget(body["measurement"], body["key"])

    def _forget(self, measurement: str, key: str) -> None:
        raw = Measurement.from_hex(measurement).raw
        for known in [item for item in self.waiting if (item[0], item[2]) == (raw, key)]:
            del self.waiting[known]


_READERS: Final[Mapping[str, Callable[[Facts, Entry, Mapping[str, Any]], None]]] = {
    POLICY: Facts._policy,
    KEY_ADDED: Facts._key_added,
    DATA_KEY_ROTATED: Facts._data_key_rotated,
    PRUNED: Facts._pruned,
    AGREEMENT: Facts._agreement,
    PRIVACY_SETTLED: Facts._privacy_settled,
    RELEASE: Facts._release,
    DENIAL: Facts._waits,
    EXPLANATION: Facts._waits,
    DISMISSED: Facts._dismissed,
    FOLDER_ROOT: Facts._folder_root,
}


def facts_of(entries: Iterable[Entry], before: Facts | None = None) -> Facts:
    """The facts after these entries, starting from `before`."""
    found = Facts() if before is None else before
    for entry in entries:
        found.note(entry)
    return found
