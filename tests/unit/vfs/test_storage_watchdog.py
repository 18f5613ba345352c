"""The clock over the host's storage."""

from __future__ import annotations

import time

from adyton.vfs.storage_watchdog import StorageWatchdog


def test_operation_in_time_is_not_overdue() -> None:
    """Nor is idling."""
    watchdog = StorageWatchdog(answer_s=0.05)
    assert watchdog.overdue() is None
    watchdog.start("read")
    assert watchdog.overdue() is None
    watchdog.stop()
    time.sleep(0.1)
    assert watchdog.overdue() is None


def test_operation_that_takes_too_long_is_named() -> None:
    """With the operation."""
    watchdog = StorageWatchdog(answer_s=0.05)
    watchdog.start("read")
    time.sleep(0.1)
    assert "read" in str(watchdog.overdue())


def test_long_operation_that_beats_goes_on() -> None:
    """Such as a rename of many files."""
    watchdog = StorageWatchdog(answer_s=0.1)
    watchdog.start("rename")
    for _ in range(4):
        time.sleep(0.05)
        assert watchdog.overdue() is None
        watchdog.progress()


def test_sync_may_take_longer_and_only_while_it_lasts() -> None:
    """An honest slow disk."""
    watchdog = StorageWatchdog(answer_s=0.05, sync_s=10)
    watchdog.start("fsync")
    with watchdog.syncing():
        time.sleep(0.1)
        assert watchdog.overdue() is None
    time.sleep(0.1)
    assert watchdog.overdue() is not None
