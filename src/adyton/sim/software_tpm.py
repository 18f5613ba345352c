"""A software TPM of a simulated machine: a connection to swtpm's Unix socket.

A software TPM proves the protocol and protects nothing: whoever runs it holds its keys.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Final

from adyton.errors import NoDevice, Timeout

if TYPE_CHECKING:
    from pathlib import Path

_HEAD_BYTES: Final = 10
MAX_RESPONSE_BYTES: Final = 4096


class SoftwareTPM:
    """A connection to a software TPM. Use it as the transport of a `TPMDevice`."""

    def __init__(self, path: Path) -> None:
        """Connect. Raises NoDevice where nothing listens."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(10)
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise NoDevice(
                f"no software TPM listens at {path}: {error.strerror or error}",
                check="software TPM",
                expected="a socket of swtpm",
                seen=error.strerror or str(error),
                remedy="start one: swtpm socket --tpm2 --tpmstate dir=DIR --server type=unixio,path=SOCKET"
                " --flags not-need-init,startup-clear",
            ) from error

    def exchange(self, command: bytes, timeout_s: float) -> bytes:
        """Send one command and read its response: its length stands in its head."""
        end = time.monotonic() + timeout_s
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(command)
            raw = self._read(_HEAD_BYTES, end)
            size = int.from_bytes(raw[2:6], "big")
            if not _HEAD_BYTES <= size <= MAX_RESPONSE_BYTES:
                return raw
            return raw + self._read(size - _HEAD_BYTES, end)
        except TimeoutError:
            raise Timeout(
                f"the software TPM did not answer within {timeout_s:.0f} seconds",
                check="answer of the TPM",
                expected=f"a response within {timeout_s:.0f} seconds",
                seen="none",
            ) from None

    def _read(self, size: int, end: float) -> bytes:
        found = b""
        while len(found) < size:
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            chunk = self._socket.recv(size - len(found))
            if not chunk:
                raise OSError("the software TPM closed the connection")
            found += chunk
        return found

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._socket.close()
