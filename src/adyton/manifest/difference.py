"""Which file, mount or key makes two manifests measure differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adyton.manifest.document import parse_document
from adyton.manifest.model import Manifest, Mount, TrustedFile, manifest_from

_ELSEWHERE = {"sgx.trusted_files", "adyton.files", "fs.mounts"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs: `kind` is file, mount, key or form; `before` or `after` is None where it is absent."""

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
        return text.replace("\n", "\\n")  # one line each, so that no value can pose as a line of its own


def differences(before: str, after: str) -> tuple[Difference, ...]:
    """Everything that differs between two manifest texts: keys first, then mounts, then files, each in order.

    Equal texts give none, and only equal texts do: what differs in nothing but spelling or order is named as form.
    """
    if before == after:
        return ()
    (document1, block1), (document2, block2) = parse_document(before), parse_document(after)
    manifest1, manifest2 = manifest_from(document1, block1), manifest_from(document2, block2)
    found = [
        *_keys(document1, document2),
        *_mounts(manifest1, manifest2),
        *_files(manifest1.trusted_files, manifest2.trusted_files),
    ]
    return tuple(found) or (Difference("form", "the text", "the same keys and values", "in another order or spelling"),)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in table.items():
        full = f"{prefix}{name}"
        if full in _ELSEWHERE:
            continue
        if isinstance(value, dict) and value:
            found.update(_flatten(value, f"{full}."))
        else:
            found[full] = _shown(value)
    return found


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = f'"{value}"'
        if value.startswith("-----BEGIN CERTIFICATE-----"):
            return f"certificate {certificate_name(value)}"
        return text if len(text) <= 200 else f"{text[:200]}…"
    return str(value)


def certificate_name(pem: str) -> str:
    """How a pinned certificate is named to people: by the SHA-256 of its DER form."""
    from hashlib import sha256

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        der = x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
    except ValueError:
        return f"(not a certificate, SHA-256 {sha256(pem.encode()).hexdigest()})"
    return f"SHA-256 {sha256(der).hexdigest()}"


def _keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    old, new = _flatten(before), _flatten(after)
    return [
        Difference("key", name, old.get(name), new.get(name))
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _mount_text(mount: Mount) -> str:
    parts = [mount.type, mount.uri or ""]
    if mount.type == "encrypted":
        parts += [f"key {mount.key_name}", "with recovery" if mount.enable_recovery else ""]
    return " ".join(part for part in parts if part)


def _mounts(before: Manifest, after: Manifest) -> list[Difference]:
    old = {mount.path: _mount_text(mount) for mount in before.mounts}
    new = {mount.path: _mount_text(mount) for mount in after.mounts}
    found = [
        Difference("mount", path, old.get(path), new.get(path))
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    ]
    orders = [[mount.path for mount in manifest.mounts] for manifest in (before, after)]
    if orders[0] != orders[1] and not found:
        found.append(Difference("mount", "order", " ".join(orders[0]), " ".join(orders[1])))
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
    old, new = {entry.uri: entry for entry in before}, {entry.uri: entry for entry in after}
    found = []
    for uri in dict.fromkeys([*old, *new]):
        one, two = old.get(uri), new.get(uri)
        if one != two:
            shown = (None if entry is None else _file_text(entry) for entry in (one, two))
            found.append(Difference("file", uri[5:], *shown))
    orders = [[entry.uri for entry in entries] for entries in (before, after)]
    if orders[0] != orders[1] and set(old) == set(new):
        position = next(at for at, (one, two) in enumerate(zip(*orders, strict=True)) if one != two)
        found.append(Difference("file", f"at place {position}", orders[0][position][5:], orders[1][position][5:]))
    return found
