"""The message by which a refused program explains itself, for the owner's record alone, and its answer.

The answer says that the message was taken, or that there was nothing to explain. It never says what the server found.
Only a confined process parses such a message (`adyton.keyserver.program_comparison`), so this module imports little.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.release.wire import PROTOCOL, b64, check_protocol, malformed, parse_object, to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

PATH_EXPLAIN: Final = "/adyton/v4/explain"
"""Followed by `/` and the denial's id, so that a message for an unknown id is refused before it is read."""

MAX_EXPLAIN_BYTES: Final = 4 << 20
MAX_MANIFEST_BYTES: Final = 16 << 20
MAX_PARTS: Final = 256
MAX_PART_CHARACTERS: Final = 128
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Explanation:
    """The content of an explanation: the manifest and the parts of the runtime's identity."""

    denial: str
    manifest: bytes
    runtime_parts: Mapping[str, str]


def explain_message(denial: str, manifest: bytes, runtime_parts: Mapping[str, str]) -> bytes:
    """The message that explains a refusal. The manifest is compressed with zlib."""
    return to_bytes(
        {
            "protocol": PROTOCOL,
            "denial": denial,
            "manifest_zlib": b64(zlib.compress(manifest, 6)),
            "runtime_parts": dict(runtime_parts),
        }
    )


def parse_explain(raw: bytes) -> Explanation:
    """Parse an explanation of at most 16 MiB decompressed. Raises OutOfOrder, VersionMismatch."""
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
    """Check the parts of a runtime: name -> SHA-256 in hex, at most 256 of them. Raises OutOfOrder."""
    if (
        not isinstance(found, dict)
        or len(found) > MAX_PARTS
        or not all(len(name) <= MAX_PART_CHARACTERS for name in found)
        or not all(isinstance(value, str) and _SHA256.fullmatch(value) for value in found.values())
    ):
        raise malformed("runtime_parts", f"at most {MAX_PARTS} names and SHA-256 values", type(found).__name__)
    return found


def explain_answer(status: str) -> bytes:
    """The answer to an explanation: `taken` or `unknown`, and nothing else."""
    return to_bytes({"protocol": PROTOCOL, "status": status})
