"""A test AMD: root key, signing key and chip key. A test can spoil exactly one part of a SEV-SNP report."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.x509.oid import NameOID

from adyton.attest.amd import CSP_OID, HWID_OID, PRODUCT_OID, SPL_OIDS
from adyton.attest.collateral import AMDCollateral
from adyton.attest.roots import TrustRoots
from adyton.attest.snp import SNPReport, TCBVersion
from adyton.values import Digest

KEYS = Path(__file__).parent.parent / "vectors" / "attest"
NOW = datetime(2026, 1, 15, 12, 0, 0, tzinfo=UTC)
LONG = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC))
REPORT_DATA = hashlib.sha512(b"bound").digest()
LAUNCH = hashlib.sha384(b"launch").digest()
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)

Window = tuple[datetime, datetime]


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """An RSA-4096 key of the repository, which protects nothing."""
    found = serialization.load_pem_private_key((KEYS / f"test-rsa4096-{name}.pem").read_bytes(), None)
    if not isinstance(found, rsa.RSAPrivateKey):
        raise TypeError(name)
    return found


@functools.cache
def chip_key(name: str) -> ec.EllipticCurvePrivateKey:
    """A P-384 key that is always the same for a name."""
    return ec.derive_private_key(int.from_bytes(hashlib.sha384(name.encode()).digest()[:47], "big"), ec.SECP384R1())


def name(common_name: str) -> x509.Name:
    """A distinguished name of the test AMD."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes((2, len(raw))) + raw


def _ia5(text: str) -> bytes:
    return bytes((0x16, len(text))) + text.encode()


@dataclass
class Issuer:
    """An ARK or ASK to be made."""

    common_name: str
    key: str
    signer: str
    issuer: str
    serial: int
    window: Window = LONG
    ca: bool = True

    def build(self) -> bytes:
        """Sign it, DER."""
        builder = x509.CertificateBuilder(
            name(self.issuer),
            name(self.common_name),
            rsa_key(self.key).public_key(),
            self.serial,
            self.window[0],
            self.window[1],
        ).add_extension(x509.BasicConstraints(ca=self.ca, path_length=None), critical=True)
        signed = builder.sign(rsa_key(self.signer), hashes.SHA384(), rsa_padding=PSS)
        return signed.public_bytes(serialization.Encoding.DER)


class BuiltReport(NamedTuple):
    """The inputs of a verifier."""

    report: bytes
    collateral: AMDCollateral
    roots: TrustRoots
    now: datetime


@dataclass
class SNPScenario:
    """All inputs of a verification, before they are signed."""

    product: str = "Milan"
    vlek: bool = False
    now: datetime = NOW
    pinned: bool = True
    ark: Issuer = field(default_factory=lambda: Issuer("ARK-Milan", "ark", "ark", "ARK-Milan", 1))
    ask: Issuer = field(default_factory=lambda: Issuer("SEV-Milan", "ask", "ark", "ARK-Milan", 2))
    leaf_name: str = "SEV-VCEK"
    leaf_issuer: str = "SEV-Milan"
    leaf_signer: str = "ask"
    leaf_window: Window = LONG
    certificate_product: str = "Milan-B0"
    certificate_tcb: TCBVersion = field(default_factory=lambda: TCBVersion(4, 0, 24, 219))
    hardware_id: bytes | None = bytes(range(64))
    provider: str | None = None
    crl: bool = True
    crl_issuer: str = "ARK-Milan"
    crl_signer: str = "ark"
    crl_window: Window = (NOW - timedelta(days=10), NOW + timedelta(days=20))
    crl_serials: list[int] = field(default_factory=list)
    signer: str = "chip"
    fields: dict[str, bytes | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.product != "Milan":
            ark, self.leaf_issuer = f"ARK-{self.product}", f"SEV-{self.product}"
            self.ark, self.ask = Issuer(ark, "ark", "ark", ark, 1), Issuer(self.leaf_issuer, "ask", "ark", ark, 2)
            self.crl_issuer, self.certificate_product = ark, self.product
        if self.product == "Turin":
            self.hardware_id = bytes(range(8))
            self.certificate_tcb = TCBVersion(1, 1, 4, 81, fmc=1)
        if self.product == "Genoa":
            self.certificate_tcb = TCBVersion(10, 0, 28, 90)
        if self.vlek:
            self.ask.common_name = self.leaf_issuer = f"SEV-VLEK-{self.product}"
            self.leaf_name, self.hardware_id, self.provider = "SEV-VLEK", None, "test provider"
        tcb = self.certificate_tcb.to_bytes()
        family, model = {"Milan": (0x19, 1), "Genoa": (0x19, 0x11), "Turin": (0x1A, 2)}[self.product]
        self.fields = {
            "version": 3 if self.product == "Milan" else 5,
            "guest_svn": 1,
            "policy": 0x30000,
            "signature_algorithm": 1,
            "report_data": REPORT_DATA,
            "measurement": LAUNCH,
            "host_data": bytes(32),
            "reported_tcb": tcb,
            "committed_tcb": tcb,
            "current_tcb": tcb,
            "launch_tcb": tcb,
            "cpuid_family": family,
            "cpuid_model": model,
            "chip_id": bytes(64) if self.vlek else (self.hardware_id or b"").ljust(64, b"\x00"),
            "key_info": 1 << 2 if self.vlek else 0,
            "platform_info": 0x21,
        }

    def leaf(self) -> bytes:
        """VCEK or VLEK, DER."""
        tcb = self.certificate_tcb.to_dict()
        builder = x509.CertificateBuilder(
            name(self.leaf_issuer),
            name(self.leaf_name),
            chip_key("chip").public_key(),
            1,
            self.leaf_window[0],
            self.leaf_window[1],
        )
        values = {PRODUCT_OID: _ia5(self.certificate_product)}
        values |= {oid: _integer(tcb[part]) for part, oid in SPL_OIDS.items() if part in tcb}
        if self.hardware_id is not None:
            values[HWID_OID] = self.hardware_id
        if self.provider is not None:
            values[CSP_OID] = _ia5(self.provider)
        for oid, value in values.items():
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False
            )
        signed = builder.sign(rsa_key(self.leaf_signer), hashes.SHA384(), rsa_padding=PSS)
        return signed.public_bytes(serialization.Encoding.DER)

    def revocations(self) -> bytes:
        """AMD's CRL, DER."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name(self.crl_issuer))
            .last_update(self.crl_window[0])
            .next_update(self.crl_window[1])
        )
        for serial in self.crl_serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(self.crl_window[0]).build()
            builder = builder.add_revoked_certificate(entry)
        signed = builder.sign(rsa_key(self.crl_signer), hashes.SHA384(), rsa_padding=PSS)
        return signed.public_bytes(serialization.Encoding.DER)

    def report(self) -> bytes:
        """The report, signed."""
        draft = SNPReport.build(**self.fields)
        signature = chip_key(self.signer).sign(draft.signed_part, ec.ECDSA(hashes.SHA384()))
        r, s = utils.decode_dss_signature(signature)
        return draft.replace(signature_r=r, signature_s=s).to_bytes()

    def built(self) -> BuiltReport:
        """Sign everything."""
        ark = self.ark.build()
        collateral = AMDCollateral(
            leaf=self.leaf(), ask=self.ask.build(), ark=ark, crl=self.revocations() if self.crl else None
        )
        pin = Digest(hashlib.sha256(ark if self.pinned else b"another").digest())
        return BuiltReport(self.report(), collateral, TrustRoots(amd={self.product: pin}), self.now)
