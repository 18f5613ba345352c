"""A run that a test talks to, line by line and in bounded time, while it plays the host."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.mount import world

START_S = 30.0
"""A start may take so long on a busy machine; what the host's faults may take is `attacks.IN_TIME_S`."""


class Running:
    """A started run: `line` is what the program says next, `say` answers it, `end` waits for how it ended."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.process = world.start(folder, {"stdin": True, **spec}, stdin=subprocess.PIPE)
        self._said = b""

    def line(self, timeout_s: float = START_S) -> str:
        """The next line of the program's output, without its end; "" where there is none any more."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._said:
                assert selector.select(max(0.0, deadline - time.monotonic())), f"nothing said in {timeout_s} s"
                more = os.read(self.process.stdout.fileno(), 1 << 16)
                if not more:
                    break
                self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def say(self, text: str) -> None:
        """Give the program a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def answer(self, text: str, timeout_s: float) -> str:
        """What the program says to a line."""
        self.say(text)
        return self.line(timeout_s)

    def end(self, timeout_s: float = 60) -> world.Result:
        """Wait for the end; `out` is what was not yet taken by `line`."""
        result = world.finish(self.process, timeout_s)
        return world.Result(result.status, self._said.decode() + result.out, result.err, result.ended)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
