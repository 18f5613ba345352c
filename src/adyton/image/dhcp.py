"""Messages of DHCP for IPv4: made, and parsed strictly. Pure.

The answers come from the host's network, and anybody in it can send them. So each is data of at most 1500 bytes. What
is not exactly as it should be is refused, and the client waits for another answer.

Sources: RFC 2131 (the protocol), RFC 2132 (options), RFC 3396 (long options), RFC 3442 (classless routes), RFC 791 and
RFC 768 (the datagram around a message).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from adyton.errors import Error, RunError
from adyton.image.network import (
    MAX_MTU,
    MIN_MTU,
    MIN_PREFIX,
    Configuration,
    Route,
    is_machine,
    routes_by_gateway,
)

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68
MAX_BYTES: Final = 1500
MAX_ROUTES: Final = 32
MAX_NAME_SERVERS: Final = 3
"""As many as the C library's resolver asks."""
MIN_LEASE_S: Final = 60
OFFER: Final = 2
ACK: Final = 5
_DISCOVER, _REQUEST, _NAK = 1, 3, 6

_MASK, _ROUTER, _NAME_SERVERS, _MTU = 1, 3, 6, 26
_WANTED_ADDRESS, _LEASE, _OVERLOAD, _KIND, _SERVER = 50, 51, 52, 53, 54
_PARAMETERS, _MAX_SIZE, _RENEWAL, _REBINDING, _ROUTES, _END = 55, 57, 58, 59, 121, 255
_ASKED_FOR: Final = bytes((_ROUTES, _MASK, _ROUTER, _NAME_SERVERS, _MTU, _LEASE, _RENEWAL, _REBINDING))
"""Classless routes stand before the router, as RFC 3442 says."""

# op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file, magic cookie
_FIXED: Final = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE: Final = b"\x63\x82\x53\x63"
_ETHERNET: Final = 1
_MIN_SENT_BYTES: Final = 300
"""The size of a BOOTP message. Some relays drop shorter ones."""
_FOR_EVER: Final = 0xFFFFFFFF
_UDP: Final = 17
_NOWHERE: Final = ipaddress.IPv4Address(0)
_EVERYBODY: Final = ipaddress.IPv4Address(0xFFFFFFFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a server offers or grants. Times are seconds since it was granted."""

    server: ipaddress.IPv4Address
    configuration: Configuration
    lease_s: int | None
    """None: for ever."""
    renew_s: int
    rebind_s: int


def discover(transaction: int, hardware: bytes) -> bytes:
    """The message that asks every server for an offer. `hardware` is the interface's own address, 6 bytes."""
    return _message(_DISCOVER, transaction, hardware)


def request(transaction: int, hardware: bytes, offer: Lease) -> bytes:
    """The message that takes an offer."""
    wanted = {_WANTED_ADDRESS: offer.configuration.address.ip.packed, _SERVER: offer.server.packed}
    return _message(_REQUEST, transaction, hardware, wanted)


def renewal(transaction: int, hardware: bytes, lease: Lease) -> bytes:
    """The message that asks for more time."""
    return _message(_REQUEST, transaction, hardware, own=lease.configuration.address.ip)


def _message(
    kind: int,
    transaction: int,
    hardware: bytes,
    more: Mapping[int, bytes] | None = None,
    own: ipaddress.IPv4Address = _NOWHERE,
) -> bytes:
    nothing = _NOWHERE.packed
    fixed = _FIXED.pack(
        *(1, _ETHERNET, 6, 0, transaction, 0, 0),
        *(own.packed, nothing, nothing, nothing, hardware, b"", b"", _COOKIE),
    )
    options = {_KIND: bytes((kind,)), **(more or {}), _MAX_SIZE: MAX_BYTES.to_bytes(2, "big"), _PARAMETERS: _ASKED_FOR}
    raw = b"".join(bytes((code, len(value))) + value for code, value in options.items())
    return (fixed + raw + bytes((_END,))).ljust(_MIN_SENT_BYTES, b"\0")


def build_datagram(message: bytes) -> bytes:
    """The IPv4 packet that carries a message from a machine without an address to everybody.

    It has no UDP checksum (RFC 768 allows that).
    """
    udp = struct.pack("!HHHH", CLIENT_PORT, SERVER_PORT, 8 + len(message), 0)
    size = 20 + len(udp) + len(message)
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, _UDP, 0, _NOWHERE.packed, _EVERYBODY.packed)
    return header[:10] + _checksum(header).to_bytes(2, "big") + header[12:] + udp + message


def parse_datagram(raw: bytes) -> bytes | None:
    """The message in an IPv4 packet from a server to a client of DHCP. None for every other packet.

    The UDP checksum is not compared: a neighbour on the same host may leave it unfinished, and it proves nothing.
    """
    if len(raw) < 28 or raw[0] >> 4 != 4 or raw[9] != _UDP:
        return None
    start = 4 * (raw[0] & 15)
    (size,) = struct.unpack_from("!H", raw, 2)
    (fragment,) = struct.unpack_from("!H", raw, 6)
    if not 20 <= start <= size - 8 or size > len(raw) or fragment & 0x3FFF or _checksum(raw[:start]):
        return None
    source, target, length, _ = struct.unpack_from("!HHHH", raw, start)
    if (source, target) != (SERVER_PORT, CLIENT_PORT) or not 8 <= length <= size - start:
        return None
    return raw[start + 8 : start + length]


def parse_answer(raw: bytes, *, transaction: int, hardware: bytes, kind: int) -> Lease | None:
    """What a server answers: an offer (`kind` is OFFER) or a grant (ACK). None where it refuses (NAK).

    Raises RunError for anything else, also for the answer to somebody else's message.
    """
    if not _FIXED.size <= len(raw) <= MAX_BYTES:
        raise _wrong("size", f"{_FIXED.size} to {MAX_BYTES} bytes", f"{len(raw)} bytes")
    fixed = _FIXED.unpack_from(raw)
    operation, network, size = fixed[:3]
    offered, its_hardware, cookie = fixed[8], fixed[11], fixed[14]
    if (operation, network, size, cookie) != (2, _ETHERNET, 6, _COOKIE):
        raise _wrong("form", "an answer of DHCP over Ethernet", "something else")
    if fixed[4] != transaction or its_hardware != hardware.ljust(16, b"\0"):
        raise _wrong("transaction", "an answer to this message", "another")
    options = _options(raw[_FIXED.size :])
    seen = _number(options, _KIND, 1)
    if seen == _NAK:
        return None
    if seen != kind:
        raise _wrong("kind", str(kind), str(seen))
    if _OVERLOAD in options:
        raise _wrong("options", "in their own field", "also in fields for names")
    address = _interface(offered, _required(options, _MASK, 4))
    lease_s, renew_s, rebind_s = _times(options)
    return Lease(
        server=_machine(_required(options, _SERVER, 4), "server"),
        configuration=Configuration(
            address,
            _routes(options, address),
            tuple(_machine(part, "name server") for part in _addresses(options, _NAME_SERVERS))[:MAX_NAME_SERVERS],
            _mtu(options),
        ),
        lease_s=lease_s,
        renew_s=renew_s,
        rebind_s=rebind_s,
    )


def _options(raw: bytes) -> dict[int, bytes]:
    """Code -> value. Only classless routes may come in several parts."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(raw):
        code = raw[at]
        if code == _END:
            return found
        at += 1
        if code == 0:
            continue
        end = at + 1 + raw[at] if at < len(raw) else len(raw) + 1
        if end > len(raw):
            break
        if code in found and code != _ROUTES:
            raise _wrong("options", "each once", f"option {code} twice")
        found[code] = found.get(code, b"") + raw[at + 1 : end]
        at = end
    raise _wrong("options", "an end", "a message that is cut")


def _required(options: Mapping[int, bytes], code: int, size: int) -> bytes:
    value = options.get(code, b"")
    if len(value) != size:
        raise _wrong(f"option {code}", f"{size} bytes", f"{len(value)} bytes")
    return value


def _number(options: Mapping[int, bytes], code: int, size: int) -> int:
    return int.from_bytes(_required(options, code, size), "big")


def _addresses(options: Mapping[int, bytes], code: int) -> list[bytes]:
    value = options.get(code, b"")
    if len(value) % 4 or (code in options and not value):
        raise _wrong(f"option {code}", "whole addresses", f"{len(value)} bytes")
    return [value[at : at + 4] for at in range(0, len(value), 4)]


def _machine(raw: bytes, what: str) -> ipaddress.IPv4Address:
    address = ipaddress.IPv4Address(raw)
    if not is_machine(address):
        raise _wrong(what, "the address of a machine", str(address))
    return address


def _interface(raw: bytes, mask: bytes) -> ipaddress.IPv4Interface:
    address = _machine(raw, "own address")
    bits = int.from_bytes(mask, "big")
    prefix = bits.bit_count()
    if bits != (_FOR_EVER << (32 - prefix)) & _FOR_EVER or prefix < MIN_PREFIX:
        raise _wrong("mask", f"a prefix of {MIN_PREFIX} to 32 bits", mask.hex())
    return ipaddress.IPv4Interface((address, prefix))


def _times(options: Mapping[int, bytes]) -> tuple[int | None, int, int]:
    lease = _number(options, _LEASE, 4)
    if lease < MIN_LEASE_S:
        raise _wrong("lease", f"at least {MIN_LEASE_S} s", f"{lease} s")
    renew = _number(options, _RENEWAL, 4) if _RENEWAL in options else lease // 2
    rebind = _number(options, _REBINDING, 4) if _REBINDING in options else lease * 7 // 8
    if not MIN_LEASE_S // 2 <= renew <= rebind <= lease:
        raise _wrong("times", "renewal before rebinding before the end", f"{renew}, {rebind}, {lease}")
    return None if lease == _FOR_EVER else lease, renew, rebind


def _mtu(options: Mapping[int, bytes]) -> int | None:
    if _MTU not in options:
        return None
    value = _number(options, _MTU, 2)
    if not MIN_MTU <= value <= MAX_MTU:
        raise _wrong("MTU", f"{MIN_MTU} to {MAX_MTU}", str(value))
    return value


def _routes(options: Mapping[int, bytes], address: ipaddress.IPv4Interface) -> tuple[Route, ...]:
    """The routes. Where there are classless ones, the router counts for nothing (RFC 3442)."""
    if _ROUTES not in options:
        routers = [_machine(part, "router") for part in _addresses(options, _ROUTER)]
        return routes_by_gateway(address, routers[0] if routers else None)
    found = parse_routes(options[_ROUTES])
    near = [route for route in found if route.gateway is None]
    for route in found:
        reached = route.gateway is None or route.gateway in address.network
        if not reached and not any(route.gateway in other.destination for other in near):
            raise _wrong("routes", "gateways within reach", f"{route.destination} by {route.gateway}")
    return (*near, *(route for route in found if route.gateway is not None))


def parse_routes(raw: bytes) -> list[Route]:
    """The value of option 121 (RFC 3442). Raises RunError."""
    found: dict[ipaddress.IPv4Network, Route] = {}
    at = 0
    while at < len(raw):
        width = raw[at]
        middle = at + 1 + (width + 7) // 8
        if width > 32 or middle + 4 > len(raw):
            raise _wrong("routes", "whole routes", "a route that is cut")
        try:
            target = ipaddress.IPv4Network((raw[at + 1 : middle].ljust(4, b"\0"), width))
        except ValueError:
            raise _wrong("routes", "networks without bits beyond their prefix", raw[at:middle].hex()) from None
        if target.is_loopback or target.is_multicast or target.is_reserved or target in found:
            raise _wrong("routes", "networks of machines, each once", str(target))
        gateway = raw[middle : middle + 4]
        found[target] = Route(target, _machine(gateway, "gateway") if any(gateway) else None)
        at = middle + 4
    if len(found) > MAX_ROUTES:
        raise _wrong("routes", f"at most {MAX_ROUTES}", str(len(found)))
    return list(found.values())


def _checksum(header: bytes) -> int:
    """The checksum of an IPv4 header (RFC 1071). Over a whole header it is 0."""
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, len(header), 2))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def _wrong(check: str, expected: str, seen: str) -> Error:
    return RunError(
        f"an answer of DHCP is wrong: {check}: expected {expected}, seen {seen}",
        check=f"DHCP: {check}",
        expected=expected,
        seen=seen,
        remedy="look at the network's DHCP server, or give the guest a fixed address in adyton-guest.json",
    )
