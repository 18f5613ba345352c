"""Every request that was taken is decided once, in its turn, whatever happens in a batch."""

from __future__ import annotations

import logging
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.keyserver.decision_queue import MAX_BATCH, DecisionQueue, Waiting
from adyton.keyserver.stages import Answered, Received

FUTURE_STEPS = st.lists(st.sampled_from(["claim", "cancel", "answer"]), max_size=6)


@given(count=st.integers(0, 3 * MAX_BATCH), broken=st.sets(st.integers(0, 3 * MAX_BATCH), max_size=3))
@settings(deadline=None, max_examples=40)
def test_items_are_worked_on_once_and_in_order(count: int, broken: set[int]) -> None:
    """Batches are of at most 64; one that fails ends neither the thread nor the others; closing finishes what waits."""
    batches: list[list[int]] = []
    hold = threading.Event()
    logging.getLogger("adyton.keyserver").disabled = True

    def work(batch: list[int]) -> None:
        hold.wait(60)
        batches.append(batch)
        if broken & set(batch):
            raise RuntimeError("broken")

    try:
        queue: DecisionQueue[int] = DecisionQueue(work, lambda: None)
        assert all(queue.put(number) for number in range(count))
        hold.set()
        queue.close()
    finally:
        logging.getLogger("adyton.keyserver").disabled = False
    assert [number for batch in batches for number in batch] == list(range(count))
    assert all(1 <= len(batch) <= MAX_BATCH for batch in batches)
    assert not queue.is_alive


@given(FUTURE_STEPS)
def test_request_is_claimed_only_while_somebody_waits(steps: list[str]) -> None:
    """A claimed request cannot be taken back; one that was taken back or answered cannot be claimed."""
    received = Received(protocol="adyton", names=(), evidence=b"", run="", peer="", report_data=None)
    waiting = Waiting(received)
    state = "waits"
    for step in steps:
        if step == "claim":
            assert waiting.claim() == (state in ("waits", "claimed"))
            state = "claimed" if state == "waits" else state
        elif step == "cancel":
            assert waiting.future.cancel() == (state in ("waits", "gone"))
            state = "gone" if state == "waits" else state
        elif state in ("waits", "claimed"):
            waiting.future.set_result(Answered(None))
            state = "answered"
