"""`adyton umount`: end a mount, and wait until everything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adyton.cli.verb import verb_app

app = verb_app()


@app.command()
def umount(
    target: Annotated[Path, typer.Argument(metavar="MOUNTPOINT", help="Where `adyton mount` mounted.")],
) -> None:
    """Unmount MOUNTPOINT; returns once every file is flushed to the encrypted folder."""
    from adyton.workflow.mount import unmount

    unmount(target)
