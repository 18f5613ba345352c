"""What names mean inside: the servers of `adyton.egress`, and the host's name and resolvers, made safe.

The former are measured. Nothing of the latter is (`sys.enable_extra_runtime_domain_names_conf`): the host can name any
resolver. As in Gramine, only well-formed lines of resolv.conf(5)
are passed on. Comments, unknown keywords and malformed values are left out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from adyton.manifest.identity_files import HOST_NAME

if TYPE_CHECKING:
    from adyton.manifest.egress import Egress

DEFAULT_HOST_NAME: Final = HOST_NAME
HOSTS: Final = b"127.0.0.1 localhost\n::1 localhost\n"
NAME_SERVICE: Final = b"hosts: files\n"
"""nsswitch.conf where names are looked up in /etc/hosts and nowhere else."""
MAX_LINES: Final = 64

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}))*\.?")
_OPTION: Final = re.compile(r"[a-z0-9-]{1,32}(:[0-9]{1,5})?")


def inside_addresses(servers: Iterable[Egress]) -> dict[str, str]:
    """An address of the program's own loopback for each name of a server."""
    names = dict.fromkeys(one.name for one in servers)
    return {name: f"127.1.0.{number}" for number, name in enumerate(names, 1)}


def hosts(servers: Iterable[Egress]) -> bytes:
    """The hosts file of a program that reaches these servers."""
    lines = [f"127.0.0.1 localhost {HOST_NAME}", "::1 localhost"]
    lines += [f"{address} {name}" for name, address in inside_addresses(servers).items()]
    return "".join(f"{line}\n" for line in lines).encode()


def host_name(raw: str) -> str:
    """The host's name, if it has at most 64 characters of a host name. Otherwise a fixed one."""
    name = raw.strip()
    return name if len(name) <= 64 and _NAME.fullmatch(name) else DEFAULT_HOST_NAME


def resolv_conf(raw: bytes) -> bytes:
    """The lines of a resolv.conf that are what they should be."""
    kept: list[str] = []
    for line in raw.decode("ascii", "replace").splitlines():
        keyword, *values = line.split() or [""]
        if keyword == "nameserver" and len(values) == 1 and _is_address(values[0]):
            kept.append(f"nameserver {values[0]}")
        elif keyword in ("search", "domain") and values:
            kept.append(" ".join([keyword, *(value for value in values if _NAME.fullmatch(value))]))
        elif keyword == "options" and values:
            kept.append(" ".join([keyword, *(value for value in values if _OPTION.fullmatch(value))]))
    return "".join(f"{line}\n" for line in kept[:MAX_LINES] if " " in line).encode()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
