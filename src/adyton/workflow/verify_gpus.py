"""Verify evidence of GPUs and judge it by a policy, without a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton.attest.evidence_policy import Policy
from adyton.attest.nvidia import explain
from adyton.attest.nvidia.assess import NOT_PROVED, GPUAssessment, assess_gpus
from adyton.attest.nvidia.collateral import GPUCollateral
from adyton.attest.nvidia.evidence import DeviceEvidence, looks_like_devices, parse_devices
from adyton.attest.nvidia.layout import MAX_CHAIN_BYTES, TEE
from adyton.attest.roots import TrustRoots
from adyton.capped_read import read_capped
from adyton.collateral.gpu_files import gpu_collateral, gpu_collateral_from
from adyton.errors import AppraisalFailed, EvidenceError, MalformedQuote, UsageError
from adyton.workflow.verify import read_policy, unjudged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adyton.collateral.gpu_verifier import GPUVerifier
    from adyton.errors import Error

_BEYOND_GPUS: Final = ("hosts", "profile", "pcrs", "boot_applications", "workloads", "measurements")
"""Rules of a policy that evidence of GPUs can never meet."""
_MAX_EVIDENCE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class GPUVerdict:
    """The result for a list of devices. Anything but acceptance is false as a condition."""

    assessment: GPUAssessment

    def __bool__(self) -> bool:
        return self.accepted

    @property
    def accepted(self) -> bool:
        """Whether all devices are genuine, all was checked, and the policy is met."""
        return self.assessment.error is None

    @property
    def error(self) -> Error | None:
        """The error of a refusal, or of what could not be checked. None where the evidence was accepted."""
        return self.assessment.error

    def require(self) -> GPUAssessment:
        """The assessment of accepted evidence. Raises the error otherwise."""
        if self.assessment.error is not None:
            raise self.assessment.error
        return self.assessment

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton verify --json`."""
        return explain.to_dict(self.assessment)

    def to_text(self) -> str:
        """As text for people."""
        return explain.to_text(self.assessment)


def verify_gpus(
    evidence: bytes | str | Path | Sequence[DeviceEvidence],
    *,
    certificate_chain: Path | None = None,
    nonce: bytes | None = None,
    collateral: GPUCollateral | Sequence[str | Path] = (),
    at: datetime | None = None,
    policy: Policy | Mapping[str, Any] | str | Path | None = None,
    home: Path | None = None,
) -> GPUVerdict:
    """Judge evidence of GPUs by a policy, as `adyton verify` does.

    `evidence` is a JSON list (its bytes, or a file), or one binary report, whose PEM chain is `certificate_chain`. Each
    report must be for `nonce` (32 bytes). `collateral` is files and folders, or an object. By default it comes from the
    owner's store. Without a `policy` nothing is accepted. Of a policy with alternatives, one must be met.

    A refusal is part of the verdict, also one of the collateral, and so is what could not be checked. Raises
    MalformedQuote where the evidence does not parse, UsageError, and StorageFailed.
    """
    if at is not None and at.tzinfo is None:
        raise UsageError("the time needs a zone", check="at", expected="a time with its zone", seen=at.isoformat())
    if nonce is not None and len(nonce) != 32:
        raise UsageError("a GPU's nonce has 32 bytes", check="--nonce", expected="32 bytes", seen=f"{len(nonce)} bytes")
    now = datetime.now(UTC) if at is None else at.astimezone(UTC)
    devices = _evidence(evidence, certificate_chain)
    bad_collateral: EvidenceError | None = None
    try:
        found = _collateral(collateral, home)
    except EvidenceError as error:
        found, bad_collateral = GPUCollateral(), error
    last: GPUVerdict | None = None
    for rules in read_policy(policy).alternatives():
        assessment = assess_gpus(
            devices,
            found,
            TrustRoots().with_sim(rules.sim_roots),
            now,
            policy=rules.gpus,
            tees=rules.tees,
            nonce=nonce,
            require_nonce=not rules.allow_missing_report_data,
        )
        if bad_collateral is not None:
            assessment = replace(assessment, error=bad_collateral, checks=(*bad_collateral.failed, *assessment.checks))
        beyond = [name for name in _BEYOND_GPUS if getattr(rules, name)]
        if beyond and assessment.error is None:
            unmet = _unmet(beyond)
            assessment = replace(assessment, error=unmet, checks=(*assessment.checks, *unmet.failed))
        last = GPUVerdict(assessment)
        if last.accepted:
            break
    if last is None:
        raise UsageError("the policy has no alternative", check="policy", expected="at least one", seen="none")
    return last


def _unmet(names: Sequence[str]) -> AppraisalFailed:
    return AppraisalFailed(
        "the policy asks for what evidence of GPUs alone does not say",
        check="rules for the machine",
        expected=f"evidence of the machine's CPU, which {', '.join(names)} are about",
        seen="evidence of GPUs",
        remedy="judge GPUs by a policy, or an alternative (any_of), without these rules",
    )


def device_verifier(collateral: Sequence[str | Path], home: Path | None) -> GPUVerifier:
    """Verifies the GPUs that stand beside a CPU's evidence, with these files or the owner's store."""
    from adyton.collateral.gpu_verifier import GPUVerifier
    from adyton.collateral.store import CollateralStore
    from adyton.keystore.home import default_home

    return GPUVerifier(CollateralStore((home or default_home()) / "collateral"), given=_collateral(collateral, home))


def unjudged_gpus(error: Error) -> dict[str, Any]:
    """The document of `adyton verify --json` where evidence of GPUs did not parse or nothing could be checked."""
    return {**unjudged(error), "tee": TEE, "gpus": [], "co_location": "not proved", "warnings": [NOT_PROVED]}


def _evidence(given: bytes | str | Path | Sequence[DeviceEvidence], chain: Path | None) -> Sequence[DeviceEvidence]:
    if not isinstance(given, bytes | str | Path):
        return given
    raw = given if isinstance(given, bytes) else read_capped(Path(given), _MAX_EVIDENCE_BYTES, "evidence")
    if chain is None:
        return parse_devices(raw)
    if looks_like_devices(raw):
        raise UsageError(
            "a JSON list of evidence has its certificates inside",
            check="--certificate-chain",
            expected="none, or a binary report",
            seen="a JSON list",
        )
    pem = read_capped(chain, MAX_CHAIN_BYTES, "certificate chain", too_large=MalformedQuote)
    return [DeviceEvidence(None, pem, raw)]


def _collateral(given: GPUCollateral | Sequence[str | Path], home: Path | None) -> GPUCollateral:
    if isinstance(given, GPUCollateral):
        return given
    paths = [given] if isinstance(given, str) else given
    if paths:
        return gpu_collateral_from([Path(path) for path in paths])
    from adyton.collateral.store import CollateralStore
    from adyton.keystore.home import default_home

    folder = (home or default_home()) / "collateral"
    if not folder.is_dir():
        return GPUCollateral()  # what is genuine can be said without; the rest is then not checked
    return gpu_collateral(CollateralStore(folder))
