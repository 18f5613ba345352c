"""Quotes inside Gramine: the pseudo-files under /dev/attestation.

Source: Gramine's documentation, "Attestation and Secret Provisioning", and its SGX backend.
The code relies on these facts:

- `attestation_type` says `none` or `dcap`. With `none` there is no `quote`.
- Each write to `user_report_data` replaces all 64 bytes: a short write would be filled up with zeros.
- The quote is made when `quote` is *opened*, over the user report data of that moment. The two files are shared by the
  whole process, so no other thread may come between write and open.
"""

from __future__ import annotations

import errno
from threading import Lock
from typing import Final

from adyton.attest.report_data import check_report_data
from adyton.attest.sgx import parse_quote
from adyton.errors import NoDevice, StorageFailed
from adyton.tee.system import KERNEL, System, read_all, write_once

ROOT: Final = "/dev/attestation"
MAX_QUOTE_BYTES: Final = 8192
NOTICE: Final = (
    "Adyton's reader of Gramine's /dev/attestation has been tested against a double only, never on SGX hardware"
)

_ONE_AT_A_TIME: Final = Lock()


class GramineSource:
    """Quotes of the SGX enclave that this process runs in."""

    def __init__(self, system: System = KERNEL, root: str = ROOT) -> None:
        self._system = system
        self._root = root
        kind = self._attestation_type()
        if kind != "dcap":
            raise NoDevice(
                f"this enclave has no DCAP attestation: {kind!r}",
                check="attestation type of Gramine",
                expected="dcap",
                seen=kind,
                remedy='build the manifest with sgx.remote_attestation = "dcap"'
                if kind == "none"
                else "use a Gramine with DCAP; EPID attestation has ended",
            )

    def _attestation_type(self) -> str:
        try:
            return read_all(self._system, f"{self._root}/attestation_type", 64).decode("ascii", "replace").strip()
        except OSError as error:
            raise NoDevice(
                f"no {self._root}: this process does not run inside Gramine's SGX enclave",
                check="Gramine's /dev/attestation",
                expected=f"{self._root}/attestation_type",
                seen=error.strerror,
                remedy="run it with gramine-sgx, or name another TEE: adyton doctor",
            ) from error

    @property
    def tee(self) -> str:
        """`sgx`."""
        return "sgx"

    @property
    def notice(self) -> str:
        """A note that it has never run on hardware."""
        return NOTICE

    def event_log(self) -> None:
        """None: the registers of its evidence are compared as they stand."""

    def quote(self, report_data: bytes) -> bytes:
        """A quote over these 64 bytes. Raises StorageFailed where the one that came is over others."""
        check_report_data(report_data)
        try:
            with _ONE_AT_A_TIME:
                write_once(self._system, f"{self._root}/user_report_data", report_data)
                raw = read_all(self._system, f"{self._root}/quote", MAX_QUOTE_BYTES)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise NoDevice(
                    f"{self._root} has no quote: remote attestation is off",
                    check="Gramine's quote",
                    expected=f"{self._root}/quote",
                    seen=error.strerror,
                    remedy='build the manifest with sgx.remote_attestation = "dcap"',
                ) from error
            raise StorageFailed(
                f"Gramine made no quote: {error.strerror}",
                check="Gramine's quote",
                expected="a quote",
                seen=error.strerror,
                remedy="see AESM and its quote provider on the host: systemctl status aesmd",
            ) from error
        check_own_quote(parse_quote(raw).report_data, report_data)
        return raw


def check_own_quote(seen: bytes, asked: bytes) -> None:
    """Raise StorageFailed where evidence is over other report data than was asked for."""
    if seen != asked:
        raise StorageFailed(
            "the evidence that came is over other report data than was asked for",
            check="report data of our own evidence",
            expected=asked.hex(),
            seen=seen.hex(),
            remedy="something else in this machine asks for evidence at the same time: try again",
        )
