"""Approvals. Each row is authenticated, and must agree with the audit record."""

from __future__ import annotations

import hmac
import json
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from adyton.errors import AuditError, StoreError, UsageError
from adyton.keystore import schema
from adyton.keystore.approval import APPROVED, REVOKED, Approval, StoredApproval
from adyton.keystore.approval_gaps import check_sound
from adyton.keystore.audit import canonical
from adyton.keystore.audit_facts import POLICY, ApprovalRevision
from adyton.keystore.clock import moment, now_ms
from adyton.keystore.database import LOOK_FOR_WRITER
from adyton.keystore.names import new_id

if TYPE_CHECKING:
    from adyton.keystore.keyring import Keyring
    from adyton.keystore.tables.keys import KeyWriter
    from adyton.keystore.tables.record import RecordReader, RecordWriter
    from adyton.keystore.transaction_cache import Cache


class ApprovalReader:
    """The approvals as of one moment."""

    def __init__(self, connection: sa.Connection, keyring: Keyring, record: RecordReader) -> None:
        self._connection = connection
        self._keyring = keyring
        self._reader = record
        self._facts = record.facts

    def newest(self, key: str | None = None) -> list[StoredApproval]:
        """All approvals, or those of one key, newest change first.

        Each is authenticated and agrees with the audit record. Raises StoreError otherwise, also where one is missing.
        """
        rows = {row.id: row for row in self._connection.execute(sa.select(schema.approvals)).all()}
        recorded = self._facts.newest_changes()
        for approval_id in sorted(recorded.keys() - rows.keys()):
            raise self._not_as_recorded(approval_id, None, recorded[approval_id].revision)
        found = [self._stored(row) for row in rows.values()]
        found.sort(key=lambda item: recorded[item.id].seq, reverse=True)
        return [item for item in found if key in (None, item.approval.key)]

    def get(self, approval_id: str) -> StoredApproval:
        """One approval by its id. Raises UsageError where there is none."""
        row = self._connection.execute(
            sa.select(schema.approvals).where(schema.approvals.c.id == approval_id)
        ).one_or_none()
        if row is not None:
            return self._stored(row)
        recorded = self._facts.newest_change(approval_id)
        if recorded is not None:
            raise self._not_as_recorded(approval_id, None, recorded.revision)
        raise UsageError(
            f"no approval {approval_id[:40]!r}",
            check="approval id",
            expected="an id that adyton policy show lists",
            seen=approval_id[:40],
        )

    def _stored(self, row: Any) -> StoredApproval:
        self._authenticate(row)
        there = ApprovalRevision.create(row.revision, row.state, row.document)
        recorded = self._facts.newest_change(row.id)
        if recorded is None or there != recorded.revision:
            raise self._not_as_recorded(row.id, there, None if recorded is None else recorded.revision)
        approval = Approval.from_dict(json.loads(row.document))
        if approval.key != row.key:
            raise StoreError(
                f"approval {row.id} is filed under another key",
                check=f"key of approval {row.id}",
                expected=approval.key,
                seen=repr(row.key)[:80],
                remedy=LOOK_FOR_WRITER,
            )
        return StoredApproval(row.id, row.state, row.revision, approval, moment(recorded.at_ms))

    def _authenticate(self, row: Any) -> None:
        mac = self._keyring.policy_mac(row.id, row.state, row.revision, row.document)
        if not hmac.compare_digest(mac, bytes(row.mac)):
            raise StoreError(
                f"approval {row.id} was changed by something other than Adyton",
                check=f"authentication code of approval {row.id}",
                expected="the code made under the store's own key",
                seen="another code",
                remedy="nothing is released on it: restore the newest backup (adyton restore), and look for who wrote"
                " to the database",
            )

    @staticmethod
    def _not_as_recorded(
        approval_id: str, there: ApprovalRevision | None, recorded: ApprovalRevision | None
    ) -> StoreError:
        what = "an older one was put back" if there is not None else "it was removed"
        return StoreError(
            f"approval {approval_id} is not as it was left: {what}",
            check=f"newest revision of approval {approval_id}",
            expected=f"what the audit record says: {recorded or 'no such approval'}",
            seen=there or "no such approval",
            remedy=LOOK_FOR_WRITER,
        )

    def revision(self, approval_id: str, revision: int) -> Approval | None:
        """An approval at one of its revisions, by the audit record."""
        return next(
            (
                Approval.from_dict(item["policy"])
                for item in self.history(approval_id)
                if (item["approval"], item["revision"]) == (approval_id, revision)
            ),
            None,
        )

    def history(self, approval_id: str | None = None) -> list[dict[str, Any]]:
        """Every revision of all approvals (or of one) by the audit record: author, time and content."""
        entries = [self._reader.whole(seq) for seq in self._facts.changes_of(approval_id)]
        found = [(entry.at_ms, json.loads(entry.body)) for entry in entries]
        return [
            {
                "approval": body["approval"],
                "revision": body["revision"],
                "state": body["state"],
                "actor": body["actor"],
                "at_ms": at_ms,
                "policy": body["policy"],
            }
            for at_ms, body in found
        ]

    def hold_against_record(self) -> None:
        """Compare every approval with the record. Raises AuditError."""
        rows = self._connection.execute(sa.select(schema.approvals)).all()
        there = {row.id: ApprovalRevision.create(row.revision, row.state, row.document) for row in rows}
        recorded = {approval: change.revision for approval, change in self._facts.newest_changes().items()}
        for approval_id in sorted(there.keys() | recorded.keys()):
            by_record, by_row = recorded.get(approval_id), there.get(approval_id)
            if by_record != by_row:
                raise AuditError(
                    f"approval {approval_id} is not what the audit record says",
                    check=f"approval {approval_id} against its newest entry",
                    expected=by_record or "no such approval",
                    seen=by_row or "no such approval",
                    remedy="something other than Adyton wrote to the database: restore the newest backup (adyton"
                    " restore); what was released since is in the record",
                )
        for row in rows:
            self._stored(row)


class ApprovalWriter(ApprovalReader):
    """The approvals while a transaction has the record's lock."""

    def __init__(
        self, connection: sa.Connection, keyring: Keyring, record: RecordWriter, keys: KeyWriter, cache: Cache
    ) -> None:
        super().__init__(connection, keyring, record)
        self._record = record
        self._keys = keys
        self._cache = cache

    def newest(self, key: str | None = None) -> list[StoredApproval]:
        """As for a reader, with a cache that lasts until a key or an approval changes."""
        if self._facts.has_changes:
            return super().newest(key)
        return self._cache.approvals(self._facts.changed_at(), super().newest).of(key)

    def add(self, approval: Approval, *, actor: str, state: str = APPROVED) -> StoredApproval:
        """Store a new approval. Raises UnknownKey where its key does not exist, UsageError where it has a gap."""
        check_sound(approval)
        if not self._keys.has(approval.key):
            self._keys.reveal(approval.key)
        approval_id = new_id("a")
        document = canonical(approval.to_dict())
        at = now_ms()
        self._connection.execute(
            sa.insert(schema.approvals).values(
                id=approval_id,
                key=approval.key,
                state=state,
                revision=1,
                document=document,
                changed_at=at,
                mac=self._keyring.policy_mac(approval_id, state, 1, document),
            )
        )
        self._note_change(approval_id, 1, state, approval, actor, at)
        return StoredApproval(approval_id, state, 1, approval, moment(at))

    def change(
        self, approval_id: str, *, actor: str, state: str | None = None, approval: Approval | None = None
    ) -> StoredApproval:
        """Change an approval's state or content. The old revision stays in the history.

        An approval with a gap (`keystore.approval_gaps`) can only be revoked.
        """
        before = self.get(approval_id)
        after = before.approval if approval is None else approval
        if after.key != before.approval.key:
            raise UsageError(
                "an approval stays with its key", check="key", expected=before.approval.key, seen=after.key
            )
        new_state = before.state if state is None else state
        if before.state == REVOKED and new_state != REVOKED:
            raise UsageError(
                f"approval {approval_id} was revoked and stays so",
                check="state of the approval",
                expected="pending or approved",
                seen=REVOKED,
                remedy="make a new one with adyton approve",
            )
        if new_state != REVOKED:
            check_sound(after)
        revision = before.revision + 1
        document = canonical(after.to_dict())
        at = now_ms()
        self._connection.execute(
            sa.update(schema.approvals)
            .where(schema.approvals.c.id == approval_id)
            .values(
                state=new_state,
                revision=revision,
                document=document,
                changed_at=at,
                mac=self._keyring.policy_mac(approval_id, new_state, revision, document),
            )
        )
        self._note_change(approval_id, revision, new_state, after, actor, at)
        return StoredApproval(approval_id, new_state, revision, after, moment(at))

    def _note_change(
        self, approval_id: str, revision: int, state: str, approval: Approval, actor: str, at: int
    ) -> None:
        body = {
            "approval": approval_id,
            "revision": revision,
            "state": state,
            "policy": approval.to_dict(),
            "actor": actor[:128],
        }
        self._record.append(POLICY, approval_id, body, at)
