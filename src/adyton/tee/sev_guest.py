"""Inside a SEV-SNP guest: reports from configfs-tsm, or by ioctl from /dev/sev-guest.

Source: Linux, include/uapi/linux/sev-guest.h, Documentation/virt/coco/sev-guest.rst and
drivers/virt/coco/sev-guest/sev-guest.c; AMD 56860 (SNP ABI), MSG_REPORT_RSP.

::

    struct snp_guest_request_ioctl   0 msg_version u8 | 8 request u64 | 16 response u64 (pointers) | 24 exitinfo2 u64
    struct snp_report_req            0 report data 64 | 64 vmpl u32 | 68 reserved 28
    struct snp_ext_report_req        0 snp_report_req 96 | 96 certificates pointer u64 | 104 their length u32 | 108 pad
    response (4000)                  0 status u32 | 4 report size u32 | 8 reserved 24 | 32 report 1184

The driver retries by itself while the host throttles it (up to 60 s, then ETIMEDOUT). Certificates that do not fit make
EIO with SNP_GUEST_VMM_ERR_INVALID_LEN (1) in the upper half of exitinfo2, and the length that is needed. ENOTTY means
that the guest's message key was disabled after an error: only a boot brings it back.
"""

from __future__ import annotations

import ctypes
import errno
from dataclasses import dataclass
from typing import Final

from adyton.attest.report_data import check_report_data
from adyton.attest.snp import KEY_VLEK, REPORT_BYTES, parse_extended_report, parse_report
from adyton.errors import Error, MalformedQuote, NoDevice, StorageFailed, Timeout, UsageError
from adyton.tee.configfs_tsm import PROVIDERS, ConfigfsTSM
from adyton.tee.gramine_device import check_own_quote
from adyton.tee.system import KERNEL, READ_WRITE, System

DEVICE: Final = "/dev/sev-guest"
SNP_GET_REPORT: Final = 0xC0205300
SNP_GET_EXT_REPORT: Final = 0xC0205302
RESPONSE_BYTES: Final = 4000
CERTIFICATES_BYTES: Final = 16 << 10
VMM_INVALID_LENGTH: Final = 1
MAX_VMPL: Final = 3
_REPORT_AT: Final = 0x20
_MESSAGE_VERSION: Final = 1
_STRIPPED: Final = bytes(32)
"""The last certificate of a table may end with zeros, which were taken for padding."""
NOTICE: Final = "Adyton's reader of SEV-SNP reports has been tested against a double only, never on SEV-SNP hardware"


@dataclass(frozen=True, slots=True)
class ChipReport:
    """A SEV-SNP report (1184 bytes) and the host's certificate table, which may be empty and is not to be trusted."""

    report: bytes
    certificates: bytes


class SEVGuestDevice:
    """The ioctls of /dev/sev-guest."""

    def __init__(self, system: System = KERNEL, path: str = DEVICE) -> None:
        self._system = system
        self._path = path

    def report(self, report_data: bytes, *, vmpl: int = 0) -> bytes:
        """A report over these 64 bytes."""
        request = _request(report_data, vmpl)
        return self._ask(SNP_GET_REPORT, bytearray(request))

    def extended_report(self, report_data: bytes, *, vmpl: int = 0) -> ChipReport:
        """A report with the certificates that the host put in place. Asks again once where they need more room."""
        room = CERTIFICATES_BYTES
        for _ in range(2):
            certificates = (ctypes.c_char * room)()
            request = bytearray(_request(report_data, vmpl))
            request += ctypes.addressof(certificates).to_bytes(8, "little") + room.to_bytes(4, "little") + bytes(4)
            try:
                report = self._ask(SNP_GET_EXT_REPORT, request)
            except _TooSmall:
                needed = int.from_bytes(request[104:108], "little")
                if not room < needed <= 1 << 20:
                    break
                room = needed
                continue
            return ChipReport(report, bytes(certificates).rstrip(b"\0"))
        raise StorageFailed(
            f"{self._path}: the host's certificates do not fit",
            check="room for certificates",
            expected=f"at most {1 << 20} bytes",
            seen="more, or no length",
            remedy="fetch the chip's certificate from AMD instead: adyton collateral fetch --for EVIDENCE",
        )

    def _ask(self, command: int, request: bytearray) -> bytes:
        response = (ctypes.c_char * RESPONSE_BYTES)()
        pinned = (ctypes.c_char * len(request)).from_buffer(request)
        argument = bytearray(32)
        argument[0] = _MESSAGE_VERSION
        argument[8:16] = ctypes.addressof(pinned).to_bytes(8, "little")
        argument[16:24] = ctypes.addressof(response).to_bytes(8, "little")
        try:
            descriptor = self._system.open(self._path, READ_WRITE)
            try:
                self._system.ioctl(descriptor, command, argument)
            finally:
                self._system.close(descriptor)
        except OSError as error:
            raise self._failed(error, argument) from error
        finally:
            del pinned
        return _report_of(bytes(response), self._path)

    def _failed(self, error: OSError, argument: bytearray) -> Exception:
        firmware = int.from_bytes(argument[24:28], "little")
        host = int.from_bytes(argument[28:32], "little")
        if error.errno == errno.EIO and host == VMM_INVALID_LENGTH:
            return _TooSmall()
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EACCES, errno.EPERM):
            return NoDevice(
                f"no report from {self._path}: {error.strerror}",
                check="SEV-SNP guest device",
                expected=self._path,
                seen=error.strerror,
                remedy="run inside a SEV-SNP guest with the sev-guest driver (modprobe sev-guest), as root",
            )
        if error.errno in (errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN, errno.EBUSY):
            return Timeout(
                f"{self._path}: the host throttles reports, and none came in time",
                check="report by the TEE",
                seen=error.strerror,
                remedy="wait a minute, and try again",
            )
        disabled = error.errno == errno.ENOTTY
        return StorageFailed(
            f"{self._path}: {error.strerror} (firmware error {firmware:#x}, host error {host:#x})",
            check="report by the TEE",
            expected="a report",
            seen=error.strerror,
            remedy="the guest's message key was disabled: boot the guest anew"
            if disabled
            else "see the kernel's log: dmesg",
        )


class _TooSmall(Exception):
    """The certificates do not fit, which is no error of the caller's."""


def _request(report_data: bytes, vmpl: int) -> bytes:
    check_report_data(report_data)
    if not 0 <= vmpl <= MAX_VMPL:
        raise UsageError(f"no VMPL {vmpl}", check="VMPL", expected=f"0 to {MAX_VMPL}", seen=vmpl)
    return report_data + vmpl.to_bytes(4, "little") + bytes(28)


def _report_of(response: bytes, path: str) -> bytes:
    status, size = int.from_bytes(response[0:4], "little"), int.from_bytes(response[4:8], "little")
    if status != 0 or size != REPORT_BYTES:
        meaning = {0x16: "invalid parameters", 0x27: "no key of that kind"}.get(status, "refused")
        raise StorageFailed(
            f"{path}: the firmware made no report: {meaning}" if status else f"{path}: a report of {size} bytes",
            check="answer of the firmware",
            expected=f"status 0, {REPORT_BYTES} bytes",
            seen=f"status {status:#x}, {size} bytes",
            remedy="ask for a VMPL that this guest may use",
        )
    return response[_REPORT_AT : _REPORT_AT + REPORT_BYTES]


class SNPSource:
    """Reports of the SEV-SNP guest that this process runs in: from configfs-tsm, else from /dev/sev-guest."""

    def __init__(self, system: System = KERNEL, *, vmpl: int | None = None) -> None:
        self._tsm = ConfigfsTSM(system)
        self._device = SEVGuestDevice(system)
        self._vmpl = vmpl

    @property
    def tee(self) -> str:
        """`snp`."""
        return "snp"

    @property
    def notice(self) -> str:
        """A note that it has never run on hardware."""
        return NOTICE

    def event_log(self) -> None:
        """None: the registers of its evidence are compared as they stand."""

    def quote(self, report_data: bytes) -> bytes:
        """A report over these 64 bytes. A VLEK that signed it follows in a table, since AMD gives it to nobody else."""
        made = self.chip_report(report_data)
        report = parse_report(made.report)
        check_own_quote(report.report_data, report_data)
        if report.signing_key != KEY_VLEK or not made.certificates:
            return made.report
        try:
            return parse_extended_report(made.report + made.certificates + _STRIPPED).to_bytes()
        except MalformedQuote:
            return made.report  # the host's table is its own affair; the key server may have the VLEK already

    def chip_report(self, report_data: bytes) -> ChipReport:
        """A report, with the host's certificates where it gives any."""
        first: Error
        try:
            made = self._tsm.report(report_data, provider=PROVIDERS["snp"], privilege_level=self._vmpl)
            return ChipReport(made.outblob, made.auxblob)
        except NoDevice as error:
            first = error
        try:
            return self._device.extended_report(report_data, vmpl=self._vmpl or 0)
        except NoDevice as error:
            raise NoDevice(
                f"{first.message}; {error.message}",
                check="SEV-SNP guest",
                expected=f"configfs-tsm, or {DEVICE}",
                seen="neither",
                remedy=error.remedy,
            ) from error
