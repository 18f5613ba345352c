"""Collateral that is fetched while evidence waits: nobody else waits for it, and strangers cannot have it fetched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attest import sgx
from adyton.attest.ratls import make_certificate
from adyton.collateral.background import MAX_FETCHES, MAX_UNPROVEN_FETCHES, MAX_WHO_WAIT, Fetching, FetchingCollateral
from adyton.collateral.documents import Channel
from adyton.collateral.http_client import Response
from adyton.collateral.pcs import PCSClient
from adyton.collateral.store import CollateralStore, Source
from adyton.collateral.verifier import Verifier
from adyton.errors import FetchFailed, Unavailable
from adyton.keyserver.service import Answer, KeyService
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

    store = CollateralStore(world.home.collateral_path, online=True, client_of=client_of)
    store.import_bundle(world.platform.collateral(now()).to_json().encode(), now())
    store.remember_sources([Source("http://pcs.invalid")])
    found = world.service(verifier=Verifier(FetchingCollateral(store)))
    yield found
    pcs.open.set()
    found.close()


def ask(world: World, service: KeyService, platform: SimPlatform) -> Future[Answer]:
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
    when_done = Fetching.when_done

    def late(fetching: Fetching, callback: Callable[[], None]) -> bool:
        pcs.open.set()
        wait_until(lambda: fetching._fetch.ended)
        return when_done(fetching, callback)

    monkeypatch.setattr(Fetching, "when_done", late)
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
    """A collateral store that has nothing, and whose fetches do not end until they are let."""

    online = True

    def __init__(self) -> None:
        self.open = threading.Event()
        self.fetches = 0

    def for_quote(self, quote: Any, _now: Any, *, fetch: bool = True) -> None:
        """Nothing is here; fetching it takes its time."""
        if fetch:
            self.fetches += 1
            assert self.open.wait(60)
        raise FetchFailed("is missing")

    def origin(self, quote: Any) -> object:
        """Each quote object is another platform's."""
        return id(quote)


@pytest.fixture
def missing() -> Iterator[Missing]:
    """Such a store."""
    found = Missing()
    yield found
    found.open.set()


def quotes(folder: Path, count: int, *, carries_chain: bool) -> list[sgx.SGXQuote]:
    """Quotes that are taken for as many platforms'."""
    platform = SimPlatform.create(folder / f"platform-{carries_chain}", carries_chain=carries_chain)
    raw = platform.enclave(measurement=Measurement(bytes(32))).quote(bytes(64))
    return [sgx.parse_quote(raw) for _ in range(count)]


def outcomes(collateral: FetchingCollateral, asked: list[sgx.SGXQuote]) -> list[type[Exception]]:
    """What asking for each of them gives."""
    found: list[type[Exception]] = []
    for quote in asked:
        with pytest.raises((Unavailable, Fetching)) as caught:
            collateral.for_quote(quote, now())
        found.append(type(caught.value))
    return found


def test_fetches_at_once_are_few_and_fewer_without_a_chain(missing: Missing, tmp_path: Path) -> None:
    """Evidence that anybody can make takes a part of the places only."""
    collateral = FetchingCollateral(cast("CollateralStore", missing))
    unproven = quotes(tmp_path, MAX_UNPROVEN_FETCHES + 1, carries_chain=False)
    assert outcomes(collateral, unproven) == [Fetching] * MAX_UNPROVEN_FETCHES + [FetchFailed]
    rest = MAX_FETCHES - MAX_UNPROVEN_FETCHES
    proven = quotes(tmp_path, rest + 1, carries_chain=True)
    assert outcomes(collateral, proven) == [Fetching] * rest + [FetchFailed]
    assert outcomes(collateral, [unproven[0], proven[0]]) == [Fetching] * 2
    wait_until(lambda: missing.fetches == MAX_FETCHES)


def test_those_who_wait_for_one_fetch_are_bounded_and_all_are_told(missing: Missing, tmp_path: Path) -> None:
    """One more than may wait is turned away; the others are told when it ends, and who comes later at once."""
    collateral = FetchingCollateral(cast("CollateralStore", missing))
    (quote,) = quotes(tmp_path, 1, carries_chain=True)
    with pytest.raises(Fetching) as caught:
        collateral.for_quote(quote, now())
    told: list[int] = []
    for number in range(MAX_WHO_WAIT):
        assert caught.value.when_done(lambda number=number: told.append(number))  # type: ignore[misc]
    assert not caught.value.when_done(lambda: told.append(-1))
    with Logged():
        missing.open.set()
        wait_until(lambda: len(told) == MAX_WHO_WAIT)
    assert caught.value.when_done(lambda: told.append(-2))
    assert sorted(told) == [-2, *range(MAX_WHO_WAIT)]


def test_offline_store_has_nothing_fetched(missing: Missing, tmp_path: Path) -> None:
    """Without --online what is missing is missing."""
    missing.online = False
    collateral = FetchingCollateral(cast("CollateralStore", missing))
    assert outcomes(collateral, quotes(tmp_path, 1, carries_chain=True)) == [FetchFailed]
    assert missing.fetches == 0
