"""TPM 2.0 structures: TPMS_ATTEST of a quote, and TPMT_SIGNATURE. Bytes to values and back. Nothing is verified here.

Integers are big-endian. Source: TCG, Trusted Platform Module Library, Part 2 (Structures), revision 1.59:
10.12.8 TPMS_ATTEST, 10.12.1 TPMS_QUOTE_INFO, 10.11.1 TPMS_CLOCK_INFO, 11.3.4 TPMT_SIGNATURE.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

from adyton.attest.quote import refuse

GENERATED: Final = 0xFF544347
"""TPM_GENERATED_VALUE: a TPM's restricted key signs nothing else that begins so."""
ST_ATTEST_QUOTE: Final = 0x8018
ALG_SHA256: Final = 0x000B
ALG_RSASSA: Final = 0x0014
ALG_ECDSA: Final = 0x0018

PCRS: Final = 24
PCR_BYTES: Final = 32
MAX_ATTEST_BYTES: Final = 1024
MAX_SIGNATURE_BYTES: Final = 1024
MAX_DATA_BYTES: Final = 66
"""TPM2B_DATA: at most a TPMT_HA of SHA-512."""
MAX_NAME_BYTES: Final = 66
MAX_DIGEST_BYTES: Final = 64
MAX_SELECTIONS: Final = 16
RSA_BYTES: Final = range(256, 513)
P256_BYTES: Final = 32


class Refuse(Protocol):
    """Raises an error for a malformed structure."""

    def __call__(
        self, message: str, *, check: str, expected: object, seen: object, remedy: str | None = None
    ) -> NoReturn:
        """Raise."""
        ...


class Reader:
    """A cursor over big-endian bytes. Everything it is asked for must be there, else it calls `refuse`."""

    __slots__ = ("_at", "_raw", "_refuse", "_what")

    def __init__(self, raw: bytes, what: str, refuse: Refuse = refuse) -> None:
        self._raw, self._what, self._at, self._refuse = raw, what, 0, refuse

    def take(self, size: int, name: str) -> bytes:
        """The next `size` bytes."""
        end = self._at + size
        if end > len(self._raw):
            self._refuse(
                f"the {self._what} ends inside its {name}",
                check=f"length of the {self._what}",
                expected=f"{size} bytes for the {name}",
                seen=f"{len(self._raw) - self._at} bytes",
                remedy="the evidence was cut or altered on its way; collect it again",
            )
        found = self._raw[self._at : end]
        self._at = end
        return found

    def number(self, size: int, name: str) -> int:
        """The next `size` bytes as an unsigned integer."""
        return int.from_bytes(self.take(size, name), "big")

    def sized(self, limit: int, name: str) -> bytes:
        """A TPM2B: a length of two bytes, at most `limit`, and so many bytes."""
        size = self.number(2, f"size of the {name}")
        if size > limit:
            self._refuse(
                f"the {name} of the {self._what} is too long",
                check=f"size of the {name}",
                expected=f"at most {limit} bytes",
                seen=f"{size} bytes",
            )
        return self.take(size, name)

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self._raw) - self._at, "rest")

    def finish(self) -> None:
        """Refuse bytes that are left over."""
        rest = len(self._raw) - self._at
        if rest:
            self._refuse(
                f"bytes follow the {self._what}",
                check=f"end of the {self._what}",
                expected="nothing behind it",
                seen=f"{rest} bytes",
            )


@dataclass(frozen=True, slots=True)
class PCRSelection:
    """The PCRs of one bank that a quote covers."""

    algorithm: int
    bitmap: bytes
    """Bit n of byte m stands for PCR 8 m + n."""

    @property
    def pcrs(self) -> tuple[int, ...]:
        """The numbers of the PCRs, ascending."""
        return tuple(index for index in range(8 * len(self.bitmap)) if self.bitmap[index // 8] >> (index % 8) & 1)

    def __str__(self) -> str:
        bank = "SHA-256" if self.algorithm == ALG_SHA256 else f"bank {self.algorithm:#06x}"
        return f"{bank}: PCR {', '.join(map(str, self.pcrs)) or 'none'}"


ALL_PCRS: Final = PCRSelection(ALG_SHA256, b"\xff\xff\xff")
"""The only selection that is accepted: all 24 PCRs of the SHA-256 bank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest:
    """TPMS_ATTEST of a quote, unverified."""

    signer: bytes
    """Qualified name of the signing key."""
    extra_data: bytes
    """What the caller asked the TPM to sign along: the nonce, or report data."""
    clock_ms: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selections: tuple[PCRSelection, ...]
    pcr_digest: bytes

    def to_bytes(self) -> bytes:
        """The structure as a TPM writes it. `parse_attest` gives it back."""
        head = struct.pack(">IH", GENERATED, ST_ATTEST_QUOTE)
        clock = struct.pack(
            ">QII?Q", self.clock_ms, self.reset_count, self.restart_count, self.safe, self.firmware_version
        )
        chosen = b"".join(
            struct.pack(">HB", item.algorithm, len(item.bitmap)) + item.bitmap for item in self.selections
        )
        return b"".join(
            (
                head,
                _sized(self.signer),
                _sized(self.extra_data),
                clock,
                struct.pack(">I", len(self.selections)) + chosen,
                _sized(self.pcr_digest),
            )
        )


def _sized(raw: bytes) -> bytes:
    return struct.pack(">H", len(raw)) + raw


def parse_attest(raw: bytes) -> Attest:
    """Parse a TPMS_ATTEST that is a quote, all of it. Raises MalformedQuote."""
    if len(raw) > MAX_ATTEST_BYTES:
        refuse(
            "the quoted message is too long",
            check="size of TPMS_ATTEST",
            expected=f"at most {MAX_ATTEST_BYTES} bytes",
            seen=f"{len(raw)} bytes",
        )
    reader = Reader(raw, "TPMS_ATTEST")
    magic = reader.number(4, "magic")
    if magic != GENERATED:
        refuse(
            "the signed message was not made by a TPM",
            check="TPMS_ATTEST: magic",
            expected=f"{GENERATED:#x}",
            seen=f"{magic:#x}",
            remedy="refuse the evidence: the key signed something that its TPM did not make",
        )
    kind = reader.number(2, "type")
    if kind != ST_ATTEST_QUOTE:
        refuse(
            "the TPM signed something, but no quote",
            check="TPMS_ATTEST: type",
            expected=f"{ST_ATTEST_QUOTE:#x} (quote)",
            seen=f"{kind:#x}",
        )
    signer = reader.sized(MAX_NAME_BYTES, "signer's name")
    extra = reader.sized(MAX_DATA_BYTES, "extra data")
    clock, resets, restarts = (reader.number(size, "clock") for size in (8, 4, 4))
    safe = reader.number(1, "safe flag")
    if safe > 1:
        refuse("the safe flag is no truth value", check="TPMS_ATTEST: safe", expected="0 or 1", seen=safe)
    firmware = reader.number(8, "firmware version")
    selections = _selections(reader)
    digest = reader.sized(MAX_DIGEST_BYTES, "PCR digest")
    reader.finish()
    return Attest(
        signer=signer,
        extra_data=extra,
        clock_ms=clock,
        reset_count=resets,
        restart_count=restarts,
        safe=bool(safe),
        firmware_version=firmware,
        selections=selections,
        pcr_digest=digest,
    )


def _selections(reader: Reader) -> tuple[PCRSelection, ...]:
    count = reader.number(4, "number of PCR selections")
    if count > MAX_SELECTIONS:
        refuse("too many PCR selections", check="PCR selections", expected=f"at most {MAX_SELECTIONS}", seen=count)
    found = []
    for _ in range(count):
        algorithm = reader.number(2, "PCR bank")
        size = reader.number(1, "size of the PCR bitmap")
        if not 1 <= size <= 4:
            refuse("a PCR bitmap has a wrong size", check="PCR bitmap", expected="1 to 4 bytes", seen=f"{size} bytes")
        found.append(PCRSelection(algorithm, reader.take(size, "PCR bitmap")))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Signature:
    """TPMT_SIGNATURE over SHA-256: RSASSA (the signature as it is) or ECDSA (r, s, 32 bytes each)."""

    algorithm: int
    value: bytes

    def to_bytes(self) -> bytes:
        """The structure as a TPM writes it. `parse_signature` gives it back."""
        parts = (self.value,) if self.algorithm == ALG_RSASSA else (self.value[:P256_BYTES], self.value[P256_BYTES:])
        return struct.pack(">HH", self.algorithm, ALG_SHA256) + b"".join(_sized(part) for part in parts)


def parse_signature(raw: bytes) -> Signature:
    """Parse a TPMT_SIGNATURE of RSASSA or ECDSA P-256 over SHA-256, all of it. Raises MalformedQuote."""
    if len(raw) > MAX_SIGNATURE_BYTES:
        refuse(
            "the signature is too long",
            check="size of TPMT_SIGNATURE",
            expected=f"at most {MAX_SIGNATURE_BYTES} bytes",
            seen=f"{len(raw)} bytes",
        )
    reader = Reader(raw, "TPMT_SIGNATURE")
    algorithm = reader.number(2, "algorithm")
    if algorithm not in (ALG_RSASSA, ALG_ECDSA):
        refuse(
            "the quote is signed with an algorithm that is not accepted",
            check="TPMT_SIGNATURE: algorithm",
            expected=f"{ALG_RSASSA:#06x} (RSASSA) or {ALG_ECDSA:#06x} (ECDSA)",
            seen=f"{algorithm:#06x}",
        )
    digest = reader.number(2, "hash")
    if digest != ALG_SHA256:
        refuse(
            "the quote is signed over a hash that is not accepted",
            check="TPMT_SIGNATURE: hash",
            expected=f"{ALG_SHA256:#06x} (SHA-256)",
            seen=f"{digest:#06x}",
        )
    if algorithm == ALG_RSASSA:
        value = reader.sized(RSA_BYTES[-1], "RSA signature")
        if len(value) not in RSA_BYTES:
            refuse(
                "the RSA signature has a wrong size",
                check="TPMT_SIGNATURE: RSA signature",
                expected="256 to 512 bytes",
                seen=f"{len(value)} bytes",
            )
    else:
        # A TPM may leave out leading zeros, or write them. Both are one number, so both become 32 bytes.
        halves = [reader.sized(P256_BYTES, f"ECDSA {name}").rjust(P256_BYTES, b"\0") for name in ("r", "s")]
        value = b"".join(halves)
    reader.finish()
    return Signature(algorithm, value)
