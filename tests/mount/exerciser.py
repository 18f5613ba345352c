"""A POSIX exerciser in the style of fsx: random operations on files, each compared with a model in memory."""

from __future__ import annotations

import mmap
import os
import random
import shutil
from pathlib import Path

from adyton.pfile.side_files import LINK_SUFFIX, XATTR_SUFFIX
from adyton.vfs import syscalls

MAX_BYTES = 700_000
"""Past the second tree node of the format (396 288 bytes), so that every kind of node is crossed."""


class Model:
    """A few files, what they must hold, and one open descriptor for each."""

    def __init__(self, top: Path, seed: int, *, files: int = 3) -> None:
        self.random = random.Random(seed)
        self.top = top
        self.content: dict[str, bytearray] = {}
        self.open: dict[str, int] = {}
        self.count = 0
        self.history: list[str] = []
        for _ in range(files):
            self.make()

    def make(self) -> None:
        """Create one more file."""
        name = f"file{self.count}"
        self.count += 1
        self.open[name] = os.open(self.top / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self.content[name] = bytearray()

    def offset(self, size: int) -> int:
        """A place in the file, often at an edge of a node."""
        choice = self.random.random()
        if choice < 0.2:
            edges = (0, 3071, 3072, 3073, 7167, 7168, 396_287, 396_288, 396_289, size)
            return min(self.random.choice(edges), MAX_BYTES - 1)
        return self.random.randrange(0, max(size, 1) + 5000) if choice < 0.4 else self.random.randrange(0, max(size, 1))

    def length(self) -> int:
        """How many bytes: mostly few, sometimes many."""
        return self.random.choice((1, 2, 17, 511, 512, 4095, 4096, 4097, 10_000, 65_536))

    def step(self) -> None:
        """One operation."""
        name = self.random.choice(list(self.content))
        kinds = ("write", "read", "truncate", "mmap_write", "mmap_read", "append", "reopen", "fsync", "stat", "rename",
                 "replace", "unlink_open", "read", "write", "forget")  # fmt: skip
        kind = self.random.choice(kinds)
        self.history.append(f"{kind} {name}")
        getattr(self, kind)(name)

    def write(self, name: str) -> None:
        """pwrite at a random place."""
        content = self.content[name]
        at = self.offset(len(content))
        data = self.random.randbytes(min(self.length(), MAX_BYTES - at))
        assert os.pwrite(self.open[name], data, at) == len(data)
        if at > len(content):
            content.extend(bytes(at - len(content)))
        content[at : at + len(data)] = data

    def read(self, name: str) -> None:
        """pread at a random place."""
        at, size = self.offset(len(self.content[name])), self.length()
        assert os.pread(self.open[name], size, at) == self.content[name][at : at + size], self.tell(name)

    def forget(self, name: str) -> None:
        """Have the kernel drop its copy, so that what is read next is opened anew from the host's file."""
        os.fsync(self.open[name])
        os.posix_fadvise(self.open[name], 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(self.open[name], 0, 0, self.random.choice((os.POSIX_FADV_RANDOM, os.POSIX_FADV_NORMAL)))
        for _ in range(3):
            self.read(name)

    def truncate(self, name: str) -> None:
        """Cut or extend."""
        size = min(self.offset(len(self.content[name])), MAX_BYTES)
        if self.random.random() < 0.5:
            os.ftruncate(self.open[name], size)
        else:
            os.truncate(self.top / name, size)
        content = self.content[name]
        del content[size:]
        content.extend(bytes(size - len(content)))

    def mmap_write(self, name: str) -> None:
        """Write through a shared mapping."""
        content = self.content[name]
        if not content:
            return
        at = self.random.randrange(len(content))
        data = self.random.randbytes(min(self.length(), len(content) - at))
        with mmap.mmap(self.open[name], len(content)) as mapped:
            mapped[at : at + len(data)] = data
            if self.random.random() < 0.3:
                mapped.flush()
        content[at : at + len(data)] = data

    def mmap_read(self, name: str) -> None:
        """Read through a mapping."""
        content = self.content[name]
        if content:
            at, size = self.offset(len(content)), self.length()
            with mmap.mmap(self.open[name], len(content), prot=mmap.PROT_READ) as mapped:
                assert mapped[at : at + size] == content[at : at + size], self.tell(name)

    def append(self, name: str) -> None:
        """Write through a second descriptor in append mode."""
        content = self.content[name]
        data = self.random.randbytes(min(self.length(), MAX_BYTES - len(content)))
        fd = os.open(self.top / name, os.O_WRONLY | os.O_APPEND)
        try:
            assert os.write(fd, data) == len(data)
        finally:
            os.close(fd)
        content.extend(data)

    def reopen(self, name: str) -> None:
        """Close and open again."""
        os.close(self.open[name])
        self.open[name] = os.open(self.top / name, os.O_RDWR)

    def fsync(self, name: str) -> None:
        """Make it durable."""
        os.fsync(self.open[name])

    def stat(self, name: str) -> None:
        """Size by path and by descriptor, and the listing."""
        assert os.stat(self.top / name).st_size == len(self.content[name]), self.tell(name)
        assert os.fstat(self.open[name]).st_size == len(self.content[name]), self.tell(name)
        assert set(os.listdir(self.top)) == set(self.content), self.history[-20:]

    def rename(self, name: str) -> None:
        """Rename while it is open."""
        new = f"file{self.count}"
        self.count += 1
        os.rename(self.top / name, self.top / new)
        self.content[new] = self.content.pop(name)
        self.open[new] = self.open.pop(name)

    def replace(self, name: str) -> None:
        """Rename over another file, which stays readable where it is open."""
        other = self.random.choice(list(self.content))
        if other == name:
            return
        os.rename(self.top / name, self.top / other)
        assert os.pread(self.open[other], 100, 0) == self.content[other][:100]
        os.close(self.open.pop(other))
        self.content[other] = self.content.pop(name)
        self.open[other] = self.open.pop(name)
        self.make()

    def unlink_open(self, name: str) -> None:
        """Remove a file and go on using its descriptor for a moment."""
        os.unlink(self.top / name)
        fd = self.open.pop(name)
        content = self.content.pop(name)
        data = self.random.randbytes(5000)
        os.pwrite(fd, data, len(content))
        assert os.pread(fd, 5000, len(content)) == data
        assert os.fstat(fd).st_nlink == 0
        os.close(fd)
        self.make()

    def tell(self, name: str) -> str:
        """What happened last, for a failure's report."""
        return f"{name}: {self.history[-30:]}"

    def close(self) -> dict[str, bytes]:
        """Close everything; what the files must hold."""
        for fd in self.open.values():
            os.close(fd)
        return {name: bytes(content) for name, content in self.content.items()}


class Trees:
    """Folders, small files, links and attributes, moved about as programs do; a host that puts back older files.

    The model is a dict of paths to contents: bytes of a file, None for a folder, the target of a link as text. What the
    host puts back, wherever it lay before, must never be seen.
    """

    def __init__(self, top: Path, store: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.top = top
        self.store = store
        self.model: dict[str, bytes | str | None] = {}
        self.attributes: dict[str, bytes] = {}
        self.kept: dict[str, bytes] = {}
        self.history: list[str] = []
        self.count = 0

    def step(self) -> None:
        """One operation of the program or of the host."""
        kinds = ("make_folder", "write", "write", "write", "link", "link", "describe", "rename", "rename", "rename",
                 "exchange", "remove", "remove", "remove_tree", "put_back", "put_back", "keep")  # fmt: skip
        kind = self.random.choice(kinds)
        self.history.append(kind)
        try:
            getattr(self, kind)()
        except OSError:
            if not self.retreat():  # nothing of the host's was in the way
                raise

    def retreat(self) -> bool:
        """The host takes away what it put there; whether there was anything."""
        found = False
        for path in sorted(self.store.rglob("*"), reverse=True):
            if str(path.relative_to(self.store)) not in self.stored():
                found = True
                path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)  # a recovery log may end by itself
        return found

    def stored(self) -> set[str]:
        """The paths of the host's files and folders that stand for the model."""
        found = {path + LINK_SUFFIX if isinstance(what, str) else path for path, what in self.model.items()}
        return found | {path + XATTR_SUFFIX for path in self.attributes}

    def check(self) -> None:
        """What the program sees is what it made."""
        seen: dict[str, bytes | str | None] = {}
        described: dict[str, bytes] = {}
        for folder, folders, files in os.walk(self.top, onerror=self._fail):
            where = os.path.relpath(folder, self.top)
            for path in (name if where == "." else f"{where}/{name}" for name in folders + files):
                place = self.top / path
                if place.is_symlink():
                    seen[path] = os.readlink(place)
                    continue
                seen[path] = None if place.is_dir() else place.read_bytes()
                if os.listxattr(place):
                    described[path] = os.getxattr(place, "user.a")
        assert seen == self.model, self.history[-30:]
        assert described == self.attributes, self.history[-30:]

    @staticmethod
    def _fail(error: OSError) -> None:
        raise error

    def _folders(self) -> list[str]:
        return ["", *(path for path, content in self.model.items() if content is None)]

    def _new_path(self) -> str:
        folder = self.random.choice(self._folders())
        self.count += 1
        name = self.random.choice(("a", "b", "c", f"n{self.count}"))
        return f"{folder}/{name}" if folder else name

    def _any(self) -> str | None:
        return self.random.choice(list(self.model)) if self.model else None

    def make_folder(self) -> None:
        """mkdir where nothing is."""
        path = self._new_path()
        if path not in self.model and path.count("/") < 4:
            (self.top / path).mkdir()
            self.model[path] = None

    def write(self) -> None:
        """Create a file, or write one anew."""
        path = self._new_path()
        if isinstance(self.model.get(path, b""), bytes):
            content = self.random.randbytes(self.random.choice((0, 10, 4000, 9000)))
            (self.top / path).write_bytes(content)
            self.model[path] = content

    def link(self) -> None:
        """Make a link, anywhere and to anywhere."""
        path = self._new_path()
        if path not in self.model:
            target = self.random.choice(("a", "../b", "/etc/passwd", "nowhere/at/all", "."))
            os.symlink(target, self.top / path)
            self.model[path] = target

    def describe(self) -> None:
        """Set an attribute, or remove it."""
        path = self._any()
        if path is None or isinstance(self.model[path], str):
            return
        if path in self.attributes and self.random.random() < 0.4:
            os.removexattr(self.top / path, "user.a")
            del self.attributes[path]
        else:
            value = self.random.randbytes(self.random.choice((0, 5, 300)))
            os.setxattr(self.top / path, "user.a", value)
            self.attributes[path] = value

    def _move(self, old: str, new: str) -> tuple[dict[str, bytes | str | None], dict[str, bytes]]:
        paths = self._below(old)
        attributes = {new + path[len(old) :]: self.attributes.pop(path) for path in paths if path in self.attributes}
        return {new + path[len(old) :]: self.model.pop(path) for path in paths}, attributes

    def _below(self, path: str) -> list[str]:
        return [other for other in self.model if other == path or other.startswith(path + "/")]

    def rename(self) -> None:
        """Rename a file or a folder, over nothing, a file or an empty folder."""
        old, new = self._any(), self._new_path()
        if old is None or new == old or new.startswith(old + "/") or old.startswith(new + "/"):
            return
        there = new in self.model
        if there and ((self.model[new] is None) != (self.model[old] is None) or len(self._below(new)) > 1):
            return
        os.rename(self.top / old, self.top / new)
        self.attributes.pop(new, None)
        moved, attributes = self._move(old, new)
        self.model |= moved
        self.attributes |= attributes

    def exchange(self) -> None:
        """RENAME_EXCHANGE of any two."""
        one, two = self._any(), self._any()
        if one is None or two is None or one == two or one.startswith(two + "/") or two.startswith(one + "/"):
            return
        if isinstance(self.model[one], str) != isinstance(self.model[two], str):
            return  # EINVAL, as test_links says
        syscalls.rename(-1, str(self.top / one), -1, str(self.top / two), syscalls.RENAME_EXCHANGE)
        moved = [self._move(one, two), self._move(two, one)]
        for model, attributes in moved:
            self.model |= model
            self.attributes |= attributes

    def remove(self) -> None:
        """Unlink a file."""
        path = self._any()
        if path is not None and self.model[path] is not None:
            (self.top / path).unlink()
            del self.model[path]
            self.attributes.pop(path, None)

    def remove_tree(self) -> None:
        """Remove a folder with everything in it."""
        path = self._any()
        if path is not None and self.model[path] is None and self.random.random() < 0.3:
            self.retreat()
            shutil.rmtree(self.top / path)
            for gone in self._below(path):
                del self.model[gone]
                self.attributes.pop(gone, None)

    def keep(self) -> None:
        """The host keeps a copy of a file as it is now."""
        files = sorted(path for path in self.stored() if (self.store / path).is_file())
        if files:
            path = self.random.choice(files)
            self.kept[path] = (self.store / path).read_bytes()

    def put_back(self) -> None:
        """The host puts an older file where the program has none any more, with the folders that led there."""
        absent = [path for path in self.kept if path not in self.stored()]
        if not absent:
            return
        path = self.random.choice(absent)
        place = self.store / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(self.kept[path])
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            return
