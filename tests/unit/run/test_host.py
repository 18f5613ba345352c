"""Swap: what counts as closed, what is refused, what is warned of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adyton.errors import SandboxFailed
from adyton.run.host import check_swap, unencrypted_swap

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
