"""The privacy budget of an agreement: reserved when a key is released, settled by the run, never taken twice."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adyton.agreement import budget as budget_module
from adyton.errors import Denied, Error, OutOfOrder
from adyton.keyserver.agreement_lines import PRIVACY_LINE
from adyton.release.client import tell_server
from adyton.release.run_key import RunKey
from adyton.release.run_messages import PRIVACY
from tests.support.owner_world import Running, running
from tests.support.release_by_hand import entries
from tests.support.two_owners import TwoOwners, both_running, refused_lines, two_owners

TABLE = """
[privacy]
key = "patients"
epsilon = 4.0
delta = 1e-5
noise_multiplier = 5.0
sampling_probability = 1
steps = 7
"""
"""Two runs of seven steps each stay below epsilon 4, and three do not."""


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[TwoOwners]:
    """A hospital and a vendor."""
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: pip install 'adyton[dp]'")
    with two_owners(tmp_path) as found:
        yield found


@pytest.fixture
def servers(owners: TwoOwners) -> Iterator[dict[str, Running]]:
    """Both key servers."""
    with both_running(owners) as found:
        yield found


def settle(
    owners: TwoOwners, servers: dict[str, Running], manifest: Path, key: RunKey, grant: str, payload: bytes
) -> dict[str, object]:
    """Say what a run used, as its keeper does."""
    addresses = {name: server.adyton for name, server in servers.items()}
    return dict(tell_server(owners.signed(manifest), "hospital", addresses, key, PRIVACY, grant, payload, timeout_s=10))


def run(owners: TwoOwners, servers: dict[str, Running], manifest: Path, agreement: str) -> tuple[RunKey, str]:
    """A run with its keys: its key, and the hospital's grant."""
    key = RunKey()
    released = owners.obtain(manifest, servers, agreement, run_key=key)
    return key, next(grant.grant for grant in released.grants if grant.owner == "hospital")


def test_budget_is_reserved_and_ends(owners: TwoOwners, servers: dict[str, Running]) -> None:
    """Two runs fit. The third is refused by the owner of the data, whose record says why. The vendor counts nothing."""
    manifest, agreement = owners.agreed(privacy=TABLE)
    for _ in range(2):
        run(owners, servers, manifest, agreement)
    with pytest.raises(Denied) as refused:
        run(owners, servers, manifest, agreement)
    assert len(refused.value.denials) == 1
    assert refused_lines(owners.hospital) == [PRIVACY_LINE]
    reserved = [item.get("privacy_steps") for entry in entries(owners.hospital, "release") for item in entry["keys"]]
    assert reserved == [7, None] * 2
    assert not [
        item for entry in entries(owners.vendor, "release") for item in entry["keys"] if "privacy_steps" in item
    ]


def test_run_that_used_less_leaves_room(owners: TwoOwners, servers: dict[str, Running]) -> None:
    """It says so once, signed with its key. Then another run fits."""
    manifest, agreement = owners.agreed(privacy=TABLE)
    key, grant = run(owners, servers, manifest, agreement)
    run(owners, servers, manifest, agreement)
    assert settle(owners, servers, manifest, key, grant, b'{"steps": 0}') == {"settled": True}
    run(owners, servers, manifest, agreement)
    with pytest.raises(OutOfOrder) as refused:
        settle(owners, servers, manifest, key, grant, b'{"steps": 0}')
    assert refused.value.check == "reservation of the privacy budget"
    with pytest.raises(Denied):
        run(owners, servers, manifest, agreement)
    (entry,) = entries(owners.hospital, "privacy-settled")
    assert (entry["grant"], entry["reserved"], entry["used"]) == (grant, 7, 0)


def test_run_that_used_more_is_recorded_as_it_says(owners: TwoOwners, servers: dict[str, Running]) -> None:
    """What it told cannot be taken back. The next run finds nothing left."""
    manifest, agreement = owners.agreed(privacy=TABLE)
    key, grant = run(owners, servers, manifest, agreement)
    settle(owners, servers, manifest, key, grant, b'{"steps": 1000}')
    with pytest.raises(Denied):
        run(owners, servers, manifest, agreement)
    assert refused_lines(owners.hospital) == [PRIVACY_LINE]


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"steps": -1}', b'{"steps": 1.5}', b'{"steps": 1, "epsilon": 0}'])
def test_malformed_report_settles_nothing(owners: TwoOwners, servers: dict[str, Running], payload: bytes) -> None:
    """Nor does a report of another run."""
    manifest, agreement = owners.agreed(privacy=TABLE)
    key, grant = run(owners, servers, manifest, agreement)
    with pytest.raises(OutOfOrder):
        settle(owners, servers, manifest, key, grant, payload)
    with pytest.raises(OutOfOrder):
        settle(owners, servers, manifest, RunKey(), grant, b'{"steps": 0}')
    assert entries(owners.hospital, "privacy-settled") == []


def test_two_runs_cannot_both_take_the_last_of_it(owners: TwoOwners) -> None:
    """Six at the same moment, at two servers on one store: as many as fit have the key, and no more."""
    manifest, agreement = owners.agreed(privacy=TABLE)
    won: list[int] = []

    def ask(servers: dict[str, Running]) -> None:
        try:
            owners.obtain(manifest, servers, agreement)
        except Error:
            return
        won.append(1)

    second = replace(owners.hospital, store=owners.hospital.home.open_store())
    with both_running(owners) as first, running(second) as other:
        threads = [threading.Thread(target=ask, args=(way,)) for way in [first, {**first, "hospital": other}] * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    second.store.close()
    assert len(entries(owners.hospital, "release")) == len(won) == 2


def test_without_the_accountant_nothing_is_released(
    owners: TwoOwners, servers: dict[str, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be counted is refused, with the command that mends it."""
    manifest, agreement = owners.agreed(privacy=TABLE)
    budget_module._epsilon.cache_clear()
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(Denied):
        run(owners, servers, manifest, agreement)
    assert refused_lines(owners.hospital) == [PRIVACY_LINE]
    assert "adyton[dp]" in entries(owners.hospital, "denial")[-1]["reason"]["remedy"]
