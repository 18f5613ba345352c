"""`adyton serve`: run the key server until it is told to stop."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import HomeOption
from adyton.cli.output import say
from adyton.cli.verb import verb_app
from adyton.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

app = verb_app()


@app.command()
def serve(
    listen: Annotated[
        str | None, typer.Option(help="Address of Adyton's own protocol (HTTPS), HOST:PORT.", show_default=False)
    ] = None,
    gramine_listen: Annotated[
        str | None, typer.Option(help="Address of Gramine's protocol (RA-TLS), HOST:PORT.", show_default=False)
    ] = None,
    dashboard: Annotated[
        str | None,
        typer.Option(help="Address of the owner's web page, HOST:PORT; keep it to yourself.", show_default=False),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Address of Prometheus metrics (plain HTTP), HOST:PORT.", show_default=False)
    ] = None,
    collateral: Annotated[
        Path | None, typer.Option(help="Folder of collateral.  [HOME/collateral]", show_default=False)
    ] = None,
    online: Annotated[bool, typer.Option("--online", help="Fetch collateral that is missing or has expired.")] = False,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write the addresses here, as JSON, once they listen.", show_default=False)
    ] = None,
    log_format: Annotated[str, typer.Option(help="Log lines on standard error: text or json.")] = "text",
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say where it listens as one line of JSON.")] = False,
) -> None:
    """Serve keys to approved programs; each protocol on an address of its own. Port 0 takes any free port.

    The first lines on standard output say where it listens. SIGTERM or Ctrl-C stop it gracefully.
    """
    if listen is None and gramine_listen is None and dashboard is None:
        raise UsageError(
            "nothing to serve",
            check="adyton serve",
            expected="--listen, --gramine-listen or --dashboard",
            seen="none of them",
            remedy="adyton serve --listen 0.0.0.0:4433",
        )
    if log_format not in ("text", "json"):
        raise UsageError("unknown log format", check="--log-format", expected="text or json", seen=log_format)
    from adyton.workflow.serve import serve as carry_out

    carry_out(
        listen=listen,
        gramine_listen=gramine_listen,
        dashboard=dashboard,
        metrics=metrics,
        collateral=collateral,
        online=online,
        ready_file=ready_file,
        log_format="json" if log_format == "json" else "text",
        home=home,
        listening=_say_where_as_json if as_json else _say_where,
    )


def _say_where(addresses: Mapping[str, str]) -> None:
    for name, address in addresses.items():
        say(f"listening {name} {address}")
    sys.stdout.flush()


def _say_where_as_json(addresses: Mapping[str, str]) -> None:
    sys.stdout.write(json.dumps(dict(addresses)) + "\n")
    sys.stdout.flush()
