"""A test vendor: the whole hierarchy of SGX and TDX attestation. A test can spoil exactly one part.

A `Scenario` is changed first and signed after, so a fault in it is validly signed. `built` gives quote, collateral,
roots and time. The keys are fixed numbers: nothing here protects anything.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from adyton.attest.collateral import Collateral
from adyton.attest.enclave import FLAG_DEBUG, FLAG_INIT, FLAG_MODE64, EnclaveReport
from adyton.attest.pck import SGX_EXTENSION
from adyton.attest.quote import TEE_SGX, TEE_TDX, QuoteHeader, SignatureData
from adyton.attest.roots import TrustRoots
from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import ATTRIBUTE_SEPT_VE_DISABLE, TDReport, TDXQuote
from adyton.values import Digest

NOW = datetime(2026, 1, 15, 12, 0, 0, tzinfo=UTC)
LONG = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC))
MONTH = (NOW - timedelta(days=10), NOW + timedelta(days=20))
FMSPC = bytes.fromhex("00a0b0c0d0e0")
QE_SIGNER = hashlib.sha256(b"the signer of the test vendor's QE").digest()
MRENCLAVE = hashlib.sha256(b"an enclave").digest()
MRSIGNER = hashlib.sha256(b"its signer").digest()
REPORT_DATA = hashlib.sha512(b"bound").digest()

Window = tuple[datetime, datetime]


@functools.cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key that is always the same for a name."""
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest()[:31], "big"), ec.SECP256R1())


def raw_signature(signer: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """r and s, 32 bytes each, big-endian."""
    r, s = utils.decode_dss_signature(signer.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_point(private: ec.EllipticCurvePrivateKey) -> bytes:
    """x and y, 32 bytes each, big-endian."""
    public = private.public_key()
    return public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)[1:]


def name(common_name: str) -> x509.Name:
    """A distinguished name of the test vendor."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Adyton test vendor"),
        ]
    )


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    head = bytes((size,)) if size < 0x80 else bytes((0x82,)) + size.to_bytes(2, "big")
    return bytes((tag,)) + head + content


def _integer(value: int) -> bytes:
    return _tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def sgx_extension(platform: dict[str, Any]) -> bytes:
    """Intel's extension of a PCK certificate, DER."""
    prefix = bytes.fromhex("2a864886f84d010d01")

    def item(suffix: bytes, value: bytes) -> bytes:
        return _tlv(0x30, _tlv(6, prefix + suffix) + value)

    tcb = [item(bytes((2, index + 1)), _integer(svn)) for index, svn in enumerate(platform["components"])]
    tcb += [
        item(b"\x02\x11", _integer(platform["pce_svn"])),
        item(b"\x02\x12", _tlv(4, bytes(platform["components"]))),
    ]
    items = [
        item(b"\x01", _tlv(4, platform["ppid"])),
        item(b"\x02", _tlv(0x30, b"".join(tcb))),
        item(b"\x03", _tlv(4, platform["pce_id"])),
        item(b"\x04", _tlv(4, platform["fmspc"])),
        item(b"\x05", _tlv(10, bytes((platform.get("sgx_type", 1),)))),
    ]
    configuration = platform.get("configuration", (True, True, True))
    if configuration is not None:  # as in certificates of the Platform CA
        switches = enumerate(configuration, start=1)
        entries = b"".join(item(bytes((7, at)), _tlv(1, b"\xff" if on else b"\x00")) for at, on in switches)
        items += [
            item(b"\x06", _tlv(4, platform.get("instance_id", bytes(16)))),
            item(b"\x07", _tlv(0x30, entries)),
        ]
    return _tlv(0x30, b"".join(items))


@dataclass
class Cert:
    """A certificate to be made. `key` and `signer` are names of keys."""

    common_name: str
    key: str
    signer: str
    issuer: str
    serial: int
    ca: bool
    window: Window = LONG
    sgx: dict[str, Any] | None = None
    extensions: bool = True

    def build(self) -> bytes:
        """Sign it, DER."""
        public, signer = key(self.key).public_key(), key(self.signer)
        builder = x509.CertificateBuilder(
            name(self.issuer), name(self.common_name), public, self.serial, self.window[0], self.window[1]
        )
        if self.extensions:
            builder = (
                builder.add_extension(x509.BasicConstraints(ca=self.ca, path_length=None), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
                .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
                .add_extension(
                    x509.KeyUsage(
                        digital_signature=not self.ca,
                        content_commitment=False,
                        key_encipherment=False,
                        data_encipherment=False,
                        key_agreement=False,
                        key_cert_sign=self.ca,
                        crl_sign=self.ca,
                        encipher_only=False,
                        decipher_only=False,
                    ),
                    critical=True,
                )
            )
        if self.sgx is not None:
            value = x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_EXTENSION), sgx_extension(self.sgx))
            builder = builder.add_extension(value, critical=False)
        return builder.sign(signer, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(serialization.Encoding.DER)


@dataclass
class Revocations:
    """A CRL to be made."""

    issuer: str
    signer: str
    window: Window = MONTH
    serials: list[int] = field(default_factory=list)

    def build(self) -> bytes:
        """Sign it, DER."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name(self.issuer))
            .last_update(self.window[0])
            .next_update(self.window[1])
            .add_extension(x509.CRLNumber(7), critical=False)
        )
        for serial in self.serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(self.window[0]).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(key(self.signer), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def pem(*certificates: bytes) -> str:
    """A PEM chain."""
    return "".join(
        x509.load_der_x509_certificate(raw).public_bytes(serialization.Encoding.PEM).decode() for raw in certificates
    )


def stamp(when: datetime) -> str:
    """A time as Intel writes it."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def level(
    components: list[int],
    pce_svn: int,
    status: str,
    *,
    tdx: list[int] | None = None,
    advisories: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A TCB level, version 3."""
    tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": svn} for svn in components], "pcesvn": pce_svn}
    if tdx is not None:
        tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in tdx]
    found = {"tcb": tcb, "tcbDate": "2025-06-01T00:00:00Z", "tcbStatus": status}
    return found | ({"advisoryIDs": list(advisories)} if advisories else {})


def svn_level(svn: int, status: str, *, advisories: tuple[str, ...] = ()) -> dict[str, Any]:
    """A TCB level of an enclave or module identity."""
    found = {"tcb": {"isvsvn": svn}, "tcbDate": "2025-05-01T00:00:00Z", "tcbStatus": status}
    return found | ({"advisoryIDs": list(advisories)} if advisories else {})


class Built(NamedTuple):
    """The inputs of a verifier."""

    quote: bytes
    collateral: Collateral
    roots: TrustRoots
    now: datetime


@dataclass
class Scenario:
    """All inputs of a verification, before they are signed."""

    tdx: bool = False
    version: int = 3
    td_size: int = 584
    now: datetime = NOW
    simulated: bool = False
    pinned: bool = True
    other_pins: list[Cert] = field(default_factory=list)
    root: Cert = field(default_factory=lambda: Cert("Test SGX Root CA", "root", "root", "Test SGX Root CA", 1, True))
    ca: Cert = field(
        default_factory=lambda: Cert("Test SGX PCK Platform CA", "ca", "root", "Test SGX Root CA", 2, True)
    )
    leaf: Cert = field(
        default_factory=lambda: Cert("Test SGX PCK Certificate", "pck", "ca", "Test SGX PCK Platform CA", 3, False)
    )
    signer: Cert = field(
        default_factory=lambda: Cert("Test SGX TCB Signing", "tcb", "root", "Test SGX Root CA", 4, False)
    )
    qe_signer: Cert = field(
        default_factory=lambda: Cert("Test SGX TCB Signing", "tcb", "root", "Test SGX Root CA", 5, False)
    )
    crl_ca: Cert | None = None
    crl_root: Cert | None = None
    signer_root: Cert | None = None
    qe_signer_root: Cert | None = None
    root_crl: Revocations = field(default_factory=lambda: Revocations("Test SGX Root CA", "root"))
    pck_crl: Revocations = field(default_factory=lambda: Revocations("Test SGX PCK Platform CA", "ca"))
    platform: dict[str, Any] = field(
        default_factory=lambda: {
            "components": [5] * 16,
            "pce_svn": 13,
            "ppid": bytes(range(16)),
            "pce_id": b"\x00\x00",
            "fmspc": FMSPC,
        }
    )
    tcb_info: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    tcb_info_key: str = "tcb"
    identity_key: str = "tcb"
    qe: dict[str, bytes | int] = field(default_factory=dict)
    qe_auth: bytes = bytes(range(32))
    qe_binding: bytes | None = None
    pck_signer: str = "pck"
    ak: str = "ak"
    ak_signer: str = "ak"
    body: dict[str, bytes | int] = field(default_factory=dict)
    header: dict[str, bytes | int] = field(default_factory=dict)
    certification_type: int = 5
    certification_data: bytes | None = None
    pck_chain_in_collateral: bool = False
    sgx_extension: bool = True

    def __post_init__(self) -> None:
        levels = [
            level([5] * 16, 13, "UpToDate", tdx=[3, 0] + [2] * 14 if self.tdx else None),
            level([3] * 16, 11, "OutOfDate", tdx=[1, 0] + [1] * 14 if self.tdx else None, advisories=("TEST-SA-1",)),
        ]
        self.tcb_info = {
            "id": "TDX" if self.tdx else "SGX",
            "version": 3,
            "issueDate": stamp(MONTH[0]),
            "nextUpdate": stamp(MONTH[1]),
            "fmspc": FMSPC.hex(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": 20,
            "tcbLevels": levels,
        }
        if self.tdx:
            module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "ff" * 8}
            self.tcb_info["tdxModule"] = dict(module)
            self.tcb_info["tdxModuleIdentities"] = [
                dict(module, id="TDX_01", tcbLevels=[svn_level(3, "UpToDate"), svn_level(2, "OutOfDate")])
            ]
        self.identity = {
            "id": "TD_QE" if self.tdx else "QE",
            "version": 2,
            "issueDate": stamp(MONTH[0]),
            "nextUpdate": stamp(MONTH[1]),
            "tcbEvaluationDataNumber": 20,
            "miscselect": "00000000",
            "miscselectMask": "ffffffff",
            "attributes": "11" + "00" * 15,
            "attributesMask": "fb" + "ff" * 7 + "00" * 8,
            "mrsigner": QE_SIGNER.hex(),
            "isvprodid": 2 if self.tdx else 1,
            "tcbLevels": [svn_level(8, "UpToDate"), svn_level(6, "OutOfDate", advisories=("TEST-SA-2",))],
        }
        self.qe = {
            "flags": FLAG_INIT | FLAG_MODE64 | 0x10,
            "xfrm": 3,
            "mrsigner": QE_SIGNER,
            "isv_prod_id": 2 if self.tdx else 1,
            "isv_svn": 8,
        }
        if self.tdx:
            self.body = {
                "tee_tcb_svn": bytes([3, 1] + [2] * 14),
                "td_attributes": ATTRIBUTE_SEPT_VE_DISABLE,
                "xfam": 0x602E7,
                "mrtd": hashlib.sha384(b"td").digest(),
                "rtmr3": hashlib.sha384(b"rtmr3").digest(),
                "report_data": REPORT_DATA,
            }
            if self.td_size >= 648:
                self.body["tee_tcb_svn2"] = self.body["tee_tcb_svn"]
        else:
            self.body = {
                "flags": FLAG_INIT | FLAG_MODE64,
                "mrenclave": MRENCLAVE,
                "mrsigner": MRSIGNER,
                "isv_prod_id": 7,
                "isv_svn": 3,
                "report_data": REPORT_DATA,
            }

    def debug(self) -> None:
        """Make the TEE one under debug."""
        if self.tdx:
            self.body["td_attributes"] = ATTRIBUTE_SEPT_VE_DISABLE | 1
        else:
            self.body["flags"] = FLAG_INIT | FLAG_MODE64 | FLAG_DEBUG

    def pck_chain(self) -> str:
        """PCK certificate, CA, root, PEM."""
        leaf = copy.copy(self.leaf)
        leaf.sgx = self.platform if self.sgx_extension else None
        return pem(leaf.build(), self.ca.build(), self.root.build())

    def parsed(self) -> SGXQuote | TDXQuote:
        """The quote, signed."""
        auth = self.qe_auth
        point = raw_point(key(self.ak))
        binding = hashlib.sha256(point + auth).digest() + bytes(32) if self.qe_binding is None else self.qe_binding
        qe = EnclaveReport.build(**self.qe, report_data=binding)
        data = self.certification_data
        if data is None:
            data = self.pck_chain().encode() + b"\x00"
        draft = SignatureData(
            bytes(64), point, qe, raw_signature(key(self.pck_signer), qe.raw), auth, self.certification_type, data
        )
        quote: SGXQuote | TDXQuote
        if self.tdx:
            header = QuoteHeader.build(**({"version": self.version, "tee_type": TEE_TDX} | self.header))
            quote = TDXQuote(header, TDReport.build(self.td_size, **self.body), draft)
        else:
            header = QuoteHeader.build(**({"version": self.version, "tee_type": TEE_SGX} | self.header))
            quote = SGXQuote(header, EnclaveReport.build(**self.body), draft)
        signature = raw_signature(key(self.ak_signer), quote.signed_part)
        signed = SignatureData(signature, point, qe, draft.qe_report_signature, auth, self.certification_type, data)
        return type(quote)(quote.header, quote.report, signed)  # type: ignore[arg-type]

    def collateral(self) -> Collateral:
        """The collateral, signed."""
        root = self.root.build()
        info = json.dumps(self.tcb_info, separators=(",", ":"))
        identity = json.dumps(self.identity, separators=(",", ":"))
        return Collateral(
            tcb_info=info,
            tcb_info_signature=raw_signature(key(self.tcb_info_key), info.encode()),
            tcb_info_issuer_chain=pem(self.signer.build(), self.signer_root.build() if self.signer_root else root),
            qe_identity=identity,
            qe_identity_signature=raw_signature(key(self.identity_key), identity.encode()),
            qe_identity_issuer_chain=pem(
                self.qe_signer.build(), self.qe_signer_root.build() if self.qe_signer_root else root
            ),
            pck_crl=self.pck_crl.build(),
            pck_crl_issuer_chain=pem(
                (self.crl_ca or self.ca).build(), self.crl_root.build() if self.crl_root else root
            ),
            root_ca_crl=self.root_crl.build(),
            pck_certificate_chain=self.pck_chain() if self.pck_chain_in_collateral else None,
        )

    def roots(self) -> TrustRoots:
        """Trust roots with the test root as Intel's, or as a simulated one."""
        pins = [self.root, *self.other_pins] if self.pinned else self.other_pins
        fingerprints = frozenset(Digest(hashlib.sha256(pin.build()).digest()) for pin in pins)
        if self.simulated:
            return TrustRoots(intel=frozenset(), sim=fingerprints)
        return TrustRoots(intel=fingerprints)

    def built(self) -> Built:
        """Sign everything."""
        return Built(self.parsed().to_bytes(), self.collateral(), self.roots(), self.now)
