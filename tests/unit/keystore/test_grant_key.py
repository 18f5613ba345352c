"""The key that signs grants: made with the home, made again where it is missing, and not without the CA's key."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from adyton.errors import StoreError
from adyton.keystore.grant_key import make_grant_key, open_grant_key
from adyton.keystore.master_rotation import rotate_master_file
from adyton.keystore.sealed_key import AGREEMENT, IN_FORCE_KEY, open_sealed_key
from adyton.values import AGREEMENT_PURPOSE, GRANT_PURPOSE, IN_FORCE_PURPOSE
from adyton.workflow.init import renew_server
from tests.support.owner_world import World, make_world, now
from tests.support.release_by_hand import entries


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An owner."""
    with make_world(tmp_path) as found:
        yield found


def key_of(world: World) -> bytes:
    """The public key that the home's grants are signed by."""
    return open_grant_key(world.home, world.store, actor="test").private.public_key().public_bytes_raw()


def test_grant_key_is_made_with_the_home(world: World) -> None:
    """Under the CA, for grants alone, private, and on record."""
    found = open_grant_key(world.home, world.store, actor="test")
    certificate = x509.load_der_x509_certificate(found.certificate_der)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(world.home.ca_path.read_bytes()))
    purpose = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert ([oid.dotted_string for oid in purpose.value], purpose.critical) == ([GRANT_PURPOSE], True)
    assert (world.home.path / "grant.key").stat().st_mode & 0o777 == 0o600
    assert len(entries(world, "grant-key-made")) == 1
    assert "private" not in repr(found)


@pytest.mark.parametrize("gone", [("grant.key", "grant.crt"), ("grant.key",), ("grant.crt",)])
def test_older_home_gets_a_grant_key(world: World, gone: tuple[str, ...]) -> None:
    """A home of an earlier version, or one where making it was cut short, has one when it is next opened."""
    before = key_of(world)
    for name in gone:
        (world.home.path / name).unlink()
    assert key_of(world) != before
    assert len(entries(world, "grant-key-made")) == 2


def test_grant_key_that_does_not_belong_to_its_certificate_is_made_again(world: World) -> None:
    """A power cut between key and certificate leaves one of each; both are replaced."""
    old = (world.home.path / "grant.crt").read_bytes()
    make_grant_key(world.home, world.store, actor="test")
    (world.home.path / "grant.crt").write_bytes(old)
    assert key_of(world)
    assert len(entries(world, "grant-key-made")) == 3


def test_grant_key_without_the_cas_key_says_what_to_do(world: World) -> None:
    """A server whose CA key lies elsewhere does not start without a grant key."""
    (world.home.path / "ca.key").unlink()
    assert key_of(world)
    (world.home.path / "grant.key").unlink()
    with pytest.raises(StoreError) as caught:
        key_of(world)
    assert "adyton init --renew-server" in str(caught.value.remedy)


def test_grant_key_whose_certificate_has_ended_says_so(world: World) -> None:
    """An ended certificate is not renewed by itself: programs would refuse its grants."""
    with pytest.raises(StoreError, match="no key to sign grants with"):
        open_grant_key(world.home, world.store, actor="test", now=now() + timedelta(days=3000))


def test_grant_key_outlasts_a_new_master_key(world: World) -> None:
    """What seals it does not change with the master key."""
    before = key_of(world)
    rotate_master_file(world.home, world.store, actor="test")
    assert key_of(world) == before
    store = world.home.open_store()
    try:
        again = open_grant_key(world.home, store, actor="test").private
    finally:
        store.close()
    assert again.public_key().public_bytes_raw() == before


def test_keys_of_other_purposes_are_made_and_renewed_with_it(world: World) -> None:
    """The key for agreements and the one for statements: each for its purpose alone, each sealed, each on record."""
    grant = open_grant_key(world.home, world.store, actor="test")
    kept = {}
    for kind, purpose in ((AGREEMENT, AGREEMENT_PURPOSE), (IN_FORCE_KEY, IN_FORCE_PURPOSE)):
        kept[kind] = open_sealed_key(world.home, world.store, kind, actor="test")
        named = x509.load_der_x509_certificate(kept[kind].certificate_der).extensions.get_extension_for_class(
            x509.ExtendedKeyUsage
        )
        assert ([oid.dotted_string for oid in named.value], named.critical) == ([purpose], True)
        again = open_sealed_key(world.home, world.store, kind, actor="test")
        assert again.certificate_der == kept[kind].certificate_der
        assert len(entries(world, f"{kind.name}-key-made")) == 1
    assert len({key.private.private_bytes_raw() for key in (grant, *kept.values())}) == 3
    renew_server(world.home.path)
    for kind, before in kept.items():
        after = open_sealed_key(world.home, world.store, kind, actor="test")
        assert after.certificate_der != before.certificate_der


def test_sealed_key_of_one_purpose_opens_as_no_other(world: World) -> None:
    """Its seal names what it is for, so files that were exchanged sign nothing."""
    open_sealed_key(world.home, world.store, AGREEMENT, actor="test")
    for end in ("crt", "key"):
        (world.home.path / f"in-force.{end}").write_bytes((world.home.path / f"agreement.{end}").read_bytes())
    (world.home.path / "in-force.key").chmod(0o600)
    (world.home.path / "ca.key").rename(world.home.path / "ca.key.away")
    with pytest.raises(StoreError):
        open_sealed_key(world.home, world.store, IN_FORCE_KEY, actor="test")
