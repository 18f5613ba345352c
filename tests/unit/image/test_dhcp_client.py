"""Asking for an address and keeping it: with made-up servers in made-up time, and with real ones in a network."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from adyton.errors import RunError
from adyton.image.dhcp import Lease
from adyton.image.dhcp_client import Link, keep, obtain
from adyton.image.network import Configuration
from tests.support.dhcp_server import HARDWARE, answer, kind_of, transaction_of

NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
Server = Callable[[bytes], list[bytes]]


class Time:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds


class Wire:
    """A link to a server that is a function. Nobody answers late."""

    def __init__(self, server: Server, clock: Time) -> None:
        self.server, self.clock = server, clock
        self.sent: list[tuple[float, int]] = []
        self.waiting: list[bytes] = []

    def send(self, message: bytes) -> None:
        self.sent.append((self.clock.now, kind_of(message)))
        self.waiting = self.server(message)

    def receive(self, timeout_s: float) -> bytes | None:
        if self.waiting:
            return self.waiting.pop(0)
        self.clock.sleep(timeout_s)
        return None


def honest(message: bytes) -> list[bytes]:
    """Offers, and grants."""
    return [answer(transaction_of(message), 2 if kind_of(message) == 1 else 5)]


def test_address_is_offered_taken_and_granted() -> None:
    """Noise between the answers is passed over."""
    clock = Time()
    noise = [b"", b"x" * 400, answer(99, 2)]
    wire = Wire(lambda message: [*noise, *honest(message)], clock)
    lease = obtain(wire, HARDWARE, clock=clock)
    assert str(lease.configuration.address) == "10.0.2.15/24"
    assert [kind for _, kind in wire.sent] == [1, 3]


def test_messages_are_sent_again_ever_more_rarely() -> None:
    """And in the end somebody is told why there is no network."""
    clock = Time()
    wire = Wire(lambda _message: [answer(99, 2)], clock)
    with pytest.raises(RunError, match=r"no server of DHCP gave this machine an address: .*transaction") as refused:
        obtain(wire, HARDWARE, timeout_s=60, clock=clock)
    assert refused.value.remedy
    assert [at - 1000 for at, _ in wire.sent] == [0, 2, 6, 14, 30, 46]
    assert clock.now == 1060


def test_offer_that_is_taken_back_is_asked_for_again_only_a_few_times() -> None:
    """A server that always says no does not hold the machine for ever."""
    clock = Time()
    wire = Wire(lambda message: [answer(transaction_of(message), 2 if kind_of(message) == 1 else 6)], clock)
    with pytest.raises(RunError, match="taken back"):
        obtain(wire, HARDWARE, clock=clock)
    assert len(wire.sent) == 16


def test_grant_of_another_address_than_the_offered_one_is_not_taken() -> None:
    """Two servers at odds."""
    clock = Time()

    def server(message: bytes) -> list[bytes]:
        return [
            answer(
                transaction_of(message), 2 if kind_of(message) == 1 else 5, address=bytes((10, 0, 2, kind_of(message)))
            )
        ]

    with pytest.raises(RunError, match="taken back"):
        obtain(Wire(server, clock), HARDWARE, clock=clock)


def test_offer_without_a_grant_is_given_up_and_asked_for_anew() -> None:
    """The first server died after its offer."""
    clock = Time()
    asked: list[int] = []

    def server(message: bytes) -> list[bytes]:
        asked.append(kind_of(message))
        return [] if asked.count(1) == 1 and kind_of(message) == 3 else honest(message)

    assert obtain(Wire(server, clock), HARDWARE, clock=clock).lease_s == 3600
    assert asked.count(1) == 2


class Network:
    """What `keep` is told and does, until the clock passes an end."""

    def __init__(self, servers: dict[str, Server], ends_s: float) -> None:
        self.clock = Time()
        self.ends_s = self.clock.now + ends_s
        self.servers = servers
        self.log: list[str] = []

    def link(self, name: str) -> AbstractContextManager[Link]:
        if self.clock.now > self.ends_s:
            raise KeyboardInterrupt
        self.log.append(name)
        return nullcontext(Wire(self.servers.get(name, lambda _message: []), self.clock))

    def run(self, lease: Lease) -> list[str]:
        def change(configuration: Configuration | None) -> None:
            self.log.append("none" if configuration is None else str(configuration.address))

        def server(own: ipaddress.IPv4Address, target: ipaddress.IPv4Address | None) -> AbstractContextManager[Link]:
            assert str(own) == "10.0.2.15"
            return self.link("broadcast" if target is None else str(target))

        with pytest.raises(KeyboardInterrupt):
            keep(
                lease,
                HARDWARE,
                everybody=lambda: self.link("everybody"),
                server=server,
                change=change,
                note=lambda _text: None,
                clock=self.clock,
            )
        return self.log


def leased() -> Lease:
    """An address for an hour."""
    clock = Time()
    return obtain(Wire(honest, clock), HARDWARE, clock=clock)


def test_lease_is_renewed_at_half_of_its_time() -> None:
    """By its own server, and nothing changes."""
    network = Network({"10.0.2.2": honest}, 5000)
    assert network.run(leased()) == ["10.0.2.2", "10.0.2.2"]


def test_any_server_may_renew_where_its_own_is_gone() -> None:
    """At seven eighths of the time."""
    network = Network({"broadcast": honest}, 3500)
    assert network.run(leased()) == ["10.0.2.2", "broadcast"]


@pytest.mark.parametrize(("answers", "asked"), [([6], ["10.0.2.2"]), ([], ["10.0.2.2", "broadcast"])])
def test_lost_address_is_taken_away_and_another_one_asked_for(answers: list[int], asked: list[str]) -> None:
    """Refused, or run out: the address may be another machine's now."""

    def server(message: bytes) -> list[bytes]:
        return [answer(transaction_of(message), kind) for kind in answers]

    network = Network({"10.0.2.2": server, "everybody": honest}, 3700)
    log = network.run(leased())
    assert log[: len(asked) + 3] == [*asked, "none", "everybody", "10.0.2.15/24"]


def test_lease_for_ever_is_left_alone() -> None:
    """Nothing is opened or asked."""
    clock = Time()
    wire = Wire(lambda m: [answer(transaction_of(m), 2 if kind_of(m) == 1 else 5, changes={51: b"\xff" * 4})], clock)
    lease = obtain(wire, HARDWARE, clock=clock)
    keep(lease, HARDWARE, everybody=_nothing, server=_nothing, change=_nothing, note=_nothing, clock=clock)


def _nothing(*_words: object) -> Any:
    raise AssertionError


def test_real_server_and_real_interface() -> None:
    """In a network of its own: BusyBox's udhcpd grants and renews, and the kernel has address, MTU and routes."""
    script = Path(__file__).parents[2] / "support/dhcp_network.py"
    done = subprocess.run(
        [*NAMESPACES, sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "by udhcpd 10.9.0.50/24 10.9.0.1 1400",
        "0.0.0.0/0 10.9.0.1",
        "10.9.0.0/24 -",
        "renewed 10.9.0.50",
        "ports open afterwards: 0",
        "Google 10.132.0.7/32 1460",
        "0.0.0.0/0 10.132.0.1",
        "10.132.0.1/32 -",
        "lost: []",
    ]
