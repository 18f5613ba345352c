"""Inspect protected files. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adyton.errors import UsageError
from adyton.storage.files import verify_file
from adyton.storage.inspection import inspect_file
from adyton.workflow.progress import unwatched
from adyton.workflow.wrap_key import choose_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from adyton.values import Key128
    from adyton.workflow.progress import Progress


@dataclass(frozen=True, slots=True)
class Inspected:
    """The content of each file's header. It is authenticated only with a key."""

    files: tuple[Mapping[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton inspect --json`."""
        return {"files": [dict(facts) for facts in self.files]}


def inspect(
    files: Iterable[Path],
    *,
    key: str | Key128 | None = None,
    key_file: Path | None = None,
    home: Path | None = None,
    verify: bool = False,
    jobs: int | None = None,
    progress: Progress = unwatched,
    done: Callable[[Mapping[str, Any]], object] | None = None,
) -> Inspected:
    """Inspect protected files, and with `verify` verify all their nodes, as `adyton inspect` does.

    Raises NotProtectedFile, UnsupportedVersion, IntegrityError, StorageFailed, UsageError.
    """
    wrap_key = choose_key(key, key_file, home, opens=True) if key is not None or key_file is not None else None
    if verify and wrap_key is None:
        raise UsageError("--verify needs the key", check="key", expected="--key or --key-file", seen="neither")
    found: list[Mapping[str, Any]] = []
    for file in files:
        facts = inspect_file(file, wrap_key)
        if verify and wrap_key is not None:
            with progress(f"verifying {file.name}", facts["size_bytes"]) as advance:
                verify_file(file, wrap_key, jobs=jobs, advance=advance)
            facts["verified"] = True
        found.append(facts)
        if done is not None:
            done(facts)
    return Inspected(tuple(found))
