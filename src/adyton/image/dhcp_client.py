"""Ask the network for an address by DHCP, and keep it for as long as the machine runs.

The first exchange uses a packet socket, because the machine has no address yet. A renewal uses an ordinary one. No port
is open between two exchanges.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from ipaddress import IPv4Address
from types import TracebackType
from typing import Final, Protocol, Self

from adyton.errors import RunError
from adyton.image import dhcp
from adyton.image.dhcp import ACK, CLIENT_PORT, OFFER, SERVER_PORT, Lease
from adyton.image.network import Configuration

TIMEOUT_S: Final = 120.0
_REQUEST_TIMEOUT_S: Final = 30.0
_FIRST_PAUSE_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 16.0
_RENEWAL_PAUSE_S: Final = 60.0
"""RFC 2131 section 4.4.5: at least so long between two messages."""
_MAX_ROUNDS: Final = 8
_IPV4: Final = 0x0800
_EVERYBODY: Final = b"\xff" * 6


class Link(Protocol):
    """A way to servers and back."""

    def send(self, message: bytes) -> None:
        """Send a message of DHCP. Raises OSError."""

    def receive(self, timeout_s: float) -> bytes | None:
        """The next message, or None after `timeout_s`. Raises OSError."""


class PacketLink:
    """The whole network of an interface that is up, and needs no address."""

    def __init__(self, interface: str) -> None:
        self._address = (interface, _IPV4)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.htons(_IPV4))
        self._socket.bind(self._address)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, message: bytes) -> None:
        """Send a message to everybody. Raises OSError."""
        self._socket.sendto(dhcp.build_datagram(message), (*self._address, 0, 0, _EVERYBODY))

    def receive(self, timeout_s: float) -> bytes | None:
        """The next message for a client, or None after `timeout_s`. Raises OSError."""
        ends_s = time.monotonic() + timeout_s
        while _readable(self._socket, ends_s - time.monotonic()):
            message = dhcp.parse_datagram(self._socket.recv(dhcp.MAX_BYTES + 100))
            if message is not None:
                return message
        return None


class AddressLink:
    """One server, or everybody, from the interface's own address."""

    def __init__(self, interface: str, own: IPv4Address, server: IPv4Address | None) -> None:
        self._target = ("255.255.255.255" if server is None else str(server), SERVER_PORT)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode("ascii"))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._socket.bind((str(own), CLIENT_PORT))

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the socket, and with it the port."""
        self._socket.close()

    def send(self, message: bytes) -> None:
        """Send a message. Raises OSError."""
        self._socket.sendto(message, self._target)

    def receive(self, timeout_s: float) -> bytes | None:
        """The next message, or None after `timeout_s`. Raises OSError."""
        if not _readable(self._socket, timeout_s):
            return None
        return self._socket.recv(dhcp.MAX_BYTES + 100)


class Clock(Protocol):
    """Time, as this module needs it."""

    def monotonic(self) -> float:
        """Seconds since some moment."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


def obtain(link: Link, hardware: bytes, *, timeout_s: float = TIMEOUT_S, clock: Clock = time) -> Lease:
    """An address for the interface with this hardware address. Raises RunError where nobody grants one in time."""
    ends_s = clock.monotonic() + timeout_s
    for _ in range(_MAX_ROUNDS):
        transaction = _new_transaction()
        offer = _ask(link, dhcp.discover(transaction, hardware), transaction, hardware, OFFER, ends_s, clock)
        if offer is None:
            continue
        soon_s = min(ends_s, clock.monotonic() + _REQUEST_TIMEOUT_S)
        try:
            taken = dhcp.request(transaction, hardware, offer)
            lease = _ask(link, taken, transaction, hardware, ACK, soon_s, clock)
        except RunError:
            if soon_s == ends_s:
                raise
            continue
        if lease is not None and lease.configuration.address.ip == offer.configuration.address.ip:
            return lease
    raise _refused(f"{_MAX_ROUNDS} offers that were taken back")


def keep(
    lease: Lease,
    hardware: bytes,
    *,
    everybody: Callable[[], AbstractContextManager[Link]],
    server: Callable[[IPv4Address, IPv4Address | None], AbstractContextManager[Link]],
    change: Callable[[Configuration | None], None],
    note: Callable[[str], None],
    clock: Clock = time,
) -> None:
    """Renew a lease again and again. Ends only where it holds for ever.

    `everybody` opens the link of a machine without an address, `server` that from the own address to a server, or to
    all where there is None. `change` is told the new configuration after a lease was lost, and None before it.
    """
    while lease.lease_s is not None:
        granted_s = clock.monotonic()
        clock.sleep(lease.renew_s)
        renewed = _renewed(lease, lease.lease_s, granted_s, hardware, server, clock)
        if renewed is not None:
            lease = renewed
            continue
        note("the network took the address back")
        change(None)
        lease = _obtain_again(everybody, hardware, note, clock)
        change(lease.configuration)
        note(f"the address is {lease.configuration.address} now")


def _renewed(
    lease: Lease,
    lease_s: int,
    granted_s: float,
    hardware: bytes,
    server: Callable[[IPv4Address, IPv4Address | None], AbstractContextManager[Link]],
    clock: Clock,
) -> Lease | None:
    """The lease with a new time: by its own server first, by any then. None where it is lost."""
    own = lease.configuration.address.ip
    for ends_s, asked in ((granted_s + lease.rebind_s, lease.server), (granted_s + lease_s, None)):
        transaction = _new_transaction()
        message = dhcp.renewal(transaction, hardware, lease)
        try:
            with server(own, asked) as link:
                found = _ask(link, message, transaction, hardware, ACK, ends_s, clock, pause_s=_RENEWAL_PAUSE_S)
        except (RunError, OSError):
            clock.sleep(max(0.0, ends_s - clock.monotonic()))
            continue
        return found if found is not None and found.configuration.address.ip == own else None
    return None


def _obtain_again(
    everybody: Callable[[], AbstractContextManager[Link]], hardware: bytes, note: Callable[[str], None], clock: Clock
) -> Lease:
    while True:
        try:
            with everybody() as link:
                return obtain(link, hardware, clock=clock)
        except (RunError, OSError) as error:
            note(f"no address yet: {error}")
            clock.sleep(_RENEWAL_PAUSE_S)


def _ask(
    link: Link,
    message: bytes,
    transaction: int,
    hardware: bytes,
    kind: int,
    ends_s: float,
    clock: Clock,
    pause_s: float = _FIRST_PAUSE_S,
) -> Lease | None:
    """Send a message until a good answer comes. None for a refusal. Raises RunError at `ends_s`, and OSError."""
    seen = "no answer"
    longest_s = max(pause_s, _LONGEST_PAUSE_S)
    while clock.monotonic() < ends_s:
        link.send(message)
        until_s = min(ends_s, clock.monotonic() + pause_s)
        while (left_s := until_s - clock.monotonic()) > 0:
            raw = link.receive(left_s)
            if raw is None:
                break
            try:
                return dhcp.parse_answer(raw, transaction=transaction, hardware=hardware, kind=kind)
            except RunError as error:
                seen = error.message
        pause_s = min(2 * pause_s, longest_s)
    raise _refused(seen)


def _readable(any_socket: socket.socket, timeout_s: float) -> bool:
    return timeout_s > 0 and bool(select.select([any_socket], [], [], timeout_s)[0])


def _new_transaction() -> int:
    """A number that nobody outside of this network can guess."""
    return int.from_bytes(os.urandom(4), "big")


def _refused(seen: str) -> RunError:
    return RunError(
        f"no server of DHCP gave this machine an address: {seen}",
        check="DHCP",
        expected="an offer, and its grant",
        seen=seen,
        remedy="look at the network's DHCP server, or give the guest a fixed address in adyton-guest.json",
    )
