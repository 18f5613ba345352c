"""`[[adyton.egress]]`: the servers outside that a program may reach, each by its name and port, and nothing else."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from adyton.address import address_text
from adyton.manifest.pinned_ca import ca_sha256, check_ca
from adyton.manifest.schema_check import refuse

MAX_EGRESS: Final = 16
DEFAULT_CONNECTIONS: Final = 64

_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.ASCII)
_MAX_NAME_CHARS: Final = 253
_RESERVED: Final = frozenset({"localhost", "adyton"})
"""Names that mean the program's own machine already."""


@dataclass(frozen=True, slots=True)
class Egress:
    """A server outside. `name` is what the program calls it. `host` and `port` are what is dialled on the host's side.

    `ca` is the PEM text of the one CA under which the server must show itself. None: the connection is in clear.
    """

    name: str
    host: str
    port: int
    ca: str | None
    max_connections: int = DEFAULT_CONNECTIONS
    ca_file: str | None = None
    """Only in a template: the file of that certificate."""

    @property
    def is_final(self) -> bool:
        """Whether no file has to be put in its place."""
        return self.ca_file is None

    @property
    def address(self) -> str:
        """What is dialled, as text."""
        return address_text((self.host, self.port))

    @property
    def identity(self) -> str:
        """What the owner sees: the address, and the SHA-256 of the pinned CA where there is one."""
        return self.address if self.ca is None else f"{self.address} @ {ca_sha256(self.ca)}"


def parse_egress(tables: Sequence[Mapping[str, Any]], *, network: str) -> tuple[Egress, ...]:
    """The tables of a manifest whose types were checked. Raises MalformedManifest."""
    found = tuple(_one(table, f"adyton.egress[{number}]") for number, table in enumerate(tables))
    if len(found) > MAX_EGRESS:
        raise refuse("adyton.egress", "has too many entries", expected=f"at most {MAX_EGRESS}", seen=len(found))
    if found and network != "none":
        raise refuse(
            "adyton.egress",
            "together with the host's network, over which the program reaches anything",
            expected='adyton.network = "none"',
            seen=network,
        )
    places = [f"{one.name}:{one.port}" for one in found]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise refuse("adyton.egress", "has one name and port twice", expected="each once", seen=twice)
    return found


def _one(table: Mapping[str, Any], place: str) -> Egress:
    host = table["host"]
    address = _is_address(host)
    if not address and not _is_name(host):
        raise refuse(f"{place}.host", "is no host", expected="a name in small letters, or an IP address", seen=host)
    name = table.get("name", host)
    if not _is_name(name) or _is_address(name) or name in _RESERVED:
        raise refuse(
            f"{place}.name",
            "is no name under which the program could reach it",
            expected="a host name in small letters, and neither an address nor this machine's own name",
            seen=name,
            remedy='write name = "…", which resolves inside to an address of the program\'s own network',
        )
    plain, ca, ca_file = table.get("plain", False), table.get("ca"), table.get("ca_file")
    given = [key for key, here in (("plain", plain), ("ca", ca is not None), ("ca_file", ca_file is not None)) if here]
    if len(given) != 1:
        raise refuse(
            place,
            "must say how the server is known: by a CA, or not at all",
            expected="exactly one of ca_file, ca and plain = true",
            seen=" and ".join(given) or "none of them",
            remedy='write ca_file = "file:ca.pem", the CA of that server; or plain = true, and the host reads along',
        )
    return Egress(
        name,
        host,
        table["port"],
        None if ca is None else check_ca(ca, f"{place}.ca"),
        table.get("max_connections", DEFAULT_CONNECTIONS),
        ca_file,
    )


def _is_name(text: str) -> bool:
    return len(text) <= _MAX_NAME_CHARS and _NAME.fullmatch(text) is not None


def _is_address(text: str) -> bool:
    if "%" in text:
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
