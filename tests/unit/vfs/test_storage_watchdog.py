"""The clock over the host's storage."""

from __future__ import annotations

import time

from adyton.vfs.storage_watchdog import Pulse


def test_operation_in_time_is_not_overdue() -> None:
    """Nor is idling."""
    pulse = Pulse(answer_s=0.05)
    assert pulse.overdue() is None
    pulse.start("read")
    assert pulse.overdue() is None
    pulse.stop()
    time.sleep(0.1)
    assert pulse.overdue() is None


def test_operation_that_takes_too_long_is_named() -> None:
    """With the operation."""
    pulse = Pulse(answer_s=0.05)
    pulse.start("read")
    time.sleep(0.1)
    assert "read" in str(pulse.overdue())


def test_long_operation_that_beats_goes_on() -> None:
    """Such as a rename of many files."""
    pulse = Pulse(answer_s=0.1)
    pulse.start("rename")
    for _ in range(4):
        time.sleep(0.05)
        assert pulse.overdue() is None
        pulse.beat()


def test_sync_may_take_longer_and_only_while_it_lasts() -> None:
    """An honest slow disk."""
    pulse = Pulse(answer_s=0.05, sync_s=10)
    pulse.start("fsync")
    with pulse.syncing():
        time.sleep(0.1)
        assert pulse.overdue() is None
    time.sleep(0.1)
    assert pulse.overdue() is not None
