"""A single collateral document, and the check that its signatures lead to the root of its own chain.

A service serves TCB info, QE identities, CRLs and certificates one at a time. Each has an issuer chain that leads to a
root. A document belongs to that root (by the SHA-256 of the root's DER), and each root has its own folder. So a
self-made root affects only the evidence under it. The verification of evidence decides whether a root is trusted. This
module never does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, cast

from adyton.attest import amd, dcap
from adyton.attest.certificates import ecdsa_is_valid, parse_certificate, parse_chain, parse_crl, split_pem
from adyton.attest.checks import Checks
from adyton.attest.google import endorsed, parse_endorsement
from adyton.attest.layout import MAX_CRL_BYTES, MAX_JSON_BYTES
from adyton.attest.nvidia.chain import check_links
from adyton.attest.nvidia.ocsp import parse_answer, signer_of
from adyton.attest.nvidia.rim import check_signers, parse_rim
from adyton.attest.roots import TrustRoots
from adyton.attest.signed_json import cut_signed
from adyton.attest.tcbinfo import parse_enclave_identity, parse_tcb_info
from adyton.dates import parse_timestamp, timestamp
from adyton.errors import BadChain, MalformedQuote, Stale
from adyton.values import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.attest.certificates import CRL, Certificate
    from adyton.attest.snp import TCBVersion

Kind = Literal[
    "tcb-info",
    "qe-identity",
    "pck-crl",
    "root-crl",
    "pck-certificate",
    "amd-vcek",
    "amd-vlek",
    "amd-crl",
    "nvidia-rim",
    "nvidia-ocsp",
    "google-firmware",
]
Channel = Literal["standard", "early"]

KINDS: Final[tuple[Kind, ...]] = (
    "tcb-info",
    "qe-identity",
    "pck-crl",
    "root-crl",
    "pck-certificate",
    "amd-vcek",
    "amd-vlek",
    "amd-crl",
    "nvidia-rim",
    "nvidia-ocsp",
    "google-firmware",
)
BINARY: Final[frozenset[Kind]] = frozenset(
    {"pck-crl", "root-crl", "amd-vcek", "amd-vlek", "amd-crl", "nvidia-ocsp", "google-firmware"}
)
"""Kinds with a body in DER, or a protocol buffer. The bodies of other kinds are text."""
SIGNED_MEMBER: Final[Mapping[str, str]] = {"tcb-info": "tcbInfo", "qe-identity": "enclaveIdentity"}
"""The member of a signed JSON document that its signature covers."""
_SUBJECT: Final = re.compile(r"[a-z0-9-]{1,80}")


@dataclass(frozen=True, slots=True)
class Document:
    """One document as a service served it, unverified, with its issuer chain, its URL and the time of the fetch.

    `body` is the served JSON (tcb-info, qe-identity), a CRL's or AMD chip certificate's DER, or the PCK certificate's
    PEM. `chain` is PEM, the issuer first and the root last. For a root's own CRL it is only the root.
    """

    kind: Kind
    body: bytes
    chain: str
    url: str
    fetched_at: datetime
    channel: Channel = "standard"
    request: str = ""
    """For a PCK certificate: the request that it answers (`pck_request`). For a RIM: its id at NVIDIA's service.

    For an endorsement of Google's: what it endorses (`endorsement_request`).
    """

    def to_dict(self) -> dict[str, str]:
        """As JSON data. Text stays text, DER is base64."""
        binary = self.kind in BINARY
        found = {
            "kind": self.kind,
            "body": base64.b64encode(self.body).decode() if binary else self.body.decode("utf-8", "replace"),
            "chain": self.chain,
            "url": self.url,
            "fetched_at": timestamp(self.fetched_at),
            "channel": self.channel,
        }
        return found | ({"request": self.request} if self.request else {})

    @classmethod
    def from_dict(cls, data: object) -> Document:
        """Parse what `to_dict` made. Raises MalformedQuote."""
        names = {"kind", "body", "chain", "url", "fetched_at", "channel"}
        if (
            not isinstance(data, dict)
            or not names <= set(data) <= names | {"request"}
            or not all(isinstance(value, str) for value in data.values())
            or data["kind"] not in KINDS
            or data["channel"] not in ("standard", "early")
        ):
            raise malformed("collateral document", "other members than a document has")
        try:
            binary = data["kind"] in BINARY
            body = base64.b64decode(data["body"], validate=True) if binary else data["body"].encode()
            fetched_at = parse_timestamp(data["fetched_at"])
        except (ValueError, binascii.Error):
            raise malformed("collateral document", "a body or time that does not decode") from None
        return cls(
            kind=cast("Kind", data["kind"]),
            body=body,
            chain=data["chain"],
            url=data["url"],
            fetched_at=fetched_at,
            channel=cast("Channel", data["channel"]),
            request=data.get("request", ""),
        )


def malformed(what: str, seen: object) -> MalformedQuote:
    """The error for a document, chain or bundle that does not parse."""
    return MalformedQuote(f"the {what} does not parse: {seen}", check=f"parse of the {what}", seen=seen)


@dataclass(frozen=True, slots=True)
class VerifiedDocument:
    """A document whose signature leads to its root, with its parsed members."""

    document: Document
    root: Digest
    subject: str
    """Its subject: sgx-<fmspc>, tdx-<fmspc>, sgx, tdx, platform, processor, root, a PCK request, an AMD chip."""
    issued_at: datetime
    expires_at: datetime
    number: int | None
    """tcbEvaluationDataNumber, or the CRL's number. It never decreases."""

    @property
    def name(self) -> str:
        """The document's name in a store: kind, subject, and the channel unless it is the standard one."""
        channel = f".{self.document.channel}" if self.document.channel != "standard" else ""
        return f"{self.document.kind}-{self.subject}{channel}"


def stored_name(kind: Kind, subject: str, channel: Channel = "standard") -> str:
    """The name of a document in a store of this channel. Only signed JSON differs between channels."""
    suffix = f".{channel}" if channel != "standard" and kind in SIGNED_MEMBER else ""
    return f"{kind}-{subject}{suffix}"


def _root_of(chain: str, what: str) -> tuple[Certificate, TrustRoots]:
    """The last certificate of a chain, and trust roots with only that one."""
    blocks = split_pem(chain, f"{what} chain")
    if not blocks:
        raise malformed(f"{what} chain", "no certificate")
    root = parse_certificate(blocks[-1], f"{what} root CA")
    only = frozenset({root.fingerprint})
    return root, TrustRoots(intel=only, sim=frozenset())


def _require_crl(checks: Checks, crl: CRL, issuer: Certificate) -> None:
    checks.require(
        f"{crl.what}: issuer and signature",
        crl.issuer == issuer.subject and crl.is_signed_by(issuer),
        expected=f"signed by {issuer.common_name}",
        seen="a signature by another key, or over other bytes",
        error=BadChain,
        remedy="fetch it again; if that fails, use another source",
    )


def _verify_signed_json(checks: Checks, document: Document) -> VerifiedDocument:
    what = "TCB info" if document.kind == "tcb-info" else "QE identity"
    root, roots = _root_of(document.chain, what)
    signer, _ = parse_chain(document.chain, (f"{what} signer", f"{what} root CA"), f"{what} chain")
    dcap.check_root(checks, root, roots)
    checks.require(
        f"{what} signer: name, issuer and signature",
        dcap.TCB_SIGNING_NAME in signer.common_name
        and not signer.is_ca
        and signer.issuer == root.subject
        and signer.is_signed_by(root),
        expected=f"{dcap.TCB_SIGNING_NAME}, signed by {root.common_name}",
        seen=signer.common_name,
        error=BadChain,
    )
    text, signature = cut_signed(document_text(document.body, what), SIGNED_MEMBER[document.kind])
    key = signer.p256
    raw = bytes.fromhex(signature) if re.fullmatch(r"[0-9a-fA-F]{128}", signature) else b""
    checks.require(
        f"{what}: signature",
        key is not None and len(raw) == 64 and ecdsa_is_valid(key, raw, text.encode()),
        expected=f"a signature by {signer.common_name}",
        seen="a signature by another key, or over other bytes",
        error=BadChain,
        remedy="fetch it again; if that fails, use another source",
    )
    if document.kind == "tcb-info":
        info = parse_tcb_info(text)
        subject = f"{info.id.lower()}-{info.fmspc.hex()}"
        issued, expires, number = info.issue_date, info.next_update, info.evaluation_number
    else:
        identity = parse_enclave_identity(text)
        subject = {"QE": "sgx", "TD_QE": "tdx"}.get(identity.id, identity.id.lower().replace("_", "-"))
        issued, expires, number = identity.issue_date, identity.next_update, identity.evaluation_number
    expires = min(expires, signer.window.not_after, root.window.not_after)
    return VerifiedDocument(document, root.fingerprint, subject, issued, expires, number)


def document_text(raw: bytes, what: str) -> str:
    """The text of a signed JSON document or a PEM certificate, within its size limit. Raises MalformedQuote."""
    if len(raw) > MAX_JSON_BYTES:
        raise malformed(what, f"{len(raw)} bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise malformed(what, "not UTF-8") from None


def _verify_pck_crl(checks: Checks, document: Document) -> VerifiedDocument:
    root, roots = _root_of(document.chain, "PCK CRL")
    ca, _ = parse_chain(document.chain, ("PCK CRL issuer", "PCK CRL root CA"), "PCK CRL chain")
    dcap.check_root(checks, root, roots)
    dcap.check_ca(checks, ca, root)
    crl = parse_crl(document.body, "PCK CRL")
    _require_crl(checks, crl, ca)
    expires = min(crl.window.not_after, ca.window.not_after, root.window.not_after)
    return VerifiedDocument(document, root.fingerprint, ca_kind(ca), crl.window.not_before, expires, crl.number)


def ca_kind(ca: Certificate) -> str:
    """`platform` or `processor`, by the CA's name. Another CA is named by its key."""
    for kind in ("platform", "processor"):
        if f"PCK {kind.capitalize()} CA" in ca.common_name:
            return kind
    return "ca-" + hashlib.sha256(ca.spki).hexdigest()[:32]


def _verify_root_crl(checks: Checks, document: Document) -> VerifiedDocument:
    root, roots = _root_of(document.chain, "root CRL")
    parse_chain(document.chain, ("root CA",), "root CRL chain")
    dcap.check_root(checks, root, roots)
    crl = parse_crl(document.body, "root CA CRL")
    _require_crl(checks, crl, root)
    expires = min(crl.window.not_after, root.window.not_after)
    return VerifiedDocument(document, root.fingerprint, "root", crl.window.not_before, expires, crl.number)


def _verify_pck_certificate(checks: Checks, document: Document) -> VerifiedDocument:
    _, roots = _root_of(document.chain, "PCK certificate")
    pck = dcap.check_pck_chain(checks, document_text(document.body, "PCK certificate") + document.chain, roots)
    if _SUBJECT.fullmatch(document.request) is None:
        raise malformed("PCK certificate document", "no request that it answers")
    leaf = pck.leaf.window
    expires = min(window.not_after for window in pck.windows)
    return VerifiedDocument(document, pck.root.fingerprint, document.request, leaf.not_before, expires, None)


def chip_subject(product: str, tcb: TCBVersion, chip_id: bytes | None) -> str:
    """The subject of a VCEK (or VLEK, without a chip id): product, reported TCB, and a hash of the chip's id."""
    chip = "" if chip_id is None else "-" + hashlib.sha256(chip_id.rstrip(b"\0")).hexdigest()[:32]
    return f"{product.lower()}-{tcb.to_bytes().hex()}{chip}"


def _verify_chip_certificate(checks: Checks, document: Document) -> VerifiedDocument:
    vlek = document.kind == "amd-vlek"
    leaf = parse_certificate(document.body, "VLEK" if vlek else "VCEK")
    ask, ark = parse_chain(document.chain, ("ASK", "ARK"), "AMD chain")
    roots = TrustRoots(intel=frozenset(), amd={ark.common_name.removeprefix("ARK-"): ark.fingerprint})
    product = amd.check_chain(checks, leaf, ask, ark, roots)
    chip = amd.parse_chip_certificate(leaf)
    if chip.product.partition("-")[0] != product or (chip.hardware_id is None) != vlek:
        raise malformed("chip certificate", f"the product {chip.product} under {ark.common_name}")
    windows = (leaf.window, ask.window, ark.window)
    subject = chip_subject(product, chip.tcb, chip.hardware_id)
    expires = min(window.not_after for window in windows)
    return VerifiedDocument(document, ark.fingerprint, subject, leaf.window.not_before, expires, None)


def _verify_amd_crl(checks: Checks, document: Document) -> VerifiedDocument:
    ark = parse_chain(document.chain, ("ARK",), "AMD CRL chain")[0]
    checks.require(
        "ARK: self-signed",
        ark.common_name.startswith("ARK-") and ark.issuer == ark.subject and ark.is_signed_by(ark) and ark.is_ca,
        expected="a self-signed ARK",
        seen=ark.common_name,
        error=BadChain,
    )
    crl = parse_crl(document.body, "AMD CRL")
    _require_crl(checks, crl, ark)
    product = re.sub(r"[^a-z0-9-]", "", ark.common_name.removeprefix("ARK-").lower())[:20]
    expires = min(crl.window.not_after, ark.window.not_after)
    return VerifiedDocument(document, ark.fingerprint, product, crl.window.not_before, expires, crl.number)


_RIM_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)


def rim_subject(rim_id: str) -> str:
    """The subject of a RIM with this id: in lower case, with a dash for whatever is neither a letter nor a digit."""
    return re.sub(r"[^a-z0-9]", "-", rim_id.lower())


def ocsp_subject(certificate: Certificate) -> str:
    """The subject of an OCSP answer about this certificate: a hash of it."""
    return certificate.fingerprint.hex()[:32]


def _verify_rim(checks: Checks, document: Document) -> VerifiedDocument:
    if _RIM_ID.fullmatch(document.request) is None:
        raise malformed("RIM document", "no id under which it was served")
    rim = parse_rim(document.body)
    root = rim.chain[-1].fingerprint
    check_signers(checks, rim, TrustRoots(nvidia_rim=frozenset({root})))
    return VerifiedDocument(document, root, rim_subject(document.request), rim.valid_from, rim.valid_until, None)


def _verify_ocsp(checks: Checks, document: Document) -> VerifiedDocument:
    """`chain` begins with the certificate that the answer is about."""
    blocks = split_pem(document.chain, "OCSP chain")
    if not 2 <= len(blocks) <= 5:
        raise malformed("OCSP chain", f"{len(blocks)} certificates")
    chain = [parse_certificate(block, f"certificate {place} of the OCSP chain") for place, block in enumerate(blocks)]
    check_links(checks, chain)
    answer = parse_answer(document.body)
    checks.require(
        "OCSP answer: about this certificate, and signed",
        answer.is_about(chain[0], chain[1]) and signer_of(answer, chain[1:]) is not None,
        expected=f"an answer about {chain[0].common_name}, signed by an authority above it or its responder",
        seen=f"serial number {answer.serial:x}",
        error=BadChain,
        remedy="fetch it again; if that fails, use another source",
    )
    root = chain[-1].fingerprint
    return VerifiedDocument(document, root, ocsp_subject(chain[0]), answer.this_update, answer.next_update, None)


_ENDORSED: Final = re.compile(r"(tdx|snp)-([0-9a-f]{96})")


def endorsement_request(tee: str, measurement: bytes) -> str:
    """The request for an endorsement of Google's: `tdx` or `snp`, and the launch measurement (48 bytes)."""
    return f"{tee}-{measurement.hex()}"


def endorsement_subject(tee: str, measurement: bytes) -> str:
    """Its subject: the TEE, and a hash of the measurement."""
    return f"{tee}-{hashlib.sha256(measurement).hexdigest()[:32]}"


def _verify_endorsement(document: Document) -> VerifiedDocument:
    """`chain` is the root that issued the signer. What is endorsed stands in `request`."""
    asked = _ENDORSED.fullmatch(document.request)
    if asked is None:
        raise malformed("firmware endorsement document", "no measurement that it answers")
    blocks = split_pem(document.chain, "firmware root")
    if len(blocks) != 1:
        raise malformed("chain of the firmware endorsement", f"{len(blocks)} certificates, not 1")
    root = parse_certificate(blocks[0], "firmware root").fingerprint
    tee, measurement = asked[1], bytes.fromhex(asked[2])
    found, windows = endorsed(parse_endorsement(document.body), blocks, tee=tee, measurement=measurement, root=root)
    expires = min(window.not_after for window in windows)
    return VerifiedDocument(document, root, endorsement_subject(tee, measurement), found.made_at, expires, None)


def verify_document(document: Document) -> VerifiedDocument:
    """Check that a document is signed and leads to the root of its own chain, and parse it.

    Raises MalformedQuote or BadChain. `check_current` judges validity in time. The verification of evidence judges
    revocation of the signer.
    """
    checks = Checks()
    if len(document.body) > MAX_CRL_BYTES:
        raise malformed(document.kind, f"{len(document.body)} bytes")
    if document.kind in SIGNED_MEMBER:
        return _verify_signed_json(checks, document)
    if document.kind == "pck-crl":
        return _verify_pck_crl(checks, document)
    if document.kind == "root-crl":
        return _verify_root_crl(checks, document)
    if document.kind == "amd-crl":
        return _verify_amd_crl(checks, document)
    if document.kind == "nvidia-rim":
        return _verify_rim(checks, document)
    if document.kind == "nvidia-ocsp":
        return _verify_ocsp(checks, document)
    if document.kind == "google-firmware":
        return _verify_endorsement(document)
    if document.kind in ("amd-vcek", "amd-vlek"):
        return _verify_chip_certificate(checks, document)
    return _verify_pck_certificate(checks, document)


def check_current(found: VerifiedDocument, now: datetime) -> None:
    """Refuse a document that is expired or not yet valid at `now`. Raises Stale."""
    if found.issued_at <= now <= found.expires_at:
        return
    expired = now > found.expires_at
    raise Stale(
        f"{found.name} {'expired at' if expired else 'is valid only from'} "
        f"{found.expires_at if expired else found.issued_at:%Y-%m-%d %H:%M:%S} UTC",
        check=f"{found.document.kind}: valid now",
        expected=f"{timestamp(found.issued_at)} to {timestamp(found.expires_at)}",
        seen=timestamp(now),
        remedy="fetch it again: adyton collateral fetch" if expired else "check the clock",
    )


def last_certificate(chain: str) -> str:
    """The root of a PEM chain, as PEM: its last certificate."""
    at = chain.rfind("-----BEGIN CERTIFICATE-----")
    if at < 0:
        raise malformed("issuer chain", "no certificate")
    return chain[at:].rstrip("\x00 \r\n") + "\n"
