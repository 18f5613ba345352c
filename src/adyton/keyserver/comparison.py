"""What a refused program showed, unpacked and compared with approved ones: in a process of its own.

Two tasks, so that no text is parsed as a manifest whose hash is not in the evidence: `unpack` gives manifest and
runtime parts, the key server compares their measurement with the evidence, and only then has `compare` read them.
What stands in approved manifests is read here as well: they come from the database.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

from adyton import confined_process
from adyton.errors import Error, OutOfOrder
from adyton.keyserver.difference import MAX_LINES, owner_lines, part_differences, read_manifest
from adyton.manifest import difference as manifest_difference
from adyton.release.explanation import Explanation, check_parts, parse_explain
from adyton.release.wire import parse_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adyton.manifest.difference import Difference

MODULE: Final = "adyton.keyserver.comparison"
MAX_APPROVED: Final = 5
"""Approved programs that a refused one is compared with, the closest first."""

MAX_FRAMES: Final = 3 * (MAX_APPROVED + 1)
MAX_LINE_CHARACTERS: Final = 600
MAX_COMPARED_BYTES: Final = 256 * 1024
MAX_PARTS_BYTES: Final = 256 * 1024
"""What is taken back from the other process, which may be a hostile text's by then."""

BOUNDS: Final = confined_process.Bounds()


def framed(*parts: bytes) -> bytes:
    """Each part behind its length (u32, big-endian)."""
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def frames(raw: bytes) -> list[bytes]:
    """What `framed` put together; raises OutOfOrder."""
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "big")
        if end > len(raw) or len(found) == MAX_FRAMES:
            raise OutOfOrder("a task's frames do not fit", check="frames of a task")
        found.append(raw[at + 4 : end])
        at = end
    return found


# --- the key server's side ---------------------------------------------------------------------------------------


def unpacked(denial: str, message: bytes) -> Explanation:
    """A message, unpacked elsewhere; raises OutOfOrder, Timeout."""
    manifest, parts = frames(confined_process.run(MODULE, "unpack", framed(denial.encode(), message), BOUNDS))
    return Explanation(denial, manifest, check_parts(dict(parse_object(parts, MAX_PARTS_BYTES))))


def compared(shown: Explanation, approved: Sequence[tuple[str, bytes, dict[str, str]]]) -> dict[str, Any]:
    """What differs from the closest of some approved programs (name, manifest, parts); raises OutOfOrder, Timeout."""
    parts = [shown.manifest, json.dumps(dict(shown.runtime_parts)).encode()]
    for name, manifest, runtime_parts in approved[:MAX_APPROVED]:
        parts += [name.encode(), manifest, json.dumps(runtime_parts).encode()]
    found = parse_object(confined_process.run(MODULE, "compare", framed(*parts), BOUNDS), MAX_COMPARED_BYTES)
    found.only({"against", "changed", "more"})
    changed = found.texts("changed", MAX_COMPARED_BYTES)
    return {
        "against": found.text("against", MAX_LINE_CHARACTERS),
        "changed": [line[:MAX_LINE_CHARACTERS] for line in changed[:MAX_LINES]],
        "more": found.number("more", 1 << 32),
    }


# --- the other process's side ------------------------------------------------------------------------------------


def unpack(raw: bytes) -> bytes:
    """Denial and message in; manifest and runtime parts (JSON) out."""
    denial, message = frames(raw)
    shown = parse_explain(message)
    if shown.denial != denial.decode():
        raise OutOfOrder("this explains another denial than its path says", check="denial id")
    return framed(shown.manifest, json.dumps(dict(shown.runtime_parts)).encode())


def compare(raw: bytes) -> bytes:
    """Manifest and parts, then the same of approved programs with their names; the fewest differences out (JSON)."""
    manifest, parts, *approved = frames(raw)
    shown = read_manifest(manifest)
    shown_parts = json.loads(parts)
    best: list[Difference] = []
    against = ""
    for at in range(0, len(approved), 3):
        name, known, known_parts = approved[at : at + 3]
        try:
            found = [
                *part_differences(json.loads(known_parts), shown_parts),
                *manifest_difference.compare(read_manifest(known), shown),
            ]
        except Error:
            continue
        if not against or len(found) < len(best):
            best, against = found, name.decode()
    document = {
        "against": against,
        "changed": owner_lines(best),
        "more": max(0, len(best) - MAX_LINES),
    }
    return json.dumps(document).encode()


if __name__ == "__main__":
    confined_process.child({"unpack": unpack, "compare": compare}, sys.argv[1:])
