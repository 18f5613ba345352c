"""The simulated maker of TEEs: its certificates, revocation lists, TCB info and QE identities, as pure functions.

Formats, names' required parts and signing rules are those of Intel's: PCK certificates with the SGX extension
(Intel SGX PCK Certificate and CRL Profile Specification), TCB info v3 and enclave identity v2 (Intel PCS API v4).
What is simulated says so: every subject begins with `Simulated` and names `Adyton simulation (protects nothing)`
as its organisation, and every FMSPC begins with the letters `SIM`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier

from adyton.attest.tpm.ak_chain import AIK_PURPOSE
from adyton.dates import timestamp
from adyton.errors import UsageError
from adyton.sim.chip import QE_MRSIGNERS, QE_PRODUCTS
from adyton.sim.files import raw_signature

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CAKind = Literal["platform", "processor"]
DocumentTEE = Literal["sgx", "tdx"]

SGX_EXTENSION_OID: Final = "1.2.840.113741.1.13.1"
ORGANISATION: Final = "Adyton simulation (protects nothing)"
CRL_POINT: Final = "https://simulated-platform.invalid/IntelSGXRootCA.der"
DOCUMENT_VALIDITY: Final = timedelta(days=30)
ROOT_CRL_VALIDITY: Final = timedelta(days=365)

QE_ATTRIBUTES: Final = bytes.fromhex("11") + bytes(15)
QE_ATTRIBUTES_MASK: Final = bytes.fromhex("fbffffffffffffff0000000000000000")

_COMPONENT_NAMES: Final = {
    "sgx": (("BIOS", "Early Microcode Update"), ("OS/VMM", "SGX Late Microcode Update"), ("OS/VMM", "TXT SINIT")),
    "tdx": (("OS/VMM", "TDX Module"), ("OS/VMM", "TDX Module"), ("OS/VMM", "TDX Late Microcode Update")),
}


@dataclass(frozen=True, slots=True)
class Level:
    """One TCB level: a platform at or above these 16 + 16 component SVNs and this PCESVN has this status."""

    sgx: tuple[int, ...]
    tdx: tuple[int, ...]
    pcesvn: int
    date: str
    status: str
    advisories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SVNLevel:
    """One level of a quoting enclave or of a TDX module: at or above this ISVSVN it has this status."""

    isvsvn: int
    date: str
    status: str
    advisories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Publication:
    """The simulated vendor's statements about its platforms at one time. Each change is a later publication.

    `published_at` is in seconds since 1970, UTC. Serial numbers are those of the certificates. Documents are issued
    anew every half of their validity, counted from `published_at`, so that they are the same for everyone who asks.
    """

    published_at: int
    evaluation_number: int
    ca: CAKind
    fmspc: bytes
    pceid: bytes
    levels: tuple[Level, ...]
    qe_levels: tuple[SVNLevel, ...]
    td_qe_levels: tuple[SVNLevel, ...]
    modules: tuple[tuple[str, tuple[SVNLevel, ...]], ...]
    revoked_by_root: tuple[int, ...] = ()
    revoked_by_ca: tuple[int, ...] = ()
    crl_number: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The publication as JSON data."""
        return {
            "published_at": self.published_at,
            "evaluation_number": self.evaluation_number,
            "ca": self.ca,
            "fmspc": self.fmspc.hex(),
            "pceid": self.pceid.hex(),
            "levels": [_plain(level) for level in self.levels],
            "qe_levels": [_plain(level) for level in self.qe_levels],
            "td_qe_levels": [_plain(level) for level in self.td_qe_levels],
            "modules": [{"id": name, "levels": [_plain(level) for level in levels]} for name, levels in self.modules],
            "revoked_by_root": [f"{serial:x}" for serial in self.revoked_by_root],
            "revoked_by_ca": [f"{serial:x}" for serial in self.revoked_by_ca],
            "crl_number": self.crl_number,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Publication:
        """Parse what `to_dict` made. Raises UsageError where it is not that."""
        try:
            return cls(
                published_at=int(data["published_at"]),
                evaluation_number=int(data["evaluation_number"]),
                ca="processor" if data["ca"] == "processor" else "platform",
                fmspc=bytes.fromhex(data["fmspc"]),
                pceid=bytes.fromhex(data["pceid"]),
                levels=tuple(
                    Level(
                        tuple(row["sgx"]),
                        tuple(row["tdx"]),
                        row["pcesvn"],
                        row["date"],
                        row["status"],
                        tuple(row["advisories"]),
                    )
                    for row in data["levels"]
                ),
                qe_levels=_svn_levels(data["qe_levels"]),
                td_qe_levels=_svn_levels(data["td_qe_levels"]),
                modules=tuple((row["id"], _svn_levels(row["levels"])) for row in data["modules"]),
                revoked_by_root=tuple(int(text, 16) for text in data["revoked_by_root"]),
                revoked_by_ca=tuple(int(text, 16) for text in data["revoked_by_ca"]),
                crl_number=int(data["crl_number"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"the simulated vendor's publication does not parse: {error!r}",
                check="publication of the simulated vendor",
                remedy="make a new platform with `adyton platform new DIR`",
            ) from error

    def issued(self, now: datetime, validity: timedelta) -> tuple[datetime, datetime]:
        """The issue and next-update times of a document of this validity that is served at `now`."""
        published = datetime.fromtimestamp(self.published_at, UTC)
        issue = published + ((now - published) // (validity / 2)) * (validity / 2)
        return issue, issue + validity

    def later(self, now: datetime, **changes: Any) -> Publication:
        """The next publication: these changes, a higher CRL number, published now (never before the last one)."""
        published_at = max(int(now.timestamp()), self.published_at)
        return replace(self, published_at=published_at, crl_number=self.crl_number + 1, **changes)

    def raised(self, now: datetime, part: str, status: str, advisories: tuple[str, ...]) -> Publication:
        """The next publication, in which a level above all others is UpToDate and the former one has `status`."""
        number, date = self.evaluation_number + 1, now.strftime("%Y-%m-%dT00:00:00Z")

        def raised_svns(levels: tuple[SVNLevel, ...]) -> tuple[SVNLevel, ...]:
            return (SVNLevel(levels[0].isvsvn + 1, date, "UpToDate"), *_lowered(levels, status, advisories))

        if part == "qe":
            return self.later(now, qe_levels=raised_svns(self.qe_levels), evaluation_number=number)
        if part == "td-qe":
            return self.later(now, td_qe_levels=raised_svns(self.td_qe_levels), evaluation_number=number)
        if part == "module":
            modules = tuple((name, raised_svns(levels)) for name, levels in self.modules)
            return self.later(now, modules=modules, evaluation_number=number)
        top = self.levels[0]
        newest = Level(
            sgx=(top.sgx[0] + 1, top.sgx[1] + 1, *top.sgx[2:]),
            tdx=(*top.tdx[:2], top.tdx[2] + 1, *top.tdx[3:]),
            pcesvn=top.pcesvn,
            date=date,
            status="UpToDate",
        )
        return self.later(now, levels=(newest, *_lowered(self.levels, status, advisories)), evaluation_number=number)


_AnyLevel = TypeVar("_AnyLevel", Level, SVNLevel)


def _lowered(levels: tuple[_AnyLevel, ...], status: str, advisories: tuple[str, ...]) -> Iterator[_AnyLevel]:
    """The same levels, in which what was UpToDate has this status."""
    for level in levels:
        yield replace(level, status=status, advisories=advisories) if level.status == "UpToDate" else level


def _plain(level: Level | SVNLevel) -> dict[str, Any]:
    row: dict[str, Any] = {"date": level.date, "status": level.status, "advisories": list(level.advisories)}
    if isinstance(level, Level):
        return {"sgx": list(level.sgx), "tdx": list(level.tdx), "pcesvn": level.pcesvn, **row}
    return {"isvsvn": level.isvsvn, **row}


def _svn_levels(rows: Iterable[Mapping[str, Any]]) -> tuple[SVNLevel, ...]:
    return tuple(SVNLevel(row["isvsvn"], row["date"], row["status"], tuple(row["advisories"])) for row in rows)


# --- certificates -----------------------------------------------------------------------------------------------


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Nowhere"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "XX"),
        ]
    )


ROOT_NAME: Final = _name("Simulated SGX Root CA")
CA_NAMES: Final[dict[CAKind, x509.Name]] = {
    "platform": _name("Simulated SGX PCK Platform CA"),
    "processor": _name("Simulated SGX PCK Processor CA"),
}
PCK_NAME: Final = _name("Simulated SGX PCK Certificate")
SIGNING_NAME: Final = _name("Simulated SGX TCB Signing")
AK_NAME: Final = _name("Simulated TPM Attestation Key")


def _certificate(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    not_before: datetime,
    not_after: datetime,
    *,
    path_length: int | None = None,
    crl_point: str = CRL_POINT,
    sgx_extension: bytes | None = None,
    purpose: ObjectIdentifier | None = None,
) -> x509.Certificate:
    is_ca = path_length is not None
    usage = x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=not is_ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_point)], None, None, None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.CRLDistributionPoints([point]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(usage, critical=True)
        .add_extension(x509.BasicConstraints(is_ca, path_length), critical=True)
    )
    if sgx_extension is not None:
        extension = x509.UnrecognizedExtension(ObjectIdentifier(SGX_EXTENSION_OID), sgx_extension)
        builder = builder.add_extension(extension, critical=False)
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def root_certificate(key: ec.EllipticCurvePrivateKey, created: datetime) -> x509.Certificate:
    """The self-signed simulated root, valid for 30 years."""
    not_before, not_after = created - timedelta(days=1), created + timedelta(days=30 * 365)
    return _certificate(ROOT_NAME, key.public_key(), ROOT_NAME, key, not_before, not_after, path_length=1)


def ca_certificate(
    kind: CAKind, public_key: ec.EllipticCurvePublicKey, root_key: ec.EllipticCurvePrivateKey, created: datetime
) -> x509.Certificate:
    """The simulated PCK Platform CA or PCK Processor CA, valid for 15 years."""
    not_before, not_after = created - timedelta(days=1), created + timedelta(days=15 * 365)
    return _certificate(CA_NAMES[kind], public_key, ROOT_NAME, root_key, not_before, not_after, path_length=0)


def signing_certificate(
    public_key: ec.EllipticCurvePublicKey, root_key: ec.EllipticCurvePrivateKey, created: datetime
) -> x509.Certificate:
    """The simulated TCB signing certificate, valid for 7 years."""
    not_before, not_after = created - timedelta(days=1), created + timedelta(days=7 * 365)
    return _certificate(SIGNING_NAME, public_key, ROOT_NAME, root_key, not_before, not_after)


def pck_certificate(
    kind: CAKind,
    public_key: ec.EllipticCurvePublicKey,
    ca_key: ec.EllipticCurvePrivateKey,
    created: datetime,
    extension: bytes,
) -> x509.Certificate:
    """One platform's PCK certificate with its SGX extension, valid for 7 years."""
    not_before, not_after = created - timedelta(days=1), created + timedelta(days=7 * 365)
    point = f"https://simulated-platform.invalid/sgx/certification/v4/pckcrl?ca={kind}&encoding=der"
    return _certificate(
        PCK_NAME,
        public_key,
        CA_NAMES[kind],
        ca_key,
        not_before,
        not_after,
        crl_point=point,
        sgx_extension=extension,
    )


def ak_certificate(
    public_key: ec.EllipticCurvePublicKey, root_key: ec.EllipticCurvePrivateKey, created: datetime
) -> x509.Certificate:
    """The certificate of a simulated TPM's attestation key, valid for 7 years."""
    not_before, not_after = created - timedelta(days=1), created + timedelta(days=7 * 365)
    return _certificate(AK_NAME, public_key, ROOT_NAME, root_key, not_before, not_after, purpose=AIK_PURPOSE)


# --- the SGX extension ------------------------------------------------------------------------------------------


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    head = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(head)]) + head + content


def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(part) for part in dotted.split("."))
    content = bytearray()
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        content += bytes(reversed(groups))
    return _tlv(0x06, bytes(content))


def _integer(value: int) -> bytes:
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _item(suffix: str, value: bytes) -> bytes:
    return _tlv(0x30, _oid(f"{SGX_EXTENSION_OID}.{suffix}") + value)


def sgx_extension(
    kind: CAKind,
    *,
    ppid: bytes,
    components: tuple[int, ...],
    pcesvn: int,
    pceid: bytes,
    fmspc: bytes,
    instance_id: bytes,
) -> bytes:
    """The DER value of OID 1.2.840.113741.1.13.1: PPID, TCB, PCEID, FMSPC, type, and a platform CA's extra items.

    CPUSVN (.2.18) is the 16 component SVNs as bytes, as in real certificates.
    """
    svns = b"".join(_item(f"2.{index}", _integer(svn)) for index, svn in enumerate(components, start=1))
    tcb = svns + _item("2.17", _integer(pcesvn)) + _item("2.18", _tlv(0x04, bytes(components)))
    items = [
        _item("1", _tlv(0x04, ppid)),
        _item("2", _tlv(0x30, tcb)),
        _item("3", _tlv(0x04, pceid)),
        _item("4", _tlv(0x04, fmspc)),
        _item("5", _tlv(0x0A, b"\x01" if kind == "platform" else b"\x00")),
    ]
    if kind == "platform":
        settings = b"".join(_item(f"7.{index}", _tlv(0x01, b"\xff")) for index in (1, 2, 3))
        items += [_item("6", _tlv(0x04, instance_id)), _item("7", _tlv(0x30, settings))]
    return _tlv(0x30, b"".join(items))


# --- revocation lists and signed documents ----------------------------------------------------------------------


def revocation_list(
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    serials: Iterable[int],
    publication: Publication,
    now: datetime,
    *,
    validity: timedelta = DOCUMENT_VALIDITY,
) -> bytes:
    """A CRL v2 (DER) of this issuer, as it is served at `now`."""
    this_update, next_update = publication.issued(now, validity)
    published = datetime.fromtimestamp(publication.published_at, UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(this_update)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(publication.crl_number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(min(published, this_update))
        entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def signed_document(name: str, document: Mapping[str, Any], key: ec.EllipticCurvePrivateKey) -> bytes:
    """`{"NAME":{…},"signature":"…"}`, signed over the exact bytes of the inner object."""
    text = json.dumps(document, separators=(",", ":"))
    signature = raw_signature(key, text.encode()).hex()
    return f'{{"{name}":{text},"signature":"{signature}"}}'.encode()


def _components(svns: tuple[int, ...], tee: str) -> list[dict[str, Any]]:
    names = _COMPONENT_NAMES[tee]
    rows: list[dict[str, Any]] = []
    for index, svn in enumerate(svns):
        row: dict[str, Any] = {"svn": svn}
        if index < len(names):
            row |= {"category": names[index][0], "type": names[index][1]}
        rows.append(row)
    return rows


def _verdict(level: Level | SVNLevel) -> dict[str, Any]:
    row: dict[str, Any] = {"tcbDate": level.date, "tcbStatus": level.status}
    return row | {"advisoryIDs": list(level.advisories)} if level.advisories else row


def tcb_info(publication: Publication, tee: DocumentTEE, now: datetime) -> dict[str, Any]:
    """TCB info v3 of this publication's FMSPC for SGX or TDX, as it is served at `now`."""
    issue, next_update = publication.issued(now, DOCUMENT_VALIDITY)
    document: dict[str, Any] = {
        "id": tee.upper(),
        "version": 3,
        "issueDate": timestamp(issue),
        "nextUpdate": timestamp(next_update),
        "fmspc": publication.fmspc.hex().upper(),
        "pceId": publication.pceid.hex(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": publication.evaluation_number,
    }
    if tee == "tdx":
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        document["tdxModule"] = module
        document["tdxModuleIdentities"] = [
            {
                "id": name,
                **module,
                "tcbLevels": [{"tcb": {"isvsvn": level.isvsvn}, **_verdict(level)} for level in levels],
            }
            for name, levels in publication.modules
        ]
    levels = []
    for level in publication.levels:
        tcb: dict[str, Any] = {"sgxtcbcomponents": _components(level.sgx, "sgx"), "pcesvn": level.pcesvn}
        if tee == "tdx":
            tcb["tdxtcbcomponents"] = _components(level.tdx, "tdx")
        levels.append({"tcb": tcb, **_verdict(level)})
    document["tcbLevels"] = levels
    return document


def qe_identity(publication: Publication, tee: DocumentTEE, now: datetime) -> dict[str, Any]:
    """The identity (v2) of the simulated QE (for SGX) or TD QE (for TDX), as it is served at `now`."""
    issue, next_update = publication.issued(now, DOCUMENT_VALIDITY)
    levels = publication.qe_levels if tee == "sgx" else publication.td_qe_levels
    return {
        "id": "QE" if tee == "sgx" else "TD_QE",
        "version": 2,
        "issueDate": timestamp(issue),
        "nextUpdate": timestamp(next_update),
        "tcbEvaluationDataNumber": publication.evaluation_number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": QE_ATTRIBUTES.hex().upper(),
        "attributesMask": QE_ATTRIBUTES_MASK.hex().upper(),
        "mrsigner": QE_MRSIGNERS[tee].hex().upper(),
        "isvprodid": QE_PRODUCTS[tee],
        "tcbLevels": [{"tcb": {"isvsvn": level.isvsvn}, **_verdict(level)} for level in levels],
    }


def evaluation_numbers(publication: Publication, tee: DocumentTEE, now: datetime) -> dict[str, Any]:
    """The `tcbEvaluationDataNumbers` document: which evaluation data sets exist."""
    issue, next_update = publication.issued(now, DOCUMENT_VALIDITY)
    return {
        "id": tee.upper(),
        "version": 1,
        "issueDate": timestamp(issue),
        "nextUpdate": timestamp(next_update),
        "tcbEvalNumbers": [
            {
                "tcbEvaluationDataNumber": publication.evaluation_number,
                "tcbRecoveryEventDate": publication.levels[0].date,
                "tcbDate": publication.levels[0].date,
            }
        ],
    }
