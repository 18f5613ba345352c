"""The program's own network: a namespace with nothing but loopback, made before the program starts.

A socket belongs to the network in which it was made. So the process that proves connections lives in the program's
network and listens on the host's. The process that reaches servers outside does the opposite. The program's user
namespace is a child of the one that owns this network, so the program has no right over it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from adyton.errors import SandboxFailed
from adyton.vfs import syscalls

_CLONE_NEWNET: Final = 0x40000000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_IFREQ: Final = struct.Struct("16sH22x")
_libc: Final = ctypes.CDLL(None, use_errno=True)
_Made = TypeVar("_Made")


def make() -> int:
    """A new network with its loopback up, as a descriptor. This process stays where it is. Raises SandboxFailed."""
    return _in_a_thread(_enter_new)


def within(network: int, work: Callable[[], _Made]) -> _Made:
    """What `work` makes in this network, such as sockets. This process stays where it is. Raises SandboxFailed."""

    def there() -> _Made:
        enter(network)
        return work()

    return _in_a_thread(there)


def _in_a_thread(work: Callable[[], _Made]) -> _Made:
    """Run it in a thread of its own, which ends then: only that thread changes its network."""
    with ThreadPoolExecutor(1, "adyton-network") as thread:
        return thread.submit(work).result()


def _enter_new() -> int:
    try:
        syscalls.unshare(_CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            found = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
            flags = _IFREQ.unpack(found)[1]
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxFailed(
            f"no network could be made for the program: {error.strerror}",
            check="network namespace",
            expected="success",
            seen=errno.errorcode.get(error.errno or 0, str(error)),
            remedy="allow user namespaces (sysctl user.max_net_namespaces > 0)",
        ) from error


def enter(network: int) -> None:
    """Move this thread into another network, and what it starts from now on. There may be no way back.

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
