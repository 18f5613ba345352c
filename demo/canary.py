"""The canary search: looks for pieces of the secrets in everything that the host could see.

A canary is a run of bytes of a secret, too long to occur by chance. The search decodes compression (zlib, gzip, bzip2,
xz, zip members), base64, hexadecimal, and combinations of them. A search proves nothing if it cannot find a leak. So
the demo runs the same search over a program that leaks on purpose (the positive control).
"""

from __future__ import annotations

import base64
import binascii
import bz2
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CANARY_BYTES: Final = 24
_MAX_DEPTH: Final = 3
_MAX_UNPACKED_BYTES: Final = 256 << 20

_BASE64_RUN: Final = re.compile(rb"[A-Za-z0-9+/\-_]{64}[A-Za-z0-9+/\-_\r\n]*={0,2}")
_HEX_RUN: Final = re.compile(rb"[0-9a-fA-F]{32,}")
_STREAMS: Final[tuple[tuple[str, re.Pattern[bytes], Callable[[], object]], ...]] = (
    ("zlib", re.compile(rb"\x78[\x01\x5e\x9c\xda]"), zlib.decompressobj),
    ("gzip", re.compile(rb"\x1f\x8b\x08"), lambda: zlib.decompressobj(wbits=31)),
    ("bzip2", re.compile(rb"BZh[1-9]1AY&SY"), bz2.BZ2Decompressor),
    ("xz", re.compile(rb"\xfd7zXZ\x00"), lzma.LZMADecompressor),
)
_ZIP_MEMBER: Final = re.compile(rb"PK\x03\x04.{4}\x08\x00", re.DOTALL)
_ZIP_HEADER_BYTES: Final = 30


@dataclass(frozen=True, slots=True)
class Canary:
    """A piece of a secret: where it came from, and its bytes."""

    secret: str
    needle: bytes


@dataclass(frozen=True, slots=True)
class Sighting:
    """A found canary: its secret, and its form."""

    secret: str
    form: str


def draw(secret: str, content: bytes, *, count: int) -> list[Canary]:
    """Take `count` pieces of 24 bytes spread evenly over the content, passing over dull ones (padding, runs)."""
    canaries: list[Canary] = []
    if len(content) <= CANARY_BYTES:
        return [Canary(secret, content)] if len(content) >= 16 else []
    step = max(1, (len(content) - CANARY_BYTES) // count)
    for start in range(0, len(content) - CANARY_BYTES, step):
        for shift in range(0, step, max(1, step // 64)):
            needle = content[start + shift : start + shift + CANARY_BYTES]
            if len(needle) == CANARY_BYTES and len(set(needle)) >= 10:
                canaries.append(Canary(secret, needle))
                break
    return canaries[:count]


def search(data: bytes, canaries: Sequence[Canary]) -> set[Sighting]:
    """Every secret that shows in the data, raw or packed, with the form in which it shows."""
    found: set[Sighting] = set()
    _search(data, canaries, "raw", 0, found)
    return found


def _search(data: bytes, canaries: Sequence[Canary], form: str, depth: int, found: set[Sighting]) -> None:
    found |= {Sighting(canary.secret, form) for canary in canaries if canary.needle in data}
    if depth == _MAX_DEPTH:
        return
    for packing, content in _unpacked(data):
        if len(content) >= 16:
            inner = packing if form == "raw" else f"{packing} in {form}"
            _search(content, canaries, inner, depth + 1, found)


def _unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    """For every encoding, all decoded content of the data, joined."""
    yield "hexadecimal", b"".join(map(_unhex, _HEX_RUN.findall(data)))
    runs = [_plain_base64(run) for run in _BASE64_RUN.findall(data)]
    for shift in range(4):
        yield "base64", b"".join(base64.b64decode(run[shift : shift + (len(run) - shift) // 4 * 4]) for run in runs)
    for name, start, make in _STREAMS:
        yield name, b"".join(_decompress(make(), data, match.start()) for match in start.finditer(data))
    yield "zip", b"".join(_zip_member(data, match.start()) for match in _ZIP_MEMBER.finditer(data))


def _unhex(run: bytes) -> bytes:
    return binascii.unhexlify(run[: len(run) // 2 * 2])


def _plain_base64(run: bytes) -> bytes:
    return run.translate(bytes.maketrans(b"-_", b"+/"), b"\r\n=")


def _zip_member(data: bytes, at: int) -> bytes:
    header = data[at : at + _ZIP_HEADER_BYTES]
    skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return _decompress(zlib.decompressobj(wbits=-15), data, at + _ZIP_HEADER_BYTES + skip)


def _decompress(machine: object, data: bytes, start: int) -> bytes:
    """The content of the stream at `start`, as far as it can be read. Empty where there is none."""
    out = bytearray()
    for at in range(start, len(data), 1 << 16):
        try:
            out += machine.decompress(data[at : at + (1 << 16)])  # type: ignore[attr-defined]
        except (zlib.error, OSError, EOFError, lzma.LZMAError):
            break
        if len(out) > _MAX_UNPACKED_BYTES:
            break
    return bytes(out)
