"""A host that leaves parties of an agreement out, keeps their statements, or starts more runs than were agreed on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from adyton.errors import Denied, Error
from adyton.keyserver.agreement_lines import (
    PARTIES_LINE,
)
from adyton.release.client import _Conversation, obtain_keys
from adyton.values import Nonce
from tests.support.agreement_factory import make_signer
from tests.support.owner_world import Running, World, now, running
from tests.support.release_by_hand import entries
from tests.support.two_owners import TwoOwners, both_running, refused_lines, two_owners


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[TwoOwners]:
    """A hospital and a vendor."""
    with two_owners(tmp_path) as found:
        yield found


@pytest.fixture
def servers(owners: TwoOwners) -> Iterator[dict[str, Running]]:
    """Both key servers."""
    with both_running(owners) as found:
        yield found


def test_run_that_brings_no_statements_is_refused(owners: TwoOwners, servers: dict[str, Running]) -> None:
    """The host cannot leave the other parties out."""
    manifest, _ = owners.agreed()
    with pytest.raises(Denied):
        owners.obtain(manifest, servers)
    for world in (owners.hospital, owners.vendor):
        assert refused_lines(world) == [PARTIES_LINE]


def test_party_out_of_reach_stops_the_run(owners: TwoOwners, servers: dict[str, Running]) -> None:
    """The price: without the vendor's server the hospital releases nothing, and the user is told why."""
    manifest, agreement = owners.agreed()
    signed = owners.signed(manifest)
    addresses = {"hospital": servers["hospital"].adyton, "vendor": "127.0.0.1:1"}
    with pytest.raises(Error) as refused:
        obtain_keys(signed, owners.hospital.enclave(signed), addresses, agreements=[agreement], timeout_s=1)
    assert "cannot be reached" in refused.value.message
    assert refused_lines(owners.hospital) == [PARTIES_LINE]


def test_statement_counts_for_one_request(
    owners: TwoOwners, servers: dict[str, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was kept from an earlier run answers another challenge. So does one about another agreement."""
    manifest, agreement = owners.agreed()
    kept: list[bytes] = []
    ask = _Conversation.in_force

    def keep(self: _Conversation, wanted: str, challenge: Nonce) -> bytes:
        kept.append(ask(self, wanted, challenge))
        return kept[-1]

    monkeypatch.setattr(_Conversation, "in_force", keep)
    owners.obtain(manifest, servers, agreement)
    old = list(kept)
    monkeypatch.setattr(_Conversation, "in_force", lambda _self, _agreement, _challenge: old[0])
    with pytest.raises(Denied):
        owners.obtain(manifest, servers, agreement)
    assert refused_lines(owners.hospital) == [PARTIES_LINE]
    stranger = make_signer("stranger", now())
    monkeypatch.setattr(_Conversation, "in_force", lambda _self, wanted, challenge: stranger.says(wanted, challenge))
    with pytest.raises(Denied):
        owners.obtain(manifest, servers, agreement)
    assert refused_lines(owners.hospital) == [PARTIES_LINE]


def test_two_servers_on_one_store_do_not_give_one_run_too_many(owners: TwoOwners) -> None:
    """Eight runs at the same moment, at two servers of the hospital, for the last three runs."""
    manifest, agreement = owners.agreed(runs=3)
    won: list[int] = []

    def ask(servers: dict[str, Running]) -> None:
        try:
            owners.obtain(manifest, servers, agreement)
        except Error:
            return
        won.append(1)

    second = World(
        owners.hospital.folder,
        owners.hospital.home,
        owners.hospital.home.open_store(),
        owners.hospital.platform,
        owners.hospital.collateral,
    )

    with both_running(owners) as first, running(second) as other:
        ways = [first, {**first, "hospital": other}] * 4
        threads = [threading.Thread(target=ask, args=(way,)) for way in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    second.store.close()
    assert len(entries(owners.hospital, "release")) == 3
    assert len(entries(owners.vendor, "release")) == 3
    assert len(won) <= 3
