"""The 64 bytes of report data: one domain for each purpose, so that evidence for one never serves another.

Each domain is SHA-512 over a label of its own and fields with their lengths before them. docs/report-data.md has every
byte. Gramine's RA-TLS has its own form, a SHA-256 and 32 zero bytes, which no domain here can have.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from adyton.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.values import Measurement

REPORT_DATA_BYTES: Final = 64
WORKLOAD_BYTES: Final = 32

RELEASE: Final = b"adyton-release/4 report data\0"
PROGRAM: Final = b"adyton report data/1 program\0"
RECEIPT: Final = b"adyton receipt/1\0"
ENDPOINT: Final = b"adyton report data/1 endpoint\0"

LABELS: Final[Mapping[str, bytes]] = MappingProxyType(
    {"release": RELEASE, "program": PROGRAM, "receipt": RECEIPT, "endpoint": ENDPOINT}
)
"""Domain -> label. Each ends with its only NUL, so none begins another."""


def check_report_data(report_data: bytes) -> None:
    """Raise UsageError unless report data has exactly 64 bytes. It is never padded or cut."""
    if len(report_data) != REPORT_DATA_BYTES:
        raise UsageError(
            f"report data has {REPORT_DATA_BYTES} bytes, got {len(report_data)}",
            check="length of report data",
            expected=f"{REPORT_DATA_BYTES} bytes",
            seen=f"{len(report_data)} bytes",
        )


def framed(*fields: bytes) -> bytes:
    """The fields, each with its length before it (u32, big-endian)."""
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


def program_report_data(workload: Measurement, user_data: bytes) -> bytes:
    """The 64 bytes of evidence that the program of this workload asked for over `user_data`.

    `workload` is the workload measurement (32 bytes). It stands here on every TEE, since SEV-SNP has no register for
    it. `user_data` is what the program wrote: up to 64 bytes, filled up with zeros. Raises UsageError for other sizes.
    """
    if len(workload.raw) != WORKLOAD_BYTES:
        raise UsageError(
            f"a workload measurement has {WORKLOAD_BYTES} bytes, got {len(workload.raw)}",
            check="workload measurement",
            expected=f"{2 * WORKLOAD_BYTES} hex digits, as adyton build prints them",
            seen=f"{2 * len(workload.raw)} hex digits",
        )
    if len(user_data) > REPORT_DATA_BYTES:
        raise UsageError(
            f"a program's data has at most {REPORT_DATA_BYTES} bytes, got {len(user_data)}",
            check="data of the program",
            expected=f"at most {REPORT_DATA_BYTES} bytes",
            seen=f"{len(user_data)} bytes",
        )
    fields = framed(workload.raw, user_data.ljust(REPORT_DATA_BYTES, b"\0"))
    return hashlib.sha512(PROGRAM + fields).digest()


def receipt_report_data(payload: bytes) -> bytes:
    """The 64 bytes of the evidence at the end of a run, over the statement of its receipt (the payload of its DSSE)."""
    return hashlib.sha512(RECEIPT + hashlib.sha256(payload).digest()).digest()


class ProgramEvidence:
    """Evidence for a program. A program never reaches a source of evidence but through this.

    `raw` signs the program's bytes as they are: only where the manifest says so, on a TEE that allows it
    (`adyton.runtime.evidence`).
    """

    __slots__ = ("_quote", "_raw", "_workload")

    def __init__(self, quote: Callable[[bytes], bytes], workload: Measurement, *, raw: bool = False) -> None:
        self._quote = quote
        self._workload = workload
        self._raw = raw

    def over(self, user_data: bytes) -> bytes:
        """Evidence over the program's data, at most 64 bytes."""
        report_data = program_report_data(self._workload, user_data)
        if self._raw:
            report_data = user_data.ljust(REPORT_DATA_BYTES, b"\0")
        return self._quote(report_data)
