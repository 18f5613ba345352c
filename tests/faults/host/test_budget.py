"""What exceeds the memory budget is served from the host's storage, which the host alters: refused or harmless."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults.host.attacks import ATTACKS, IN_TIME_S, NODE, flip
from tests.faults.host.running import Running
from tests.mount import world

pytestmark = pytest.mark.mount

CONTENT = os.urandom(1_500_000).hex()
OTHER = os.urandom(1_500_000).hex()
OLDER = os.urandom(1_500_000).hex()
BUDGET = 6 << 20
"""Room for the shell and its tools, and for no file of 3 MB beside them."""


HARMLESS = ("", "")
EIO = "Input/output error"

INPUT: dict[str, dict[str, tuple[str, str]]] = {
    "before the start": {
        "flipped": (EIO, "in/file: node "),
        "flipped-node-0": (EIO, "in/file: the key is wrong, or node 0 was altered"),
        "cut": (EIO, "bytes on the host"),
        "emptied": (EIO, "in/file is not a protected file"),
        "swapped": (EIO, "in/file was sealed under another path"),
        "link": (EIO, "in/file: neither a file nor a folder"),
        "fifo": (EIO, "in/file: neither a file nor a folder"),
        "folder": ("Is a directory", ""),  # names, and what they stand for, are the host's until they were seen
        "deleted": ("No such file", ""),
    },
    "seen and closed": {
        "flipped": (EIO, "in/file: node "),
        "flipped-node-0": (EIO, "in/file: the key is wrong, or node 0 was altered"),
        "cut": (EIO, "bytes on the host"),
        "emptied": (EIO, "in/file is not a protected file"),
        "swapped": (EIO, "in/file was sealed under another path"),
        "older": (EIO, "in/file is whole, and not the version that was expected"),
        "older-replaced": (EIO, "in/file is whole, and not the version that was expected"),
        "link": (EIO, "in/file: the host put a link, a folder, a device or a mount in the way"),
        "fifo": (EIO, "in/file is not a regular file"),
        "folder": (EIO, "in/file is not a regular file"),
        "deleted": (EIO, "in/file: was there in this run and is gone from the host"),
    },
    "held open": {
        "flipped": (EIO, "in/file: node "),
        "flipped-node-0": HARMLESS,  # it was verified when the file was opened, and nobody reads it again
        "cut": (EIO, "in/file: node"),
        "emptied": (EIO, "in/file: node"),
        "swapped": HARMLESS,
        "older": (EIO, "in/file: node"),
        "older-replaced": HARMLESS,
        "link": HARMLESS,
        "fifo": HARMLESS,
        "folder": HARMLESS,
        "deleted": HARMLESS,
    },
}
CASES = [(when, attack) for when, row in INPUT.items() for attack in row]
SCRIPTS = {
    "before the start": "echo ready; read go; cat /in/file; echo; echo ended $?",
    "seen and closed": "head -c 4096 /in/file; echo; echo ready; read go; cat /in/file; echo; echo ended",
    "held open": "exec 3< /in/file; head -c 4096 <&3; echo; echo ready; read go; cat <&3; echo; echo ended",
}


def _encrypted_inputs(folder: Path) -> None:
    world.encrypt(folder, "in/file", OLDER.encode())
    shutil.move(folder / "in/file", folder / "older")
    world.encrypt(folder, "in/file", CONTENT.encode())
    world.encrypt(folder, "in/other", OTHER.encode())


@pytest.mark.parametrize(("when", "attack"), CASES)
def test_served_input_altered_by_the_host_is_refused_or_harmless(tmp_path: Path, when: str, attack: str) -> None:
    """An encrypted read-only input beyond the budget: what is read is what was sealed, or an error that is named."""
    _encrypted_inputs(tmp_path)
    seen, named = INPUT[when][attack]
    if when == "before the start":
        ATTACKS[attack](tmp_path / "in/file")
    mounts = [["encrypted", "/in", "file:in"]]
    with Running(tmp_path, world.shell(SCRIPTS[when], mounts=mounts, read_only=["/in"], budget=BUDGET)) as run:
        first = "" if when == "before the start" else run.line()
        assert run.line() == "ready"
        if when != "before the start":
            assert CONTENT.startswith(first)
            ATTACKS[attack](tmp_path / "in/file")
        began = time.monotonic()
        read = run.answer("go", IN_TIME_S)
        assert run.line(IN_TIME_S).startswith("ended")
        assert time.monotonic() - began < IN_TIME_S
        result = run.end()
    assert result.status == 0, result.err
    if when == "held open":
        read = CONTENT[:4096] + read
    if seen:
        assert CONTENT.startswith(read)
        assert len(read) < len(CONTENT)
        assert seen in result.err
    else:
        assert read == CONTENT
        assert result.ended["events"] == []
    assert any(named in event for event in result.ended["events"]) or not named, result.ended["events"]
    assert not any("bug" in event for event in result.ended["events"])


ALONE = {
    "flipped-node-0": "in/file: the key is wrong, or node 0 was altered",
    "cut": "bytes on the host",
    "swapped": "in/file was sealed under another path",
    "fifo": "in/file",
    "deleted": "in/file",
}


@pytest.mark.parametrize("attack", ALONE)
def test_input_that_is_a_file_altered_before_the_start_stops_it(tmp_path: Path, attack: str) -> None:
    """A mount that is one file is verified before the program starts; the refusal names it."""
    _encrypted_inputs(tmp_path)
    ATTACKS[attack](tmp_path / "in/file")
    spec = world.shell("echo started", mounts=[["encrypted", "/file", "file:in/file"]], read_only=["/file"])
    began = time.monotonic()
    result = world.run(tmp_path, {**spec, "budget": BUDGET})
    assert time.monotonic() - began < IN_TIME_S
    assert "started" not in result.out
    assert result.status != 0
    assert ALONE[attack] in result.ended["message"]


TRUSTED: dict[str, dict[str, tuple[str, str]]] = {
    "before the first open": {  # the manifest has the size, so that nothing was read before the program opens it
        "flipped": (EIO, "trusted/file is not the file that the manifest lists"),
        "cut": (EIO, "trusted/file is not the file that the manifest lists"),
        "emptied": (EIO, "trusted/file is not the file that the manifest lists"),
        "grown": (EIO, "trusted/file is not the file that the manifest lists"),
        "swapped": (EIO, "trusted/file is not the file that the manifest lists"),
        "link": HARMLESS,  # what it leads to is what the manifest lists, and is verified as if it lay here
        "link-to-other": (EIO, "trusted/file is not the file that the manifest lists"),
        "fifo": (EIO, "trusted/file is not the file that the manifest lists"),
        "folder": (EIO, "trusted/file is not the file that the manifest lists"),
        "deleted": (EIO, "trusted/file cannot be read: No such file"),
    },
    "before the first read": {  # the manifest has no size, so that it was verified, and is open, since the start
        "flipped": (EIO, "trusted/file is not the file that the manifest lists"),
        "cut": (EIO, "trusted/file is not the file that the manifest lists"),
        "emptied": (EIO, "trusted/file is not the file that the manifest lists"),
        "grown": (EIO, "trusted/file is not the file that the manifest lists"),
        "swapped": HARMLESS,
        "link": HARMLESS,
        "link-to-other": HARMLESS,
        "fifo": HARMLESS,
        "folder": HARMLESS,
        "deleted": HARMLESS,
    },
    "between two reads": {
        "flipped": (EIO, "trusted/file is not the file that the manifest lists"),
        "cut": (EIO, "trusted/file is not the file that the manifest lists"),
        "emptied": (EIO, "trusted/file is not the file that the manifest lists"),
        "grown": (EIO, "trusted/file is not the file that the manifest lists"),
        "swapped": HARMLESS,
        "link": HARMLESS,
        "link-to-other": HARMLESS,
        "fifo": HARMLESS,
        "folder": HARMLESS,
        "deleted": HARMLESS,
    },
}
TRUSTED_CASES = [(when, attack) for when, row in TRUSTED.items() for attack in row]
TRUSTED_SCRIPTS = {
    "before the first open": "echo; echo ready; read go; cat /t/file; echo; echo ended",
    "before the first read": "echo; echo ready; read go; cat /t/file; echo; echo ended",
    "between two reads": "exec 3< /t/file; head -c 4096 <&3; echo; echo ready; read go; cat <&3; echo; echo ended",
}


@pytest.mark.parametrize(("when", "attack"), TRUSTED_CASES)
def test_served_trusted_file_altered_by_the_host_is_refused_or_harmless(tmp_path: Path, when: str, attack: str) -> None:
    """A trusted file beyond the budget: no byte that differs from what the manifest lists is ever read."""
    (tmp_path / "trusted").mkdir()
    file = tmp_path / "trusted/file"
    file.write_text(CONTENT)
    file.with_name("other").write_text(OTHER)
    seen, named = TRUSTED[when][attack]
    mounts = [["chroot", "/t/file", "file:trusted/file"]]
    spec = world.shell(TRUSTED_SCRIPTS[when], mounts=mounts, trusted=["trusted/file"], budget=BUDGET)
    with Running(tmp_path, {**spec, "facts": when == "before the first open"}) as run:
        first = run.line()
        assert run.line() == "ready"
        ATTACKS[attack](file)
        began = time.monotonic()
        read = first + run.answer("go", IN_TIME_S)
        assert run.line(IN_TIME_S) == "ended"
        assert time.monotonic() - began < IN_TIME_S
        result = run.end()
    assert result.status == 0, result.err
    if seen:
        assert CONTENT.startswith(read)
        assert len(read) < len(CONTENT)
        assert seen in result.err
    else:
        assert read == CONTENT
        assert result.ended["events"] == []
    assert any(named in event for event in result.ended["events"]) or not named, result.ended["events"]
    assert not any("bug" in event for event in result.ended["events"])


def test_served_trusted_file_put_back_after_a_failed_check_stays_refused(tmp_path: Path) -> None:
    """Altered while it is read, then put back: neither the open file nor a new open gives a byte of it again."""
    (tmp_path / "file").write_text(CONTENT)
    script = (
        "exec 3< /file; head -c 4096 <&3 > /dev/null; echo ready; read go; cat <&3 > /dev/null || echo refused; "
        "read go; dd if=/file bs=4096 skip=700 count=1 || echo refused; cat <&3 || echo refused"
    )
    spec = world.shell(script, mounts=[["chroot", "/file", "file:file"]], trusted=["file"], budget=BUDGET)
    with Running(tmp_path, spec) as run:
        assert run.line() == "ready"
        flip(tmp_path / "file", 700 * NODE + 5)
        assert run.answer("go", IN_TIME_S) == "refused"
        flip(tmp_path / "file", 700 * NODE + 5)
        assert (tmp_path / "file").read_text() == CONTENT
        run.say("go")
        assert run.line(IN_TIME_S) == "refused"
        assert run.line(IN_TIME_S) == "refused"
        result = run.end()
    assert result.out == ""
    assert any("file is not the file that the manifest lists" in event for event in result.ended["events"])


def test_mapped_trusted_file_that_changes_is_a_bus_error(tmp_path: Path) -> None:
    """A page that the host altered before it was first touched never enters the program's memory."""
    (tmp_path / "file").write_bytes(os.urandom(8_000_000))
    script = (
        "import mmap, os\nf = os.open('/file', os.O_RDONLY)\nm = mmap.mmap(f, 0, prot=mmap.PROT_READ)\n"
        "m[0]\nprint('ready', flush=True)\ninput()\nprint('read', m[7_000_000], flush=True)\n"
    )
    total = sum(-(-os.stat(entry.host_path).st_size // NODE) * NODE for entry in world.python_files())
    spec = world.python(script, mounts=[["chroot", "/file", "file:file"]], trusted=["file"], budget=total + (4 << 20))
    with Running(tmp_path, spec) as run:
        assert run.line() == "ready"
        flip(tmp_path / "file", 7_000_000)
        run.say("go")
        result = run.end(IN_TIME_S)
    assert result.status == 128 + signal.SIGBUS
    assert result.out == ""
    assert any("file is not the file that the manifest lists" in event for event in result.ended["events"])
