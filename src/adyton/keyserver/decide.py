"""Decide who gets a key: compare a verified report and a request with the owner's approvals, line by line.

Every line of every approval of the key is judged, so that a refusal can name every failed line. An approval whose lines
all hold grants the key. Only this module can make a `Grant`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from adyton.attest.appraise import appraise
from adyton.attest.evidence_policy import Policy
from adyton.attest.guest import confidential_kind
from adyton.attest.policy.rules import Exemption, SignerRule
from adyton.attest.status import TCBStatus
from adyton.check import Check, text
from adyton.dates import is_over, over_at
from adyton.errors import AppraisalFailed, UsageError
from adyton.keyserver.agreement_lines import PRIVACY_LINE, Ground, agreed_runs_line, agreement_lines, privacy_line
from adyton.keyserver.agreement_lines import RUNS_LINE as AGREED_RUNS_LINE
from adyton.keystore import approval_gaps
from adyton.keystore.approval import APPROVED, REVOKED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adyton.agreement.in_force import InForce
    from adyton.attest.appraise import Claims
    from adyton.attest.report import VerifiedReport
    from adyton.keystore.approval import Approval, StoredApproval
    from adyton.keystore.current_facts import Usage
    from adyton.values import Digest

_DECIDER: Final = object()
_NO_END: Final = datetime(9999, 1, 1, tzinfo=UTC)

MAX_LISTED: Final = 20
"""Most approvals in a refusal, the closest first. The others are only counted."""

MAX_LINES: Final = 10
MAX_TEXT_CHARACTERS: Final = 300
"""Limits of an approval in a refusal: failed lines, and characters of a text. The whole refusal fits an audit entry."""

PROGRAM_LINES: Final = frozenset({"workload", "measurement", "signer", "program"})
"""The names of the checks of `appraise` that identify the program."""

RUNS_LINE: Final = "number of runs"
ACTIVE_LINE: Final = "runs at a time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request for one key: the key, the run, the protocol, and the report data of the evidence."""

    key: str
    run: str
    protocol: str
    report_data: bytes | None
    manifest_sha256: Digest | None = None
    in_force: frozenset[InForce] = frozenset()
    """What statements of other owners prove for this request."""
    owner: Digest | None = None
    """The fingerprint of this owner: SHA-256 of her CA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """This run may have this key, by this approval. Only `decide` can make it."""

    key: str
    run: str
    approval: StoredApproval
    claims: Claims
    lease_until: datetime
    renews: str | None
    """The release of this run's current lease, where it asks again within the lease."""
    made_by: object = field(repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if self.made_by is not _DECIDER:
            raise UsageError("a Grant is made by decide only")


@dataclass(frozen=True, slots=True)
class Judged:
    """One approval and every line of it, held or not."""

    approval: StoredApproval
    lines: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The failed lines."""
        return tuple(line for line in self.lines if not line.ok)

    @property
    def is_this_program(self) -> bool:
        """Whether the approval is for this program."""
        return all(line.ok for line in self.lines if line.name in PROGRAM_LINES)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the approval and its failed lines, with each text cut to the limit."""
        return {
            "approval": self.approval.id,
            "revision": self.approval.revision,
            "state": self.approval.state,
            "app": self.approval.approval.app,
            "version": self.approval.approval.version,
            "failed": [
                {name: _cut(value) if isinstance(value, str) else value for name, value in line.to_dict().items()}
                for line in self.failed[:MAX_LINES]
            ],
        }


@dataclass(frozen=True, slots=True)
class Denial:
    """No approval grants the request: every approval with its lines, the closest first."""

    key: str
    judged: tuple[Judged, ...]

    @property
    def is_used_up(self) -> bool:
        """Whether an approval would grant the request if its runs were not used up."""
        limits = {RUNS_LINE, ACTIVE_LINE, AGREED_RUNS_LINE, PRIVACY_LINE}
        return any({line.name for line in judged.failed} <= limits for judged in self.judged)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for the owner: the closest approvals with their failed lines, and the number of the others.

        The size is limited for every policy, so a refusal always fits the record. Revoked approvals of other programs
        are only counted.
        """
        told = [item for item in self.judged if item.is_this_program or item.approval.state != REVOKED]
        listed = [item.to_dict() for item in told[:MAX_LISTED]]
        return {"key": self.key, "approvals": listed, "more": len(self.judged) - len(listed)}


def no_ground(_agreement: str) -> Ground:
    """The ground where no agreement is known. An approval that names one then releases nothing."""
    return Ground(None)


def decide(
    request: Request,
    report: VerifiedReport,
    approvals: Sequence[StoredApproval],
    usage_of: Callable[[StoredApproval], Usage],
    now: datetime,
    ground_of: Callable[[str], Ground] = no_ground,
) -> Grant | Denial:
    """Judge a request by all approvals of its key. The first (newest change) whose lines all hold grants it.

    `ground_of` gives the agreement of an approval by its id.
    """
    judged: list[Judged] = []
    for stored in approvals:
        if stored.approval.key != request.key:
            continue
        ground = ground_of(stored.approval.agreement)
        lines, claims = _lines(request, report, stored, ground, now)
        usage = None
        if all(line.ok for line in lines):
            usage = usage_of(stored)
            lines += _usage_lines(stored.approval, usage)
            lines += agreed_runs_line(stored.approval, ground, free=usage.own is not None)
            if all(line.ok for line in lines):
                lines += privacy_line(stored.approval, ground, free=usage.own is not None)
        if claims is not None and usage is not None and all(line.ok for line in lines):
            own = usage.own
            until = _lease_end(stored.approval, now) if own is None else own.until_ms
            return Grant(
                key=request.key,
                run=request.run,
                approval=stored,
                claims=claims,
                lease_until=until if isinstance(until, datetime) else datetime.fromtimestamp(until / 1000, UTC),
                renews=None if own is None else own.release,
                made_by=_DECIDER,
            )
        judged.append(Judged(stored, tuple(lines)))
    judged.sort(key=_distance)
    return Denial(request.key, tuple(judged))


def decide_in_vain(
    request: Request,
    report: VerifiedReport,
    approvals: Sequence[StoredApproval],
    now: datetime,
    ground_of: Callable[[str], Ground] = no_ground,
) -> None:
    """Judge a request by the approvals of all other keys, and drop the result.

    This is done after a denial. Otherwise the time of the decision would show how many approvals the named key has.
    """
    for stored in approvals:
        if stored.approval.key != request.key:
            _lines(request, report, stored, ground_of(stored.approval.agreement), now)


def _lines(
    request: Request, report: VerifiedReport, stored: StoredApproval, ground: Ground, now: datetime
) -> tuple[list[Check], Claims | None]:
    """Every line of an approval except its usage, and the claims where the evidence passes."""
    kind = confidential_kind(report.tee)
    lines = _own_lines(request, stored, now, by_manifest=kind == "snp")
    lines += agreement_lines(stored.approval, ground, request.in_force, request.owner, now)
    if report.tee_with_root in stored.approval.tees:  # else the line TEE refuses
        lines += approval_gaps.lines(stored.approval, report.tee_with_root)
    policy = evidence_policy(stored.approval, kind)
    try:
        claims = appraise(report, policy, now, report_data=request.report_data)
    except AppraisalFailed as refused:
        return lines + list(refused.checks), None
    return lines + list(claims.checks), claims


def _distance(judged: Judged) -> tuple[bool, bool, int]:
    return not judged.is_this_program, judged.approval.state != APPROVED, len(judged.failed)


def _lease_end(approval: Approval, now: datetime) -> datetime:
    """A lease lasts as long as its approval at most. So it lasts through the last second, and counts there too."""
    end = datetime.fromtimestamp(now.timestamp() + approval.lease_s, UTC)
    if approval.expires_at is None or approval.expires_at >= end:
        return end
    return min(end, over_at(approval.expires_at))


def _own_lines(request: Request, stored: StoredApproval, now: datetime, *, by_manifest: bool) -> list[Check]:
    approval = stored.approval
    lines = [
        Check(
            "approval",
            APPROVED,
            stored.state,
            stored.state == APPROVED,
            "approve this version (adyton approve, or the dashboard)",
        ),
        Check(
            "end of the approval",
            "no end" if approval.expires_at is None else approval.expires_at,
            now,
            approval.expires_at is None or not is_over(approval.expires_at, now),
            "approve it again with a later end",
        ),
        Check(
            "protocol",
            list(approval.protocols),
            request.protocol,
            request.protocol in approval.protocols,
            f"allow it by name: adyton approve … --protocol {request.protocol} (ra-tls has no freshness)",
        ),
    ]
    if by_manifest or (approval.manifest_sha256 is not None and request.manifest_sha256 is not None):
        lines.append(
            Check(
                "manifest",
                approval.manifest_sha256,
                request.manifest_sha256,
                request.manifest_sha256 is not None and approval.manifest_sha256 == request.manifest_sha256,
                "build the manifest again and approve it, or run the one that was approved",
            )
        )
    return lines


def _usage_lines(approval: Approval, usage: Usage) -> list[Check]:
    lines = []
    free = usage.own is not None
    if approval.max_runs is not None:
        lines.append(
            Check(
                RUNS_LINE,
                f"at most {approval.max_runs}",
                f"{usage.runs} runs had the key, and this is another",
                free or usage.runs < approval.max_runs,
                "raise --max-runs if the owner meant more; a host can start an approved program again and again",
            )
        )
    if approval.max_active is not None:
        lines.append(
            Check(
                ACTIVE_LINE,
                f"at most {approval.max_active}",
                f"{usage.active} runs hold a lease",
                free or usage.active < approval.max_active,
                f"wait until a lease ends (each lasts {approval.lease_s} s), or raise --max-active",
            )
        )
    return lines


def evidence_policy(approval: Approval, kind: str | None) -> Policy:
    """The part of an approval that `appraise` judges, as a policy. `kind` is the TEE's (`confidential_kind`).

    In a confidential machine the measurement is that of the guest image. TDX has the workload in RTMR3. SEV-SNP has no
    register for it. There the approved guest puts the manifest's hash into the report data. Each guest image is one
    alternative, so registers of two images are never mixed. In an Azure machine the measurement is the paravisor's.
    """
    images = tuple(guest.policy() for guest in approval.guest_images if guest.kind == kind)
    exemptions = tuple(
        Exemption(name=name, until=until or _NO_END, owner="owner", reason="accepted in the approval")
        for name, until in approval.advisories.items()
    )
    workloads = frozenset((approval.measurement,) if approval.measurement is not None and kind != "snp" else ())
    signers: tuple[SignerRule, ...] = ()
    if approval.mrsigner is not None and approval.isv_prod_id is not None and approval.min_isv_svn is not None:
        signers = (
            SignerRule(mrsigner=approval.mrsigner, isv_prod_id=approval.isv_prod_id, min_isv_svn=approval.min_isv_svn),
        )
    return replace(
        Policy.from_dict(approval.evidence),
        tees=frozenset(approval.tees),
        statuses=frozenset(TCBStatus(status) for status in approval.tcb_statuses),
        exemptions=exemptions,
        workloads=workloads,
        measurements=frozenset(approval.guests) if kind == "tpm" or (kind is not None and not images) else frozenset(),
        any_of=images,
        signers=signers,
        allow_debug=approval.allow_debug,
    )


def _cut(value: str) -> str:
    return value if len(value) <= MAX_TEXT_CHARACTERS else value[: MAX_TEXT_CHARACTERS - 1] + "…"


def shown(check: Check) -> tuple[str, str]:
    """Expected and seen of a line, as text."""
    return text(check.expected), text(check.seen)
