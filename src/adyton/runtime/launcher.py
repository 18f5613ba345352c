"""The program that starts another under a name of the manifest's choice (argv[0]): see `_launcher.c`.

Gramine gives argv[0] as the manifest has it, and interpreters look at it, so it is given here too.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path


def program() -> bytes | None:
    """The launcher, an executable that needs no library; None where it was not built (no compiler)."""
    spec = importlib.util.find_spec("adyton.runtime._launcher")
    return None if spec is None or spec.origin is None else Path(spec.origin).read_bytes()
