"""HOST:PORT: one form for every option and document."""

from __future__ import annotations

import pytest

from adyton.address import address_text, parse_address, parse_listening_address
from adyton.errors import UsageError


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("keys.example.org:4433", "keys.example.org", 4433),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[2001:db8::1]:65535", "2001:db8::1", 65535),
        ("[fe80::1%eth0]:443", "fe80::1%eth0", 443),
        ("adyton_key-server.:1", "adyton_key-server.", 1),
        ("schlüssel.example:1", "schlüssel.example", 1),
    ],
)
def test_address_is_read_and_written_back(written: str, host: str, port: int) -> None:
    """Brackets are the form of an IPv6 address and no part of it."""
    assert parse_address(written, "address") == (host, port)
    assert address_text((host, port)) == written


@pytest.mark.parametrize(
    "written",
    [
        *("", ":", "host", "host:", ":80", "host:x", "host:-1", "host:99999", "host:٣", "host:0", "a b:1", "host:80\n"),
        *("::1:443", "[::1]", "[::1]443", "[host]:1", "[]:1", "user@host:1", "http://host:1", "x" * 254 + ":1"),
        *("a..b:1", ".a:1", "x" * 64 + ".org:1", "ü" * 64 + ":1"),
    ],
)
def test_what_is_no_address_is_refused_with_a_remedy(written: str) -> None:
    """An IPv6 address without brackets could be read in two ways."""
    with pytest.raises(UsageError) as caught:
        parse_address(written, "--key-server")
    assert caught.value.check == "--key-server"
    assert "brackets" in str(caught.value.remedy)


def test_port_0_is_for_listeners_only() -> None:
    """A listener takes any free port; nobody can be reached at port 0."""
    assert parse_listening_address("127.0.0.1:0") == ("127.0.0.1", 0)
