"""Swap, core files, limits: what is refused, what is warned of."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

import pytest

from adyton.errors import SandboxFailed
from adyton.runtime.host import allow_many_files, check_core_pattern, check_swap, harden_process, unencrypted_swap

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def _table(*areas: str) -> str:
    return HEAD + "".join(f"{area}                partition\t1000\t0\t-2\n" for area in areas)


def test_no_swap_is_fine() -> None:
    """The usual case in a guest."""
    assert check_swap(simulated=False, table=HEAD) is None


def test_swap_in_clear_is_refused_and_only_warned_of_in_sim(tmp_path: Path) -> None:
    """A swap file on an ordinary disk."""
    area = tmp_path / "swap"
    area.touch()
    with pytest.raises(SandboxFailed, match="swap is on") as raised:
        check_swap(simulated=False, table=_table(str(area)), sys=tmp_path)
    assert "swapoff" in str(raised.value.remedy)
    warning = check_swap(simulated=True, table=_table(str(area)), sys=tmp_path)
    assert warning is not None
    assert str(area) in warning


def test_swap_on_dm_crypt_is_closed(tmp_path: Path) -> None:
    """The device mapper says that it encrypts; another mapping does not."""
    area = tmp_path / "swap file"
    area.touch()
    device = os.stat(area).st_dev
    uuid = tmp_path / "dev/block" / f"{os.major(device)}:{os.minor(device)}" / "dm/uuid"
    uuid.parent.mkdir(parents=True)
    named = str(area).replace(" ", "\\040")
    uuid.write_text("CRYPT-PLAIN-swap\n")
    assert unencrypted_swap(_table(named), sys=tmp_path) == []
    uuid.write_text("LVM-xyz\n")
    assert unencrypted_swap(_table(named), sys=tmp_path) == [str(area)]


def test_zram_is_closed_unless_a_device_backs_it(tmp_path: Path) -> None:
    """It is memory, until pages are written back."""
    backing = tmp_path / "block/zram0/backing_dev"
    assert unencrypted_swap(_table("/dev/zram0"), sys=tmp_path) == []
    backing.parent.mkdir(parents=True)
    backing.write_text("none\n")
    assert unencrypted_swap(_table("/dev/zram0"), sys=tmp_path) == []
    backing.write_text("/dev/sda2\n")
    assert unencrypted_swap(_table("/dev/zram0"), sys=tmp_path) == ["/dev/zram0"]


def test_swap_that_vanished_counts_as_clear(tmp_path: Path) -> None:
    """What cannot be looked at is not believed."""
    assert unencrypted_swap(_table(str(tmp_path / "gone")), sys=tmp_path) == [str(tmp_path / "gone")]


@pytest.mark.parametrize("pattern", ["|/usr/lib/handler %P\n", "@/run/handler.socket\n"])
def test_handler_of_crashed_programs_is_refused_but_in_sim(pattern: str) -> None:
    """It would be given their memory."""
    with pytest.raises(SandboxFailed, match="handler") as raised:
        check_core_pattern(simulated=False, pattern=pattern)
    assert raised.value.seen == pattern.strip()
    check_core_pattern(simulated=True, pattern=pattern)
    check_core_pattern(simulated=False, pattern="core\n")


def test_limit_of_core_files_is_the_one_at_which_nothing_is_dumped_or_piped() -> None:
    """Not 0: at that the kernel still starts a handler (core(5))."""
    for before, after in ((resource.getrlimit(resource.RLIMIT_CORE)[1], 1), (0, 0)):
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CORE, (before, before))
            harden_process()
            os._exit(resource.getrlimit(resource.RLIMIT_CORE) != (after, after))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_server_may_open_as_many_files_as_its_user() -> None:
    """The soft limit is raised to the hard one."""
    child = os.fork()
    if child == 0:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        allow_many_files()
        os._exit(resource.getrlimit(resource.RLIMIT_NOFILE) != (hard, hard))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_process_that_holds_keys_cannot_be_read_by_its_own_user() -> None:
    """What lies in /proc of an undumpable process belongs to root, whoever runs it; /proc/PID/mem among it."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as after starting a program; changing users alone has cleared it
        before = os.stat("/proc/self/mem").st_uid
        harden_process()
        os.write(tell, f"{before} {os.stat('/proc/self/mem').st_uid}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(told, 100) == b"65534 0"
