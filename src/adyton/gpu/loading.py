"""Load tensors of a safetensors file into a GPU's memory. The one function that programs call."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from adyton.errors import StorageFailed, UsageError
from adyton.gpu.copy_plan import plan_copies
from adyton.gpu.libcuda import Device
from adyton.gpu.safetensors import LENGTH_BYTES, Entry, header_bytes, parse_header
from adyton.gpu.staging import copy_all
from adyton.gpu.tensors import Memory, Tensor
from adyton.os_failure import storage_failed
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.values import Key128

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Protocol

    from typing_extensions import Buffer

    from adyton.gpu.staging import Source

    class _OpenFile(Source, Protocol):
        @property
        def size(self) -> int: ...

        def close(self) -> None: ...


WINDOW_BYTES: Final = 16 << 20
MAX_WORKERS: Final = 8
KEY_FOLDER: Final = "/dev/attestation/keys"
"""Where a program in a run finds the keys of its mounts."""


class Loaded(Mapping[str, Tensor]):
    """Tensors by name. `close`, or the end of a `with` block, frees them all but those that were taken (DLPack)."""

    def __init__(self, tensors: Mapping[str, Tensor], memory: Memory) -> None:
        self._tensors = tensors
        self._finish = weakref.finalize(self, memory.let_go)
        self._finish.atexit = False

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def close(self) -> None:
        """Let the memory go. It is freed with the last tensor that somebody took."""
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: object, _traceback: TracebackType | None) -> None:
        self.close()


def load(
    path: str | Path,
    *,
    key: Key128 | str | None = None,
    sealed_as: str | None = None,
    names: Iterable[str] | None = None,
    device: int = 0,
    window_bytes: int = WINDOW_BYTES,
    workers: int | None = None,
) -> Loaded:
    """Load the tensors `names` (default: all) of a safetensors file into the memory of a GPU, and wait for them.

    With `key` the file is a protected one: the key, or the name of one that the run has. It was sealed as `sealed_as`,
    by default `path` as it is written. Without a key it is a plain file. Reading and decrypting (`workers` threads)
    overlap with copying, through pinned buffers of `window_bytes`, two for each thread, which are wiped at the end.

    Raises NoDevice, FileFormatError, UsageError, StorageFailed, and IntegrityError where a byte was altered. Then
    nothing stays in the GPU's memory.
    """
    count = workers or min(MAX_WORKERS, len(os.sched_getaffinity(0)))
    if window_bytes < 1 or count < 1:
        raise UsageError(
            "there is nothing to load with",
            check="window_bytes, workers",
            expected="at least 1",
            seen=f"{window_bytes}, {count}",
        )
    file = _open(Path(path), key, str(path) if sealed_as is None else sealed_as)
    try:
        entries = _chosen(_header(file), names)
        plan = plan_copies(entries, window_bytes)
        target = Device(device)
        before = target.current()
        try:
            target.activate()
            memory = _filled(target, max(plan.device_bytes, 1))
            try:
                copy_all(plan.windows, file, target, memory.address, workers=count)
            except BaseException:
                memory.let_go()
                raise
        finally:
            target.restore(before)
    finally:
        file.close()
    return Loaded({entry.name: Tensor(entry, memory, plan.places[entry.name]) for entry in entries}, memory)


def _filled(device: Device, size: int) -> Memory:
    """Memory of the GPU, which keeps the device open."""
    try:
        return Memory(device, device.allocate(size))
    except BaseException:
        device.close()
        raise


def _open(path: Path, key: Key128 | str | None, sealed_as: str) -> _OpenFile:
    if key is None:
        return _PlainFile(path)
    return ProtectedFile.open(OSFile(path), key if isinstance(key, Key128) else _key_of_run(key), path=sealed_as)


def _key_of_run(name: str) -> Key128:
    place = Path(KEY_FOLDER, name)
    if "/" in name or name.startswith("."):
        raise UsageError("no name of a key", check="key", expected="a name without /", seen=name[:80])
    try:
        return Key128(place.read_bytes())
    except OSError as error:
        raise UsageError(
            f"this run has no key {name!r}",
            check="key",
            expected=f"{place}, for a mount of the manifest",
            seen=error.strerror,
            remedy="name the key of an encrypted mount of this program",
        ) from error


def _header(file: _OpenFile) -> tuple[Entry, ...]:
    start = bytearray(min(LENGTH_BYTES, file.size))
    file.read_into(0, start)
    raw = bytearray(header_bytes(bytes(start), file.size))
    if file.read_into(LENGTH_BYTES, raw) != len(raw):
        raise StorageFailed("the file was cut while it was read", check="header of safetensors")
    return parse_header(bytes(raw), file.size)


def _chosen(entries: Iterable[Entry], names: Iterable[str] | None) -> list[Entry]:
    by_name = {entry.name: entry for entry in entries}
    if names is None:
        return list(by_name.values())
    wanted = list(dict.fromkeys(names))
    missing = [name for name in wanted if name not in by_name]
    if missing:
        raise UsageError(
            f"the file has no tensor {missing[0][:80]!r}",
            check="names",
            expected=f"names out of {len(by_name)} tensors",
            seen=f"{len(missing)} others",
            remedy="look at the names: list(adyton.gpu.load(PATH))",
        )
    return [by_name[name] for name in wanted]


class _PlainFile:
    """A file that is not encrypted, read without a position, so that threads can share it."""

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise storage_failed(error, self._name, "opening") from error
        self._size = os.fstat(self._fd).st_size

    @property
    def size(self) -> int:
        """Its length in bytes when it was opened."""
        return self._size

    def read_into(self, offset: int, target: Buffer, /) -> int:
        """Fill `target` from `offset`. Returns the number of bytes."""
        view, done = memoryview(target).cast("B"), 0
        try:
            while done < len(view):
                got = os.preadv(self._fd, [view[done:]], offset + done)
                if not got:
                    break
                done += got
        except OSError as error:
            raise storage_failed(error, self._name, "reading") from error
        return done

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)
