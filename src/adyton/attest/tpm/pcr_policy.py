"""What a policy asks of the PCRs of a measured guest, as checks.

PCR 4 is judged by its event log: the programs that the firmware started, in order, and no other. Only then does it say
which guest runs. The other rules close what PCR 4 leaves open:

* PCR 12 and 13 hold zeros. Load options, credentials and add-ons beside the UKI are measured there, and leave PCR 4 and
  11 as they are.
* PCR 0, 1 and 5 are the firmware's and the disk's. Nobody predicts them, so a policy that names them is refused.
* PCR 2 holds the separator and nothing else, unless the policy names its value. Drivers that come with the machine's
  devices (option ROMs) are measured there. They run before the guest, and leave PCR 4 and 11 as they are.
* PCR 11 alone is worth nothing, since any loader can extend it: it counts beside PCR 4 only.
* PCR 15 holds the workload register (`attest.workload_register`), which `appraise` compares.
* PCRs that software can reset, or that change as the guest runs, cannot be named.

Type and data of an event are not measured, so only digests are compared. Source: TCG PC Client Platform Firmware
Profile 1.05, sections 3.3.4 (PCR usage) and 10.4 (events); systemd, "TPM2 PCR Measurements Made by systemd".
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from typing import TYPE_CHECKING, Final, NamedTuple

from adyton.attest.tpm.event_log import SHA256, parse_event_log
from adyton.check import Check
from adyton.errors import MalformedQuote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BOOT_PCR: Final = 4
DRIVER_PCR: Final = 2
ZERO_PCRS: Final = (12, 13)
FIRMWARE_PCRS: Final = (0, 1, 5)
NAMEABLE_PCRS: Final = frozenset({2, 3, 4, 6, 7, 8, 9, 11, 14})
"""PCRs that a policy may name beside the rules of this module."""
REPLAYED_PCRS: Final = range(8)
"""PCRs that only the firmware extends: what its log says of them must be what was quoted."""

CALLING: Final = hashlib.sha256(b"Calling EFI Application from Boot Option").digest()
"""EV_EFI_ACTION before a boot entry is started."""
SEPARATOR: Final = hashlib.sha256(bytes(4)).digest()
"""EV_SEPARATOR between what runs before the boot and the boot itself."""

_NO_DRIVERS: Final = hashlib.sha256(bytes(32) + SEPARATOR).digest()

_BUILD: Final = "take the values from the document of a guest image that you built or checked"
_ANEW: Final = "send the log of this boot, whole and unaltered: /sys/kernel/security/tpm0/binary_bios_measurements"


class BootLog(NamedTuple):
    """A log that was read: what it replays to, and the digests in PCR 4. Or why it could not be read."""

    registers: Mapping[int, bytes]
    boot_digests: tuple[bytes, ...]
    fault: str | None = None


@functools.lru_cache(maxsize=16)
def read_boot_log(raw: bytes) -> BootLog:
    """Parse and replay a log in the SHA-256 bank. A log that does not parse gives its fault."""
    try:
        log = parse_event_log(raw)
        if log.confidential:
            return BootLog({}, (), "a log of TDX registers (CCEL), not of PCRs")
        return BootLog(log.replay(SHA256), log.extended(BOOT_PCR, SHA256))
    except MalformedQuote as error:
        return BootLog({}, (), error.message)


def judge(
    pcrs: Mapping[int, bytes],
    event_log: bytes | None,
    *,
    boot_applications: Sequence[bytes],
    values: Mapping[int, frozenset[bytes]],
) -> tuple[Check, ...]:
    """Every check of a measured guest. `pcrs` are the quoted values (24, SHA-256).

    `boot_applications` are the Authenticode SHA-256 hashes (32 bytes each) of what the firmware starts, in order: the
    UKI, then the kernel in it. `values` are further PCRs and their allowed values.
    """
    return (
        _named(boot_applications),
        *_log_checks(pcrs, event_log, boot_applications),
        *(() if DRIVER_PCR in values else (_no_drivers(pcrs[DRIVER_PCR]),)),
        *(_zeros(index, pcrs[index]) for index in ZERO_PCRS),
        *(_value(index, pcrs, allowed) for index, allowed in sorted(values.items())),
    )


def _named(boot_applications: Sequence[bytes]) -> Check:
    return Check(
        "boot applications: named",
        "the programs that the firmware may start, in order",
        f"{len(boot_applications)} named" if boot_applications else "none: PCR 11 and other PCRs alone pin no guest",
        bool(boot_applications),
        f"name them in the policy's boot_applications: {_BUILD}",
    )


def _log_checks(
    pcrs: Mapping[int, bytes], event_log: bytes | None, boot_applications: Sequence[bytes]
) -> tuple[Check, ...]:
    log = BootLog({}, (), "none was given") if event_log is None else read_boot_log(event_log)
    if log.fault is not None:
        return (Check("event log", "the firmware's log of this boot", log.fault, False, _ANEW),)
    replayed = tuple(
        Check(
            f"event log: PCR {index}",
            pcrs[index],
            log.registers[index],
            hmac.compare_digest(log.registers[index], pcrs[index]),
            _ANEW,
        )
        for index in REPLAYED_PCRS
        if index in log.registers
    )
    started = Check(
        "boot applications",
        tuple(boot_applications) or "none",
        started_applications(log.boot_digests),
        bool(boot_applications) and _boots_exactly(log.boot_digests, boot_applications),
        f"boot the approved image alone, with no other boot entry; {_BUILD}",
    )
    covered = Check(
        "event log: covers the boot",
        f"events in PCR {BOOT_PCR}",
        f"{len(log.boot_digests)} events",
        bool(log.boot_digests),
        _ANEW,
    )
    return (covered, *replayed, started)


def started_applications(digests: Sequence[bytes]) -> tuple[bytes, ...]:
    """The digests in PCR 4 that are neither the separator nor the note before a boot entry."""
    return tuple(digest for digest in digests if digest not in (CALLING, SEPARATOR))


def _boots_exactly(digests: Sequence[bytes], boot_applications: Sequence[bytes]) -> bool:
    """Exactly these programs in this order, one separator, and at most one boot entry.

    The order matters. A host that starts the kernel without its UKI could extend the UKI's hash afterwards.
    """
    return (
        started_applications(digests) == tuple(boot_applications)
        and digests.count(SEPARATOR) == 1
        and digests.count(CALLING) <= 1
    )


def _no_drivers(value: bytes) -> Check:
    return Check(
        f"PCR {DRIVER_PCR}",
        _NO_DRIVERS,
        value,
        hmac.compare_digest(value, _NO_DRIVERS),
        "start the machine without devices that bring drivers of their own (QEMU: romfile= for each), or name the value"
        " in the policy's pcrs after checking them: such a driver runs before the guest",
    )


def _zeros(index: int, value: bytes) -> Check:
    return Check(
        f"PCR {index}",
        bytes(len(value)),
        value,
        not any(value),
        "remove load options, credentials, add-ons and extensions that lie beside the image: they are not approved",
    )


def _value(index: int, pcrs: Mapping[int, bytes], allowed: frozenset[bytes]) -> Check:
    if index not in NAMEABLE_PCRS:
        what = "the firmware's own" if index in FIRMWARE_PCRS else "judged by a rule, resettable, or changing"
        return Check(
            f"PCR {index}",
            f"no rule: it is {what}",
            "a policy that names it",
            False,
            f"leave it out of the policy's pcrs; PCRs that can be named: {', '.join(map(str, sorted(NAMEABLE_PCRS)))}",
        )
    return Check(f"PCR {index}", allowed, pcrs[index], pcrs[index] in allowed, f"boot the approved image; {_BUILD}")
