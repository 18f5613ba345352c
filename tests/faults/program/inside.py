"""A Python program that looks around in its sandbox, and prints what it found as one JSON object."""

from __future__ import annotations

import json
from pathlib import Path

from tests.mount import world

OUT = [["encrypted", "/out", "file:out"]]


def report(folder: Path, script: str) -> dict[str, object]:
    """What the script printed; it has `errno`, `json` and `os`."""
    result = world.run(folder, world.python("import errno, json, os\n" + script, mounts=OUT))
    assert result.status == 0, result.err
    told: dict[str, object] = json.loads(result.out)
    return told
