"""A key server in trouble: clients that vanish, defects, a database that fails; strangers learn nothing of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import pytest

from adyton.errors import AuditError, FetchFailed, StoreError
from adyton.keyserver.decision_queue import DecisionQueue, Waiting
from adyton.keyserver.stages import Answered, Received
from adyton.keystore.approval import ADYTON
from adyton.release.messages import PATH_RELEASE, PATH_USED, used_message
from adyton.server.listener import Limits
from tests.support.owner_world import World, running
from tests.support.release_by_hand import (
    Logged,
    answer,
    entries,
    get,
    https,
    obtain,
    post,
    release,
    release_message,
    wait_until,
)

SECRET = "database at /home/alice/store.db is locked"


class Gate:
    """Holds up the verification of evidence until it is opened."""

    def __init__(self, verify: Any) -> None:
        self._verify = verify
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, *args: Any) -> Any:
        """Verify, later."""
        self.reached.set()
        assert self.open.wait(60)
        return self._verify(*args)


def test_client_that_leaves_before_the_decision_gets_no_release_and_ends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlines that end while a decision is pending take back the request; the next program gets its key."""
    signed = world.program()
    world.approve(signed)
    service = world.service()
    gate = Gate(service.verifier.verify)
    monkeypatch.setattr(service.verifier, "verify", gate)
    with running(world, service=service, limits=Limits(request_timeout_s=1.5)) as server:
        for _ in range(2):
            with https(world, server.adyton) as connection:
                assert post(connection, PATH_RELEASE, release_message(world, connection, signed)) == (0, {})
        assert gate.reached.is_set()
        gate.open.set()
        with Logged() as logged:
            assert obtain(world, server, signed).keys
        assert service.is_ready()
    assert len(entries(world, "release")) == 1
    assert logged.errors == []


def test_client_that_leaves_during_the_decision_is_recorded_and_ends_nothing(world: World) -> None:
    """What was being decided when the client left stands in the record, as a grant whose answer was lost."""
    signed = world.program()
    world.approve(signed)
    with running(world, limits=Limits(request_timeout_s=1.5)) as server, Logged() as logged:
        with https(world, server.adyton) as connection:
            message = release_message(world, connection, signed)
            with world.store.write():
                assert post(connection, PATH_RELEASE, message) == (0, {})
        wait_until(lambda: len(entries(world, "release")) == 1)
        assert obtain(world, server, signed).keys
    assert len(entries(world, "release")) == 2
    assert logged.errors == []


def test_job_is_claimed_by_whoever_decides_it_and_never_once_it_is_over() -> None:
    """A request is decided as long as somebody waits; what was taken back or answered is left alone."""
    received = Received(protocol=ADYTON, names=(), evidence=b"", run="r", peer="peer", report_data=None)
    waits, gone, answered = (Waiting(received) for _ in range(3))
    assert waits.claim()
    assert waits.claim()
    assert not waits.future.cancel()
    gone.future.cancel()
    assert not gone.claim()
    assert not gone.claim()
    answered.future.set_result(Answered(None))
    assert not answered.claim()


def test_queue_survives_whatever_the_work_does() -> None:
    """A defect in one batch is logged, and the next is worked on."""
    seen: list[list[int]] = []

    def work(batch: list[int]) -> None:
        seen.append(batch)
        raise RuntimeError("broken")

    decisions: DecisionQueue[int] = DecisionQueue(work, lambda: None)
    with Logged() as logged:
        assert decisions.put(1)
        wait_until(lambda: seen == [[1]])
        assert decisions.put(2)
        decisions.close()
    assert [2] in seen
    assert len(logged.records) == len(seen)


def test_ready_without_its_thread_is_not(world: World) -> None:
    """A server whose decisions have ended says so, instead of being asked for ever."""
    service = world.service()
    assert service.is_ready()
    service._queue.close()
    assert not service.is_ready()


@contextmanager
def broken_store(world: World, error: Exception) -> Iterator[None]:
    """A store that cannot be written."""

    def write() -> NoReturn:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.store, "write", write)
        yield


@pytest.mark.parametrize("kind", [StoreError, AuditError, FetchFailed, RuntimeError])
def test_store_that_fails_is_no_verdict_and_its_words_stay_here(world: World, kind: type[Exception]) -> None:
    """*Could not check* is 503, in words that say nothing of the database; the log has them."""
    signed = world.program()
    world.approve(signed)
    with running(world) as server, Logged() as logged:
        with https(world, server.adyton) as connection:
            message = release_message(world, connection, signed)
            with broken_store(world, kind(SECRET)):
                status, document = post(connection, PATH_RELEASE, message)
                assert status == 503
                assert {"message", "check", "expected", "seen", "remedy"} <= set(document)
                assert SECRET not in str(document)
                with pytest.raises(FetchFailed):
                    obtain(world, server, signed)
        assert entries(world, "release") == []
        assert obtain(world, server, signed).keys
    assert SECRET in str(logged.records)


def test_readyz_says_no_more_than_whether(world: World) -> None:
    """Not ready while decisions cannot be recorded, ready again as soon as they can; and never why."""
    signed = world.program()
    world.approve(signed)
    with running(world) as server, https(world, server.adyton) as connection:
        assert get(connection, "/readyz") == (200, {"status": "ready"})
        with broken_store(world, StoreError(SECRET)):
            assert release(world, server, signed)[0] == 503
            assert get(connection, "/readyz") == (503, {"status": "not ready"})
        assert release(world, server, signed)[0] == 200
        assert get(connection, "/readyz") == (200, {"status": "ready"})


def test_readyz_recovers_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sends requests to a server that is not ready, so it finds out itself that it is again."""
    monkeypatch.setattr("adyton.keyserver.readiness.KEPT_S", 0)
    signed = world.program()
    limits = Limits(request_timeout_s=8)
    with running(world, limits=limits) as server, https(world, server.adyton) as connection:
        with broken_store(world, StoreError(SECRET)):
            release(world, server, signed)
            assert get(connection, "/readyz")[0] == 503
        assert get(connection, "/readyz")[0] == 200
        with world.store.write():
            assert get(connection, "/readyz")[0] == 200


def test_stranger_takes_no_write_lock(world: World) -> None:
    """Asking whether it is ready, and acknowledging what was never granted, read only: somebody may be writing."""
    with (
        running(world, limits=Limits(request_timeout_s=8)) as server,
        https(world, server.adyton) as connection,
        world.store.write(),
    ):
        assert get(connection, "/readyz")[0] == 200
        assert post(connection, PATH_USED, used_message("g-nothing", bytes(32)))[0] == 409


def test_defect_outside_a_decision_is_answered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An internal error anywhere ends one request, with an answer."""

    def broken(*_args: Any) -> NoReturn:
        raise RuntimeError(SECRET)

    with running(world) as server, https(world, server.adyton) as connection, Logged() as logged:
        monkeypatch.setattr(server.server.service, "used", broken)
        connection_status, document = post(connection, PATH_USED, used_message("g-nothing", bytes(32)))
        assert connection_status == 503
        assert SECRET not in str(document)
        assert get(connection, "/healthz")[0] == 200
    assert "internal error" in str([record["event"] for record in logged.records])


def test_too_many_that_wait_are_turned_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue has its bound; who is turned away is told to come again."""
    monkeypatch.setattr("adyton.keyserver.decision_queue.MAX_WAITING", 2)
    signed = world.program()
    world.approve(signed)
    service = world.service()
    gate = Gate(service.verifier.verify)
    monkeypatch.setattr(service.verifier, "verify", gate)

    def waits(count: int) -> bool:
        return service.waiting == count

    with running(world, service=service) as server:
        held = [https(world, server.adyton) for _ in range(3)]
        try:
            for number, connection in enumerate(held):
                message = release_message(world, connection, signed)
                head = f"POST {PATH_RELEASE} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(message)}\r\n\r\n"
                connection.sendall(head.encode() + message)
                assert gate.reached.wait(10)
                wait_until(partial(waits, number))
            status, document = release(world, server, signed)
            assert (status, document["check"]) == (503, "requests that wait")
            assert not service.is_ready()
            gate.open.set()
            assert [answer(connection)[0] for connection in held] == [200, 200, 200]
        finally:
            for connection in held:
                connection.close()


def test_refused_challenge_is_logged(world: World) -> None:
    """A challenge of somebody else leaves a line in the log, and so does a release."""
    from adyton.release.messages import make_challenge

    signed = world.program()
    world.approve(signed)
    with running(world) as server, Logged() as logged:
        assert release(world, server, signed, nonce=make_challenge(b"k" * 32, 1 << 31))[0] == 400
        obtain(world, server, signed)
    events = {record["event"]: record for record in logged.records}
    assert events["challenge refused"]["check"] == "challenge"
    assert events["released"]["keys"] == "weights"
    assert bytes(range(16)).hex() not in str(logged.records)
