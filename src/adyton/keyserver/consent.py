"""The consent of the owner: what an approval exposes is shown to her, and she must accept each exposure by name.

Command line and dashboard approve only through `propose` or `alter`. Both find the exposures of the approved program,
from its manifest where the store has it. Both refuse an exposure that she did not name. The findings and the named ones
are part of the approval, and so of its entry in the audit record.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from adyton.errors import UsageError
from adyton.keyserver.agreement_lines import PARTIES_LINE, Ground, agreement_lines
from adyton.keystore.approval import APPROVED, RA_TLS, REVOKED
from adyton.manifest.findings import Finding, by_danger, finding, finding_named, findings, not_covered, pinned_keys
from adyton.manifest.model import parse_manifest
from adyton.manifest.pinned_ca import MAX_CA_CHARS, ca_sha256, ca_within
from adyton.manifest.signed import decode, read_capped
from adyton.manifest.sigstruct import MAX_PEM_BYTES, load_signer, mrsigner_of
from adyton.values import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adyton.keystore.approval import Approval, StoredApproval
    from adyton.keystore.home import Home
    from adyton.keystore.reader import Reader
    from adyton.keystore.transaction import Transaction
    from adyton.manifest.model import Manifest

REVIEWED: Final = ("findings", "allowed", "not_covered")
"""Entries of an approval that only this module writes."""

MAX_FINDINGS: Final = 256
MAX_NAMED_IN_A_REFUSAL: Final = 20


@dataclass(frozen=True, slots=True)
class Mine:
    """The identity of an owner: the SHA-256 of her CA (DER, hex digits), and her signer if she has one."""

    ca_sha256: str
    mrsigner: Digest | None


def mine(home: Home) -> Mine:
    """The CA and the signer of this home. Raises ManifestError or UsageError where one is invalid."""
    ca = ca_within(read_capped(home.ca_path, MAX_CA_CHARS, "CA certificate").decode("ascii", "replace"), "ca.crt")
    signer = home.signer_path
    pem = read_capped(signer, MAX_PEM_BYTES, "signing key") if signer.exists() else None
    return Mine(ca_sha256(ca), None if pem is None else mrsigner_of(load_signer(pem)))


def shown(
    view: Reader,
    approval: Approval,
    owner: Mine,
    manifest: Manifest | None = None,
    further: Iterable[Finding] = (),
    *,
    stood: bool = False,
) -> tuple[Finding, ...]:
    """All findings that the owner is shown before she approves, the most dangerous first.

    `manifest` is the manifest of this approval. Without it the store's is used, if there is one. Without both, the
    findings in the approval itself are shown. They replace a manifest only with `stood`: then the owner has approved
    them before. `further` are findings from other sources. Raises UsageError where there are too many to read: a
    finding must not be hidden among others.
    """
    known = manifest_of(view, approval) if manifest is None else manifest
    if known is not None:
        stored = view.keys()
        hers = {key.name for key in stored} | {approval.key}
        found = [*_pinning(known, approval.key, hers, owner), *findings(known)]
    else:
        found = [finding_named(name) for name in approval.findings]
        if not stood or not found:
            found.append(finding("manifest-unknown"))
    found.extend(further)
    if approval.measurement is None:
        found.append(finding("any-version"))
        if approval.mrsigner != owner.mrsigner:
            found.append(finding("foreign-signer", str(approval.mrsigner)))
    if approval.allow_debug:
        found.append(finding("debug"))
    if any(guest.host_acpi for guest in approval.guest_images):
        found.append(finding("host-acpi"))
    if RA_TLS in approval.protocols:
        found.append(finding("no-freshness"))
    every = by_danger({item.name: item for item in found}.values())
    if len(every) > MAX_FINDINGS:
        raise UsageError(
            "the manifest leaves more open than anybody can look at",
            check="findings of the manifest",
            expected=f"at most {MAX_FINDINGS}",
            seen=len(every),
            remedy="list folders instead of files in sgx.allowed_files, or better trust and encrypt them",
        )
    return every


def manifest_of(view: Reader, approval: Approval) -> Manifest | None:
    """The manifest of an approval's measurement, if the store has it."""
    if approval.measurement is None:
        return None
    behind = view.behind(approval.measurement)
    if behind is None:
        return None
    if approval.manifest_sha256 not in (None, _sha256(behind[0])):
        return None
    return parse_manifest(decode(behind[0]))


def propose(
    change: Transaction,
    approval: Approval,
    *,
    owner: Mine,
    named: Iterable[str],
    actor: str,
    state: str = APPROVED,
    manifest: Manifest | None = None,
    further: Iterable[Finding] = (),
) -> StoredApproval:
    """Review and store a new approval.

    Raises UsageError where it is to be valid and has an exposure that is not named.
    """
    check_agreement(change, approval, owner)
    approval = _as_in(manifest_of(change, approval) if manifest is None else manifest, approval)
    found = shown(change, approval.changed(findings=(), allowed=()), owner, manifest, further)
    return change.add_approval(_reviewed(approval, found, named, stands=state == APPROVED), actor=actor, state=state)


def alter(
    change: Transaction,
    approval_id: str,
    *,
    owner: Mine,
    named: Iterable[str],
    actor: str,
    state: str | None = None,
    approval: Approval | None = None,
) -> StoredApproval:
    """Change an approval's state or content. It is reviewed again, and its exposures must be named again.

    Earlier names still count where the approval was valid and the program stays the same. Raises UsageError where an
    exposure is not named.
    """
    before = change.approval(approval_id)
    after = before.approval if approval is None else approval
    wanted = before.state if state is None else state
    if wanted == REVOKED:
        return change.change_approval(approval_id, actor=actor, state=state, approval=approval)
    check_agreement(change, after, owner)
    known = manifest_of(change, after)
    after = _as_in(known, after)
    if _program(after) != _program(before.approval):
        after = after.changed(findings=(), allowed=(), not_covered=() if known is None else not_covered(known))
    elif known is not None:
        after = after.changed(not_covered=not_covered(known))
    stood = before.state == APPROVED
    found = shown(change, after, owner, stood=stood)
    kept = {item.name for item in found} & set(after.allowed if stood else ())
    agreed = _reviewed(after, found, {*kept, *named}, stands=wanted == APPROVED)
    return change.change_approval(approval_id, actor=actor, state=state, approval=agreed)


def check_agreement(view: Reader, approval: Approval, owner: Mine) -> None:
    """Refuse an approval whose agreement does not carry it: all its lines but those of a single run.

    Raises UsageError.
    """
    ground = Ground(view.agreement(approval.agreement)) if approval.agreement else Ground(None)
    lines = agreement_lines(approval, ground, frozenset(), Digest.from_hex(owner.ca_sha256), datetime.now(UTC))
    checks = [line for line in lines if line.name != PARTIES_LINE]
    if all(check.ok for check in checks):
        return
    failed = "; ".join(check.name for check in checks if not check.ok)
    raise UsageError(f"agreement {approval.agreement} does not carry this approval: {failed}", checks=checks)


def _pinning(manifest: Manifest, key: str, hers: set[str], owner: Mine) -> Iterable[Finding]:
    """Findings about the pinned CAs: her keys must pin her CA, and keys of other owners are shown."""
    pinned = pinned_keys(manifest)
    for name, ca in pinned.items():
        if ca is not None and ca != owner.ca_sha256:
            yield finding("foreign-ca" if name in hers else "other-owner", f"{name}@{ca}")
    if key not in pinned:
        yield finding("unused-key", key)


def _reviewed(approval: Approval, found: tuple[Finding, ...], named: Iterable[str], *, stands: bool) -> Approval:
    """The approval with the findings and the named ones in it."""
    names = {item.name: item for item in found}
    given = set(named)
    for name in sorted(given - set(names)):
        raise UsageError(
            f"{name[:200]!r} is not a finding of this program",
            check="names of the findings",
            expected=", ".join(names) or "none: nothing has to be named",
            seen=name[:200],
            remedy="take the names as they are shown",
        )
    exposing = [item for item in found if item.exposes_on(approval.tees)]
    missing = [item for item in exposing if item.name not in given]
    if stands and missing:
        some = missing[:MAX_NAMED_IN_A_REFUSAL]
        more = f"; and {len(missing) - len(some)} more" if len(missing) > len(some) else ""
        raise UsageError(
            "this approval would expose your data in a way that you did not name",
            check="findings that expose the data",
            expected="each of them named: --allow NAME on the command line, its box ticked on the dashboard",
            seen="; ".join(f"{item.name}: {item.what}" for item in some) + more,
            remedy=f"mend the manifest ({missing[0].remedy}), or, if you accept it: "
            + " ".join(f"--allow {shlex.quote(item.name)}" for item in some),
        )
    allowed = tuple(item.name for item in exposing if item.name in given) if stands else ()
    return approval.changed(findings=tuple(names), allowed=allowed)


def _as_in(manifest: Manifest | None, approval: Approval) -> Approval:
    """The approval with the manifest's setting for report data, if the manifest is known."""
    if manifest is None or approval.raw_report_data == manifest.adyton.raw_report_data:
        return approval
    return approval.changed(raw_report_data=manifest.adyton.raw_report_data)


def _program(approval: Approval) -> tuple[object, ...]:
    return (
        approval.measurement,
        approval.mrsigner,
        approval.isv_prod_id,
        approval.min_isv_svn,
        approval.manifest_sha256,
    )


def _sha256(raw: bytes) -> Digest:
    return Digest(hashlib.sha256(raw).digest())
