"""Who is logged in: one password, sessions in memory, a CSRF token for each; how often one may guess is `guesses`."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Final

LIFETIME_S: Final = 8 * 3600
IDLE_S: Final = 3600
MAX_SESSIONS: Final = 64


@dataclass(slots=True)
class Session:
    """One login."""

    token: str
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    began: float = field(default_factory=time.monotonic)
    seen: float = field(default_factory=time.monotonic)


class Sessions:
    """All logins of this process; thread-safe."""

    def __init__(self, password: bytes) -> None:
        self._password = hashlib.sha256(password).digest()
        self._sessions: dict[bytes, Session] = {}
        self._lock = threading.Lock()

    def log_in(self, password: str) -> Session | None:
        """A new session, or None for a wrong password; one SHA-256, so that guesses cost the server next to nothing."""
        if not hmac.compare_digest(hashlib.sha256(password.encode()).digest(), self._password):
            return None
        session = Session(secrets.token_urlsafe(32))
        with self._lock:
            if len(self._sessions) >= MAX_SESSIONS:
                oldest = min(self._sessions, key=lambda key: self._sessions[key].seen)
                del self._sessions[oldest]
            self._sessions[_key(session.token)] = session
        return session

    def find(self, token: str | None) -> Session | None:
        """The session of a cookie, if it lasts."""
        if not token:
            return None
        now = time.monotonic()
        with self._lock:
            session = self._sessions.get(_key(token))
            if session is None:
                return None
            if now - session.began > LIFETIME_S or now - session.seen > IDLE_S:
                del self._sessions[_key(token)]
                return None
            session.seen = now
            return session

    def log_out(self, token: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(_key(token), None)


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
