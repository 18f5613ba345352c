"""The two checks of every link of a certificate chain: named by its issuer, and signed by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.errors import BadChain

if TYPE_CHECKING:
    from adyton.attest.certificates import Certificate
    from adyton.attest.checks import Checks


def check_issued(checks: Checks, certificate: Certificate, issuer: Certificate, *, remedy: str) -> None:
    """Check that a certificate names this issuer, and that the issuer's key signed it. Raises BadChain."""
    checks.require(
        f"{certificate.what}: issuer",
        certificate.issuer == issuer.subject,
        expected=issuer.subject,
        seen=certificate.issuer,
        error=BadChain,
        remedy=remedy,
    )
    checks.require(
        f"{certificate.what}: signature",
        certificate.is_signed_by(issuer),
        expected=f"a signature by the {issuer.what}",
        seen="a signature by another key, or over other bytes",
        error=BadChain,
        remedy=remedy,
    )
