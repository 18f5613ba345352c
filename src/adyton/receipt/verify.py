"""Verify a receipt: every step by itself, offline, at the time that an owner's key server signed it.

The steps: the run's signature; the listings; each owner's counter-signature; the first evidence, which binds the run's
key; the evidence at the end, which binds the statement. A step that does not hold ends it, with its name.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeAlias

from adyton.attest.appraise import Policy
from adyton.attest.assess import assess
from adyton.attest.collateral import AMDCollateral, Collateral, NoCollateral, collateral_from_dict
from adyton.attest.complete import with_event_log
from adyton.attest.devices import NO_DEVICES
from adyton.attest.evidence import parse_evidence
from adyton.attest.report import carries_workload
from adyton.attest.report_data import receipt_report_data
from adyton.attest.sgx import SGXQuote
from adyton.attest.snp import SNPReport
from adyton.attest.status import NEVER_ACCEPTED, TCBStatus
from adyton.check import Check
from adyton.errors import AppraisalFailed, EvidenceError, KeyReleaseError, Mismatch
from adyton.manifest.findings import pinned_keys
from adyton.manifest.measure import workload_measurement
from adyton.manifest.model import parse_manifest
from adyton.receipt.counter import verify_counter_signature
from adyton.receipt.statement import parse_inputs, parse_outputs, parse_statement, subjects_of
from adyton.release.messages import ServerIdentity, parse_release_request
from adyton.untrusted import parse_json_object
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from adyton.attest.assess import Assessment
    from adyton.attest.evidence import Evidence
    from adyton.attest.report import VerifiedReport
    from adyton.attest.roots import TrustRoots
    from adyton.receipt.counter import Vouched
    from adyton.receipt.document import Receipt
    from adyton.receipt.statement import Input, MountFiles, Output, OwnerGrant, Statement
    from adyton.release.messages import ReleaseRequest

AnyCollateral: TypeAlias = Collateral | AMDCollateral | NoCollateral
CollateralFor: TypeAlias = Callable[["Evidence", datetime], AnyCollateral]
"""The collateral of evidence for a time, where the receipt has none. Raises Unavailable."""

LOOKING: Final = Policy(statuses=frozenset(TCBStatus) - NEVER_ACCEPTED, any_program=True)
"""Without a policy: genuine evidence of any program, with any TCB status that is not revoked."""

_SAME_MACHINE: Final = ("ppid", "chip_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A receipt whose every step holds."""

    statement: Statement
    vouched: tuple[Vouched, ...]
    """What each owner's key server says, in the order of the owners."""
    end: Assessment
    """The verdict on the evidence at the end."""
    inputs: tuple[tuple[MountFiles, tuple[Input, ...]], ...]
    outputs: tuple[tuple[MountFiles, tuple[Output, ...]], ...]
    checks: tuple[Check, ...]
    not_vouched: tuple[str, ...]
    """The owners whose counter-signature is missing."""

    @property
    def made_after(self) -> datetime | None:
        """The earliest time of a grant. No owner can move it past what another one says. None where nobody signed."""
        return min((each.granted_at for each in self.vouched), default=None)

    @property
    def made_before(self) -> datetime | None:
        """The latest time of a counter-signature, as `made_after`."""
        return max((each.signed_at for each in self.vouched), default=None)


def verify_receipt(
    receipt: Receipt,
    *,
    roots: TrustRoots,
    now: datetime,
    at: datetime | None = None,
    policy: Policy | None = None,
    collateral: CollateralFor | None = None,
    owners: Sequence[bytes] = (),
    without_counter_signature: bool = False,
) -> Verified:
    """Verify a receipt. Raises an EvidenceError that names the step, or Unavailable without collateral.

    Evidence is judged at the time that the owner's server granted and signed, or else `at`. `now` counts only where
    there is neither. `owners` are CAs (DER) that must be among those of the statement. `collateral` is asked where the
    receipt has none. Without `policy` only the platform is judged.
    """
    payload = receipt.envelope.payload
    statement = parse_statement(payload)
    receipt.envelope.signatures[0].check_run(statement.run_key, payload)
    done = [Check("signature of the run", "the run key of the statement", "verified", True)]
    if statement.tee == "sgx":
        raise _no_keeper()
    inputs, outputs = _listings(receipt, statement)
    done.append(Check("listings of inputs and outputs", "the SHA-256 in the statement", "the same", True))
    _check_owners(statement, owners)
    vouched = _counter_signatures(receipt, statement)
    missing = tuple(owner.name for owner in statement.owners if owner.name not in vouched)
    if (missing or not statement.owners) and not without_counter_signature:
        raise _not_counter_signed(missing)
    done.append(
        Check(
            "counter-signature", ", ".join(owner.name for owner in statement.owners), ", ".join(vouched) or "none", True
        )
    )
    rules = LOOKING if policy is None else policy
    last = max(vouched.values(), key=lambda each: each.signed_at, default=None)
    end = _end(
        receipt,
        statement,
        roots,
        rules,
        at or (last.signed_at if last else now),
        _held(receipt, last, end=True),
        collateral,
    )
    done.append(Check("evidence at the end", "genuine, over this statement", "verified", True))
    for owner, raw in zip(statement.owners, receipt.requests, strict=True):
        own = vouched.get(owner.name)
        when = at or (own.granted_at if own else now)
        first = _first(raw, statement, owner, roots, rules, when, _held(receipt, own, end=False), collateral)
        _check_same_machine(first, end)
        done.append(Check(f"evidence for {owner.name}", "genuine, over the run key", "verified", True))
    return Verified(
        statement=statement,
        vouched=tuple(vouched.values()),
        end=end,
        inputs=inputs,
        outputs=outputs,
        checks=tuple(done),
        not_vouched=missing,
    )


# --- the statement ----------------------------------------------------------------------------------------------


def _listings(
    receipt: Receipt, statement: Statement
) -> tuple[
    tuple[tuple[MountFiles, tuple[Input, ...]], ...],
    tuple[tuple[MountFiles, tuple[Output, ...]], ...],
]:
    inputs = tuple((mount, parse_inputs(_listing(receipt, mount))) for mount in statement.inputs)
    outputs = tuple((mount, parse_outputs(_listing(receipt, mount))) for mount in statement.outputs)
    for mount, listed in (*inputs, *outputs):
        if len(listed) != mount.files:
            raise _mismatch(f"number of files of {mount.source}", str(mount.files), str(len(listed)))
    named = {mount.listing for mount in (*statement.inputs, *statement.outputs)}
    if set(receipt.listings) != named:
        raise _mismatch("listings beside the statement", f"the {len(named)} that it names", "others")
    if subjects_of(outputs, statement.run_key) != statement.subjects:
        raise _mismatch("subjects of the statement", "the outputs in its listings", "others")
    return inputs, outputs


def _listing(receipt: Receipt, mount: MountFiles) -> bytes:
    found = receipt.listings.get(mount.listing)
    if found is None:
        raise _mismatch(f"listing of {mount.source}", mount.listing, "none with this SHA-256")
    return found


def _check_owners(statement: Statement, owners: Sequence[bytes]) -> None:
    names = [owner.name for owner in statement.owners]
    if len(set(names)) != len(names):
        raise _mismatch("owners of the statement", "each once", "one twice")
    there = {owner.ca_sha256 for owner in statement.owners}
    for der in owners:
        wanted = hashlib.sha256(der).hexdigest()
        if wanted not in there:
            raise _mismatch("owner of the receipt", f"the CA {wanted}", ", ".join(sorted(there)) or "none")


def check_guest(statement: Statement, *, is_judged: bool) -> None:
    """Refuse the word of a guest that nobody judged. It says which program ran, and a host can boot one of its own.

    An enclave's evidence names the program itself.
    """
    if is_judged or statement.tee == "sim":
        return
    raise AppraisalFailed(
        "nobody judged the guest that says which program ran",
        check="guest of the run",
        expected="a policy, or the counter-signatures of owners whom you name",
        seen="a genuine machine, and owners whom you did not name",
        remedy="give --policy, --ca or --manifest; adyton receipt show reads a receipt without judging it",
    )


def check_manifest(statement: Statement, manifest: bytes) -> None:
    """Check that a manifest is the one that ran, on the runtime that the statement names, with its owners' keys.

    The owners whose servers released keys must be those whom it pins. Else a guest that only claims to run the program
    could have its own key server sign. Raises Mismatch, and MalformedManifest.
    """
    digest = hashlib.sha256(manifest).hexdigest()
    if digest != statement.manifest_sha256:
        raise _mismatch("manifest", statement.manifest_sha256, digest)
    found = workload_measurement(manifest, Digest.from_hex(statement.runtime)).hex()
    if found != statement.measurement:
        raise _mismatch("workload measurement of manifest and runtime", statement.measurement, found)
    pinned = pinned_keys(parse_manifest(manifest.decode()))
    named = {name: owner.ca_sha256 for owner in statement.owners for name in owner.versions}
    if named != pinned:
        raise _mismatch("owners that the manifest pins", _owned(pinned), _owned(named))


def _owned(keys: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} of {ca}" for name, ca in sorted(keys.items())) or "no keys"


# --- counter-signatures --------------------------------------------------------------------------------------------


def _counter_signatures(receipt: Receipt, statement: Statement) -> dict[str, Vouched]:
    signed, signatures = receipt.counter_signatures, receipt.envelope.signatures[1:]
    if len(signed) != len(signatures):
        raise _mismatch("signatures of the envelope", f"{1 + len(signed)}", f"{1 + len(signatures)}")
    grants = {owner.name: owner for owner in statement.owners}
    found: dict[str, Vouched] = {}
    for each, signature in zip(signed, signatures, strict=True):
        grant = grants.get(each.owner)
        if grant is None or each.owner in found:
            raise _mismatch(
                "owner of the counter-signature", "each owner of the statement at most once", each.owner[:80]
            )
        found[each.owner] = verify_counter_signature(each, signature, statement, grant, receipt.envelope.payload)
    return found


def _not_counter_signed(missing: Sequence[str]) -> Mismatch:
    return Mismatch(
        "the receipt is not counter-signed: nothing but the host's clock says when it was made",
        check="counter-signature",
        expected="one of every owner's key server",
        seen="none of " + ", ".join(missing) if missing else "none",
        remedy="start the run again where its key servers can be reached at its end; or accept this one by name:"
        " --without-counter-signature",
    )


def _held(receipt: Receipt, vouched: Vouched | None, *, end: bool) -> AnyCollateral | None:
    """The collateral that an owner's server named. None without her counter-signature."""
    if vouched is None:
        return None
    name = vouched.collateral if end else vouched.first_collateral
    raw = receipt.collateral.get(name)
    if raw is None:
        raise _mismatch("collateral beside the statement", name, "none with this SHA-256")
    return collateral_from_dict(parse_json_object(raw, what="collateral", refuse=Mismatch))


# --- evidence -----------------------------------------------------------------------------------------------------


def _first(
    raw: bytes,
    statement: Statement,
    owner: OwnerGrant,
    roots: TrustRoots,
    policy: Policy,
    at: datetime,
    held: AnyCollateral | None,
    collateral: CollateralFor | None,
) -> Assessment:
    """The first evidence, which an owner's server released keys to. It binds the run's key."""
    request = _request(raw)
    server = ServerIdentity(Digest.from_hex(owner.ca_sha256), owner.server_name)
    for check, seen, expected in (
        ("run key in the first evidence", request.run_key.hex(), statement.run_key.hex()),
        ("manifest in the first evidence", request.manifest_sha256.hex(), statement.manifest_sha256),
        ("names in the first evidence", list(request.names), sorted(owner.versions)),
    ):
        if seen != expected:
            raise _mismatch(check, str(expected), str(seen))
    evidence = with_event_log(parse_evidence(request.evidence.cpu), request.evidence.event_log)
    return _judge(evidence, request.report_data(server), statement, roots, policy, at, held, collateral)


def _request(raw: bytes) -> ReleaseRequest:
    try:
        return parse_release_request(raw)
    except KeyReleaseError as error:
        raise _mismatch("first evidence", "a request for keys of this release protocol", error.message) from None


def _end(
    receipt: Receipt,
    statement: Statement,
    roots: TrustRoots,
    policy: Policy,
    at: datetime,
    held: AnyCollateral | None,
    collateral: CollateralFor | None,
) -> Assessment:
    """The evidence at the end of the run, which binds the statement."""
    if len(receipt.requests) != len(statement.owners):
        raise _mismatch("requests beside the statement", str(len(statement.owners)), str(len(receipt.requests)))
    log = receipt.end.event_log
    if log is None and receipt.requests:
        log = _request(receipt.requests[0]).evidence.event_log  # the log of one boot
    evidence = with_event_log(parse_evidence(receipt.end.cpu), log)
    binding = receipt_report_data(receipt.envelope.payload)
    return _judge(evidence, binding, statement, roots, policy, at, held, collateral)


def _judge(
    evidence: Evidence,
    binding: bytes,
    statement: Statement,
    roots: TrustRoots,
    policy: Policy,
    at: datetime,
    held: AnyCollateral | None,
    collateral: CollateralFor | None,
) -> Assessment:
    if held is None:
        held = NoCollateral() if collateral is None else collateral(evidence, at)
    if policy is LOOKING:
        policy = replace(policy, tees=_tee_names(statement.tee, roots))
    found = assess(evidence, held, roots, policy, at, report_data=binding)
    if found.report is None or found.claims is None:
        raise found.error or AppraisalFailed("the evidence was refused")
    check_program(found.report, statement)
    return found


def _tee_names(tee: str, roots: TrustRoots) -> frozenset[str]:
    return frozenset(f"{tee}:{root}" for root in roots.sim) if tee.startswith("sim") else frozenset((tee,))


def check_program(report: VerifiedReport, statement: Statement) -> None:
    """Check that a verified report is of the TEE and of the program that a statement names. Raises an EvidenceError.

    SEV-SNP has no register for the workload. There the measured guest vouches for it, as in a release of keys.
    """
    if report.tee == "sgx":
        raise _no_keeper()
    if report.tee != statement.tee:
        raise _mismatch("TEE of the evidence", statement.tee, report.tee)
    evidence, devices = report.evidence, bytes.fromhex(statement.device_digest)
    if isinstance(evidence, SGXQuote | SNPReport) and devices != NO_DEVICES:
        raise _mismatch("devices of the statement", "none, since this TEE has no register for them", "some")
    if isinstance(evidence, SNPReport):
        return
    if not carries_workload(evidence, Measurement.from_hex(statement.measurement), devices):
        raise _mismatch("workload in the evidence", statement.measurement, "another program, or other devices")


def _check_same_machine(first: Assessment, end: Assessment) -> None:
    """The evidence at the beginning and at the end came from one machine, where its evidence names the machine."""
    if first.report is None or end.report is None:
        raise EvidenceError("the evidence was not verified")
    begin, last = first.report, end.report
    pairs = [(str(begin.platform.get(name, "")), str(last.platform.get(name, ""))) for name in _SAME_MACHINE]
    pairs.append((begin.tee_with_root, last.tee_with_root))
    pairs.append((begin.measurement.hex(), last.measurement.hex()))
    for seen, expected in pairs:
        if not hmac.compare_digest(seen.encode(), expected.encode()):
            raise _mismatch("machine of the first evidence and of that at the end", expected, seen)


def _no_keeper() -> AppraisalFailed:
    return AppraisalFailed(
        "a receipt needs a keeper apart from the program, and an SGX enclave has none",
        check="TEE of the receipt",
        expected="a TEE in which Adyton's runtime stands between the program and the keys",
        seen="sgx: the program itself could have signed it",
        remedy="run the program in a trust domain or another confidential machine for a receipt",
    )


def _mismatch(check: str, expected: str, seen: str) -> Mismatch:
    return Mismatch(
        f"the receipt does not hold together: {check}",
        check=check,
        expected=expected[:200],
        seen=seen[:200],
        remedy="parts of two receipts were mixed, or one was altered: get it again from whoever started the run",
    )


def matching_output(verified: Verified, sha256: str) -> Output | None:
    """The output whose stored file has this SHA-256 (hex). None where there is none."""
    return next((entry for _, listed in verified.outputs for entry in listed if entry.sha256 == sha256), None)


def matching_plaintext(verified: Verified, commitment: bytes) -> Output | None:
    """The output whose plaintext has this commitment. Compared in constant time."""
    found = None
    for _, listed in verified.outputs:
        for entry in listed:
            if hmac.compare_digest(bytes.fromhex(entry.commitment), commitment):
                found = entry
    return found


def inputs_by_root(verified: Verified) -> Mapping[str, str]:
    """Root -> stored path, of every input."""
    return {entry.root: entry.name for _, listed in verified.inputs for entry in listed}
