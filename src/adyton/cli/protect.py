"""`adyton protect`: everything that the owner does before a run, each step said as the command that does it alone."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shlex
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from adyton.cli.output import say
from adyton.cli.owner_options import AllowOption
from adyton.errors import UsageError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def protect(
    script: Annotated[Path, typer.Argument(help="A Python script, or any program.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Its arguments, as it needs them for a real run.")
    ] = None,
    tee: Annotated[
        str | None,
        typer.Option(help="Where it may run: sgx, tdx, snp, sim:FINGERPRINT; sim makes a simulated platform here."),
    ] = None,
    key: Annotated[str, typer.Option(help="Name of the key of inputs and outputs; made if there is none.")] = "default",
    name: Annotated[str | None, typer.Option(help="Name of the program.  [the script's]", show_default=False)] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an older template and older encrypted inputs.")
    ] = False,
    allow: AllowOption = None,
    home: Annotated[
        Path | None,
        typer.Option(help="Your home; made if there is none.  [ADYTON_HOME, or ~/.adyton]", show_default=False),
    ] = None,
    sim_platform: Annotated[
        Path | None,
        typer.Option(envvar="ADYTON_SIM_PLATFORM", help="Folder of the simulated platform.  [~/.adyton-sim]"),
    ] = None,
) -> None:
    """Run SCRIPT once as it is, and make of it a program that may run on a machine that you do not trust.

    Makes your identity and key where there are none, finds the files that the script needs, encrypts its inputs, builds
    and signs the manifest, and approves it for the key. Each step is shown as the command that does it alone.
    Options of Adyton stand before SCRIPT.
    """
    if tee is None:
        raise UsageError(
            "say where the program may run",
            check="--tee",
            expected="sgx, tdx, snp, sim:FINGERPRINT, or sim for a simulated platform on this machine",
            seen="nothing",
            remedy="adyton protect --tee sim …, to try it here",
        )
    if not script.is_file():
        raise UsageError(f"there is no file {script}", check="script", expected="a file", seen="nothing")
    from adyton.keystore.home import default_home

    platform = sim_platform or Path.home() / ".adyton-sim"
    mine = () if home is None else ("--home", str(home))
    again = ("--force",) if force else ()
    if not ((home or default_home()) / "ca.crt").exists():
        _do("init", *mine)
    if key not in _keys(home):
        _do("key", "new", key, *mine)
    approved_on = _simulated(platform, mine) if tee == "sim" else tee

    name = name or script.stem
    proposed = _do_json("new", *again, "--name", name, "--key", key, str(script), *(arguments or []))
    inputs = [item for item in proposed["data"] if item["input"]]
    for item in inputs:
        _do("encrypt", item["source"], "-o", item["encrypted"], "--key", key, *again, *mine)
    for item in proposed["data"]:
        if item["output"] and not item["input"]:
            folder = Path(item["encrypted"]) if Path(item["source"]).is_dir() else Path(item["encrypted"]).parent
            folder.mkdir(parents=True, exist_ok=True)
    gramine, protocol = (("--gramine",), ("--protocol", "ra-tls")) if tee == "sgx" else ((), ())
    _do("build", f"{name}.manifest.template", *gramine, *mine)
    named = (word for item in allow or () for word in ("--allow", item))
    _do("approve", f"{name}.manifest", "--key", key, "--tee", approved_on, *protocol, *named, *mine)

    say("")
    say("next, the key server on your machine, and the program on the other one:")
    say(f"  adyton serve {'--gramine-listen 0.0.0.0' if gramine else '--listen 127.0.0.1'}:4433")
    say(f"  adyton run {name}.manifest --tee {tee.partition(':')[0]} --key-server 127.0.0.1:4433")
    for item in proposed["data"]:
        if item["output"]:
            say(f"  adyton decrypt {item['encrypted']} -o decrypted/{item['source']} --key {key}")


def _simulated(platform: Path, mine: tuple[str, ...]) -> str:
    """The name for a policy of the simulated platform, made if there is none; its collateral is in the home after."""
    from adyton.sim.platform import SimPlatform

    if not platform.exists():
        _do("platform", "new", str(platform))
    with tempfile.TemporaryDirectory() as folder:
        collateral = str(Path(folder) / "collateral.json")
        _do("platform", "export", str(platform), "-o", collateral)
        _do("collateral", "import", collateral, *mine)
    return f"sim:{SimPlatform.load(platform).root_fingerprint}"


def _keys(home: Path | None) -> set[str]:
    from adyton.cli.owner_options import owner_store

    with owner_store(home) as (_, store), store.read() as view:
        known = view.keys()
    return {found.name for found in known}


def _do(verb: str, *words: str) -> None:
    """Say and run one verb; its errors are its own."""
    from adyton.cli.main import VERBS

    say(f"$ adyton {shlex.join((verb, *words))}")
    verb_app = importlib.import_module(VERBS[verb][0]).app
    try:
        verb_app(args=list(words), prog_name=f"adyton {verb}")
    except SystemExit as ended:
        if ended.code not in (0, None):
            raise


def _do_json(verb: str, *words: str) -> dict[str, Any]:
    """Say and run one verb, and return what it says with --json."""
    from adyton.cli.main import VERBS

    say(f"$ adyton {shlex.join((verb, *words))}")

    shown = io.StringIO()
    verb_app = importlib.import_module(VERBS[verb][0]).app
    try:
        with contextlib.redirect_stdout(shown):
            verb_app(args=["--json", *words], prog_name=f"adyton {verb}")
    except SystemExit as ended:
        if ended.code not in (0, None):
            raise
    document: dict[str, Any] = json.loads(shown.getvalue())
    return document
