"""What a refused program shows of itself, for the owner's record alone: the message and the one answer to it.

The answer says that the message was taken, or that there was nothing to explain; never what the server found. Only a
process of its own reads such a message (`adyton.keyserver.comparison`), so this module imports little.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.release.wire import PROTOCOL, b64, check_protocol, malformed, parse_object, to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

PATH_EXPLAIN: Final = "/adyton/v2/explain"
"""Followed by `/` and the denial's id, so that what cannot be explained is turned away before it is read."""

MAX_EXPLAIN_BYTES: Final = 4 << 20
MAX_MANIFEST_BYTES: Final = 16 << 20
MAX_PARTS: Final = 256
MAX_PART_CHARACTERS: Final = 128
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the enclave shows of itself after a refusal: its manifest, and the parts of its runtime's identity."""

    denial: str
    manifest: bytes
    runtime_parts: Mapping[str, str]


def explain_message(denial: str, manifest: bytes, runtime_parts: Mapping[str, str]) -> bytes:
    """The offer to explain a refusal (the manifest compressed with zlib)."""
    return to_bytes(
        {
            "protocol": PROTOCOL,
            "denial": denial,
            "manifest_zlib": b64(zlib.compress(manifest, 6)),
            "runtime_parts": dict(runtime_parts),
        }
    )


def parse_explain(raw: bytes) -> Explanation:
    """Parse an explanation; what decompresses to more than 16 MiB is refused. Raises OutOfOrder, VersionMismatch."""
    document = parse_object(raw, MAX_EXPLAIN_BYTES)
    check_protocol(document)
    document.only({"protocol", "denial", "manifest_zlib", "runtime_parts"})
    packed = document.binary("manifest_zlib", 1, MAX_EXPLAIN_BYTES)
    unpacker = zlib.decompressobj()
    try:
        manifest = unpacker.decompress(packed, MAX_MANIFEST_BYTES)
    except zlib.error:
        raise malformed("manifest_zlib", "zlib data", "something else") from None
    if not unpacker.eof or unpacker.unused_data:
        raise malformed("manifest_zlib", "at most 16 MiB of manifest, and nothing after it", "more")
    return Explanation(document.text("denial", 40), manifest, check_parts(document["runtime_parts"]))


def check_parts(found: object) -> dict[str, str]:
    """The parts of a runtime, name -> SHA-256 in hex, at most 256 of them; raises OutOfOrder."""
    if (
        not isinstance(found, dict)
        or len(found) > MAX_PARTS
        or not all(len(name) <= MAX_PART_CHARACTERS for name in found)
        or not all(isinstance(value, str) and _SHA256.fullmatch(value) for value in found.values())
    ):
        raise malformed("runtime_parts", f"at most {MAX_PARTS} names and SHA-256 values", type(found).__name__)
    return found


def explain_answer(status: str) -> bytes:
    """The answer to an explanation: `taken` or `unknown`, and no more whatever comes of it."""
    return to_bytes({"protocol": PROTOCOL, "status": status})
