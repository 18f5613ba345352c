"""The ring of pinned staging buffers: a part of the file is read and decrypted while the part before is copied.

Each worker has a stream and a few buffers of its own. It fills a buffer only after the copies from it are done. At the
end, also of a failure, it waits for its stream, wipes its buffers and frees them: no plaintext stays in them.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Protocol

from adyton.errors import Error, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Buffer

    from adyton.gpu.copy_plan import Window
    from adyton.gpu.libcuda import Device

BUFFERS: Final = 2
"""Buffers of each worker: one is filled while the other is copied."""


class Source(Protocol):
    """A file. It may be read from several threads."""

    def read_into(self, offset: int, target: Buffer, /) -> int:
        """Fill `target` from `offset`, with verified bytes alone. Returns their number."""
        ...


def copy_all(windows: Sequence[Window], source: Source, device: Device, memory: int, *, workers: int) -> None:
    """Copy all windows into the GPU's memory that begins at `memory`, and wait until they are there.

    Raises the first error of any worker. Then parts may have been copied.
    """
    if not windows:
        return
    size = max(window.size for window in windows)
    rest, stop = _Queue(windows), threading.Event()

    def work() -> None:
        try:
            _work(rest, stop, source, device, memory, size)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(min(workers, len(windows)), "adyton-gpu") as pool:
        jobs = [pool.submit(work) for _ in range(min(workers, len(windows)))]
    for job in jobs:
        job.result()


class _Queue:
    """Windows in their order, for several threads."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._windows = iter(windows)
        self._lock = threading.Lock()

    def next(self) -> Window | None:
        """The next one, or None at the end."""
        with self._lock:
            return next(self._windows, None)


def _work(windows: _Queue, stop: threading.Event, source: Source, device: Device, memory: int, size: int) -> None:
    device.activate()
    with contextlib.ExitStack() as stack:
        buffers = [stack.enter_context(_pinned(device, size)) for _ in range(BUFFERS)]
        events: list[int] = []
        for _ in range(BUFFERS):
            events.append(device.event())
            stack.callback(device.end_event, events[-1])
        stream = stack.enter_context(_stream(device))  # ends first: the buffers are not in use any more
        turn = 0
        while not stop.is_set() and (window := windows.next()) is not None:
            address, event = buffers[turn], events[turn]
            device.wait(event)
            view = memoryview((ctypes.c_ubyte * window.size).from_address(address)).cast("B")
            got = source.read_into(window.offset, view)
            if got != window.size:
                raise IntegrityError(
                    "the file ends before its last tensor",
                    check="size of the file",
                    expected=f"{window.size} bytes from {window.offset}",
                    seen=f"{got} bytes",
                    remedy="the file was cut while it was read: load it again",
                )
            for copy in window.copies:
                device.copy_in(memory + copy.target, address + copy.source, copy.size, stream)
            device.record(event, stream)
            turn = (turn + 1) % BUFFERS


@contextlib.contextmanager
def _stream(device: Device) -> Iterator[int]:
    """A stream. Everything in it is done at the end."""
    stream = device.stream()
    try:
        yield stream
        device.finish(stream)
    except BaseException:
        with contextlib.suppress(Error):
            device.finish(stream)
        raise
    finally:
        device.end_stream(stream)


@contextlib.contextmanager
def _pinned(device: Device, size: int) -> Iterator[int]:
    """A pinned buffer, wiped at the end."""
    address = device.pin(size)
    try:
        yield address
    finally:
        ctypes.memset(address, 0, size)
        device.unpin(address)
