"""Evidence of NVIDIA devices: a JSON list of `{arch, certificate, evidence, nonce}`, or one report and its chain.

`certificate` is the PEM chain and `evidence` the report, both in base64. `nonce` is hex. NVIDIA's own tools write and
read the same form.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, cast

from adyton.attest.nvidia.layout import ARCHS, MAX_CHAIN_BYTES, MAX_DEVICES, MAX_REPORT_BYTES, NONCE_BYTES
from adyton.errors import MalformedQuote
from adyton.untrusted import parse_json

if TYPE_CHECKING:
    from adyton.attest.nvidia.layout import Arch

MAX_EVIDENCE_BYTES: Final = 1 << 20
_MEMBERS: Final = ("arch", "certificate", "evidence", "nonce")


@dataclass(frozen=True, slots=True)
class DeviceEvidence:
    """Evidence of one device. Nothing of it is parsed or verified."""

    arch: Arch | None
    """None where it was not stated: the certificate says it."""
    chain: bytes
    """PEM, leaf first."""
    report: bytes
    nonce: bytes | None = None
    """The nonce (32 bytes) that the evidence states beside the report."""


def _refuse(what: str, expected: object, seen: object) -> NoReturn:
    raise MalformedQuote(
        f"the GPU evidence does not parse: {what}",
        check="parse of the GPU evidence",
        expected=expected,
        seen=str(seen)[:120],
    )


def looks_like_devices(raw: bytes) -> bool:
    """Whether some evidence is a JSON list, as GPU evidence is."""
    return raw[:64].lstrip().startswith(b"[")


def parse_devices(raw: bytes) -> tuple[DeviceEvidence, ...]:
    """Parse a JSON list of evidence, 1 to MAX_DEVICES entries. Raises MalformedQuote."""
    data = parse_json(raw, what="GPU evidence", refuse=MalformedQuote, limit_bytes=MAX_EVIDENCE_BYTES)
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_DEVICES:
        _refuse("its list", f"a list of 1 to {MAX_DEVICES} devices", type(data).__name__)
    return tuple(_device(item) for item in data)


def _device(item: object) -> DeviceEvidence:
    if not isinstance(item, dict) or set(item) != set(_MEMBERS):
        _refuse("a device", ", ".join(_MEMBERS), ", ".join(map(str, item)) if isinstance(item, dict) else item)
    arch, nonce = item["arch"], item["nonce"]
    if arch not in ARCHS:
        _refuse("arch", ", ".join(ARCHS), arch)
    raw = bytes.fromhex(nonce) if isinstance(nonce, str) and _is_hex(nonce) else b""
    if len(raw) != NONCE_BYTES:
        _refuse("nonce", f"{NONCE_BYTES} bytes in hex", nonce)
    return DeviceEvidence(
        arch=cast("Arch", arch),
        chain=_base64(item["certificate"], "certificate", MAX_CHAIN_BYTES),
        report=_base64(item["evidence"], "evidence", MAX_REPORT_BYTES),
        nonce=raw,
    )


def _is_hex(text: str) -> bool:
    return len(text) == 2 * NONCE_BYTES and all(sign in "0123456789abcdefABCDEF" for sign in text)


def _base64(value: object, what: str, limit: int) -> bytes:
    if not isinstance(value, str) or len(value) > 4 * (limit // 3 + 1):
        _refuse(what, f"base64 of at most {limit} bytes", type(value).__name__)
    try:
        raw = binascii.a2b_base64(value.encode("ascii"), strict_mode=True)
    except ValueError:
        _refuse(what, "base64", value)
    if binascii.b2a_base64(raw, newline=False).decode() != value or not 0 < len(raw) <= limit:
        _refuse(what, f"1 to {limit} bytes in base64's one form", f"{len(raw)} bytes")
    return raw
