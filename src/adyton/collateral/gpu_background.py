"""Fetch collateral for GPUs in the background, beside a key server's decisions.

Only a genuine GPU causes a fetch: its report is signed for this request, under NVIDIA's pinned root. One under a
simulated root causes none, since NVIDIA's services know nothing of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.collateral.background import FAILED_S, REFRESH_PAUSE_S, BackgroundFetches, Fetch, Pending
from adyton.collateral.gpus import device_chain, rim_ids

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence
    from datetime import datetime

    from adyton.attest.nvidia.evidence import DeviceEvidence
    from adyton.collateral.gpus import GPUDownloads
    from adyton.collateral.store import Outcome

_REFRESH: Final = "refresh of collateral for GPUs"


class GPUFetches:
    """Fetches of one store. Thread-safe. `fetches` may be shared with the CPUs', whose limits then hold for both."""

    def __init__(self, downloads: GPUDownloads, fetches: BackgroundFetches) -> None:
        self._downloads = downloads
        self._fetches = fetches

    def fetch_for(self, evidence: Sequence[DeviceEvidence], now: datetime) -> Pending | None:
        """Begin to fetch all that genuine evidence needs. None where it cannot begin, or was done moments ago.

        After a success there is a pause, too: evidence that still lacks something would ask for it without end.
        """
        key, work = frozenset(map(_needs, evidence)), lambda: _whole(self._downloads.fetch_for(evidence, now))
        begun = self._fetches.begin(key, work, "proven", pause_s=FAILED_S)
        return Pending(begun) if isinstance(begun, Fetch) else None

    def refresh(self, now: datetime) -> None:
        """Begin to fetch anew what is due, unless that was done lately."""
        self._fetches.begin(_REFRESH, lambda: _whole(self._downloads.refresh(now)), "refresh", pause_s=REFRESH_PAUSE_S)


def _needs(evidence: DeviceEvidence) -> Hashable:
    """What is fetched for some evidence: the same for every request of one GPU with one driver."""
    return (*rim_ids(evidence), *(certificate.serial for certificate in device_chain(evidence)[1:]))


def _whole(outcomes: Iterable[Outcome]) -> None:
    """Raise the first error, so that the failure is logged and the next fetch waits."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
