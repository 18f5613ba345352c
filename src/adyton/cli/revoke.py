"""`adyton revoke`: take an approval back; the next request is refused."""

from __future__ import annotations

from typing import Annotated

import typer

from adyton.cli.options import HomeOption, JSONOption
from adyton.cli.output import note, say, say_json
from adyton.cli.verb import verb_app

app = verb_app()


@app.command()
def revoke(
    approval: Annotated[list[str] | None, typer.Argument(help="Ids of approvals (adyton policy show).")] = None,
    key: Annotated[str | None, typer.Option(help="Every approval of this key.", show_default=False)] = None,
    app_name: Annotated[
        str | None, typer.Option("--app", help="Every approval of this program.", show_default=False)
    ] = None,
    version: Annotated[str | None, typer.Option(help="With --app: of this version only.", show_default=False)] = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Take approvals back. A key that a running program already has stays with it; rotate the key if that matters."""
    from adyton.workflow.revoke import revoke as carry_out

    done = carry_out(approval or (), key=key, app=app_name, version=version, home=home)
    if as_json:
        say_json(done.to_dict())
        return
    if not done.approvals:
        note("nothing to revoke: no approval that stands matches")
    for item in done.approvals:
        say(f"revoked {item.id}: {item.approval.app} {item.approval.version} no longer gets key {item.approval.key!r}")
