"""HOST:PORT as people write it. An IPv6 address stands in brackets: [2001:db8::1]:4433."""

from __future__ import annotations

import re
from typing import Final

from adyton.errors import UsageError

_WRITTEN: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[^\s\[\]:/@?#]+)):(?P<port>[0-9]{1,5})"
)
_MAX_HOST_CHARS: Final = 253
_MAX_PORT: Final = 65535


def parse_address(written: str, what: str) -> tuple[str, int]:
    """Host (without brackets) and port, 1 to 65535. Raises UsageError that names `what`."""
    return _parse(written, what, 1)


def parse_listening_address(written: str, what: str = "listening address") -> tuple[str, int]:
    """As `parse_address`, but port 0 is allowed: it means any free port."""
    return _parse(written, what, 0)


def address_text(address: tuple[str, int]) -> str:
    """The text that `parse_address` parses to this address."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse(written: str, what: str, first_port: int) -> tuple[str, int]:
    found = _WRITTEN.fullmatch(written)
    if found is not None:
        host, port = found["v6"] or found["host"], int(found["port"])
        if len(host) <= _MAX_HOST_CHARS and first_port <= port <= _MAX_PORT and _can_be_asked_for(host):
            return host, port
    raise UsageError(
        "this is no address",
        check=what,
        expected=f"HOST:PORT, with a port from {first_port} to {_MAX_PORT}",
        seen=written[:100],
        remedy="write a name or an address, a colon and a port, as keys.example.org:4433; an IPv6 address stands in"
        " brackets, as [2001:db8::1]:4433",
    )


def _can_be_asked_for(host: str) -> bool:
    """Whether the resolver takes this name: it raises UnicodeError, and no OSError, for an empty or too long label."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True
