"""Options that several verbs have, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The owner's home.  [ADYTON_HOME, or ~/.adyton]", show_default=False)
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        help="Accept a finding that exposes the data, by its name; each has to be named.",
        metavar="FINDING",
        show_default=False,
    ),
]
RuntimeOption = Annotated[
    Path | None,
    typer.Option(
        "--runtime",
        metavar="IMAGE.JSON",
        help="Measure for the Adyton in this guest image.  [the Adyton installed here]",
        show_default=False,
    ),
]
ServeOption = Annotated[
    int | None,
    typer.Option(
        "--serve",
        metavar="PORT",
        help="It is a server on this port of 127.0.0.1: ask it one thing, end it by SIGTERM, and add an ingress.",
        show_default=False,
    ),
]
WatchOption = Annotated[
    float | None,
    typer.Option(
        "--watch", metavar="SECONDS", help="With --serve: how long it may take to answer.  [120]", show_default=False
    ),
]
ClientOption = Annotated[
    str | None,
    typer.Option(
        "--client",
        metavar="COMMAND",
        help="With --serve: run this while the server is watched. {addr} in it is the server's address.",
        show_default=False,
    ),
]
PinnedOption = Annotated[
    bool, typer.Option("--pinned", help="Pin the folders of its data: an older or missing file in them is refused.")
]
JSONOption = Annotated[bool, typer.Option("--json", help="One JSON document for programs.")]
KeyOption = Annotated[str | None, typer.Option("--key", metavar="NAME", help="A key of your store.")]
OpeningKeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="NAME", help="A key of your store; NAME@2 is its version 2."),
]
KeyFileOption = Annotated[Path | None, typer.Option("--key-file", metavar="FILE", help="A file of 16 raw bytes.")]
JobsOption = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Workers.  [as many as processors]")]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Replace what exists.")]
