"""SIGSTRUCT: the 1808 bytes in which a signer vouches for a measurement (SDM vol. 3D, "SIGSTRUCT"; little-endian).

::

       0  16  header 1            900   4  MISCSELECT         960  32  enclave hash
      16   4  vendor              904   4  MISCMASK           992  16  reserved
      20   4  date                908   2  CET                1008 16  ISV ext prod id
      24  16  header 2            910   2  reserved           1024  2  ISV prod id
      40   4  swdefined           912  16  ISV family id      1026  2  ISV SVN
      44  84  reserved            928   8  ATTRIBUTES.FLAGS   1028 12  reserved
     128 384  modulus             936   8  ATTRIBUTES.XFRM    1040 384 q1
     512   4  exponent (3)        944   8  FLAGS mask         1424 384 q2
     516 384  signature           952   8  XFRM mask

Signed are bytes 0..127 and 900..1027: RSA-3072, e = 3, PKCS#1 v1.5, SHA-256. MRSIGNER is the SHA-256 of the modulus as
stored. Adyton signs workload measurements in the same form, so that one signer's identity serves every TEE.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from adyton.errors import BadSignature, UsageError
from adyton.values import Digest, Measurement

SIGSTRUCT_BYTES: Final = 1808
MODULUS_BYTES: Final = 384
EXPONENT: Final = 3
MAX_PEM_BYTES: Final = 16_384

_HEADER1: Final = bytes.fromhex("06000000e10000000000010000000000")
_HEADER2: Final = bytes.fromhex("01010000600000006000000001000000")
_LAYOUT: Final = struct.Struct("<16s I I 16s I 84s 384s I 384s II BB 2s 16s QQQQ 32s 16s 16s HH 12s 384s 384s")
if _LAYOUT.size != SIGSTRUCT_BYTES:  # a wrong table must not sign anything
    raise RuntimeError(f"the SIGSTRUCT layout has {_LAYOUT.size} bytes, expected {SIGSTRUCT_BYTES}")

FLAG_DEBUG: Final = 0x2
FLAG_MODE64: Final = 0x4
_FLAGS_MASK: Final = 0xFFFFFFFFFFFFFFFF
_XFRM_LEGACY: Final = 0x3
_XFRM_MASK: Final = 0xFFFFFFFFFFF9FF1B
_FEATURES: Final[dict[str, int]] = {"avx": 0x4, "avx512": 0xE4, "amx": 0x60000, "mpx": 0x18, "pkru": 0x200}
_DATE: Final = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")


@dataclass(frozen=True, slots=True)
class Attributes:
    """The values that EINIT compares besides the measurement: MISCSELECT, FLAGS and XFRM, each with its mask."""

    misc_select: int = 0
    misc_mask: int = 0xFFFFFFFF
    flags: int = FLAG_MODE64
    flags_mask: int = _FLAGS_MASK
    xfrm: int = _XFRM_LEGACY
    xfrm_mask: int = _XFRM_MASK

    @classmethod
    def of(cls, *, debug: bool, use_exinfo: bool = False, cpu_features: Mapping[str, str] | None = None) -> Attributes:
        """Gramine's rule: the attributes that `sgx.debug`, `sgx.use_exinfo` and `sgx.cpu_features` ask for."""
        xfrm, mask = _XFRM_LEGACY, _XFRM_MASK
        for name, bits in _FEATURES.items():
            default = "disabled" if name in ("mpx", "pkru") else "unspecified"
            wish = (cpu_features or {}).get(name, default)
            if wish == "required":
                xfrm, mask = xfrm | bits, mask | bits
            elif wish == "disabled":
                xfrm, mask = xfrm & ~bits, mask | bits
        flags = FLAG_MODE64 | (FLAG_DEBUG if debug else 0)
        return cls(misc_select=1 if use_exinfo else 0, flags=flags, xfrm=xfrm, xfrm_mask=mask)


@dataclass(frozen=True, slots=True)
class Sigstruct:
    """A parsed SIGSTRUCT whose fixed fields were checked. `verify` checks the signature."""

    date: str
    modulus: int
    signature: int
    attributes: Attributes
    measurement: Measurement
    isv_prod_id: int
    isv_svn: int
    q1: int
    q2: int
    vendor: int = 0
    swdefined: int = 0
    isv_family_id: bytes = bytes(16)
    isv_ext_prod_id: bytes = bytes(16)
    cet: tuple[int, int] = (0, 0)

    @property
    def mrsigner(self) -> Digest:
        """SHA-256 of the modulus in little-endian order: the signer's identity."""
        return Digest(hashlib.sha256(self.modulus.to_bytes(MODULUS_BYTES, "little")).digest())

    @property
    def debug(self) -> bool:
        """Whether a debug enclave is signed for."""
        return bool(self.attributes.flags & FLAG_DEBUG)

    def to_bytes(self) -> bytes:
        """The 1808 bytes."""
        year_month_day = int(self.date.replace("-", ""), 16)
        attributes = self.attributes
        return _LAYOUT.pack(
            _HEADER1,
            self.vendor,
            year_month_day,
            _HEADER2,
            self.swdefined,
            bytes(84),
            self.modulus.to_bytes(MODULUS_BYTES, "little"),
            EXPONENT,
            self.signature.to_bytes(MODULUS_BYTES, "little"),
            attributes.misc_select,
            attributes.misc_mask,
            *self.cet,
            bytes(2),
            self.isv_family_id,
            attributes.flags,
            attributes.xfrm,
            attributes.flags_mask,
            attributes.xfrm_mask,
            self.measurement.raw,
            bytes(16),
            self.isv_ext_prod_id,
            self.isv_prod_id,
            self.isv_svn,
            bytes(12),
            self.q1.to_bytes(MODULUS_BYTES, "little"),
            self.q2.to_bytes(MODULUS_BYTES, "little"),
        )

    def verify(self) -> Digest:
        """Check signature, q1 and q2 under the structure's own key. Returns MRSIGNER, or raises BadSignature."""
        raw = self.to_bytes()
        try:
            public = rsa.RSAPublicNumbers(EXPONENT, self.modulus).public_key()
            public.verify(
                self.signature.to_bytes(MODULUS_BYTES, "big"), _signed(raw), padding.PKCS1v15(), hashes.SHA256()
            )
        except (InvalidSignature, ValueError):
            raise BadSignature(
                "the SIGSTRUCT's signature is not its signer's",
                check="SIGSTRUCT signature (RSA-3072, SHA-256)",
                expected=f"a signature by {self.mrsigner}",
                seen="another, or altered bytes",
                remedy="build the manifest again, or take the .sig file that was made with it",
            ) from None
        if (self.q1, self.q2) != _quotients(self.signature, self.modulus):
            raise BadSignature(
                "the SIGSTRUCT's q1 and q2 do not belong to its signature",
                check="SIGSTRUCT q1, q2",
                expected="the quotients of the signature",
                seen="others",
            )
        return self.mrsigner


def _signed(raw: bytes) -> bytes:
    return raw[:128] + raw[900:1028]


def _quotients(signature: int, modulus: int) -> tuple[int, int]:
    square, rest = divmod(signature * signature, modulus)
    return square, rest * signature // modulus


def _refuse(what: str, expected: object, seen: object) -> BadSignature:
    return BadSignature(f"not a SIGSTRUCT: {what}", check=f"SIGSTRUCT {what}", expected=expected, seen=seen)


def parse_sigstruct(raw: bytes) -> Sigstruct:
    """Parse 1808 bytes, checking every fixed field. Raises BadSignature. The signature is not yet checked."""
    if len(raw) != SIGSTRUCT_BYTES:
        raise _refuse("length", f"{SIGSTRUCT_BYTES} bytes", f"{len(raw)} bytes")
    fields = _LAYOUT.unpack(raw)
    (header1, vendor, date, header2, swdefined, zeros1, modulus, exponent, signature, misc, misc_mask) = fields[:11]
    (cet, cet_mask, zeros2, family, flags, xfrm, flags_mask, xfrm_mask, digest, zeros3, ext) = fields[11:22]
    prod_id, svn, zeros4, q1, q2 = fields[22:]
    if (header1, header2) != (_HEADER1, _HEADER2):
        raise _refuse("headers", f"{_HEADER1.hex()} {_HEADER2.hex()}", f"{header1.hex()} {header2.hex()}")
    if vendor not in (0, 0x8086):
        raise _refuse("vendor", "0 or 0x8086", hex(vendor))
    if exponent != EXPONENT:
        raise _refuse("exponent", EXPONENT, exponent)
    if any(zeros1 + zeros2 + zeros3 + zeros4):
        raise _refuse("reserved bytes", "zeros", "other bytes")
    number = int.from_bytes(modulus, "little")
    if number.bit_length() != 8 * MODULUS_BYTES or number % 2 == 0:
        raise _refuse("modulus", f"an odd number of {8 * MODULUS_BYTES} bits", f"{number.bit_length()} bits")
    text = f"{date:08x}"
    if not text.isdigit():
        raise _refuse("date", "decimal digits", text)
    return Sigstruct(
        date=f"{text[:4]}-{text[4:6]}-{text[6:]}",
        modulus=number,
        signature=int.from_bytes(signature, "little"),
        attributes=Attributes(misc, misc_mask, flags, flags_mask, xfrm, xfrm_mask),
        measurement=Measurement(digest),
        isv_prod_id=prod_id,
        isv_svn=svn,
        q1=int.from_bytes(q1, "little"),
        q2=int.from_bytes(q2, "little"),
        vendor=vendor,
        swdefined=swdefined,
        isv_family_id=family,
        isv_ext_prod_id=ext,
        cet=(cet, cet_mask),
    )


def generate_signer() -> bytes:
    """A new signing key, RSA-3072 with e = 3, as traditional OpenSSL PEM without a passphrase (store it 0600)."""
    key = rsa.generate_private_key(public_exponent=EXPONENT, key_size=8 * MODULUS_BYTES)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def load_signer(pem: bytes) -> rsa.RSAPrivateKey:
    """Parse a signing key. Raises UsageError where it is not RSA-3072 with e = 3."""
    try:
        key = serialization.load_pem_private_key(pem[: MAX_PEM_BYTES + 1], password=None)
    except (ValueError, TypeError):
        key = None
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size == 8 * MODULUS_BYTES:
        if key.public_key().public_numbers().e == EXPONENT:
            return key
        seen = f"exponent {key.public_key().public_numbers().e}"
    else:
        seen = f"an RSA key of {key.key_size} bits" if isinstance(key, rsa.RSAPrivateKey) else "something else"
    raise UsageError(
        "the signing key cannot sign a SIGSTRUCT",
        check="signing key",
        expected="an unencrypted PEM private key, RSA-3072 with exponent 3",
        seen=seen,
        remedy="adyton init makes one, as does gramine-sgx-gen-private-key",
    )


def mrsigner_of(key: rsa.RSAPrivateKey) -> Digest:
    """The identity of a signer."""
    modulus = key.public_key().public_numbers().n
    return Digest(hashlib.sha256(modulus.to_bytes(MODULUS_BYTES, "little")).digest())


def sign(
    measurement: Measurement,
    key: rsa.RSAPrivateKey,
    *,
    attributes: Attributes,
    isv_prod_id: int = 0,
    isv_svn: int = 0,
    date: str = "0000-00-00",
) -> Sigstruct:
    """Sign a 32-byte measurement. The same input gives the same bytes. `date`: YYYY-MM-DD, any digits."""
    if len(measurement.raw) != 32:
        raise UsageError("a SIGSTRUCT signs a measurement of 32 bytes", seen=f"{len(measurement.raw)} bytes")
    if not _DATE.fullmatch(date):
        raise UsageError("not a date", check="SIGSTRUCT date", expected="YYYY-MM-DD", seen=date[:40])
    modulus = key.public_key().public_numbers().n
    unsigned = Sigstruct(date, modulus, 0, attributes, measurement, isv_prod_id, isv_svn, 0, 0)
    raw = key.sign(_signed(unsigned.to_bytes()), padding.PKCS1v15(), hashes.SHA256())
    signature = int.from_bytes(raw, "big")
    q1, q2 = _quotients(signature, modulus)
    return Sigstruct(date, modulus, signature, attributes, measurement, isv_prod_id, isv_svn, q1, q2)
