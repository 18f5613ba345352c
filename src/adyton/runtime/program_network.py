"""The program's own network: a namespace with nothing but loopback, made before the program starts.

The process that proves connections for the program lives in it, with its listening sockets still on the host's
network: a socket belongs to the namespace in which it was made. The program's user namespace is a child of the one
that owns this network, so the program has no right over it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import Final

from adyton.errors import SandboxFailed
from adyton.vfs import syscalls

_CLONE_NEWNET: Final = 0x40000000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_IFREQ: Final = struct.Struct("16sH22x")
_libc: Final = ctypes.CDLL(None, use_errno=True)


def enter_new() -> None:
    """Move this thread into a new network, with its loopback up, and what it starts. Raises SandboxFailed."""
    try:
        syscalls.unshare(_CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            found = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
            flags = _IFREQ.unpack(found)[1]
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))
    except OSError as error:
        raise SandboxFailed(
            f"no network could be made for the program: {error.strerror}",
            check="network namespace",
            expected="success",
            seen=errno.errorcode.get(error.errno or 0, str(error)),
            remedy="allow user namespaces (sysctl user.max_net_namespaces > 0)",
        ) from error


def own() -> int:
    """A descriptor of the network that this process is in."""
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(network: int) -> None:
    """Move this process into another network, and what it starts from now on. There may be no way back.

    Raises SandboxFailed.
    """
    if _libc.setns(network, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise SandboxFailed(
            f"the program's network cannot be entered: {os.strerror(number)}",
            check="network namespace",
            expected="success",
            seen=errno.errorcode.get(number, str(number)),
        )
