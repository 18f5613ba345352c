"""Verify SGX and TDX quotes: quote, collateral, roots and time go in, a VerifiedReport or a refusal comes out.

The steps, with one function each (named as in docs/attestation.md):

A  structure: done by the parsers
B  PCK certificate chain to a pinned root, root CRL and PCK CRL, revocation
C  TCB info: signer's chain, signature, content, the platform it is for
D  QE identity: likewise
E  TDX module: who signed it
F  signatures: QE report by the PCK key, attestation key by the QE report, QE against its identity, quote by the
   attestation key
G-K  TCB levels and their convergence: `adyton.attest.tcb`
T  validity of all documents in use, at the time of verification

Steps that do not depend on the quote or on time are done once and kept in a `Cache`: the signatures of C and D, the
CRLs, the chain of B. Validity and revocation are judged anew for every quote.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from cryptography import x509

from adyton.attest import tcb
from adyton.attest.certificates import (
    CRL,
    Certificate,
    Known,
    Window,
    ecdsa_is_valid,
    load_p256,
    parse_chain,
    parse_crl,
)
from adyton.attest.checks import Checks
from adyton.attest.issued import check_issued
from adyton.attest.pck import SGX_EXTENSION, Platform, parse_sgx_extension
from adyton.attest.quote import PPID_SIZES, CertificationType, parse_ppid_certification
from adyton.attest.report import VERIFIER, VerifiedReport
from adyton.attest.sgx import SGXQuote
from adyton.attest.shortfall import Shortfall, intel_shortfalls
from adyton.attest.status import TCBStatus
from adyton.attest.tcb import Verdict
from adyton.attest.tcbinfo import EnclaveIdentity, TCBInfo, parse_enclave_identity, parse_tcb_info
from adyton.attest.validity import check_validity
from adyton.check import Check
from adyton.errors import BadChain, MalformedQuote, Mismatch, Revoked, UsageError
from adyton.lru import Recent
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from collections.abc import Hashable

    from adyton.attest.collateral import Collateral
    from adyton.attest.roots import TrustRoots
    from adyton.attest.tdx import TDXQuote

ROOT_NAME: Final = "SGX Root CA"
CA_NAME: Final = "CA"
PCK_NAME: Final = "SGX PCK Certificate"
TCB_SIGNING_NAME: Final = "SGX TCB Signing"

_EXTENSIONS: Final = (
    x509.AuthorityKeyIdentifier,
    x509.SubjectKeyIdentifier,
    x509.KeyUsage,
    x509.BasicConstraints,
)
_REFRESH: Final = "fetch the collateral again: adyton collateral fetch"
_FOREIGN_CHAIN: Final = "the evidence does not come from Intel's quoting infrastructure, or was altered on its way"


Judged = tuple[Verdict, tuple[Shortfall, ...]]
"""The status of a platform, and the security versions that keep it down."""


@dataclass(frozen=True, slots=True)
class VerifiedCollateral:
    """Collateral with verified chains and signatures. Its validity in time is judged at every use."""

    root: Certificate
    pck_ca: Certificate
    root_crl: CRL
    pck_crl: CRL
    tcb_info: TCBInfo
    identity: EnclaveIdentity
    windows: tuple[Window, ...]
    issued_at: datetime
    expires_at: datetime
    checks: tuple[Check, ...]
    known: Known
    """The certificates in it, parsed and with verified signatures. PCK chains use the same root and CA."""
    verdicts: Recent[Hashable, Judged]


@dataclass(frozen=True, slots=True)
class VerifiedPCK:
    """A PCK chain with verified names, extensions and signatures, up to a pinned root."""

    root: Certificate
    ca: Certificate
    leaf: Certificate
    platform: Platform
    windows: tuple[Window, ...]
    expires_at: datetime
    checks: tuple[Check, ...]


class Cache:
    """Cache of verified collateral and PCK chains. Thread-safe."""

    def __init__(self, *, collateral: int = 64, chains: int = 1024) -> None:
        self.collateral: Recent[Hashable, VerifiedCollateral] = Recent(collateral)
        self.chains: Recent[Hashable, VerifiedPCK] = Recent(chains)


def _check_profile(checks: Checks, certificate: Certificate, name: str, *, ca: bool) -> None:
    """B4: names, key, algorithm and the extensions that every certificate of this hierarchy has."""
    what = certificate.what
    checks.require(
        f"{what}: name",
        name in certificate.common_name,
        expected=f"a common name with {name!r}",
        seen=certificate.common_name,
        error=BadChain,
        remedy=_FOREIGN_CHAIN,
    )
    checks.require(
        f"{what}: extensions",
        certificate.has_extensions(_EXTENSIONS) and certificate.is_ca == ca and certificate.p256 is not None,
        expected=f"P-256; key identifiers, key usage, basic constraints with CA {'true' if ca else 'false'}",
        seen="not so" if not certificate.has_extensions(_EXTENSIONS) or certificate.is_ca != ca else "as expected",
        error=BadChain,
        remedy=_FOREIGN_CHAIN,
    )


def check_root(checks: Checks, root: Certificate, roots: TrustRoots) -> None:
    """B1: the root is pinned, and its name and its own signature are right."""
    _check_profile(checks, root, ROOT_NAME, ca=True)
    check_issued(checks, root, root, remedy=_FOREIGN_CHAIN)
    checks.require(
        f"{root.what}: pinned",
        root.fingerprint in roots.intel or root.fingerprint in roots.sim,
        expected="Intel's SGX root, or a simulated root that was named",
        seen=root.fingerprint,
        error=BadChain,
        message=f"the chain ends in a root that is not trusted: {root.common_name}, SHA-256 {root.fingerprint}",
        remedy="if this is your simulated platform, name its root as sim:<fingerprint>; otherwise refuse the evidence",
    )


def check_ca(checks: Checks, ca: Certificate, root: Certificate) -> None:
    """B2: the PCK CA."""
    _check_profile(checks, ca, CA_NAME, ca=True)
    check_issued(checks, ca, root, remedy=_FOREIGN_CHAIN)


def check_leaf(checks: Checks, leaf: Certificate, ca: Certificate) -> None:
    """B3: the PCK certificate."""
    _check_profile(checks, leaf, PCK_NAME, ca=False)
    check_issued(checks, leaf, ca, remedy=_FOREIGN_CHAIN)


def check_crl(checks: Checks, crl: CRL, issuer: Certificate) -> None:
    """B5: a CRL is signed by its CA."""
    checks.require(
        f"{crl.what}: issuer",
        crl.issuer == issuer.subject,
        expected=issuer.subject,
        seen=crl.issuer,
        error=Mismatch,
        remedy=_REFRESH,
    )
    checks.require(
        f"{crl.what}: signature",
        crl.is_signed_by(issuer),
        expected=f"a signature by the {issuer.what}",
        seen="a signature by another key, or over other bytes",
        error=BadChain,
        remedy=_REFRESH,
    )


def check_pck_chain(checks: Checks, chain: str | bytes, roots: TrustRoots, known: Known | None = None) -> VerifiedPCK:
    """The part of step B that does not depend on CRLs and time: PCK certificate, its CA, the root."""
    leaf, ca, root = parse_chain(chain, ("PCK certificate", "PCK CA", "root CA"), "PCK certificate chain", known)
    check_root(checks, root, roots)
    check_ca(checks, ca, root)
    check_leaf(checks, leaf, ca)
    extension = leaf.unrecognized(SGX_EXTENSION)
    if extension is None:
        raise MalformedQuote(
            "the PCK certificate has no SGX extension",
            check="PCK certificate SGX extension",
            expected=SGX_EXTENSION,
            seen="none",
        )
    platform = parse_sgx_extension(extension)
    windows = (leaf.window, ca.window, root.window)
    expires_at = min(window.not_after for window in windows)
    return VerifiedPCK(root, ca, leaf, platform, windows, expires_at, tuple(checks.done))


def _check_signer(
    checks: Checks, chain: str, what: str, root: Certificate, root_crl: CRL, known: Known | None
) -> Certificate:
    """C, D: the signer of a JSON document is under the same root and is not revoked."""
    signer, top = parse_chain(chain, (f"{what} signer", f"{what} root CA"), f"{what} issuer chain", known)
    checks.require(
        f"{what}: root",
        top.der == root.der,
        expected=root.fingerprint,
        seen=top.fingerprint,
        error=BadChain,
        remedy=_REFRESH,
    )
    _check_profile(checks, signer, TCB_SIGNING_NAME, ca=False)
    check_issued(checks, signer, root, remedy=_FOREIGN_CHAIN)
    check_not_revoked(checks, signer, root_crl)
    return signer


def check_not_revoked(checks: Checks, certificate: Certificate, crl: CRL) -> None:
    """B6: a certificate is not listed in the CRL of its issuer."""
    checks.require(
        f"{certificate.what}: not revoked",
        certificate.serial not in crl.revoked,
        expected=f"a serial number that is not in the {crl.what}",
        seen=f"serial number {certificate.serial:x}, {crl.what} number {crl.number}",
        error=Revoked,
        message=f"the {certificate.what} is revoked",
        remedy="this platform or its vendor's key is no longer trusted: use another machine, or re-provision it",
    )


def _check_document(checks: Checks, what: str, signer: Certificate, text: str, signature: bytes) -> None:
    key = signer.p256
    checks.require(
        f"{what}: signature",
        key is not None and len(signature) == 64 and ecdsa_is_valid(key, signature, text.encode()),
        expected=f"a signature by the {signer.what}",
        seen="a signature by another key, or over other bytes",
        error=BadChain,
        remedy=_REFRESH,
    )


def check_collateral(
    checks: Checks, collateral: Collateral, roots: TrustRoots, known: Known | None = None
) -> VerifiedCollateral:
    """The parts of steps B5, C and D that do not depend on the quote and on time."""
    known = {} if known is None else known
    ca, root = parse_chain(
        collateral.pck_crl_issuer_chain, ("PCK CRL issuer", "PCK CRL root CA"), "PCK CRL chain", known
    )
    check_root(checks, root, roots)
    check_ca(checks, ca, root)
    root_crl = parse_crl(collateral.root_ca_crl, "root CA CRL")
    check_crl(checks, root_crl, root)
    pck_crl = parse_crl(collateral.pck_crl, "PCK CRL")
    check_crl(checks, pck_crl, ca)
    signer = _check_signer(checks, collateral.tcb_info_issuer_chain, "TCB info", root, root_crl, known)
    _check_document(checks, "TCB info", signer, collateral.tcb_info, collateral.tcb_info_signature)
    info = parse_tcb_info(collateral.tcb_info)
    qe_signer = _check_signer(checks, collateral.qe_identity_issuer_chain, "QE identity", root, root_crl, known)
    _check_document(checks, "QE identity", qe_signer, collateral.qe_identity, collateral.qe_identity_signature)
    identity = parse_enclave_identity(collateral.qe_identity)
    documents = (
        Window("TCB info", info.issue_date, info.next_update),
        Window("QE identity", identity.issue_date, identity.next_update),
        pck_crl.window,
        root_crl.window,
    )
    windows = (*documents, signer.window, qe_signer.window, ca.window, root.window)
    return VerifiedCollateral(
        root=root,
        pck_ca=ca,
        root_crl=root_crl,
        pck_crl=pck_crl,
        tcb_info=info,
        identity=identity,
        windows=windows,
        issued_at=min(window.not_before for window in documents),
        expires_at=min(window.not_after for window in windows),
        checks=tuple(checks.done),
        known={raw: certificate for raw, certificate in known.items() if raw in (root.der, ca.der)},
        verdicts=Recent(256),
    )


def check_belongs(checks: Checks, pck: VerifiedPCK, good: VerifiedCollateral, *, tdx: bool) -> None:
    """B5, B6, C, D: the collateral is for this platform and this kind of TEE. Nothing is revoked."""
    checks.require(
        "root CA: same in quote and collateral",
        pck.root.der == good.root.der,
        expected=pck.root.fingerprint,
        seen=good.root.fingerprint,
        error=BadChain,
        remedy=_REFRESH,
    )
    checks.require(
        "PCK CRL: of the CA that issued the PCK certificate",
        pck.ca.subject == good.pck_ca.subject and pck.ca.spki == good.pck_ca.spki,
        expected=pck.ca.common_name,
        seen=good.pck_ca.common_name,
        error=Mismatch,
        remedy="fetch the collateral of this platform: adyton collateral fetch --for EVIDENCE",
    )
    check_not_revoked(checks, pck.ca, good.root_crl)
    check_not_revoked(checks, pck.leaf, good.pck_crl)
    info, identity = good.tcb_info, good.identity
    kind = "TDX" if tdx else "SGX"
    checks.require(
        "TCB info: kind of TEE", info.id == kind, expected=kind, seen=info.id, error=Mismatch, remedy=_REFRESH
    )
    for name, expected, seen in (
        ("TCB info: FMSPC", pck.platform.fmspc, info.fmspc),
        ("TCB info: PCEID", pck.platform.pce_id, info.pce_id),
    ):
        checks.require(
            name,
            expected == seen,
            expected=expected,
            seen=seen,
            error=Mismatch,
            message=f"the TCB info is for another kind of platform ({name[10:]} {seen.hex()}, not {expected.hex()})",
            remedy="fetch the collateral of this platform: adyton collateral fetch --for EVIDENCE",
        )
    wanted = "TD_QE" if tdx else "QE"
    checks.require(
        "QE identity: kind", identity.id == wanted, expected=wanted, seen=identity.id, error=Mismatch, remedy=_REFRESH
    )


def check_tdx_module(checks: Checks, quote: TDXQuote, info: TCBInfo) -> None:
    """Step E: the TCB info lists the TDX module, with its version, signer and attributes."""
    report = quote.report
    svn = report.tee_tcb_svn
    module = checks.require_found(
        "TDX module: known version",
        tcb.module_identity(info, svn),
        expected=[identity.id for identity in info.modules],
        seen=f"TDX_{svn[1]:02X}",
        error=Mismatch,
        remedy=_REFRESH,
    )
    svn2 = report.tee_tcb_svn2
    if svn2 is not None:
        checks.require(
            "TDX module loaded now: known version",
            tcb.module_identity(info, svn2) is not None,
            expected=[identity.id for identity in info.modules],
            seen=f"TDX_{svn2[1]:02X}",
            error=Mismatch,
            remedy=_REFRESH,
        )
    checks.require(
        "TDX module: signer",
        report.mrsigner_seam == module.mrsigner,
        expected=module.mrsigner,
        seen=report.mrsigner_seam,
        error=Mismatch,
    )
    seen = bytes(a & b for a, b in zip(report.seam_attributes, module.attributes_mask, strict=True))
    checks.require(
        "TDX module: attributes",
        seen == module.attributes and not any(report.seam_attributes),
        expected=module.attributes,
        seen=report.seam_attributes,
        error=Mismatch,
    )


def check_qe(checks: Checks, quote: SGXQuote | TDXQuote, pck: VerifiedPCK, identity: EnclaveIdentity) -> None:
    """Steps F1 to F3: the QE report is the platform's, names the attestation key, and is of Intel's enclave."""
    part = quote.signature
    qe = part.qe_report
    key = pck.leaf.p256
    checks.require(
        "QE report: signature",
        key is not None and ecdsa_is_valid(key, part.qe_report_signature, qe.raw),
        expected="a signature by the PCK certificate's key",
        seen="a signature by another key, or over other bytes",
        error=BadChain,
        remedy=_FOREIGN_CHAIN,
    )
    bound = hashlib.sha256(part.attestation_key + part.qe_auth_data).digest() + bytes(32)
    checks.require(
        "attestation key: named by the QE report",
        qe.report_data == bound,
        expected=bound,
        seen=qe.report_data,
        error=BadChain,
        remedy=_FOREIGN_CHAIN,
    )
    mask = int.from_bytes(identity.attributes_mask, "little")
    for name, expected, seen in (
        ("QE: MISCSELECT", identity.misc_select, qe.misc_select & identity.misc_select_mask),
        (
            "QE: attributes",
            int.from_bytes(identity.attributes, "little"),
            int.from_bytes(qe.attributes, "little") & mask,
        ),
        ("QE: MRSIGNER", identity.mrsigner, qe.mrsigner),
        ("QE: product", identity.isv_prod_id, qe.isv_prod_id),
    ):
        checks.require(
            name,
            expected == seen,
            expected=expected,
            seen=seen,
            error=Mismatch,
            remedy="this quoting enclave is not Intel's: refuse the evidence",
        )


def check_quote_signature(checks: Checks, quote: SGXQuote | TDXQuote) -> None:
    """Step F4: the quote is signed by the attestation key."""
    key = load_p256(quote.signature.attestation_key)
    checks.require(
        "quote: signature",
        key is not None and ecdsa_is_valid(key, quote.signature.signature, quote.signed_part),
        expected="a signature by the attestation key",
        seen="a signature by another key, or over other bytes",
        error=BadChain,
        remedy="the quote was altered on its way; collect it again",
    )


def _certification_chain(quote: SGXQuote | TDXQuote, collateral: Collateral, checks: Checks) -> str | bytes:
    """The PCK chain: from the quote (type 5), or from the collateral for the types that only name it."""
    kind = quote.signature.certification_type
    if kind == CertificationType.PCK_CHAIN:
        return quote.signature.certification_data
    return checks.require_found(
        "PCK certificate chain: given",
        collateral.pck_certificate_chain,
        expected="a PCK certificate chain in the quote or in the collateral",
        seen=f"certification data of type {kind} and none in the collateral",
        error=Mismatch,
        message=f"certification data of type {kind} does not hold the PCK certificate chain",
        remedy="fetch the PCK certificate from Intel's PCS or a PCCS: adyton collateral fetch --for EVIDENCE",
    )


def _check_certification(quote: SGXQuote | TDXQuote, pck: VerifiedPCK, checks: Checks) -> None:
    """Certification data of types 1 to 4 agree with the PCK certificate."""
    kind, data = quote.signature.certification_type, quote.signature.certification_data
    if kind == CertificationType.PCK_LEAF:
        (leaf,) = parse_chain(data, ("PCK certificate",), "certification data")
        checks.require(
            "certification data: PCK certificate",
            leaf.der == pck.leaf.der,
            expected=pck.leaf.fingerprint,
            seen=leaf.fingerprint,
            error=Mismatch,
        )
    elif kind in PPID_SIZES:
        named = parse_ppid_certification(kind, data)
        checks.require(
            "certification data: PCEID",
            named.pce_id == pck.platform.pce_id[::-1] or named.pce_id == pck.platform.pce_id,
            expected=pck.platform.pce_id,
            seen=named.pce_id,
            error=Mismatch,
        )
        if kind == CertificationType.PPID_PLAIN:
            checks.require(
                "certification data: PPID",
                named.ppid == pck.platform.ppid,
                expected=pck.platform.ppid,
                seen=named.ppid,
                error=Mismatch,
            )


def _verified_collateral(
    collateral: Collateral, roots: TrustRoots, checks: Checks, cache: Cache | None, known: Known
) -> VerifiedCollateral:
    key = (collateral, roots.key)
    good = cache.collateral.get(key) if cache else None
    if good is None:
        own = Checks()
        try:
            good = check_collateral(own, collateral, roots, known)
        finally:
            checks.done += own.done
        if cache:
            cache.collateral.put(key, good)
    else:
        checks.done += good.checks
    return good


def _verified_pck(
    chain: str | bytes, roots: TrustRoots, checks: Checks, cache: Cache | None, known: Known
) -> VerifiedPCK:
    key = (chain, roots.key)
    pck = cache.chains.get(key) if cache else None
    if pck is None:
        own = Checks()
        try:
            pck = check_pck_chain(own, chain, roots, known)
        finally:
            checks.done += own.done
        if cache:
            cache.chains.put(key, pck)
    else:
        checks.done += pck.checks
    return pck


def _judge(quote: SGXQuote | TDXQuote, pck: VerifiedPCK, good: VerifiedCollateral) -> Judged:
    platform, qe_svn = pck.platform, quote.signature.qe_report.isv_svn
    svn, svn2 = (None, None) if isinstance(quote, SGXQuote) else (quote.report.tee_tcb_svn, quote.report.tee_tcb_svn2)
    key = (platform.components, platform.pce_svn, qe_svn, svn, svn2)
    found = good.verdicts.get(key)
    if found is None:
        verdict = tcb.judge(
            good.tcb_info,
            good.identity,
            components=platform.components,
            pce_svn=platform.pce_svn,
            qe_svn=qe_svn,
            tee_tcb_svn=svn,
            tee_tcb_svn2=svn2,
        )
        shortfalls: tuple[Shortfall, ...] = ()
        if verdict.status is not TCBStatus.UP_TO_DATE:
            shortfalls = intel_shortfalls(
                good.tcb_info,
                good.identity,
                components=platform.components,
                pce_svn=platform.pce_svn,
                qe_svn=qe_svn,
                tee_tcb_svn=svn,
                tee_tcb_svn2=svn2,
            )
        found = verdict, shortfalls
        good.verdicts.put(key, found)
    return found


def verify(
    quote: SGXQuote | TDXQuote,
    collateral: Collateral,
    roots: TrustRoots,
    now: datetime,
    *,
    cache: Cache | None = None,
    checks: Checks | None = None,
) -> VerifiedReport:
    """Verify a quote at the time `now` (aware). Raises an EvidenceError that names the step.

    A platform that is out of date, revoked or unknown to the TCB info is a result (its status), not an error:
    `appraise` decides. `checks` collects every check, also the failed one.
    """
    if now.tzinfo is None:
        raise UsageError("the time of verification needs a time zone")
    checks = Checks() if checks is None else checks
    tdx = not isinstance(quote, SGXQuote)
    chain = _certification_chain(quote, collateral, checks)
    cached = cache.collateral.get((collateral, roots.key)) if cache else None
    known: Known = dict(cached.known) if cached else {}
    pck = _verified_pck(chain, roots, checks, cache, known)
    if quote.signature.certification_type != CertificationType.PCK_CHAIN:
        _check_certification(quote, pck, checks)
    good = _verified_collateral(collateral, roots, checks, cache, known)
    check_belongs(checks, pck, good, tdx=tdx)
    check_validity(checks, pck.windows + good.windows, now)
    if not isinstance(quote, SGXQuote):
        check_tdx_module(checks, quote, good.tcb_info)
    check_qe(checks, quote, pck, good.identity)
    check_quote_signature(checks, quote)
    judged = _judge(quote, pck, good)
    return _report(quote, pck, good, judged, now, roots, checks, collateral.channel)


def _report(
    quote: SGXQuote | TDXQuote,
    pck: VerifiedPCK,
    good: VerifiedCollateral,
    judged: Judged,
    now: datetime,
    roots: TrustRoots,
    checks: Checks,
    channel: str | None,
) -> VerifiedReport:
    """Step M: the result, with the members that a policy can judge."""
    verdict, shortfalls = judged
    sgx = isinstance(quote, SGXQuote)
    parts = {"sgx": verdict.sgx, "tdx": verdict.tdx, "module": verdict.module, "qe": verdict.qe}
    root = pck.root.fingerprint
    simulated = root not in roots.intel
    tee = {(True, False): "sgx", (False, False): "tdx", (True, True): "sim", (False, True): "sim-tdx"}[sgx, simulated]
    info, platform = good.tcb_info, pck.platform
    report = quote.report
    enclave = quote.report if isinstance(quote, SGXQuote) else None
    return VerifiedReport(
        tee=tee,
        status=verdict.status,
        part_statuses=MappingProxyType({name: status for name, status in parts.items() if status is not None}),
        advisories=verdict.advisories,
        measurement=Measurement(quote.report.mrenclave if isinstance(quote, SGXQuote) else quote.report.mrtd),
        mrsigner=Digest(enclave.mrsigner) if enclave else None,
        isv_prod_id=enclave.isv_prod_id if enclave else None,
        isv_svn=enclave.isv_svn if enclave else None,
        debug=report.debug,
        report_data=report.report_data,
        root_fingerprint=root,
        tcb_date=verdict.tcb_date,
        evaluation_number=min(info.evaluation_number, good.identity.evaluation_number),
        issued_at=good.issued_at,
        expires_at=min(pck.expires_at, good.expires_at),
        verified_at=now,
        platform=MappingProxyType(
            {
                "fmspc": platform.fmspc,
                "pce_id": platform.pce_id,
                "pce_svn": platform.pce_svn,
                "components": platform.components,
                "ppid": platform.ppid,
                "piid": platform.instance_id,
                "sgx_type": platform.sgx_type,
                "ca": pck.ca.common_name,
                "dynamic": platform.dynamic,
                "cached_keys": platform.cached_keys,
                "smt": platform.smt,
                "pck_crl_number": good.pck_crl.number,
                "root_crl_number": good.root_crl.number,
                "tcb_info_version": info.version,
                "tcb_channel": channel,
            }
        ),
        revocation_checked=True,
        shortfalls=shortfalls,
        checks=tuple(checks.done),
        evidence=quote,
        made_by=VERIFIER,
    )
