"""System calls of a guest's first program: mounts, modules, the network's address, power. For Linux on x86-64."""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from adyton.errors import RunError
from adyton.image.network import Configuration, Route

NO_SUID, NO_DEVICES, NO_EXECUTION = 2, 4, 8
"""Flags of mount(2)."""

DEVICES_TIMEOUT_S: Final = 30.0
"""How long a device may take to show. The kernel looks for devices while the first program runs already."""
Found = TypeVar("Found")

_FINIT_MODULE: Final = 313
_POWER_OFF: Final = 0x4321FEDC
_EXISTS: Final = 17
_NO_DEVICE: Final = 19
_SET_FLAGS, _SET_ADDRESS, _SET_MASK, _ADD_ROUTE, _SET_MTU = 0x8914, 0x8916, 0x891C, 0x890B, 0x8922
_ROUTE_ENTRY: Final = struct.Struct("<8x16s16s16sH30xQ24x")
"""struct rtentry: destination, gateway, mask, flags, and the address of the interface's name. For x86-64."""
_UP, _RUNNING = 0x1, 0x40
_ROUTE_UP, _ROUTE_GATEWAY = 0x1, 0x2
_GET_HARDWARE: Final = 0x8927
_ETHERNET: Final = 1


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


def wait_for(look: Callable[[], Found | None], timeout_s: float = DEVICES_TIMEOUT_S) -> Found | None:
    """What `look` finds, as soon as it finds something. None where that takes longer."""
    ends_s = time.monotonic() + timeout_s
    while (found := look()) is None and time.monotonic() < ends_s:
        time.sleep(0.2)
    return found


def configure(interface: str, configuration: Configuration) -> None:
    """Bring an interface up with this address and these routes. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        own = configuration.address
        for call, address in ((_SET_ADDRESS, own.ip), (_SET_MASK, own.netmask)):
            fcntl.ioctl(control, call, _named(interface) + _address(address))
        _set_flags(control, interface, _UP | _RUNNING)
        for route in configuration.routes:
            _add_route(control, interface, route)


def set_mtu(interface: str, mtu: int) -> None:
    """The largest packet of an interface, in bytes. Raises OSError for more than it can send."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SET_MTU, _named(interface) + struct.pack("<i20x", mtu))


def _add_route(control: socket.socket, interface: str, route: Route) -> None:
    name = ctypes.create_string_buffer(interface.encode("ascii"))
    gateway = ipaddress.IPv4Address(0) if route.gateway is None else route.gateway
    raw = _ROUTE_ENTRY.pack(
        _address(route.destination.network_address),
        _address(gateway),
        _address(route.destination.netmask),
        _ROUTE_UP | (0 if route.gateway is None else _ROUTE_GATEWAY),
        ctypes.addressof(name),
    )
    fcntl.ioctl(control, _ADD_ROUTE, raw)


def bring_up(interface: str) -> None:
    """Let an interface send and receive, with the address that it has, or none. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        _set_flags(control, interface, _UP | _RUNNING)


def clear(interface: str) -> None:
    """Take an interface's address and routes away. It stays up. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SET_ADDRESS, _named(interface) + _address(ipaddress.IPv4Address(0)))
        for flags in (0, _UP | _RUNNING):  # an interface that goes down loses its routes
            _set_flags(control, interface, flags)


def interfaces(folder: Path = Path("/sys/class/net")) -> list[str]:
    """The names of the network's interfaces but the loopback, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.name != "lo" and (path / "device").exists())


def hardware_address(interface: str) -> bytes:
    """The interface's own address on its network, 6 bytes. Raises RunError where that is no Ethernet, and OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        found = fcntl.ioctl(control, _GET_HARDWARE, _named(interface) + bytes(24))
    kind, raw = struct.unpack_from("<H6s", found, 16)
    if kind != _ETHERNET:
        raise RunError("the network", check="kind of network", expected="Ethernet", seen=str(kind))
    return bytes(raw)


def power_off() -> NoReturn:
    """End the machine. Raises RunError where the kernel refuses."""
    os.sync()
    _libc().reboot(ctypes.c_int(_POWER_OFF))
    raise RunError("the kernel did not power off", check="power off")


def _set_flags(control: socket.socket, interface: str, flags: int) -> None:
    fcntl.ioctl(control, _SET_FLAGS, _named(interface) + struct.pack("<H22x", flags))


def _named(interface: str) -> bytes:
    return interface.encode("ascii")[:15].ljust(16, b"\0")


def _address(address: ipaddress.IPv4Address) -> bytes:
    return struct.pack("<HH4s8x", socket.AF_INET, 0, address.packed)
