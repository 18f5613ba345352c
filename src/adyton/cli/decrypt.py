"""`adyton decrypt`: protected files back into plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def decrypt(
    sources: Annotated[list[Path], typer.Argument(metavar="SRC...", help="Protected files.")],
    target: Annotated[Path, typer.Option("--output", "-o", metavar="DEST", help="The plain file, or a directory.")],
    key: Annotated[str | None, typer.Option("--key", metavar="NAME", help="A key of your store.")] = None,
    key_file: Annotated[Path | None, typer.Option("--key-file", metavar="FILE", help="A file of 16 raw bytes.")] = None,
    home: Annotated[Path | None, typer.Option("--home", metavar="DIR", help="Your store.")] = None,
    check_path: Annotated[
        str | None, typer.Option("--check-path", metavar="PATH", help="The path that must be sealed in.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Workers; default: all processors.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace existing targets.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say the result as JSON.")] = False,
) -> None:
    """Decrypt protected files; nothing appears under the target's name unless all of it was verified."""
    from adyton.cli.key_option import choose_key
    from adyton.cli.output import progress, say, say_json
    from adyton.storage.files import decrypt_file

    wrap_key = choose_key(key, key_file, home)
    done = []
    for source in sources:
        to = target / source.name if target.is_dir() or len(sources) > 1 else target
        with progress(f"decrypting {source.name}", source.stat().st_size, quiet=as_json) as advance:
            opened = decrypt_file(source, to, wrap_key, path=check_path, jobs=jobs, force=force, advance=advance)
        done.append({"source": str(source), "target": str(to), "size": opened.size})
        if not as_json:
            say(f"{source} -> {to}  {opened.size} bytes")
    if as_json:
        say_json({"decrypted": done})
