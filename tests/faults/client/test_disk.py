"""What strangers leave on the owner's disk: so much a day and no more, whatever they send; counted in bytes."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adyton.attest.bundle import EvidenceBundle
from adyton.errors import OutOfOrder
from adyton.keyserver import record_limits
from adyton.keyserver.record_limits import (
    MAX_LINES_PER_MINUTE,
    MAX_NOISE_BYTES_PER_DAY,
    MAX_SUMS_PER_DAY,
    Budget,
    RefusalLimits,
)
from adyton.keyserver.refused_programs import Explainer, Ticket
from adyton.keyserver.service import KeyService
from adyton.keystore import schema
from adyton.keystore.prune import missing
from adyton.manifest.measure import combine
from adyton.manifest.signed import SignedManifest
from adyton.release.messages import EnclaveKey, Refusal, ReleaseRequest
from adyton.server.process import server_identity
from tests.support.owner_world import RUNTIME_PARTS, World, now
from tests.support.release_by_hand import Logged, entries, wait_until
from tests.support.run_keys import RUN_KEY

DAY_MS = 86_400_000
PER_ENTRY_BYTES = 1024
"""What the database adds to an entry: its number, hash, and place in three indexes."""


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.at = now()

    def __call__(self) -> datetime:
        """The time."""
        return self.at


@pytest.fixture
def clock() -> Clock:
    """The key server's clock."""
    return Clock()


@pytest.fixture
def service(world: World, clock: Clock) -> Iterator[KeyService]:
    """The key server's decisions."""
    found = world.service(clock=clock)
    yield found
    found.close()


def disk_bytes(world: World) -> int:
    """The store's files."""
    with world.store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return sum(path.stat().st_size for path in world.home.path.glob("store.db*"))


def kept(world: World) -> list[tuple[str, bytes]]:
    """What is kept as it came: kind and bytes."""
    with world.store.read() as view:
        return [(kind, data) for kind, _, data in view.artifacts()]


def request(service: KeyService, evidence: bytes, names: tuple[str, ...] = ("weights",)) -> ReleaseRequest:
    """A request with this evidence, over a fresh challenge."""
    nonce, _ = service.challenge()
    unsigned = ReleaseRequest(
        nonce, EnclaveKey().public_bytes, world_manifest(), names, EvidenceBundle(), run_key=RUN_KEY
    )
    return replace(unsigned, evidence=EvidenceBundle(cpu=evidence))


def world_manifest() -> Any:
    """Some manifest's hash."""
    from adyton.values import Digest

    return Digest(secrets.token_bytes(32))


def ask(world: World, service: KeyService, signed: SignedManifest) -> Refusal | None:
    """A request with genuine evidence of its own; None where it is granted."""
    nonce, _ = service.challenge()
    unsigned = ReleaseRequest(
        nonce, EnclaveKey().public_bytes, signed.manifest_sha256, ("weights",), EvidenceBundle(), run_key=RUN_KEY
    )
    quote = world.enclave(signed).quote(unsigned.report_data(server_identity(world.home)))
    return service.release(replace(unsigned, evidence=EvidenceBundle(cpu=quote)), "peer").result(120).refusal


def flood(service: KeyService, count: int) -> None:
    """So many requests with 32 KiB of evidence that nobody made, each another, with as many names as fit."""
    names = tuple(sorted(f"{number:02}{'n' * 62}" for number in range(64)))
    one = request(service, b"", names)
    for start in range(0, count, 500):
        asked = [
            service.release(replace(one, evidence=EvidenceBundle(cpu=secrets.token_bytes(32 * 1024))), "peer")
            for _ in range(min(500, count - start))
        ]
        done, left = wait(asked, timeout=600)
        assert not left
        assert all(future.result().refusal is not None for future in done)


def test_evidence_without_a_tee_is_kept_by_its_hash_alone(world: World, service: KeyService) -> None:
    """What does not verify leaves a small entry that names it, and no byte of it."""
    before = kept(world)
    evidence = secrets.token_bytes(32 * 1024)
    refusal = service.release(request(service, evidence), "peer").result(120).refusal
    assert refusal is not None
    assert kept(world) == before
    (entry,) = entries(world, "denial")
    import hashlib

    assert entry["evidence_sha256"] == hashlib.sha256(evidence).hexdigest()
    assert "evidence" not in entry
    assert len(json.dumps(entry)) < 4096


def test_names_and_texts_of_strangers_are_cut(world: World, service: KeyService) -> None:
    """However many names are asked for, and however long a certificate's own, an entry stays small."""
    flood(service, 1)
    (entry,) = entries(world, "denial")
    assert len(entry["names"]) == 4
    assert len(json.dumps(entry)) < 4096


def test_flood_of_days_adds_no_more_than_its_bound(world: World, service: KeyService, clock: Clock) -> None:
    """Thousands of requests in each of three days, hundreds of megabytes: the store grows by the bound at most."""
    assert ask(world, service, world.program()) is None
    released = kept(world)
    recorded = 0
    for day in range(3):
        before = disk_bytes(world)
        for minute in range(8):
            clock.at += timedelta(minutes=1)
            flood(service, 250 if minute else 500)
        service._record_left_out(whole=True)
        number = len(entries(world, "denial")) + len(entries(world, "noise")) - recorded
        recorded += number
        bound = MAX_NOISE_BYTES_PER_DAY + 64 * 1024 + number * PER_ENTRY_BYTES
        assert disk_bytes(world) - before <= bound, day
        clock.at += timedelta(days=1)
    sent = sum(
        sum(value for name, value in each.items() if name.startswith("refused")) for each in entries(world, "noise")
    )
    assert sent + len(entries(world, "denial")) == 3 * 2250
    assert kept(world) == released
    assert ask(world, service, world.program()) is None
    world.store.verify_audit()


def test_entries_of_strangers_are_bounded_by_the_day_in_bytes() -> None:
    """Not the number of a minute's refusals alone: a day of minutes has its bound, and each platform its share."""
    limits = RefusalLimits()
    at_ms, spent = 0, 0
    while at_ms < DAY_MS:
        for _ in range(10):
            if limits.may_keep(None, at_ms):
                limits.wrote(None, 2000, at_ms)
                spent += 2000
        at_ms += 60_000
    assert MAX_NOISE_BYTES_PER_DAY <= spent < MAX_NOISE_BYTES_PER_DAY + 2000
    assert limits.may_keep(None, DAY_MS)
    limits.wrote("a", record_limits.MAX_PLATFORM_BYTES_PER_DAY, DAY_MS)
    assert not limits.may_keep("a", DAY_MS)
    assert limits.may_keep("b", DAY_MS)
    limits.wrote("c", record_limits.MAX_GENUINE_BYTES_PER_DAY, DAY_MS)
    assert not limits.may_keep("b", DAY_MS)


def test_one_platform_does_not_use_up_what_all_may_have_explained() -> None:
    """Who lets his programs be explained all day long takes his own share, and the next platform has its own."""
    shares = record_limits.PlatformBudget(100, 25)
    while shares.has_room("a", 0):
        shares.spend("a", 5, 0)
    assert shares.has_room("b", 0)
    for platform in "bcd":
        shares.spend(platform, 25, 0)
    assert not shares.has_room("e", 0)
    assert shares.has_room("a", DAY_MS)


def test_explanations_of_one_platform_leave_those_of_another_their_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the server itself: one platform has had its time of this hour, and a program on another is still read."""
    worked: list[str] = []

    def unpacked(denial: str, _message: bytes) -> Any:
        worked.append(denial)
        raise OutOfOrder("read")

    monkeypatch.setattr("adyton.keyserver.refused_programs.unpacked", unpacked)
    monkeypatch.setattr("adyton.keyserver.refused_programs.MAX_PLATFORM_BUSY_S_PER_HOUR", 1)
    explainer = Explainer(world.store, combine)
    report: Any = None
    about = {"report": report, "key": "weights", "approvals": (), "waits": False}
    for denial, platform in (("d-1", "a"), ("d-2", "a"), ("d-3", "b")):
        explainer.expect(Ticket(denial=denial, platform=platform, made_at=time.monotonic(), **about))
        ticket = explainer.claim(denial)
        assert ticket is not None
        explainer.take(ticket, b"")
        wait_until(lambda: explainer.held == 0)
    explainer.close()
    assert worked == ["d-1", "d-3"]


def test_sums_of_a_year_of_floods_are_few() -> None:
    """A flood in every minute leaves sixty sums, then one an hour; none of what it counts is lost."""
    limits = RefusalLimits()
    found = []
    for minute in range(2 * 1440):
        for _ in range(record_limits.MAX_NOISE_PER_MINUTE + 1):
            limits.may_keep(None, minute * 60_000)
        sums = limits.sums((minute + 1) * 60_000)
        found += sums
        limits.recorded(sums)
    found += limits.sums(None)
    assert sum(each["refused_without_evidence"] for each in found) == 2 * 1440
    assert len(found) <= 2 * (MAX_SUMS_PER_DAY + 24)


def test_genuine_evidence_of_refusals_is_kept_within_its_bounds(
    world: World, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """A host with a TEE makes refusals without end: the newest evidence stays, and that of releases."""
    monkeypatch.setattr("adyton.keyserver.request_record.MAX_EVIDENCE_KEPT_BYTES", 60_000)
    service = world.service(clock=clock)
    try:
        assert ask(world, service, world.program()) is None
        for number in range(30):
            clock.at += timedelta(minutes=1)
            assert ask(world, service, world.program(argument=f"{number}.py")) is not None
    finally:
        service.close()
    refused = [data for kind, data in kept(world) if kind == "refused"]
    assert 0 < sum(map(len, refused)) <= 60_000 + max(map(len, refused))
    with world.store.read() as view:
        denials = list(view.entries(kind="denial"))
        assert "pruned on" in missing(view, denials[0])["evidence"]
        assert missing(view, denials[-1]) == {}
        (release,) = view.entries(kind="release")
        assert missing(view, release) == {}
    assert {each["of"] for each in entries(world, "evidence-pruned")} == {"denial"}


def test_genuine_evidence_beyond_the_day_is_kept_by_its_hash(
    world: World, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """The day's bound holds before the bound on all of it does."""
    monkeypatch.setattr("adyton.keyserver.request_record.MAX_EVIDENCE_BYTES_PER_DAY", 12_000)
    service = world.service(clock=clock)
    try:
        for number in range(6):
            assert ask(world, service, world.program(argument=f"{number}.py")) is not None
    finally:
        service.close()
    assert sum(len(data) for kind, data in kept(world) if kind == "refused") <= 12_000
    assert [("evidence" in each, "evidence_sha256" in each) for each in entries(world, "denial")][-1] == (False, True)


def test_evidence_of_a_refusal_that_is_released_later_stays(world: World, service: KeyService, clock: Clock) -> None:
    """Over RA-TLS the same evidence comes again: once a release names it, no bound on refusals removes it."""
    from cryptography.hazmat.primitives.asymmetric import ec

    from adyton.attest.ratls import make_certificate

    signed = world.program(argument="later.py")
    key = ec.generate_private_key(ec.SECP384R1())
    times = {"not_before": clock.at - timedelta(hours=1), "not_after": clock.at + timedelta(days=1)}
    chain = [make_certificate(key, world.enclave(signed).quote, **times)]
    assert service.provision(chain, None, "peer").result(120).refusal is not None
    world.approve(signed, protocols=("ra-tls",))
    clock.at += timedelta(minutes=1)
    assert service.provision(chain, None, "peer").result(120).refusal is None
    with world.store.write() as change:
        assert change.forget_refused(0) is None
    with world.store.read() as view:
        (release,) = view.entries(kind="release")
        assert missing(view, release) == {}


def kept_bytes(world: World) -> dict[bytes, int]:
    """By measurement, the sizes of the manifests that are kept, with their parts."""
    table = schema.manifests.c
    with world.store.engine.connect() as connection:
        rows = connection.execute(sa.select(table.measurement, table.manifest, table.runtime_parts)).all()
    return {row[0]: len(row[1]) + len(row[2]) for row in rows}


def test_manifests_of_refused_programs_are_kept_within_a_bound(world: World) -> None:
    """The oldest go first, those that wait for the owner last, and what is approved stays."""
    approved = world.program()
    shown = [world.program(argument=f"{number}.py") for number in range(4)]
    parts = {name: digest.hex() for name, digest in RUNTIME_PARTS.items()}
    with world.store.write() as change:
        for signed in shown:
            change.remember(signed.measurement, signed.manifest_bytes, parts)
    world.let_wait(shown[0].measurement)
    kept = kept_bytes(world)
    one, *others = (kept[signed.measurement.raw] for signed in shown)
    assert others == [one] * 3
    with world.store.write() as change:
        assert change.forget_shown(2 * one + 1) == 2
    with world.store.read() as view:
        stands = [view.behind(signed.measurement) is not None for signed in (approved, *shown)]
    assert stands[:2] == [True, True]
    assert sum(stands[2:]) == 1


def test_log_lines_of_strangers_are_counted(world: World, service: KeyService) -> None:
    """Challenges that are nobody's, by the thousand, leave so many lines in the log and no more."""
    from adyton.values import Nonce

    one = request(service, b"evidence")
    with Logged() as logged:
        for _ in range(10 * MAX_LINES_PER_MINUTE):
            with pytest.raises(OutOfOrder):
                service.release(replace(one, nonce=Nonce(secrets.token_bytes(32))), "peer")
    assert len(logged.records) == MAX_LINES_PER_MINUTE


def test_budget_begins_anew_with_its_period() -> None:
    """What is left of one day is not saved for the next, nor owed to it."""
    budget = Budget(10)
    budget.spend(9, 0)
    assert budget.has_room(0, 1)
    assert not budget.has_room(0, 2)
    budget.spend(5, DAY_MS - 1)
    assert not budget.has_room(DAY_MS - 1)
    assert budget.has_room(DAY_MS, 10)


def test_home_grows_by_nothing_but_the_store(world: World, service: KeyService) -> None:
    """Strangers leave no file of their own."""
    before = {path for path in Path(world.home.path).rglob("*") if not path.name.startswith("store.db")}
    flood(service, 20)
    assert {path for path in Path(world.home.path).rglob("*") if not path.name.startswith("store.db")} == before
