"""Verify all devices of a machine and judge them by a policy. The result has every check, also after a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from adyton.attest.checks import Checks
from adyton.attest.nvidia.device import Device, verify_device
from adyton.attest.nvidia.device_set import check_each_once, check_protected_pcie, is_protected_pcie
from adyton.attest.nvidia.gpu_policy import GPUPolicy, judge_facts
from adyton.check import Check
from adyton.errors import AppraisalFailed, Error, EvidenceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from adyton.attest.nvidia.collateral import GPUCollateral
    from adyton.attest.nvidia.evidence import DeviceEvidence
    from adyton.attest.roots import TrustRoots

Verdict = Literal["accepted", "refused", "unchecked"]

NOT_PROVED: Final = (
    "co-location is not proved: without TDISP a host can relay to a genuine GPU elsewhere, unless the measured guest"
    " whose driver holds the session is verified, too"
)
"""What no verdict about a GPU proves. Every verdict says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUAssessment:
    """The result for all devices of a machine."""

    devices: tuple[Device, ...]
    now: datetime
    nonce: bytes | None
    """The nonce that the reports had to have. None where nothing was compared."""
    error: Error | None
    """The first refusal, or else the first thing that could not be checked. None where everything held."""
    checks: tuple[Check, ...]
    """Checks of all devices (with the device's number), of the set, and of the policy."""
    policy: GPUPolicy | None

    @property
    def verdict(self) -> Verdict:
        """The outcome. Unchecked where no check failed, but something could not be checked."""
        if self.error is None:
            return "accepted"
        return "refused" if isinstance(self.error, EvidenceError) else "unchecked"

    @property
    def tee(self) -> str:
        """`sim-nvidia-gpu` if any device is simulated, else `nvidia-gpu`."""
        return next((device.tee for device in self.devices if device.tee.startswith("sim")), self.devices[0].tee)

    @property
    def expires_at(self) -> datetime | None:
        """The earliest end of validity of all that was used."""
        ends = [device.expires_at for device in self.devices if device.expires_at is not None]
        return min(ends, default=None)


def assess_gpus(
    evidence: Sequence[DeviceEvidence],
    collateral: GPUCollateral,
    roots: TrustRoots,
    now: datetime,
    *,
    policy: GPUPolicy | None,
    tees: Iterable[str],
    nonce: bytes | None = None,
    require_nonce: bool = False,
) -> GPUAssessment:
    """Verify each device, then the set, then the policy. A refusal is part of the result instead of being raised.

    `tees` are the names that are accepted: "nvidia-gpu", or "sim-nvidia-gpu:<root>". Without a policy nothing is
    accepted. With `require_nonce`, evidence without a nonce to compare with is refused.
    """
    exceptions = GPUPolicy() if policy is None else policy
    devices = tuple(verify_device(item, collateral, roots, now, nonce=nonce, policy=exceptions) for item in evidence)
    errors = [error for device in devices for error in device.errors]
    done = [
        check._replace(name=check.name if len(devices) == 1 else f"device {number}: {check.name}")
        for number, device in enumerate(devices)
        for check in device.checks
    ]
    checks = Checks()
    try:
        check_each_once(checks, devices)
        if is_protected_pcie(devices):
            check_protected_pcie(checks, devices)
    except EvidenceError as error:
        errors.append(error)
    done += checks.done
    judged = judge(devices, policy, frozenset(tees), bound=nonce is not None or not require_nonce)
    done += judged
    failed = [check for check in judged if not check.ok]
    if failed:
        errors.append(AppraisalFailed(_words(failed), checks=judged))
    refusal = next((error for error in errors if isinstance(error, EvidenceError)), None)
    return GPUAssessment(
        devices=devices,
        now=now,
        nonce=nonce,
        error=refusal or next(iter(errors), None),
        checks=tuple(done),
        policy=policy,
    )


def _words(failed: Sequence[Check]) -> str:
    return "the policy does not accept the GPUs: " + ", ".join(check.name for check in failed)


def judge(
    devices: Sequence[Device], policy: GPUPolicy | None, tees: frozenset[str], *, bound: bool = True
) -> list[Check]:
    """Every requirement of the policy as a check. What is not known of a device does not meet it."""
    gpus = [device for device in devices if not device.is_switch]
    seen_tees = sorted({device.tee_with_root for device in devices})
    checks = [
        Check("TEE", tees or "none", seen_tees, set(seen_tees) <= tees, "name it in the policy's tees"),
        Check(
            "GPUs: named by the policy",
            "a table `gpus`",
            "none" if policy is None else "one",
            policy is not None,
            "say in the policy's table `gpus` which GPUs you accept",
        ),
        Check("nonce: compared", "a nonce to compare with", "one" if bound else "none", bound, "give it: --nonce HEX"),
    ]
    if policy is None:
        return checks
    return checks + judge_facts(gpus, policy)
