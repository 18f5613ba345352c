"""`adyton connect`: a local address behind which a verified program answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import HomeOption
from adyton.cli.output import note, say
from adyton.cli.verb import verb_app
from adyton.errors import UsageError

if TYPE_CHECKING:
    from adyton.errors import Error
    from adyton.workflow.connect import Connected

app = verb_app()


@app.command()
def connect(
    target: Annotated[str, typer.Argument(help="The ingress of the program, HOST:PORT.", metavar="HOST:PORT")],
    command: Annotated[
        list[str] | None,
        typer.Argument(help="With --once: what to run. {addr} in it is the local address.", metavar="[-- COMMAND]..."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="What the program and its machine must be, TOML or JSON.", show_default=False)
    ] = None,
    listen: Annotated[
        str, typer.Option(help="Where local programs connect to: a loopback address, or unix:PATH.")
    ] = "127.0.0.1:0",
    tcp: Annotated[
        bool, typer.Option("--tcp", help="Carry bytes as they are, for other protocols than HTTP/1.1.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="The ingress that is meant, as the manifest names it.", show_default=False)
    ] = None,
    collateral: Annotated[
        list[Path] | None,
        typer.Option(help="Collateral file, bundle or folder; several allowed. Default: the owner's store."),
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write the address and the verdict here once it listens.", show_default=False)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Run COMMAND, and end with its exit status.")] = False,
    home: HomeOption = None,
) -> None:
    """Connect local programs to a program in a TEE, verified on each connection.

    The local address speaks HTTP/1.1 and WebSockets. A refused endpoint is answered with 502, and nothing is sent to
    it. With --tcp any protocol passes, and a refusal closes the connection.

    Exit code 0: it was verified, and ended by a signal. 90 to 96: refused. 110 to 114: it could not be checked.
    """
    if policy is None:
        raise UsageError(
            "whom to accept is missing",
            check="--policy",
            expected="a policy file",
            seen="none",
            remedy="write one: docs/attestation.md, section Policy",
        )
    if once != bool(command):
        raise UsageError(
            "--once and a command belong together", check="--once", expected="--once -- COMMAND", seen="one"
        )
    from adyton.workflow.connect import connect as carry_out

    status = carry_out(
        target,
        policy=policy,
        listen=listen,
        tcp=tcp,
        name=name,
        collateral=collateral or (),
        home=home,
        ready_file=ready_file,
        command=command,
        connected=_say_quietly if once else _say,
        refused=_refused,
    )
    raise typer.Exit(status)


def _say(done: Connected) -> None:
    for line in done.verdict:
        say(line)
    say(f"ingress     {done.ingress}")
    say(f"listening   {done.address if done.address.startswith('unix:') else 'http://' + done.address}")


def _say_quietly(done: Connected) -> None:
    note(f"verified: ingress {done.ingress}, at {done.address}")


def _refused(error: Error) -> None:
    note(f"refused: {error.message}")
