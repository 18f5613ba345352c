"""A process of a run that carries connections, and the keeper's side of it. It has no key of any file.

The process writes lines of JSON: a text for each event, and `true` once its ports listen.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from typing import Final

from adyton.errors import Error, SandboxFailed
from adyton.runtime import host
from adyton.runtime.signals import PASSED_ON
from adyton.vfs import syscalls

_MAX_EVENT_CHARS: Final = 1000
_EVENTS_BYTES: Final = 1 << 16

Event = Callable[[str], None]
"""Tells the keeper one thing that happened, for whoever runs the program."""

Serve = Callable[[Event, Callable[[], None]], None]
"""The work of the process. It calls the second argument once its ports listen. It does not return."""


class NetworkProcess:
    """The keeper's side. `name` is the process's, as process lists show it after `adyton-`."""

    def __init__(self, name: str, pid: int, events: int) -> None:
        self.name = name
        self._pid = pid
        self._events = events
        self._rest = b""

    @classmethod
    def start(cls, name: str, serve: Serve) -> NetworkProcess:
        """Fork it. Returns once its ports listen. Raises SandboxFailed."""
        events_out, events_in = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(events_out)
                status = _live(name, parent, events_in, serve)
            finally:
                os._exit(status)
        os.close(events_in)
        started = cls(name, pid, events_out)
        try:
            started._await_ports()
        except BaseException:
            started.end()
            raise
        return started

    @property
    def events_fd(self) -> int:
        """Readable where events came in, and at the end of the process."""
        return self._events

    def _await_ports(self) -> None:
        told: list[str | bool] = []
        while True not in told:
            data = os.read(self._events, _EVENTS_BYTES)
            if not data:
                raise SandboxFailed(
                    "the process for the program's connections did not start",
                    check=self.name,
                    expected="a listening process",
                    seen="; ".join(map(str, told))[:300] or "its end, without a word",
                )
            told += self._lines(data)

    def _lines(self, data: bytes) -> list[str | bool]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def read_events(self) -> list[str] | None:
        """The events that came in. None once the process has ended."""
        data = os.read(self._events, _EVENTS_BYTES)
        return [line for line in self._lines(data) if isinstance(line, str)] if data else None

    def end(self) -> None:
        """End the process, and with it every connection."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._events)


def _live(name: str, parent: int, events: int, serve: Serve) -> int:
    """In the process: serve until killed. Signals of the terminal are not for it."""
    syscalls.die_with_parent(parent)
    syscalls.name_process(f"adyton-{name}")
    host.lock_memory()  # keys of TLS, and what is sent
    for number in (*PASSED_ON, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    host.allow_many_files()

    def tell(line: str | bool) -> None:
        with contextlib.suppress(OSError):
            os.write(events, json.dumps(line).encode() + b"\n")

    def event(text: str) -> None:
        tell(text.replace("\n", " ")[:_MAX_EVENT_CHARS])

    try:
        serve(event, lambda: tell(True))
    except Error as error:
        event(error.message)
        return error.exit_code
    except OSError as error:
        event(f"{name}: {error.strerror}")
        return 1
    return 0
