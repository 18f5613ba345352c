"""The record of a request: facts in its entry, and beside it the evidence and its collateral."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from adyton.attest.bundle import devices_bytes
from adyton.check import text
from adyton.keyserver.record_limits import MAX_EVIDENCE_BYTES_PER_DAY, MAX_EVIDENCE_KEPT_BYTES, Budget
from adyton.keyserver.refusal_texts import program_of
from adyton.keystore.prune import prune_refused
from adyton.keystore.tables.evidence import REFUSED

if TYPE_CHECKING:
    from adyton.attest.collateral import AMDCollateral, Collateral, NoCollateral
    from adyton.keyserver.stages import Received, Verified
    from adyton.keystore.transaction import Transaction

MAX_UNPROVEN_NAMES: Final = 4
"""Most recorded names of a request without genuine evidence."""

MAX_PLATFORM_CHARACTERS: Final = 200
_MAX_REMEMBERED: Final = 64


def evidence_parts(received: Received) -> dict[str, bytes]:
    """The parts of a request's evidence, by the names under which its entry keeps their hashes (`keystore.prune`).

    `devices` is `attest.bundle.devices_bytes`.
    """
    found = {"evidence": received.evidence}
    if received.event_log is not None:
        found["event_log"] = received.event_log
    if received.devices:
        found["devices"] = devices_bytes(received.devices)
    return found


class RequestRecord:
    """Records requests within the limits of one key server. For one thread."""

    def __init__(self) -> None:
        self._refused_evidence = Budget(MAX_EVIDENCE_BYTES_PER_DAY)
        self._unpruned_bytes = MAX_EVIDENCE_KEPT_BYTES
        self._collateral_json: dict[int, tuple[object, bytes]] = {}

    def facts(self, change: Transaction, verified: Verified, at_ms: int) -> dict[str, Any]:
        """The facts of a request for its entry, for any decision. Stores the collateral of genuine evidence."""
        received, evidence = verified.received, verified.evidence
        names = list(received.names)
        facts: dict[str, Any] = {
            "protocol": received.protocol,
            "peer": received.peer,
            "names": names if evidence is not None else names[:MAX_UNPROVEN_NAMES],
            "run": received.run,
        }
        if received.manifest_sha256 is not None:
            facts["manifest_sha256"] = received.manifest_sha256.hex()
        if received.report_data is not None:
            facts["report_data"] = received.report_data.hex()
        if evidence is not None:
            report = evidence.report
            platform = report.platform.items()
            facts |= {
                "tee": report.tee_with_root,
                "program": program_of(report),
                "measurement": report.measurement.hex(),
                "mrsigner": str(report.mrsigner) if report.mrsigner else "",
                "status": str(report.status),
                "advisories": list(report.advisories),
                "debug": report.debug,
                "platform": {str(name): text(value)[:MAX_PLATFORM_CHARACTERS] for name, value in platform},
            }
            raw = self._collateral_bytes(evidence.collateral)
            facts["collateral"] = change.keep_artifact("collateral", raw, at_ms).hex()
        return facts

    def refused_evidence(self, change: Transaction, verified: Verified, at_ms: int) -> dict[str, Any]:
        """Record refused evidence: genuine evidence is stored, within the limits. Of all other only the hash is kept.

        Anybody can make any amount of evidence that does not verify. The log and the devices are stored where the
        CPU's evidence, which they came with, was made for this request.
        """
        received = verified.received
        raw = received.evidence
        if not raw:
            return {}
        parts = evidence_parts(received) if verified.platform is not None else {"evidence": raw}
        size_bytes = sum(map(len, parts.values()))
        if verified.evidence is None or not self._refused_evidence.has_room(at_ms, size_bytes):
            return {"evidence_sha256": hashlib.sha256(raw).hexdigest()}
        self._refused_evidence.spend(size_bytes, at_ms)
        kept = {name: change.keep_artifact(REFUSED, part, at_ms).hex() for name, part in parts.items()}
        self._unpruned_bytes += size_bytes
        if self._unpruned_bytes > MAX_EVIDENCE_KEPT_BYTES // 16:  # the sum reads what is kept: not for every refusal
            prune_refused(change, MAX_EVIDENCE_KEPT_BYTES, at_ms)
            self._unpruned_bytes = 0
        return kept

    def _collateral_bytes(self, collateral: Collateral | AMDCollateral | NoCollateral) -> bytes:
        known = self._collateral_json.get(id(collateral))
        if known is None or known[0] is not collateral:
            if len(self._collateral_json) > _MAX_REMEMBERED:
                self._collateral_json.clear()
            known = self._collateral_json[id(collateral)] = (collateral, collateral.to_json().encode())
        return known[1]
