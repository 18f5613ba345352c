"""What a guest's one network interface is set to: its address, its routes, its MTU, and its name servers. Pure.

All of it comes from the host, which owns the network. A lie keeps the guest from its key server, and nothing more: a
key server is known by its certificate, under the CA that the measured manifest pins.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MIN_PREFIX: Final = 8
"""A shorter prefix would take in the loopback's addresses."""
MIN_MTU: Final = 576
MAX_MTU: Final = 9216
EVERYTHING: Final = ipaddress.IPv4Network("0.0.0.0/0")


@dataclass(frozen=True, slots=True)
class Route:
    """Where packets for `destination` go. Without a gateway, the interface reaches it itself."""

    destination: ipaddress.IPv4Network
    gateway: ipaddress.IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """The whole setting. The routes stand in an order in which each gateway can be reached."""

    address: ipaddress.IPv4Interface
    routes: tuple[Route, ...] = ()
    name_servers: tuple[ipaddress.IPv4Address, ...] = ()
    mtu: int | None = None
    """Bytes. None leaves the interface's own."""


def is_machine(address: ipaddress.IPv4Address) -> bool:
    """Whether a machine on the network can have this address."""
    return not (address.is_multicast or address.is_loopback or address.is_reserved or address.packed[0] == 0)


def routes_by_gateway(address: ipaddress.IPv4Interface, gateway: ipaddress.IPv4Address | None) -> tuple[Route, ...]:
    """The routes for one gateway to everywhere. One outside of the own network is reached by the interface itself.

    Google's machines have such a gateway: their own network has one address only.
    """
    if gateway is None:
        return ()
    near = () if gateway in address.network else (Route(ipaddress.IPv4Network(gateway)),)
    return (*near, Route(EVERYTHING, gateway))


def resolver_file(name_servers: Iterable[ipaddress.IPv4Address]) -> str:
    """The text of /etc/resolv.conf."""
    return "".join(f"nameserver {address}\n" for address in name_servers)
