"""Addresses of key servers by their names, asked for before `adyton run` starts, by a process that can do nothing else.

The host's name servers answer, and the C library reads their answers. So that happens in a process of its own, as a
user without rights, that never meets a key. Its answer is one address or none. A false address leads to a server
without the owner's certificate, which `adyton run` refuses.
"""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from adyton.image.network import is_machine

_ASK: Final = (
    *(sys.executable, "-I", "-B", "-c"),
    "import socket, sys; print(socket.getaddrinfo(sys.argv[1], None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])",
)
_TIMEOUT_S: Final = 40
_MAX_ANSWER_BYTES: Final = 64
_NOBODY: Final = 65534
_ENVIRONMENT: Final = {"PATH": "/usr/bin", "LANG": "C.UTF-8"}


def resolve(
    names: Iterable[str], ask: Sequence[str] = _ASK, timeout_s: float = _TIMEOUT_S
) -> Mapping[str, ipaddress.IPv4Address]:
    """Name -> address, of the names that have one. Raises OSError where no process can be made."""
    found = {}
    for name in names:
        address = _resolved(name, ask, timeout_s)
        if address is not None:
            found[name] = address
    return found


def _resolved(name: str, ask: Sequence[str], timeout_s: float) -> ipaddress.IPv4Address | None:
    child = subprocess.Popen(
        [*ask, name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_ENVIRONMENT,
        user=_NOBODY,
        group=_NOBODY,
        extra_groups=[],
    )
    try:
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout_s)
        if child.poll() is None or child.stdout is None:
            return None
        answer = child.stdout.read(_MAX_ANSWER_BYTES)
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    with suppress(ValueError):
        address = ipaddress.IPv4Address(answer.decode("ascii", "replace").strip())
        return address if is_machine(address) else None
    return None
