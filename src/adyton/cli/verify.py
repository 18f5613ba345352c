"""`adyton verify`: judge attestation evidence, and say so that a person understands it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.capped_read import read_capped
from adyton.cli.options import HomeOption, JSONOption
from adyton.cli.output import say, say_json
from adyton.cli.verb import verb_app
from adyton.dates import parse_end
from adyton.errors import Error, UsageError
from adyton.values import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

app = verb_app()

_MAX_EVENT_LOG_BYTES = 1 << 20
"""The most that is read. The verifier takes less, and says how much."""


@app.command()
def verify(
    evidence: Annotated[
        Path,
        typer.Argument(
            help="SGX, TDX or TPM quote, SEV-SNP report, evidence of Azure, AWS or GPUs, RA-TLS certificate.",
            metavar="EVIDENCE",
        ),
    ],
    collateral: Annotated[
        list[Path] | None,
        typer.Option(help="Collateral file, bundle or folder; several allowed. Default: the owner's store."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="Judge as at this time instead of now: a time with its zone, Unix seconds, or a date (the last second"
            " of that day, UTC)."
        ),
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="What to accept, TOML or JSON; without it nothing is.")] = None,
    hosts: Annotated[
        list[Path] | None,
        typer.Option(help="File with a signed list of hosts that the policy names by its key; several allowed."),
    ] = None,
    report_data: Annotated[
        str | None,
        typer.Option(help="What it must be bound to: 128 hex digits, or its nonce.", metavar="HEX"),
    ] = None,
    event_log: Annotated[
        Path | None,
        typer.Option(
            help="The firmware's log of the boot: for evidence of a TPM without one; for TDX it names the ACPI tables.",
            metavar="FILE",
        ),
    ] = None,
    program_data: Annotated[
        str | None,
        typer.Option(help="Or what a program wrote to user_report_data: up to 128 hex digits.", metavar="HEX"),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(
            help="Whose --program-data: the workload measurement.  [the policy's only one]",
            metavar="HEX",
            show_default=False,
        ),
    ] = None,
    nonce: Annotated[
        str | None, typer.Option(help="What each GPU's report must be for: 64 hex digits.", metavar="HEX")
    ] = None,
    certificate_chain: Annotated[
        Path | None,
        typer.Option(help="PEM chain of the GPU whose binary report is given.", metavar="PEM"),
    ] = None,
    token: Annotated[Path | None, typer.Option(help="Write a signed EAR-style token here.")] = None,
    token_key: Annotated[Path | None, typer.Option(help="PEM private key that signs the token.")] = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Verify attestation evidence and judge it by a policy.

    Exit code 0: the policy is met. 90 to 96: refused. 110 to 114: it could not be checked.
    """
    from adyton.workflow.verify import is_gpu_evidence, unjudged
    from adyton.workflow.verify import verify as carry_out

    if (token is None) != (token_key is None):
        raise UsageError("--token and --token-key belong together", check="--token", expected="both", seen="one")
    if is_gpu_evidence(evidence, certificate_chain):
        _only_for_cpus({"--report-data": report_data, "--program-data": program_data, "--workload": workload})
        _only_for_cpus({"--event-log": event_log})
        _only_for_cpus({"--token": token})
        _verify_gpus(evidence, certificate_chain, nonce, collateral or (), at, policy, home, as_json=as_json)
        return
    if nonce is not None:
        raise UsageError(
            "--nonce is for evidence of GPUs",
            check="--nonce",
            expected="--report-data for this evidence",
            seen="--nonce",
        )
    try:
        verdict = carry_out(
            evidence,
            collateral=collateral or (),
            at=None if at is None else _time(at),
            policy=policy,
            hosts=hosts or (),
            report_data=_bytes(
                report_data, "--report-data", "128 hex digits (append zeros to a hash), or a nonce", 512
            ),
            program_data=_bytes(program_data, "--program-data", "up to 128 hex digits", 64),
            workload=None if workload is None else Measurement.from_hex(workload),
            event_log=None if event_log is None else read_capped(event_log, _MAX_EVENT_LOG_BYTES, "event log"),
            home=home,
        )
    except Error as error:
        if not as_json:
            raise
        say_json(unjudged(error))
        raise typer.Exit(error.exit_code) from None
    if token is not None and token_key is not None:
        verdict.write_token(token, token_key)
    if as_json:
        say_json(verdict.to_dict())
    else:
        say(verdict.to_text())
    raise typer.Exit(verdict.error.exit_code if verdict.error else 0)


def _only_for_cpus(given: dict[str, object]) -> None:
    for option, value in given.items():
        if value is not None:
            raise UsageError(
                f"{option} is not for evidence of GPUs", check=option, expected="--nonce, or nothing", seen=option
            )


def _verify_gpus(
    evidence: Path,
    certificate_chain: Path | None,
    nonce: str | None,
    collateral: Sequence[Path],
    at: str | None,
    policy: Path | None,
    home: Path | None,
    *,
    as_json: bool,
) -> None:
    from adyton.workflow.verify_gpus import unjudged_gpus, verify_gpus

    try:
        verdict = verify_gpus(
            evidence,
            certificate_chain=certificate_chain,
            nonce=_bytes(nonce, "--nonce", "64 hex digits", 32, least=32),
            collateral=collateral,
            at=None if at is None else _time(at),
            policy=policy,
            home=home,
        )
    except Error as error:
        if not as_json:
            raise
        say_json(unjudged_gpus(error))
        raise typer.Exit(error.exit_code) from None
    if as_json:
        say_json(verdict.to_dict())
    else:
        say(verdict.to_text())
    raise typer.Exit(verdict.error.exit_code if verdict.error else 0)


def _time(at: str) -> datetime:
    if not at.isdecimal():
        return parse_end(at, "--at")
    try:
        return datetime.fromtimestamp(int(at), UTC)
    except (ValueError, OverflowError, OSError):
        wanted = "2026-01-31T12:00:00Z, or Unix seconds"
        raise UsageError(f"no time: {at[:80]!r}", check="--at", expected=wanted, seen=at[:80]) from None


def _bytes(text: str | None, option: str, expected: str, limit: int, *, least: int = 0) -> bytes | None:
    """The bytes that an option gives in hex, `least` to `limit` of them."""
    if text is None:
        return None
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = bytes(limit + 1)
    if len(text) != 2 * len(raw) or not least <= len(raw) <= limit:
        raise UsageError(f"{option} takes {expected}", check=option, expected=expected, seen=f"{len(text)} characters")
    return raw
