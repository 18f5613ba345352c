"""`adyton policy`: show approvals and their history, change them, try evidence against them, and check a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adyton.cli.options import AllowOption, HomeOption, JSONOption
from adyton.cli.output import note, say, say_json
from adyton.cli.verb import group_app

app = group_app("Who may have which key: show it, change it, and try evidence against it.")


@app.command()
def show(
    key: Annotated[str | None, typer.Argument(help="Only the approvals of this key.", show_default=False)] = None,
    history: Annotated[bool, typer.Option("--history", help="Every revision: who changed what, when.")] = False,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show every approval: program, version, platform, conditions, state, what it leaves open, what keeps it back."""
    from adyton.keystore.approval import REVOKED
    from adyton.keystore.approval_gaps import gaps
    from adyton.manifest.findings import words
    from adyton.workflow.policy import show_policy

    shown = show_policy(key, history=history, home=home)
    if as_json:
        say_json(shown.to_dict())
        return
    found = shown.approvals
    if not found:
        note("nobody may have any key: adyton approve MANIFEST --key NAME --tee TEE")
    for item in found:
        approval = item.approval
        say(f"{item.id}  {item.state:<8}  {approval.app} {approval.version} may have key {approval.key!r}")
        say(f"    {approval.identity()}")
        tcb, over = ", ".join(approval.tcb_statuses), ", ".join(approval.protocols)
        say(f"    on {', '.join(approval.tees)}; TCB {tcb}; over {over}")
        limits = [
            f"until {approval.expires_at:%Y-%m-%d %H:%M} UTC" if approval.expires_at else "",
            f"at most {approval.max_runs} runs" if approval.max_runs is not None else "",
            f"at most {approval.max_active} runs at a time" if approval.max_active is not None else "",
            f"leases of {approval.lease_s} s",
            "debug TEEs allowed" if approval.allow_debug else "",
        ]
        say(f"    {', '.join(limit for limit in limits if limit)}")
        if approval.agreement:
            say(f"    on the ground of agreement {approval.agreement}")
        for guest in approval.guest_images:
            say(f"    guest image ({guest.kind}): {guest}")
        for tee, gap in gaps(approval) if item.state != REVOKED else ():
            line = gap.to_dict()
            say(f"    releases nothing under {tee}: {line['name']}: expected {line['expected']}, seen {line['seen']}")
            say(f"      {gap.remedy}")
        for advisory, until in approval.advisories.items():
            say(f"    accepts {advisory}{f' until {until:%Y-%m-%d}' if until else ''}")
        for name in approval.findings:
            say(f"    {'named' if name in approval.allowed else 'left open'}: {words(name)} ({name})")
    for revision in shown.history or ():
        when = _when(revision["at_ms"])
        what = f"{revision['approval']} revision {revision['revision']}"
        say(f"{when}  {what}: {revision['state']} by {revision['actor']}")


@app.command("set")
def set_entry(
    approval: Annotated[str, typer.Argument(help="Id of an approval.")],
    change: Annotated[
        list[str], typer.Argument(help="Entries to change, as JSON values: max_runs=10, 'protocols=[\"adyton\"]'.")
    ],
    allow: AllowOption = None,
    home: HomeOption = None,
) -> None:
    """Change entries of an approval; it counts from the next request on, and the former revision is kept.

    What the program exposes is looked at again, and must be named where it was not before.
    """
    from adyton.errors import UsageError
    from adyton.untrusted import parse_json
    from adyton.workflow.policy import set_policy

    changes: dict[str, Any] = {}
    for written in change:
        name, equals, value = written.partition("=")
        if not equals:
            raise UsageError(f"not a change: {written!r}", check="policy set", expected="NAME=JSON", seen=written[:80])
        changes[name] = parse_json(value, what=f"change {written!r}", refuse=UsageError)
    after = set_policy(approval, changes, allow=allow or (), home=home)
    say(f"{after.id} is at revision {after.revision}")


@app.command("approve")
def approve_pending(
    approval: Annotated[str, typer.Argument(help="Id of a pending approval.")],
    allow: AllowOption = None,
    home: HomeOption = None,
) -> None:
    """Approve what was proposed with `adyton approve --pending`, and show what it leaves open."""
    from adyton.workflow.policy import approve_pending as carry_out

    after = carry_out(approval, allow=allow or (), home=home, notice=note)
    say(f"approved {after.id}: {after.approval.app} {after.approval.version} may have key {after.approval.key!r}")
    say("what the measurement does not cover:")
    for line in after.approval.not_covered or ("nothing is known of it",):
        say(f"  - {line}")


@app.command("check")
def check_file(
    policy: Annotated[Path, typer.Argument(help="A policy of `adyton verify`, TOML or JSON.", metavar="FILE")],
    hosts: Annotated[
        list[Path] | None,
        typer.Option(help="File with a signed list of hosts that the policy names by its key; several allowed."),
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Say what the policy in FILE leaves open, in order of danger, and which line closes it.

    Exit code 0 also where much is open: what may be open is the owner's to decide.
    """
    from adyton.workflow.policy_check import check_policy

    checked = check_policy(policy, hosts=hosts or ())
    if as_json:
        say_json(checked.to_dict())
        return
    if checked.accepts_nothing:
        say("this policy accepts nothing: it names no TEE, or no program")
    for item in checked.left_open:
        say(f"{item.danger:<8}  {item.name}")
        say(f"    {item.means}")
        say(f"    close it: {item.remedy}")
    if checked.never_excluded:
        say(f"no evidence excludes: {', '.join(checked.never_excluded)}")


@app.command("sign-hosts")
def sign_list(
    hosts: Annotated[Path, typer.Argument(help="The list: until, and chip_ids, ppids or piids; TOML or JSON.")],
    key: Annotated[Path, typer.Option(help="Ed25519 private key, PEM without a password.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the signed list goes.")],
) -> None:
    """Sign a list of machines, for policies that name it by its key."""
    from adyton.workflow.policy_check import sign_host_list

    named = sign_host_list(hosts, key, output)
    say(f'signed {output}; a policy names it so: [[hosts.signed]] key = "{named}"')


@app.command("test")
def try_evidence(
    evidence: Annotated[Path, typer.Argument(help="A quote or report; or a denial's evidence (adyton audit export).")],
    key: Annotated[str | None, typer.Option(help="Only this key.", show_default=False)] = None,
    protocol: Annotated[str, typer.Option(help="Over which protocol.")] = "adyton",
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="The final manifest that the program would name; SEV-SNP knows no program without it.",
            show_default=False,
        ),
    ] = None,
    collateral: Annotated[
        Path | None, typer.Option(help="Collateral to use instead of the home's.", show_default=False)
    ] = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Try EVIDENCE against the policies: would it get a key, and if not, which line stands in the way?

    Nothing is released and nothing recorded. What the evidence is bound to is not compared, since that belongs to a
    connection.
    """
    from adyton.workflow.policy import try_evidence as carry_out

    tried = carry_out(evidence, key=key, protocol=protocol, manifest=manifest, collateral=collateral, home=home)
    if as_json:
        say_json(tried.to_dict())
    else:
        for result in tried.results:
            say(f"key {result.key!r}: {'would be released' if result.granted else 'would be refused'}")
            for judged in result.judged:
                approval = judged.approval.approval
                say(f"  {judged.approval.id} ({approval.app} {approval.version}, {judged.approval.state})")
                for line in judged.lines:
                    shown = line.to_dict()
                    mark = "ok  " if line.ok else "FAIL"
                    say(f"    {mark} {shown['name']}: expected {shown['expected']}, seen {shown['seen']}")
                    if not line.ok and line.remedy:
                        say(f"         {line.remedy}")
    tried.require()


def _when(at_ms: int) -> str:
    from adyton.keystore.clock import moment

    return f"{moment(at_ms):%Y-%m-%d %H:%M:%S}"
