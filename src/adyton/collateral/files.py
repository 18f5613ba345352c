"""Choose the collateral for a piece of evidence from files.

A file may be Intel's or AMD's collateral, a bundle, one document of a store, certificates, or a revocation list, in
JSON, PEM or DER. Nothing is verified here. The verification of the evidence verifies the collateral.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.attest.amd import parse_chip_certificate
from adyton.attest.azure.evidence import AzureEvidence
from adyton.attest.certificates import decode_crl, leaf_first, parse_certificate, parse_crl, split_pem
from adyton.attest.collateral import AMDCollateral, Collateral, NoCollateral
from adyton.attest.evidence import hardware_part
from adyton.attest.google import GoogleFirmware, endorsed_measurement, parse_endorsement, verify_endorsement
from adyton.attest.sgx import SGXQuote
from adyton.attest.snp import KEY_VLEK, SNPReport, TCBVersion
from adyton.attest.tcbinfo import TCBInfo, parse_tcb_info
from adyton.attest.tdx import TDXQuote
from adyton.capped_read import read_capped
from adyton.collateral.bundle import parse_bundle
from adyton.collateral.documents import Document, Kind, VerifiedDocument, verify_document
from adyton.collateral.needs import assemble, unverified_origin
from adyton.errors import EvidenceError, FetchFailed, MalformedQuote
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from adyton.attest.certificates import CRL, Certificate
    from adyton.attest.evidence import Evidence, HardwareEvidence

MAX_FILES: Final = 4096
MAX_FILE_BYTES: Final = 64 << 20
MAX_BLOCKS: Final = 64
_HEX: Final = re.compile(rb"[0-9a-fA-F\s]+")
_PEM: Final = re.compile(rb"(-----BEGIN (CERTIFICATE|X509 CRL)-----[^-]*-----END \2-----)")


@dataclass
class _Found:
    """The content of the collateral files."""

    intel: list[Collateral] = field(default_factory=list)
    amd: list[AMDCollateral] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    certificates: list[bytes] = field(default_factory=list)
    crls: list[bytes] = field(default_factory=list)
    endorsements: list[bytes] = field(default_factory=list)
    """Google's firmware endorsements."""
    google_roots: list[bytes] = field(default_factory=list)
    """The roots that came with them."""


def _files(paths: Iterable[Path]) -> Iterator[tuple[Path, bool]]:
    """Each file, and whether it was named itself. Other files in a folder of collateral are skipped."""
    for path in paths:
        if path.is_dir():
            found = islice(sorted(item for item in path.rglob("*") if item.is_file()), MAX_FILES)
            yield from ((item, False) for item in found)
        else:
            yield path, True


def _collect(paths: Iterable[Path]) -> _Found:
    """Read every file and sort it by its kind."""
    found = _Found()
    for path, named in _files(paths):
        raw = read_capped(path, MAX_FILE_BYTES, "collateral")
        try:
            _take(raw, path, found)
        except EvidenceError:
            if named:
                raise
    return found


def _take(raw: bytes, path: Path, found: _Found) -> None:
    head = raw[:64].lstrip()
    if _HEX.fullmatch(raw[:64]) is not None:
        raw = _unhexed(raw, path)
        head = raw[:64].lstrip()
    if head.startswith(b"{"):
        _take_json(raw, path, found)
    elif head.startswith(b"-----BEGIN"):
        _take_pem(raw, path, found)
    elif _is_endorsement(raw):
        found.endorsements.append(raw)
    elif _is_crl(raw):
        found.crls.append(raw)
    elif raw[:1] == b"\x30":
        found.certificates.append(raw)
    else:
        raise MalformedQuote(
            f"{path} is no collateral",
            check="parse of the collateral",
            expected="JSON, PEM or DER",
            seen=raw[:8].hex(),
        )


def _unhexed(raw: bytes, path: Path) -> bytes:
    """What stands in a file of hex: DER or PEM, never hex again."""
    try:
        return bytes.fromhex(raw.decode("ascii"))
    except ValueError:
        raise MalformedQuote(
            f"{path} begins as hex and is none",
            check="parse of the collateral",
            expected="JSON, PEM, DER, or hex of PEM or DER",
            seen="other characters behind it",
        ) from None


def _take_pem(raw: bytes, path: Path, found: _Found) -> None:
    """Certificates and revocation lists of one file, in any order."""
    blocks = _PEM.findall(raw)
    if len(blocks) > MAX_BLOCKS or _PEM.sub(b"", raw).strip(b"\x00 \t\r\n"):
        raise MalformedQuote(
            f"{path} holds something beside certificates and revocation lists",
            check="parse of the collateral",
            expected=f"at most {MAX_BLOCKS} PEM blocks",
            seen=f"{len(blocks)} blocks",
        )
    for block, label in blocks:
        if label == b"CERTIFICATE":
            found.certificates += split_pem(block, f"certificates in {path.name}")
        else:
            found.crls.append(decode_crl(block))


def _take_json(raw: bytes, path: Path, found: _Found) -> None:
    """Take one of the JSON forms: Intel's or AMD's collateral, a bundle, or a single document of the store."""
    document = parse_json_object(raw, what=f"collateral {path}", refuse=MalformedQuote, limit_bytes=MAX_FILE_BYTES)
    if "amd_leaf" in document:
        found.amd.append(AMDCollateral.from_dict(document))
        return
    if "tcb_info" in document:
        found.intel.append(Collateral.from_dict(document))
        return
    documents = (Document.from_dict(document),) if "kind" in document else parse_bundle(raw)
    for item in documents:
        if item.kind in ("amd-vcek", "amd-vlek"):
            found.certificates += [item.body, *split_pem(item.chain, "AMD chain")]
        elif item.kind == "amd-crl":
            found.crls.append(item.body)
        elif item.kind == "google-firmware":
            found.endorsements.append(item.body)
            found.google_roots += split_pem(item.chain, "firmware root")
        else:
            found.documents.append(item)


def _is_crl(raw: bytes) -> bool:
    try:
        parse_crl(raw, "CRL")
    except MalformedQuote:
        return False
    return True


def _is_endorsement(raw: bytes) -> bool:
    try:
        parse_endorsement(raw)
    except MalformedQuote:
        return False
    return True


def google_firmware(evidence: Evidence, paths: Iterable[Path], now: datetime) -> GoogleFirmware | None:
    """What Google says of the firmware that the evidence names, by the endorsements in these files and folders.

    None where no endorsement lies there, or the evidence is none of a confidential machine. Raises the EvidenceError of
    the last endorsement where none of them fits.
    """
    if not isinstance(evidence, TDXQuote | SNPReport):
        return None
    tee, measurement = endorsed_measurement(evidence)
    found, last = _collect(paths), None
    for raw in found.endorsements:
        try:
            return verify_endorsement(
                parse_endorsement(raw),
                [*found.google_roots, *found.certificates],
                tee=tee,
                measurement=measurement,
                now=now,
            )
        except EvidenceError as error:
            last = error
    if last is not None:
        raise last
    return None


def missing(what: str) -> FetchFailed:
    """The error where there is no collateral. `what` names the searched files."""
    return FetchFailed(
        f"no collateral to judge this evidence with: {what}",
        check="collateral at hand",
        expected="collateral for this evidence, valid at the time of verification",
        seen="none",
        remedy="fetch it: adyton collateral fetch --for EVIDENCE, or give it: --collateral FILE",
    )


def _with_chain(collateral: Collateral, found: _Found) -> Collateral:
    """The collateral, with a PCK certificate chain from another file."""
    if collateral.pck_certificate_chain is not None or len(found.certificates) != 3:
        return collateral
    chain = "".join(parse_certificate(raw, "PCK certificate chain").pem for raw in found.certificates)
    return replace(collateral, pck_certificate_chain=leaf_first(chain))


def _best(evidence: HardwareEvidence, candidates: list[Collateral], now: datetime) -> Collateral:
    """The newest collateral with valid TCB info for this platform."""
    if not isinstance(evidence, SGXQuote | TDXQuote):
        raise missing("this is for quotes only")
    origin = unverified_origin(evidence)
    kind = "SGX" if isinstance(evidence, SGXQuote) else "TDX"
    fitting = [
        (info, collateral)
        for info, collateral in ((parse_tcb_info(item.tcb_info), item) for item in candidates)
        if info.id == kind and origin.fmspc in (None, info.fmspc)
    ]
    if not fitting:
        raise missing(f"none of the {len(candidates)} given is for {kind} on FMSPC {(origin.fmspc or b'').hex()}")

    def rank(item: tuple[TCBInfo, Collateral]) -> tuple[bool, int, datetime]:
        info = item[0]
        return info.issue_date <= now <= info.next_update, info.evaluation_number, info.issue_date

    return max(fitting, key=rank)[1]


def _from_documents(held: list[Document], evidence: HardwareEvidence, now: datetime) -> list[Collateral]:
    """The collateral that single documents give for this quote, if none is missing."""
    if not isinstance(evidence, SGXQuote | TDXQuote) or not held:
        return []
    origin = unverified_origin(evidence)
    known: dict[tuple[Kind, str], VerifiedDocument] = {}

    def rank(verified: VerifiedDocument) -> tuple[bool, datetime]:
        return verified.issued_at <= now <= verified.expires_at, verified.issued_at

    for document in held:
        with suppress(EvidenceError):  # what is needed and missing in the end is said by `assemble`
            verified = verify_document(document)
            key = (document.kind, verified.subject)
            if verified.root == origin.root and (key not in known or rank(verified) > rank(known[key])):
                known[key] = verified
    try:
        return [assemble(known, origin)]
    except FetchFailed:
        return []


def _choose_amd(evidence: HardwareEvidence, found: _Found, now: datetime) -> AMDCollateral:
    """AMD's certificates: from one document, or from single certificates (leaf, ASK or ASVK, ARK) and a CRL."""
    if found.amd:
        return found.amd[-1]
    if not isinstance(evidence, SNPReport):
        raise missing("this is for SEV-SNP reports only")
    vlek = evidence.signing_key == KEY_VLEK
    leaf_name = "SEV-VLEK" if vlek else "SEV-VCEK"
    parsed = [parse_certificate(raw, "AMD certificate") for raw in found.certificates]
    leaves = [item for item in parsed if item.common_name == leaf_name]
    leaf = next((item for item in leaves if _is_of(item, evidence)), leaves[0] if leaves else None)
    ask = next((item for item in parsed if leaf is not None and item.subject == leaf.issuer), None)
    ark = next((item for item in parsed if ask is not None and item.subject == ask.issuer), None)
    if leaf is None or ask is None or ark is None:
        raise missing(f"it takes the {leaf_name[4:]}, the ASK and the ARK")
    crl = _newest([crl for crl in (parse_crl(raw, "AMD CRL") for raw in found.crls) if crl.issuer == ark.subject], now)
    return AMDCollateral(leaf=leaf.der, ask=ask.der, ark=ark.der, crl=None if crl is None else crl.der)


def _newest(crls: list[CRL], now: datetime) -> CRL | None:
    """Of several lists the one that is valid now, and of those the newest."""
    return max(
        crls,
        key=lambda crl: (crl.window.not_before <= now <= crl.window.not_after, crl.window.not_before),
        default=None,
    )


def _is_of(leaf: Certificate, report: SNPReport) -> bool:
    """Whether a VCEK or VLEK is for the chip and TCB of the report."""
    try:
        chip = parse_chip_certificate(leaf)
    except MalformedQuote:
        return False
    reported = TCBVersion.parse(report.field("reported_tcb"), turin=chip.tcb.fmc is not None)
    same_chip = chip.hardware_id is None or report.masks_chip_id or chip.hardware_id.ljust(64, b"\0") == report.chip_id
    return same_chip and chip.tcb == reported


def choose(evidence: Evidence, paths: Iterable[Path], now: datetime) -> Collateral | AMDCollateral | NoCollateral:
    """The collateral for this evidence in these files and folders.

    Azure's evidence brings the certificate of its chip itself. A TPM's quote needs none. Raises FetchFailed where there
    is none, or where what is there cannot be read: that is no fault of the evidence. Raises MalformedQuote where a
    quote does not say which collateral it needs.
    """
    hardware = hardware_part(evidence)
    if hardware is None:
        return NoCollateral()
    if isinstance(hardware, SGXQuote | TDXQuote):
        unverified_origin(hardware)
    try:
        found = _collect(paths)
        if isinstance(evidence, AzureEvidence) and evidence.vcek is not None:
            found.certificates.append(evidence.vcek)
        return _chosen(hardware, found, now)
    except EvidenceError as error:
        raise FetchFailed(
            f"the collateral cannot be read, so the evidence could not be checked: {error.message}",
            check=error.check,
            expected=error.expected,
            seen=error.seen,
            remedy=error.remedy or "fetch it again: adyton collateral fetch --for EVIDENCE",
        ) from error


def _chosen(hardware: HardwareEvidence, found: _Found, now: datetime) -> Collateral | AMDCollateral:
    if isinstance(hardware, SNPReport):
        return _choose_amd(hardware, found, now)
    candidates = found.intel + _from_documents(found.documents, hardware, now)
    if not candidates:
        raise missing("the files hold none for a quote")
    if len(candidates) == 1:
        return _with_chain(candidates[0], found)
    return _with_chain(_best(hardware, candidates, now), found)
