"""The tree of the root file system, put together from packages, wheels and Adyton itself. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import Final

from adyton.errors import UsageError
from adyton.image import recipe
from adyton.image.erofs import Node, place, walk
from adyton.image.gpu_files import GPUFiles

MODULES: Final = "usr/lib/adyton/modules"
"""Kernel modules for the first program of the root file system, named so that their order is that of their names."""
GPU_MODULES: Final = "usr/lib/adyton/gpu-modules"
"""As MODULES, for those of GPUs. An image without GPUs has no such folder."""
_MERGED: Final = ("bin/", "sbin/", "lib/", "lib64/")
"""Folders that lie below usr/ in the image, as on every Debian since 12."""


def root_tree(
    packages: Iterable[Iterable[tuple[str, Node]]],
    wheels: Iterable[Iterable[tuple[str, Node]]],
    adyton: Mapping[str, bytes],
    modules: Mapping[str, bytes],
    gpu: GPUFiles | None = None,
) -> Node:
    """The whole tree. `adyton` is the package's files by their names below its folder.

    Raises UsageError where the recipe and the packages do not fit, or where a file is there that must never be.
    """
    root = Node.folder()
    for name in recipe.FOLDERS:
        place(root, name, Node.folder())
    for files in packages:
        for path, node in files:
            merged = f"usr/{path}" if path.startswith(_MERGED) else path
            if _is_wanted(path, merged):
                place(root, merged, node)
    for path, target in recipe.LINKS.items():
        place(root, path, Node.link(target))
    for path, text in recipe.ETC.items():
        place(root, path, Node.file(text.encode("ascii")))
    for files in wheels:
        for path, node in files:
            place(root, f"{recipe.PACKAGES_FOLDER}/{path}", node)
    for path, content in adyton.items():
        place(root, f"{recipe.PACKAGES_FOLDER}/adyton/{path}", Node.file(content))
    for number, (name, content) in enumerate(modules.items()):
        place(root, f"{MODULES}/{number:02}-{name}.ko", Node.file(content))
    if gpu is not None:
        for number, (name, content) in enumerate(gpu.modules().items()):
            place(root, f"{GPU_MODULES}/{number:02}-{name}.ko", Node.file(content))
        for path, content in gpu.placed().items():
            place(root, path, Node.file(content))
    check_tree(root)
    return root


def check_tree(root: Node) -> None:
    """Refuse a tree with a shell, a login or a service in it, or without a program that it needs. Raises UsageError."""
    paths = {path for path, _ in walk(root)}
    present = sorted(path for path in paths if posixpath.basename(path) in recipe.NEVER and _is_program(path))
    if present:
        raise _wrong("programs that no image may have", "none", ", ".join(present))
    missing = sorted((recipe.PROGRAMS | {f"{recipe.PACKAGES_FOLDER}/adyton/__init__.py"}) - paths)
    if missing:
        raise _wrong("files that every image needs", "all of them", f"without {', '.join(missing)}")


def _is_program(path: str) -> bool:
    return path.startswith(recipe.PROGRAM_FOLDERS)


def _is_wanted(path: str, merged: str) -> bool:
    if _is_program(merged):
        return merged in recipe.PROGRAMS
    if path.startswith(recipe.LEFT_OUT) or merged.startswith(recipe.LEFT_OUT):
        return False
    if f"{recipe.STANDARD_LIBRARY}/lib-dynload/" in merged:
        return not posixpath.basename(merged).startswith(recipe.EXTENSIONS_LEFT_OUT)
    return True


def _wrong(check: str, expected: str, seen: str) -> UsageError:
    return UsageError(
        f"{check}: expected {expected}, seen {seen}",
        check=check,
        expected=expected,
        seen=seen,
        remedy="the packages of the lock file changed: adyton/image/recipe.py has to follow",
    )
