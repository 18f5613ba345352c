"""What is said of the program's memory for files: when it was full, and when a failed program had filled much of it."""

from __future__ import annotations

import pytest

from adyton.runtime.memory_peaks import MemoryPeaks, used_and_size

MIB = 1 << 20


@pytest.mark.parametrize(
    ("used", "exit_code", "said"),
    [
        (100, 0, "was full: 100 MiB of 100 MiB"),
        (96, 1, "was full"),
        (60, 1, "nearly full: 60 MiB of 100 MiB"),
        (60, 135, "nearly full"),
        (60, 0, None),
        (10, 1, None),
    ],
)
def test_peak_is_told_with_the_key_to_change(used: int, exit_code: int, said: str | None) -> None:
    """Only where it may have mattered. The peak counts, not the end."""
    seen = iter([(1 * MIB, 100 * MIB), (used * MIB, 100 * MIB), (0, 100 * MIB)])
    peaks = MemoryPeaks([("/dev/shm", "here")], look=lambda _place: next(seen))
    for _ in range(3):
        peaks.look()
    told = list(peaks.told(exit_code))
    assert len(told) == (said is not None)
    for text in told:
        assert "/dev/shm" in text
        assert said is not None
        assert said in text
        assert "adyton.memory_budget" in text


def test_memory_that_is_gone_keeps_its_peak_and_one_without_a_size_says_nothing() -> None:
    """As when the sandbox has ended; a file system without blocks has no share that is used."""
    answers = iter([(9, 10), None, (0, 0)])

    def look(_place: str) -> tuple[int, int]:
        found = next(answers)
        if found is None:
            raise FileNotFoundError
        return found

    peaks = MemoryPeaks([("/tmp", "here")], look=look)
    for _ in range(3):
        peaks.look()
    assert len(list(peaks.told(1))) == 1


def test_file_system_is_asked_for_both() -> None:
    """In bytes."""
    used, size = used_and_size("/")
    assert 0 < used < size
