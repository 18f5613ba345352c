"""Watch a server: ask it one thing once it accepts connections, then end it by SIGTERM, as `adyton run` does.

A server does not end by itself. It has been seen when it has answered one request, and a client's command where one is
given: many servers load a part of their files only when a request needs it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.errors import ScriptFailed, UsageError
from adyton.manifest.ingress import TARGET_HOST
from adyton.manifest.observe import ServerSeen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEFAULT_WATCH_S: Final = 120.0

_STOP_S: Final = 10.0
_CONNECT_S: Final = 1.0
_PAUSE_S: Final = 0.1
_BODY_S: Final = 2.0
_PIECE_BYTES: Final = 1 << 16
_TRACER: Final = re.compile(r"^TracerPid:\t([0-9]+)$", re.MULTILINE)


class ServerWatch:
    """One server, traced by strace, from its start to its end. `look` is called again and again while it runs."""

    def __init__(self, port: int, seconds: float = DEFAULT_WATCH_S, client: str | None = None) -> None:
        """`client` is a command that uses the server, as a shell splits it. `{addr}` in it becomes HOST:PORT.

        Raises UsageError where the port is none, or another program has it already, or the command is none.
        """
        if not 1 <= port <= 65535:
            raise UsageError("this is no port", check="--serve", expected="1 to 65535", seen=port)
        if not 0 < seconds < threading.TIMEOUT_MAX:
            raise UsageError("this is no time to watch", check="--watch", expected="seconds, over 0", seen=seconds)
        self.port = port
        self._seconds = seconds
        self._client = () if client is None else _words(client, f"{TARGET_HOST}:{port}")
        self._client_failed = f"did not end within {seconds:g} s" if self._client else None
        self._accepted = self._answered = self._killed = False
        self._told_at: float | None = None
        self._over = threading.Event()
        if self._connects():
            raise UsageError(
                f"another program listens on {TARGET_HOST}:{port} already",
                check="--serve",
                expected="a port that only this server will listen on",
                seen="a port in use",
                remedy="end the other program, or let the server listen on another port",
            )

    def start(self) -> None:
        """Begin to ask. The time to watch begins, too."""
        self._until = time.monotonic() + self._seconds
        threading.Thread(target=self._ask_until_answered, name="adyton-probe", daemon=True).start()

    def look(self, tracer: int) -> None:
        """Tell the server to end once it has been seen, and kill what is left of it some seconds later."""
        now = time.monotonic()
        if self._told_at is None:
            if self._answered or now >= self._until:
                self._over.set()
                self._told_at = now
                _signal(_children(tracer), signal.SIGTERM)
        elif now >= self._told_at + _STOP_S:
            self._killed = True
            _signal(_traced_by(tracer), signal.SIGKILL)

    def ended(self, status: int) -> ServerSeen:
        """What was seen, after the end. Raises ScriptFailed where that is no server that listened until it was told."""
        self._over.set()
        if self._told_at is None:
            raise ScriptFailed(
                f"the server ended by itself with status {status}, before it had answered on {TARGET_HOST}:{self.port}",
                status=status if 1 <= status <= 255 else 1,
                remedy="make it run natively first; without --serve a program is watched to its own end",
            )
        if not self._accepted:
            raise ScriptFailed(
                f"nothing listened on {TARGET_HOST}:{self.port} within {self._seconds:g} s",
                status=1,
                remedy=f"let the server listen on {TARGET_HOST}:{self.port}, or watch it longer: --watch SECONDS",
            )
        if self._client_failed is not None:
            raise ScriptFailed(
                f"the client's command {self._client_failed}",
                status=1,
                remedy="make it work with the server as it runs natively, or give both more time: --watch SECONDS",
            )
        return ServerSeen(self.port, self._answered, status, self._killed)

    def close(self) -> None:
        """Stop asking."""
        self._over.set()

    def _connects(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((TARGET_HOST, self.port), timeout=_CONNECT_S):
            return True
        return False

    def _ask_until_answered(self) -> None:
        while not self._over.wait(_PAUSE_S):
            left = self._until - time.monotonic()
            if left <= 0:
                return
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._ask(left)
                if self._client:
                    self._client_failed = self._use()
                self._answered = True
                return

    def _use(self) -> str | None:
        """Run the client's command. How it failed, or None."""
        try:
            process = subprocess.Popen(self._client, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        except OSError as error:
            return f"cannot be run: {error.strerror}"
        while process.poll() is None:
            if self._over.wait(_PAUSE_S):
                process.kill()
                process.wait()
                return self._client_failed
        return None if process.returncode == 0 else f"ended with status {process.returncode}"

    def _ask(self, seconds: float) -> None:
        """One request. Raises OSError or HTTPException where no answer in HTTP came within these seconds."""
        asked = http.client.HTTPConnection(TARGET_HOST, self.port, timeout=min(seconds, _CONNECT_S))
        try:
            asked.connect()
            self._accepted = True
            asked.sock.settimeout(seconds)
            asked.request("GET", "/", headers={"User-Agent": "adyton", "Accept": "*/*"})
            answer = asked.getresponse()
            if asked.sock is not None:
                asked.sock.settimeout(_BODY_S)
            end = time.monotonic() + _BODY_S
            with contextlib.suppress(OSError, http.client.HTTPException):
                while time.monotonic() < end and answer.read1(_PIECE_BYTES):
                    pass  # after the whole body the server has done all that the request takes; a stream has no end
        finally:
            asked.close()


def _words(command: str, address: str) -> Sequence[str]:
    """The words of a command. Raises UsageError where there are none."""
    try:
        found = [word.replace("{addr}", address) for word in shlex.split(command)]
    except ValueError:
        found = []
    if found:
        return found
    raise UsageError(
        "this is no command",
        check="--client",
        expected="a program and its arguments, with {addr} for the server's address",
        seen=command[:80],
        remedy="such as --client 'curl -sf http://{addr}/health'",
    )


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def _traced_by(tracer: int) -> Iterator[int]:
    """Every process that this one traces: also those whose parent has ended."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - names alone
        with contextlib.suppress(OSError, ValueError):
            found = _TRACER.search(Path(f"/proc/{int(name)}/status").read_text())
            if found is not None and int(found[1]) == tracer:
                yield int(name)


def _signal(pids: Iterator[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
