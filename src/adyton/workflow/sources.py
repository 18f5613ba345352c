"""Sources and targets: the steps of encrypting, decrypting and resealing, and their results."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton.atomic_file import check_no_link
from adyton.errors import StorageFailed, UsageError
from adyton.storage.trees import list_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from adyton.storage.trees import Links, TreeDone

STREAM: Final = "-"
"""The name of standard input as a source, and of standard output as a target."""


@dataclass(frozen=True, slots=True)
class Step:
    """One source and its target. `below` is appended to an embedded path."""

    source: str
    target: str
    below: str

    @property
    def is_tree(self) -> bool:
        """Whether the source is a directory."""
        return self.source != STREAM and Path(self.source).is_dir()

    def embedded(self, root: str | None) -> str:
        """The embedded path: `root`, or the target as written, plus `below` where several sources share one."""
        if root is None:
            return self.target
        return f"{root}/{self.below}" if self.below else root


def plan(sources: Iterable[str], target: str) -> list[Step]:
    """Plan the steps for sources (files, directories, patterns, `-`), to `target` or below it.

    One source goes to `target` itself, unless that is a directory and the source a file. Several go below it.
    """
    found: list[str] = []
    for source in sources:
        matches = [source]
        if source != STREAM and not Path(source).exists() and glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - the pattern may be absolute
        if not matches:
            raise StorageFailed(f"no file matches {source}", check="sources", expected="at least one", seen="none")
        found += matches
    if not found:
        raise UsageError("no source was given", check="sources", expected="at least one", seen="none")
    into = Path(target).is_dir() or target.endswith("/")
    if len(found) == 1 and (found[0] == STREAM or target == STREAM or Path(found[0]).is_dir() or not into):
        if found[0] == STREAM and into:
            raise UsageError(
                "standard input goes to a file, not a directory", check="-o", expected="a file", seen=target
            )
        return [Step(found[0], target, "")]
    if STREAM in found or target == STREAM:
        raise UsageError("standard input or output takes one source", check="sources", expected="1", seen=len(found))
    names = [Path(source).resolve().name if source in (".", "..") else Path(source).name for source in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(
            f"two sources have the name {min(twice)}",
            check="names of the sources",
            expected="each another",
            seen=min(twice),
            remedy="encrypt them one by one",
        )
    if not Path(target).is_dir():
        try:
            Path(target).mkdir(parents=True)
        except OSError as error:
            raise StorageFailed(f"making {target} failed: {error.strerror}", check="-o") from error
    steps = [
        Step(source, f"{target.rstrip('/') or '/'}/{name}", name) for source, name in zip(found, names, strict=True)
    ]
    for step in steps:
        if step.is_tree:
            check_no_link(Path(step.target))
    return steps


def plain_bytes(step: Step, *, links: Links = "refuse") -> int | None:
    """The bytes of a step, for the progress bar."""
    if step.source == STREAM:
        return None
    if step.is_tree:
        return sum(entry.size for entry in list_tree(Path(step.source), links=links)[1])
    try:
        return Path(step.source).stat().st_size
    except OSError:
        return None  # said in full when it is opened


def label(step: Step) -> str:
    """The name of a step in a progress bar."""
    return "standard input" if step.source == STREAM else Path(step.source).name


@dataclass(frozen=True, slots=True)
class Moved:
    """The result for one source: its plaintext size, and for a folder the number of files, and of those done before."""

    source: str
    target: str
    size_bytes: int
    files: int | None = None
    resumed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON data. A single file has no `files` and no `resumed`."""
        facts: dict[str, Any] = {"source": self.source, "target": self.target, "size_bytes": self.size_bytes}
        return facts if self.files is None else facts | {"files": self.files, "resumed": self.resumed}


@dataclass(frozen=True, slots=True)
class Pipes:
    """The streams of `-`: the descriptor to read, and the function that takes the output bytes."""

    source: int
    write: Callable[[memoryview], object]


def no_pipes(steps: Sequence[Step], pipes: Pipes | None) -> None:
    """Raise UsageError where a step names `-` and the caller gave no stream for it."""
    if pipes is None and any(STREAM in (step.source, step.target) for step in steps):
        raise UsageError(
            "`-` is standard input or output of the command line",
            check="sources",
            expected="the name of a file or a folder",
            seen=STREAM,
            remedy="write ./- for a file of that name, or give `pipes`",
        )


def check_only_output(target: str, *, as_json: bool) -> None:
    """Raise UsageError where standard output would take a file and a JSON document."""
    if as_json and target == STREAM:
        raise UsageError("standard output takes one file, and nothing else", check="-o -", expected="one file")


def names(sources: str | Path | Iterable[str | Path]) -> list[str]:
    """The sources of a call (one or several) as names."""
    return [str(sources)] if isinstance(sources, str | Path) else [str(source) for source in sources]


def moved(step: Step, size: int) -> Moved:
    """The result of a step over one file."""
    return Moved(step.source, step.target, size)


def moved_tree(step: Step, tree: TreeDone) -> Moved:
    """The result of a step over a folder."""
    return Moved(step.source, step.target, tree.size, tree.files, tree.resumed)
