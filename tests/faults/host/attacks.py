"""What a host can do to a file in a folder: `other` lies beside it, and `../older` is an older, whole version of it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

NODE = 4096
IN_TIME_S = 5.0
"""Whatever the host does, the program is told within this."""


def forget(path: Path) -> None:
    """Have the kernel forget what it cached of a file's content."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def fails(work: Callable[[], object], number: int = errno.EIO) -> None:
    """The program is told so, in time."""
    began = time.monotonic()
    with pytest.raises(OSError) as raised:
        work()
    assert raised.value.errno == number, raised.value
    assert time.monotonic() - began < IN_TIME_S


def flip(path: Path, at: int) -> None:
    """Change one bit."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def swap(one: Path, other: Path) -> None:
    """Let each have the other's name."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def overwrite(path: Path, content: bytes) -> None:
    """Other content in the same file, for those who have it open too."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def replace(path: Path, make: Callable[[], object]) -> None:
    """Put the file aside, as `../aside`, and something else in its place."""
    path.rename(path.parent.parent / "aside")
    make()


ATTACKS: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: flip(path, path.stat().st_size // NODE * 95 // 100 * NODE + 5),
    "flipped-node-0": lambda path: flip(path, 100),
    "cut": lambda path: os.truncate(path, path.stat().st_size // NODE * 95 // 100 * NODE),
    "emptied": lambda path: os.truncate(path, 0),
    "grown": lambda path: overwrite(path, path.read_bytes() + b"more"),
    "swapped": lambda path: swap(path, path.with_name("other")),
    "older": lambda path: overwrite(path, (path.parent.parent / "older").read_bytes()),
    "older-replaced": lambda path: (path.parent.parent / "older").rename(path),
    "link": lambda path: replace(path, lambda: path.symlink_to("../aside")),
    "link-to-other": lambda path: replace(path, lambda: path.symlink_to("other")),
    "fifo": lambda path: replace(path, lambda: os.mkfifo(path)),
    "folder": lambda path: replace(path, path.mkdir),
    "deleted": Path.unlink,
}
