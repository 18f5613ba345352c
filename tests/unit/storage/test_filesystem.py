"""Protected files through fsspec and into the libraries that read through it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from adyton.errors import IntegrityError, NotProtectedFile, StorageFailed, UsageError, WrongPath
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.pfile.stream import open_protected
from adyton.storage.filesystem import ProtectedFileSystem, ReadOnlyBacking, register
from adyton.values import Key128

KEY = Key128(bytes(range(16)))


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's file system in memory, emptied."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


def test_local_file_is_written_whole_and_read(tmp_path: Path) -> None:
    """By chained address; nothing stands there before it is closed."""
    address = f"adyton::file://{tmp_path}/f"
    with fsspec.open(address, "wb", adyton={"key": KEY}) as file:
        file.write(b"x" * 1_000_000)
        assert not (tmp_path / "f").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["f"]
    with fsspec.open(address, adyton={"key": KEY}) as file:
        file.seek(999_990)
        assert file.read() == b"x" * 10
    with fsspec.open(address, "r", adyton={"key": KEY}) as text:
        assert text.read(3) == "xxx"


def test_file_on_another_file_system_is_written_and_read(memory: fsspec.AbstractFileSystem) -> None:
    """Over any file system that fsspec knows; the ciphertext alone goes there."""
    fs = ProtectedFileSystem(memory, key=KEY, root="/data", path="in")
    fs.makedirs("/data/sub")
    with fs.open("/data/sub/f", "wb") as file:
        file.write(b"secret" * 100_000)
    raw = memory.cat("/data/sub/f")
    assert raw.startswith(b"GRAFS_PF")
    assert b"secret" not in raw
    with fs.open("/data/sub/f") as file:
        assert file.read() == b"secret" * 100_000
    assert fs.info("/data/sub/f")["size"] == 600_000
    assert [(each["name"], each["size"]) for each in fs.ls("/data/sub")] == [("/data/sub/f", 600_000)]
    assert fs.ls("/data/sub", detail=False) == ["/data/sub/f"]
    assert fs.isfile("/data/sub/f")
    assert fs.isdir("/data/sub")
    assert fs.exists("/data/sub/f")
    fs.rm("/data/sub/f")
    assert not memory.exists("/data/sub/f")


def test_paths_are_sealed_and_checked_below_the_root(memory: fsspec.AbstractFileSystem) -> None:
    """A file moved by the host is refused; a place outside the root too."""
    fs = ProtectedFileSystem(memory, key=KEY, root="/data", path="in")
    with fs.open("/data/a", "wb") as file:
        file.write(b"x")
    memory.copy("/data/a", "/data/b")
    with pytest.raises(WrongPath) as refusal:
        fs.open("/data/b")
    assert (refusal.value.expected, refusal.value.seen) == ("in/b", "in/a")
    with pytest.raises(UsageError, match="below"):
        fs.open("/elsewhere", "wb")


def test_what_is_wrong_is_refused_as_everywhere(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    """Plaintext, another key, a changed block, no key, another mode."""
    fs = ProtectedFileSystem(memory, key=KEY)
    memory.pipe("/plain", b"p" * 9000)
    with pytest.raises(NotProtectedFile):
        fs.open("/plain")
    assert fs.info("/plain")["size"] is None
    with fs.open("/f", "wb") as file:
        file.write(b"x" * 100_000)
    with pytest.raises(IntegrityError):
        ProtectedFileSystem(memory, key=Key128.generate()).open("/f")
    raw = bytearray(memory.cat("/f"))
    raw[50_000] ^= 1
    memory.pipe("/f", bytes(raw))
    with fs.open("/f") as file, pytest.raises(IntegrityError, match="/f: node 12 "):
        file.read()
    with pytest.raises(UsageError, match="key"):
        ProtectedFileSystem(memory)
    with pytest.raises(UsageError, match="mode"):
        fs.open("/f", "r+b")
    with pytest.raises(FileExistsError):
        fs.open("/f", "xb")
    backing = ReadOnlyBacking(io.BytesIO(b""), "x")
    with pytest.raises(StorageFailed):
        backing.write_at(0, b"")
    with pytest.raises(StorageFailed):
        backing.truncate(0)
    with pytest.raises(FileNotFoundError):
        fs.info("/nowhere")


def test_two_keys_are_two_file_systems(memory: fsspec.AbstractFileSystem) -> None:
    """fsspec reuses instances; one with another key must not be taken for it."""
    one = fsspec.filesystem("adyton", fs=memory, key=KEY)
    two = fsspec.filesystem("adyton", fs=memory, key=Key128.generate())
    with one.open("/f", "wb") as file:
        file.write(b"x")
    with pytest.raises(IntegrityError):
        two.open("/f")


def test_pandas_reads_and_writes(tmp_path: Path) -> None:
    """CSV and Parquet, by address."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(10_000), "b": [f"text {i}" for i in range(10_000)]})
    options = {"adyton": {"key": KEY}}
    frame.to_csv(f"adyton::file://{tmp_path}/f.csv", index=False, storage_options=options)
    assert pandas.read_csv(f"adyton::file://{tmp_path}/f.csv", storage_options=options).equals(frame)
    pytest.importorskip("pyarrow")
    with open_protected(tmp_path / "f.parquet", "wb", key=KEY) as file:
        frame.to_parquet(file)
    with open_protected(tmp_path / "f.parquet", key=KEY) as file:
        assert pandas.read_parquet(file).equals(frame)


def test_pyarrow_reads_columns_and_data_sets(tmp_path: Path) -> None:
    """Through its own adapter of fsspec, only what is asked for."""
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.dataset
    import pyarrow.fs
    import pyarrow.parquet

    fs = ProtectedFileSystem(fsspec.filesystem("file"), key=KEY)
    table = pyarrow.table({"x": list(range(50_000)), "y": [0.5] * 50_000})
    adapted = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    pyarrow.parquet.write_table(table, f"{tmp_path}/t.parquet", filesystem=adapted)
    assert pyarrow.parquet.read_table(f"{tmp_path}/t.parquet", filesystem=adapted, columns=["x"]).num_columns == 1
    assert pyarrow.dataset.dataset(str(tmp_path), filesystem=adapted).to_table().equals(table)


def test_safetensors_reads_and_writes(tmp_path: Path) -> None:
    """The header, then single tensors."""
    numpy = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = {"weight": numpy.arange(100_000, dtype="float32"), "bias": numpy.ones(7, dtype="int64")}
    with open_protected(tmp_path / "m.safetensors", "wb", key=KEY) as file:
        file.write(safetensors.save(tensors))
    with open_protected(tmp_path / "m.safetensors", key=KEY) as file:
        found = safetensors.load(file.read())
        file.seek(0)
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert set(header) == {"weight", "bias"}
    assert all((found[name] == tensors[name]).all() for name in tensors)


def test_torch_saves_and_loads(tmp_path: Path) -> None:
    """torch.save and torch.load on a file object."""
    torch = pytest.importorskip("torch")
    model = {"weight": torch.arange(300_000).float(), "name": "net"}
    with open_protected(tmp_path / "m.pt", "wb", key=KEY) as file:
        torch.save(model, file)
    with open_protected(tmp_path / "m.pt", key=KEY) as file:
        found = torch.load(file, weights_only=True)
    assert torch.equal(found["weight"], model["weight"])
    assert b"weight" not in (tmp_path / "m.pt").read_bytes()
    with ProtectedFile.open(OSFile(tmp_path / "m.pt"), KEY) as sealed:
        sealed.verify()
