"""System calls of a guest's first program: mounts, modules, the network's address, power. For Linux on x86-64."""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path
from typing import Final, NoReturn

from adyton.errors import RunError
from adyton.image.guest_settings import Network

NO_SUID, NO_DEVICES, NO_EXECUTION = 2, 4, 8
"""Flags of mount(2)."""

_FINIT_MODULE: Final = 313
_POWER_OFF: Final = 0x4321FEDC
_EXISTS: Final = 17
_NO_DEVICE: Final = 19
_SET_FLAGS, _SET_ADDRESS, _SET_MASK, _ADD_ROUTE = 0x8914, 0x8916, 0x891C, 0x890B
_ROUTE_BYTES: Final = 120
_UP, _RUNNING = 0x1, 0x40
_ROUTE_UP, _ROUTE_GATEWAY = 0x1, 0x2


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def mount(kind: str, target: str, flags: int, options: str = "") -> None:
    """Mount a file system of the kernel's own. Raises OSError."""
    if _libc().mount(kind.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind}: {os.strerror(number)}", target)


def load_module(path: Path) -> bool:
    """Load a kernel module. False where it is loaded already, or where the machine has nothing for it.

    Raises OSError otherwise: the kernel refuses a module without its signature.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc().syscall(_FINIT_MODULE, descriptor, b"", 0) == 0:
            return True
    finally:
        os.close(descriptor)
    number = ctypes.get_errno()
    if number in (_EXISTS, _NO_DEVICE):
        return False
    raise OSError(number, os.strerror(number), str(path))


def set_address(interface: str, network: Network) -> None:
    """Bring an interface up with this address, and send what is elsewhere to the gateway. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        for call, address in ((_SET_ADDRESS, network.address.ip), (_SET_MASK, network.address.netmask)):
            fcntl.ioctl(control, call, _named(interface) + _address(address))
        _bring_up(control, interface)
        if network.gateway is not None:
            anywhere = _address(ipaddress.IPv4Address(0))
            route = struct.pack(
                "<Q16s16s16sH", 0, anywhere, _address(network.gateway), anywhere, _ROUTE_UP | _ROUTE_GATEWAY
            )
            fcntl.ioctl(control, _ADD_ROUTE, route.ljust(_ROUTE_BYTES, b"\0"))


def bring_loopback_up() -> None:
    """The guest's own address for itself. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        _bring_up(control, "lo")


def interfaces(folder: Path = Path("/sys/class/net")) -> list[str]:
    """The names of the network's interfaces but the loopback, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.name != "lo" and (path / "device").exists())


def power_off() -> NoReturn:
    """End the machine. Raises RunError where the kernel refuses."""
    os.sync()
    _libc().reboot(ctypes.c_int(_POWER_OFF))
    raise RunError("the kernel did not power off", check="power off")


def _bring_up(control: socket.socket, interface: str) -> None:
    fcntl.ioctl(control, _SET_FLAGS, _named(interface) + struct.pack("<H22x", _UP | _RUNNING))


def _named(interface: str) -> bytes:
    return interface.encode("ascii")[:15].ljust(16, b"\0")


def _address(address: ipaddress.IPv4Address) -> bytes:
    return struct.pack("<HH4s8x", socket.AF_INET, 0, address.packed)
