"""What was changed: an approved program against the one that asked, as lines for the owner and for nobody else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import MalformedManifest
from adyton.manifest.document import parse_document

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_LINES: Final = 40
MAX_VALUE_CHARACTERS: Final = 160
MAX_LABEL_CHARACTERS: Final = 512
"""What an entry of a list is called by; it stands in the name of everything below the entry."""
_BY_NAME: Final = ("uri", "path", "name")


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that differs; None where it is absent on that side."""

    what: str
    approved: str | None
    seen: str | None

    def for_owner(self) -> str:
        """With both values, each text cut to a bound."""
        return f"{_cut(self.what)}: approved {self.approved or 'nothing'}, seen {self.seen or 'nothing'}"


def manifest_differences(approved: bytes, seen: bytes) -> list[Difference]:
    """Entries of two manifests that differ, by their dotted names; raises MalformedManifest."""
    before, after = dict(_entries(approved)), dict(_entries(seen))
    names = sorted(set(before) | set(after))
    return [
        Difference(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    ]


def part_differences(approved: Mapping[str, str], seen: Mapping[str, str]) -> list[Difference]:
    """Parts of Adyton's runtime that differ."""
    names = sorted(set(approved) | set(seen))
    return [
        Difference(f"runtime: {name}", approved.get(name), seen.get(name))
        for name in names
        if approved.get(name) != seen.get(name)
    ]


def _entries(raw: bytes) -> Iterator[tuple[str, str]]:
    try:
        document, block = parse_document(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise MalformedManifest("the manifest is not UTF-8", check="text encoding") from None
    document.get("adyton", {}).pop("files", None)
    yield from _flatten("", document)
    for uri, sha256 in block:
        yield f"sgx.trusted_files[{uri}].sha256", sha256


def _flatten(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            named = (inner.get(key) for key in _BY_NAME) if isinstance(inner, dict) else ()
            label = next(
                (text for text in named if isinstance(text, str) and len(text) <= MAX_LABEL_CHARACTERS), position
            )
            yield from _flatten(f"{name}[{label}]", inner)
    else:
        yield name, _cut(str(value))


def _cut(shown: str) -> str:
    return shown if len(shown) <= MAX_VALUE_CHARACTERS else shown[: MAX_VALUE_CHARACTERS - 1] + "…"
