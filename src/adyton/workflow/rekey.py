"""Seal protected files again: under another key or embedded path, or in another version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adyton.errors import UsageError
from adyton.pfile.side_files import ROOTS_SUFFIX
from adyton.storage.files import rekey_file
from adyton.storage.trees import rekey_tree
from adyton.workflow.histories import has_history
from adyton.workflow.progress import unwatched
from adyton.workflow.sources import label, moved, moved_tree, names, no_pipes, plain_bytes, plan
from adyton.workflow.wrap_key import choose_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from adyton.values import Key128
    from adyton.workflow.progress import Progress
    from adyton.workflow.sources import Moved, Step


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """The resealed sources, one entry each."""

    sources: tuple[Moved, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton rekey --json`."""
        return {"rekeyed": [item.to_dict() for item in self.sources]}


def rekey(
    sources: str | Path | Iterable[str | Path],
    target: str | Path | None = None,
    *,
    key: str | Key128 | None = None,
    key_file: Path | None = None,
    new_key: str | Key128 | None = None,
    new_key_file: Path | None = None,
    home: Path | None = None,
    embedded: str | None = None,
    version: int | None = None,
    jobs: int | None = None,
    force: bool = False,
    progress: Progress = unwatched,
    done: Callable[[Moved], object] | None = None,
) -> Rekeyed:
    """Seal protected files again, in place or to `target`, as `adyton rekey` does. Every block gets a new key.

    Raises IntegrityError, NotProtectedFile, TargetExists, StorageFailed, UsageError, and the errors of the key store.
    """
    old = choose_key(key, key_file, home, opens=True)
    new = old
    if new_key is not None or new_key_file is not None:
        new = choose_key(new_key, new_key_file, home, option="--new-key")
    given = names(sources)
    steps = (
        [step for source in given for step in plan([source], source)] if target is None else plan(given, str(target))
    )
    no_pipes(steps, None)
    found = []
    for step in steps:
        _check_not_pinned(step)
        source, to = Path(step.source), Path(step.target)
        path = None if embedded is None else step.embedded(embedded)
        replace = force or (target is None and not step.is_tree)
        with progress(f"sealing {label(step)} again", plain_bytes(step)) as advance:
            if step.is_tree:
                tree = rekey_tree(
                    source, to, old, new, new_path=path, version=version, jobs=jobs, force=replace, advance=advance
                )
                one = moved_tree(step, tree)
            else:
                file = rekey_file(
                    source, to, old, new, new_path=path, version=version, jobs=jobs, force=replace, advance=advance
                )
                one = moved(step, file.size)
        found.append(one)
        if done is not None:
            done(one)
    return Rekeyed(tuple(found))


def _check_not_pinned(step: Step) -> None:
    """A pinned folder has a history under its key, which says another root for every file that is sealed again."""
    if step.is_tree and has_history(step.target):
        place = step.target.rstrip("/") + ROOTS_SUFFIX
        raise UsageError(
            f"{step.target} is pinned, and its root names the files as they are",
            check="pinned folder",
            expected="a folder that is not pinned",
            seen=place,
            remedy=f"adyton pin {step.target} checks it; then move {place} away, seal the files again, and pin the"
            " folder under its new key",
        )
