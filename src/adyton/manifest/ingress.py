"""`[[adyton.ingress]]`: the ports through which clients reach a program, each connection proved (docs/endpoint.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from adyton.address import parse_address
from adyton.errors import UsageError
from adyton.manifest.pinned_ca import check_ca
from adyton.manifest.schema_check import refuse

MAX_INGRESS: Final = 16
DEFAULT_LISTEN: Final = "0.0.0.0:8443"
DEFAULT_CONNECTIONS: Final = 1024

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
TARGET_HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ingress:
    """A port on the host's network, and the port in the program's own network behind it."""

    name: str
    listen: tuple[str, int]
    target: tuple[str, int]
    max_connections: int
    client_ca: str | None = None
    """PEM text of the one CA whose certificates clients must show. None: anybody may connect."""
    client_ca_file: str | None = None
    """Only in a template: the file of that certificate."""

    @property
    def is_final(self) -> bool:
        """Whether no file has to be put in its place."""
        return self.client_ca_file is None


def ingress_name(program: str) -> str:
    """The name of an ingress for a program of this name: small letters, digits and inner hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", program.lower())[:63].strip("-") or "server"


def parse_ingress(tables: Sequence[Mapping[str, Any]], *, network: str, gpus: int) -> tuple[Ingress, ...]:
    """The tables of a manifest whose types were checked. Raises MalformedManifest."""
    found = tuple(_one(table, f"adyton.ingress[{number}]") for number, table in enumerate(tables))
    if len(found) > MAX_INGRESS:
        raise refuse("adyton.ingress", "has too many entries", expected=f"at most {MAX_INGRESS}", seen=len(found))
    if found and network != "none":
        raise refuse(
            "adyton.ingress",
            "together with the host's network, over which the program is reached without proof",
            expected='adyton.network = "none"',
            seen=network,
        )
    if found and gpus:
        raise refuse(
            "adyton.ingress",
            "together with adyton.gpus: clients of this version verify no GPUs on a connection",
            expected="one of them",
            seen=f"{gpus} GPUs",
        )
    for what, values in (("name", [one.name for one in found]), ("port", [str(one.listen[1]) for one in found])):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise refuse("adyton.ingress", f"has one {what} twice", expected="each once", seen=twice)
    return found


def _one(table: Mapping[str, Any], place: str) -> Ingress:
    name = table["name"]
    if not _NAME.fullmatch(name):
        raise refuse(f"{place}.name", "is no name of an ingress", expected="a-z, 0-9 and inner hyphens", seen=name)
    target = _address(table["target"], f"{place}.target")
    if target[0] != TARGET_HOST:
        raise refuse(
            f"{place}.target",
            "lies outside the program's own network",
            expected=f"{TARGET_HOST}:PORT",
            seen=table["target"],
        )
    listen = _address(table.get("listen", DEFAULT_LISTEN), f"{place}.listen")
    client_ca, client_ca_file = table.get("client_ca"), table.get("client_ca_file")
    if client_ca is not None and client_ca_file is not None:
        raise refuse(place, "has both client_ca and client_ca_file", expected="one of them", seen="both")
    return Ingress(
        name,
        listen,
        target,
        table.get("max_connections", DEFAULT_CONNECTIONS),
        None if client_ca is None else check_ca(client_ca, f"{place}.client_ca"),
        client_ca_file,
    )


def _address(written: str, place: str) -> tuple[str, int]:
    try:
        return parse_address(written, place)
    except UsageError as error:
        raise refuse(place, "is no address", expected=str(error.expected), seen=written) from None
