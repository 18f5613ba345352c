"""Inside a TDX guest: /dev/tdx_guest and the run-time measurement registers in sysfs.

Sources: Linux, include/uapi/linux/tdx-guest.h and drivers/virt/coco/tdx-guest/tdx-guest.c (ioctl TDX_CMD_GET_REPORT0);
Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest (kernel 6.16: `measurements/rtmr3:sha384` is read for the
register's value and written with a 48-byte digest to extend it).

A TDREPORT is authenticated for its own machine only. A quote comes from configfs-tsm.
"""

from __future__ import annotations

import errno
import hashlib
from typing import TYPE_CHECKING, Final

from adyton.attest.report_data import REPORT_DATA_BYTES, check_report_data
from adyton.attest.tdx import parse_quote, workload_rtmr3
from adyton.errors import NoDevice, StorageFailed
from adyton.tee.configfs_tsm import PROVIDERS, ConfigfsTSM
from adyton.tee.gramine_device import check_own_quote
from adyton.tee.system import KERNEL, READ_WRITE, System, read_all, write_once

if TYPE_CHECKING:
    from adyton.values import Measurement

DEVICE: Final = "/dev/tdx_guest"
RTMR3: Final = "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384"
TDX_CMD_GET_REPORT0: Final = 0xC4405401
TDREPORT_BYTES: Final = 1024
RTMR_BYTES: Final = 48
NOTICE: Final = (
    "Adyton's reader of TDX quotes and registers has been tested against a double only, never on TDX hardware"
)


def get_td_report(report_data: bytes, system: System = KERNEL) -> bytes:
    """The TDREPORT (1024 bytes) over these 64 bytes. Raises NoDevice where this is no TDX guest."""
    check_report_data(report_data)
    buffer = bytearray(report_data) + bytearray(TDREPORT_BYTES)
    try:
        descriptor = system.open(DEVICE, READ_WRITE)
        try:
            system.ioctl(descriptor, TDX_CMD_GET_REPORT0, buffer)
        finally:
            system.close(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EFAULT):
            raise StorageFailed(f"{DEVICE} made no report: {error.strerror}", seen=error.strerror) from error
        raise NoDevice(
            f"no TDREPORT from {DEVICE}: {error.strerror}",
            check="TDX guest device",
            expected=DEVICE,
            seen=error.strerror,
            remedy="run inside a TDX guest with the tdx_guest driver, as root",
        ) from error
    return bytes(buffer[REPORT_DATA_BYTES:])


def extend_workload(workload: Measurement, system: System = KERNEL, path: str = RTMR3) -> None:
    """Extend RTMR3 with the workload measurement, once per boot of this TD. Nothing happens if it is there already.

    Raises StorageFailed where the register holds anything else: then this TD ran something before, and only a boot
    makes it empty again.
    """
    wanted = workload_rtmr3(workload).raw
    try:
        seen = read_all(system, path, RTMR_BYTES)
        if seen == bytes(RTMR_BYTES):
            write_once(system, path, hashlib.sha384(workload.raw).digest())
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
            expected=f"zeros, or {wanted.hex()}",
            seen=seen.hex(),
            remedy="boot the trust domain anew: a register is never reset while it runs",
        )


class TDXSource:
    """Quotes of the trust domain that this process runs in, after RTMR3 was extended with the workload."""

    def __init__(self, workload: Measurement | None, system: System = KERNEL) -> None:
        self._tsm = ConfigfsTSM(system)
        if workload is not None:
            extend_workload(workload, system)

    @property
    def tee(self) -> str:
        """`tdx`."""
        return "tdx"

    @property
    def notice(self) -> str:
        """A note that it has never run on hardware."""
        return NOTICE

    def quote(self, report_data: bytes) -> bytes:
        """A TDX quote over these 64 bytes."""
        raw = self._tsm.report(report_data, provider=PROVIDERS["tdx"]).outblob
        check_own_quote(parse_quote(raw).report_data, report_data)
        return raw
