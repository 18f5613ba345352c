"""Two owners, one program, one agreement: both sign, a run has its keys, one ends it, the next run is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adyton.agreement.in_force import InForce, verify_statement
from adyton.errors import BadSignature, Denied, FetchFailed, UsageError
from adyton.keyserver.agreement_lines import (
    END_LINE,
    KEY_LINE,
    PARTIES_LINE,
    PROGRAM_LINE,
    RUNS_LINE,
    STATE_LINE,
    Ground,
    agreement_lines,
)
from adyton.keyserver.consent import alter, check_agreement, mine, propose
from adyton.keystore.store import Store
from adyton.release.in_force_messages import PATH_IN_FORCE, Question
from adyton.server.process import server_identity
from adyton.values import Measurement, Nonce
from adyton.workflow.agreement import draft_agreement, list_agreements, revoke_agreement, sign_agreement
from adyton.workflow.agreement_files import signature_path
from tests.support.agreement_factory import make_signer
from tests.support.owner_world import Running, now
from tests.support.release_by_hand import entries, https, post
from tests.support.two_owners import TwoOwners, both_running, refused_lines, two_owners

CHALLENGE = Nonce(b"c" * 32)


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


def test_both_sign_and_a_run_has_every_key(owners: TwoOwners, servers: dict[str, Running]) -> None:
    """The record of each names the agreement, and the run counts once however many keys it had."""
    manifest, agreement = owners.agreed()
    released = owners.obtain(manifest, servers, agreement)
    assert sorted(released.keys) == ["model", "patients", "results"]
    for world, keys in ((owners.hospital, 2), (owners.vendor, 1)):
        (release,) = entries(world, "release")
        assert [item["agreement"] for item in release["keys"]] == [agreement] * keys
        (listed,) = list_agreements(home=world.home.path).agreements
        assert (listed.runs, listed.stored.state) == (1, "complete")


@pytest.mark.parametrize("ending", ["hospital", "vendor"])
def test_each_party_ends_it_for_all(owners: TwoOwners, servers: dict[str, Running], ending: str) -> None:
    """Her own keys stop at once. The other's server hears no statement, refuses, and names who is silent."""
    manifest, agreement = owners.agreed()
    owners.obtain(manifest, servers, agreement)
    revoke_agreement(agreement, home=owners.world(ending).home.path)
    with pytest.raises(Denied) as refused:
        owners.obtain(manifest, servers, agreement)
    assert len(refused.value.denials) == 2
    assert f"the key server of {ending} does not say that agreement {agreement} is in force" in refused.value.message
    other = "vendor" if ending == "hospital" else "hospital"
    assert refused_lines(owners.world(ending)) == [STATE_LINE]
    assert refused_lines(owners.world(other)) == [PARTIES_LINE]
    assert ending in entries(owners.world(other), "denial")[-1]["reason"]["seen"]
    with pytest.raises(UsageError, match="stays so"):
        sign_agreement(owners.folder / "study.toml", manifest=manifest, home=owners.world(ending).home.path)


def test_runs_of_an_agreement_are_counted_for_good(owners: TwoOwners, servers: dict[str, Running]) -> None:
    """After the last one both refuse, also over several approvals of one agreement."""
    manifest, agreement = owners.agreed(runs=2)
    owners.obtain(manifest, servers, agreement)
    owners.approve(manifest, owners.folder / "study.toml")  # another approval on the same ground
    owners.obtain(manifest, servers, agreement)
    with pytest.raises(Denied):
        owners.obtain(manifest, servers, agreement)
    for world in (owners.hospital, owners.vendor):
        assert refused_lines(world) == [RUNS_LINE]
        assert len(entries(world, "release")) == 2


def test_approval_without_all_signatures_is_refused(owners: TwoOwners) -> None:
    """By the names of those who have not signed; and where a signature is of another text, by its check."""
    manifest = owners.program()
    file, agreement = owners.agree(manifest, signers=("hospital",))
    with pytest.raises(BadSignature) as refused:
        owners.approve(manifest, file, ("hospital",))
    assert refused.value.check == "signatures of the agreement"
    assert "vendor" in refused.value.message
    stranger = make_signer("vendor", now())
    signature_path(file, "vendor").write_bytes(stranger.sign(agreement).to_bytes())
    with pytest.raises(BadSignature) as refused:
        owners.approve(manifest, file, ("hospital",))
    assert refused.value.check == "owner of the signature"
    signature_path(file, "vendor").write_bytes(signature_path(file, "hospital").read_bytes())
    with pytest.raises(BadSignature) as refused:
        owners.approve(manifest, file, ("hospital",))
    assert refused.value.check == "signature of vendor"
    assert entries(owners.hospital, "policy") == []


def test_owner_who_did_not_sign_in_this_home_cannot_approve(owners: TwoOwners, tmp_path: Path) -> None:
    """Signatures that somebody brings are not enough: her own record has to have hers."""
    manifest = owners.program()
    file, _ = owners.agree(manifest)
    other = tmp_path / "again"
    other.mkdir()
    owners.hospital.store.close()
    (owners.hospital.home.path / "store.db").rename(other / "store.db")

    Store.create(owners.hospital.home.store_url(), owners.hospital.home.master_key(), actor="test").close()
    (owners.hospital.home.path / "checkpoint.json").unlink(missing_ok=True)
    with pytest.raises(UsageError) as refused:
        owners.approve(manifest, file, ("hospital",))
    assert refused.value.check == "signature of the agreement"


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"measurement": Measurement(b"x" * 32)}, [PROGRAM_LINE]),
        ({"key": "model"}, [KEY_LINE]),
        ({"agreement": "ag-" + "0" * 32}, [STATE_LINE]),
    ],
)
def test_agreement_carries_only_what_it_says(owners: TwoOwners, changes: dict[str, Any], lines: list[str]) -> None:
    """An approval of another program, another owner's key or another agreement is refused when it is made."""
    owners.agreed()
    with owners.hospital.store.write() as change:
        stored = next(item for item in change.approvals() if item.approval.key == "patients")
        approval = stored.approval.changed(**changes)
        with pytest.raises(UsageError) as refused:
            check_agreement(change, approval, mine(owners.hospital.home))
    assert [check.name for check in refused.value.failed] == lines


def test_every_way_to_an_approval_looks_at_its_agreement(owners: TwoOwners) -> None:
    """Also a change of one that stands, as the dashboard makes it."""
    owners.agreed()
    owner = mine(owners.hospital.home)
    with owners.hospital.store.write() as change:
        stored = next(item for item in change.approvals() if item.approval.key == "patients")
        approval = stored.approval.changed(agreement="ag-" + "0" * 32)
        with pytest.raises(UsageError):
            alter(change, stored.id, owner=owner, named=(), actor="test", approval=approval)
        with pytest.raises(UsageError):
            propose(change, approval, owner=owner, named=(), actor="test")


def test_approval_that_stands_all_the_same_releases_nothing(owners: TwoOwners, servers: dict[str, Running]) -> None:
    """The lines are judged again at every request, whatever wrote the approval."""
    manifest, agreement = owners.agreed()
    with owners.hospital.store.write() as change:
        for stored in change.approvals():
            other = stored.approval.changed(agreement="ag-" + "0" * 32)
            change.change_approval(stored.id, actor="test", approval=other)
    with pytest.raises(Denied):
        owners.obtain(manifest, servers, agreement)
    assert refused_lines(owners.hospital) == [STATE_LINE]


def test_agreement_that_is_over_carries_nothing(owners: TwoOwners) -> None:
    """After its last second: no statement, and no key."""
    _, agreement = owners.agreed()
    late = now() + timedelta(days=100)
    with owners.hospital.store.read() as view:
        stored = view.agreement(agreement)
    assert stored is not None
    service = owners.hospital.service(clock=lambda: late)
    try:
        assert service.in_force(Question(agreement, CHALLENGE)) is None
    finally:
        service.close()

    with owners.hospital.store.read() as view:
        approval = next(item.approval for item in view.approvals() if item.approval.key == "patients")
    own = server_identity(owners.hospital.home).ca_sha256
    saying = frozenset({InForce(agreement, server_identity(owners.vendor.home).ca_sha256)})
    failed = [line.name for line in agreement_lines(approval, Ground(stored), saying, own, late) if not line.ok]
    assert failed == [END_LINE]


def test_stranger_learns_one_thing_from_a_server(owners: TwoOwners, servers: dict[str, Running]) -> None:
    """A statement for who knows the id; for everything else one answer, at one time, and nothing in the record."""
    _, agreement = owners.agreed()
    before = owners.vendor.kinds()
    with https(owners.vendor, servers["vendor"].adyton) as connection:
        status, found = post(connection, PATH_IN_FORCE, Question(agreement, CHALLENGE).to_bytes())
        assert status == 200

        owner = server_identity(owners.vendor.home).ca_sha256
        assert verify_statement(base64.b64decode(found["statement"]), CHALLENGE, now()) == InForce(agreement, owner)
        unknown = post(connection, PATH_IN_FORCE, Question("ag-" + "0" * 32, CHALLENGE).to_bytes())
        revoke_agreement(agreement, home=owners.vendor.home.path)
        revoked = post(connection, PATH_IN_FORCE, Question(agreement, CHALLENGE).to_bytes())
        assert unknown == revoked
        assert unknown[0] == 409
        assert post(connection, PATH_IN_FORCE, b"{}")[0] in (400, 426)
    assert owners.vendor.kinds() == [*before, "agreement"]


def test_server_whose_key_for_statements_is_gone_says_nothing(owners: TwoOwners, servers: dict[str, Running]) -> None:
    """And says so in its log; the others then refuse."""
    manifest, agreement = owners.agreed()
    (owners.vendor.home.path / "in-force.key").write_bytes(b"x")
    (owners.vendor.home.path / "ca.key").rename(owners.vendor.home.path / "ca.key.away")
    (owners.vendor.home.path / "in-force.key").chmod(0o600)
    with pytest.raises((Denied, FetchFailed)):
        owners.obtain(manifest, servers, agreement)
    assert refused_lines(owners.hospital) == [PARTIES_LINE]


def test_record_of_a_signature_has_what_was_named(owners: TwoOwners) -> None:
    """The findings that a party accepted stand in her record, with the text that she signed."""
    manifest = owners.program(adyton="insecure__stdio = true")
    file = owners.folder / "study.toml"

    drafted = draft_agreement(manifest, file, home=owners.hospital.home.path).agreement
    with pytest.raises(UsageError) as refused:
        sign_agreement(file, home=owners.hospital.home.path)
    assert "output-in-clear" in (refused.value.seen or "")
    sign_agreement(file, allow=["output-in-clear"], home=owners.hospital.home.path)
    (entry,) = entries(owners.hospital, "agreement")
    assert (entry["allowed"], entry["document"]) == (["output-in-clear"], json.loads(drafted.canonical()))
