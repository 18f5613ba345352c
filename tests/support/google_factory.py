"""A test signer of Google's firmware endorsements. A test spoils exactly one part. Nothing here protects anything."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from adyton.values import Digest

NOW = datetime(2026, 1, 15, 12, 0, 0, tzinfo=UTC)
LONG = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC))
KEYS = Path(__file__).parent.parent / "vectors" / "attest"
FIRMWARE = hashlib.sha384(b"a firmware").digest()


@functools.cache
def key(name: str) -> rsa.RSAPrivateKey:
    """One of the RSA keys of the tests: ark, ask or other."""
    found = load_pem_private_key((KEYS / f"test-rsa4096-{name}.pem").read_bytes(), None)
    assert isinstance(found, rsa.RSAPrivateKey)
    return found


def varint(value: int) -> bytes:
    """A number as protocol buffers write it."""
    out = b""
    while value >= 0x80:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def number(at: int, value: int) -> bytes:
    """A field with a number."""
    return varint(at << 3) + varint(value)


def octets(at: int, value: bytes) -> bytes:
    """A field with bytes or a message."""
    return varint(at << 3 | 2) + varint(len(value)) + value


def _certificate(
    name: str, subject: str, issuer: str, signer: str, ca: bool, window: tuple[datetime, datetime]
) -> bytes:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = x509.CertificateBuilder(
        named(issuer), named(subject), key(name).public_key(), 5, window[0], window[1]
    ).add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    return builder.sign(key(signer), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@dataclass
class EndorsementScenario:
    """All inputs, before they are signed."""

    snp: list[bytes] = field(default_factory=list)
    tdx: list[bytes] = field(default_factory=list)
    seconds: int = int((NOW - timedelta(days=30)).timestamp())
    firmware: bytes = FIRMWARE
    leaf_issuer: str = "GCE root"
    leaf_signer: str = "ark"
    leaf_window: tuple[datetime, datetime] = LONG
    root_ca: bool = True
    root_window: tuple[datetime, datetime] = LONG
    signer: str = "ask"
    more: bytes = b""
    """Bytes behind the fields of the signed part."""

    def root(self) -> bytes:
        """The root certificate, DER."""
        return _certificate("ark", "GCE root", "GCE root", "ark", self.root_ca, self.root_window)

    @property
    def pin(self) -> Digest:
        """The root's fingerprint."""
        return Digest(hashlib.sha256(self.root()).digest())

    def signed(self) -> bytes:
        """The signed part."""
        leaf = _certificate("ask", "GCE signer", self.leaf_issuer, self.leaf_signer, False, self.leaf_window)
        snp = number(1, 2) + b"".join(
            octets(2, number(1, index) + octets(2, value)) for index, value in enumerate(self.snp, 1)
        )
        tdx = number(1, 3) + b"".join(octets(2, number(1, 16) + octets(3, value)) for value in self.tdx)
        return (
            octets(1, number(1, self.seconds))
            + number(2, 7)
            + octets(3, b"\xab" * 20)
            + octets(4, leaf)
            + octets(5, self.firmware)
            + octets(7, snp)
            + octets(8, tdx)
            + self.more
        )

    def built(self) -> bytes:
        """The endorsement."""
        signed = self.signed()
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        return octets(1, signed) + octets(2, key(self.signer).sign(signed, scheme, hashes.SHA256()))
