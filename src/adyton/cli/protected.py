"""What the verbs over protected files share: which source goes where, under which embedded path, and what is said."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adyton.errors import StorageFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

KeyName = Annotated[str | None, typer.Option("--key", metavar="NAME", help="A key of your store.")]
KeyFile = Annotated[Path | None, typer.Option("--key-file", metavar="FILE", help="A file of 16 raw bytes.")]
Home = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", envvar="ADYTON_HOME", help="Your store.  [~/.adyton]")
]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Workers.  [as many as processors]")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace what exists.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Say the result as JSON.")]

STREAM = "-"


@dataclass(frozen=True, slots=True)
class Step:
    """One source and where it goes; `below` is what to append to an embedded path for it."""

    source: str
    target: str
    below: str

    @property
    def is_tree(self) -> bool:
        """Whether the source is a directory."""
        return self.source != STREAM and Path(self.source).is_dir()

    def embedded(self, root: str | None) -> str:
        """The embedded path: `root`, or the target as written, with `below` where several share one."""
        if root is None:
            return self.target
        return f"{root}/{self.below}" if self.below else root


def plan(sources: Iterable[str], target: str) -> list[Step]:
    """Sources (files, directories, patterns, `-`) to targets below, or at, `target`.

    One source goes to `target` itself, unless that is a directory and the source a file; several go below it.
    """
    found: list[str] = []
    for source in sources:
        matches = [source]
        if source != STREAM and not Path(source).exists() and glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - the pattern may be absolute
        if not matches:
            raise StorageFailed(f"no file matches {source}", check="sources", expected="at least one", seen="none")
        found += matches
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
    from adyton.atomic_file import check_no_link

    for step in steps:
        if step.is_tree:
            check_no_link(Path(step.target))
    return steps


def plain_bytes(step: Step, *, follow_links: bool = False) -> int | None:
    """How many bytes a step has before it, for the progress bar."""
    from adyton.storage.trees import list_tree

    if step.source == STREAM:
        return None
    if step.is_tree:
        return sum(entry.size for entry in list_tree(Path(step.source), follow_links=follow_links)[1])
    try:
        return Path(step.source).stat().st_size
    except OSError:
        return None  # said in full when it is opened


def label(step: Step) -> str:
    """What a progress bar calls a step."""
    return "standard input" if step.source == STREAM else Path(step.source).name


def summary(step: Step, size: int, files: int | None = None, resumed: int | None = None) -> dict[str, Any]:
    """One step's result as data."""
    facts: dict[str, Any] = {"source": step.source, "target": step.target, "size_bytes": size}
    if files is not None:
        facts |= {"files": files, "resumed": resumed}
    return facts


def told(facts: dict[str, Any]) -> str:
    """The same for a person."""
    line = f"{facts['source']} -> {facts['target']}  {facts['size_bytes']} bytes"
    if "files" in facts:
        line += f", {facts['files']} files"
        if facts["resumed"]:
            line += f" ({facts['resumed']} were done before)"
    return line
