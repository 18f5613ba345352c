"""`adyton revoke`: take an approval back; the next request is refused."""

from __future__ import annotations

from typing import Annotated

import typer

from adyton.cli.output import note, say, say_json
from adyton.cli.owner_options import HomeOption, JSONOption, owner_store

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
    from adyton.errors import UsageError
    from adyton.keystore.approval import REVOKED
    from adyton.keystore.home import actor

    if not approval and key is None and app_name is None:
        raise UsageError(
            "say what to revoke", check="revoke", expected="approval ids, --key or --app", remedy="adyton policy show"
        )
    with owner_store(home) as (_, store), store.write() as change:
        for wanted in approval or ():
            change.approval(wanted)
        chosen = [
            item
            for item in change.approvals()
            if item.state != REVOKED
            and (not approval or item.id in approval)
            and (key is None or item.approval.key == key)
            and (app_name is None or item.approval.app == app_name)
            and (version is None or item.approval.version == version)
        ]
        done = [change.change_approval(item.id, actor=actor(), state=REVOKED) for item in chosen]
    if as_json:
        say_json({"revoked": [item.id for item in done]})
        return
    if not done:
        note("nothing to revoke: no approval that stands matches")
    for item in done:
        say(f"revoked {item.id}: {item.approval.app} {item.approval.version} no longer gets key {item.approval.key!r}")
