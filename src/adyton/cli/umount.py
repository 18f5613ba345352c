"""`adyton umount`: end a mount, and wait until everything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def umount(
    target: Annotated[Path, typer.Argument(metavar="MOUNTPOINT", help="Where `adyton mount` mounted.")],
) -> None:
    """Unmount MOUNTPOINT; returns once every file is flushed to the encrypted folder."""
    from adyton.workflow.mount import unmount

    unmount(target)
