"""Tasks that do what hostile input could make a parser do; run by `adyton.confined_process` in a process of its own."""

from __future__ import annotations

import json
import os
import sys
import time

from adyton import confined_process
from adyton.errors import OutOfOrder


def spin(_content: bytes) -> bytes:
    """Use a processor for ever."""
    while True:
        pass


def sleep(_content: bytes) -> bytes:
    """Wait for ever."""
    time.sleep(100_000)
    return b""


def hog(_content: bytes) -> bytes:
    """Take all memory."""
    held = []
    while True:
        held.append(bytearray(1 << 26))


def flood(_content: bytes) -> bytes:
    """Answer without end."""
    while True:
        sys.stdout.buffer.write(b"+" * (1 << 16))


def refuse(content: bytes) -> bytes:
    """Find fault with the content, at length."""
    raise OutOfOrder(content.decode() + "x" * 10_000)


def look(_content: bytes) -> bytes:
    """What a process that was taken over would find: environment, open descriptors, whether it may write a file."""
    try:
        with open("/tmp/taken-over", "wb") as file:
            file.write(b"x")
            file.flush()
        wrote = True
    except OSError:
        wrote = False
    targets = []
    for name in os.listdir("/proc/self/fd"):
        try:
            targets.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return json.dumps({"environment": dict(os.environ), "open": targets, "wrote": wrote}).encode()


if __name__ == "__main__":
    confined_process.child(
        {"spin": spin, "sleep": sleep, "hog": hog, "flood": flood, "refuse": refuse, "look": look}, sys.argv[1:]
    )
