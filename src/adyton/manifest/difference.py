"""Which file, mount or key makes two manifests measure differently.

`adyton diff` shows this to an owner, and a key server records it where it refuses a changed program.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from adyton.errors import MalformedManifest
from adyton.manifest.document import parse_document
from adyton.manifest.findings import one_line
from adyton.manifest.model import Manifest, Mount, TrustedFile, manifest_from

MAX_SHOWN_CHARACTERS: Final = 200
"""The most that is shown of a text value."""
_BEFORE_CHARACTERS: Final = 40
"""Of these, how many stand before the first character that differs."""
_TRUSTED_FILES: Final = "sgx.trusted_files"
_COMPARED_AS_ENTRIES: Final = frozenset({_TRUSTED_FILES, "adyton.files", "fs.mounts"})

_Entry = TypeVar("_Entry")


class Difference(NamedTuple):
    """One thing that differs. `kind` is file, mount, key, form or runtime. A side is None where it is absent."""

    kind: str
    what: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            text = f"{self.kind} {self.what}: added, {self.after}"
        elif self.after is None:
            text = f"{self.kind} {self.what}: removed, was {self.before}"
        else:
            text = f"{self.kind} {self.what}: {self.before} -> {self.after}"
        return one_line(text)  # so that no value can pose as a line of its own


@dataclass(frozen=True, slots=True)
class Comparable:
    """A manifest's text, read for a comparison. `manifest` is None if this version of Adyton refuses it."""

    text: str
    document: Mapping[str, Any]
    block: Sequence[tuple[str, str]]
    manifest: Manifest | None


def read_unchecked(text: str) -> Comparable:
    """Read somebody else's manifest, which may have keys of another version. Raises MalformedManifest if not TOML."""
    document, block = parse_document(text)
    try:
        return Comparable(text, document, block, manifest_from(document, block))
    except MalformedManifest:
        return Comparable(text, document, block, None)


def differences(before: str, after: str) -> tuple[Difference, ...]:
    """Everything that differs between two manifest texts. Raises MalformedManifest where one is no manifest."""
    if before == after:
        return ()
    (document1, block1), (document2, block2) = parse_document(before), parse_document(after)
    return compare(
        Comparable(before, document1, block1, manifest_from(document1, block1)),
        Comparable(after, document2, block2, manifest_from(document2, block2)),
    )


def compare(before: Comparable, after: Comparable) -> tuple[Difference, ...]:
    """Everything that differs: keys first, then mounts, then files, each in order.

    Equal texts give none, and only equal texts do: what differs in nothing but spelling or order is named as form.
    Where a text is no manifest of this version, mounts and files are compared as other keys are.
    """
    if before.text == after.text:
        return ()
    if before.manifest is None or after.manifest is None:
        found = _keys(_values(before.document, before.block), _values(after.document, after.block), ())
    else:
        found = [
            *_keys(_values(before.document, ()), _values(after.document, ()), _COMPARED_AS_ENTRIES),
            *_mounts(before.manifest, after.manifest),
            *_files(before.manifest.trusted_files, after.manifest.trusted_files),
        ]
    return tuple(found) or (Difference("form", "the text", "the same keys and values", "in another order or spelling"),)


def _values(document: Mapping[str, Any], block: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Every value of a document by its dotted name. A list is one value."""
    found = _by_dotted_name(document, "")
    if block:
        entries = [{"uri": uri, "sha256": sha256} for uri, sha256 in block]
        found[_TRUSTED_FILES] = [*found[_TRUSTED_FILES], *entries]
    return found


def _by_dotted_name(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict) and value:
            found |= _by_dotted_name(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if value.startswith("-----BEGIN CERTIFICATE-----"):
            return f"certificate {certificate_name(value)}"
        return f'"{value}"'
    return str(value)


def around_difference(text: str, other: str | None, limit: int = MAX_SHOWN_CHARACTERS) -> str:
    """At most `limit` characters of a text. At least half of them begin where it first differs from `other`."""
    if len(text) <= limit:
        return text
    differs = _shared_start(text, other or "")
    start = 0 if differs <= limit // 2 else differs - _BEFORE_CHARACTERS
    end = start + limit
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"


def differing_part(text: str, other: str) -> str:
    """A text without what it begins and ends with as `other` does."""
    start = _shared_start(text, other)
    rest, other_rest = text[start:], other[start:]
    end = _shared_start(rest[::-1], other_rest[::-1])
    return rest[: len(rest) - end]


def _shared_start(one: str, two: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return bisect_left(range(min(len(one), len(two))), True, key=lambda at: one[: at + 1] != two[: at + 1])


def certificate_name(pem: str) -> str:
    """The name of a pinned certificate for people: the SHA-256 of its DER form."""
    from hashlib import sha256

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        der = x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
    except ValueError:
        return f"(not a certificate, SHA-256 {sha256(pem.encode()).hexdigest()})"
    return f"SHA-256 {sha256(der).hexdigest()}"


def _keys(before: Mapping[str, Any], after: Mapping[str, Any], passed_over: Iterable[str]) -> list[Difference]:
    found = []
    for name in dict.fromkeys([*before, *after]):
        if name in passed_over:
            continue
        old, new = (_shown(table[name]) if name in table else None for table in (before, after))
        if old != new:
            found.append(Difference("key", name, _cut(before.get(name), old, new), _cut(after.get(name), new, old)))
    return found


def _cut(value: object, shown: str | None, other: str | None) -> str | None:
    """A text value cut to its bound. Lists stay whole."""
    return around_difference(shown, other) if shown is not None and isinstance(value, str) else shown


def _mount_text(mount: Mount) -> str:
    parts = [mount.type, mount.uri or ""]
    if mount.type == "encrypted":
        parts += [
            f"key {mount.key_name}",
            "with recovery" if mount.enable_recovery else "",
            "pinned" if mount.pinned else "",
        ]
    return " ".join(part for part in parts if part)


def _mounts(before: Manifest, after: Manifest) -> list[Difference]:
    old, new = (
        _by_name([(mount.path, _mount_text(mount)) for mount in manifest.mounts]) for manifest in (before, after)
    )
    found = [
        Difference("mount", path, old.get(path), new.get(path))
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    ]
    orders = [[mount.path for mount in manifest.mounts] for manifest in (before, after)]
    if orders[0] != orders[1] and not found:
        found.append(Difference("mount", "order", " ".join(orders[0]), " ".join(orders[1])))
    return found


def _by_name(entries: Sequence[tuple[str, _Entry]]) -> dict[str, _Entry]:
    """Entries by name. A second entry of a name is numbered, so that none is lost."""
    found = dict(entries)
    if len(found) == len(entries):
        return found
    found = {}
    seen: Counter[str] = Counter()
    for name, entry in entries:
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name} (number {seen[name]})"] = entry
    return found


def _file_text(entry: TrustedFile) -> str:
    parts = [f"SHA-256 {entry.sha256}" if entry.sha256 else "no hash"]
    if entry.size_bytes is not None:
        parts.append(f"{entry.size_bytes} bytes")
    if entry.executable:
        parts.append("executable")
    if entry.mtime_s is not None:
        parts.append(f"time {entry.mtime_s}")
    return ", ".join(parts)


def _files(before: tuple[TrustedFile, ...], after: tuple[TrustedFile, ...]) -> list[Difference]:
    old, new = (_by_name([(entry.uri, entry) for entry in entries]) for entries in (before, after))
    found = []
    for uri in {**old, **new}:
        one, two = old.get(uri), new.get(uri)
        if one != two:
            before_text = None if one is None else _file_text(one)
            after_text = None if two is None else _file_text(two)
            found.append(Difference("file", uri[5:], before_text, after_text))
    orders = [[entry.uri for entry in entries] for entries in (before, after)]
    if orders[0] != orders[1] and set(old) == set(new):
        position = next(at for at, (one, two) in enumerate(zip(*orders, strict=True)) if one != two)
        found.append(Difference("file", f"at place {position}", orders[0][position][5:], orders[1][position][5:]))
    return found
