"""A test TPM in pure Python: quotes, AK certificates, event logs, and Azure's evidence. A test can spoil any part."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.x509.oid import NameOID

from adyton.attest.azure.evidence import encode_body
from adyton.attest.tpm.ak_chain import AIK_PURPOSE
from adyton.attest.tpm.event_log import DIGEST_BYTES, EV_NO_ACTION, REPLAYED, SHA1, SHA256, SHA384
from adyton.attest.tpm.pcr_policy import CALLING, SEPARATOR
from adyton.attest.tpm.structures import ALG_ECDSA, ALG_RSASSA, ALL_PCRS, Attest, PCRSelection, Signature
from adyton.attest.workload_register import workload_register
from adyton.values import Digest, Measurement
from tests.support.amd_factory import SNPScenario

NOW = datetime(2026, 1, 15, 12, 0, 0, tzinfo=UTC)
NONCE = hashlib.sha512(b"nonce").digest()
WORKLOAD = Measurement(hashlib.sha256(b"workload").digest())
UKI = hashlib.sha256(b"uki").digest()
LINUX = hashlib.sha256(b"linux").digest()
WINDOW = (datetime(2025, 1, 1, tzinfo=UTC), datetime(2035, 1, 1, tzinfo=UTC))
AnyKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@functools.cache
def p256(name: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key that is always the same for a name."""
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest()[:31], "big"), ec.SECP256R1())


@functools.cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """An RSA key for this test run."""
    return rsa.generate_private_key(65537, bits)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass
class AKCert:
    """A certificate of the chain, before it is signed."""

    subject: str
    issuer: str
    key: AnyKey
    signer: AnyKey
    ca: bool = False
    path_length: int | None = None
    purposes: tuple[x509.ObjectIdentifier, ...] = ()
    window: tuple[datetime, datetime] = WINDOW
    critical: bytes | None = None

    def build(self) -> bytes:
        """Sign it, DER."""
        builder = x509.CertificateBuilder(
            _name(self.issuer), _name(self.subject), self.key.public_key(), 7, self.window[0], self.window[1]
        ).add_extension(x509.BasicConstraints(ca=self.ca, path_length=self.path_length), critical=True)
        if self.purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.purposes), critical=False)
        if self.critical is not None:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), self.critical)
            builder = builder.add_extension(unknown, critical=True)
        same = True if isinstance(self.signer, ec.EllipticCurvePrivateKey) else None
        signed = builder.sign(self.signer, hashes.SHA256(), ecdsa_deterministic=same)
        return signed.public_bytes(serialization.Encoding.DER)


def event(index: int, digest: bytes, *, kind: int = 0x80000003, data: bytes = b"", banks: tuple[int, ...]) -> bytes:
    """One event. The digests of other banks than SHA-256 are hashes of the SHA-256 one."""
    found = struct.pack("<III", index, kind, len(banks))
    for bank in banks:
        value = digest if bank == SHA256 else hashlib.new(REPLAYED[bank], digest).digest()
        found += struct.pack("<H", bank) + value
    return found + struct.pack("<I", len(data)) + data


def log_head(banks: tuple[int, ...], index: int = 0) -> bytes:
    """The head of a log."""
    data = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks))
    data += b"".join(struct.pack("<HH", bank, DIGEST_BYTES[bank]) for bank in banks) + b"\0"
    return struct.pack("<II20sI", index, EV_NO_ACTION, bytes(20), len(data)) + data


@dataclass
class TPMScenario:
    """A machine with a TPM, before anything is signed."""

    root: AKCert = field(default_factory=lambda: AKCert("TPM root", "TPM root", p256("root"), p256("root"), ca=True))
    ak_key: AnyKey = field(default_factory=lambda: p256("ak"))
    signer: AnyKey | None = None
    purposes: tuple[x509.ObjectIdentifier, ...] = (AIK_PURPOSE,)
    middle: AKCert | None = None
    nonce: bytes = NONCE
    selections: tuple[PCRSelection, ...] = (ALL_PCRS,)
    digest: bytes | None = None
    banks: tuple[int, ...] = (SHA1, SHA256, SHA384)
    started: list[bytes] = field(default_factory=lambda: [CALLING, SEPARATOR, UKI, LINUX])
    more: dict[int, bytes] = field(default_factory=dict)
    """PCR -> value beside those of the log."""
    spoil_log: bytes | None = None
    leaf: AKCert = field(init=False)

    def __post_init__(self) -> None:
        self.leaf = AKCert("AK", "TPM root", self.ak_key, self.root.key, purposes=self.purposes)

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER, leaf first."""
        return tuple(item.build() for item in (self.leaf, self.middle, self.root) if item is not None)

    @property
    def root_pin(self) -> Digest:
        """SHA-256 of the root."""
        return Digest(hashlib.sha256(self.root.build()).digest())

    def event_log(self) -> bytes:
        """The firmware's log."""
        if self.spoil_log is not None:
            return self.spoil_log
        events = [(0, hashlib.sha256(b"firmware").digest()), (7, hashlib.sha256(b"db").digest()), (0, SEPARATOR)]
        events.append((2, SEPARATOR))
        events += [(4, digest) for digest in self.started]
        return log_head(self.banks) + b"".join(event(index, digest, banks=self.banks) for index, digest in events)

    def pcrs(self) -> list[bytes]:
        """The 24 values, as the TPM holds them."""
        values = [bytes(32)] * 17 + [b"\xff" * 32] * 6 + [bytes(32)]
        for index, digests in (
            (0, [hashlib.sha256(b"firmware").digest(), SEPARATOR]),
            (2, [SEPARATOR]),
            (7, [hashlib.sha256(b"db").digest()]),
            (4, self.started),
            (11, [hashlib.sha256(b".linux\0").digest()]),
        ):
            for digest in digests:
                values[index] = hashlib.sha256(values[index] + digest).digest()
        values[15] = workload_register(WORKLOAD, bank="sha256")
        for index, value in self.more.items():
            values[index] = value
        return values

    def attest(self) -> Attest:
        """What the TPM signs."""
        digest = hashlib.sha256(b"".join(self.pcrs())).digest() if self.digest is None else self.digest
        return Attest(
            signer=b"\0\x0b" + bytes(32),
            extra_data=self.nonce,
            clock_ms=1000,
            reset_count=3,
            restart_count=0,
            safe=True,
            firmware_version=0x2020031200120003,
            selections=self.selections,
            pcr_digest=digest,
        )

    def signature(self, message: bytes) -> Signature:
        """Sign as a TPM."""
        key = self.signer or self.ak_key
        if isinstance(key, rsa.RSAPrivateKey):
            return Signature(ALG_RSASSA, key.sign(message, padding.PKCS1v15(), hashes.SHA256()))
        r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
        return Signature(ALG_ECDSA, r.to_bytes(32, "big") + s.to_bytes(32, "big"))

    def document(self) -> dict[str, object]:
        """The quote document."""
        message = self.attest().to_bytes()

        def b64(raw: bytes) -> str:
            return base64.b64encode(raw).decode()

        return {
            "format": "adyton-tpm-quote/1",
            "ak_certificates": [b64(raw) for raw in self.chain],
            "message": b64(message),
            "signature": b64(self.signature(message).to_bytes()),
            "pcrs": {"sha256": [value.hex() for value in self.pcrs()]},
            "event_log": b64(self.event_log()),
        }

    def built(self) -> bytes:
        """The quote document, JSON."""
        return json.dumps(self.document()).encode()

    def policy(self, **more: object) -> dict[str, object]:
        """A policy that accepts it, as plain data."""
        return {
            "tees": [f"sim-tpm:{self.root_pin}"],
            "workloads": [WORKLOAD.hex()],
            "boot_applications": [UKI.hex(), LINUX.hex()],
            **more,
        }


@dataclass
class AzureScenario:
    """An Azure machine on a test AMD, before anything is signed."""

    tpm: TPMScenario = field(default_factory=lambda: TPMScenario(ak_key=rsa_key("hcl-ak")))
    snp: SNPScenario = field(default_factory=SNPScenario)
    claims: dict[str, object] = field(default_factory=dict)
    spoil_claims: bytes | None = None
    """Claims that stand in the report though the hardware did not bind them."""
    report_data_tail: bytes = bytes(32)
    size: int = 2600
    head: dict[int, int] = field(default_factory=dict)
    """Offset -> byte, changed in the paravisor's report at the end."""

    def claims_json(self) -> bytes:
        """The runtime claims."""
        return runtime_claims(self.tpm.ak_key, self.claims)

    def hcl_report(self) -> bytes:
        """The paravisor's report, 2600 bytes."""
        claims = self.claims_json()
        self.snp.fields["report_data"] = hashlib.sha256(claims).digest() + self.report_data_tail
        raw = bytearray(hcl_report(self.snp.report(), self.spoil_claims or claims, size=self.size))
        for offset, value in self.head.items():
            raw[offset] = value
        return bytes(raw)

    def body(self) -> bytes:
        """The evidence, version 1."""
        message = self.tpm.attest().to_bytes()
        return encode_body(
            self.hcl_report(),
            vcek=self.snp.leaf(),
            td_quote=None,
            message=message,
            signature=self.tpm.signature(message).value,
            pcrs=self.tpm.pcrs(),
        )

    @property
    def paravisor(self) -> Measurement:
        """The launch digest of what runs below the guest."""
        return Measurement(bytes(self.snp.fields["measurement"]))

    def policy(self, **more: object) -> dict[str, object]:
        """A policy that accepts it, as plain data."""
        minimum = {"bootloader": 1, "tee": 0, "snp": 1, "microcode": 1}
        milan = {"accept_until": "2040-01-01", "reason": "a test"}
        named = {"tees": ["az-snp"], "measurements": [self.paravisor.hex()]}
        rules = {"min_tcb": {"Milan": minimum}, "snp": {"products": {"Milan": milan}}}
        return self.tpm.policy() | named | rules | more


def runtime_claims(ak_key: object, changed: dict[str, object] | None = None) -> bytes:
    """The runtime claims of a paravisor whose TPM has this attestation key."""
    if not isinstance(ak_key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        raise TypeError(ak_key)
    public = ak_key.public_key() if isinstance(ak_key, rsa.RSAPrivateKey) else ak_key
    numbers = public.public_numbers()
    key = {"kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA", "e": b64_number(numbers.e), "n": b64_number(numbers.n)}
    document: dict[str, object] = {
        "keys": [key],
        "vm-configuration": {"console-enabled": True, "secure-boot": True, "tpm-enabled": True, "vmUniqueId": "A-B"},
        "user-data": "00" * 64,
    }
    return json.dumps(document | (changed or {}), separators=(",", ":")).encode()


def b64_number(value: int) -> str:
    """A number as a JWK has it."""
    raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def hcl_report(hardware: bytes, claims: bytes, *, kind: int = 2, size: int = 2600) -> bytes:
    """A paravisor's report around a hardware report and runtime claims."""
    raw = struct.pack("<4sIIII12s", b"HCLA", 2, size, 2, 0, bytes(12)) + hardware.ljust(1184, b"\0")
    raw += struct.pack("<5I", 20 + len(claims), 1, kind, 1, len(claims)) + claims
    return raw.ljust(size, b"\0")
