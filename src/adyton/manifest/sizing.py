"""Sizes that an enclave must be given before it starts, derived from what the program needs, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from adyton.manifest.schema_check import format_size

LEAST_ENCLAVE_BYTES: Final = 256 << 20
LIBRARY_OS_BYTES: Final = 96 << 20
GRAMINE_THREADS: Final = 3
LEAST_THREADS: Final = 8


@dataclass(frozen=True, slots=True)
class Sizing:
    """Enclave size (a power of two), thread slots and OpenMP threads, each with its reason in words."""

    enclave_bytes: int
    max_threads: int
    omp_threads: int
    enclave_reason: str
    threads_reason: str
    omp_reason: str


def power_of_two(size_bytes: int) -> int:
    """The smallest power of two that is at least so many bytes."""
    return 1 << max(0, (size_bytes - 1).bit_length())


def size_for(peak_bytes: int, threads: int, cpus: int, *, source: str) -> Sizing:
    """Derive an enclave from a program's peak of memory and threads. `source` says where the peak is from."""
    slots = max(LEAST_THREADS, threads + GRAMINE_THREADS)
    slots = power_of_two(slots) if slots <= 64 else slots
    stacks = slots * (256 + 64 + 32 + 8) * 1024
    needed = max(LEAST_ENCLAVE_BYTES, peak_bytes + peak_bytes // 4 + LIBRARY_OS_BYTES + stacks)
    enclave = power_of_two(needed)
    omp = max(1, cpus)
    return Sizing(
        enclave_bytes=enclave,
        max_threads=slots,
        omp_threads=omp,
        enclave_reason=(
            f"{source}: {peak_bytes >> 20} MiB; a quarter more for fragmentation, {LIBRARY_OS_BYTES >> 20} MiB for the"
            f" library OS, {stacks >> 20} MiB for the stacks of {slots} threads; the next power of two is"
            f" {format_size(enclave)}"
        ),
        threads_reason=f"{threads} threads of the program at once and {GRAMINE_THREADS} of Gramine's own",
        omp_reason=(
            f"one OpenMP thread for each of {cpus} processors: they spin while they wait, and more of them than"
            " processors cost a factor of ten"
        ),
    )
