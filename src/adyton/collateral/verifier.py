"""Verify evidence with the key server's own collateral and clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from adyton.attest import dcap
from adyton.attest.assess import verify_evidence
from adyton.attest.checks import Checks
from adyton.attest.collateral import NoCollateral
from adyton.attest.evidence import hardware_part, parse_evidence
from adyton.attest.quote import CertificationType
from adyton.attest.roots import TrustRoots
from adyton.attest.snp import SNPReport
from adyton.collateral.background import Pending

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from adyton.attest.collateral import AMDCollateral, Collateral
    from adyton.attest.report import VerifiedReport
    from adyton.attest.sgx import SGXQuote
    from adyton.attest.tdx import TDXQuote
    from adyton.values import Digest


class CollateralSource(Protocol):
    """A source of collateral. The result is the collateral, or `Pending` while it is fetched.

    Raises Unavailable where there is none for this evidence, and Stale where it has expired.
    """

    def for_quote(self, quote: SGXQuote | TDXQuote, now: datetime, /) -> Collateral | Pending:
        """Collateral for this quote's platform."""
        ...

    def for_report(self, report: SNPReport, now: datetime, /) -> AMDCollateral | Pending:
        """The certificates of this report's chip."""
        ...


@dataclass(frozen=True, slots=True)
class VerifiedEvidence:
    """A verified report, and its collateral."""

    report: VerifiedReport
    collateral: Collateral | AMDCollateral | NoCollateral


class Verifier:
    """Verifies evidence, with a cache of verified collateral and chains."""

    def __init__(self, collateral: CollateralSource) -> None:
        self._collateral = collateral
        self._cache = dcap.Cache()

    def verify(self, raw: bytes, sim_roots: Iterable[Digest], now: datetime) -> VerifiedEvidence | Pending:
        """Verify evidence at the time `now`. Raises an EvidenceError that names the step, or Unavailable.

        While its collateral is fetched the result is `Pending`, and nothing is verified yet. A certificate chain in the
        evidence is verified first, up to a pinned root. That needs no collateral, so nobody can cause a fetch for a
        platform that is not trusted.
        """
        evidence = parse_evidence(raw)
        roots = TrustRoots().with_sim(sim_roots)
        hardware = hardware_part(evidence)
        collateral: Collateral | AMDCollateral | NoCollateral | Pending
        if hardware is None:
            collateral = NoCollateral()
        elif isinstance(hardware, SNPReport):
            collateral = self._collateral.for_report(hardware, now)
        else:
            self._check_chain(hardware, roots)
            collateral = self._collateral.for_quote(hardware, now)
        if isinstance(collateral, Pending):
            return collateral
        return VerifiedEvidence(verify_evidence(evidence, collateral, roots, now, cache=self._cache), collateral)

    def _check_chain(self, quote: SGXQuote | TDXQuote, roots: TrustRoots) -> None:
        if quote.signature.certification_type != CertificationType.PCK_CHAIN:
            return
        key = (quote.signature.certification_data, roots.key)
        if self._cache.chains.get(key) is None:
            self._cache.chains.put(key, dcap.check_pck_chain(Checks(), key[0], roots))
