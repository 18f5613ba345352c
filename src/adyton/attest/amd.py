"""AMD's SEV-SNP attestation: report, certificates, roots and time go in, a VerifiedReport or a refusal comes out.

The steps, with one function each (the parser checks the structure):

1  the leaf certificate (VCEK or VLEK) up to a pinned ARK, its validity, and revoked ASKs
2  the report's signature by the leaf
3  the leaf is for this chip, this product and this TCB

AMD has no service that says how up to date a platform is: the status is "NotStated", and the policy's minimum versions
decide. Sources: AMD 56860 (SNP ABI), 57230 (VCEK certificate and KDS interface).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attest import der
from adyton.attest.certificates import Certificate, Window, ecdsa_is_valid, parse_certificate, parse_crl
from adyton.attest.checks import Checks
from adyton.attest.issued import check_issued
from adyton.attest.report import VERIFIER, VerifiedReport
from adyton.attest.snp import KEY_VCEK, KEY_VLEK, SNPReport, TCBVersion
from adyton.attest.status import TCBStatus
from adyton.attest.validity import check_validity
from adyton.errors import BadChain, MalformedQuote, Mismatch, Revoked, UsageError
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.attest.collateral import AMDCollateral
    from adyton.attest.roots import TrustRoots

_OID: Final = "1.3.6.1.4.1.3704.1."
PRODUCT_OID: Final = _OID + "2"
SPL_OIDS: Final = {
    "bootloader": _OID + "3.1",
    "tee": _OID + "3.2",
    "snp": _OID + "3.3",
    "microcode": _OID + "3.8",
    "fmc": _OID + "3.9",
}
HWID_OID: Final = _OID + "4"
CSP_OID: Final = _OID + "5"

_SHA384: Final = ec.ECDSA(hashes.SHA384())
_KEY_NAMES: Final = {KEY_VCEK: "VCEK", KEY_VLEK: "VLEK"}
_REFRESH: Final = "fetch the chip's certificates again: adyton collateral fetch --for EVIDENCE"


@dataclass(frozen=True, slots=True)
class ChipCertificate:
    """The content of AMD's extensions in a VCEK or VLEK."""

    product: str
    """As in the certificate, such as "Milan-B0"."""
    tcb: TCBVersion
    hardware_id: bytes | None
    csp_id: str | None


def _missing(what: str) -> MalformedQuote:
    return MalformedQuote(
        f"the chip's certificate is wrong: {what}",
        check="AMD certificate extensions",
        expected="product, security versions, and hardware id or provider",
        seen=what,
    )


def _text(certificate: Certificate, oid: str) -> str | None:
    raw = certificate.unrecognized(oid)
    if raw is None:
        return None
    content = der.only(raw, der.IA5_STRING)
    if len(content) > 64 or not content.isascii():
        raise _missing(f"the text under {oid}")
    return content.decode("ascii")


def _hardware_id(certificate: Certificate) -> bytes | None:
    """The chip's id: raw bytes of 64 or 8, or the same in an OCTET STRING."""
    raw = certificate.unrecognized(HWID_OID)
    if raw is None or len(raw) in (64, 8):
        return raw
    return der.only(raw, der.OCTET_STRING)


def parse_chip_certificate(certificate: Certificate) -> ChipCertificate:
    """Read AMD's extensions of a VCEK or VLEK. Raises MalformedQuote."""
    product = _text(certificate, PRODUCT_OID)
    if product is None:
        raise _missing("no product name")
    turin = product.partition("-")[0] == "Turin"
    versions: dict[str, int] = {}
    for part, oid in SPL_OIDS.items():
        raw = certificate.unrecognized(oid)
        if raw is None:
            if part != "fmc" or turin:
                raise _missing(f"no {part} version")
            continue
        if part != "fmc" or turin:
            versions[part] = der.unsigned(der.only(raw, der.INTEGER), 255)
    return ChipCertificate(product, TCBVersion(**versions), _hardware_id(certificate), _text(certificate, CSP_OID))


def _check_name(checks: Checks, certificate: Certificate, name: str) -> None:
    checks.require(
        f"{certificate.what}: name",
        certificate.common_name == name,
        expected=name,
        seen=certificate.common_name,
        error=BadChain,
        remedy=_REFRESH,
    )


def check_chain(checks: Checks, leaf: Certificate, ask: Certificate, ark: Certificate, roots: TrustRoots) -> str:
    """Step 1: the leaf is signed by the ASK, and that by a pinned ARK. Returns the product of the ARK."""
    product = checks.require_found(
        "ARK: pinned",
        next((name for name, pin in roots.amd.items() if pin == ark.fingerprint), None),
        expected=", ".join(f"{name} {pin}" for name, pin in roots.amd.items()),
        seen=ark.fingerprint,
        error=BadChain,
        message=f"the chain ends in a root that is not AMD's: SHA-256 {ark.fingerprint}",
        remedy="refuse the evidence: it is not from an AMD processor",
    )
    vlek = leaf.what == "VLEK"
    _check_name(checks, ark, f"ARK-{product}")
    check_issued(checks, ark, ark, remedy=_REFRESH)
    _check_name(checks, ask, f"SEV-VLEK-{product}" if vlek else f"SEV-{product}")
    check_issued(checks, ask, ark, remedy=_REFRESH)
    checks.require(
        "ASK: is a CA",
        ask.is_ca and ark.is_ca,
        expected="basic constraints with CA true",
        seen="not so",
        error=BadChain,
    )
    _check_name(checks, leaf, "SEV-VLEK" if vlek else "SEV-VCEK")
    check_issued(checks, leaf, ask, remedy=_REFRESH)
    return product


def check_revocation(checks: Checks, raw: bytes, ask: Certificate, ark: Certificate) -> Window:
    """Step 1: AMD's CRL is the ARK's and does not list the ASK. Returns the validity of the CRL."""
    crl = parse_crl(raw, "AMD CRL")
    checks.require(
        "AMD CRL: issuer",
        crl.issuer == ark.subject,
        expected=ark.subject,
        seen=crl.issuer,
        error=Mismatch,
        remedy=_REFRESH,
    )
    checks.require(
        "AMD CRL: signature",
        crl.is_signed_by(ark),
        expected="a signature by the ARK",
        seen="a signature by another key, or over other bytes",
        error=BadChain,
        remedy=_REFRESH,
    )
    checks.require(
        "ASK: not revoked",
        ask.serial not in crl.revoked,
        expected="a serial number that is not in the AMD CRL",
        seen=f"serial number {ask.serial:x}",
        error=Revoked,
        message="AMD has revoked the certificate that issued this chip's",
        remedy="fetch the chip's certificates again: AMD issues new ones",
    )
    return crl.window


def check_signature(checks: Checks, report: SNPReport, leaf: Certificate) -> None:
    """Step 2: the report is signed by the leaf's key."""
    key, signature = leaf.p384, report.signature
    checks.require(
        "report: signature",
        key is not None and signature is not None and ecdsa_is_valid(key, signature, report.signed_part, _SHA384),
        expected=f"a signature by the {leaf.what}",
        seen="a signature by another key, or over other bytes",
        error=BadChain,
        remedy="the report was altered, or the certificate is of another chip or TCB: " + _REFRESH,
    )


def chip_id_of(chip: ChipCertificate, product: str) -> bytes:
    """The chip id that a VCEK names, 64 bytes as a report writes it. Empty where it names none (a VLEK)."""
    identifier = chip.hardware_id or b""
    return identifier.ljust(64, b"\0") if product == "Turin" and len(identifier) == 8 else identifier


def check_chip(checks: Checks, report: SNPReport, chip: ChipCertificate, product: str, *, vlek: bool) -> None:
    """Step 3: the leaf is for the product, chip and TCB that the report states."""
    stated = product if report.version == 2 else report.product  # version 2 does not say
    checks.require(
        "product",
        chip.product.partition("-")[0] == product and stated == product,
        expected=product,
        seen=f"{chip.product} in the certificate, {stated or 'an unknown processor'} in the report",
        error=Mismatch,
        remedy=_REFRESH,
    )
    reported = TCBVersion.parse(report.field("reported_tcb"), turin=product == "Turin")
    checks.require(
        "TCB: certificate is for the reported one",
        chip.tcb == reported,
        expected=reported,
        seen=chip.tcb,
        error=Mismatch,
        remedy=_REFRESH,
    )
    if vlek:
        checks.require(
            "VLEK: names a provider",
            chip.csp_id is not None and chip.hardware_id is None,
            expected="a provider and no chip",
            seen=chip.csp_id or "no provider",
            error=Mismatch,
        )
    else:
        identifier = chip_id_of(chip, product)
        checks.require(
            "chip id: certificate is for this chip",
            any(identifier) and (report.masks_chip_id or identifier == report.chip_id),
            expected="a chip id in the certificate" if report.masks_chip_id else report.chip_id,
            seen=identifier or "no chip id in the certificate",
            error=Mismatch,
            remedy=_REFRESH,
        )


def verify(
    report: SNPReport,
    collateral: AMDCollateral,
    roots: TrustRoots,
    now: datetime,
    *,
    checks: Checks | None = None,
) -> VerifiedReport:
    """Verify a SEV-SNP report at the time `now` (aware). Raises an EvidenceError that names the step.

    Without a CRL in the collateral, `revocation_checked` is False in the result, and a policy has to allow that.
    """
    if now.tzinfo is None:
        raise UsageError("the time of verification needs a time zone")
    checks = Checks() if checks is None else checks
    signing = report.signing_key
    checks.require(
        "signing key",
        signing in _KEY_NAMES,
        expected="VCEK (0) or VLEK (1)",
        seen=signing,
        error=MalformedQuote,
        remedy="the firmware was told not to sign: request the report again with a signing key",
    )
    vlek = signing == KEY_VLEK
    leaf = parse_certificate(collateral.leaf, "VLEK" if vlek else "VCEK")
    ask, ark = parse_certificate(collateral.ask, "ASK"), parse_certificate(collateral.ark, "ARK")
    product = check_chain(checks, leaf, ask, ark, roots)
    windows = [leaf.window, ask.window, ark.window]
    if collateral.crl is not None:
        windows.append(check_revocation(checks, collateral.crl, ask, ark))
    check_validity(checks, windows, now)
    check_signature(checks, report, leaf)
    chip = parse_chip_certificate(leaf)
    check_chip(checks, report, chip, product, vlek=vlek)
    turin = product == "Turin"
    return VerifiedReport(
        tee="snp",
        status=TCBStatus.NOT_STATED,
        part_statuses=MappingProxyType({}),
        advisories=(),
        measurement=Measurement(report.measurement),
        mrsigner=None,
        isv_prod_id=None,
        isv_svn=None,
        debug=report.debug,
        report_data=report.report_data,
        root_fingerprint=Digest(ark.fingerprint.raw),
        tcb_date=None,
        evaluation_number=None,
        issued_at=None,
        expires_at=min(window.not_after for window in windows),
        verified_at=now,
        platform=MappingProxyType(
            {
                "product": product,
                "certificate": leaf.what,
                "provider": chip.csp_id,
                "chip_id": (chip_id_of(chip, product) or None) if report.masks_chip_id else report.chip_id,
                "chip_id_masked": report.masks_chip_id,
                "reported_tcb": str(chip.tcb),
                "committed_tcb": str(TCBVersion.parse(report.field("committed_tcb"), turin=turin)),
                "current_tcb": str(TCBVersion.parse(report.field("current_tcb"), turin=turin)),
                "launch_tcb": str(TCBVersion.parse(report.field("launch_tcb"), turin=turin)),
                "vmpl": report.number("vmpl"),
                "guest_policy": f"{report.policy:#x}",
                "host_data": report.field("host_data"),
            }
        ),
        revocation_checked=collateral.crl is not None,
        checks=tuple(checks.done),
        evidence=report,
        made_by=VERIFIER,
    )
