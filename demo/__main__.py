"""`python -m demo`: the paper's whole workflow on this machine, then what is refused, then what the cloud could see.

--json       one JSON document instead of text
--keep DIR   leave the actors' folders there, and print the commands to repeat each step by hand
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from demo import show
from demo.steps import Journey
from demo.story import tell
from demo.world import StepFailed, World

if TYPE_CHECKING:
    from types import FrameType


def main() -> int:
    """Run the demo. 0 if all went as it must, 1 if something was not refused, leaked, or computed otherwise."""
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="leave the folders there, with the commands")
    asked = parser.parse_args()
    if asked.keep is not None and asked.keep.exists() and any(asked.keep.iterdir()):
        parser.error(f"{asked.keep} is not empty")
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        if asked.keep is not None:
            return _demo(asked.keep.absolute(), as_json=asked.json, keep=True)
        with tempfile.TemporaryDirectory(prefix="adyton-demo-") as folder:
            return _demo(Path(folder), as_json=asked.json, keep=False)
    except StepFailed as failed:
        sys.stderr.write(f"demo: {failed}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("demo: interrupted; its processes were ended\n")
        return 130


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _demo(folder: Path, *, as_json: bool, keep: bool) -> int:
    people = show.People(quiet=as_json)
    with World(folder) as world:
        told = tell(Journey(world, watch=people.step), people)
    if keep:
        people.kept(told.journey)
    if as_json:
        sys.stdout.write(json.dumps(show.document(told), indent=2) + "\n")
    return 0 if told.good else 1


if __name__ == "__main__":
    sys.exit(main())
