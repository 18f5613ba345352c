"""The double of CUDA's driver (fake_libcuda.c), compiled, and loaded for one test."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("fake_libcuda.c")


@cache
def _built() -> bytes:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) for the double of CUDA's driver")
    with TemporaryDirectory(prefix="adyton-cuda-") as name:
        built = Path(name, "libcuda.so")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, SOURCE, "-lpthread"], check=True)
        return built.read_bytes()


@contextlib.contextmanager
def fake_cuda(folder: Path) -> Iterator[Any]:
    """A driver of the test's own. At the end nothing is left allocated, and no staging buffer was freed unwiped."""
    own = folder / "libcuda-of-this-test.so"
    own.write_bytes(_built())
    found: Any = ctypes.CDLL(str(own))
    for name in ("outstanding", "dirty", "copied", "contexts"):
        getattr(found, f"fake_{name}").restype = ctypes.c_long
    found.fake_fail.argtypes = (ctypes.c_char_p, ctypes.c_long)
    yield found
    gc.collect()
    assert found.fake_dirty() == 0
    assert found.fake_outstanding() == 0
    assert found.fake_contexts() == 0
