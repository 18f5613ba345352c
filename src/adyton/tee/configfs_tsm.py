"""Linux's configfs-tsm reports (kernel 6.7 and newer): TDX quotes and SEV-SNP reports from one interface.

Source: Linux, Documentation/ABI/testing/configfs-tsm and drivers/virt/coco/tsm.c (later guest/report.c). The code below
relies on these facts:

- Every report instance is a folder of its own. `mkdir` fails with ENXIO while no provider is registered.
- `inblob` is a binary attribute: what is written takes effect when the file is *closed*, and an error there (EBUSY
  after too many unread writes) is dropped by the kernel (fs/configfs/file.c: "result of ->release() is ignored").
  So whether a write counted shows only in `generation`, which goes up by one with each write that did.
- Reading `outblob` makes the report. TDX gives EBUSY while an earlier request is still with the host, EINTR, EIO and
  ETIMEDOUT (drivers/virt/coco/tdx-guest/tdx-guest.c), EINVAL where `inblob` has not 64 bytes.
- `generation` read again after `outblob` says whether somebody else wrote in between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from adyton.attest.report_data import check_report_data
from adyton.errors import Error, NoDevice, StorageFailed, Timeout
from adyton.tee.system import KERNEL, System, read_all, write_once

ROOT: Final = "/sys/kernel/config/tsm/report"
MAX_OUTBLOB_BYTES: Final = 64 << 10
MAX_AUXBLOB_BYTES: Final = 64 << 10
TIMEOUT_S: Final = 90.0
"""The TDX driver itself waits 30 s for a quote, the SNP driver 60 s for its turn."""
_TRIES: Final = 8
_AGAIN: Final = frozenset({errno.EBUSY, errno.EAGAIN, errno.EINTR})

PROVIDERS: Final = {"tdx": "tdx_guest", "snp": "sev_guest"}


@dataclass(frozen=True, slots=True)
class TSMReport:
    """The report of one instance: its provider, the evidence, and further data (SEV-SNP: a certificate table)."""

    provider: str
    outblob: bytes
    auxblob: bytes


class ConfigfsTSM:
    """The interface under one root. Every report uses an instance of its own and removes it."""

    def __init__(self, system: System = KERNEL, root: str = ROOT) -> None:
        self._system = system
        self._root = root

    def report(self, inblob: bytes, *, provider: str, privilege_level: int | None = None) -> TSMReport:
        """A report over these 64 bytes by this provider. Raises NoDevice, Timeout or StorageFailed."""
        check_report_data(inblob)
        with self._instance() as folder:
            found = self._text(folder, "provider")
            if found != provider:
                raise NoDevice(
                    f"this machine's TSM is {found!r}, not {provider!r}",
                    check="provider of configfs-tsm",
                    expected=provider,
                    seen=found,
                    remedy="name the TEE that this machine has: adyton doctor",
                )
            for _ in range(_TRIES):
                report = self._try(folder, inblob, found, privilege_level)
                if report is not None:
                    return report
        raise StorageFailed(
            f"somebody else writes to {self._root}, {_TRIES} times in a row",
            check="generation of the report",
            expected="one step for each of our writes, and none besides",
            seen="other steps",
            remedy="end what uses the same report instance",
        )

    @contextmanager
    def _instance(self) -> Iterator[str]:
        folder = f"{self._root}/adyton-{os.getpid()}-{secrets.token_hex(6)}"
        try:
            self._system.mkdir(folder)
        except OSError as error:
            raise self._no_device(error) from error
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                self._system.rmdir(folder)

    def _no_device(self, error: OSError) -> NoDevice:
        if error.errno == errno.ENXIO:
            seen, remedy = "no provider", "load the guest driver: modprobe tdx_guest, or modprobe sev-guest"
        elif error.errno in (errno.EACCES, errno.EPERM):
            seen, remedy = "no permission", "run as root, or let root prepare the report for you"
        elif error.errno in (errno.ENOENT, errno.ENOTDIR):
            seen = "no such folder"
            remedy = (
                "use a kernel of 6.7 or newer with CONFIG_TSM_REPORTS, and mount configfs: "
                "mount -t configfs none /sys/kernel/config"
            )
        else:
            seen, remedy = error.strerror or str(error), "see the kernel's log: dmesg"
        return NoDevice(
            f"no attestation reports from {self._root}: {seen}",
            check="configfs-tsm",
            expected="a report instance can be made",
            seen=seen,
            remedy=remedy,
        )

    def _text(self, folder: str, name: str) -> str:
        try:
            return read_all(self._system, f"{folder}/{name}", 4096).decode("ascii", "replace").strip()
        except OSError as error:
            raise self._failed(f"{folder}/{name}", error) from error

    def _generation(self, folder: str) -> int:
        text = self._text(folder, "generation")
        if not (text.isascii() and text.isdigit()):
            raise StorageFailed(f"{folder}/generation says {text[:40]!r}", check="generation", expected="a number")
        return int(text)

    def _try(self, folder: str, inblob: bytes, provider: str, privilege_level: int | None) -> TSMReport | None:
        """One attempt. None where the generations show that it does not count."""
        before, writes = self._generation(folder), 1
        try:
            if privilege_level is not None:
                write_once(self._system, f"{folder}/privlevel", f"{privilege_level}\n".encode())
                writes += 1
            write_once(self._system, f"{folder}/inblob", inblob)
        except OSError as error:
            if error.errno in _AGAIN:
                self._system.sleep(0.1)
                return None
            raise self._failed(f"{folder}/inblob", error) from error
        # unsigned long in the kernel: it wraps around
        after = (before + writes) % (1 << 64)
        if self._generation(folder) != after:
            self._system.sleep(0.1)
            return None
        outblob = self._blob(f"{folder}/outblob", MAX_OUTBLOB_BYTES)
        auxblob = self._optional_blob(f"{folder}/auxblob")
        if self._generation(folder) != after or not outblob:
            return None
        return TSMReport(provider, outblob, auxblob)

    def _blob(self, path: str, limit: int) -> bytes:
        """Read a blob. Waits while the device is busy."""
        end, pause_s = self._system.monotonic() + TIMEOUT_S, 0.05
        while True:
            try:
                return read_all(self._system, path, limit)
            except OSError as error:
                if error.errno not in _AGAIN:
                    raise self._failed(path, error) from error
                if self._system.monotonic() >= end:
                    raise Timeout(
                        f"{path} stayed busy for {TIMEOUT_S:g} seconds",
                        check="report by the TEE",
                        expected=f"within {TIMEOUT_S:g} s",
                        seen=error.strerror,
                        remedy="another request is with the host: try again later, or see the host's quoting service",
                    ) from error
            self._system.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)

    def _optional_blob(self, path: str) -> bytes:
        try:
            return read_all(self._system, path, MAX_AUXBLOB_BYTES)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES):
                return b""
            raise self._failed(path, error) from error

    @staticmethod
    def _failed(path: str, error: OSError) -> Error:
        if error.errno == errno.ETIMEDOUT:
            return Timeout(
                f"{path}: the host did not answer in time",
                check="report by the TEE",
                expected="a report",
                seen=error.strerror,
                remedy="see the host's quoting service (TDX: QGS), and try again",
            )
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.ENOTTY):
            return NoDevice(f"{path}: the guest driver went away", check="report by the TEE", seen=error.strerror)
        return StorageFailed(
            f"{path}: {error.strerror}",
            check="report by the TEE",
            expected="a report",
            seen=error.strerror,
            remedy="see the kernel's log (dmesg), and on TDX the host's quoting service",
        )
