"""Which user the program gets, which limits, and what of /proc is covered."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from adyton.errors import SandboxFailed
from adyton.runtime import inherited, proc
from adyton.runtime.unprivileged import PREFERRED, _mapped, choose
from adyton.vfs.owner import Owner

EVERYONE = [(0, (1 << 32) - 1)]


@pytest.mark.parametrize("chance", [0, 1, (1 << 28) - 1])
def test_machine_with_all_users_gives_one_that_nobody_has(chance: int) -> None:
    """From the range that systemd's table calls unused: below 2^31, above containers."""
    drawn = []

    def draw(count: int) -> int:
        drawn.append(count)
        return chance

    assert choose(EVERYONE, EVERYONE, kernel_root=True, draw=draw) == Owner(0x7000_0000 + chance, 0x7000_0000 + chance)
    assert drawn == [1 << 28]


@pytest.mark.parametrize(
    ("users", "groups", "first", "end"),
    [
        ([(0, 65_536)], [(0, 65_536)], 61_184, 65_520),
        ([(0, 65_536)], [(0, 65_000)], 61_184, 65_000),
        ([(0, 1), (1, 1001)], [(0, 1), (1, 1001)], 1, 1001),
        ([(0, 1), (5, 7)], [(0, 1), (6, 9)], 6, 7),
    ],
)
def test_container_with_few_users_gives_one_of_them(
    users: list[tuple[int, int]], groups: list[tuple[int, int]], first: int, end: int
) -> None:
    """Never 0, and never a number that has no user or no group there."""
    for draw in (lambda _count: 0, lambda count: count - 1):
        found = choose(users, groups, kernel_root=True, draw=draw)
        assert first <= found.uid < end
        assert found.uid == found.gid
    assert choose(users, groups, kernel_root=True, draw=lambda _: 0).uid == first
    assert choose(users, groups, kernel_root=True, draw=lambda count: count - 1).uid == end - 1


def test_root_alone_stays_only_where_it_is_not_the_kernels() -> None:
    """An ordinary user's namespace has one user, who is he; a namespace with the kernel's root alone runs nothing."""
    alone = [(0, 1)]
    assert choose(alone, alone, kernel_root=False) == Owner(0, 0)
    with pytest.raises(SandboxFailed, match="no user but root"):
        choose(alone, alone, kernel_root=True)
    with pytest.raises(SandboxFailed):
        choose([(0, 1), (5, 6)], [(0, 1), (6, 7)], kernel_root=True)


def test_no_preferred_range_holds_root_or_the_overflow_user() -> None:
    """65534 is everyone without a number of his own, and -1 nobody."""
    for first, end in PREFERRED:
        for number in (0, 65_534, (1 << 32) - 1, (1 << 31)):
            assert not first <= number < end


def test_table_of_a_namespace_is_read() -> None:
    """The kernel's own text: inside, outside, how many."""
    assert _mapped("         0       1000          1\n         1     100000      65536\n") == [(0, 1), (1, 65_537)]


def test_limits_of_a_program_hold_for_what_is_started_and_are_put_back() -> None:
    """Soft limits only; where the hard one is lower, that; and this process is as before."""
    before = {
        kind: resource.getrlimit(kind) for kind in (*inherited.LIMITS, resource.RLIMIT_NOFILE, resource.RLIMIT_STACK)
    }
    most = before[resource.RLIMIT_NOFILE][1]
    with inherited.limits(fds=50, stack_bytes=1):
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (50, most)
        assert resource.getrlimit(resource.RLIMIT_RTPRIO)[0] == 0
        stack, hard = resource.getrlimit(resource.RLIMIT_STACK)
        assert stack == (8 << 20 if hard == resource.RLIM_INFINITY else min(8 << 20, hard))
    with inherited.limits(fds=1 << 40, stack_bytes=64 << 20):
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == most
    assert {kind: resource.getrlimit(kind) for kind in before} == before


def test_proc_is_covered_as_far_as_the_machine_has_it(tmp_path: Path) -> None:
    """Read-only, or an empty file or folder over it; nothing for what is not there."""
    (tmp_path / "proc/sys").mkdir(parents=True)
    (tmp_path / "proc/acpi").mkdir()
    (tmp_path / "proc/kcore").write_text("memory")
    covers = proc.Covers.make(str(tmp_path))
    words = proc.options(covers, proc=str(tmp_path / "proc"))
    assert [tuple(words[at : at + 3]) for at in range(0, len(words), 3)] == [
        ("--ro-bind", str(tmp_path / "proc/sys"), "/proc/sys"),
        ("--ro-bind", covers.folder, "/proc/acpi"),
        ("--ro-bind", covers.file, "/proc/kcore"),
    ]
    assert Path(covers.file).read_bytes() == b""
    assert os.listdir(covers.folder) == []


def test_what_is_made_for_an_owner_is_his(tmp_path: Path) -> None:
    """Folders down to the one asked for; what was there before stays whose it is."""
    mine = Owner.caller()
    mine.make_folders(str(tmp_path / "a/b"))
    mine.make_folders(str(tmp_path / "a/b"))
    assert (tmp_path / "a/b").is_dir()
    with pytest.raises(FileExistsError):
        mine.make_folder(str(tmp_path / "a"))
    if os.getuid() == 0:
        Owner(1234, 5678).make_folders(str(tmp_path / "a/c/d"))
        owners = {name: (tmp_path / name).stat() for name in ("a", "a/c", "a/c/d")}
        assert {name: (info.st_uid, info.st_gid) for name, info in owners.items()} == {
            "a": (0, 0), "a/c": (1234, 5678), "a/c/d": (1234, 5678),
        }  # fmt: skip
