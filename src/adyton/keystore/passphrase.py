"""Ask the owner for a passphrase: at the terminal, or as a line of standard input."""

from __future__ import annotations

import getpass
import sys

from adyton.errors import UsageError


def ask_passphrase(*, confirm: bool) -> bytes:
    """Ask at the terminal. Where there is none, read one line of standard input."""
    if sys.stdin.isatty():
        first = getpass.getpass("Passphrase of the key store: ")
        if confirm and getpass.getpass("The same again: ") != first:
            raise UsageError("the passphrases differ", check="passphrase", remedy="type it again")
        return first.encode()
    given = sys.stdin.buffer.readline(4096).rstrip(b"\r\n")
    if not given:
        raise UsageError(
            "no passphrase was given",
            check="passphrase",
            expected="a line on standard input",
            seen="its end",
            remedy="type it at a terminal, or pipe it in; a service that starts by itself needs a master key of kind"
            " file or command (docs/keys.md)",
        )
    return given
