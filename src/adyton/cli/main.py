"""The command line: finds the verb, runs it, and turns an `Error` into words and an exit code.

A verb is a module of this package with a Typer `app`; it is imported only when it is called,
because starting a protected program must not wait for the verbs that it does not use.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

from adyton import __version__
from adyton.cli.output import note
from adyton.errors import Error, ScriptFailed

VERBS: Final[dict[str, tuple[str, str]]] = {
    "init": ("adyton.cli.init", "Make the owner's identity and key store."),
    "key": ("adyton.cli.key", "Make, list and export keys."),
    "collateral": ("adyton.cli.collateral", "Fetch, show, export and import what evidence is verified against."),
    "encrypt": ("adyton.cli.encrypt", "Encrypt files and directories into protected files."),
    "decrypt": ("adyton.cli.decrypt", "Decrypt protected files."),
    "inspect": ("adyton.cli.inspect", "Look inside a protected file, or verify all of it; writes nothing."),
    "pin": ("adyton.cli.pin", "Hold an encrypted folder to its newest state: nothing older is taken."),
    "rekey": ("adyton.cli.rekey", "Seal protected files anew: another key, path or format version."),
    "protect": ("adyton.cli.protect", "From a script to an approved program: all that the owner does, at once."),
    "new": ("adyton.cli.new", "Propose a manifest template from one observed native run of a script."),
    "build": ("adyton.cli.build", "Make a template the final manifest: hash, sign, measure."),
    "pack": ("adyton.cli.pack", "Write an approved program into one file, to carry it to the other machine."),
    "diff": ("adyton.cli.diff", "Say which file, key or mount changed a measurement."),
    "explain-measurement": ("adyton.cli.explain_measurement", "Say in words what a measurement covers."),
    "approve": ("adyton.cli.approve", "Allow what a manifest measures to have a key."),
    "revoke": ("adyton.cli.revoke", "Withdraw an approval."),
    "policy": ("adyton.cli.policy", "Show policies and their history; try evidence against them."),
    "serve": ("adyton.cli.serve", "Serve keys to programs that prove what they are."),
    "run": ("adyton.cli.run", "Run a program in a TEE, with its keys released by attestation."),
    "connect": ("adyton.cli.connect", "Connect local programs to a program in a TEE, verified on each connection."),
    "mount": ("adyton.cli.mount", "Mount a folder of protected files as an ordinary one."),
    "umount": ("adyton.cli.umount", "End such a mount with everything flushed."),
    "verify": ("adyton.cli.verify", "Verify attestation evidence and explain the verdict."),
    "receipt": ("adyton.cli.receipt", "Verify, show and connect the receipts of runs."),
    "audit": ("adyton.cli.audit", "List, verify and export the record of releases and refusals."),
    "backup": ("adyton.cli.backup", "Write keys, policies and audit record into one sealed file."),
    "restore": ("adyton.cli.restore", "Take such a file back, on this machine or another."),
    "image": ("adyton.cli.image", "Build, measure and boot a guest image for confidential machines."),
    "platform": ("adyton.cli.platform", "Make, show, change and serve a simulated TEE platform."),
    "doctor": ("adyton.cli.doctor", "Say which TEE this machine has, what is missing, and how to get it."),
}
"""Verb -> (module with a Typer `app`, one line of help), in the order of the workflow."""

INTERRUPTED: Final = 130


def _help() -> str:
    width = max((len(verb) for verb in VERBS), default=0)
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            "Usage: adyton VERB [ARGS]...   (adyton help VERB says more)",
            "",
            "Run unmodified PyTorch programs on machines you do not trust.",
            "",
            *lines,
            "",
            "  --version  Say which Adyton this is.",
            "  --help     Say this.",
            "  --show-completion [SHELL]  Print what completes verbs and options in bash, zsh or fish.",
        ]
    )


def report(error: Error, *, as_json: bool) -> None:
    """Say on standard error (or as JSON on standard output) what was refused and why."""
    if as_json:
        sys.stdout.write(json.dumps(error.details()) + "\n")
        return
    lines = [f"adyton: {error.message}"]
    lines += [
        f"  {name:<9}{text}"
        for name, text in error.details().items()
        if name in ("check", "expected", "seen", "remedy") and text not in error.message
    ]
    note("\n".join(lines))


def _unwind(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _end_in_order() -> None:
    """Let SIGTERM and SIGHUP unwind what was begun, as Ctrl-C does; who ignores them (nohup) goes on doing so."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _unwind)


def _interrupted(verb: str) -> NoReturn:
    from adyton.cli.interrupted import words

    note(words(verb))
    sys.exit(INTERRUPTED)


def _complete(option: str, rest: list[str]) -> NoReturn:
    """Print a shell's script, or what can stand where the line of a shell ends."""
    from adyton.cli.completion import candidates, script

    try:
        sys.stdout.write(script(*rest[:1]) if option == "--show-completion" else "\n".join(candidates(rest, VERBS)))
    except Error as error:
        report(error, as_json=False)
        sys.exit(error.exit_code)
    sys.exit(0)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one verb and exit: 0, the program's own status, or the code of the error's class."""
    args = sys.argv[1:] if argv is None else argv
    if args[:1] == ["help"] and len(args) > 1 and not args[1].startswith("-"):
        args = [*args[1:], "--help"]
    if not args or args[0] in ("--help", "-h", "help"):
        sys.stdout.write(_help() + "\n")
        sys.exit(0 if args else 2)
    if args[0] == "--version":
        sys.stdout.write(f"adyton {__version__}\n")
        sys.exit(0)
    verb, *rest = args
    if verb in ("--show-completion", "--complete"):
        _complete(verb, rest)
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        sys.stderr.write(f"adyton: no verb {verb!r}{f'; is it {near[0]}?' if near else ''}\n\n{_help()}\n")
        sys.exit(2)
    if verb != "mount":  # there libfuse listens for them
        _end_in_order()
    try:
        app = importlib.import_module(VERBS[verb][0]).app
        app(args=rest, prog_name=f"adyton {verb}")
    except ScriptFailed as error:
        note(f"adyton: {error.message}" + (f"\n  remedy   {error.remedy}" if error.remedy else ""))
        sys.exit(error.status)
    except Error as error:
        report(error, as_json="--json" in rest)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _interrupted(verb)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # Typer makes it of Ctrl-C
            _interrupted(verb)
        raise
    except RuntimeError as error:  # CPython 3.11 makes it of whatever is raised while a class is made, at an import
        if isinstance(error.__cause__, SystemExit):
            sys.exit(error.__cause__.code)
        if isinstance(error.__cause__, KeyboardInterrupt):
            _interrupted(verb)
        raise
    sys.exit(0)
