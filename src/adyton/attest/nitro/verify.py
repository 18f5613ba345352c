"""Verify a Nitro document: from its bytes to a VerifiedReport, or a refusal that names the step.

::

    1  the chain: a pinned root, its CAs, the leaf; names, key usage, path lengths, P-384 signatures
    2  validity: every certificate at the document's own time, which is not in the future
    3  the document's signature by the leaf
    4  the registers that name the program are there

The leaf is valid for three hours and there are no revocation lists, so the time is the document's own. How old a
document may be is a matter of policy (`appraise`). Whether an enclave is in debug mode stands in the report.

Source: AWS, aws-nitro-enclaves-nsm-api, docs/attestation_process.md, "Attestation document validation".
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attest.certificates import Certificate, Window, ecdsa_is_valid, parse_certificate
from adyton.attest.checks import Checks
from adyton.attest.issued import check_issued
from adyton.attest.report import VERIFIER, VerifiedReport
from adyton.attest.status import TCBStatus
from adyton.errors import BadChain, Mismatch, Stale, UsageError
from adyton.lru import Recent
from adyton.values import Measurement

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from datetime import datetime

    from adyton.attest.nitro.document import NitroDocument
    from adyton.attest.roots import TrustRoots

CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far in the future a document's time may lie."""

PROGRAM_PCR: Final[Mapping[str, int]] = MappingProxyType({"nitro": 0, "nitrotpm": 4})
"""The PCR that becomes the report's measurement: the enclave image, or what the machine's firmware started."""

_SHA384: Final = ec.ECDSA(hashes.SHA384())
_FOREIGN: Final = "refuse the evidence: it is not from Amazon's Nitro hypervisor"
_AGAIN: Final = "take a new document from the machine"


class IssuingChain(NamedTuple):
    """The verified certificates above a leaf: root first. Their validity in time was not checked."""

    certificates: tuple[Certificate, ...]

    @property
    def root(self) -> Certificate:
        """The pinned root."""
        return self.certificates[0]

    @property
    def issuer(self) -> Certificate:
        """The certificate that issued the leaf."""
        return self.certificates[-1]

    @property
    def windows(self) -> tuple[Window, ...]:
        """The validity of each."""
        return tuple(certificate.window for certificate in self.certificates)


class Cache:
    """Cache of verified issuing chains, which are the same for every document of a machine. Thread-safe."""

    def __init__(self, *, chains: int = 1024) -> None:
        self.chains: Recent[Hashable, IssuingChain] = Recent(chains)


def _usage(certificate: Certificate) -> x509.KeyUsage | None:
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.KeyUsage):
            return extension.value
    return None


def _unknown_critical(certificate: Certificate) -> str | None:
    """The OID of a critical extension that is not understood here."""
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, (x509.BasicConstraints, x509.KeyUsage)):
            return str(extension.oid.dotted_string)
    return None


def _path_length(certificate: Certificate) -> int | None:
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.BasicConstraints):
            return extension.value.path_length
    return None


def _check_profile(checks: Checks, certificate: Certificate, *, ca: bool) -> None:
    what, usage, strange = certificate.what, _usage(certificate), _unknown_critical(certificate)
    may = usage is not None and (usage.key_cert_sign if ca else usage.digital_signature)
    checks.require(
        f"{what}: extensions",
        may and certificate.is_ca == ca and certificate.p384 is not None and strange is None,
        expected=f"P-384, CA {'true' if ca else 'false'}, may sign {'certificates' if ca else 'documents'}",
        seen=f"the unknown critical extension {strange}" if strange else "not so",
        error=BadChain,
        remedy=_FOREIGN,
    )


def check_chain(checks: Checks, cabundle: Sequence[bytes], roots: TrustRoots) -> IssuingChain:
    """Step 1, all but the leaf: the bundle begins with a pinned root, and each certificate issued the next."""
    names = ["Nitro root CA", *(f"Nitro CA {number}" for number in range(1, len(cabundle)))]
    root = parse_certificate(cabundle[0], names[0])
    checks.require(
        "Nitro root CA: pinned",
        root.fingerprint in roots.nitro,
        expected=", ".join(sorted(map(str, roots.nitro))) or "none is trusted",
        seen=root.fingerprint,
        error=BadChain,
        message=f"the chain begins with a root that is not Amazon's: SHA-256 {root.fingerprint}",
        remedy=_FOREIGN,
    )
    chain = [root]
    _check_profile(checks, root, ca=True)
    for raw, name in zip(cabundle[1:], names[1:], strict=True):
        certificate = parse_certificate(raw, name)
        _check_profile(checks, certificate, ca=True)
        check_issued(checks, certificate, chain[-1], remedy=_FOREIGN)
        chain.append(certificate)
    for depth, certificate in enumerate(chain):
        below, limit = len(chain) - 1 - depth, _path_length(certificate)
        checks.require(
            f"{certificate.what}: path length",
            limit is None or below <= limit,
            expected=f"at most {limit} CAs below it",
            seen=below,
            error=BadChain,
            remedy=_FOREIGN,
        )
    return IssuingChain(tuple(chain))


def check_validity(checks: Checks, windows: Sequence[Window], made_at: datetime, now: datetime) -> None:
    """Step 2: the document is not from the future, and every certificate was valid when it was made."""
    checks.require(
        "document: not from the future",
        made_at <= now + CLOCK_SKEW,
        expected=f"at most {now + CLOCK_SKEW:%Y-%m-%dT%H:%M:%SZ}",
        seen=made_at,
        error=Stale,
        remedy="check the clock or --at",
    )
    for what, not_before, not_after in windows:
        checks.require(
            f"{what}: valid when the document was made",
            not_before <= made_at <= not_after,
            expected=(not_before, not_after),
            seen=made_at,
            error=Stale,
            remedy=_AGAIN,
        )


def check_signature(checks: Checks, document: NitroDocument, leaf: Certificate) -> None:
    """Step 3: the document is signed by the leaf's key."""
    key = leaf.p384
    checks.require(
        "document: signature",
        key is not None and ecdsa_is_valid(key, document.signature, document.signed_part, _SHA384),
        expected="a signature by the Nitro leaf",
        seen="a signature by another key, or over other bytes",
        error=BadChain,
        remedy="the document was altered: " + _AGAIN,
    )


def _measurement(checks: Checks, document: NitroDocument) -> Measurement:
    """Step 4: the register that names the program."""
    index = PROGRAM_PCR[document.tee]
    value = checks.require_found(
        f"PCR {index}: present",
        document.pcrs.get(index),
        expected=f"PCR {index}",
        seen=", ".join(map(str, sorted(document.pcrs))) or "no PCR",
        error=Mismatch,
        remedy=_AGAIN,
    )
    return Measurement(value)


def verify(
    document: NitroDocument,
    roots: TrustRoots,
    now: datetime,
    *,
    cache: Cache | None = None,
    checks: Checks | None = None,
) -> VerifiedReport:
    """Verify a Nitro document at the time `now` (aware). Raises an EvidenceError that names the step."""
    if now.tzinfo is None:
        raise UsageError("the time of verification needs a time zone")
    checks = Checks() if checks is None else checks
    chain = _issuing_chain(checks, document, roots, cache)
    leaf = parse_certificate(document.certificate, "Nitro leaf")
    _check_profile(checks, leaf, ca=False)
    check_issued(checks, leaf, chain.issuer, remedy=_FOREIGN)
    windows = (*chain.windows, leaf.window)
    check_validity(checks, windows, document.timestamp, now)
    check_signature(checks, document, leaf)
    return VerifiedReport(
        tee=document.tee,
        status=TCBStatus.NOT_STATED,
        part_statuses=MappingProxyType({}),
        advisories=(),
        measurement=_measurement(checks, document),
        mrsigner=None,
        isv_prod_id=None,
        isv_svn=None,
        debug=document.debug,
        report_data=document.report_data,
        root_fingerprint=chain.root.fingerprint,
        tcb_date=None,
        evaluation_number=None,
        issued_at=None,
        expires_at=min(window.not_after for window in windows),
        verified_at=now,
        platform=MappingProxyType(
            {
                "module_id": document.module_id,
                "document_time": document.timestamp.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "certificate": leaf.common_name,
            }
        ),
        revocation_checked=False,
        checks=tuple(checks.done),
        evidence=document,
        made_by=VERIFIER,
    )


def _issuing_chain(checks: Checks, document: NitroDocument, roots: TrustRoots, cache: Cache | None) -> IssuingChain:
    if cache is None:
        return check_chain(checks, document.cabundle, roots)
    key = (hashlib.sha256(b"".join(document.cabundle)).digest(), tuple(map(len, document.cabundle)), roots.key)
    chain = cache.chains.get(key)
    if chain is None:
        chain = check_chain(checks, document.cabundle, roots)
        cache.chains.put(key, chain)
    return chain
