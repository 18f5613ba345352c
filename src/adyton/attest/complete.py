"""Complete a verified report with the rest of its bundle: the event log, and the devices.

The caller has verified the CPU's part, and compared its report data with those of the request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from adyton.attest.azure.evidence import AzureEvidence
from adyton.attest.bundle import DevicePart
from adyton.attest.devices import Device
from adyton.attest.tdx import TDXQuote
from adyton.attest.tpm.document import TPMQuote
from adyton.errors import Mismatch

if TYPE_CHECKING:
    from adyton.attest.evidence import Evidence
    from adyton.attest.report import VerifiedReport

DeviceVerifier: TypeAlias = Callable[[tuple[DevicePart, ...], bytes, datetime], tuple[Device, ...]]
"""Verifies the devices' parts against their nonce (`gpu_nonce`) at a time. Raises an EvidenceError, or Unavailable."""


def no_devices(devices: tuple[DevicePart, ...], _nonce: bytes, _now: datetime) -> tuple[Device, ...]:
    """A `DeviceVerifier` that verifies none."""
    raise Mismatch(
        "this key server verifies no devices",
        check="devices in the evidence",
        expected="none",
        seen=f"{len(devices)}",
        remedy="run the program on a machine without GPUs, or ask the owner for a key server that verifies them",
    )


def with_event_log(evidence: Evidence, event_log: bytes | None) -> Evidence:
    """The evidence with the log of its boot. Raises Mismatch where evidence of its kind takes none."""
    if isinstance(evidence, TPMQuote | AzureEvidence):
        return evidence.with_event_log(event_log)
    if event_log is not None:
        raise Mismatch(
            "evidence of this TEE takes no event log",
            check="event log in the evidence",
            expected="none: its registers are compared as they stand",
            seen=f"{len(event_log)} bytes",
            remedy="use the same version of Adyton on both sides",
        )
    return evidence


def complete(
    report: VerifiedReport,
    event_log: bytes | None,
    devices: tuple[DevicePart, ...],
    *,
    nonce: bytes,
    verify_devices: DeviceVerifier,
    now: datetime,
) -> VerifiedReport:
    """The report together with the rest of its bundle. Raises an EvidenceError, or Unavailable.

    Evidence of a TPM takes the boot's event log, which the appraisal replays. Evidence of SGX, SEV-SNP and TDX takes
    none: the registers that a policy names are compared as they stand. Devices need evidence with a workload register.
    Without one nothing says which devices the guest found.
    """
    report = replace(report, evidence=with_event_log(report.evidence, event_log))
    if not devices:
        return report
    if not isinstance(report.evidence, TDXQuote | TPMQuote | AzureEvidence):
        raise Mismatch(
            f"evidence of {report.tee} has no register that names the devices",
            check="devices in the evidence",
            expected="none, or evidence of a TEE with a workload register",
            seen=f"{len(devices)}",
            remedy="run a program with GPUs in a trust domain, or in a guest that a TPM measures",
        )
    return replace(report, devices=verify_devices(devices, nonce, now))


def without_event_log(report: VerifiedReport) -> VerifiedReport:
    """The same report without its event log, for whoever keeps many of them and does not look at the boot again."""
    if not isinstance(report.evidence, TPMQuote | AzureEvidence):
        return report
    return replace(report, evidence=report.evidence.with_event_log(None))
