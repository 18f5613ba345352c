"""Approvals: show their history, change them, approve proposals, and try evidence against them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.collateral.lookup import Lookup
from adyton.collateral.store import CollateralStore
from adyton.collateral.verifier import Verifier
from adyton.errors import AppraisalFailed, Denied, UsageError
from adyton.keyserver.consent import REVIEWED, alter, mine, shown
from adyton.keyserver.dry_run import DryRun, dry_run
from adyton.keystore.approval import APPROVED, Approval
from adyton.keystore.approval_gaps import EXPECTED, GUEST_LINE, REMEDY, gaps
from adyton.keystore.home import actor
from adyton.manifest.model import MAX_MANIFEST_BYTES
from adyton.manifest.signed import read_capped
from adyton.values import Digest
from adyton.workflow.approve import show_findings
from adyton.workflow.owner import owner_store
from adyton.workflow.progress import unheard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from adyton.keystore.approval import StoredApproval
    from adyton.workflow.progress import Notice

MAX_EVIDENCE_BYTES: Final = 128 * 1024
BORNE_OUT: Final = frozenset({"tdx"})
"""Kinds of guests whose every part stands in a register of the evidence."""


@dataclass(frozen=True, slots=True)
class PolicyShown:
    """The present approvals, and on request every revision of them."""

    approvals: tuple[StoredApproval, ...]
    history: tuple[Mapping[str, Any], ...] | None

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton policy show --json`."""
        document: dict[str, Any] = {
            "approvals": [
                {
                    "id": item.id,
                    "state": item.state,
                    "revision": item.revision,
                    "gaps": [{"tee": tee, **gap.to_dict()} for tee, gap in gaps(item.approval)],
                    **item.approval.to_dict(),
                }
                for item in self.approvals
            ]
        }
        return document if self.history is None else document | {"history": list(self.history)}


def show_policy(key: str | None = None, *, history: bool = False, home: Path | None = None) -> PolicyShown:
    """Every approval, or those of one key, as `adyton policy show` does."""
    with owner_store(home) as (_, store), store.read() as view:
        return PolicyShown(tuple(view.approvals(key)), tuple(view.history()) if history else None)


def set_policy(
    approval: str, changes: Mapping[str, Any], *, allow: Sequence[str] = (), home: Path | None = None
) -> StoredApproval:
    """Change entries of an approval, as `adyton policy set` does.

    Its exposures after the change must be named in `allow`.

    Raises UsageError.
    """
    for name in REVIEWED:
        if name in changes:
            raise UsageError(
                f"{name} comes from the review, and cannot be set by hand",
                check="policy set",
                expected="an entry other than " + ", ".join(REVIEWED),
                seen=name,
                remedy="name what you accept: --allow FINDING",
            )
    with owner_store(home) as (found, store), store.write() as transaction:
        before = transaction.approval(approval)
        document = {**before.approval.to_dict(), **changes}
        changed = Approval.from_dict({name: value for name, value in document.items() if value is not None})
        _check_guests(before.approval, changed)
        return alter(transaction, approval, owner=mine(found), named=allow, actor=actor(), approval=changed)


def _check_guests(before: Approval, after: Approval) -> None:
    """Refuse guests that no register can bear out. What a launch digest covers is known by a document, not by a word.

    Whoever runs the machine would otherwise have an owner write it here.
    """
    stated = [guest for guest in after.guest_images if guest.kind not in BORNE_OUT and guest not in before.guest_images]
    if stated:
        raise UsageError(
            f"a guest of {stated[0].kind} cannot be set by hand",
            check=GUEST_LINE,
            expected=EXPECTED[stated[0].kind],
            seen=str(stated[0])[:160],
            remedy=REMEDY[stated[0].kind],
        )


def approve_pending(
    approval: str, *, allow: Sequence[str] = (), home: Path | None = None, notice: Notice = unheard
) -> StoredApproval:
    """Approve a proposal, as `adyton policy approve` does. `notice` is called first with its findings.

    Raises UsageError where a finding that exposes the data is not named in `allow`.
    """
    with owner_store(home) as (found, store), store.write() as transaction:
        owner, proposed = mine(found), transaction.approval(approval).approval
        show_findings(shown(transaction, proposed, owner), proposed.tees, notice)
        return alter(transaction, approval, owner=owner, named=allow, actor=actor(), state=APPROVED)


@dataclass(frozen=True, slots=True)
class Tried:
    """The result of a trial of evidence, for each key."""

    results: tuple[DryRun, ...]

    def require(self) -> None:
        """Raise Denied or AppraisalFailed where no key would be released."""
        if not self.results:
            raise Denied(
                "there is no key that anybody may have", check="approvals", expected="an approval", seen="none"
            )
        if not any(result.granted for result in self.results):
            first = next((line for result in self.results for judged in result.judged for line in judged.failed), None)
            raise AppraisalFailed(
                "this evidence would get no key",
                check=first.name if first else "approval",
                expected=first.to_dict()["expected"] if first else "an approval",
                seen=first.to_dict()["seen"] if first else "none",
                remedy=first.remedy if first else "adyton approve",
            )

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton policy test --json`."""
        return {"results": [result.to_dict() for result in self.results]}


def try_evidence(
    evidence: Path,
    *,
    key: str | None = None,
    protocol: str = "adyton",
    manifest: Path | None = None,
    collateral: Path | None = None,
    home: Path | None = None,
) -> Tried:
    """Try evidence against the policies, as `adyton policy test` does. Nothing is released and nothing recorded."""
    raw = read_capped(evidence, MAX_EVIDENCE_BYTES, "evidence")
    named = None if manifest is None else manifest_digest(manifest)
    with owner_store(home) as (found, store):
        verifier = Verifier(Lookup(CollateralStore(collateral or found.collateral_path)))
        results = dry_run(
            store,
            verifier.verify,
            raw,
            key=key,
            protocol=protocol,
            manifest_sha256=named,
            owner=Digest.from_hex(mine(found).ca_sha256),
        )
    return Tried(tuple(results))


def manifest_digest(path: Path) -> Digest:
    """SHA-256 of a final manifest, as an enclave names it."""
    return Digest(hashlib.sha256(read_capped(path, MAX_MANIFEST_BYTES, "manifest")).digest())
