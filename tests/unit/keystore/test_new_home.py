"""A new home: private files, made once."""

from __future__ import annotations

import stat

import pytest

from adyton.errors import UsageError
from adyton.keystore.audit_key import audit_public_key
from adyton.keystore.new_home import init_home
from tests.support.owner_world import World, signer_pem


def test_init_home_makes_private_files_only_the_owner_reads(world: World) -> None:
    """Everything secret is 0600 in a folder of 0700, and certificates verify under the CA."""
    assert stat.S_IMODE(world.home.path.stat().st_mode) == 0o700
    for name in ("ca.key", "server.key", "audit.key", "signer.pem", "master.key", "store.db"):
        assert stat.S_IMODE((world.home.path / name).stat().st_mode) == 0o600, name
    audit_public_key(world.home.path)


def test_init_home_twice_is_refused(world: World) -> None:
    """A home is never overwritten."""
    with pytest.raises(UsageError, match="already"):
        init_home(world.home.path, name="mallory", server_names=("x",), signer_pem=signer_pem())
