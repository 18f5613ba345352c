"""Make the small protected files beside this module: `python -m tests.vectors.pfile.make`.

Provenance: the second implementation in this folder; keys and nonces are SHA-256 of a running text, so the
files come out the same every time.  `worked_example.pf` is the example of docs/protected-file.md.
"""

from __future__ import annotations

import hashlib
import json
from itertools import count
from pathlib import Path
from typing import Any

from tests.vectors.pfile.second import write

FOLDER = Path(__file__).parent
WRAP_KEY = bytes(range(16))

SIZES = (0, 1, 3072, 3073, 7168, 7169, 396_289)


def pattern(size: int) -> bytes:
    """Byte i is i mod 251."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def make(name: str, path: str, size: int, version: int, text: str) -> dict[str, Any]:
    """One file and what is to be found in it."""
    numbers = count(1)

    def fresh() -> bytes:
        return hashlib.sha256(f"{text}-{next(numbers)}".encode()).digest()

    host = write(WRAP_KEY, path.encode(), pattern(size), version=version, key=lambda: fresh()[:16], nonce=fresh)
    (FOLDER / name).write_bytes(host)
    return {
        "name": name,
        "wrap_key_hex": WRAP_KEY.hex(),
        "path": path,
        "size": size,
        "version": version,
        "plaintext": "byte i is i mod 251",
        "sha256": hashlib.sha256(host).hexdigest(),
    }


def main() -> None:
    """Make them all."""
    files = [make("worked_example.pf", "dir/file.bin", 8000, 2, "pf-example")]
    files += [
        make(f"v{version}_{size}.pf", f"made/{size}", size, version, f"v{version}/{size}")
        for version in (1, 2)
        for size in (SIZES if version == 2 else SIZES[:-1])
    ]
    index = {"generator": "python -m tests.vectors.pfile.make", "files": files}
    (FOLDER / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
