"""Weights into a GPU, over a double of CUDA's driver whose copies happen only when somebody waits for them.

What is tested: each byte, also where buffers are used again; what is freed, and that no plaintext stays in buffers,
whatever fails; who owns the memory in the end. No GPU is needed, and none was ever used.
"""

from __future__ import annotations

import ctypes
import gc
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adyton.gpu
from adyton.errors import FileFormatError, IntegrityError, NoDevice, UsageError, WrongPath
from adyton.gpu import loading, tensors
from adyton.gpu.copy_plan import ALIGNMENT, plan_copies
from adyton.gpu.libcuda import Device
from adyton.gpu.safetensors import ITEM_BYTES, Entry, parse_header
from adyton.gpu.staging import copy_all
from adyton.storage.files import encrypt_file
from adyton.values import Key128
from tests.support.fake_cuda import fake_cuda

KEY = Key128(bytes(range(16)))
Arrays = dict[str, tuple[str, list[int], bytes]]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A double of each test's own, in the place of libcuda."""
    with fake_cuda(tmp_path) as found:
        monkeypatch.setattr(loading, "Device", lambda number: Device(number, lambda _name: found))
        yield found


def some(rng: random.Random, count: int = 12) -> Arrays:
    """Tensors of every type and of many sizes, nothing and one byte among them."""
    made: Arrays = {}
    for number in range(count):
        dtype = list(ITEM_BYTES)[number % len(ITEM_BYTES)]
        shape = [rng.choice((0, 1, 3, 700)), rng.choice((1, 5, 900))] if number % 3 else [rng.randrange(5000)]
        size = ITEM_BYTES[dtype] * int(np.prod(shape))
        made[f"layer.{number}"] = (dtype, shape, rng.randbytes(size))
    return made


def write(path: Path, arrays: Arrays) -> Path:
    """A safetensors file, made by hand."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, raw) in arrays.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(raw for _, _, raw in arrays.values()))
    return path


def seal(path: Path) -> Path:
    """The same file, protected."""
    encrypt_file(path, path.with_suffix(".sealed"), KEY, path="weights")
    return path.with_suffix(".sealed")


def content(tensor: adyton.gpu.Tensor) -> bytes:
    """What lies in the GPU's memory: here it is this process's."""
    return ctypes.string_at(tensor._memory.address + tensor._offset, tensor.nbytes)


def as_numpy(tensor: adyton.gpu.Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As a consumer takes it. numpy takes only what says that it lies in the processor's memory, as here it does."""
    monkeypatch.setattr(tensors, "CUDA", 1)
    return np.from_dlpack(tensor)


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize(("window_bytes", "workers"), [(1, 1), (4096, 1), (1000, 3), (10_007, 2), (1 << 20, 8)])
def test_every_byte_arrives(fake: Any, tmp_path: Path, protected: bool, window_bytes: int, workers: int) -> None:
    """With buffers of one byte up to one for everything, one worker and more than there are windows."""
    arrays = some(random.Random(window_bytes), 3 if window_bytes == 1 else 16)
    if window_bytes == 1:
        arrays = {name: (dtype, [0], b"") for name, (dtype, _, _) in arrays.items()} | {
            "x": ("U8", [200], bytes(range(200)))
        }
    path = write(tmp_path / "weights.safetensors", arrays)
    more: dict[str, Any] = {"key": KEY, "sealed_as": "weights"} if protected else {}
    path = seal(path) if protected else path
    with adyton.gpu.load(path, window_bytes=window_bytes, workers=workers, **more) as loaded:
        assert set(loaded) == set(arrays)
        for name, (dtype, shape, raw) in arrays.items():
            assert (loaded[name].dtype, list(loaded[name].shape)) == (dtype, shape)
            assert content(loaded[name]) == raw
        assert fake.fake_copied() == sum(len(raw) for _, _, raw in arrays.values())
        assert fake.fake_outstanding() == 1  # the memory itself; buffers, streams and events are gone


def test_only_named_tensors_are_read_and_copied(fake: Any, tmp_path: Path) -> None:
    """By their names, in any order, each once."""
    arrays = some(random.Random(5))
    path = write(tmp_path / "w", arrays)
    names = ["layer.7", "layer.2", "layer.7"]
    with adyton.gpu.load(path, names=names, window_bytes=777, workers=2) as loaded:
        assert list(loaded) == ["layer.7", "layer.2"]
        assert all(content(loaded[name]) == arrays[name][2] for name in loaded)
        assert fake.fake_copied() == sum(len(arrays[name][2]) for name in loaded)
    with pytest.raises(UsageError, match=r"no tensor 'layer\.99'"):
        adyton.gpu.load(path, names=["layer.99"])
    with adyton.gpu.load(path, names=[]) as loaded:
        assert len(loaded) == 0


def test_tensors_that_were_taken_outlive_what_loaded_them(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is freed with the last of them."""
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    path = write(tmp_path / "w", {"a": ("F32", [3, 4, 5], values.tobytes()), "b": ("I64", [], b"\7" + bytes(7))})
    loaded = adyton.gpu.load(path)
    first, scalar = as_numpy(loaded["a"], monkeypatch), as_numpy(loaded["b"], monkeypatch)
    kept = loaded["a"]
    loaded.close()
    loaded.close()
    assert (first == values).all()
    assert (scalar.shape, int(scalar)) == ((), 7)
    capsule = kept.__dlpack__()  # others use the memory, so it is there
    del capsule
    del first
    gc.collect()
    assert fake.fake_outstanding() == 1
    del scalar
    gc.collect()
    assert fake.fake_outstanding() == 0
    assert tensors._taken == {}


def test_torch_takes_tensors_and_lets_them_go_from_another_thread(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own types, an empty tensor and a scalar among them."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(tensors, "CUDA", 1)
    arrays: Arrays = {
        "half": ("BF16", [2], b"\x80\x3f\x00\x40"),
        "flag": ("BOOL", [], b"\1"),
        "none": ("F32", [0, 3], b""),
        "long": ("I64", [2, 1], (5).to_bytes(8, "little") + (6).to_bytes(8, "little")),
    }
    loaded = adyton.gpu.load(write(tmp_path / "w", arrays), window_bytes=5, workers=2)
    found = {name: torch.from_dlpack(tensor) for name, tensor in loaded.items()}
    loaded.close()
    assert found["half"].dtype == torch.bfloat16
    assert found["half"].tolist() == [1.0, 2.0]
    assert found["flag"].item() is True
    assert tuple(found["none"].shape) == (0, 3)
    assert found["long"].tolist() == [[5], [6]]
    thread = threading.Thread(target=found.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert fake.fake_outstanding() == 0


def test_capsule_that_nobody_takes_is_let_go(fake: Any, tmp_path: Path) -> None:
    """And one whose memory was freed cannot be made."""
    path = write(tmp_path / "w", {"a": ("U8", [2, 2], b"abcd")})
    loaded = adyton.gpu.load(path)
    tensor = loaded["a"]
    assert tensor.__dlpack_device__() == (2, 0)
    assert "a" in repr(tensor)
    capsule = tensor.__dlpack__(stream=None, max_version=(1, 0))
    assert len(tensors._taken) == 1
    del capsule
    assert tensors._taken == {}
    loaded.close()
    assert fake.fake_outstanding() == 0
    with pytest.raises(UsageError, match="were closed"):
        tensor.__dlpack__()


def test_end_of_the_interpreter_leaves_consumers_alone(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they hold has no way back into an interpreter that is gone."""
    path = write(tmp_path / "w", {"a": ("U8", [4], b"abcd")})
    loaded = adyton.gpu.load(path)
    taken = as_numpy(loaded["a"], monkeypatch)
    managed = next(iter(tensors._taken.values()))[0]
    before = managed.deleter
    tensors._forget()
    assert managed.deleter is None
    managed.deleter = before
    loaded.close()
    del taken


@pytest.mark.parametrize("window_bytes", [4096, 1 << 20])
@pytest.mark.parametrize("workers", [1, 4])
def test_altered_file_leaves_nothing_behind(fake: Any, tmp_path: Path, window_bytes: int, workers: int) -> None:
    """A flipped bit at several places, a cut, another key, another name. The fixture counts what is left."""
    arrays: Arrays = {"a": ("U8", [300_000], random.Random(1).randbytes(300_000))}
    path = seal(write(tmp_path / "weights", arrays))
    whole = path.read_bytes()

    def attempt(error: type[Exception], key: Key128 = KEY, sealed_as: str = "weights") -> None:
        with pytest.raises(error):
            adyton.gpu.load(path, key=key, sealed_as=sealed_as, window_bytes=window_bytes, workers=workers)
        gc.collect()
        assert fake.fake_outstanding() == 0
        assert fake.fake_contexts() == 0

    for place in (5000, 150_000, len(whole) - 10):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        attempt(IntegrityError)
    path.write_bytes(whole[:200_000])
    attempt(IntegrityError)
    path.write_bytes(whole)
    attempt(IntegrityError, key=Key128(bytes(16)))
    attempt(WrongPath, sealed_as="other")


class CutFile:
    """A file that the host cuts while it is read."""

    def read_into(self, _offset: int, target: Any, /) -> int:
        """One byte too few."""
        view = memoryview(target)
        view[:] = b"x" * len(view)
        return len(view) - 1


def test_file_that_is_cut_while_it_is_read_is_refused(fake: Any) -> None:
    """What was read is not passed off as whole."""
    device = Device(0, lambda _name: fake)
    device.activate()
    memory = device.allocate(1000)
    plan = plan_copies([Entry("a", "U8", (1000,), 0, 1000)], 100)
    with pytest.raises(IntegrityError, match="ends before its last tensor"):
        copy_all(plan.windows, CutFile(), device, memory, workers=2)
    device.free(memory)
    device.close()


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("cuInit", 0),
        ("cuMemAlloc_v2", 0),
        ("cuMemHostAlloc", 0),
        ("cuMemHostAlloc", 1),
        ("cuStreamCreate", 0),
        ("cuEventCreate", 1),
        ("cuEventRecord", 2),
        ("cuMemcpyHtoDAsync_v2", 3),
        ("cuStreamSynchronize", 0),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_driver_that_fails_anywhere_leaves_nothing_behind(
    fake: Any, tmp_path: Path, name: str, after: int, workers: int
) -> None:
    """The error names the call. Buffers are wiped and freed, and so is the GPU's memory."""
    path = write(tmp_path / "w", some(random.Random(9)))
    fake.fake_fail(name.encode(), after)
    with pytest.raises(NoDevice, match=name):
        adyton.gpu.load(path, window_bytes=2000, workers=workers)
    gc.collect()
    assert fake.fake_outstanding() == 0
    assert fake.fake_dirty() == 0


def test_missing_gpu_and_missing_driver_are_said(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that no GPU has; a machine without libcuda; a driver without a function."""
    path = write(tmp_path / "w", {"a": ("U8", [1], b"x")})
    with pytest.raises(NoDevice, match="cuDeviceGet"):
        adyton.gpu.load(path, device=1)

    def absent(_name: str) -> Any:
        raise OSError("no such file")

    monkeypatch.setattr(loading, "Device", lambda number: Device(number, absent))
    with pytest.raises(NoDevice, match="driver is not here"):
        adyton.gpu.load(path)
    with pytest.raises(NoDevice, match="no such function"):
        Device(0, lambda _name: object())
    with pytest.raises(UsageError, match="nothing to load with"):
        adyton.gpu.load(path, workers=0, window_bytes=0)


def test_threads_context_is_as_before(fake: Any, tmp_path: Path) -> None:
    """The program's own use of CUDA is not disturbed."""
    device = Device(0, lambda _name: fake)
    before = device.current()
    path = write(tmp_path / "w", {"a": ("U8", [1], b"x")})
    device.restore(0x1234)
    loaded = adyton.gpu.load(path)
    assert device.current() == 0x1234
    loaded.close()
    assert device.current() == 0x1234
    device.restore(before)
    device.close()


def test_key_of_the_run_is_taken_by_its_name(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a program in a run has it. Other names are refused."""
    path = seal(write(tmp_path / "weights", {"a": ("U8", [3], b"abc")}))
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/default").write_bytes(KEY.reveal())
    monkeypatch.setattr(loading, "KEY_FOLDER", str(tmp_path / "keys"))
    with adyton.gpu.load(path, key="default", sealed_as="weights") as loaded:
        assert content(loaded["a"]) == b"abc"
    for name in ("other", "../keys/default", ".."):
        with pytest.raises(UsageError):
            adyton.gpu.load(path, key=name, sealed_as="weights")


# --- the header and the plan ------------------------------------------------------------------------------------------


def _entry(shape: Any = (2,), dtype: Any = "F32", offsets: Any = (0, 8)) -> Any:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "document",
    [
        {"a": 1},
        {"a": {**_entry(), "more": 1}},
        {"a": _entry(dtype="F33")},
        {"a": _entry(dtype=["F32"])},
        {"a": _entry(shape=[True])},
        {"a": _entry(shape=[-1])},
        {"a": _entry(shape=[1] * 33)},
        {"a": _entry(shape=[1 << 62])},
        {"a": _entry(offsets=[0])},
        {"a": _entry(offsets=[0, 7])},
        {"a": _entry(offsets=[8, 0])},
        {"a": _entry(offsets=[4, 12])},
        {"a": _entry(), "b": _entry()},
        {"a": _entry(), "b": _entry(offsets=[9, 17])},
        {"x" * 1025: _entry()},
        {"__metadata__": [], "a": _entry()},
        {"__metadata__": {"a": 1}, "a": _entry()},
    ],
)
def test_headers_that_are_not_exact_are_refused(document: Any) -> None:
    """Types, shapes, gaps, overlaps, sizes."""
    raw = json.dumps(document).encode()
    with pytest.raises(FileFormatError):
        parse_header(raw, 8 + len(raw) + 8)


@pytest.mark.parametrize(
    "raw", [b"", b"\0" * 7, b"\1" + bytes(7) + b"{}", b"\xff" * 8 + b"{}", b"\3" + bytes(7) + b"{}"]
)
def test_files_that_are_too_short_for_their_header_are_refused(fake: Any, tmp_path: Path, raw: bytes) -> None:
    """Before anything is allocated."""
    (tmp_path / "w").write_bytes(raw)
    with pytest.raises(FileFormatError):
        adyton.gpu.load(tmp_path / "w")
    assert fake.fake_outstanding() == 0


def test_plan_copies_each_byte_once_and_no_other() -> None:
    """Random tensors, some left out, and random windows."""
    rng = random.Random(3)
    for _ in range(200):
        entries, at = [], 100
        for number in range(rng.randrange(1, 9)):
            size = rng.choice((0, 1, 255, 256, 257, rng.randrange(3000)))
            if rng.random() < 0.7:
                entries.append(Entry(str(number), "U8", (size,), at, size))
            at += size
        window_bytes = rng.choice((1, 7, 256, 1000, 1 << 20))
        plan = plan_copies(entries, window_bytes)
        moved: dict[int, int] = {}
        for window in plan.windows:
            assert 0 < window.size <= window_bytes
            assert sum(copy.size for copy in window.copies) == window.size
            for copy in window.copies:
                for step in range(copy.size):
                    assert copy.target + step not in moved
                    moved[copy.target + step] = window.offset + copy.source + step
        wanted = {
            plan.places[entry.name] + step: entry.offset + step for entry in entries for step in range(entry.size)
        }
        assert moved == wanted
        assert all(place % ALIGNMENT == 0 for place in plan.places.values())
        assert all(place < plan.device_bytes for place in wanted)


def test_module_needs_neither_torch_nor_a_gpu_to_be_imported() -> None:
    """In a process of its own."""
    code = "import sys, adyton.gpu; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
