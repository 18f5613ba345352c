"""The untrusted network between a client and an ingress: it records, and flips a bit where it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Wire:
    """All bytes that passed, in both directions."""

    def __init__(self, target: tuple[str, int], flip: int | None) -> None:
        self._target = target
        self._flip = flip
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self.recorded = bytearray()
        self._begin(self._accept)

    @property
    def address(self) -> tuple[str, int]:
        """Where a client connects to."""
        host, port = self._listener.getsockname()[:2]
        return host, port

    def _begin(self, run: object, *words: object) -> None:
        thread = threading.Thread(target=run, args=words, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    continue
                self._sockets.append(far)
                self._begin(self._pump, near, far, None)
                self._begin(self._pump, far, near, self._flip)

    def _pump(self, source: socket.socket, sink: socket.socket, flip: int | None) -> None:
        seen = 0
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                if flip is not None and seen <= flip < seen + len(data):
                    changed = bytearray(data)
                    changed[flip - seen] ^= 1
                    data = bytes(changed)
                seen += len(data)
                with self._lock:
                    self.recorded += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Cut everything."""
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._listener, *self._sockets):
            one.close()


@contextmanager
def wire(target: tuple[str, int], *, flip: int | None = None) -> Iterator[Wire]:
    """A network to the target. `flip` is the position of the byte from there whose lowest bit is turned."""
    found = Wire(target, flip)
    try:
        yield found
    finally:
        found.close()
