"""The fresh process in which `adyton.run` runs a program: python -P -m adyton.workflow.run_process FD PARENT REQUEST.

It reports on the descriptor FD, a line of JSON each: notices, and at the end what came of it. It ends with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from adyton.errors import Error
from adyton.runtime.inherited import begin_anew
from adyton.vfs import syscalls
from adyton.workflow.run import Request, run_here


def main(report: int, parent: int, request: str) -> int:
    """Carry out the request and report; returns the exit status of the process."""
    begin_anew()
    os.set_inheritable(report, False)
    syscalls.die_with_parent(parent)

    def tell(message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(report, json.dumps(message).encode() + b"\n")

    try:
        ran = run_here(Request.from_json(request), lambda text: tell({"notice": text}))
    except Error as error:
        tell({"failure": error.to_dict()})
        return 1
    tell({"ran": asdict(ran)})
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
