"""What was changed in a program that was refused: believed only where what it shows is what its evidence measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from adyton.attest.evidence import parse_evidence
from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import TDXQuote, workload_rtmr3
from adyton.errors import OutOfOrder, UsageError
from adyton.keyserver.clock import now_ms
from adyton.keyserver.decide import PROGRAM_LINES
from adyton.keyserver.difference import MAX_LINES, Difference, manifest_differences, part_differences
from adyton.keyserver.facts import EXPLANATION, WAITS, waiting
from adyton.keyserver.policy import APPROVED
from adyton.manifest.measure import workload_measurement
from adyton.net.bounds import Shown
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from adyton.attest.snp import SNPReport
    from adyton.keyserver.change import Transaction
    from adyton.keyserver.store import Store
    from adyton.keyserver.view import Reader
    from adyton.net.release import Explanation


class Explainer:
    """Compares refused programs with approved ones, for the owner's log; thread-safe."""

    def __init__(self, store: Store, combine: Callable[[Mapping[str, Digest]], Digest]) -> None:
        self._store = store
        self._combine = combine
        self._shown = Shown()

    def check(self, denial_id: str) -> None:
        """Refuse what cannot be explained, before any of the explanation is read; raises OutOfOrder."""
        with self._store.read() as view:
            _denial(view, denial_id)

    def explain(self, explanation: Explanation) -> list[str]:
        """Record what was changed; returns the lines that the far side may see.

        Believed only where manifest and runtime parts give the very measurement that the refused evidence carried.
        """
        with self._store.read() as view:
            denial = _denial(view, explanation.denial)
            evidence = _evidence(view, denial)
            workload = self._shown_workload(explanation, evidence)
            approvals = [
                stored
                for judged in denial.get("detail", {}).get("approvals", ())
                for stored in view.approvals()
                if stored.id == judged["approval"] and stored.state == APPROVED
            ]
            behind = [
                (stored, view.behind(stored.approval.measurement))
                for stored in approvals
                if stored.approval.measurement is not None
            ]
        best: list[Difference] | None = None
        against = ""
        for stored, known in behind:
            if known is None:
                continue
            found = part_differences(known[1], explanation.runtime_parts)
            found += manifest_differences(known[0], explanation.manifest)
            if best is None or len(found) < len(best):
                best, against = found, f"{stored.approval.app} {stored.approval.version}"
        body: dict[str, Any] = {
            "denial": explanation.denial,
            "against": against,
            "changed": [line.for_owner() for line in (best or ())[:MAX_LINES]],
            "more": max(0, len(best or ()) - MAX_LINES),
        }
        at_ms = now_ms()
        with self._store.write() as change:
            _denial(change, explanation.denial)
            if self._shown.may_keep(len(explanation.manifest), at_ms):
                change.remember(workload, explanation.manifest, explanation.runtime_parts)
            if isinstance(evidence, TDXQuote) and _waits(change, denial, evidence):
                body[WAITS] = waiting(workload, denial["tee"], denial["detail"]["key"])
            change.record(EXPLANATION, explanation.denial, body, at_ms)
        shown = [line.for_far_side() for line in (best or ())[:MAX_LINES]]
        told = [line for line in shown if line is not None]
        missing = sum(line is None for line in shown)
        return told + ([f"{missing} entries of the approved program are missing"] if missing else [])

    def _shown_workload(self, explanation: Explanation, evidence: SGXQuote | TDXQuote | SNPReport) -> Measurement:
        try:
            parts = {name: Digest.from_hex(value) for name, value in explanation.runtime_parts.items()}
        except UsageError:
            raise OutOfOrder("the runtime's parts are no hashes", check="runtime parts") from None
        workload = workload_measurement(explanation.manifest, self._combine(parts))
        if not _carries(evidence, workload):
            raise OutOfOrder(
                "this is not the program whose evidence was refused",
                check="measurement of what was shown",
                expected="manifest and runtime parts that give the measurement in the evidence",
                seen=workload.hex(),
            )
        return workload


def _denial(view: Reader, denial_id: str) -> dict[str, Any]:
    """A denial of genuine evidence that nobody has explained yet."""
    entries = list(view.entries(kind="denial", subject=denial_id))
    if len(entries) != 1:
        raise OutOfOrder("no such denial", check="denial id", seen=denial_id)
    if any(view.entries(kind="explanation", subject=denial_id)):
        raise OutOfOrder("this denial is explained already", check="denial id", seen=denial_id)
    denial: dict[str, Any] = json.loads(entries[0].body)
    if "measurement" not in denial or "evidence" not in denial:
        raise OutOfOrder("that denial had no genuine evidence", check="denial id", seen=denial_id)
    return denial


def _evidence(view: Reader, denial: dict[str, Any]) -> SGXQuote | TDXQuote | SNPReport:
    raw = view.artifact(bytes.fromhex(denial["evidence"]))
    if raw is None:
        raise OutOfOrder("that denial's evidence is not kept", check="denial id", seen=denial["denial"])
    return parse_evidence(raw)


def _carries(evidence: SGXQuote | TDXQuote | SNPReport, workload: Measurement) -> bool:
    """Whether the hardware measured this workload; SEV-SNP has no register for it, so there it is never proven."""
    if isinstance(evidence, SGXQuote):
        return evidence.report.mrenclave == workload.raw
    if isinstance(evidence, TDXQuote):
        return evidence.report.rtmrs[3] == workload_rtmr3(workload).raw
    return False


def _waits(change: Transaction, denial: dict[str, Any], evidence: TDXQuote) -> bool:
    """Whether it waits for approval, now that it has shown itself: a TDX quote names its workload by a hash only.

    Not one whose evidence was made for another request (somebody may replay it), nor a program that is approved and
    was refused for something else.
    """
    detail = denial.get("detail", {})
    bound = denial.get("report_data") == evidence.report.report_data.hex()
    approvals = detail.get("approvals")
    if not bound or approvals is None or not change.has_key(detail["key"]):
        return False
    return all(any(line["name"] in PROGRAM_LINES for line in judged["failed"]) for judged in approvals)
