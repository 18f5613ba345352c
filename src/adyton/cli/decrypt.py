"""`adyton decrypt`: protected files back into plain ones."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adyton.cli.protected import (
    STREAM,
    AsJSON,
    Force,
    Home,
    Jobs,
    KeyFile,
    KeyName,
    Step,
    label,
    plain_bytes,
    plan,
    summary,
    told,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def decrypt(
    sources: Annotated[list[str], typer.Argument(metavar="SRC", help="Protected files, directories; - is a pipe.")],
    target: Annotated[
        str, typer.Option("--output", "-o", metavar="DEST", help="Plain file or directory; - is a pipe.")
    ],
    key: KeyName = None,
    key_file: KeyFile = None,
    home: Home = None,
    check_path: Annotated[
        str | None, typer.Option("--check-path", metavar="PATH", help="Refuse a file sealed under another path.")
    ] = None,
    jobs: Jobs = None,
    force: Force = False,
    as_json: AsJSON = False,
) -> None:
    """Decrypt protected files; nothing stands under the target's name unless all of it was verified.

    A file that was sealed under another name than it has now is refused, as somebody may have swapped two files;
    --check-path says which path it is to have instead.

    To a pipe every block is verified before it is written, but a later block may still be refused: then
    the exit status is the only word of it.
    """
    from adyton.cli.key_option import choose_key
    from adyton.cli.output import progress, say, say_json
    from adyton.errors import UsageError

    wrap_key = choose_key(key, key_file, home)
    done = []
    steps = plan(sources, target)
    if target == STREAM and (as_json or steps[0].is_tree):
        raise UsageError("standard output takes one file, and nothing else", check="-o -", expected="one file")
    for step in steps:
        path = None if check_path is None else step.embedded(check_path)
        with progress(f"decrypting {label(step)}", plain_bytes(step), quiet=as_json) as advance:
            done.append(_decrypt(step, wrap_key, path=path, jobs=jobs, force=force, advance=advance))
        if not as_json and step.target != STREAM:
            say(told(done[-1]))
    if as_json:
        say_json({"decrypted": done})


def _decrypt(step: Step, key: Any, *, path: str | None, jobs: int | None, force: bool, advance: Any) -> dict[str, Any]:
    import sys
    from pathlib import Path

    from adyton.atomic_file import atomic_target
    from adyton.storage.files import decrypt_file, decrypt_stream
    from adyton.storage.trees import decrypt_tree

    source, to = Path(step.source), Path(step.target)
    if path is None and not step.is_tree and step.source != STREAM:
        path = _sealed_path(source, key)
    if step.is_tree:
        tree = decrypt_tree(source, to, key, path=path, jobs=jobs, force=force, advance=advance)
        return summary(step, tree.size, tree.files, tree.resumed)
    if step.target == STREAM:
        opened = decrypt_stream(
            0 if step.source == STREAM else source, sys.stdout.buffer.write, key, path=path, advance=advance
        )
        sys.stdout.buffer.flush()
        return summary(step, opened.size)
    if step.source == STREAM:
        with atomic_target(to, force=force) as part, open(part, "wb", closefd=False, buffering=0) as file:
            return summary(step, decrypt_stream(0, _write_all(file), key, path=path, advance=advance).size)
    return summary(step, decrypt_file(source, to, key, path=path, jobs=jobs, force=force, advance=advance).size)


def _sealed_path(source: Any, key: Any) -> str:
    """The path sealed into a file; raises WrongPath where its last part is not the name that the file has now."""
    from adyton.errors import WrongPath
    from adyton.pfile.backing import OSFile
    from adyton.pfile.file import ProtectedFile

    with ProtectedFile.open(OSFile(source), key) as file:
        sealed = file.path
    if sealed.rpartition("/")[2] != source.resolve().name and sealed.rpartition("/")[2] != source.name:
        raise WrongPath(
            f"{source} was sealed under another name: somebody may have put another file in its place",
            check="name in the embedded path",
            expected=source.name,
            seen=sealed,
            remedy=f"if you renamed it yourself, say so: --check-path {sealed}",
        )
    return sealed


def _write_all(file: Any) -> Any:
    from adyton.os_failure import storage_failed

    def write(data: memoryview) -> None:
        while data:
            try:
                data = data[file.write(data) :]
            except OSError as error:
                raise storage_failed(error, "the target", "writing") from error

    return write
