"""What a run knows of names, against a model that keeps a plain set of paths and searches it."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from adyton.vfs.known_names import KnownNames
from adyton.vfs.node import Node

_NAMES = ("a", "b", "c")


def _node(*, is_folder: bool, complete: bool = False) -> Node:
    return Node(1, is_folder, 0o644, 0, 0, complete=complete)


def _is_below(path: str, folder: str) -> bool:
    return folder == "" or path == folder or path.startswith(folder + "/")


@dataclass
class Model:
    """What the program must see: what is there, and what it took away."""

    there: dict[str, Node] = field(default_factory=lambda: {"": _node(is_folder=True)})
    gone: set[str] = field(default_factory=set)

    def folders(self) -> list[str]:
        return sorted(path for path, node in self.there.items() if node.is_folder)

    def is_absent(self, path: str) -> bool:
        parent = self.there[path.rpartition("/")[0]]
        return path not in self.there and (path in self.gone or parent.complete)

    def is_leaf(self, path: str) -> bool:
        return [known for known in self.there if _is_below(known, path)] == [path]

    def take(self, path: str) -> dict[str, Node]:
        taken = {known: node for known, node in self.there.items() if _is_below(known, path)}
        for known in taken:
            del self.there[known]
        return taken

    def put(self, nodes: dict[str, Node], old: str, new: str) -> None:
        self.gone = {path for path in self.gone if not _is_below(path, new)}
        self.there |= {new + path[len(old) :]: node for path, node in nodes.items()}


@given(st.data())
def test_known_names_agree_with_a_plain_set_of_paths(data: st.DataObject) -> None:
    """After any sequence of adding, removing, moving and exchanging, both say the same of every name."""
    model, known = Model(), KnownNames()
    known.add("", model.there[""])
    for _ in range(data.draw(st.integers(1, 20))):
        folder = data.draw(st.sampled_from(model.folders()))
        path = f"{folder}/{data.draw(st.sampled_from(_NAMES))}".lstrip("/")
        match data.draw(st.sampled_from(("add", "remove", "move", "exchange"))):
            case "add" if path not in model.there:
                made = data.draw(st.booleans())
                # where the program took something away, only what it makes itself can come to stand
                complete = made and (model.is_absent(path) or data.draw(st.booleans()))
                node = _node(is_folder=made, complete=complete)
                model.there[path] = node
                model.gone.discard(path)
                known.add(path, node)
            case "remove" if model.is_leaf(path):
                model.take(path)
                model.gone.add(path)
                known.remove(path)
            case "move" | "exchange" as how if path in model.there:
                target_folder = data.draw(st.sampled_from(model.folders()))
                target = f"{target_folder}/{data.draw(st.sampled_from(_NAMES))}".lstrip("/")
                if _is_below(target, path) or _is_below(path, target):
                    continue
                exchange = how == "exchange"
                if target not in model.there if exchange else target in model.there and not model.is_leaf(target):
                    continue
                _move(model, known, path, target, exchange=exchange)
    for folder in model.folders():
        names = {path.rpartition("/")[2] for path in model.there if path and path.rpartition("/")[0] == folder}
        assert set(known.in_folder(folder)) == names
        for name in _NAMES:
            path = f"{folder}/{name}".lstrip("/")
            assert known.get(path) is model.there.get(path)
            assert known.was_seen(path) == (path in model.there)
            assert known.is_absent(path) == model.is_absent(path), path


def _move(model: Model, known: KnownNames, old: str, new: str, *, exchange: bool) -> None:
    from_old, from_new = model.take(old), model.take(new)
    model.put(from_old, old, new)
    if exchange:
        model.put(from_new, new, old)
    else:
        model.gone = {path for path in model.gone if not _is_below(path, old)} | {old}
    moved = known.move(old, new, exchange=exchange, replaced=bool(from_new) and not exchange)
    expected = {new + path[len(old) :]: node for path, node in from_old.items()}
    if exchange:
        expected |= {old + path[len(new) :]: node for path, node in from_new.items()}
    assert moved == expected


def test_listed_names_count_as_seen() -> None:
    """A name that the host listed was seen, though nobody has looked at it."""
    known = KnownNames()
    known.add("", _node(is_folder=True))
    known.list_names("", [("file", stat.S_IFREG)])
    assert known.was_seen("file")
    assert not known.is_absent("file")
    assert known.get("file") is None


def test_a_removed_name_stays_removed_until_it_is_made_again() -> None:
    """The host cannot put back what the program removed."""
    known = KnownNames()
    known.add("", _node(is_folder=True))
    known.add("file", _node(is_folder=False))
    known.remove("file")
    assert known.is_absent("file")
    known.add("file", _node(is_folder=False))
    assert not known.is_absent("file")
