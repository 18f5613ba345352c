"""Hard links that the host makes between encrypted files: two names for one file, one of which was never sealed."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from adyton.errors import Error
from tests.faults.host.attacks import fails, forget
from tests.faults.host.test_served import CONTENT, OLDER, put
from tests.mount import world
from tests.mount.served import Served

pytestmark = pytest.mark.mount

NEWER = os.urandom(450_000)


@pytest.fixture
def two(served: Served) -> Served:
    """`a` holds CONTENT, `b` holds OLDER."""
    put(served, "a")
    put(served, "b", OLDER)
    return served


def _opens(served: Served, name: str) -> bytes | None:
    try:
        return served.decrypted(name)
    except Error:
        return None


def test_file_replaced_by_a_link_to_another_is_refused(two: Served) -> None:
    """Reading and writing under the second name fail; the first name and its content are untouched by it."""
    (two.store / "b").unlink()
    os.link(two.store / "a", two.store / "b")
    fails((two.top / "b").read_bytes)
    fails(lambda: (two.top / "b").open("r+b"))
    fails(lambda: (two.top / "b").write_bytes(NEWER))
    assert "/b was sealed under another path" in two.events()
    assert (two.top / "a").read_bytes() == CONTENT
    assert two.unmount() == 0
    assert two.decrypted("a") == CONTENT
    assert _opens(two, "b") is None


def test_open_files_made_one_are_refused_or_as_written(two: Served) -> None:
    """Both are open when the host links them; each goes on in its own file, the name that lost its own is refused."""
    with (two.top / "a").open("r+b") as a, (two.top / "b").open("r+b") as b:
        (two.store / "b").unlink()
        os.link(two.store / "a", two.store / "b")
        a.write(NEWER)
        a.flush()
        os.fsync(a.fileno())
        b.write(CONTENT)
        b.flush()
        os.fsync(b.fileno())
    forget(two.top / "a")
    assert (two.top / "a").read_bytes() == NEWER
    fails((two.top / "b").read_bytes)
    assert two.unmount() == 0
    assert two.decrypted("a") == NEWER
    assert _opens(two, "b") is None


def test_file_replaced_by_itself_under_another_name_is_harmless(two: Served) -> None:
    """The same file, linked elsewhere and back: read and written as before; the name that stays is refused."""
    os.link(two.store / "a", two.store / "c")
    (two.store / "a").unlink()
    os.link(two.store / "c", two.store / "a")
    assert (two.top / "a").read_bytes() == CONTENT
    fails((two.top / "c").read_bytes)
    put(two, "a", NEWER)
    assert (two.top / "a").read_bytes() == NEWER
    assert "/c was sealed under another path" in two.events()
    assert two.unmount() == 0
    assert two.decrypted("a") == NEWER
    assert _opens(two, "c") is None


def test_rename_onto_a_link_to_itself_is_refused_and_loses_nothing(two: Served) -> None:
    """rename(2) of two names of one file does nothing and says that it did: the program must not believe it."""
    os.link(two.store / "a", two.store / "c")
    fails(lambda: os.rename(two.top / "a", two.top / "c"))
    assert (two.top / "a").read_bytes() == CONTENT
    assert two.unmount() == 0
    assert two.decrypted("a") == CONTENT


def test_rename_onto_a_planted_link_where_nothing_can_be_does_not_confuse_two_files(two: Served) -> None:
    """The program knows that nothing is there, the host links the file itself there: one file, under the new name."""
    (two.top / "b").unlink()
    os.link(two.store / "a", two.store / "b")
    os.rename(two.top / "a", two.top / "b")
    forget(two.top / "b")
    assert (two.top / "b").read_bytes() == CONTENT
    assert os.listdir(two.top) == ["b"]
    fails((two.top / "a").read_bytes, errno.ENOENT)
    (two.top / "a").write_bytes(NEWER)
    for name, content in (("a", NEWER), ("b", CONTENT)):
        with contextlib.suppress(OSError):
            forget(two.top / name)
            assert (two.top / name).read_bytes() == content
    two.unmount()
    assert _opens(two, "a") in (NEWER, None)
    assert _opens(two, "b") in (CONTENT, None)


def test_folder_entry_linked_into_another_folder_is_refused(two: Served) -> None:
    """The path of the folder is sealed in, too."""
    for name in ("d", "e"):
        (two.top / name).mkdir()
    put(two, "d/x")
    put(two, "e/x", OLDER)
    (two.store / "e/x").unlink()
    os.link(two.store / "d/x", two.store / "e/x")
    fails((two.top / "e/x").read_bytes)
    assert (two.top / "d/x").read_bytes() == CONTENT
    assert "/e/x was sealed under another path" in two.events()


@pytest.mark.parametrize("target", ["a", "b"])
def test_recovery_log_that_is_a_link_to_a_file_costs_at_most_that_file(two: Served, target: str) -> None:
    """A flush writes its log into what the host linked there: that file is destroyed by the host, and never misread."""
    os.link(two.store / target, two.store / "a.gramine.recovery")
    with contextlib.suppress(OSError), (two.top / "a").open("r+b") as file:
        file.seek(100_000)
        file.write(NEWER[:5_000])
    changed = CONTENT[:100_000] + NEWER[:5_000] + CONTENT[105_000:]
    for name, states in (("a", (CONTENT, changed)), ("b", (OLDER,))):
        with contextlib.suppress(OSError):
            forget(two.top / name)
            assert (two.top / name).read_bytes() in states
    if target == "b":
        fails((two.top / "b").read_bytes)
        assert (two.top / "a").read_bytes() == changed
    else:
        assert (two.top / "b").read_bytes() == OLDER
    assert "bug" not in two.events()
    two.unmount()
    assert _opens(two, "a") in (CONTENT, changed, None)
    assert _opens(two, "b") in (OLDER, None)


def test_log_linked_to_an_output_is_the_log_and_no_output(tmp_path: Path) -> None:
    """The keeper writes its log into what the host linked there: an output is lost, and nobody takes the log for it."""
    world.encrypt(tmp_path, "out/a", CONTENT)
    os.link(tmp_path / "out/a", tmp_path / "app.log")
    script = "cat /out/a || echo unread; echo x > /out/a || echo unwritten; exit 7"
    mounts = [["encrypted", "/out", "file:out"]]
    result = world.run(tmp_path, world.shell(script, mounts=mounts, stdio=False, log="file:app.log"))
    assert result.status == 7, result.err
    assert any("out/a was sealed under another path" in event for event in result.ended["events"])
    said = world.decrypt(tmp_path, "app.log")
    assert b"Input/output error" in said
    assert b"unread" in said
    assert b"unwritten" in said
    with pytest.raises(Error, match="sealed under another path"):
        world.decrypt(tmp_path, "out/a")
