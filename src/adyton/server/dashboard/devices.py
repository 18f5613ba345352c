"""Browsers that have logged in before: each has its own budget of passwords, whatever its address is used for.

A device is known by a cookie that this key server signed. Nothing is stored: the key comes from the password, so that
a new password forgets every device. Deriving it is slow on purpose (scrypt, once at the start): whoever steals such a
cookie could try passwords against it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from typing import Final

LIFETIME_S: Final = 400 * 24 * 3600
_TOKEN: Final = re.compile(r"([A-Za-z0-9_-]{22})\.([0-9]{1,12})\.([A-Za-z0-9_-]{43})", re.ASCII)


class Devices:
    """Makes and knows the cookies of devices."""

    def __init__(self, password: bytes) -> None:
        self._key = hashlib.scrypt(
            password, salt=b"adyton dashboard device 1", n=1 << 14, r=8, p=1, maxmem=32 << 20, dklen=32
        )

    def new(self, now_s: float) -> str:
        """The cookie of a device that has just logged in; `now_s` is seconds since 1970."""
        name, until = _text(secrets.token_bytes(16)), int(now_s) + LIFETIME_S
        return f"{name}.{until}.{self._code(name, until)}"

    def known(self, token: str | None, now_s: float) -> str | None:
        """The name of the device that a cookie belongs to; None for any cookie that was not made here, or is over."""
        found = _TOKEN.fullmatch(token or "")
        if found is None or not hmac.compare_digest(found[3], self._code(found[1], int(found[2]))):
            return None
        return found[1] if now_s < int(found[2]) else None

    def _code(self, name: str, until: int) -> str:
        return _text(hmac.new(self._key, f"{name}.{until}".encode(), hashlib.sha256).digest())


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
