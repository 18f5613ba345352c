"""A server of DHCP for tests: good answers, and answers with options changed."""

from __future__ import annotations

import struct
from collections.abc import Mapping

HARDWARE = b"\x02\x00\x00\x00\x00\x01"
_HEADER = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
GOOD = {
    1: b"\xff\xff\xff\x00",
    3: b"\x0a\x00\x02\x02",
    6: b"\x0a\x00\x02\x03",
    51: (3600).to_bytes(4, "big"),
    54: b"\x0a\x00\x02\x02",
}
"""10.0.2.15/24 by 10.0.2.2, for an hour."""


def option(code: int, value: bytes) -> bytes:
    """An option of a message."""
    return bytes((code, len(value))) + value


def answer(
    transaction: int,
    kind: int,
    *,
    address: bytes = b"\x0a\x00\x02\x0f",
    hardware: bytes = HARDWARE,
    changes: Mapping[int, bytes | None] | None = None,
) -> bytes:
    """A message of a server. `changes` replace options by their numbers; None leaves one out."""
    head = (2, 1, 6, 0, transaction, 0, 0, bytes(4), address, bytes(4), bytes(4), hardware, b"", b"")
    options = {53: bytes((kind,)), **GOOD, **(changes or {})}
    raw = b"".join(option(code, value) for code, value in options.items() if value is not None)
    return _HEADER.pack(*head, b"\x63\x82\x53\x63") + raw + b"\xff\0\0"


def transaction_of(message: bytes) -> int:
    """The transaction of a client's message."""
    return int.from_bytes(message[4:8], "big")


def kind_of(message: bytes) -> int:
    """The kind of a client's message. It stands first among the options."""
    return message[242]
