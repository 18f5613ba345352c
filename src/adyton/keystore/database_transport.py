"""Connections to a store's database must be local, or use TLS that authenticates the server.

libpq takes its parameters from the URL, then from a service file, then from the environment. The URL has priority. So a
remote database needs its TLS parameters in the URL, and a database counts as local only if none of the three can name
another machine.
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
"""GSSAPI encryption would replace TLS, and would authenticate the server in another way."""


def further_arguments(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """Arguments to add for libpq. Raises StoreError where another server could answer unnoticed.

    `arguments` come from the URL, `environment` is that of the process.
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
    """The setting that may lead to another machine, as text. None where there is none."""
    if arguments.get("service") or environment.get("PGSERVICE"):
        return "a service file may name any host"
    for name, variable in (("host", "PGHOST"), ("hostaddr", "PGHOSTADDR")):
        written = arguments.get(name) or environment.get(variable) or ""
        for host in str(written).split(","):
            if not is_local(host.strip()):
                return f"{name} {host.strip()[:80]!r}"
    return None


def is_local(host: str) -> bool:
    """Whether a host in libpq's form is this machine: a socket's folder, empty, or a loopback address."""
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
