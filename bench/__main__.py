"""`python -m bench [ROOM] [ARGS]`: run the measurements of one room, or name the rooms."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> int:
    """Dispatch to `bench.ROOM.main(args)`."""
    rooms = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    if len(sys.argv) < 2 or sys.argv[1] not in rooms:
        sys.stdout.write("usage: python -m bench ROOM [ARGS]\nrooms: " + " ".join(rooms) + "\n")
        return 2
    importlib.import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
