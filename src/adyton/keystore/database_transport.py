"""Over which ways a store's database may be reached: on this machine, or through TLS that proves who answers.

libpq takes where it connects to, and how, from the URL, then from a service file, then from the environment. What is
written in the URL counts before all else; so a database elsewhere needs its TLS written there, and what counts as local
is looked for in all three.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

DRIVER: Final = "postgresql+psycopg"
SSLMODE: Final = "verify-full"
NO_GSS: Final[Mapping[str, str]] = {"gssencmode": "disable"}
"""GSSAPI encryption would take the place of TLS, and prove another thing."""


def further_arguments(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the arguments that libpq gets; raises StoreError where it could speak to somebody else unseen.

    `arguments` are those that the URL stands for, `environment` the process's.
    """
    database = str(arguments.get("dbname", ""))
    if "=" in database or "://" in database:
        raise StoreError(
            "the name of the database in store.url is a connection string of its own",
            check="store.url",
            expected="the plain name of a database",
            seen="a name with = or :// in it",
            remedy=f"write {DRIVER}://USER@HOST/NAME",
        )
    elsewhere = _elsewhere(arguments, environment)
    if elsewhere is None:
        return {}
    if arguments.get("sslmode") != SSLMODE or not arguments.get("sslrootcert"):
        raise StoreError(
            "the database is on another machine, and store.url does not say how that machine proves itself",
            check="TLS to the database",
            expected=f"sslmode={SSLMODE} and sslrootcert=FILE in store.url (or a database on this machine)",
            seen=f"{elsewhere}; sslmode {arguments.get('sslmode', 'not given')}, sslrootcert"
            f" {'given' if arguments.get('sslrootcert') else 'not given'}",
            remedy=f"append ?sslmode={SSLMODE}&sslrootcert=/path/to/ca.crt, with the CA that signed the database"
            " server's certificate; what PGSSLMODE says does not count",
        )
    return {} if "gssencmode" in arguments else dict(NO_GSS)


def _elsewhere(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    """What may lead to another machine, in words; None where nothing does."""
    if arguments.get("service") or environment.get("PGSERVICE"):
        return "a service file may name any host"
    for name, variable in (("host", "PGHOST"), ("hostaddr", "PGHOSTADDR")):
        written = arguments.get(name) or environment.get(variable) or ""
        for host in str(written).split(","):
            if not is_local(host.strip()):
                return f"{name} {host.strip()[:80]!r}"
    return None


def is_local(host: str) -> bool:
    """Whether a host, as libpq is given it, is this machine: a socket's folder, nothing, or a loopback address."""
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
