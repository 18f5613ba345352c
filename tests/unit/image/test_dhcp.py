"""Messages of DHCP: what real clouds answer is taken, and everything else refused by name."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping

import pytest

from adyton.errors import RunError
from adyton.image import dhcp
from adyton.image.dhcp import ACK, OFFER, Lease, parse_answer, parse_datagram, parse_routes
from adyton.image.network import Configuration, Route, resolver_file, routes_by_gateway
from tests.support.dhcp_server import HARDWARE, answer, option

TRANSACTION = 0x01020304


def parsed(raw: bytes, kind: int = OFFER) -> Lease | None:
    """An answer to the message of these tests."""
    return parse_answer(raw, transaction=TRANSACTION, hardware=HARDWARE, kind=kind)


def taken(changes: Mapping[int, bytes | None] | None = None) -> Lease:
    """A good offer with options changed: None leaves one out."""
    found = parsed(answer(TRANSACTION, OFFER, changes=changes))
    assert found is not None
    return found


def route(destination: str, gateway: str | None = None) -> Route:
    """A route in text."""
    return Route(ipaddress.IPv4Network(destination), None if gateway is None else ipaddress.IPv4Address(gateway))


def test_offer_becomes_a_configuration() -> None:
    """Address, prefix, router, name servers, MTU and times."""
    found = taken({26: b"\x05\xb4"})
    assert found.configuration == Configuration(
        ipaddress.IPv4Interface("10.0.2.15/24"),
        (route("0.0.0.0/0", "10.0.2.2"),),
        (ipaddress.IPv4Address("10.0.2.3"),),
        1460,
    )
    assert (str(found.server), found.lease_s, found.renew_s, found.rebind_s) == ("10.0.2.2", 3600, 1800, 3150)


def test_lease_for_ever_has_no_end() -> None:
    """All bits of the time are set."""
    assert taken({51: b"\xff" * 4}).lease_s is None


def test_google_gives_one_address_and_a_gateway_beyond_it() -> None:
    """The prefix has 32 bits. The gateway is reached by the interface itself (option 121, RFC 3442)."""
    routes = b"\x20\x0a\x84\x00\x01" + bytes(4) + b"\x00\x0a\x84\x00\x01"
    found = taken({1: b"\xff" * 4, 121: routes, 3: b"\x01\x02\x03\x04"}).configuration
    assert found.address.network.prefixlen == 32
    assert found.routes == (route("10.132.0.1/32"), route("0.0.0.0/0", "10.132.0.1"))
    by_router = taken({1: b"\xff" * 4}).configuration
    assert by_router.routes == (route("10.0.2.2/32"), route("0.0.0.0/0", "10.0.2.2"))


def test_azure_gives_routes_to_its_own_services() -> None:
    """168.63.129.16 and 169.254.169.254, by the ordinary gateway."""
    gateway = b"\x0a\x00\x02\x01"
    routes = b"\x00" + gateway + b"\x20\xa8\x3f\x81\x10" + gateway + b"\x20\xa9\xfe\xa9\xfe" + gateway
    assert taken({121: routes}).configuration.routes == (
        route("0.0.0.0/0", "10.0.2.1"),
        route("168.63.129.16/32", "10.0.2.1"),
        route("169.254.169.254/32", "10.0.2.1"),
    )


def test_routes_in_several_parts_are_one_option() -> None:
    """RFC 3396; the near gateway may come last, and is set first."""
    raw = answer(TRANSACTION, OFFER, changes={121: None, 1: b"\xff" * 4})
    raw = raw.rstrip(b"\0").removesuffix(b"\xff")
    raw += option(121, b"\x00\x0a\x00\x00\x01\x20\x0a") + option(121, b"\x00\x00\x01" + bytes(4)) + b"\xff"
    found = parsed(raw)
    assert found is not None
    assert found.configuration.routes == (route("10.0.0.1/32"), route("0.0.0.0/0", "10.0.0.1"))


def test_refusal_is_none() -> None:
    """A NAK carries no address."""
    assert parsed(answer(TRANSACTION, 6, changes={1: None, 51: None}), ACK) is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({53: b"\x05"}, "kind"),
        ({53: b""}, "option 53"),
        ({53: None}, "option 53"),
        ({1: None}, "option 1:"),
        ({1: b"\xff\x00\xff\x00"}, "mask"),
        ({1: b"\xf0\x00\x00\x00"}, "mask"),
        ({1: b"\xff" * 3}, "option 1:"),
        ({3: b"\x0a\x00\x02"}, "option 3"),
        ({3: b""}, "option 3"),
        ({3: b"\x7f\x00\x00\x01"}, "router"),
        ({6: b"\xe0\x00\x00\x01"}, "name server"),
        ({6: b"\x00" * 4}, "name server"),
        ({26: b"\x00\x44"}, "MTU"),
        ({26: b"\xff\xff"}, "MTU"),
        ({26: b"\x05"}, "option 26"),
        ({51: None}, "option 51"),
        ({51: b"\x00\x00\x00\x01"}, "lease"),
        ({52: b"\x01"}, "options"),
        ({54: None}, "option 54"),
        ({54: b"\xff" * 4}, "server"),
        ({58: b"\x00\x00\x00\x01"}, "times"),
        ({58: b"\x00\x00\x0f\xff"}, "times"),
        ({59: b"\x00\x00\xff\xff"}, "times"),
        ({121: b"\x21\x0a\x00\x00\x01\x00" + bytes(4)}, "whole routes"),
        ({121: b"\x20\x0a\x00\x00\x01\x0a\x00"}, "whole routes"),
        ({121: b"\x08\x0a\x0a\x00\x02\x02\x10\x0a\x01\x0a\x00\x02"}, "whole routes"),
        ({121: b"\x1e\x0a\x00\x00\x01\x0a\x00\x02\x02"}, "bits beyond"),
        ({121: b"\x08\x7f\x0a\x00\x02\x02"}, "networks of machines"),
        ({121: b"\x04\xe0\x0a\x00\x02\x02"}, "networks of machines"),
        ({121: b"\x00\x0a\x00\x02\x02" * 2}, "each once"),
        ({121: b"\x00\xe0\x00\x02\x02"}, "gateway"),
        ({121: b"\x00\x0b\x00\x02\x02"}, "within reach"),
        ({121: b"".join(bytes((8, n, 0, 0, 0, 0)) for n in range(1, 34))}, "at most 32"),
    ],
)
def test_wrong_option_is_refused_by_name(changes: dict[int, bytes | None], match: str) -> None:
    """Each check fires for one change of a good offer."""
    with pytest.raises(RunError, match=match):
        taken(changes)


@pytest.mark.parametrize(
    ("at", "value", "match"),
    [
        (0, b"\x01", "form"),
        (1, b"\x06", "form"),
        (2, b"\x08", "form"),
        (236, b"\x00", "form"),
        (4, b"\xff", "transaction"),
        (28, b"\xff", "transaction"),
        (40, b"\x01", "transaction"),
        (16, b"\x7f", "own address"),
        (16, b"\xf0", "own address"),
        (16, b"\x00", "own address"),
    ],
)
def test_wrong_header_is_refused_by_name(at: int, value: bytes, match: str) -> None:
    """One byte of a good offer is another."""
    raw = bytearray(answer(TRANSACTION, OFFER))
    raw[at : at + 1] = value
    with pytest.raises(RunError, match=match):
        parsed(bytes(raw))


def test_message_that_is_cut_or_says_things_twice_is_refused() -> None:
    """Also one that is too long, and one without an end."""
    raw = answer(TRANSACTION, OFFER).rstrip(b"\0")
    for size in range(len(raw)):
        with pytest.raises(RunError):
            parsed(raw[:size])
    with pytest.raises(RunError, match="twice"):
        parsed(raw.removesuffix(b"\xff") + option(1, b"\xff" * 4) + b"\xff")
    with pytest.raises(RunError, match="size"):
        parsed(raw.ljust(1501, b"\0"))
    assert parsed(raw + b"anything behind the end") is not None


def datagram(payload: bytes, *, source: int = 67, target: int = 68, fragment: int = 0, options: bytes = b"") -> bytes:
    """An IPv4 packet, as a server's machine sends it."""
    words = 5 + len(options) // 4
    size = 4 * words + 8 + len(payload)
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | words, 0, size, 1, fragment, 64, 17, 0, b"\x0a\0\2\2", b"\xff" * 4)
    head += options
    total = sum(struct.unpack(f"!{len(head) // 2}H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return head + struct.pack("!HHHH", source, target, 8 + len(payload), 0xBEEF) + payload


def test_datagram_for_a_client_is_read_and_others_are_left() -> None:
    """Padding of Ethernet behind it is cut off, and options of the header are passed over."""
    assert parse_datagram(datagram(b"message") + bytes(40)) == b"message"
    assert parse_datagram(datagram(b"message", options=b"\x94\x04\x00\x00")) == b"message"
    assert parse_datagram(datagram(b"message", fragment=0x4000)) == b"message"
    for other in (
        datagram(b"message", source=53),
        datagram(b"message", target=67),
        datagram(b"message", fragment=0x2000),
        datagram(b"message", fragment=1),
        datagram(b"message")[:-1],
        datagram(b"message")[:20],
        b"\x60" + datagram(b"message")[1:],
        b"\x44" + datagram(b"message")[1:],
        datagram(b"message")[:9] + b"\x06" + datagram(b"message")[10:],
        datagram(b"message")[:8] + b"\x01" + datagram(b"message")[9:],
        b"",
    ):
        assert parse_datagram(other) is None


def test_own_messages_are_as_the_standard_says() -> None:
    """RFC 2131, table 5: which message names the server and the address, and where."""
    offer = taken()
    discover = dhcp.discover(TRANSACTION, HARDWARE)
    assert len(discover) == 300
    assert (discover[:4], discover[4:8], discover[28:34]) == (b"\x01\x01\x06\x00", b"\x01\x02\x03\x04", HARDWARE)
    assert option(53, b"\x01") in discover
    assert discover.index(option(55, b"")[:1]) > 0
    request = dhcp.request(TRANSACTION, HARDWARE, offer)
    assert option(50, b"\x0a\x00\x02\x0f") in request
    assert option(54, b"\x0a\x00\x02\x02") in request
    assert request[12:16] == bytes(4)
    renewal = dhcp.renewal(TRANSACTION, HARDWARE, offer)
    assert renewal[12:16] == b"\x0a\x00\x02\x0f"
    assert option(50, b"\x0a\x00\x02\x0f") not in renewal
    assert option(54, b"\x0a\x00\x02\x02") not in renewal
    packet = dhcp.build_datagram(discover)
    assert packet[12:20] == bytes(4) + b"\xff" * 4
    swapped = packet[:20] + struct.pack("!HH", 67, 68) + packet[24:]
    assert parse_datagram(swapped) == discover


def test_gateway_and_name_servers_as_a_guest_sets_them() -> None:
    """The same for a fixed address."""
    own = ipaddress.IPv4Interface("10.0.2.15/24")
    assert routes_by_gateway(own, None) == ()
    assert routes_by_gateway(own, ipaddress.IPv4Address("10.0.2.2")) == (route("0.0.0.0/0", "10.0.2.2"),)
    assert resolver_file([ipaddress.IPv4Address("10.0.2.3")]) == "nameserver 10.0.2.3\n"
    assert parse_routes(b"") == []
