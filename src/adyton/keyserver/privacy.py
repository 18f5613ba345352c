"""Settle the privacy budget of an agreement: take what a run says that it used, in the place of what was reserved.

The run's program adds the noise and counts its steps. It is measured, and all parties agreed on it. The key server only
believes what the run signed, once for each grant. A run that says nothing keeps its whole reservation. One that used
more than was reserved for it is recorded as it says, and the next run finds less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from adyton.agreement.budget import MAX_STEPS
from adyton.errors import Error, OutOfOrder
from adyton.keystore.clock import now_ms
from adyton.release.wire import parse_object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from adyton.keyserver.run_messages import VerifiedMessage
    from adyton.keystore.store import Store

MAX_REPORT_BYTES: Final = 1024


def parse_privacy_report(raw: bytes) -> int:
    """Parse what a run says that it used: `{"steps": N}`, of the mechanism in the agreement. Raises OutOfOrder."""
    document = parse_object(raw, MAX_REPORT_BYTES)
    document.only({"steps"})
    return document.number("steps", MAX_STEPS)


def settler(store: Store) -> Callable[[VerifiedMessage], Mapping[str, Any]]:
    """The handler of the run message `privacy`. It raises OutOfOrder where nothing is reserved any more."""

    def settle(message: VerifiedMessage) -> Mapping[str, Any]:
        steps = parse_privacy_report(message.payload)
        with store.write() as change:
            settled = change.settle_privacy(message.run.grant, steps, now_ms())
        if not settled:
            raise _nothing_reserved()
        return {"settled": True}

    return settle


def _nothing_reserved() -> Error:
    return OutOfOrder(
        "nothing of a privacy budget is reserved for this run",
        check="reservation of the privacy budget",
        expected="a reservation that this run has not settled yet",
        seen="none",
        remedy="a run settles once; what it said first counts",
    )
