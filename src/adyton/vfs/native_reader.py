"""Reads of a served file that need no Python, if the C part was built. Otherwise every read goes through the adapter.

The C part (`_reads`) answers FUSE's reads of a protected file while nothing of it waits to be flushed. The file's
`NativeReader` (`Shortcut` in C) says when: `ProtectedFile` allows and forbids it. For a program that reads in order,
the C part also asks a thread to have the kernel fetch the next part of the host's file. So storage and decryption do
not wait for each other.
"""

from __future__ import annotations

import os
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from adyton.vfs._reads import Shortcut as NativeReader
    from adyton.vfs.storage_watchdog import StorageWatchdog

try:
    from adyton.vfs import _reads
except ImportError:
    _reads = None  # type: ignore[assignment]

NATIVE: Final = _reads is not None
"""Whether the C part was built."""

_ASK: Final = struct.Struct("=qqq")


def open_native_reader(fd: int) -> NativeReader | None:
    """A native reader of the host file `fd`, which may not read yet. None where the C part was not built."""
    return _reads.Shortcut(fd) if NATIVE else None


def native_read_callback(
    native_readers: dict[int, NativeReader], python: int, handle_at: int, watchdog: StorageWatchdog
) -> int:
    """The address of a read callback for FUSE. It tries a file handle's native reader before the callback `python`.

    `handle_at` is the place of the file handle in `struct fuse_file_info`. There is one mount in a process.
    """
    return _reads.install(native_readers, python, handle_at, watchdog.clock, _start_thread()) if NATIVE else python


def _start_thread() -> int:
    """Start the thread that has the kernel fetch what will be read. Returns the pipe that takes what to fetch."""
    asked, ask = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(ask, False)

    def work() -> None:
        while message := os.read(asked, _ASK.size):
            fd, offset, size = _ASK.unpack(message)
            with suppress(OSError):  # the file was closed meanwhile: nothing to fetch
                os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)

    threading.Thread(target=work, daemon=True, name="adyton-ahead").start()
    return ask
