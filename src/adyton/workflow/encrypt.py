"""Encrypt files and folders into protected files."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adyton.errors import UsageError
from adyton.storage.files import copy_out, encrypt_file, encrypt_stream
from adyton.storage.trees import encrypt_tree
from adyton.workflow.histories import has_history
from adyton.workflow.progress import unwatched
from adyton.workflow.sources import STREAM, label, moved, moved_tree, names, no_pipes, plain_bytes, plan
from adyton.workflow.wrap_key import choose_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from adyton.values import Key128
    from adyton.workflow.progress import Progress
    from adyton.workflow.sources import Moved, Pipes, Step


@dataclass(frozen=True, slots=True)
class Encrypted:
    """The encrypted sources, one entry each."""

    sources: tuple[Moved, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton encrypt --json`."""
        return {"encrypted": [item.to_dict() for item in self.sources]}


def encrypt(
    sources: str | Path | Iterable[str | Path],
    target: str | Path,
    *,
    key: str | Key128 | None = None,
    key_file: Path | None = None,
    home: Path | None = None,
    embedded: str | None = None,
    version: int = 2,
    jobs: int | None = None,
    force: bool = False,
    follow_links: bool = False,
    all_links: bool = False,
    pinned: bool = False,
    pipes: Pipes | None = None,
    progress: Progress = unwatched,
    done: Callable[[Moved], object] | None = None,
) -> Encrypted:
    """Encrypt files, folders and patterns to `target`, as `adyton encrypt` does.

    The embedded path is `target` as it is written, or `embedded`. The key is a name in the owner's store, a file of
    16 raw bytes, or the key itself. Symbolic links in a folder are sealed as links. One that leads out of the folder is
    refused, unless `follow_links` takes what they all lead to, or `all_links` keeps it. With `pinned` each folder is
    pinned once it is encrypted. One that is pinned already is checked before, and pinned anew. `done` is called after
    each source. Raises UsageError, StorageFailed, TargetExists, and the errors of the key store.
    """
    wrap_key = choose_key(key, key_file, home)
    steps = plan(names(sources), str(target))
    no_pipes(steps, pipes)
    _check_output(steps, embedded)
    found = []
    for step in steps:
        pins = step.is_tree and (pinned or has_history(step.target))
        if pins:
            _check_pinned(step, key, wrap_key, home)
        total = plain_bytes(step, links="follow" if follow_links else "keep")
        with progress(f"encrypting {label(step)}", total) as advance:
            one = _encrypt(
                step,
                wrap_key,
                pipes,
                path=step.embedded(embedded),
                version=version,
                jobs=jobs,
                force=force,
                follow_links=follow_links,
                all_links=all_links,
                advance=advance,
            )
        if pins:
            from adyton.workflow.pin import pin

            pin(step.target, key=str(key), sealed_as=step.embedded(embedded), accept=True, home=home)
        found.append(one)
        if done is not None:
            done(one)
    return Encrypted(tuple(found))


def _check_pinned(step: Step, key: str | Key128 | None, wrap_key: Key128, home: Path | None) -> None:
    """Hold the target to its root before it is changed. Raises IntegrityError, and UsageError without a key's name."""
    if not isinstance(key, str):
        raise UsageError(
            f"{step.target} is to be pinned, and only the owner's store keeps its root",
            check="--pinned",
            expected="the key by its name in the store: --key NAME",
            seen="the key itself, or a file of it",
            remedy="store the key (adyton key import), and name it",
        )
    if has_history(step.target):
        from adyton.workflow.pin import check_if_pinned

        check_if_pinned(step.target, key, wrap_key, home=home)


def _check_output(steps: list[Step], embedded: str | None) -> None:
    if steps[0].target != STREAM:
        return
    if embedded is None:
        raise UsageError(
            "output to standard output has no path to embed",
            check="embedded path",
            expected="--as PATH",
            seen="none",
            remedy="give the path under which it will be read: --as PATH",
        )
    if steps[0].is_tree:
        raise UsageError("standard output takes one file, and nothing else", check="-o -", expected="one file")


def _encrypt(
    step: Step,
    key: Key128,
    pipes: Pipes | None,
    *,
    path: str,
    jobs: int | None,
    follow_links: bool,
    all_links: bool,
    **options: Any,
) -> Moved:
    source = Path(step.source)
    if step.is_tree:
        target = Path(step.target)
        return moved_tree(
            step,
            encrypt_tree(
                source, target, key, path=path, jobs=jobs, follow_links=follow_links, all_links=all_links, **options
            ),
        )
    if pipes is not None and step.target == STREAM:
        # node 0 comes first and is sealed last: the ciphertext waits in a file
        with tempfile.TemporaryDirectory(prefix="adyton-") as folder:
            part = Path(folder) / "sealed"
            options |= {"sync": False}
            if step.source == STREAM:
                done = encrypt_stream(pipes.source, part, key, path=path, **options)
            else:
                done = encrypt_file(source, part, key, path=path, jobs=jobs, **options)
            with part.open("rb") as sealed:
                copy_out(sealed.fileno(), pipes.write)
        return moved(step, done.size)
    if pipes is not None and step.source == STREAM:
        return moved(step, encrypt_stream(pipes.source, Path(step.target), key, path=path, **options).size)
    return moved(step, encrypt_file(source, Path(step.target), key, path=path, jobs=jobs, **options).size)
