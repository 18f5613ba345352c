"""Google's firmware endorsements: which launch measurements are those of a firmware that Google signed. Pure.

An endorsement is a protocol buffer: the signed bytes, and their signature (RSA-PSS with SHA-256 and a salt of 32
bytes). The signed bytes hold the signer's certificate, which Google's root issued. They list SEV-SNP measurements by
number of processors, and TDX measurements (MRTD) by memory.

An endorsement says whose firmware booted. It says nothing of the kernel behind it, so nothing is released by it.

Source: google/gce-tcb-verifier, proto/endorsement.proto and verify/verify.go; Protocol Buffers, "Encoding". No real
endorsement was at hand when this was written: the form is unproven.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from adyton.attest.certificates import FOREIGN, Certificate, Window, parse_certificate
from adyton.attest.roots import GOOGLE_FIRMWARE_ROOT
from adyton.attest.tdx import TDXQuote
from adyton.errors import BadChain, MalformedQuote, Mismatch, Stale

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from adyton.attest.snp import SNPReport
    from adyton.values import Digest

MAX_ENDORSEMENT_BYTES: Final = 256 << 10
MAX_MEASUREMENTS: Final = 4096
_MEASUREMENT_BYTES: Final = 48
_MIN_RSA_BITS: Final = 2048
_SALT_BYTES: Final = 32
_VARINT, _BYTES = 0, 2
_WIDTHS: Final = {1: 8, 5: 4}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_SECONDS: Final = 253_402_300_799
_FETCH: Final = "fetch the endorsement of this very measurement again from Google's bucket gce_tcb_integrity"


def _malformed(what: str) -> MalformedQuote:
    return MalformedQuote(
        f"the firmware endorsement does not parse: {what}",
        check="parse of the firmware endorsement",
        expected="a VMLaunchEndorsement as Google publishes it (*.binarypb)",
        seen=what,
        remedy=_FETCH,
    )


def _refuse(what: str) -> NoReturn:
    raise _malformed(what)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for width in range(10):
        if at + width >= len(raw):
            _refuse("a number that is cut")
        byte = raw[at + width]
        value |= (byte & 0x7F) << 7 * width
        if byte < 0x80:
            if value >= 1 << 64 or (width and byte == 0):
                _refuse("a number that is not in its shortest form")
            return value, at + width + 1
    _refuse("a number of more than 64 bits")


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field. Fields of fixed width come as bytes."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, wire = key >> 3, key & 7
        if number == 0 or (wire not in (_VARINT, _BYTES) and wire not in _WIDTHS):
            _refuse(f"field {number} of wire type {wire}")
        if wire == _VARINT:
            value, at = _varint(raw, at)
            yield number, value
            continue
        size = _WIDTHS.get(wire, 0)
        if wire == _BYTES:
            size, at = _varint(raw, at)
        if at + size > len(raw):
            _refuse(f"field {number} is cut")
        yield number, raw[at : at + size]
        at += size


class _Message:
    """The fields of one message by number. A field that may stand once is refused where it stands twice."""

    def __init__(self, raw: bytes, what: str) -> None:
        self._what = what
        self._found: dict[int, list[int | bytes]] = {}
        for number, value in _fields(raw):
            self._found.setdefault(number, []).append(value)

    @property
    def numbers(self) -> set[int]:
        """The numbers of its fields."""
        return set(self._found)

    def number(self, field: int) -> int:
        """A number. 0 where it is absent."""
        value = self._one(field)
        if value is not None and not isinstance(value, int):
            _refuse(f"field {field} of the {self._what} is no number")
        return value or 0

    def octets(self, field: int) -> bytes:
        """Bytes. Empty where they are absent."""
        value = self._one(field)
        if value is not None and isinstance(value, int):
            _refuse(f"field {field} of the {self._what} is a number")
        return value or b""

    def _one(self, field: int) -> int | bytes | None:
        values = self._found.get(field, [])
        if len(values) > 1:
            _refuse(f"field {field} of the {self._what} stands twice")
        return values[0] if values else None

    def each(self, field: int) -> list[_Message]:
        """The messages in a repeated field."""
        values = self._found.get(field, [])
        if len(values) > MAX_MEASUREMENTS:
            _refuse(f"{len(values)} entries in the {self._what}")
        found = []
        for value in values:
            if isinstance(value, int):
                _refuse(f"field {field} of the {self._what} is a number")
            found.append(_Message(value, f"entry of the {self._what}"))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """An endorsement, unverified."""

    signed: bytes
    signature: bytes
    certificate: bytes
    """The signer's, DER."""
    made_at: datetime
    commit: str
    """The commit of the firmware's source, in hex; empty where it is not said."""
    firmware: bytes
    """SHA-384 of the firmware."""
    snp_svn: int
    snp: frozenset[bytes]
    """SEV-SNP launch measurements."""
    tdx_svn: int
    tdx: frozenset[bytes]
    """MRTDs."""


def parse_endorsement(raw: bytes) -> Endorsement:
    """Parse a VMLaunchEndorsement. Raises MalformedQuote.

    Fields that are unknown inside the signed bytes are left out, because Google may add some.
    """
    if len(raw) > MAX_ENDORSEMENT_BYTES:
        _refuse(f"{len(raw)} bytes, more than {MAX_ENDORSEMENT_BYTES}")
    outer = _Message(raw, "endorsement")
    if outer.numbers != {1, 2}:
        _refuse("fields beside the signed bytes and their signature")
    signed = outer.octets(1)
    golden = _Message(signed, "signed part")
    time = _Message(golden.octets(1), "time")
    seconds = time.number(1)
    if not 0 < seconds <= _MAX_SECONDS:
        _refuse(f"the time {seconds}")
    firmware = golden.octets(5)
    if len(firmware) != _MEASUREMENT_BYTES:
        _refuse(f"a firmware digest of {len(firmware)} bytes")
    snp, tdx = _Message(golden.octets(7), "SEV-SNP part"), _Message(golden.octets(8), "TDX part")
    return Endorsement(
        signed=signed,
        signature=outer.octets(2),
        certificate=golden.octets(4),
        made_at=_EPOCH + timedelta(seconds=seconds),
        commit=golden.octets(3).hex()[:80],
        firmware=firmware,
        snp_svn=snp.number(1),
        snp=_measurements(snp, 2),
        tdx_svn=tdx.number(1),
        tdx=_measurements(tdx, 3),
    )


def _measurements(part: _Message, field: int) -> frozenset[bytes]:
    """The measurements of a part: each entry of its field 2 has one in this field."""
    found = set()
    for entry in part.each(2):
        value = entry.octets(field)
        if len(value) != _MEASUREMENT_BYTES:
            _refuse(f"a measurement of {len(value)} bytes")
        found.add(value)
    return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoogleFirmware:
    """What Google says of a launch measurement: verified."""

    made_at: datetime
    svn: int
    firmware: bytes
    commit: str

    def to_dict(self) -> dict[str, object]:
        """As JSON data."""
        return {
            "endorsed_by": "Google",
            "made_at": self.made_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "svn": self.svn,
            "firmware_sha384": self.firmware.hex(),
            "commit": self.commit,
        }


def verify_endorsement(
    endorsement: Endorsement,
    certificates: Iterable[bytes],
    *,
    tee: str,
    measurement: bytes,
    now: datetime,
    root: Digest = GOOGLE_FIRMWARE_ROOT,
) -> GoogleFirmware:
    """Verify that Google endorsed the firmware with this launch measurement (`tee`: tdx or snp).

    `certificates` are DER, and Google's root must be among them. Raises an EvidenceError that names the step.
    """
    firmware, windows = endorsed(endorsement, certificates, tee=tee, measurement=measurement, root=root)
    for what, not_before, not_after in windows:
        if not not_before <= now <= not_after:
            raise Stale(
                f"the {what} is valid from {not_before:%Y-%m-%d} to {not_after:%Y-%m-%d}",
                check=f"{what}: valid now",
                expected=f"{not_before:%Y-%m-%d} to {not_after:%Y-%m-%d}",
                seen=f"{now:%Y-%m-%d}",
                remedy=_FETCH,
            )
    return firmware


def endorsed(
    endorsement: Endorsement, certificates: Iterable[bytes], *, tee: str, measurement: bytes, root: Digest
) -> tuple[GoogleFirmware, tuple[Window, ...]]:
    """As `verify_endorsement`, at no time: what it says, and the validity of both certificates."""
    anchor = _root_among(certificates, root)
    leaf = parse_certificate(endorsement.certificate, "firmware signer")
    _check_issued(leaf, anchor)
    _check_signature(endorsement, leaf)
    svn, allowed = (endorsement.tdx_svn, endorsement.tdx) if tee == "tdx" else (endorsement.snp_svn, endorsement.snp)
    if measurement not in allowed:
        raise Mismatch(
            "Google's endorsement is of another firmware than the one that booted",
            check="firmware endorsement: lists the launch measurement",
            expected=f"one of {len(allowed)} measurements",
            seen=measurement.hex(),
            remedy=_FETCH,
        )
    found = GoogleFirmware(
        made_at=endorsement.made_at, svn=svn, firmware=endorsement.firmware, commit=endorsement.commit
    )
    return found, (anchor.window, leaf.window)


def _root_among(certificates: Iterable[bytes], root: Digest) -> Certificate:
    for raw in certificates:
        certificate = parse_certificate(raw, "Google's firmware root")
        if certificate.fingerprint == root:
            return certificate
    raise BadChain(
        "Google's firmware root is not among the given certificates",
        check="Google's firmware root: pinned",
        expected=str(root),
        seen="another certificate, or none",
        remedy="give the root as well: https://pki.goog/cloud_integrity/GCE-cc-tcb-root_1.crt",
    )


def _check_issued(leaf: Certificate, anchor: Certificate) -> None:
    try:
        strong = isinstance(leaf.parsed.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512)
        leaf.parsed.verify_directly_issued_by(anchor.parsed)
    except (InvalidSignature, *FOREIGN):
        strong = False
    if not strong or not anchor.is_ca:
        raise BadChain(
            "the signer of the firmware endorsement was not issued by Google's root",
            check="firmware signer: issuer and signature",
            expected=f"issued by {anchor.common_name}, with SHA-2",
            seen=leaf.issuer,
            remedy=_FETCH,
        )


def _check_signature(endorsement: Endorsement, leaf: Certificate) -> None:
    key = leaf.key
    good = isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS
    if isinstance(key, rsa.RSAPublicKey) and good:
        try:
            scheme = padding.PSS(padding.MGF1(hashes.SHA256()), _SALT_BYTES)
            key.verify(endorsement.signature, endorsement.signed, scheme, hashes.SHA256())
        except InvalidSignature:
            good = False
    if not good:
        raise BadChain(
            "the firmware endorsement is not signed by its signer",
            check="firmware endorsement: signature",
            expected=f"a signature by {leaf.common_name} (RSA-PSS, SHA-256)",
            seen="a signature by another key, or over other bytes",
            remedy=_FETCH,
        )


def endorsed_measurement(evidence: TDXQuote | SNPReport) -> tuple[str, bytes]:
    """The TEE, and the launch measurement that evidence names: of its firmware."""
    if isinstance(evidence, TDXQuote):
        return "tdx", evidence.report.mrtd
    return "snp", evidence.measurement
