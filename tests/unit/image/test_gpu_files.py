"""NVIDIA's driver in a guest image: taken by its hashes, for one kernel and one version, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from adyton.errors import UsageError
from adyton.image import gpu_files, recipe
from adyton.image.gpu_files import GPUFiles
from adyton.image.kernel_modules import needed_by
from adyton.image.root_tree import GPU_MODULES
from adyton.workflow import image

KERNEL = "6.17.8+deb13-cloud-amd64"


def module(name: str, *, version: str = "570.158.01", kernel: str = KERNEL, depends: str = "") -> bytes:
    """A file that says of itself what a kernel module says."""
    rows = [f"version={version}", f"name={name}", f"depends={depends}", f"vermagic={kernel} SMP preempt mod_unload "]
    return b"\x7fELF" + b"\0" * 12 + b"\0".join(row.encode() for row in ["", *rows, ""])


def driver() -> dict[str, bytes]:
    """A whole driver."""
    return {
        "nvidia.ko": module("nvidia", depends="ecc,drm"),
        "nvidia-uvm.ko": module("nvidia_uvm", depends="nvidia"),
        "gsp_ga10x.bin": b"firmware",
        "libnvidia-ml.so.1": b"\x7fELF\x02\x01library",
    }


def sums(files: Mapping[str, bytes]) -> bytes:
    """As sha256sum writes them."""
    return "".join(f"{hashlib.sha256(raw).hexdigest()}  {name}\n" for name, raw in files.items()).encode()


def test_driver_is_placed_where_the_kernel_and_nvml_look() -> None:
    """Two modules in their order, firmware by its version, the library; each with its hash in image.json."""
    files = driver()
    found = GPUFiles.parse(files, sums(files), KERNEL)
    assert found.version == "570.158.01"
    assert list(found.modules()) == ["nvidia", "nvidia-uvm"]
    assert sorted(found.placed()) == [
        "usr/lib/firmware/nvidia/570.158.01/gsp_ga10x.bin",
        "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    ]
    assert needed_by(found.modules().values()) == ("ecc", "drm", "nvidia")
    named = {item.name: item for item in found.inputs()}
    assert set(named) == {f"gpu:{name}" for name in files}
    assert named["gpu:nvidia.ko"].sha256.raw == hashlib.sha256(files["nvidia.ko"]).digest()
    assert named["gpu:nvidia.ko"].version == "570.158.01"


def _without(name: str) -> dict[str, bytes]:
    return {other: raw for other, raw in driver().items() if other != name}


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (_without("gsp_ga10x.bin"), "names"),
        ({**driver(), "nvidia-drm.ko": module("nvidia_drm")}, "names"),
        ({**driver(), "nvidia.ko": module("nvidia", kernel="6.1.0-37-amd64")}, "a module for the kernel"),
        ({**driver(), "nvidia.ko": module("nvidia", version="550.1.2")}, "version of the modules"),
        ({**driver(), "nvidia.ko": b"\xfd7zXZ\0"}, "not compressed"),
        ({**driver(), "nvidia.ko": module("nvidia").replace(b"version=5", b"versiom=5")}, "not compressed"),
        ({**driver(), "libnvidia-ml.so.1": b"INPUT(-lc)"}, "shared library"),
        ({}, "SHA256SUMS"),
    ],
)
def test_folder_that_is_not_a_driver_for_this_kernel_is_refused(files: dict[str, bytes], match: str) -> None:
    """Each has its hash in the list, so the hash is not what refuses it."""
    with pytest.raises(UsageError, match=match):
        GPUFiles.parse(files, sums(files), KERNEL)


def test_file_with_another_hash_is_refused() -> None:
    """One byte of firmware; a list with two lines for one name; a list of another form."""
    files = driver()
    listed = sums(files)
    with pytest.raises(UsageError, match=r"gsp_ga10x\.bin: expected SHA-256"):
        GPUFiles.parse({**files, "gsp_ga10x.bin": b"firmwarf"}, listed, KERNEL)
    for wrong in (b"", listed + listed, listed + b"more\n", b"\xff", listed + b" " * 5000, listed.upper()):
        with pytest.raises(UsageError, match="SHA256SUMS"):
            GPUFiles.parse(files, wrong, KERNEL)


def test_folder_is_read_within_limits(tmp_path: Path) -> None:
    """As the verb reads it. No folder is no driver."""
    files = driver()
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / gpu_files.SUMS).write_bytes(sums(files))
    assert image._gpu_files(tmp_path, KERNEL).version == "570.158.01"
    for number in range(20):
        (tmp_path / f"more-{number}").write_bytes(b"")
    with pytest.raises(UsageError, match="names"):
        image._gpu_files(tmp_path, KERNEL)
    with pytest.raises(UsageError, match="SHA256SUMS"):
        image._gpu_files(tmp_path / "none", KERNEL)


def test_command_line_of_an_image_with_gpus_differs_in_lockdown_alone() -> None:
    """Process 1 locks the kernel down there."""
    assert recipe.LOCKDOWN in recipe.COMMAND_LINE
    assert "lockdown" not in recipe.COMMAND_LINE.replace(recipe.LOCKDOWN, "")
    assert GPU_MODULES.startswith("usr/lib/adyton/")
