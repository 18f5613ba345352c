"""What of the host's name and resolvers reaches a program: only what has the right form."""

from __future__ import annotations

import pytest

from adyton.manifest.egress import Egress
from adyton.runtime.resolver_config import DEFAULT_HOST_NAME, MAX_LINES, host_name, hosts, resolv_conf


def test_resolv_conf_keeps_what_resolvers_read() -> None:
    """Name servers of both families, search lists, options; spaced as one likes."""
    raw = b"nameserver   9.9.9.9\nnameserver 2620:fe::fe\nsearch a.example b.example\ndomain c.example\n"
    raw += b"options ndots:2 rotate\n"
    assert resolv_conf(raw) == raw.replace(b"   ", b" ")


@pytest.mark.parametrize(
    "line",
    [
        b"# a comment", b"nameserver", b"nameserver evil", b"nameserver 1.2.3.4 5.6.7.8", b"sortlist 1.2.3.0",
        b"options", b"search", b"search ../..", b"options $(x)", b"nameserver 1.2.3.4\0", b"\xff\xfe 1",
        b"include /etc/passwd",
    ],
)  # fmt: skip
def test_resolv_conf_leaves_out_everything_else(line: bytes) -> None:
    """Whatever the host writes there."""
    assert resolv_conf(line + b"\nnameserver 9.9.9.9\n") == b"nameserver 9.9.9.9\n"


def test_resolv_conf_is_bounded() -> None:
    """In its lines."""
    assert resolv_conf(b"nameserver 9.9.9.9\n" * 1000).count(b"\n") == MAX_LINES


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("node-1.example", "node-1.example"),
        ("a\n", "a"),
        ("", None),
        ("-x", None),
        ("a b", None),
        ("a" * 65, None),
        ("a\0b", None),
    ],
)
def test_host_name_is_a_name_or_the_fixed_one(raw: str, expected: str | None) -> None:
    """At most 64 characters, as uname(2) has them."""
    assert host_name(raw) == (expected or DEFAULT_HOST_NAME)


def test_servers_have_an_address_of_their_own_inside() -> None:
    """One for each name, whatever their ports, and nothing else beside this machine."""
    servers = [Egress(name, "h", port, None) for name, port in (("a", 1), ("b", 1), ("a", 2))]
    assert hosts(servers) == b"127.0.0.1 localhost adyton\n::1 localhost\n127.1.0.1 a\n127.1.0.2 b\n"
