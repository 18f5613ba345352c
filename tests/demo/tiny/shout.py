"""An ordinary program for tests: copies a text in capitals."""

import base64
import sys
import zlib
from pathlib import Path

words = Path(sys.argv[1]).read_text()
digest = base64.b64encode(zlib.crc32(words.encode()).to_bytes(4, "big")).decode()
Path(sys.argv[2]).write_text(words.upper() + digest + "\n")
