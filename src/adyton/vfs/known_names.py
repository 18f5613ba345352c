"""The names that one run knows in an encrypted folder. Pure: it asks the host nothing.

The format gives folders no integrity, so a name in a folder is the host's word. Within one run these words are held
against each other:

- a name that was seen and then vanishes is an I/O error and not "no such file";
- a name that the program removed stays removed;
- a folder that the program made or renamed holds what the program put there, and nothing else.

Paths are relative to the mount, without a slash at either end. "" is the mount itself.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from adyton.vfs.node import Node


def _parent(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


class KnownNames:
    """The nodes of one mount by path, and what is known of names without a node."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._names: dict[str, dict[str, int]] = {}
        """By folder, what was seen or listed in it, with its kind (S_IFDIR or S_IFREG)."""
        self._gone: set[str] = set()
        self._hidden: set[str] = set()

    def __iter__(self) -> Iterator[Node]:
        """Every node."""
        return iter(self._nodes.values())

    def named(self) -> Iterator[tuple[str, Node]]:
        """Every node that has a name, with its path."""
        return ((path, node) for path, node in self._nodes.items() if path not in self._hidden)

    def get(self, path: str) -> Node | None:
        """The node at a path, if it was looked at."""
        return self._nodes.get(path)

    def in_folder(self, path: str) -> Mapping[str, int]:
        """Names that were seen or listed in a folder, with their kinds."""
        return self._names.get(path, {})

    def parent(self, path: str) -> Node | None:
        """The node of the folder that holds a path."""
        return self._nodes.get(_parent(path)[0])

    def was_seen(self, path: str) -> bool:
        """Whether this path was there in this run, and was not removed by the program."""
        folder, name = _parent(path)
        return path in self._nodes or name in self._names.get(folder, ())

    def is_absent(self, path: str) -> bool:
        """Whether there is nothing at this path, whatever the host shows there."""
        if path in self._gone:
            return True
        folder, name = _parent(path)
        parent = self._nodes.get(folder) if path else None
        return parent is not None and parent.complete and name not in self._names.get(folder, ())

    def add(self, path: str, node: Node) -> None:
        """There is something at a path now."""
        self._remember(path, node)
        self._gone.discard(path)

    def list_names(self, path: str, found: Iterable[tuple[str, int]]) -> None:
        """The host listed these names in a folder: it must go on showing them."""
        self._names.setdefault(path, {}).update(found)

    def remove(self, path: str) -> Node | None:
        """The program removed what is at a path, and the host cannot put it back."""
        node = self._forget(path)
        self._lose(path)
        return node

    def hide(self, path: str, node: Node) -> None:
        """libfuse knows a removed file that is still open under this hidden name."""
        self._nodes[path] = node
        self._hidden.add(path)

    def unhide(self, path: str) -> bool:
        """Forget a hidden name. False where the path is none."""
        if path not in self._hidden:
            return False
        self._hidden.discard(path)
        del self._nodes[path]
        return True

    def move(self, old: str, new: str, *, exchange: bool, replaced: bool) -> dict[str, Node]:
        """The program renamed `old` to `new`. Returns every moved node by its new path.

        `replaced` says that there was something at `new` which is gone now. With `exchange` both change places.
        """
        if replaced:
            self._forget(new)
        from_old = self._take(old)
        from_new = self._take(new) if exchange else {}
        moved = {new + path[len(old) :]: node for path, node in from_old.items()}
        moved |= {old + path[len(new) :]: node for path, node in from_new.items()}
        for path, node in moved.items():
            self._remember(path, node)
        self._gone = {path for path in self._gone if path != new and not path.startswith((old + "/", new + "/"))}
        if not exchange:
            self._lose(old)
        return moved

    def _lose(self, path: str) -> None:
        parent = self.parent(path)
        if parent is None or not parent.complete:  # a complete folder needs no list of what is not in it
            self._gone.add(path)

    def _remember(self, path: str, node: Node) -> None:
        self._nodes[path] = node
        if path:
            folder, name = _parent(path)
            self._names.setdefault(folder, {})[name] = stat.S_IFDIR if node.is_folder else stat.S_IFREG

    def _forget(self, path: str) -> Node | None:
        node = self._nodes.pop(path, None)
        folder, name = _parent(path)
        names = self._names.get(folder)
        if names is not None:
            names.pop(name, None)
            if not names:
                del self._names[folder]
        return node

    def _take(self, path: str) -> dict[str, Node]:
        """Take a path and everything known below it out of what is remembered."""
        taken: dict[str, Node] = {}
        paths = [path]
        while paths:
            known = paths.pop()
            paths += [f"{known}/{name}" for name in self._names.get(known, ())]
            node = self._forget(known)
            if node is not None:
                taken[known] = node
        return taken
