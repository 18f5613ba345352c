"""Where evidence comes from: one small interface, and the choice of a source by the TEE's name.

A source is always chosen by name; nothing here guesses, and the simulated TEE is never chosen silently.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from adyton.attest.report_data import REPORT_DATA_BYTES
from adyton.errors import UsageError

if TYPE_CHECKING:
    from adyton.values import Measurement

TEES: Final = ("sgx", "tdx", "snp", "sim", "sim-tdx")
PLATFORM_VARIABLE: Final = "ADYTON_SIM_PLATFORM"
DEFAULT_PLATFORM: Final = "~/.adyton-sim"


class QuoteSource(Protocol):
    """Something that signs 64 bytes of the caller's choice together with what runs here."""

    @property
    def tee(self) -> str:
        """The TEE's name as policies write it: sgx, tdx, snp, sim or sim-tdx."""
        ...

    @property
    def notice(self) -> str | None:
        """What the user must be told about this source (simulated, or never run on hardware), if anything."""
        ...

    def quote(self, report_data: bytes) -> bytes:
        """Evidence over these 64 bytes; raises UsageError for another length, NoDevice or Timeout if there is none."""
        ...


def check_report_data(report_data: bytes) -> None:
    """Raise UsageError unless report data has exactly 64 bytes; it is never padded or cut."""
    if len(report_data) != REPORT_DATA_BYTES:
        raise UsageError(
            f"report data has {REPORT_DATA_BYTES} bytes, got {len(report_data)}",
            check="length of report data",
            expected=f"{REPORT_DATA_BYTES} bytes",
            seen=f"{len(report_data)} bytes",
        )


def platform_directory(chosen: Path | None = None) -> Path:
    """The simulated platform's folder: the one chosen, else $ADYTON_SIM_PLATFORM, else ~/.adyton-sim."""
    if chosen is not None:
        return chosen
    return Path(os.environ.get(PLATFORM_VARIABLE) or DEFAULT_PLATFORM).expanduser()


def open_source(
    tee: str,
    *,
    measurement: Measurement | None = None,
    platform_dir: Path | None = None,
    mrsigner: bytes | None = None,
    isv_prod_id: int = 0,
    isv_svn: int = 0,
    debug: bool = False,
) -> QuoteSource:
    """Open the source of evidence of this TEE.

    `measurement` is the workload measurement (32 bytes): `sim` puts it into MRENCLAVE, `sim-tdx` and `tdx` extend
    it into RTMR3. `mrsigner`, `isv_prod_id`, `isv_svn` and `debug` fill the simulated enclave's other fields; on
    hardware these come from the hardware, and giving them there is an error. Raises UsageError for an unknown name
    and NoDevice where this machine lacks what is needed.
    """
    if tee in ("sim", "sim-tdx"):
        from adyton.tee.sim import SimPlatform

        if measurement is None:
            raise UsageError("a simulated TEE needs the workload measurement that it is to report")
        return SimPlatform.load(platform_directory(platform_dir)).enclave(
            measurement=measurement,
            mrsigner=mrsigner,
            isv_prod_id=isv_prod_id,
            isv_svn=isv_svn,
            debug=debug,
            shape="sgx" if tee == "sim" else "tdx",
        )
    if tee not in TEES:
        raise UsageError(
            f"no TEE named {tee!r}",
            check="name of the TEE",
            expected=", ".join(TEES),
            seen=tee,
            remedy="`adyton doctor` says which TEE this machine has",
        )
    opened: QuoteSource = importlib.import_module("adyton.tee.hardware").open_hardware(tee, measurement)
    return opened
