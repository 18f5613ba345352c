"""A test vendor of Nitro documents: a root, CAs, a leaf and documents. A test can spoil exactly one part.

A `NitroScenario` is changed first and signed after, so a fault in it is validly signed. The keys are fixed numbers:
nothing here protects anything.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from adyton.attest.nitro.document import PROTECTED_ES384, signed_bytes
from adyton.attest.roots import TrustRoots
from adyton.values import Digest

NOW = datetime(2026, 1, 15, 12, 0, 0, tzinfo=UTC)
LONG = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC))
HOURS = (NOW - timedelta(minutes=1), NOW + timedelta(hours=3))
IMAGE = hashlib.sha384(b"an image").digest()
NONCE = hashlib.sha512(b"bound").digest()

Window = tuple[datetime, datetime]


@functools.cache
def key(name: str, curve: str = "P-384") -> ec.EllipticCurvePrivateKey:
    """A key that is always the same for a name."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:31], "big")
    return ec.derive_private_key(number, ec.SECP384R1() if curve == "P-384" else ec.SECP256R1())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@dataclass
class Cert:
    """One certificate before it is signed. `key` and `signer` name keys."""

    common_name: str
    issuer: str
    key: str
    signer: str
    window: Window = LONG
    ca: bool = True
    path_length: int | None = None
    may_sign: bool = True
    curve: str = "P-384"
    strange: bool = False
    """Whether it has an unknown critical extension."""

    def build(self) -> bytes:
        """Sign it, DER."""
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "key_cert_sign",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        usage["key_cert_sign" if self.ca else "digital_signature"] = self.may_sign
        builder = (
            x509.CertificateBuilder(
                _name(self.issuer),
                _name(self.common_name),
                key(self.key, self.curve).public_key(),
                7,
                self.window[0],
                self.window[1],
            )
            .add_extension(x509.BasicConstraints(self.ca, self.path_length if self.ca else None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
        )
        if self.strange:
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
            builder = builder.add_extension(extension, critical=True)
        signed = builder.sign(key(self.signer), hashes.SHA384(), ecdsa_deterministic=True)
        return signed.public_bytes(serialization.Encoding.DER)


class BuiltDocument(NamedTuple):
    """The inputs of the verifier."""

    raw: bytes
    roots: TrustRoots
    now: datetime


def cose(payload: bytes, signer: ec.EllipticCurvePrivateKey) -> bytes:
    """A COSE_Sign1 over a payload."""
    r, s = utils.decode_dss_signature(signer.sign(signed_bytes(payload), ec.ECDSA(hashes.SHA384())))
    return cbor2.dumps([PROTECTED_ES384, {}, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big")])


@dataclass
class NitroScenario:
    """All inputs of a verification, before they are signed."""

    tpm: bool = False
    now: datetime = NOW
    pinned: bool = True
    root: Cert = field(default_factory=lambda: Cert("root", "root", "nitro root", "nitro root"))
    region: Cert = field(default_factory=lambda: Cert("region", "root", "region", "nitro root", path_length=1))
    instance: Cert = field(default_factory=lambda: Cert("instance", "region", "instance", "region", path_length=0))
    leaf: Cert = field(default_factory=lambda: Cert("leaf", "instance", "leaf", "instance", HOURS, ca=False))
    signer: str = "leaf"
    members: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        zeros = bytes(48)
        pcrs = dict.fromkeys(range(24 if self.tpm else 16), zeros)
        pcrs |= {4: IMAGE, 7: IMAGE} if self.tpm else {0: IMAGE, 1: IMAGE, 2: IMAGE}
        self.members = {
            "module_id": "i-1-tpm0" if self.tpm else "i-1-enc1",
            "digest": "SHA384",
            "timestamp": int(NOW.timestamp() * 1000),
            "nitrotpm_pcrs" if self.tpm else "pcrs": pcrs,
            "public_key": None,
            "user_data": b"user data",
            "nonce": NONCE,
        }

    @property
    def pcrs(self) -> dict[int, bytes]:
        """The registers, to change them."""
        found: dict[int, bytes] = self.members["nitrotpm_pcrs" if self.tpm else "pcrs"]
        return found

    def payload(self) -> bytes:
        """The members as AWS writes them: a map without a length."""
        members = self.members | {
            "certificate": self.leaf.build(),
            "cabundle": [certificate.build() for certificate in (self.root, self.region, self.instance)],
        }
        return b"\xbf" + b"".join(cbor2.dumps(name) + cbor2.dumps(value) for name, value in members.items()) + b"\xff"

    def built(self) -> BuiltDocument:
        """Sign everything."""
        root = self.root.build()
        pin = Digest(hashlib.sha256(root if self.pinned else b"another").digest())
        return BuiltDocument(cose(self.payload(), key(self.signer)), TrustRoots(nitro=frozenset({pin})), self.now)
