"""Lay out the owner's files for `shout.py`."""

import random
import sys
from pathlib import Path

folder = Path(sys.argv[1], "words")
folder.mkdir(parents=True, exist_ok=True)
letters = random.Random(7).choices("abcdefghijklmnopqrstuvwxyz ", k=20_000)
(folder / "speech.txt").write_text("".join(letters) + "\n")
