"""Protected files through fsspec: `adyton::file:///data/model.pt`, over any file system that fsspec knows.

>>> import fsspec
>>> from adyton.storage.filesystem import register
>>> register()
>>> with fsspec.open("adyton::file:///data/model.pt", adyton={"key": key}) as file:  # doctest: +SKIP
...     model = torch.load(file)
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
from fsspec.implementations.chained import ChainedFileSystem
from fsspec.implementations.local import LocalFileSystem

from adyton.errors import FileFormatError, StorageFailed, UsageError
from adyton.os_failure import storage_failed
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.pfile.stream import ProtectedStream, buffered
from adyton.storage.files import copy_out
from adyton.storage.trees import embedded_below

if TYPE_CHECKING:
    import io

    from typing_extensions import Buffer

    from adyton.values import Key128


class ReadOnlyBacking:
    """A seekable binary file object as a backing to read from. It closes the object itself."""

    def __init__(self, file: io.BufferedIOBase, name: str) -> None:
        self._file = file
        self._name = name
        self._lock = threading.Lock()
        self._size = file.seek(0, os.SEEK_END)

    @property
    def name(self) -> str:
        """The path on the file system below."""
        return self._name

    def size(self) -> int:
        """The length when it was opened."""
        return self._size

    def read_into(self, offset: int, target: Buffer, /) -> int:
        """Seek and read."""
        view = memoryview(target).cast("B")
        got = 0
        try:
            with self._lock:
                self._file.seek(offset)
                while got < len(view):
                    data = self._file.read(len(view) - got)
                    if not data:
                        break
                    view[got : got + len(data)] = data
                    got += len(data)
        except OSError as error:
            raise storage_failed(error, self._name, "reading") from error
        return got

    def will_read(self, offset: int, size: int, /) -> None:
        """The file system below fetches as it sees fit."""

    def write_at(self, _offset: int, _data: Buffer, /) -> None:
        """Never."""
        raise StorageFailed(f"{self._name} is open for reading only", check="writing", expected="a writable handle")

    def truncate(self, _size: int, /) -> None:
        """Never."""
        raise StorageFailed(f"{self._name} is open for reading only", check="cutting", expected="a writable handle")

    def sync(self) -> None:
        """Nothing was written."""

    def open_log(self, *, create: bool) -> None:  # noqa: ARG002 - the protocol's name
        """A file elsewhere is put there whole, and has no log."""
        return

    def remove_log(self) -> None:
        """There is none."""

    def moved_to(self, place: Path, /, *, sync: bool) -> None:
        """Nothing was renamed."""

    def close(self) -> None:
        """Close the file below."""
        self._file.close()


class _Upload(ProtectedStream):
    """A new protected file: sealed into a temporary file here, put in its place whole when it is closed."""

    def __init__(self, file: ProtectedFile, part: Path, fs: fsspec.AbstractFileSystem, place: str) -> None:
        super().__init__(file, readable=False)
        self._part = part
        self._fs = fs
        self._place = place

    def close(self) -> None:
        """Commit, and put it in its place."""
        if self.closed:
            return
        try:
            super().close()
            if isinstance(self._fs, LocalFileSystem):
                self._part.replace(self._place)
                return
            with self._part.open("rb") as source, self._fs.open(self._place, "wb") as target:
                copy_out(source.fileno(), target.write)
        finally:
            self._part.unlink(missing_ok=True)


class ProtectedFileSystem(ChainedFileSystem):  # type: ignore[misc]
    """Reads and writes protected files that lie on another file system, which keeps names and directories.

    `key` is the wrap key.  `path` is the embedded path of `root`, a directory on the file system below:
    given, it is sealed in and checked; otherwise a new file carries its place as it was named, and
    reading checks no path.  Sizes are those of the plaintext.
    """

    protocol: ClassVar[str] = "adyton"
    cachable = False  # an instance holds a key
    root_marker = ""

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem | None = None,
        *,
        key: Key128 | None = None,
        path: str | None = None,
        root: str = "",
        version: int = 2,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        fo: str | None = None,
        **options: Any,
    ) -> None:
        """`fs`, or `target_protocol` and `target_options` as fsspec's chaining gives them."""
        super().__init__(**options)
        del fo
        if key is None:
            raise UsageError(
                "a protected file system needs a key",
                check="key",
                expected='adyton={"key": Key128(...)} among the storage options',
                seen="none",
            )
        self.fs = fs if fs is not None else fsspec.filesystem(target_protocol or "file", **(target_options or {}))
        self._key = key
        self._path = path
        self._root = self.fs._strip_protocol(root).rstrip("/") if root else ""
        self._version = version

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("adyton://").removeprefix("adyton::")

    def _below(self, path: str) -> str:
        return str(self.fs._strip_protocol(path))

    def _embedded(self, place: str) -> str | None:
        if self._path is None:
            return None
        if self._root and not place.startswith(self._root + "/"):
            raise UsageError(f"{place} is not below {self._root}", check="root", expected=self._root, seen=place)
        return embedded_below(self._path, place[len(self._root) :].lstrip("/"))

    def _open_file(self, place: str) -> ProtectedFile:
        backing: OSFile | ReadOnlyBacking
        if isinstance(self.fs, LocalFileSystem):
            backing = OSFile(place)
        else:
            backing = ReadOnlyBacking(self.fs.open(place, "rb"), place)
        return ProtectedFile.open(backing, self._key, path=self._embedded(place))

    def _open(self, path: str, mode: str = "rb", **_options: Any) -> Any:
        place = self._below(path)
        if mode == "rb":
            return buffered(ProtectedStream(self._open_file(place)))
        if mode not in ("wb", "xb"):
            raise UsageError(f"mode {mode!r} is not supported here", check="mode", expected="rb, wb, xb", seen=mode)
        if mode == "xb" and self.fs.exists(place):
            raise FileExistsError(place)
        local = isinstance(self.fs, LocalFileSystem)
        directory = Path(place).parent if local else None
        fd, name = tempfile.mkstemp(prefix=".", suffix=".adyton-part", dir=directory)
        embedded = self._embedded(place)
        try:
            file = ProtectedFile.create(
                OSFile(fd, path=Path(name)),
                self._key,
                path=place if embedded is None else embedded,
                version=self._version,
                use_log=False,
            )
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return buffered(_Upload(file, Path(name), self.fs, place))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """What the file system below says, with the size of the plaintext."""
        return self._with_plain_size(self.fs.info(self._below(path), **options))

    def _with_plain_size(self, facts: dict[str, Any]) -> dict[str, Any]:
        if facts["type"] != "file":
            return facts
        try:
            with self._open_file(facts["name"]) as file:
                size: int | None = file.size
        except FileFormatError:
            size = None  # not a protected file, or not under this key
        return {**facts, "size": size}

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """What the file system below lists, with the sizes of the plaintexts."""
        found = self.fs.ls(self._below(path), detail=detail, **options)
        return [self._with_plain_size(facts) for facts in found] if detail else found

    def exists(self, path: str, **options: Any) -> bool:
        """Whether it is there, whatever it is."""
        return bool(self.fs.exists(self._below(path), **options))

    def isfile(self, path: str) -> bool:
        """Whether it is a file, whatever it holds."""
        return bool(self.fs.isfile(self._below(path)))

    def isdir(self, path: str) -> bool:
        """Whether it is a directory."""
        return bool(self.fs.isdir(self._below(path)))

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """Make a directory."""
        self.fs.mkdir(self._below(path), create_parents=create_parents, **options)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and those above it."""
        self.fs.makedirs(self._below(path), exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self.fs.rmdir(self._below(path))

    def _rm(self, path: str) -> None:
        self.fs.rm_file(self._below(path))

    def created(self, path: str) -> Any:
        """What the file system below says."""
        return self.fs.created(self._below(path))

    def modified(self, path: str) -> Any:
        """What the file system below says."""
        return self.fs.modified(self._below(path))


def register() -> None:
    """Make `adyton::...` known to fsspec in this process. An installed Adyton is known without it."""
    fsspec.register_implementation("adyton", ProtectedFileSystem, clobber=True)
