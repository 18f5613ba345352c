"""`adyton encrypt`: files and directories into protected files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def encrypt(
    sources: Annotated[list[Path], typer.Argument(metavar="SRC...", help="Files to encrypt.")],
    target: Annotated[Path, typer.Option("--output", "-o", metavar="DEST", help="The protected file, or a directory.")],
    key: Annotated[str | None, typer.Option("--key", metavar="NAME", help="A key of your store.")] = None,
    key_file: Annotated[Path | None, typer.Option("--key-file", metavar="FILE", help="A file of 16 raw bytes.")] = None,
    home: Annotated[Path | None, typer.Option("--home", metavar="DIR", help="Your store.")] = None,
    embedded: Annotated[str | None, typer.Option("--as", metavar="PATH", help="Embed this path, not DEST's.")] = None,
    version: Annotated[int, typer.Option("--format", min=1, max=2, help="1: also for Gramine 1.8 and older.")] = 2,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Workers; default: all processors.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace existing targets.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say the result as JSON.")] = False,
) -> None:
    """Encrypt files, so that only who has the key and reads them under the embedded path can use them."""
    from adyton.cli.key_option import choose_key
    from adyton.cli.output import progress, say, say_json
    from adyton.storage.files import encrypt_file

    wrap_key = choose_key(key, key_file, home)
    done = []
    for source in sources:
        to = target / source.name if target.is_dir() or len(sources) > 1 else target
        with progress(f"encrypting {source.name}", source.stat().st_size, quiet=as_json) as advance:
            sealed = encrypt_file(
                source, to, wrap_key, path=embedded, version=version, jobs=jobs, force=force, advance=advance
            )
        done.append({"source": str(source), "target": str(to), "size": sealed.size})
        if not as_json:
            say(f"{source} -> {to}  {sealed.size} bytes")
    if as_json:
        say_json({"encrypted": done})
