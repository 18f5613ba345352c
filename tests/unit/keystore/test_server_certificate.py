"""Renewing the key server's certificate."""

from __future__ import annotations

from adyton.keystore.server_certificate import renew_server_certificate
from tests.support.owner_world import World


def test_renew_server_certificate_keeps_the_ca(world: World) -> None:
    """A renewed certificate stands under the same CA, so manifests stay as they are."""
    before = (world.home.path / "server.crt").read_bytes(), world.home.ca_path.read_bytes()
    renew_server_certificate(world.home, ())
    assert (world.home.path / "server.crt").read_bytes() != before[0]
    assert world.home.ca_path.read_bytes() == before[1]
