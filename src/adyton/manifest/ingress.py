"""`[[adyton.ingress]]`: the ports through which clients reach a program, each connection proved (docs/endpoint.md)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from adyton.address import parse_address
from adyton.errors import UsageError
from adyton.manifest.pinned_ca import ca_sha256, check_ca
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
    client_policy: str | None = None
    """The text of a policy, as `adyton verify` takes it, which must accept the evidence that clients show."""
    client_policy_file: str | None = None
    """Only in a template: the file of that policy."""

    @property
    def is_final(self) -> bool:
        """Whether no file has to be put in its place."""
        return self.client_ca_file is None and self.client_policy_file is None

    @property
    def clients(self) -> str:
        """Who may connect, in words."""
        of_ca = () if self.client_ca is None else (f"with a certificate under the CA {ca_sha256(self.client_ca)}",)
        by_policy = () if self.client_policy is None else (f"whose evidence the policy {self.policy_sha256} accepts",)
        return " and ".join((*of_ca, *by_policy)) or "of any kind"

    @property
    def policy_sha256(self) -> str:
        """SHA-256 of the policy's text, as hex digits. Empty without one."""
        return "" if self.client_policy is None else hashlib.sha256(self.client_policy.encode()).hexdigest()


def ingress_name(program: str) -> str:
    """The name of an ingress for a program of this name: small letters, digits and inner hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", program.lower())[:63].strip("-") or "server"


def parse_ingress(tables: Sequence[Mapping[str, Any]], *, network: str) -> tuple[Ingress, ...]:
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
    for key in ("client_ca", "client_policy"):
        if key in table and f"{key}_file" in table:
            raise refuse(place, f"has both {key} and {key}_file", expected="one of them", seen="both")
    client_ca, client_policy = table.get("client_ca"), table.get("client_policy")
    if client_policy is not None and not client_policy.strip():
        raise refuse(f"{place}.client_policy", "is empty", expected="the text of a policy", seen=client_policy)
    return Ingress(
        name,
        listen,
        target,
        table.get("max_connections", DEFAULT_CONNECTIONS),
        None if client_ca is None else check_ca(client_ca, f"{place}.client_ca"),
        table.get("client_ca_file"),
        client_policy,
        table.get("client_policy_file"),
    )


def _address(written: str, place: str) -> tuple[str, int]:
    try:
        return parse_address(written, place)
    except UsageError as error:
        raise refuse(place, "is no address", expected=str(error.expected), seen=written) from None
