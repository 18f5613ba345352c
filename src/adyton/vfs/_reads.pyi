from collections.abc import Callable
from typing import Final

from typing_extensions import Buffer

INLINE_BYTES: Final[int]
DATA_SLOTS: Final[int]
NODE_BYTES: Final[int]

class Shortcut:
    def __new__(cls, fd: int, /) -> Shortcut: ...
    def allow(self, size: int, trees: dict[int, bytearray], fetch: Callable[[int], bytearray], /) -> None: ...
    def forbid(self) -> None: ...

def install(shortcuts: dict[int, Shortcut], python: int, handle_at: int, clock: Buffer, ahead: int, /) -> int: ...
