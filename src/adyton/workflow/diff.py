"""Compare two manifests: the files, mounts and keys that make their measurements differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adyton.manifest.difference import differences
from adyton.manifest.model import MAX_MANIFEST_BYTES
from adyton.manifest.signed import decode, read_capped, signature_path
from adyton.manifest.sigstruct import SIGSTRUCT_BYTES, parse_sigstruct

if TYPE_CHECKING:
    from pathlib import Path

    from adyton.manifest.difference import Difference


@dataclass(frozen=True, slots=True)
class Compared:
    """The differences. Measurements and signers are those of both manifests, or empty without both signatures."""

    differences: tuple[Difference, ...]
    measurements: tuple[str, ...]
    signers: tuple[str, ...]
    runtime_differs: bool

    @property
    def signer_differs(self) -> bool:
        """Whether the signers differ."""
        return len(set(self.signers)) == 2

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.differences and not self.runtime_differs and not self.signer_differs

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton diff --json`."""
        return {
            "same": self.same,
            "measurements": list(self.measurements),
            "signers": list(self.signers),
            "differences": [
                {"kind": item.kind, "what": item.what, "before": item.before, "after": item.after}
                for item in self.differences
            ],
            "runtime_differs": self.runtime_differs,
        }


def diff(before: Path, after: Path) -> Compared:
    """Compare two manifests of `adyton build`, as `adyton diff` does. Raises ManifestError and its subclasses."""
    texts = [read_capped(path, MAX_MANIFEST_BYTES, "manifest") for path in (before, after)]
    found = [*differences(decode(texts[0]), decode(texts[1]))]
    signatures = [signature_path(path) for path in (before, after)]
    measurements: list[str] = []
    signers: list[str] = []
    if all(path.exists() for path in signatures):
        parsed = [parse_sigstruct(read_capped(path, SIGSTRUCT_BYTES, "signature")) for path in signatures]
        measurements = [str(item.measurement) for item in parsed]
        signers = [str(item.verify()) for item in parsed]
    runtime_differs = texts[0] == texts[1] and len(set(measurements)) == 2
    return Compared(tuple(found), tuple(measurements), tuple(signers), runtime_differs)
