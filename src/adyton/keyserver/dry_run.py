"""A dry run: would this evidence get a key, and if not, which line fails?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from adyton.collateral.background import Pending
from adyton.keyserver.agreement_lines import Ground
from adyton.keyserver.decide import Grant, Judged, Request, decide
from adyton.values import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from adyton.collateral.verifier import VerifiedEvidence
    from adyton.keystore.store import Store


@dataclass(frozen=True, slots=True)
class DryRun:
    """The result for one key."""

    key: str
    granted: bool
    judged: tuple[Judged, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "key": self.key,
            "granted": self.granted,
            "approvals": [
                {
                    "approval": judged.approval.id,
                    "state": judged.approval.state,
                    "app": judged.approval.approval.app,
                    "version": judged.approval.approval.version,
                    "lines": [line.to_dict() for line in judged.lines],
                }
                for judged in self.judged
            ],
        }


def dry_run(
    store: Store,
    verify: Callable[[bytes, Iterable[Digest], datetime], VerifiedEvidence | Pending],
    evidence: bytes,
    *,
    key: str | None,
    protocol: str,
    manifest_sha256: Digest | None = None,
    owner: Digest | None = None,
    now: datetime | None = None,
) -> list[DryRun]:
    """Verify evidence and judge it by the approvals of one key or of all, without recording anything.

    `manifest_sha256` is the manifest that the enclave would name. SEV-SNP needs it to identify the program. `owner` is
    this owner's fingerprint. Evidence alone brings no statement of other parties, so an approval that rests on an
    agreement is shown with that line open.
    """
    moment = datetime.now(UTC) if now is None else now
    at_ms = int(moment.timestamp() * 1000)
    found: list[DryRun] = []
    with store.read() as view:
        approvals = view.approvals()
        roots = {
            Digest.from_hex(tee.partition(":")[2]) for item in approvals for tee in item.approval.tees if ":" in tee
        }
        verified = verify(evidence, roots, moment)
        if isinstance(verified, Pending):
            raise verified.error()
        report = verified.report
        for name in sorted({item.approval.key for item in approvals} if key is None else {key}):
            request = Request(
                key=name,
                run="",
                protocol=protocol,
                report_data=report.report_data,
                manifest_sha256=manifest_sha256,
                owner=owner,
            )

            def ground_of(agreement: str) -> Ground:
                return Ground(view.agreement(agreement), view.agreed_runs(agreement), view.privacy_steps(agreement))

            decided = decide(request, report, approvals, lambda item: view.usage(item.id, "", at_ms), moment, ground_of)
            if isinstance(decided, Grant):
                found.append(DryRun(name, True, (Judged(decided.approval, decided.claims.checks),)))
            else:
                found.append(DryRun(name, False, decided.judged))
    return found
