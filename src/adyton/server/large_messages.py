"""The memory that large messages of all connections may take together.

Most requests are small. One with an event log and GPUs has up to a megabyte, and each of a thousand connections could
hold one. So what a message has beyond `FREE_BYTES` comes out of one share for all. It is counted as it arrives: a
client that announces much and sends nothing takes nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from adyton.keyserver.public_errors import busy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FREE_BYTES: Final = 64 * 1024
MAX_SHARED_BYTES: Final = 64 << 20


class LargeMessages:
    """The shared bytes. For one thread."""

    def __init__(self) -> None:
        self.taken_bytes = 0

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Hold what one message takes until its answer is made. The function is told how many bytes are there so far.

        It raises Unavailable where there is no room for them.
        """
        own_bytes = 0

        def arrived(total_bytes: int) -> None:
            nonlocal own_bytes
            more_bytes = max(0, total_bytes - FREE_BYTES) - own_bytes
            if self.taken_bytes + more_bytes > MAX_SHARED_BYTES:
                raise busy(
                    "the key server is overloaded",
                    check="large messages at a time",
                    expected=f"at most {MAX_SHARED_BYTES} bytes beyond {FREE_BYTES} each",
                    seen="more",
                    remedy="try again in a moment",
                )
            self.taken_bytes += more_bytes
            own_bytes += more_bytes

        try:
            yield arrived
        finally:
            self.taken_bytes -= own_bytes
