"""How a TDX guest booted under OVMF, by its event log (CCEL): above all which ACPI tables its host wrote. Pure.

RTMR0 takes these events, in this order, and then the boot options:

::

    0        the list of memory that the host hands to the firmware (TD HOB)
    1        the firmware's store of variables (CFV)
    2 to 6   the variables SecureBoot, PK, KEK, db, dbx
    7        separator
    8 to 10  the host's ACPI tables: table-loader, rsdp, tables

An event's type and data are not measured, only its digest. So events are known by their place, and nothing is concluded
from what a log calls them. A log means something only where it replays to the registers of a quote.

Source: EDK2, OvmfPkg/Library/PlatformInitLib/IntelTdx.c and OvmfPkg/AcpiPlatformDxe/QemuFwCfgAcpi.c; UEFI 2.10,
section 38.4. Real logs of two machines have this form (docs/tested.md).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.attest.tpm.event_log import SHA384, parse_event_log
from adyton.errors import Mismatch

if TYPE_CHECKING:
    from adyton.attest.tdx import TDXQuote

TABLES: Final = ("loader", "rsdp", "tables")
"""What QEMU calls them: etc/table-loader, etc/acpi/rsdp, etc/acpi/tables."""
_RTMR0: Final = 1
_VARIABLES: Final = slice(2, 7)
_SEPARATOR: Final = 7
_ACPI: Final = slice(8, 11)
_LEAST_EVENTS: Final = 11
_SEPARATOR_DIGEST: Final = hashlib.sha384(bytes(4)).digest()
_LOGGED: Final = 3
"""RTMR0 to RTMR2. Adyton extends RTMR3 itself, which the firmware's log does not show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TDXBoot:
    """A boot as its log tells it. All values are SHA-384, 48 bytes."""

    rtmrs: tuple[bytes, bytes, bytes]
    """RTMR0, RTMR1 and RTMR2, replayed."""
    variable_store: bytes
    variables: tuple[bytes, ...]
    """SecureBoot, PK, KEK, db, dbx."""
    acpi: tuple[bytes, bytes, bytes]
    """The ACPI tables, as `TABLES` names them."""

    def named_tables(self) -> dict[str, str]:
        """The ACPI tables by their names, in hex."""
        return {name: value.hex() for name, value in zip(TABLES, self.acpi, strict=True)}


def _refused(check: str, expected: str, seen: str, remedy: str) -> Mismatch:
    return Mismatch(
        f"this log tells of no boot of a TDX guest under OVMF: {check}: expected {expected}, seen {seen}",
        check=f"event log: {check}",
        expected=expected,
        seen=seen,
        remedy=remedy,
    )


_TAKE: Final = "take /sys/firmware/acpi/tables/data/CCEL from inside a TDX guest that OVMF booted"


def read_boot(raw: bytes) -> TDXBoot:
    """Read a CCEL. Raises MalformedQuote where it does not parse, and Mismatch where it tells of another boot."""
    log = parse_event_log(raw)
    if not log.confidential or SHA384 not in log.algorithms:
        raise _refused("kind of log", "a CCEL with SHA-384", "the log of a TPM", _TAKE)
    events = log.extended(_RTMR0, SHA384)
    if len(events) < _LEAST_EVENTS:
        raise _refused("events of RTMR0", f"at least {_LEAST_EVENTS}", str(len(events)), _TAKE)
    if events[_SEPARATOR] != _SEPARATOR_DIGEST:
        raise _refused("event 7 of RTMR0", "the separator", events[_SEPARATOR].hex(), _TAKE)
    replayed = log.replay(SHA384)
    zeros = bytes(len(_SEPARATOR_DIGEST))
    zero, one, two = (replayed.get(_RTMR0 + number, zeros) for number in range(_LOGGED))
    loader, rsdp, tables = events[_ACPI]
    return TDXBoot(
        rtmrs=(zero, one, two),
        variable_store=events[1],
        variables=events[_VARIABLES],
        acpi=(loader, rsdp, tables),
    )


def check_replays(boot: TDXBoot, quote: TDXQuote) -> None:
    """Refuse a log of another boot than the quote's. Raises Mismatch that names the register."""
    for number, (value, quoted) in enumerate(zip(boot.rtmrs, quote.report.rtmrs, strict=False)):
        if value != quoted:
            raise Mismatch(
                f"the event log is of another boot than the quote: it gives another RTMR{number}",
                check=f"event log: RTMR{number}",
                expected=quoted.hex(),
                seen=value.hex(),
                remedy="take log and quote from the same boot",
            )
