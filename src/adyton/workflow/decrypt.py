"""Decrypt protected files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adyton.atomic_file import atomic_target
from adyton.errors import UsageError, WrongPath
from adyton.os_failure import storage_failed
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.storage.files import decrypt_file, decrypt_stream
from adyton.storage.trees import decrypt_tree
from adyton.workflow.histories import lies_in_pinned
from adyton.workflow.progress import unwatched
from adyton.workflow.sources import STREAM, label, moved, moved_tree, names, no_pipes, plain_bytes, plan
from adyton.workflow.wrap_key import choose_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from io import FileIO

    from adyton.values import Key128
    from adyton.workflow.progress import Advance, Progress
    from adyton.workflow.sources import Moved, Pipes, Step


@dataclass(frozen=True, slots=True)
class Decrypted:
    """The decrypted sources, one entry each."""

    sources: tuple[Moved, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton decrypt --json`."""
        return {"decrypted": [item.to_dict() for item in self.sources]}


def decrypt(
    sources: str | Path | Iterable[str | Path],
    target: str | Path,
    *,
    key: str | Key128 | None = None,
    key_file: Path | None = None,
    home: Path | None = None,
    check_path: str | None = None,
    jobs: int | None = None,
    force: bool = False,
    all_links: bool = False,
    pinned: bool = False,
    pipes: Pipes | None = None,
    progress: Progress = unwatched,
    done: Callable[[Moved], object] | None = None,
) -> Decrypted:
    """Decrypt files and folders to `target`, as `adyton decrypt` does. Only verified files appear there.

    Links of a folder are made, if they lead to something within it; with `all_links` all are. A file that was sealed
    under another name is refused. `check_path` gives the expected sealed path instead. What lies
    in a pinned folder is taken only if the folder is as its key server knows it. With `pinned` nothing else is taken.
    `done` is called after each source. Raises IntegrityError, WrongPath, NotProtectedFile, TargetExists, StorageFailed,
    UsageError, and the errors of the key store.
    """
    wrap_key = choose_key(key, key_file, home, opens=True)
    steps = plan(names(sources), str(target))
    no_pipes(steps, pipes)
    if str(target) == STREAM and steps[0].is_tree:
        raise UsageError("standard output takes one file, and nothing else", check="-o -", expected="one file")
    found = []
    for step in steps:
        if step.source != STREAM and (pinned or isinstance(key, str) or lies_in_pinned(step.source)):
            from adyton.workflow.pin import check_if_pinned

            check_if_pinned(step.source, key, wrap_key, home=home, demanded=pinned)
        path = None if check_path is None else step.embedded(check_path)
        with progress(f"decrypting {label(step)}", plain_bytes(step)) as advance:
            one = _decrypt(
                step, wrap_key, pipes, path=path, jobs=jobs, force=force, all_links=all_links, advance=advance
            )
        found.append(one)
        if done is not None:
            done(one)
    return Decrypted(tuple(found))


def _decrypt(
    step: Step,
    key: Key128,
    pipes: Pipes | None,
    *,
    path: str | None,
    jobs: int | None,
    force: bool,
    all_links: bool,
    advance: Advance,
) -> Moved:
    source, to = Path(step.source), Path(step.target)
    if path is None and not step.is_tree and step.source != STREAM:
        path = _sealed_path(source, key)
    if step.is_tree:
        tree = decrypt_tree(source, to, key, path=path, jobs=jobs, force=force, all_links=all_links, advance=advance)
        return moved_tree(step, tree)
    if pipes is not None and step.target == STREAM:
        given = pipes.source if step.source == STREAM else source
        return moved(step, decrypt_stream(given, pipes.write, key, path=path, advance=advance).size)
    if pipes is not None and step.source == STREAM:
        with atomic_target(to, force=force) as part, open(part, "wb", closefd=False, buffering=0) as file:
            opened = decrypt_stream(pipes.source, _write_all(file), key, path=path, advance=advance)
            return moved(step, opened.size)
    return moved(step, decrypt_file(source, to, key, path=path, jobs=jobs, force=force, advance=advance).size)


def _sealed_path(source: Path, key: Key128) -> str:
    """The path sealed into a file. Raises WrongPath where its last part differs from the file's name."""
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


def _write_all(file: FileIO) -> Callable[[memoryview], None]:
    def write(data: memoryview) -> None:
        while data:
            try:
                data = data[file.write(data) :]
            except OSError as error:
                raise storage_failed(error, "the target", "writing") from error

    return write
