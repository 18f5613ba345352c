"""The file server of `tests.mount.served`, killed as by kill -9 in the middle of a write of its own to the host.

Which write is in the file `arm` beside the folder that is served, looked for at every write: `3 half` ends it in the
middle of the third from then on, `3 after` after it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adyton.pfile.backing import OSFile

if TYPE_CHECKING:
    from typing_extensions import Buffer

if __name__ == "__main__":
    from tests.mount.served import main

    arm = Path(sys.argv[1]).parent / "arm"
    write = OSFile.write_at
    written = 0

    def write_and_die(self: OSFile, offset: int, data: Buffer, /) -> None:
        global written
        if not arm.exists():
            write(self, offset, data)
            return
        number, how = arm.read_text().split()
        written += 1
        if written != int(number):
            write(self, offset, data)
            return
        view = memoryview(data).cast("B")
        write(self, offset, view[: len(view) // 2] if how == "half" else view)
        os.kill(os.getpid(), signal.SIGKILL)

    OSFile.write_at = write_and_die  # type: ignore[method-assign]
    main()
