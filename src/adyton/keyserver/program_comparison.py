"""Unpack the explanation of a refused program and compare it with approved programs, in a confined process.

There are two tasks, so that a text is parsed as a manifest only if its hash is in the evidence. `unpack` gives manifest
and runtime parts. The key server compares their measurement with the evidence. Only then does `compare` parse them.
Approved manifests are parsed here as well, since they come from the database.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

from adyton import confined_process
from adyton.errors import Error, OutOfOrder
from adyton.keyserver.difference_lines import MAX_LINES, owner_lines, part_differences, read_manifest
from adyton.manifest import difference as manifest_difference
from adyton.release.shown_program import Explanation, check_parts, parse_explain
from adyton.release.wire import parse_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adyton.manifest.difference import Difference

MODULE: Final = "adyton.keyserver.program_comparison"
MAX_APPROVED: Final = 5
"""Most approved programs that a refused one is compared with, the closest first."""

MAX_FRAMES: Final = 3 * (MAX_APPROVED + 1)
MAX_LINE_CHARACTERS: Final = 600
MAX_COMPARED_BYTES: Final = 256 * 1024
MAX_PARTS_BYTES: Final = 256 * 1024
"""Largest answer of the confined process, which a hostile text may control by then."""

BOUNDS: Final = confined_process.Bounds()


def framed(*parts: bytes) -> bytes:
    """Join parts, each with its length before it (u32, big-endian)."""
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def frames(raw: bytes) -> list[bytes]:
    """Split the bytes of `framed` into parts. Raises OutOfOrder."""
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
    """Unpack a message in a confined process. Raises OutOfOrder, Timeout."""
    manifest, parts = frames(confined_process.run(MODULE, "unpack", framed(denial.encode(), message), BOUNDS))
    return Explanation(denial, manifest, check_parts(dict(parse_object(parts, MAX_PARTS_BYTES))))


def compared(shown: Explanation, approved: Sequence[tuple[str, bytes, dict[str, str]]]) -> dict[str, Any]:
    """The differences from the closest of the approved programs (name, manifest, parts). Raises OutOfOrder, Timeout."""
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
    """Task: denial and message go in, manifest and runtime parts (JSON) come out."""
    denial, message = frames(raw)
    shown = parse_explain(message)
    if shown.denial != denial.decode():
        raise OutOfOrder("this explains another denial than its path says", check="denial id")
    return framed(shown.manifest, json.dumps(dict(shown.runtime_parts)).encode())


def compare(raw: bytes) -> bytes:
    """Task: a program and the approved programs go in, the smallest set of differences (JSON) comes out."""
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
