"""Event logs of a measured boot: TCG2 crypto-agile logs of a TPM, and CCEL of a TDX guest. Parse, and replay.

::

    head    u32 index | u32 type = 3 (EV_NO_ACTION) | SHA-1, 20 zero bytes | u32 N | N bytes: TCG_EfiSpecIDEvent
    event   u32 index | u32 type | u32 count | count x (u16 algorithm, digest) | u32 N | N bytes
    CCEL    ends where an event's index is 0xffffffff, and everything behind is 0xff

Integers are little-endian. `index` is a PCR (0 to 23), or in CCEL a measurement register (0 MRTD, 1 to 4 RTMR 0 to 3).
Index, type and data of an event are *not* measured: only its digests are. So nothing may be concluded from a type.

Sources: TCG PC Client Platform Firmware Profile 1.05, section 10; UEFI 2.10, section 38.4 (Confidential Computing).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from adyton.errors import MalformedQuote

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_LOG_BYTES: Final = 256 << 10
MAX_EVENTS: Final = 4096
MAX_EVENT_BYTES: Final = 64 << 10
MAX_ALGORITHMS: Final = 5

SHA1: Final = 0x0004
SHA256: Final = 0x000B
SHA384: Final = 0x000C
SHA512: Final = 0x000D
SM3_256: Final = 0x0012
DIGEST_BYTES: Final = {SHA1: 20, SHA256: 32, SHA384: 48, SHA512: 64, SM3_256: 32}
REPLAYED: Final = {SHA1: "sha1", SHA256: "sha256", SHA384: "sha384", SHA512: "sha512"}
"""Banks that can be replayed, and the names of their hashes."""

EV_NO_ACTION: Final = 0x03
"""Not measured: information for the reader of the log."""

_HEAD: Final = struct.Struct("<II20sI")
_SPEC_ID: Final = b"Spec ID Event03\0"
_STARTUP: Final = b"StartupLocality\0"
_END: Final = 0xFFFFFFFF
_LAST_PCR: Final = 23
_LAST_MR: Final = 4


def _refuse(what: str, *, expected: object, seen: object) -> NoReturn:
    raise MalformedQuote(
        f"the event log does not parse: {what}",
        check=f"event log: {what}",
        expected=expected,
        seen=seen,
        remedy="read the log again: /sys/kernel/security/tpm0/binary_bios_measurements, or the CCEL table (TDX)",
    )


@dataclass(frozen=True, slots=True)
class Event:
    """One event. Index, type and data are what the log says, and are never measured themselves."""

    index: int
    kind: int
    digests: tuple[tuple[int, bytes], ...]
    """Algorithm and digest, in the order of the log."""
    data: bytes

    def digest(self, algorithm: int) -> bytes:
        """The digest for this bank. The parser has seen to it that there is one."""
        return next(value for name, value in self.digests if name == algorithm)


@dataclass(frozen=True, slots=True)
class EventLog:
    """A log of one boot, unverified: it means something only where it replays to quoted registers."""

    algorithms: tuple[int, ...]
    events: tuple[Event, ...]
    confidential: bool
    """Whether it is a CCEL: its indices are registers of TDX, not PCRs."""

    def extended(self, index: int, algorithm: int) -> tuple[bytes, ...]:
        """The digests that were extended into one register, in order."""
        return tuple(
            event.digest(algorithm) for event in self.events if event.index == index and event.kind != EV_NO_ACTION
        )

    def replay(self, algorithm: int) -> dict[int, bytes]:
        """Register -> value, for each register that the log extends in this bank.

        In CCEL register n + 1 is RTMR n. PCR 0 begins at the locality that a StartupLocality event names, else at
        zeros. Raises MalformedQuote where the log has no such bank.
        """
        if algorithm not in self.algorithms or algorithm not in REPLAYED:
            names = [REPLAYED.get(item, f"{item:#06x}") for item in self.algorithms]
            _refuse("banks", expected=REPLAYED.get(algorithm, f"{algorithm:#06x}"), seen=", ".join(names))
        hashed, size = getattr(hashlib, REPLAYED[algorithm]), DIGEST_BYTES[algorithm]
        found: dict[int, bytes] = {}
        for event in self.events:
            if event.kind == EV_NO_ACTION:
                locality = _startup_locality(event)
                if locality is not None:
                    if 0 in found:
                        _refuse("startup locality", expected="once, before PCR 0 is extended", seen="later, or again")
                    found[0] = bytes(size - 1) + bytes((locality,))
                continue
            value = found.get(event.index, bytes(size))
            found[event.index] = hashed(value + event.digest(algorithm)).digest()
        return found


def _startup_locality(event: Event) -> int | None:
    if event.index != 0 or not event.data.startswith(_STARTUP) or len(event.data) != len(_STARTUP) + 1:
        return None
    return event.data[-1]


def replay_extends(digests: Iterable[bytes], algorithm: int = SHA256) -> bytes:
    """A register after these digests were extended into zeros, in order."""
    name = REPLAYED[algorithm]
    value = bytes(DIGEST_BYTES[algorithm])
    for digest in digests:
        value = hashlib.new(name, value + digest).digest()
    return value


def parse_event_log(raw: bytes) -> EventLog:
    """Parse a whole event log in the crypto-agile form. Raises MalformedQuote.

    Each event has a digest for each bank that the head names, and for no other. A log in the older form, with SHA-1
    only, is refused.
    """
    if len(raw) > MAX_LOG_BYTES:
        _refuse("size", expected=f"at most {MAX_LOG_BYTES} bytes", seen=f"{len(raw)} bytes")
    algorithms, at, confidential = _head(raw)
    last = _LAST_MR if confidential else _LAST_PCR
    events: list[Event] = []
    while at < len(raw):
        if confidential and raw[at : at + 4] == b"\xff\xff\xff\xff":
            if raw.count(b"\xff", at) != len(raw) - at:
                _refuse("end", expected="0xff up to the end", seen="other bytes")
            break
        if len(events) >= MAX_EVENTS:
            _refuse("number of events", expected=f"at most {MAX_EVENTS}", seen="more")
        event, at = _event(raw, at, algorithms, last)
        events.append(event)
    return EventLog(algorithms, tuple(events), confidential)


def _numbers(raw: bytes, at: int, count: int) -> tuple[tuple[int, ...], int]:
    end = at + 4 * count
    if end > len(raw):
        _refuse("length", expected=f"{4 * count} bytes at {at}", seen=f"{len(raw) - at} bytes")
    return struct.unpack_from(f"<{count}I", raw, at), end


def _data(raw: bytes, at: int) -> tuple[bytes, int]:
    (size,), at = _numbers(raw, at, 1)
    if size > MAX_EVENT_BYTES:
        _refuse("size of an event", expected=f"at most {MAX_EVENT_BYTES} bytes", seen=f"{size} bytes")
    if at + size > len(raw):
        _refuse("length", expected=f"{size} bytes of data at {at}", seen=f"{len(raw) - at} bytes")
    return raw[at : at + size], at + size


def _head(raw: bytes) -> tuple[tuple[int, ...], int, bool]:
    """The first event, in the older form: which banks the log has, and whether it is a CCEL."""
    if len(raw) < _HEAD.size:
        _refuse("head", expected=f"{_HEAD.size} bytes", seen=f"{len(raw)} bytes")
    index, kind, digest, _ = _HEAD.unpack_from(raw)
    data, at = _data(raw, _HEAD.size - 4)
    if index not in (0, 1) or kind != EV_NO_ACTION or any(digest) or not data.startswith(_SPEC_ID):
        _refuse(
            "head",
            expected="an event 'Spec ID Event03' with a digest of zeros (a log with SHA-1 only is not accepted)",
            seen=f"index {index}, type {kind:#x}, data {data[:16].hex()}",
        )
    return _banks(data), at, index == 1


def _banks(data: bytes) -> tuple[int, ...]:
    """TCG_EfiSpecIDEvent: signature 16, platform class u32, version 4 bytes, count u32, banks, vendor's info."""
    if len(data) < 28:
        _refuse("head", expected="28 bytes and more", seen=f"{len(data)} bytes")
    (count,) = struct.unpack_from("<I", data, 24)
    end = 28 + 4 * count
    if not 1 <= count <= MAX_ALGORITHMS or len(data) < end + 1 or len(data) != end + 1 + data[end]:
        _refuse("banks", expected=f"1 to {MAX_ALGORITHMS} banks, which fill the head", seen=f"{count} banks")
    found = tuple(struct.unpack_from("<HH", data, 28 + 4 * place) for place in range(count))
    for algorithm, size in found:
        if DIGEST_BYTES.get(algorithm) != size:
            _refuse("banks", expected="a hash that is known, with its size", seen=f"{algorithm:#06x}, {size} bytes")
    names = tuple(algorithm for algorithm, _ in found)
    if len(set(names)) != len(names):
        _refuse("banks", expected="each hash once", seen=", ".join(f"{name:#06x}" for name in names))
    return names


def _event(raw: bytes, at: int, algorithms: tuple[int, ...], last: int) -> tuple[Event, int]:
    (index, kind, count), at = _numbers(raw, at, 3)
    if index > last:
        _refuse("register of an event", expected=f"0 to {last}", seen=index)
    if count != len(algorithms):
        _refuse("digests of an event", expected=f"{len(algorithms)}, one for each bank", seen=count)
    digests: list[tuple[int, bytes]] = []
    for _ in range(count):
        algorithm = int.from_bytes(raw[at : at + 2], "little")
        size = DIGEST_BYTES.get(algorithm, 0)
        digest = raw[at + 2 : at + 2 + size]
        if algorithm not in algorithms or len(digest) != size or any(name == algorithm for name, _ in digests):
            _refuse("digests of an event", expected="one for each bank of the head", seen=f"{algorithm:#06x}")
        digests.append((algorithm, digest))
        at += 2 + size
    data, at = _data(raw, at)
    return Event(index, kind, tuple(digests), data), at
