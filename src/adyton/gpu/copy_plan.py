"""Which bytes of the file go through the staging buffers together, and where they go in the GPU's memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adyton.gpu.safetensors import Entry

ALIGNMENT: Final = 256
"""Where a tensor may begin in the GPU's memory: a multiple of this, as DLPack asks for."""


@dataclass(frozen=True, slots=True)
class Copy:
    """`size` bytes from `source` in the staging buffer to `target` in the GPU's memory."""

    source: int
    target: int
    size: int


@dataclass(frozen=True, slots=True)
class Window:
    """`size` bytes from `offset` of the file, which fill a staging buffer from its start, and where they go."""

    offset: int
    size: int
    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """Everything that is copied, once each, and where each tensor begins in the GPU's memory."""

    device_bytes: int
    places: Mapping[str, int]
    windows: tuple[Window, ...]


def plan_copies(entries: Iterable[Entry], window_bytes: int) -> CopyPlan:
    """Plan the copies of some tensors. A window has at most `window_bytes`, and has no byte that nobody wants."""
    places: dict[str, int] = {}
    windows: list[Window] = []
    end = 0
    at, size, copies = 0, 0, list[Copy]()
    for entry in sorted(entries, key=lambda item: item.offset):
        target = -(-end // ALIGNMENT) * ALIGNMENT
        places[entry.name] = target
        end = target + entry.size
        done = 0
        while done < entry.size:
            if size == window_bytes or (size and entry.offset + done != at + size):
                windows.append(Window(at, size, tuple(copies)))
                size, copies = 0, []
            if not size:
                at = entry.offset + done
            piece = min(entry.size - done, window_bytes - size)
            copies.append(Copy(size, target + done, piece))
            size += piece
            done += piece
    if size:
        windows.append(Window(at, size, tuple(copies)))
    return CopyPlan(end, places, tuple(windows))
