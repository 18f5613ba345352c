"""The messages that come before any byte of the program: a challenge, evidence for this connection, and the client's.

::

    client -> ingress   u32 length, then fields of the challenge
    ingress -> client   u32 length, then fields of the answer
    client -> ingress   u32 length, then fields of the client's own evidence       where the challenge offered it
    ingress -> client   u32 length, then fields of the judgement                   where the challenge offered it

    fields = u32 length, bytes, u32 length, bytes, …        all lengths big-endian

Challenge: protocol, nonce (32 random bytes), and `client` where the client will show evidence of its own. Answer with
evidence: protocol, `evidence`, the ingress's name, SHA-256 of the manifest, CPU evidence, event log, each device's
evidence. Answer without: protocol, `refused`, a reason. Evidence of the client: protocol, `client`, CPU evidence, event
log, collateral for it. Judgement: protocol, `accepted`; or protocol, `refused`, a reason.
Both sides refuse a message with other fields, and a longer one before they read it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from adyton.attest.bundle import DevicePart
from adyton.attest.report_data import framed
from adyton.errors import MalformedQuote, UsageError

PROTOCOL: Final = b"adyton-connect/1"
ALPN: Final = PROTOCOL
NONCE_BYTES: Final = 32
HASH_BYTES: Final = 32
LENGTH_BYTES: Final = 4

MAX_CHALLENGE_BYTES: Final = 256
MAX_CPU_BYTES: Final = 48 << 10
MAX_EVENT_LOG_BYTES: Final = 256 << 10
MAX_DEVICE_BYTES: Final = (32 << 10) + 64
MAX_DEVICES: Final = 16
MAX_REASON_BYTES: Final = 1 << 10
MAX_ANSWER_BYTES: Final = 1 << 20
MAX_COLLATERAL_BYTES: Final = 1 << 20
MAX_CLIENT_BYTES: Final = MAX_COLLATERAL_BYTES + MAX_EVENT_LOG_BYTES + MAX_CPU_BYTES + (1 << 10)
MAX_JUDGEMENT_BYTES: Final = MAX_REASON_BYTES + (1 << 8)

BUSY: Final = "too many connections wait for evidence: try again"
"""The reason of a refusal after which a client tries again by itself, as long as it has time."""

_NAME: Final = re.compile(rb"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_EVIDENCE: Final = b"evidence"
_REFUSED: Final = b"refused"
_CLIENT: Final = b"client"
_ACCEPTED: Final = b"accepted"
ACCEPTED: Final = framed(PROTOCOL, _ACCEPTED)
"""The judgement of an ingress that accepts the client's evidence."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a client asks the evidence to be made for: 32 random bytes. `proves`: it will show evidence, too."""

    nonce: bytes
    proves: bool = False

    def to_bytes(self) -> bytes:
        """The fields of the message, without the length before them."""
        return framed(PROTOCOL, self.nonce, *((_CLIENT,) if self.proves else ()))


@dataclass(frozen=True, slots=True)
class Answer:
    """The evidence of an ingress for one connection. Nothing of it is believed before it is verified.

    `manifest_sha256` has 32 bytes. `devices` holds one entry for each device, as `parse_device` reads it.
    """

    name: str
    manifest_sha256: bytes
    cpu: bytes
    event_log: bytes = b""
    devices: tuple[bytes, ...] = ()

    def to_bytes(self) -> bytes:
        """The fields of the message, without the length before them."""
        parts = (self.name.encode("ascii"), self.manifest_sha256, self.cpu, self.event_log, *self.devices)
        return framed(PROTOCOL, _EVIDENCE, *parts)


@dataclass(frozen=True, slots=True)
class ClientEvidence:
    """The evidence of a client for one connection, with what it is judged against. Nothing of it is believed yet."""

    cpu: bytes
    event_log: bytes = b""
    collateral: bytes = b"{}"
    """A JSON document as `Collateral.to_json` makes it. Its maker has signed what is in it."""

    def to_bytes(self) -> bytes:
        """The fields of the message, without the length before them."""
        return framed(PROTOCOL, _CLIENT, self.cpu, self.event_log, self.collateral)


@dataclass(frozen=True, slots=True)
class Refused:
    """The ingress has no evidence for this connection, or does not accept the client's.

    The reason is the host's word, to be shown and not believed.
    """

    reason: str

    def to_bytes(self) -> bytes:
        """The fields of the message, without the length before them."""
        return framed(PROTOCOL, _REFUSED, self.reason.encode()[:MAX_REASON_BYTES])


def is_ingress_name(text: str) -> bool:
    """Whether a text can be the name of an ingress: 1 to 63 lower-case letters, digits and inner hyphens."""
    return _NAME.fullmatch(text.encode("utf-8", "surrogateescape")) is not None


def parse_challenge(raw: bytes) -> Challenge:
    """Read a challenge. Raises MalformedQuote."""
    fields = _fields(raw, most=3, limit=MAX_CHALLENGE_BYTES)
    _require(len(fields) >= 2, "fields of the challenge", "2 or 3", str(len(fields)))
    _require(fields[0] == PROTOCOL, "protocol", PROTOCOL.decode(), _shown(fields[0]))
    _require(len(fields[1]) == NONCE_BYTES, "nonce", f"{NONCE_BYTES} bytes", f"{len(fields[1])} bytes")
    _require(fields[2:] in ([], [_CLIENT]), "last field of the challenge", "client", _shown(fields[-1]))
    return Challenge(fields[1], proves=len(fields) == 3)


def parse_client_evidence(raw: bytes) -> ClientEvidence:
    """Read a client's evidence. Raises MalformedQuote."""
    fields = _fields(raw, most=5, limit=MAX_CLIENT_BYTES)
    _require(len(fields) == 5, "fields of the client's evidence", "5", str(len(fields)))
    _require(fields[0] == PROTOCOL, "protocol", PROTOCOL.decode(), _shown(fields[0]))
    _require(fields[1] == _CLIENT, "kind of the message", "client", _shown(fields[1]))
    sizes = (
        ("CPU evidence", fields[2], 1, MAX_CPU_BYTES),
        ("event log", fields[3], 0, MAX_EVENT_LOG_BYTES),
        ("collateral", fields[4], 2, MAX_COLLATERAL_BYTES),
    )
    for what, value, least, most in sizes:
        _require(least <= len(value) <= most, what, f"{least} to {most} bytes", f"{len(value)} bytes")
    return ClientEvidence(*fields[2:])


def parse_judgement(raw: bytes) -> Refused | None:
    """Read a judgement. None where the client was accepted. Raises MalformedQuote."""
    fields = _fields(raw, most=3, limit=MAX_JUDGEMENT_BYTES)
    _require(len(fields) >= 2, "fields of the judgement", "2 or 3", str(len(fields)))
    _require(fields[0] == PROTOCOL, "protocol", PROTOCOL.decode(), _shown(fields[0]))
    if fields[1:] == [_ACCEPTED]:
        return None
    _require(fields[1] == _REFUSED and len(fields) == 3, "judgement", "accepted, or refused and why", _shown(fields[1]))
    _require(len(fields[2]) <= MAX_REASON_BYTES, "reason", f"at most {MAX_REASON_BYTES} bytes", "more")
    return Refused(fields[2].decode("utf-8", "replace"))


def parse_answer(raw: bytes) -> Answer | Refused:
    """Read an answer. Raises MalformedQuote."""
    fields = _fields(raw, most=6 + MAX_DEVICES, limit=MAX_ANSWER_BYTES)
    _require(len(fields) >= 3, "fields of the answer", "at least 3", str(len(fields)))
    _require(fields[0] == PROTOCOL, "protocol", PROTOCOL.decode(), _shown(fields[0]))
    if fields[1] == _REFUSED:
        _require(len(fields) == 3, "fields of a refusal", "3", str(len(fields)))
        _require(len(fields[2]) <= MAX_REASON_BYTES, "reason", f"at most {MAX_REASON_BYTES} bytes", "more")
        return Refused(fields[2].decode("utf-8", "replace"))
    _require(fields[1] == _EVIDENCE, "kind of the answer", "evidence or refused", _shown(fields[1]))
    _require(len(fields) >= 6, "fields of the evidence", "at least 6", str(len(fields)))
    name, manifest_sha256, cpu, event_log, *devices = fields[2:]
    _require(_NAME.fullmatch(name) is not None, "name of the ingress", "a-z, 0-9 and inner hyphens", _shown(name))
    sizes = (
        ("SHA-256 of the manifest", manifest_sha256, HASH_BYTES, HASH_BYTES),
        ("CPU evidence", cpu, 1, MAX_CPU_BYTES),
        ("event log", event_log, 0, MAX_EVENT_LOG_BYTES),
        *(("device evidence", device, 1, MAX_DEVICE_BYTES) for device in devices),
    )
    for what, value, least, most in sizes:
        _require(least <= len(value) <= most, what, f"{least} to {most} bytes", f"{len(value)} bytes")
    return Answer(name.decode("ascii"), manifest_sha256, cpu, event_log, tuple(devices))


def parse_device(raw: bytes) -> DevicePart:
    """Read one device's evidence of an answer. Raises MalformedQuote."""
    fields = _fields(raw, most=3, limit=MAX_DEVICE_BYTES)
    _require(len(fields) == 3, "fields of a device's evidence", "3", str(len(fields)))
    arch, certificate, evidence = fields
    try:
        return DevicePart(arch=arch.decode("latin-1"), certificate=certificate, evidence=evidence)
    except UsageError as error:
        raise MalformedQuote(error.message, check=error.check, expected=error.expected, seen=error.seen) from None


def message(body: bytes) -> bytes:
    """The body with its length before it, as it goes over the wire."""
    return struct.pack(">I", len(body)) + body


def body_length(head: bytes, limit: int) -> int:
    """The length of a body from the 4 bytes before it. Raises MalformedQuote where it is over the limit."""
    found = struct.unpack(">I", head)[0]
    _require(0 < found <= limit, "length of the message", f"1 to {limit} bytes", f"{found} bytes")
    return int(found)


def _fields(raw: bytes, *, most: int, limit: int) -> list[bytes]:
    _require(len(raw) <= limit, "length of the message", f"at most {limit} bytes", f"{len(raw)} bytes")
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        _require(len(found) < most, "fields of the message", f"at most {most}", "more")
        end = at + LENGTH_BYTES
        _require(end <= len(raw), "length of a field", f"{LENGTH_BYTES} bytes", f"{len(raw) - at} bytes")
        size = int.from_bytes(raw[at:end], "big")
        _require(size <= len(raw) - end, "field", f"{size} bytes", f"{len(raw) - end} bytes")
        found.append(raw[end : end + size])
        at = end + size
    return found


def _require(ok: bool, check: str, expected: str, seen: str) -> None:
    if not ok:
        raise MalformedQuote(
            f"a message of {PROTOCOL.decode()} is malformed: {check}: expected {expected}, seen {seen}",
            check=check,
            expected=expected,
            seen=seen,
            remedy="connect to the port of an ingress, with an Adyton that speaks the same protocol",
        )


def _shown(raw: bytes) -> str:
    return ascii(raw[:40])[2:-1]
