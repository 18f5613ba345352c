"""Reads of a served file that need no Python, where the C part was built; else every read goes through the adapter.

The C part (`_reads`) answers FUSE's reads of a protected file whose committed state is what the program must see: a
`Shortcut` says so, `ProtectedFile` opens and closes it. For a program that reads in order it also asks the thread of
`Ahead` to have the kernel fetch what comes next of the host's file, so that storage and decryption do not wait for
each other.
"""

from __future__ import annotations

import os
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from adyton.vfs._reads import Shortcut
    from adyton.vfs.storage_watchdog import Pulse

try:
    from adyton.vfs import _reads
except ImportError:
    _reads = None  # type: ignore[assignment]

NATIVE: Final = _reads is not None
"""Whether the C part was built."""

_ASK: Final = struct.Struct("=qqq")


def shortcut_to(fd: int) -> Shortcut | None:
    """A closed shortcut to the host file `fd`; None without the C part."""
    return _reads.Shortcut(fd) if NATIVE else None


def quick_reads(shortcuts: dict[int, Shortcut], python: int, handle_at: int, pulse: Pulse) -> int:
    """The address of a read callback for FUSE that tries the shortcut of a file handle before the callback `python`.

    `handle_at` is the place of the file handle in `struct fuse_file_info`. There is one mount in a process.
    """
    return _reads.install(shortcuts, python, handle_at, pulse.clock, _start_thread()) if NATIVE else python


def _start_thread() -> int:
    """Start the thread that has the kernel fetch what will be read; returns the pipe that takes what to fetch."""
    asked, ask = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(ask, False)

    def work() -> None:
        while message := os.read(asked, _ASK.size):
            fd, offset, size = _ASK.unpack(message)
            with suppress(OSError):  # the file was closed meanwhile: nothing to fetch
                os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)

    threading.Thread(target=work, daemon=True, name="adyton-ahead").start()
    return ask
