"""Verify the evidence of a past decision again, with its collateral and at its time."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adyton.attest.appraise import Policy
from adyton.attest.assess import Assessment, assess
from adyton.attest.azure.evidence import AzureEvidence
from adyton.attest.collateral import AMDCollateral, Collateral, NoCollateral, collateral_from_dict
from adyton.attest.evidence import parse_evidence
from adyton.attest.guest import confidential_kind
from adyton.attest.policy.rules import CHANNELS
from adyton.attest.roots import TrustRoots
from adyton.attest.status import NEVER_ACCEPTED, TCBStatus
from adyton.attest.tpm.document import TPMQuote
from adyton.errors import Error
from adyton.keyserver.decide import evidence_policy
from adyton.keystore.clock import moment
from adyton.values import Digest

if TYPE_CHECKING:
    from adyton.keystore.approval import Approval
    from adyton.keystore.audit import Entry
    from adyton.keystore.reader import Reader

_LOOKING: Policy = Policy(
    tees=frozenset({"sgx", "tdx", "snp", "nitro", "nitrotpm"}),
    statuses=frozenset(TCBStatus) - NEVER_ACCEPTED,
    any_program=True,
    allow_missing_report_data=True,
)


def replay(view: Reader, entry: Entry) -> Assessment | None:
    """Assess the evidence of a release or denial again. None where there is no readable evidence.

    The policy is that of the approval that granted it, or of the closest one, as it was then. Without an approval only
    the platform is judged. So it is with GPUs in the evidence: their collateral is not kept, and the workload register
    names them.
    """
    body = json.loads(entry.body)
    raw, kept = _artifact(view, body, "evidence"), _artifact(view, body, "collateral")
    log = _artifact(view, body, "event_log")
    if raw is None or kept is None or (log is None and "event_log" in body):
        return None
    try:
        document = json.loads(kept)
        collateral = _as_recorded(collateral_from_dict(document), body)
        evidence = parse_evidence(raw)
        if isinstance(evidence, TPMQuote | AzureEvidence):
            evidence = evidence.with_event_log(log)
    except (Error, ValueError):
        return None
    tee = str(body.get("tee", ""))
    roots = TrustRoots()
    if ":" in tee:
        roots = roots.with_sim({Digest.from_hex(tee.partition(":")[2])})
    binding = bytes.fromhex(body["report_data"]) if "report_data" in body else None
    approval = _approval(view, body)
    at = moment(entry.at_ms)
    policy = _LOOKING if not tee else replace(_LOOKING, tees=frozenset({tee}))
    if approval is not None and "devices" not in body:
        policy = evidence_policy(approval, confidential_kind(tee))
    return assess(evidence, collateral, roots, policy, at, report_data=binding)


def _as_recorded(
    collateral: Collateral | AMDCollateral | NoCollateral, body: dict[str, Any]
) -> Collateral | AMDCollateral | NoCollateral:
    """The collateral with the channel that it came from: no document says it, the entry of the decision does."""
    channel = body.get("platform", {}).get("tcb_channel")
    if isinstance(collateral, Collateral) and channel in CHANNELS:
        return replace(collateral, channel=channel)
    return collateral


def _artifact(view: Reader, body: dict[str, Any], name: str) -> bytes | None:
    return view.artifact(bytes.fromhex(body[name])) if name in body else None


def _approval(view: Reader, body: dict[str, Any]) -> Approval | None:
    for key in body.get("keys", ()):
        return view.revision(key["approval"], key["revision"])
    for judged in body.get("detail", {}).get("approvals", ()):
        return view.revision(judged["approval"], judged["revision"])
    return None
