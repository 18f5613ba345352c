"""The choice of a source of evidence by its TEE's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.attest.devices import NO_DEVICES
from adyton.errors import UsageError
from adyton.tee.source import TEES

if TYPE_CHECKING:
    from pathlib import Path

    from adyton.tee.source import QuoteSource
    from adyton.values import Measurement


def open_source(
    tee: str,
    *,
    measurement: Measurement | None = None,
    platform_dir: Path | None = None,
    mrsigner: bytes | None = None,
    isv_prod_id: int = 0,
    isv_svn: int = 0,
    debug: bool = False,
    devices: bytes = NO_DEVICES,
) -> QuoteSource:
    """Open the source of evidence of this TEE.

    `measurement` is the workload measurement (32 bytes): `sim` puts it into MRENCLAVE, `sim-tdx` and `tdx` extend
    it into RTMR3, and after it `devices`, the digest of the machine's GPUs (`attest.devices`). `mrsigner`,
    `isv_prod_id`, `isv_svn` and `debug` fill the simulated enclave's other fields. On hardware these come from the
    hardware, and giving them there is an error. Raises UsageError for an unknown name and NoDevice where this machine
    lacks what is needed.
    """
    if tee in ("sim", "sim-tdx"):
        from adyton.sim.files import platform_directory
        from adyton.sim.platform import SimPlatform

        if measurement is None:
            raise UsageError("a simulated TEE needs the workload measurement that it is to report")
        return SimPlatform.load(platform_directory(platform_dir)).enclave(
            measurement=measurement,
            mrsigner=mrsigner,
            isv_prod_id=isv_prod_id,
            isv_svn=isv_svn,
            debug=debug,
            devices=devices,
            shape="sgx" if tee == "sim" else "tdx",
        )
    if tee == "sim-tpm":
        from adyton.sim.files import platform_directory
        from adyton.tee.tpm_guest import open_simulated

        return open_simulated(platform_directory(platform_dir), measurement, devices)
    if tee not in TEES:
        raise UsageError(
            f"no TEE named {tee!r}",
            check="name of the TEE",
            expected=", ".join(TEES),
            seen=tee,
            remedy="`adyton doctor` says which TEE this machine has",
        )
    from adyton.tee.hardware import open_hardware

    return open_hardware(tee, measurement, devices=devices)
