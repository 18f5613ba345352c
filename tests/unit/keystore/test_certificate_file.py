"""The owner's certificates are read with a cap, and what is wrong with them is said by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from adyton.errors import StorageFailed, StoreError, UsageError
from adyton.keystore.audit_key import audit_public_key
from adyton.keystore.certificate_file import MAX_CERTIFICATE_BYTES, read_certificate
from adyton.keystore.home import MAX_CONFIG_BYTES, Home

if TYPE_CHECKING:
    from tests.support.owner_world import World


@pytest.mark.parametrize("name", ["ca.crt", "audit.crt"])
def test_certificate_without_end_is_refused(world: World, name: str) -> None:
    """A file that grows is not read into memory whole, and the checkpoint's key cannot be used."""
    with (world.home.path / name).open("ab") as file:
        file.truncate(MAX_CERTIFICATE_BYTES + 1)
    with pytest.raises(StoreError, match=f"{name} is longer than"):
        read_certificate(world.home.path, name)
    with pytest.raises(StoreError, match=r"audit\.crt cannot be used"):
        audit_public_key(world.home.path)


def test_certificate_that_is_not_there_is_told_by_name(world: World) -> None:
    """No exception of the operating system leaves the room."""
    (world.home.path / "ca.crt").unlink()
    with pytest.raises(StorageFailed, match=r"ca\.crt cannot be read"):
        read_certificate(world.home.path, "ca.crt")
    with pytest.raises(StoreError, match=r"audit\.crt cannot be used"):
        audit_public_key(world.home.path)


def test_config_without_end_is_refused(world: World) -> None:
    """config.toml has a bound, and a home without it is none."""
    config = world.home.path / "config.toml"
    with config.open("ab") as file:
        file.truncate(MAX_CONFIG_BYTES + 1)
    with pytest.raises(UsageError, match=r"config\.toml is longer than"):
        Home.open(world.home.path)
    config.unlink()
    with pytest.raises(StorageFailed, match="there is no owner's home at") as raised:
        Home.open(world.home.path)
    assert raised.value.seen == "No such file or directory"
