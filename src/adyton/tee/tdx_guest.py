"""Inside a TDX guest: quotes from configfs-tsm, and the run-time measurement registers in sysfs.

Source of the registers: Linux, Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest (kernel 6.16:
`measurements/rtmr3:sha384` is read for the register's value and written with a 48-byte digest to extend it).

/dev/tdx_guest is not used. It gives TDREPORTs, which only their own machine can check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.attest.devices import NO_DEVICES
from adyton.attest.tdx import parse_quote
from adyton.attest.workload_register import events, states
from adyton.errors import NoDevice, StorageFailed
from adyton.tee.configfs_tsm import PROVIDERS, ConfigfsTSM
from adyton.tee.gramine_device import check_own_quote
from adyton.tee.system import KERNEL, System, read_all, write_once

if TYPE_CHECKING:
    from adyton.values import Measurement

RTMR3: Final = "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384"
RTMR_BYTES: Final = 48
NOTICE: Final = (
    "Adyton's reader of TDX quotes and registers has been tested against a double only, never on TDX hardware"
)


def extend_workload(
    workload: Measurement, system: System = KERNEL, path: str = RTMR3, *, devices: bytes = NO_DEVICES
) -> None:
    """Extend RTMR3 with the workload measurement and then with the device digest, each once per boot of this TD.

    What the register holds already is not extended again. So a retry changes nothing, and a start that was cut off
    between the two is completed. Raises StorageFailed where the register holds anything else: then this TD ran
    something before, and only a boot makes it empty again.
    """
    before = states(workload, devices, bank="sha384")
    wanted = before[-1]
    try:
        seen = read_all(system, path, RTMR_BYTES)
        for state, digest in zip(before, events(workload, devices, bank="sha384"), strict=False):
            if seen == state:
                write_once(system, path, digest)
                seen = read_all(system, path, RTMR_BYTES)
    except OSError as error:
        raise NoDevice(
            f"RTMR3 cannot be extended: {path}: {error.strerror}",
            check="run-time register of TDX",
            expected="a register that can be read and extended",
            seen=error.strerror,
            remedy="use a kernel of 6.16 or newer in the guest, and run as root",
        ) from error
    if seen != wanted:
        raise StorageFailed(
            "RTMR3 of this trust domain holds something else already",
            check="RTMR3",
            expected=f"zeros, or {wanted.hex()} (this workload and these devices)",
            seen=seen.hex(),
            remedy="boot the trust domain anew: a register is never reset while it runs",
        )


class TDXSource:
    """Quotes of the trust domain that this process runs in, after RTMR3 was extended with workload and devices."""

    def __init__(self, workload: Measurement | None, system: System = KERNEL, *, devices: bytes = NO_DEVICES) -> None:
        self._tsm = ConfigfsTSM(system)
        if workload is not None:
            extend_workload(workload, system, devices=devices)

    @property
    def tee(self) -> str:
        """`tdx`."""
        return "tdx"

    @property
    def notice(self) -> str:
        """A note that it has never run on hardware."""
        return NOTICE

    def event_log(self) -> None:
        """None: the registers of its evidence are compared as they stand."""

    def quote(self, report_data: bytes) -> bytes:
        """A TDX quote over these 64 bytes."""
        raw = self._tsm.report(report_data, provider=PROVIDERS["tdx"]).outblob
        check_own_quote(parse_quote(raw).report_data, report_data)
        return raw
