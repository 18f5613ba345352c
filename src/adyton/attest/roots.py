"""The roots of trust that are accepted, pinned by the SHA-256 of their certificate's DER.

A root is never taken from the evidence: a certificate counts as a root only where its fingerprint stands here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

from adyton.values import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

INTEL_SGX_ROOT: Final = Digest.from_hex("44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3")
"""Intel SGX Root CA, valid 2018-05-21 to 2049-12-31."""

AMD_ARKS: Final[Mapping[str, Digest]] = MappingProxyType(
    {
        "Milan": Digest.from_hex("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"),
        "Genoa": Digest.from_hex("4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"),
        "Turin": Digest.from_hex("1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"),
    }
)
"""AMD's root keys (ARK), by product."""

NVIDIA_DEVICE_ROOT: Final = Digest.from_hex("102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48")
"""NVIDIA Device Identity CA, under which GPUs and NVSwitches sign their reports."""
NVIDIA_RIM_ROOT: Final = Digest.from_hex("12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1")
"""NVIDIA CoRIM signing Root CA, under which reference values are signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRoots:
    """Which roots are trusted, and as what."""

    intel: frozenset[Digest] = frozenset({INTEL_SGX_ROOT})
    amd: Mapping[str, Digest] = field(default_factory=lambda: AMD_ARKS)
    nvidia_device: frozenset[Digest] = frozenset({NVIDIA_DEVICE_ROOT})
    nvidia_rim: frozenset[Digest] = frozenset({NVIDIA_RIM_ROOT})
    tpm: frozenset[Digest] = frozenset()
    """Roots of TPMs' attestation keys. None is built in: a policy names them."""
    sim: frozenset[Digest] = frozenset()
    """Simulated roots: evidence under them is "sim", "sim-tdx" and so on, and never what they imitate."""

    def with_sim(self, roots: Iterable[Digest]) -> Self:
        """The same roots, and these simulated ones."""
        return replace(self, sim=self.sim | frozenset(roots))

    def with_tpm(self, roots: Iterable[Digest]) -> Self:
        """The same roots, and these of TPMs."""
        return replace(self, tpm=self.tpm | frozenset(roots))

    @property
    def key(self) -> tuple[object, ...]:
        """Identifies this set of roots, to keep cached verdicts apart."""
        amd = tuple(sorted((name, root.raw) for name, root in self.amd.items()))
        return self.intel, self.tpm, self.sim, amd, self.nvidia_device, self.nvidia_rim
