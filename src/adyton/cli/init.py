"""`adyton init`: make an owner's identity and key store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import HomeOption, JSONOption
from adyton.cli.output import say, say_json
from adyton.cli.verb import verb_app

if TYPE_CHECKING:
    from adyton.workflow.init import Initialized

app = verb_app()


@app.command()
def init(
    home: HomeOption = None,
    name: Annotated[str, typer.Option(help="Your name, as it stands in your CA certificate.")] = "owner",
    server_name: Annotated[
        list[str] | None,
        typer.Option(
            help="A name or IP address of the key server (repeatable). Its certificate has adyton-key-server besides,"
            " the name that manifests pin unless they say server_name.",
            show_default=False,
        ),
    ] = None,
    master: Annotated[str, typer.Option(help="Where the master key comes from: file, passphrase or command.")] = "file",
    master_command: Annotated[
        str | None, typer.Option(help="The command that prints the master key (for an HSM or a cloud KMS).")
    ] = None,
    store_url: Annotated[
        str, typer.Option(help="Where the store lives, as postgresql+psycopg://…  [HOME/store.db]", show_default=False)
    ] = "",
    renew_server: Annotated[
        bool,
        typer.Option(
            "--renew-server",
            help="Only make new keys and certificates for an existing home's key server (TLS, and what signs grants);"
            " with --server-name for other names.",
        ),
    ] = False,
    as_json: JSONOption = False,
) -> None:
    """Make your identity: a CA of your own, the key server's certificate, a signing key, and an empty key store.

    Everything lies in one folder (--home, else ADYTON_HOME, else ~/.adyton) of mode 0700. Nothing there leaves this
    machine but ca.crt, which `adyton build` puts into manifests.
    """
    import shlex

    from adyton.keystore.passphrase import ask_passphrase
    from adyton.workflow.init import init as carry_out
    from adyton.workflow.init import renew_server as renew

    if renew_server:
        renewed = renew(home, server_names=server_name or ())
        say(f"renewed {renewed / 'server.crt'} and grant.crt; restart adyton serve to use them")
        return
    made = carry_out(
        home,
        name=name,
        server_names=server_name or (),
        master=master,
        master_command=() if master_command is None else shlex.split(master_command),
        store_url=store_url,
        passphrase=(lambda: ask_passphrase(confirm=True)) if master == "passphrase" else None,
    )
    if as_json:
        say_json(made.to_dict())
    else:
        show(made)


def show(made: Initialized) -> None:
    """Say what was made, and what comes next."""
    say(f"home         {made.home}")
    say(f"CA           {made.ca}  (SHA-256 {made.ca_sha256})")
    say(f"key server   {made.server_name}")
    say("next: adyton key new NAME, adyton encrypt, adyton build, adyton approve, adyton serve; and adyton backup")
