"""A simulated NVIDIA with a GPU, as tests of several rooms need it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from adyton.attest.nvidia.assess import GPUAssessment, assess_gpus
from adyton.attest.nvidia.collateral import GPUCollateral, KnownRIM
from adyton.attest.nvidia.gpu_policy import GPUPolicy
from adyton.attest.nvidia.ocsp import parse_answer
from adyton.attest.nvidia.rim import parse_rim
from adyton.attest.roots import TrustRoots
from adyton.sim.gpu import SimDevice, SimNVIDIA

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adyton.attest.nvidia.evidence import DeviceEvidence

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
NONCE = bytes(range(32))


@functools.cache
def vendor() -> SimNVIDIA:
    """One vendor for all tests that change nothing of it. Its keys are made once."""
    return SimNVIDIA.create(NOW - timedelta(days=1))


@functools.cache
def gpu() -> SimDevice:
    """One Hopper GPU of this vendor."""
    return vendor().device("HOPPER")


@functools.cache
def machine() -> tuple[SimDevice, ...]:
    """Eight GPUs and four NVSwitches in protected PCIe mode."""
    switches = tuple(vendor().device("LS10") for _ in range(4))
    gpus = tuple(
        vendor().device("HOPPER").with_(ppcie=True, feature=2, switches=tuple(item.pdi for item in switches))
        for _ in range(8)
    )
    return (*gpus, *(item.with_(gpus=tuple(each.pdi for each in gpus)) for item in switches))


@dataclass
class GPUWorld:
    """Devices, their collateral, and a policy that accepts them. Tests change one thing and judge."""

    devices: Sequence[SimDevice] = field(default_factory=lambda: (gpu(),))
    rims: list[bytes] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    policy: dict[str, Any] | None = field(default_factory=dict)
    tees: set[str] = field(default_factory=lambda: {vendor().tee})
    roots: TrustRoots = field(default_factory=lambda: TrustRoots().with_sim([vendor().root]))
    now: datetime = NOW
    nonce: bytes | None = NONCE
    recorded_at: datetime | None = None

    def __post_init__(self) -> None:
        self.rims = self.rims or list(vendor().rims(self.devices))
        self.answers = self.answers or list(vendor().answers(self.devices, NOW))

    def collateral(self) -> GPUCollateral:
        """The collateral, parsed."""
        return GPUCollateral(
            rims=tuple(KnownRIM(parse_rim(raw), recorded_at=self.recorded_at) for raw in self.rims),
            answers=tuple(map(parse_answer, self.answers)),
        )

    def judge(self, evidence: Iterable[DeviceEvidence] | None = None) -> GPUAssessment:
        """The assessment of this evidence, or of new evidence of the devices."""
        given = [device.evidence(NONCE) for device in self.devices] if evidence is None else list(evidence)
        return assess_gpus(
            given,
            self.collateral(),
            self.roots,
            self.now,
            policy=None if self.policy is None else GPUPolicy.from_dict(self.policy),
            tees=self.tees,
            nonce=self.nonce,
        )
