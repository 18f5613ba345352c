"""The sources of evidence that are hardware: which one a TEE's name stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.attest.devices import NO_DEVICES
from adyton.errors import UsageError
from adyton.tee.system import KERNEL, System

if TYPE_CHECKING:
    from adyton.tee.source import QuoteSource
    from adyton.values import Measurement


def open_hardware(
    tee: str, measurement: Measurement | None, system: System = KERNEL, *, devices: bytes = NO_DEVICES
) -> QuoteSource:
    """Open the source of this TEE. Raises NoDevice where this machine lacks it.

    `tdx` extends RTMR3 with the workload measurement and the device digest. `sgx` and `snp` do not take them: MRENCLAVE
    is the hardware's, and an SNP report carries the workload by its report data.
    """
    if tee == "sgx":
        from adyton.tee.gramine_device import GramineSource

        return GramineSource(system)
    if tee == "tdx":
        from adyton.tee.tdx_guest import TDXSource

        return TDXSource(measurement, system, devices=devices)
    if tee == "snp":
        from adyton.tee.sev_guest import SNPSource

        return SNPSource(system)
    if tee == "tpm":
        from adyton.tee.tpm_guest import open_tpm

        return open_tpm(measurement, devices, system)
    if tee in ("az-snp", "az-tdx"):
        from adyton.tee.azure_guest import open_azure

        return open_azure(tee, measurement, devices, system)
    if tee == "nitrotpm":
        from adyton.tee.nitrotpm_guest import open_nitrotpm

        return open_nitrotpm(measurement, devices)
    expected = "sgx, tdx, snp, tpm, az-snp, az-tdx or nitrotpm"
    raise UsageError(f"no hardware TEE named {tee!r}", check="name of the TEE", expected=expected, seen=tee)
