"""Which file, mount or key makes two manifests measure differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adyton.manifest.difference import differences
from adyton.manifest.model import MAX_MANIFEST_BYTES
from adyton.manifest.signature import SIGSTRUCT_BYTES, parse_sigstruct
from adyton.manifest.signed import decode, read_capped, signature_path

if TYPE_CHECKING:
    from pathlib import Path

    from adyton.manifest.difference import Difference


@dataclass(frozen=True, slots=True)
class Compared:
    """What differs. Measurements and signers are of both manifests, or none where a signature is not there."""

    differences: tuple[Difference, ...]
    measurements: tuple[str, ...]
    signers: tuple[str, ...]
    runtime_differs: bool

    @property
    def signer_differs(self) -> bool:
        """Whether two signers signed."""
        return len(set(self.signers)) == 2

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.differences and not self.runtime_differs and not self.signer_differs

    def to_dict(self) -> dict[str, Any]:
        """As `adyton diff --json` says it."""
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
    """Compare two manifests as `adyton build` wrote them, as `adyton diff` does; raises ManifestError and its kinds."""
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
