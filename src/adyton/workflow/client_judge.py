"""Who may connect to an ingress: the evidence that clients show, judged by the policy in the program's manifest.

The verdict is made inside the TEE, beside the program. Collateral comes from the client. Its maker has signed it, so a
client can bring an older one, and no false one. The time is that of the TEE's machine, which is the host's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from adyton.attest.assess import assess
from adyton.attest.collateral import AMDCollateral, Collateral, NoCollateral
from adyton.attest.complete import with_event_log
from adyton.attest.evidence import hardware_part, parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.roots import TrustRoots
from adyton.attest.snp import SNPReport
from adyton.endpoint.hello import MAX_COLLATERAL_BYTES, ClientEvidence
from adyton.errors import EvidenceError, MalformedManifest, MalformedQuote, UsageError
from adyton.untrusted import parse_json_object, parse_toml

if TYPE_CHECKING:
    from adyton.attest.evidence import Evidence
    from adyton.manifest.ingress import Ingress

MAX_TRUST: Final = timedelta(hours=24)
"""How long a client is trusted after its proof, at the most. Then its connection is cut."""

Judge = Callable[[ClientEvidence, bytes], timedelta]


def check_client_policy(ingress: Ingress) -> None:
    """Refuse a policy for clients that cannot be read, or that accepts nobody. Raises MalformedManifest."""
    if ingress.client_policy is not None:
        _policy(ingress)


def client_judge(ingress: Ingress) -> Judge:
    """Judge the evidence of this ingress's clients. Raises MalformedManifest where its policy cannot be read."""
    policy = _policy(ingress)
    roots = TrustRoots().with_sim(policy.sim_roots).with_tpm(policy.every_tpm_root)

    def judge(shown: ClientEvidence, report_data: bytes) -> timedelta:
        now = datetime.now(UTC)
        evidence = with_event_log(parse_evidence(shown.cpu), shown.event_log or None)
        found = assess(evidence, _collateral(evidence, shown.collateral), roots, policy, now, report_data=report_data)
        if found.claims is None:
            raise found.error or EvidenceError("the evidence was refused")
        return min(found.claims.valid_until - now, MAX_TRUST)

    return judge


def _policy(ingress: Ingress) -> Policy:
    text = ingress.client_policy or ""
    parse = parse_json_object if text.lstrip().startswith("{") else parse_toml
    try:
        policy = Policy.from_dict(parse(text.encode(), what="policy for clients", refuse=UsageError))
    except UsageError as error:
        raise _refused(ingress, error.message, str(error.expected), str(error.seen)) from error
    if not policy.tees and not any(inner.tees for inner in policy.any_of):
        raise _refused(ingress, "names no TEE, so it accepts nobody", "`tees`, and a program", "none")
    return policy


def _refused(ingress: Ingress, why: str, expected: str, seen: str) -> MalformedManifest:
    return MalformedManifest(
        f"the policy for clients of the ingress {ingress.name}: {why}",
        check="manifest key adyton.ingress.client_policy",
        expected=expected,
        seen=seen,
        remedy="write one as for adyton verify --policy; adyton policy check FILE says what it leaves open",
    )


def _collateral(evidence: Evidence, raw: bytes) -> Collateral | AMDCollateral | NoCollateral:
    """The client's collateral. Raises MalformedQuote."""
    hardware = hardware_part(evidence)
    document = parse_json_object(raw, what="collateral", refuse=MalformedQuote, limit_bytes=MAX_COLLATERAL_BYTES)
    if hardware is None:
        return NoCollateral()
    if isinstance(hardware, SNPReport):
        return AMDCollateral.from_dict(document)
    return replace(Collateral.from_dict(document), channel=None)  # that word is the client's own
