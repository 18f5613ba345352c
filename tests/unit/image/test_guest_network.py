"""The guest's network: one interface of a kind that it knows, and a lost lease that does not end the run."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable

import pytest

from adyton.errors import RunError
from adyton.image import dhcp_client, guest_kernel, guest_network
from adyton.image.dhcp import ACK, Lease, parse_answer
from adyton.image.guest_settings import DHCP, Network
from tests.support.dhcp_server import HARDWARE, answer

STATIC = Network(ipaddress.IPv4Interface("10.0.2.15/24"), None, (ipaddress.IPv4Address("10.0.2.3"),))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the kernel is asked for."""
    found: list[str] = []

    def record(name: str) -> Callable[..., None]:
        return lambda interface, *_more: found.append(f"{name} {interface}")

    for name in ("bring_up", "configure", "clear", "set_mtu"):
        monkeypatch.setattr(guest_kernel, name, record(name))
    monkeypatch.setattr(guest_kernel, "wait_for", lambda look: look())
    return found


def note(_text: str) -> None:
    """Nobody listens."""


def lease() -> Lease:
    """An address for an hour."""
    found = parse_answer(answer(1, ACK, changes={26: b"\x05\xb4"}), transaction=1, hardware=HARDWARE, kind=ACK)
    assert found is not None
    return found


def test_guest_without_a_network_has_its_loopback_only(calls: list[str]) -> None:
    """And no name server."""
    assert guest_network.set_up(None, note) == ()
    assert calls == ["bring_up lo"]


def test_fixed_address_is_set(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the one interface that there is."""
    monkeypatch.setattr(guest_kernel, "interfaces", lambda: ["eth0"])
    assert guest_network.set_up(STATIC, note) == STATIC.name_servers
    assert calls == ["bring_up lo", "configure eth0"]


@pytest.mark.parametrize("interfaces", [[], ["eth0", "eth1"]])
def test_none_or_two_interfaces_end_the_start(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, interfaces: list[str]
) -> None:
    """Nothing says which one is meant."""
    monkeypatch.setattr(guest_kernel, "interfaces", lambda: interfaces)
    with pytest.raises(RunError) as refused:
        guest_network.set_up(STATIC, note)
    assert (refused.value.expected, refused.value.seen) == ("one interface", ", ".join(interfaces) or "none")
    assert calls == ["bring_up lo"]


@pytest.mark.parametrize(
    ("servers", "found"), [(None, "10.0.2.3"), ((), ""), ((ipaddress.IPv4Address("10.0.0.1"),), "10.0.0.1")]
)
def test_name_servers_of_the_settings_come_before_those_of_the_network(
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    servers: tuple[ipaddress.IPv4Address, ...] | None,
    found: str,
) -> None:
    """None leaves those of the lease, and an empty list is none at all."""
    monkeypatch.setattr(guest_kernel, "interfaces", lambda: ["eth0"])
    monkeypatch.setattr(guest_network, "by_dhcp", lambda _interface, _note: lease().configuration)
    assert ", ".join(map(str, guest_network.set_up(DHCP(servers), note))) == found
    assert calls == ["bring_up lo"]


def test_packets_that_are_too_large_for_the_interface_are_said_and_borne(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's MTU is advice."""

    def refuse(_interface: str, _mtu: int) -> None:
        raise OSError(22, os.strerror(22))

    said: list[str] = []
    guest_network.change("eth0", said.append, lease().configuration)
    assert (calls, said) == (["configure eth0", "set_mtu eth0"], [])
    monkeypatch.setattr(guest_kernel, "set_mtu", refuse)
    guest_network.change("eth0", said.append, lease().configuration)
    assert said == ["eth0 cannot send packets of 1460 bytes: Invalid argument"]
    guest_network.change("eth0", said.append, None)
    assert calls[-1] == "clear eth0"


def test_lease_that_can_no_longer_be_kept_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread says so, and ends."""

    def broken(*_words: object, **_more: object) -> None:
        raise OSError(5, "broken")

    said: list[str] = []
    monkeypatch.setattr(dhcp_client, "keep", broken)
    guest_network._keep(lease(), "eth0", HARDWARE, said.append)
    assert said == ["the address is no longer kept: OSError: [Errno 5] broken"]


def test_network_that_is_no_ethernet_is_refused() -> None:
    """The loopback is one."""
    with pytest.raises(RunError) as refused:
        guest_kernel.hardware_address("lo")
    assert (refused.value.expected, refused.value.seen) == ("Ethernet", "772")
    with pytest.raises(OSError, match="No such device"):
        guest_kernel.hardware_address("nothing0")
