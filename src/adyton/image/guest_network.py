"""The guest's network: one interface, with the address that its settings say, or one that DHCP gives and keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address

from adyton.errors import RunError
from adyton.image import dhcp_client, guest_kernel
from adyton.image.dhcp import Lease
from adyton.image.guest_settings import DHCP, Network
from adyton.image.network import Configuration

Note = Callable[[str], None]


def set_up(wanted: Network | DHCP | None, note: Note) -> tuple[IPv4Address, ...]:
    """Bring loopback and interface up. Gives the name servers. Raises RunError and OSError."""
    guest_kernel.bring_up("lo")
    if wanted is None:
        return ()
    names = guest_kernel.wait_for(lambda: guest_kernel.interfaces() or None) or []
    if len(names) != 1:
        raise RunError("the network", expected="one interface", seen=", ".join(names) or "none")
    if not isinstance(wanted, DHCP):
        guest_kernel.configure(names[0], wanted.configuration())
        return wanted.name_servers
    found = by_dhcp(names[0], note)
    return found.name_servers if wanted.name_servers is None else wanted.name_servers


def by_dhcp(interface: str, note: Note) -> Configuration:
    """Ask for an address, set it, and keep it in a thread. Raises RunError and OSError."""
    hardware = guest_kernel.hardware_address(interface)
    guest_kernel.bring_up(interface)
    with dhcp_client.PacketLink(interface) as link:
        lease = dhcp_client.obtain(link, hardware)
    change(interface, note, lease.configuration)
    note(f"the address is {lease.configuration.address}, by DHCP")
    threading.Thread(target=_keep, args=(lease, interface, hardware, note), daemon=True).start()
    return lease.configuration


def _keep(lease: Lease, interface: str, hardware: bytes, note: Note) -> None:
    try:
        dhcp_client.keep(
            lease,
            hardware,
            everybody=partial(dhcp_client.PacketLink, interface),
            server=partial(dhcp_client.AddressLink, interface),
            change=partial(change, interface, note),
            note=note,
        )
    except Exception as error:  # the run goes on, with the address that it has
        note(f"the address is no longer kept: {type(error).__name__}: {error}")


def change(interface: str, note: Note, configuration: Configuration | None) -> None:
    """Set the interface, or, without a configuration, take its address away. Raises OSError."""
    if configuration is None:
        guest_kernel.clear(interface)
        return
    guest_kernel.configure(interface, configuration)
    if configuration.mtu is not None:
        try:
            guest_kernel.set_mtu(interface, configuration.mtu)
        except OSError as error:  # more than it can send: it goes on with its own
            note(f"{interface} cannot send packets of {configuration.mtu} bytes: {error.strerror}")
