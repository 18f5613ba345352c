"""Runs an example's script with its phases timed, natively or confidentially alike.

    python timed.py PHASES.json SCRIPT.py ARGUMENTS...

The script stays as it is: its imports run first, then what remains of it, then its `main`; the functions that load and
save (`LOAD`, `SAVE`) are wrapped with a clock. PHASES.json gets seconds per phase and the wall-clock times at which the
first and the last line ran.
"""

import time

first_line = time.time()

import ast  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

LOAD = ("Records", "read_photo", "safe_open", "Tokenizer", "Encoder", "lines")
SAVE = ("save",)


class Clock:
    """Seconds per phase; a phase inside another one counts for the outer one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"load": 0.0, "save": 0.0}
        self.inside = False

    def timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, with its seconds added to a phase."""

        @functools.wraps(call, updated=())
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return call(*args, **kwargs)
            self.inside, began = True, time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[phase] += time.perf_counter() - began
                self.inside = False

        return wrapper


class TimedTensors:
    """An open safetensors file whose reads are timed."""

    def __init__(self, clock: Clock, file: Any) -> None:
        self.clock, self.file = clock, file

    def __enter__(self) -> Any:
        self.clock.timed("load", self.file.__enter__)()
        return self

    def __exit__(self, *error: object) -> Any:
        return self.file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return self.clock.timed("load", getattr(self.file, name))


def main(phases: str, script: str, *arguments: str) -> None:
    """Run the script's imports, its definitions, and its `main`, and write down how long each phase took."""
    tree = ast.parse(Path(script).read_text(), script)
    imports: list[ast.stmt] = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    rest = [node for node in tree.body if node not in imports]
    space: dict[str, Any] = {"__name__": "timed_script", "__file__": script}
    clock = Clock()
    began = time.perf_counter()
    exec(compile(ast.Module(imports, []), script, "exec"), space)
    clock.seconds["import"] = time.perf_counter() - began
    exec(compile(ast.Module(rest, []), script, "exec"), space)
    for names, phase in ((LOAD, "load"), (SAVE, "save")):
        for name in names:
            if name == "safe_open" and name in space:
                opened = clock.timed("load", space[name])
                space[name] = lambda *args, opened=opened: TimedTensors(clock, opened(*args))
            elif isinstance(space.get(name), type):
                space[name].__init__ = clock.timed(phase, space[name].__init__)
            elif name in space:
                space[name] = clock.timed(phase, space[name])
    began = time.perf_counter()
    space["main"](*arguments)
    clock.seconds["compute"] = time.perf_counter() - began - clock.seconds["load"] - clock.seconds["save"]
    Path(phases).write_text(json.dumps({**clock.seconds, "first_line": first_line, "last_line": time.time()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
