"""`adyton inspect`: what a protected file is; it writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adyton.cli.protected import AsJSON, Home, Jobs, KeyFile, KeyName

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Protected files.")],
    key: KeyName = None,
    key_file: KeyFile = None,
    home: Home = None,
    verify: Annotated[bool, typer.Option("--verify", help="Verify every node; needs the key.")] = False,
    jobs: Jobs = None,
    as_json: AsJSON = False,
) -> None:
    """Say version, size and state of protected files; with the key also embedded path, exact size and root.

    Without a key nothing that is said is authenticated.
    """
    from adyton.cli.key_option import choose_key
    from adyton.cli.output import progress, say, say_json
    from adyton.errors import UsageError
    from adyton.storage.files import verify_file
    from adyton.storage.inspection import inspect_file

    wrap_key = choose_key(key, key_file, home) if key is not None or key_file is not None else None
    if verify and wrap_key is None:
        raise UsageError("--verify needs the key", check="key", expected="--key or --key-file", seen="neither")
    found: list[dict[str, Any]] = []
    for file in files:
        facts = inspect_file(file, wrap_key)
        if verify and wrap_key is not None:
            with progress(f"verifying {file.name}", facts["size_bytes"], quiet=as_json) as advance:
                verify_file(file, wrap_key, jobs=jobs, advance=advance)
            facts["verified"] = True
        found.append(facts)
        if not as_json:
            width = max(map(len, facts))
            say("\n".join(f"{name.replace('_', ' '):<{width}}  {value}" for name, value in facts.items()))
            if len(files) > 1:
                say("")
    if as_json:
        say_json({"files": found})
