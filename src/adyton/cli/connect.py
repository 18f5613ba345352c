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
    target: Annotated[
        str | None, typer.Argument(help="The ingress of the program, HOST:PORT.", metavar="HOST:PORT")
    ] = None,
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
    manifest_sha256: Annotated[
        str | None,
        typer.Option(help="SHA-256 of the program's manifest; SEV-SNP needs it.", metavar="HEX", show_default=False),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(help="The client's certificate, where the ingress asks for one (PEM).", show_default=False),
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key (PEM, without a password).", show_default=False)] = None,
    prove: Annotated[
        str | None,
        typer.Option(
            metavar="TEE",
            help="Show evidence of this machine, where the ingress judges its clients.",
            show_default=False,
        ),
    ] = None,
    sim_platform: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --prove: the simulated platform.", show_default=False)
    ] = None,
    collateral: Annotated[
        list[Path] | None,
        typer.Option(help="Collateral file, bundle or folder; several allowed. Default: the owner's store."),
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write the address and the verdict here once it listens.", show_default=False)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Run COMMAND, and end with its exit status.")] = False,
    print_policy: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST",
            help="Connect to nothing; print a policy for its clients.",
            show_default=False,
        ),
    ] = None,
    tee: Annotated[
        str | None, typer.Option(help="With --print-policy: the TEE that it runs in.", show_default=False)
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="IMAGE.JSON", help="With --print-policy: its guest image.", show_default=False),
    ] = None,
    rtmr0: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="With --print-policy: RTMR0 of a TDX guest.", show_default=False),
    ] = None,
    allow_host_acpi: Annotated[
        bool, typer.Option("--allow-host-acpi", help="With --print-policy: leave the host's ACPI tables open.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Connect local programs to a program in a TEE, verified on each connection.

    The local address speaks HTTP/1.1 and WebSockets. A refused endpoint is answered with 502, and nothing is sent to
    it. With --tcp any protocol passes, and a refusal closes the connection.

    Exit code 0: it was verified, and ended by a signal. 90 to 96: refused. 110 to 114: it could not be checked.
    """
    if print_policy is not None:
        if target is not None or policy is not None:
            raise UsageError(
                "--print-policy connects to nothing",
                check="--print-policy",
                expected="MANIFEST and --tee TEE, without HOST:PORT and --policy",
                seen=target or "--policy",
            )
        if tee is None:
            raise UsageError("say which TEE it runs in", check="--tee", expected="such as tdx", seen="none")
        from adyton.workflow.client_policy import client_policy

        found = client_policy(print_policy, tee=tee, image=image, rtmr0=rtmr0, allow_host_acpi=allow_host_acpi)
        for line in found.to_toml().splitlines():
            say(line)
        return
    if tee is not None or image is not None or rtmr0 is not None or allow_host_acpi:
        raise UsageError(
            "--tee, --image, --rtmr0 and --allow-host-acpi are for --print-policy",
            check="--print-policy",
            expected="--print-policy MANIFEST",
            seen="none",
            remedy="what to accept stands in the policy",
        )
    if target is None:
        raise UsageError("say what to connect to", check="HOST:PORT", expected="HOST:PORT", seen="nothing")
    if policy is None:
        raise UsageError(
            "whom to accept is missing",
            check="--policy",
            expected="a policy file",
            seen="none",
            remedy="adyton connect --print-policy NAME.manifest --tee TEE writes one from a manifest that you checked",
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
        manifest_sha256=manifest_sha256,
        certificate=certificate,
        key=key,
        prove=prove,
        sim_platform=sim_platform,
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
