"""`adyton init`: make an owner's identity and key store."""

from __future__ import annotations

from typing import Annotated

import typer

from adyton.cli.output import say, say_json
from adyton.cli.owner_options import HomeOption, JSONOption, owner_store

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
    import hashlib
    import shlex
    import ssl

    from adyton.errors import UsageError
    from adyton.keystore.certificates import DEFAULT_SERVER_NAME
    from adyton.keystore.config import MASTER_KINDS
    from adyton.keystore.grant_key import make_grant_key
    from adyton.keystore.home import actor, default_home
    from adyton.keystore.names import check_name
    from adyton.keystore.new_home import init_home
    from adyton.keystore.passphrase import ask_passphrase
    from adyton.keystore.server_certificate import renew_server_certificate

    if renew_server:
        with owner_store(home) as (found, store):
            renew_server_certificate(found, tuple(server_name or ()))
            make_grant_key(found, store, actor=actor())
        say(f"renewed {found.path / 'server.crt'} and grant.crt; restart adyton serve to use them")
        return
    if master not in MASTER_KINDS or (master == "command") != (master_command is not None):
        raise UsageError(
            "say where the master key comes from",
            check="--master",
            expected="file, passphrase, or command with --master-command",
            seen=f"{master}{' with' if master_command else ' without'} --master-command",
        )
    check_name(name, "owner's name")
    from adyton.manifest.signature import generate_signer

    names: tuple[str, ...] = (DEFAULT_SERVER_NAME, "localhost", "127.0.0.1")
    if server_name:
        names = tuple(dict.fromkeys((*server_name, DEFAULT_SERVER_NAME)))
    passphrase = None
    if master == "passphrase":
        given = ask_passphrase(confirm=True)
        passphrase = lambda: given  # noqa: E731 - one secret, asked once
    made = init_home(
        home if home is not None else default_home(),
        name=name,
        server_names=names,
        master=master,
        master_command=tuple(shlex.split(master_command)) if master_command else (),
        store_url=store_url,
        signer_pem=generate_signer(),
        passphrase=passphrase,
    )
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(made.ca_path.read_text())).hexdigest()
    if as_json:
        say_json({"home": str(made.path), "ca": str(made.ca_path), "ca_sha256": fingerprint, "server_name": names[0]})
        return
    say(f"home         {made.path}")
    say(f"CA           {made.ca_path}  (SHA-256 {fingerprint})")
    say(f"key server   {names[0]}")
    say("next: adyton key new NAME, adyton encrypt, adyton build, adyton approve, adyton serve; and adyton backup")
