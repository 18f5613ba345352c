"""A receipt of two owners: each server counter-signs, and each is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from adyton.collateral.verifier import Verifier
from adyton.errors import BadChain, EvidenceError, Mismatch
from adyton.keystore.tables.keys import KEY
from adyton.receipt.document import Receipt
from adyton.receipt.verify import Verified, verify_receipt
from tests.support.owner_world import make_world, running
from tests.support.receipt_world import Made, ReceiptWorld

TABLES = """
[adyton.owners.bob]
ca = '''{ca}'''

[adyton.keys]
weights = "alice"
data = "bob"
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiptWorld]:
    """Two owners with a key server each, and a program that takes a key of each."""
    folder = tmp_path_factory.mktemp("two-owners")
    with make_world(folder / "alice") as alice, make_world(folder / "bob") as bob:
        with bob.store.write() as change:
            change.add_key("data", bytes(range(16)), KEY, actor="test")
        signed = alice.program(keys=("weights", "data"), tables=TABLES.format(ca=bob.ca_pem))
        alice.approve(signed)
        bob.approve(signed, key="data", tees=(alice.tee,))
        service = bob.service(verifier=Verifier(alice.collateral))
        with running(alice) as server, running(bob, service=service) as other:
            yield ReceiptWorld(alice, server, signed, folder, {"bob": other.adyton})


@pytest.fixture(scope="module")
def made(world: ReceiptWorld) -> Made:
    """A receipt that both counter-signed."""
    found = world.make(made=[world.protected("data/a", b"first")])
    assert not found.notes
    return found


def verify(world: ReceiptWorld, receipt: Receipt, **changes: Any) -> Verified:
    """Verify with what the receipt has."""
    held: Any = world.world.collateral.for_quote
    return verify_receipt(receipt, roots=world.roots, now=datetime.now(UTC), collateral=held, **changes)


def test_both_owners_vouch_for_it(world: ReceiptWorld, made: Made) -> None:
    """Each names her own key, under her own CA; the first evidence for each is in it."""
    found = verify(world, made.receipt)
    assert [(each.owner, [item["key"] for item in each.keys]) for each in found.vouched] == [
        ("alice", ["weights"]),
        ("bob", ["data"]),
    ]
    assert len({each.ca_sha256 for each in found.vouched}) == 2
    cas = [signed.ca for signed in made.receipt.counter_signatures]
    assert {hashlib.sha256(ca).hexdigest() for ca in cas} == {each.ca_sha256 for each in found.vouched}
    assert len(made.receipt.requests) == 2


def test_each_counter_signature_is_needed(world: ReceiptWorld, made: Made) -> None:
    """One of two is not enough, unless told otherwise. The missing owner is named."""
    receipt = made.receipt
    for number, name in ((0, "alice"), (1, "bob")):
        kept = 1 - number
        alone = replace(
            receipt,
            counter_signatures=(receipt.counter_signatures[kept],),
            envelope=replace(
                receipt.envelope, signatures=(receipt.envelope.signatures[0], receipt.envelope.signatures[1 + kept])
            ),
        )
        with pytest.raises(Mismatch) as caught:
            verify(world, alone)
        assert caught.value.check == "counter-signature"
        assert name in str(caught.value.seen)
        assert verify(world, alone, without_counter_signature=True).not_vouched == (name,)


def test_owners_cannot_be_swapped(world: ReceiptWorld, made: Made) -> None:
    """One owner's request, signature or entry in the place of the other's."""
    receipt = made.receipt
    run, one, two = receipt.envelope.signatures
    with pytest.raises(BadChain):
        verify(world, replace(receipt, envelope=replace(receipt.envelope, signatures=(run, two, one))))
    with pytest.raises(EvidenceError):
        verify(world, replace(receipt, requests=receipt.requests[::-1]))
    first, second = receipt.counter_signatures
    swapped = (replace(first, owner="bob"), replace(second, owner="alice"))
    with pytest.raises(EvidenceError):
        verify(world, replace(receipt, counter_signatures=swapped))
