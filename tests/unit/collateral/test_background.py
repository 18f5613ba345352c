"""Collateral that is fetched while evidence waits: nobody else waits for it, and strangers cannot have it fetched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attest import sgx
from adyton.attest.collateral import Collateral
from adyton.attest.ratls import make_certificate
from adyton.collateral.background import (
    MAX_FETCHES,
    MAX_UNPROVEN_FETCHES,
    MAX_WHO_WAIT,
    BackgroundFetches,
    BackgroundLookup,
    Pending,
)
from adyton.collateral.backoff import MAX_REMEMBERED
from adyton.collateral.documents import Channel
from adyton.collateral.downloads import Downloads
from adyton.collateral.http_client import Response
from adyton.collateral.lookup import Found, Lookup
from adyton.collateral.pcs import PCSClient
from adyton.collateral.sources import Source
from adyton.collateral.store import CollateralStore
from adyton.collateral.verifier import Verifier
from adyton.errors import FetchFailed, Unavailable
from adyton.keyserver.service import KeyService
from adyton.keyserver.stages import Answered
from adyton.sim.pcs_server import answer
from adyton.sim.platform import SimPlatform
from adyton.values import Measurement
from tests.support.owner_world import World, now
from tests.support.release_by_hand import Logged, entries, wait_until


class Service:
    """A platform's collateral service that says nothing until it is let."""

    def __init__(self, platform: SimPlatform) -> None:
        self._platform = platform
        self.asked: list[str] = []
        self.reached = threading.Event()
        self.open = threading.Event()
        self.broken = False

    def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> Response:
        """Answer as the platform's service does, later."""
        self.asked.append(url)
        self.reached.set()
        assert self.open.wait(60)
        if self.broken:
            raise FetchFailed("nobody answers at http://internal.example")
        parts = urlsplit(url)
        found = answer(self._platform, parts.path, dict(parse_qsl(parts.query)), now(), form="pccs")
        return Response(url, found.status, {name.lower(): value for name, value in found.headers.items()}, found.body)


@pytest.fixture
def other(world: World) -> SimPlatform:
    """A second platform, of which the key server has no collateral."""
    return SimPlatform.create(world.folder / "other")


@pytest.fixture
def pcs(other: SimPlatform) -> Iterator[Service]:
    """Its collateral service."""
    found = Service(other)
    yield found
    found.open.set()


@pytest.fixture
def service(world: World, pcs: Service) -> Iterator[KeyService]:
    """A key server that has the first platform's collateral and fetches what else it needs."""

    def client_of(source: Source, channel: Channel) -> PCSClient:
        return PCSClient(source.url, pcs, channel, clock=now)

    downloads = Downloads(CollateralStore(world.home.collateral_path), client_of=client_of)
    downloads.store.import_bundle(world.platform.collateral(now()).to_json().encode(), now())
    downloads.sources.remember([Source("http://pcs.invalid")])
    found = world.service(verifier=Verifier(BackgroundLookup.create(downloads)))
    yield found
    pcs.open.set()
    found.close()


def ask(world: World, service: KeyService, platform: SimPlatform) -> Future[Answered]:
    """A program on this platform asks for its key."""
    key = ec.generate_private_key(ec.SECP384R1())
    times = {"not_before": now() - timedelta(hours=1), "not_after": now() + timedelta(hours=1)}
    source = world.enclave(world.program(), platform=platform)
    return service.provision([make_certificate(key, source.quote, **times)], None, "peer")


def approve_on(world: World, *platforms: SimPlatform) -> None:
    """Approve the program on these platforms."""
    tees = tuple(f"sim:{platform.root_fingerprint}" for platform in platforms)
    world.approve(world.program(), protocols=("ra-tls",), tees=tees)


def test_forged_evidence_has_nothing_fetched(
    world: World, service: KeyService, pcs: Service, other: SimPlatform
) -> None:
    """A chain to a root that no approval names is refused before any collateral is looked for."""
    approve_on(world, world.platform)
    refusal = ask(world, service, other).result(60).refusal
    assert refusal is not None
    assert "root" in refusal.message
    assert pcs.asked == []


def test_fetch_that_hangs_holds_up_nobody_else(
    world: World, service: KeyService, pcs: Service, other: SimPlatform
) -> None:
    """While collateral of one platform is fetched others get their keys, and then it gets its own."""
    approve_on(world, world.platform, other)
    waiting = [ask(world, service, other) for _ in range(3)]
    assert pcs.reached.wait(60)
    assert ask(world, service, world.platform).result(60).payload is not None
    assert not any(future.done() for future in waiting)
    pcs.open.set()
    assert all(future.result(60).payload is not None for future in waiting)
    assert len(pcs.asked) == len(set(pcs.asked))


def test_fetch_that_ends_before_anybody_waits_for_it(
    world: World, service: KeyService, pcs: Service, other: SimPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is about to wait when the fetch ends is decided with what was fetched, as if it had waited."""
    approve_on(world, other)
    when_done = Pending.when_done

    def late(pending: Pending, callback: Callable[[], None]) -> bool:
        pcs.open.set()
        wait_until(lambda: pending.fetch.ended)
        return when_done(pending, callback)

    monkeypatch.setattr(Pending, "when_done", late)
    assert ask(world, service, other).result(60).payload is not None
    assert entries(world, "denial") == []


def test_client_that_leaves_while_collateral_is_fetched_gets_no_release(
    world: World, service: KeyService, pcs: Service, other: SimPlatform
) -> None:
    """A request that waits for a fetch can be taken back."""
    approve_on(world, world.platform, other)
    gone, stays = ask(world, service, other), ask(world, service, other)
    assert pcs.reached.wait(60)
    assert gone.cancel()
    pcs.open.set()
    assert stays.result(60).payload is not None
    assert len(entries(world, "release")) == 1


def test_fetch_that_fails_is_no_verdict_and_is_left_alone(
    world: World, service: KeyService, pcs: Service, other: SimPlatform
) -> None:
    """What cannot be fetched is *could not check*; it is not asked for again at once, and where it was is not told."""
    approve_on(world, other)
    pcs.broken = True
    pcs.open.set()
    with Logged():
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                ask(world, service, other).result(60)
            assert "internal.example" not in str(caught.value.details())
            assert caught.value.remedy is not None
            assert "adyton audit show d-" in caught.value.remedy
    assert len(pcs.asked) == 1
    assert "internal.example" in str(entries(world, "denial")[0]["detail"])


# --- the bounds ---------------------------------------------------------------------------------------------------


class Missing:
    """A lookup that finds nothing, and whose fetches do not end until they are let."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.fetches = 0

    def find(self, _quote: Any, _now: Any) -> None:
        """Nothing is here."""
        raise FetchFailed("is missing")

    def for_quote(self, _quote: Any, _now: Any) -> None:
        """Fetching it takes its time."""
        self.fetches += 1
        assert self.open.wait(60)
        raise FetchFailed("is missing")

    def origin(self, quote: Any) -> object:
        """Each quote object is another platform's."""
        return id(quote)

    def in_background(self) -> BackgroundLookup:
        """A lookup that has this one fetch."""
        lookup = cast("Lookup", self)
        return BackgroundLookup(lookup, lookup, lambda _now: None)


@pytest.fixture
def missing() -> Iterator[Missing]:
    """Such a lookup."""
    found = Missing()
    yield found
    found.open.set()


def quotes(folder: Path, count: int, *, carries_chain: bool) -> list[sgx.SGXQuote]:
    """Quotes that are taken for as many platforms'."""
    platform = SimPlatform.create(folder / f"platform-{carries_chain}", carries_chain=carries_chain)
    raw = platform.enclave(measurement=Measurement(bytes(32))).quote(bytes(64))
    return [sgx.parse_quote(raw) for _ in range(count)]


def outcomes(collateral: BackgroundLookup, asked: list[sgx.SGXQuote]) -> list[type]:
    """What asking for each of them gives: a value or an error."""
    found: list[type] = []
    for quote in asked:
        try:
            found.append(type(collateral.for_quote(quote, now())))
        except Unavailable as error:
            found.append(type(error))
    return found


def test_fetches_at_once_are_few_and_fewer_without_a_chain(missing: Missing, tmp_path: Path) -> None:
    """Evidence that anybody can make takes a part of the places only."""
    collateral = missing.in_background()
    unproven = quotes(tmp_path, MAX_UNPROVEN_FETCHES + 1, carries_chain=False)
    assert outcomes(collateral, unproven) == [Pending] * MAX_UNPROVEN_FETCHES + [FetchFailed]
    rest = MAX_FETCHES - MAX_UNPROVEN_FETCHES
    proven = quotes(tmp_path, rest + 1, carries_chain=True)
    assert outcomes(collateral, proven) == [Pending] * rest + [FetchFailed]
    assert outcomes(collateral, [unproven[0], proven[0]]) == [Pending] * 2
    wait_until(lambda: missing.fetches == MAX_FETCHES)


def test_those_who_wait_for_one_fetch_are_bounded_and_all_are_told(missing: Missing, tmp_path: Path) -> None:
    """One more than may wait is turned away; the others are told when it ends, and who comes later at once."""
    (quote,) = quotes(tmp_path, 1, carries_chain=True)
    pending = missing.in_background().for_quote(quote, now())
    assert isinstance(pending, Pending)
    told: list[int] = []
    for number in range(MAX_WHO_WAIT):
        assert pending.when_done(lambda number=number: told.append(number))  # type: ignore[misc]
    assert not pending.when_done(lambda: told.append(-1))
    with Logged():
        missing.open.set()
        wait_until(lambda: len(told) == MAX_WHO_WAIT)
    assert pending.when_done(lambda: told.append(-2))
    assert sorted(told) == [-2, *range(MAX_WHO_WAIT)]


def test_key_server_without_online_has_nothing_fetched(
    world: World, pcs: Service, other: SimPlatform, tmp_path: Path
) -> None:
    """Without --online what is missing is missing: that is recorded, and nobody is asked."""
    approve_on(world, other)
    service = world.service(verifier=Verifier(Lookup(CollateralStore(tmp_path / "collateral"))))
    try:
        with Logged(), pytest.raises(Unavailable):
            ask(world, service, other).result(60)
    finally:
        service.close()
    assert "is missing" in str(entries(world, "denial")[0]["detail"])
    assert pcs.asked == []


class Silent:
    """A lookup whose documents are all here, and due."""

    def find(self, _quote: Any, at: datetime) -> Found[Collateral]:
        """What is here."""
        return Found(cast("Collateral", object()), at)


def test_thread_that_cannot_start_keeps_no_place_and_nobody_waiting(missing: Missing, tmp_path: Path) -> None:
    """Without a thread there is no fetch; whoever began to wait for it is told."""
    starts: list[int] = []

    def broken(_work: Callable[[], None]) -> None:
        starts.append(1)
        raise RuntimeError("can't start new thread")

    lookup = cast("Lookup", missing)
    collateral = BackgroundLookup(lookup, lookup, lambda _now: None, BackgroundFetches(start=broken))
    for quote in quotes(tmp_path, MAX_FETCHES + 1, carries_chain=True):
        with pytest.raises(RuntimeError):
            collateral.for_quote(quote, now())
    assert len(starts) == MAX_FETCHES + 1


def test_what_is_due_is_fetched_while_strangers_hold_all_places(missing: Missing, tmp_path: Path) -> None:
    """Fetches for evidence never keep the key server from fetching anew what it has."""
    fetches = BackgroundFetches()
    lookup = cast("Lookup", missing)
    holding = BackgroundLookup(lookup, lookup, lambda _now: None, fetches)
    proven = quotes(tmp_path, MAX_FETCHES, carries_chain=True)
    assert outcomes(holding, proven) == [Pending] * MAX_FETCHES
    refreshed = threading.Event()
    due = BackgroundLookup(cast("Lookup", Silent()), lookup, lambda _now: refreshed.set(), fetches)
    due.for_quote(proven[0], now())
    assert refreshed.wait(60)


def test_flood_of_evidence_ends_no_pause_of_what_is_due() -> None:
    """However many fetches for evidence fail, a refresh that failed begins again only after its pause."""
    refreshed: list[int] = []
    fetches = BackgroundFetches(start=lambda work: work(), clock_s=lambda: 1000.0)

    def missing() -> None:
        raise FetchFailed("not there")

    for _ in range(2):
        fetches.begin("refresh", lambda: refreshed.append(1), "refresh", pause_s=600)
        with Logged():
            for number in range(MAX_REMEMBERED + 10):
                fetches.begin(number, missing, "unproven")
    assert len(refreshed) == 1
