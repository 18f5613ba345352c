"""The encrypted log: the program's standard output and error, as a protected file that its owner decrypts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from adyton.errors import Error, StorageFailed
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.values import Key128

FLUSH_BYTES: Final = 1 << 20
FLUSH_S: Final = 1.0


class EncryptedLog:
    """A log that is committed every second or megabyte, so that a kill loses no more than that."""

    def __init__(self, source: str, key: Key128) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = -1
        try:
            fd = os.open(source, flags, 0o600)
            os.ftruncate(fd, 0)  # refuses a pipe or a device
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise StorageFailed(
                f"the log {source} cannot be written: {error.strerror}",
                check="encrypted log",
                expected="a file that can be written, relative to where `adyton run` was started",
                seen=error.strerror,
                remedy="make its folder, or name another in adyton.log.uri",
            ) from error
        backing = OSFile(fd, path=Path(source))
        self._file = ProtectedFile.create(backing, key, path=source, cache_bytes=8 << 20, power_safe=False)
        self._size = 0
        self._pending_bytes = 0
        self._flushed_at = time.monotonic()
        self.failure: Error | None = None

    def append(self, data: bytes) -> None:
        """Add to the log. Once the host fails to take it, the failure is kept and the rest is dropped."""
        if self.failure is not None:
            return
        try:
            self._file.write_at(self._size, data)
            self._size += len(data)
            self._pending_bytes += len(data)
            if self._pending_bytes >= FLUSH_BYTES:
                self.flush()
        except Error as error:
            self.failure = error

    @property
    def due_s(self) -> float | None:
        """Seconds until the next commit is due. None where there is nothing to commit."""
        if not self._pending_bytes or self.failure is not None:
            return None
        return max(0.0, self._flushed_at + FLUSH_S - time.monotonic())

    def flush(self) -> None:
        """Commit what was added."""
        if self.failure is None:
            try:
                self._file.flush()
            except Error as error:
                self.failure = error
        self._pending_bytes = 0
        self._flushed_at = time.monotonic()

    @property
    def root(self) -> bytes:
        """The root of the protected file, as of its last commit."""
        return self._file.root

    def close(self) -> None:
        """Commit and close."""
        try:
            self._file.close()
        except Error as error:
            self.failure = self.failure or error
