"""What a host tells a guest when it starts: which manifest to run, how to reach the network and the key servers. Pure.

All of it is untrusted, and none of it is a command. The manifest decides what runs, and the owner's key server decides
whether keys come. A host that lies here can only keep the program from starting.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from adyton.address import parse_address
from adyton.errors import Error, MalformedManifest
from adyton.image.network import MIN_PREFIX, Configuration, routes_by_gateway
from adyton.image.plain_archive import plain_name
from adyton.typed_document import TypedDocument
from adyton.untrusted import parse_json_object

FORMAT: Final = "adyton-guest/1"
MEMBER: Final = "adyton-guest.json"
"""The name of the first file in the archive that a guest gets."""
MAX_BYTES: Final = 64 << 10
MAX_ITEMS: Final = 64
MAX_ARGUMENT_CHARACTERS: Final = 4096
MAX_NAME_SERVERS: Final = 3
TEES: Final = ("tpm", "tdx", "snp", "az-snp", "az-tdx", "nitrotpm")

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?", re.ASCII)
_OWNER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Network:
    """The guest's own address with its prefix length, the gateway, and name servers."""

    address: ipaddress.IPv4Interface
    gateway: ipaddress.IPv4Address | None = None
    name_servers: tuple[ipaddress.IPv4Address, ...] = ()

    def configuration(self) -> Configuration:
        """What the guest's interface is set to."""
        return Configuration(self.address, routes_by_gateway(self.address, self.gateway), self.name_servers)


@dataclass(frozen=True, slots=True)
class DHCP:
    """The network's own server says what the guest's address is. `name_servers` replace those that it says."""

    name_servers: tuple[ipaddress.IPv4Address, ...] | None = None


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """The whole document."""

    manifest: str
    tee: str
    key_servers: tuple[str, ...] = ()
    """`HOST:PORT` or `OWNER=HOST:PORT`, as `adyton run --key-server` takes them."""
    arguments: tuple[str, ...] = ()
    network: Network | DHCP | None = None
    """None: the guest has no network."""
    hosts: Mapping[str, ipaddress.IPv4Address] = field(default_factory=dict)
    """Name -> address, for names that no name server knows."""
    gpu_collateral: str | None = None
    """A file of the archive with collateral for GPUs, which is signed."""

    def to_bytes(self) -> bytes:
        """The document as JSON. It is parsed again first. Raises MalformedManifest."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "manifest": self.manifest,
            "tee": self.tee,
            "key_servers": list(self.key_servers),
            "arguments": list(self.arguments),
            "hosts": {name: str(address) for name, address in self.hosts.items()},
        }
        if self.gpu_collateral is not None:
            document["gpu_collateral"] = self.gpu_collateral
        if self.network is not None:
            network: dict[str, Any] = {}
            document["network"] = network
            if isinstance(self.network, DHCP):
                network["dhcp"] = True
            else:
                network["address"] = str(self.network.address)
                network["gateway"] = None if self.network.gateway is None else str(self.network.gateway)
            if self.network.name_servers is not None:
                network["name_servers"] = [str(address) for address in self.network.name_servers]
        raw = json.dumps(document).encode("ascii")
        parse_settings(raw)
        return raw

    def command(self) -> list[str]:
        """The words of `adyton run`. The program's arguments stand behind `--`, where nothing is an option."""
        words = ["run", "--tee", self.tee]
        for server in self.key_servers:
            words += ["--key-server", server]
        if self.gpu_collateral is not None:
            words += ["--gpu-collateral", f"./{self.gpu_collateral}"]
        return [*words, f"./{self.manifest}", "--", *self.arguments]

    def names_to_ask_for(self) -> list[str]:
        """The names of key servers whose address the settings do not say, each once."""
        names = dict.fromkeys(parse_address(server.rpartition("=")[2], "key server")[0] for server in self.key_servers)
        return [name for name in names if _NAME.fullmatch(name) and name not in self.hosts and not _is_address(name)]

    def hosts_file(self, found: Mapping[str, ipaddress.IPv4Address]) -> str:
        """The text of /etc/hosts, with names that were asked for."""
        known = {**found, **self.hosts}
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in sorted(known.items()))]
        return "\n".join(lines) + "\n"


def parse_settings(raw: bytes) -> GuestSettings:
    """Parse the document. Raises MalformedManifest for everything that is not exactly one."""
    top = TypedDocument(
        parse_json_object(raw, what="settings of the guest", refuse=MalformedManifest, limit_bytes=MAX_BYTES), _wrong
    )
    top.only({"format", "manifest", "tee"}, {"key_servers", "arguments", "network", "hosts", "gpu_collateral"})
    if top["format"] != FORMAT:
        raise _wrong("format", FORMAT, str(top["format"]))
    manifest = _path("manifest", top.text("manifest", 255))
    tee = top.text("tee", 16)
    if tee not in TEES:
        raise _wrong("tee", " or ".join(TEES), tee)
    servers = top.texts("key_servers", MAX_ITEMS) if "key_servers" in top else []
    for server in servers:
        _check_server(server)
    arguments = top.texts("arguments", MAX_ITEMS) if "arguments" in top else []
    if any(len(word) > MAX_ARGUMENT_CHARACTERS or "\0" in word for word in arguments):
        raise _wrong("arguments", f"texts of at most {MAX_ARGUMENT_CHARACTERS} characters", "another")
    hosts = top.inner("hosts") if "hosts" in top else {}
    if len(hosts) > MAX_ITEMS or not all(_NAME.fullmatch(name) for name in hosts):
        raise _wrong("hosts", f"at most {MAX_ITEMS} host names", "others")
    return GuestSettings(
        manifest,
        tee,
        tuple(servers),
        tuple(arguments),
        _network(top.inner("network")) if "network" in top else None,
        MappingProxyType({name: _address("hosts", hosts[name]) for name in hosts}),
        _path("gpu_collateral", top.text("gpu_collateral", 255)) if "gpu_collateral" in top else None,
    )


def _path(place: str, text: str) -> str:
    try:
        return plain_name(text.encode("utf-8", "surrogatepass"))
    except MalformedManifest as error:
        raise _wrong(place, "a plain path below the archive's folder", text[:80]) from error


def _check_server(text: str) -> None:
    owner, equals, address = text.rpartition("=")
    if len(text) > 512 or text.startswith("-") or (equals and _OWNER.fullmatch(owner) is None):
        raise _wrong("key_servers", "[OWNER=]HOST:PORT", text[:80])
    try:
        parse_address(address, "key server")
    except Error as error:
        raise _wrong("key_servers", "[OWNER=]HOST:PORT", text[:80]) from error


def _network(document: TypedDocument) -> Network | DHCP:
    servers = None
    if "name_servers" in document:
        texts = document.texts("name_servers", MAX_NAME_SERVERS)
        servers = tuple(_address("network.name_servers", text) for text in texts)
    if "dhcp" in document:
        document.only({"dhcp"}, {"name_servers"})
        if document["dhcp"] is not True:
            raise _wrong("network.dhcp", "true", "something else")
        return DHCP(servers)
    document.only({"address"}, {"gateway", "name_servers"})
    text = document.text("address", 18)
    try:
        own = ipaddress.IPv4Interface(text)
    except ValueError:
        own = None
    if own is None or "/" not in text or not MIN_PREFIX <= own.network.prefixlen <= 32:
        raise _wrong("network.address", "an IPv4 address with its prefix length", text)
    gateway = document.get("gateway")
    return Network(own, None if gateway is None else _address("network.gateway", gateway), servers or ())


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _address(place: str, value: object) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(value if isinstance(value, str) else "")
    except ValueError:
        raise _wrong(place, "an IPv4 address", str(value)[:80]) from None


def _wrong(place: str, expected: str, seen: str) -> Error:
    return MalformedManifest(
        f"the settings of the guest are wrong: {place}: expected {expected}, seen {seen[:160]}",
        check=f"settings of the guest: {place}",
        expected=expected,
        seen=seen[:160],
        remedy="docs/how-to/guest-image.md shows a whole document",
    )
