"""Device nodes in the sandbox: exactly those that were asked for, and each is what it has to be.

The nodes are the kernel's memory devices under the names of a GPU's. So the program can use them on any machine.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.mount import world

pytestmark = pytest.mark.mount

NULL, ZERO, FULL = 3, 5, 7
"""Minor numbers of the kernel's memory devices (major 1)."""


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """A folder like /dev, with the nodes of two GPUs."""
    folder = tmp_path / "dev"
    folder.mkdir()
    try:
        for name, minor in (("nvidiactl", NULL), ("nvidia-uvm", ZERO), ("nvidia0", FULL), ("nvidia1", FULL)):
            _make(folder / name, minor)
    except PermissionError:
        pytest.skip("this user may not make device nodes (mknod)")
    return folder


def _make(path: Path, minor: int, mode: int = 0o666) -> None:
    path.unlink(missing_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, minor))
    path.chmod(mode)


def _nodes(dev: Path) -> list[tuple[str, int, int]]:
    return [(f"{dev}/nvidiactl", 1, NULL), (f"{dev}/nvidia-uvm", 1, ZERO), (f"{dev}/nvidia0", 1, FULL)]


LOOK = """
import json, os, stat
found = {}
for name in sorted(os.listdir("/dev")):
    info = os.lstat("/dev/" + name)
    if stat.S_ISCHR(info.st_mode):
        found[name] = [os.major(info.st_rdev), os.minor(info.st_rdev)]
print(json.dumps([sorted(os.listdir("/dev")), found]))
"""


def _seen(result: world.Result) -> Any:
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_program_sees_exactly_its_nodes(tmp_path: Path, dev: Path) -> None:
    """Three more names than without, with their numbers. The second GPU of the machine is not there."""
    without, _ = _seen(world.run(tmp_path, world.python(LOOK)))
    names, nodes = _seen(world.run(tmp_path, world.python(LOOK, devices=_nodes(dev))))
    assert sorted(set(names) - set(without)) == ["nvidia-uvm", "nvidia0", "nvidiactl"]
    assert set(without) <= set(names)
    assert {name: nodes[name] for name in ("nvidia-uvm", "nvidia0", "nvidiactl")} == {
        "nvidia-uvm": [1, ZERO],
        "nvidia0": [1, FULL],
        "nvidiactl": [1, NULL],
    }


def test_program_uses_its_nodes_and_makes_none(tmp_path: Path, dev: Path) -> None:
    """They can be opened, read and written as a driver lets it. /dev itself stays closed."""
    script = """
import os
assert os.read(os.open("/dev/nvidia-uvm", os.O_RDWR), 4) == bytes(4)
assert os.write(os.open("/dev/nvidiactl", os.O_RDWR), b"x") == 1
for call, words in ((open, ("/dev/nvidia9", "w")), (os.unlink, ("/dev/nvidia0",)), (os.chmod, ("/dev/nvidia0", 0))):
    try:
        call(*words)
    except OSError:
        continue
    raise SystemExit("done what must not be")
print("fine")
"""
    result = world.run(tmp_path, world.python(script, devices=_nodes(dev)))
    assert result.out == "fine\n", result.err
    assert stat.S_IMODE((dev / "nvidia0").stat().st_mode) == 0o666


def _missing(dev: Path) -> None:
    (dev / "nvidia0").unlink()


def _file(dev: Path) -> None:
    (dev / "nvidia0").unlink()
    (dev / "nvidia0").write_bytes(b"")
    (dev / "nvidia0").chmod(0o666)


def _link(dev: Path) -> None:
    (dev / "nvidia0").unlink()
    (dev / "nvidia0").symlink_to(dev / "nvidia1")


def _other(dev: Path) -> None:
    _make(dev / "nvidia0", ZERO)


def _closed(dev: Path) -> None:
    _make(dev / "nvidia0", FULL, 0o660)


@pytest.mark.parametrize(
    ("change", "check", "seen"),
    [
        (_missing, "device node nvidia0", "No such file or directory"),
        (_file, "device node nvidia0", "other file 0:0"),
        (_link, "device node nvidia0", "other file 0:0"),
        (_other, "device node nvidia0", "character device 1:5"),
        (_closed, "permissions of the device node nvidia0", "mode 0660, user 0"),
    ],
)
def test_a_node_that_is_not_the_device_ends_the_run_before_a_key_is_asked_for(
    tmp_path: Path, dev: Path, change: Any, check: str, seen: str
) -> None:
    """Missing, a file, a link even to a right one, another device, one that the program may not use."""
    change(dev)
    result = world.run(tmp_path, world.python("print('ran')", devices=_nodes(dev)))
    assert result.status == 112
    assert (result.ended["check"], result.ended["seen"]) == (check, seen)
    assert "OBTAINED" not in result.err
    assert "ran" not in result.out
