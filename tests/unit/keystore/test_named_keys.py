"""Names of keys that come from outside: they choose what is looked up, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attest.ratls import make_certificate
from adyton.keyserver.service import KeyService
from adyton.keyserver.stages import Answered
from adyton.keystore.approval import REVOKED
from adyton.manifest.signed import SignedManifest
from tests.support.owner_world import World, now


@pytest.fixture
def service(world: World) -> Iterator[KeyService]:
    """The key server's decisions."""
    found = world.service()
    yield found
    found.close()


def ask(world: World, service: KeyService, signed: SignedManifest, server_name: str | None) -> Answered:
    """Gramine's protocol with this name in the TLS handshake."""
    key = ec.generate_private_key(ec.SECP384R1())
    hour = timedelta(hours=1)
    der = make_certificate(key, world.enclave(signed).quote, not_before=now() - hour, not_after=now() + hour)
    return service.provision([der], server_name, "peer").result(60)


@pytest.mark.parametrize("name", ["", "-weights", "a/b", "wei\nghts", "w" * 65, "a.b.keys.adyton-key-server/"])
def test_server_name_that_names_no_key_is_refused_and_spoils_nothing(
    world: World, service: KeyService, name: str
) -> None:
    """A name that no key can have is refused as such; the next request is decided as if it had not been."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    refused = ask(world, service, signed, f"{name}.keys.adyton-key-server").refusal
    assert refused is not None
    assert refused.check == "key name"
    for right in ("adyton-key-server", "weights.keys.adyton-key-server", None):
        assert ask(world, service, signed, right).refusal is None


def test_approvals_of_unknown_names_cost_and_keep_nothing(world: World) -> None:
    """Once approvals are read, a name without any is answered from them: no query, and nothing is kept of it."""
    world.approve(world.program())
    asked: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "FROM approvals" in statement:
            asked.append(statement)

    sa.event.listen(world.store.engine, "before_cursor_execute", count)
    for number in range(50):
        with world.store.write() as change:
            assert change.approvals(f"unknown-{number}") == []
            assert change.approvals("") == []
            assert len(change.approvals()) == len(change.approvals("weights")) == 1
    assert len(asked) == 1


def test_approvals_within_a_change_are_those_that_it_makes(world: World) -> None:
    """A transaction that changes an approval sees its own change, by key and among all."""
    approval = world.approve(world.program())
    with world.store.write() as change:
        assert [item.state for item in change.approvals("weights")] == ["approved"]
        change.change_approval(approval, actor="test", state=REVOKED)
        assert [item.state for item in change.approvals("weights")] == ["revoked"]
        assert [item.state for item in change.approvals()] == ["revoked"]
