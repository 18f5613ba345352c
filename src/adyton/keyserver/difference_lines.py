"""The differences between an approved and a refused program, as lines for the owner only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.errors import MalformedManifest
from adyton.manifest.difference import Comparable, Difference, around_difference, differing_part, read_unchecked
from adyton.manifest.findings import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_LINES: Final = 40
MAX_CHARACTERS: Final = 160
"""The most of a name or a value in a line, beside two signs that something was cut."""
_CUT: Final = "…"
_MORE: Final = " (more of it may differ)"
_PREFIXES: Final = {"file": "file ", "mount": "mount ", "runtime": "runtime: "}
_ORDER: Final = ("runtime", "mount", "key", "file", "form")


def owner_lines(found: Sequence[Difference]) -> list[str]:
    """At most MAX_LINES lines, ordered by kind: sources of files come before single keys."""
    return [owner_line(item) for item in sorted(found, key=lambda item: _ORDER.index(item.kind))[:MAX_LINES]]


def owner_line(difference: Difference) -> str:
    """One line with both values, each cut to a bound around what differs first; it says where that may not be all."""
    before, after = difference.before, difference.after
    name = _cut(_PREFIXES.get(difference.kind, "") + difference.what, "")
    approved = "nothing" if before is None else _cut(before, after)
    seen = "nothing" if after is None else _cut(after, before)
    return f"{name}: approved {approved}, seen {seen}{_MORE if _may_hide_more(before, after) else ''}"


def _may_hide_more(before: str | None, after: str | None) -> bool:
    """Whether something may differ behind what is shown of two values: a harmless change may stand first."""
    if before is None or after is None:
        return False
    if before.endswith(_CUT) or after.endswith(_CUT):
        return True
    parts = differing_part(before, after), differing_part(after, before)
    return any(len(one_line(part[:MAX_CHARACTERS])) > MAX_CHARACTERS // 2 for part in parts)


def _cut(text: str, other: str | None) -> str:
    """One line of limited length. It is cut before the escaping as well, since a value may have megabytes."""
    line, other_line = (
        one_line(around_difference(one, two, MAX_CHARACTERS)) for one, two in ((text, other), (other or "", text))
    )
    return around_difference(line, other_line, MAX_CHARACTERS)


def read_manifest(raw: bytes) -> Comparable:
    """Parse a manifest for a comparison. Raises MalformedManifest where it is no TOML in UTF-8."""
    try:
        return read_unchecked(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise MalformedManifest("the manifest is not UTF-8", check="text encoding") from None


def part_differences(approved: Mapping[str, str], seen: Mapping[str, str]) -> list[Difference]:
    """The parts of Adyton's runtime that differ."""
    names = sorted(set(approved) | set(seen))
    return [
        Difference("runtime", name, approved.get(name), seen.get(name))
        for name in names
        if approved.get(name) != seen.get(name)
    ]
