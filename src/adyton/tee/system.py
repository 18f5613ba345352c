"""The system calls that evidence on real machines needs, behind one small interface.

Sources take a `System`, so that tests can put a double of the kernel's own behaviour in its place, call by call.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Final, Protocol

from adyton.errors import StorageFailed

READ: Final = os.O_RDONLY | os.O_CLOEXEC
WRITE: Final = os.O_WRONLY | os.O_CLOEXEC
READ_WRITE: Final = os.O_RDWR | os.O_CLOEXEC
TPM_DEVICE: Final = "/dev/tpmrm0"
"""The kernel's resource manager for the first TPM."""
TPM_EVENT_LOG: Final = "/sys/kernel/security/tpm0/binary_bios_measurements"
"""The firmware's log of what it measured into that TPM."""
_CHUNK_BYTES: Final = 4096


class System(Protocol):
    """System calls. Each raises OSError as the kernel's does."""

    def mkdir(self, path: str) -> None:
        """mkdir(2)."""
        ...

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        ...

    def open(self, path: str, flags: int) -> int:
        """open(2)."""
        ...

    def read(self, descriptor: int, size: int) -> bytes:
        """read(2): possibly fewer bytes, none at the end."""
        ...

    def write(self, descriptor: int, data: bytes) -> int:
        """write(2): how many bytes were taken."""
        ...

    def ioctl(self, descriptor: int, request: int, buffer: bytearray) -> int:
        """ioctl(2) with a buffer that the driver changes."""
        ...

    def close(self, descriptor: int) -> None:
        """close(2)."""
        ...

    def monotonic(self) -> float:
        """A clock that only goes forward, in seconds."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class Kernel:
    """The real ones."""

    def mkdir(self, path: str) -> None:
        """mkdir(2)."""
        os.mkdir(path, 0o700)  # noqa: PTH102 - system calls as they are

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        os.rmdir(path)  # noqa: PTH106 - system calls as they are

    def open(self, path: str, flags: int) -> int:
        """open(2)."""
        return os.open(path, flags)

    def read(self, descriptor: int, size: int) -> bytes:
        """read(2)."""
        return os.read(descriptor, size)

    def write(self, descriptor: int, data: bytes) -> int:
        """write(2)."""
        return os.write(descriptor, data)

    def ioctl(self, descriptor: int, request: int, buffer: bytearray) -> int:
        """ioctl(2)."""
        result: int = fcntl.ioctl(descriptor, request, buffer, True)
        return result

    def close(self, descriptor: int) -> None:
        """close(2)."""
        os.close(descriptor)

    def monotonic(self) -> float:
        """CLOCK_MONOTONIC."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


KERNEL: Final = Kernel()


def read_all(system: System, path: str, limit: int) -> bytes:
    """Everything that a file holds, opened once. Raises OSError, and StorageFailed above `limit` bytes."""
    descriptor = system.open(path, READ)
    try:
        found = bytearray()
        while chunk := system.read(descriptor, _CHUNK_BYTES):
            found += chunk
            if len(found) > limit:
                raise StorageFailed(
                    f"{path} gives more than {limit} bytes",
                    check=f"size of {path}",
                    expected=f"at most {limit} bytes",
                    seen="more",
                )
        return bytes(found)
    finally:
        system.close(descriptor)


def write_once(system: System, path: str, data: bytes) -> None:
    """Write in one call. Raises OSError, and StorageFailed where fewer bytes were taken.

    What was not taken is never written after: pseudo-files take each write for a whole value.
    """
    descriptor = system.open(path, WRITE)
    try:
        written = system.write(descriptor, data)
    finally:
        system.close(descriptor)
    if written != len(data):
        raise StorageFailed(
            f"{path} took {written} of {len(data)} bytes",
            check=f"whole write to {path}",
            expected=f"{len(data)} bytes",
            seen=f"{written} bytes",
        )
