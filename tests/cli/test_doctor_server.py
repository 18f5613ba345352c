"""`adyton doctor` about an owner's home: each finding, and what makes it a warning."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from adyton.keystore.backup.create import back_up
from adyton.keystore.certificates import Credential, make_server
from adyton.tee.machine import Machine
from adyton.values import Finding
from adyton.workflow.doctor_server import owner
from tests.support.owner_world import World, make_world, now


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An owner's home that `doctor` finds."""
    with make_world(tmp_path) as found:
        monkeypatch.setenv("ADYTON_HOME", str(found.home.path))
        yield found


def findings() -> dict[str, Finding]:
    """What doctor says, by name."""
    return {row.name: row for row in owner(Machine())}


def test_owner_without_a_home_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is no owner's nothing is said."""
    monkeypatch.setenv("ADYTON_HOME", str(tmp_path / "none"))
    assert findings() == {}


def test_owner_sound_home_lacks_only_a_backup(world: World) -> None:
    """A new home is sound, but for the backup that was never made."""
    found = findings()
    assert {row.name for row in found.values() if row.state != "ok"} == {"backup"}
    back_up(world.home, world.store, world.folder / "b", passphrase=b"correct horse", split=None, actor="test")
    assert findings()["backup"].state == "ok"


def test_owner_certificate_that_ends_and_open_secrets_are_warned_of(world: World) -> None:
    """An ending certificate and a secret that others can read are named with what to do."""
    ca = Credential(world.home.ca_path.read_bytes(), world.home.private("ca.key"))
    old = make_server(ca, ("adyton-key-server",), now() + timedelta(hours=1) - timedelta(minutes=59))
    (world.home.path / "server.crt").write_bytes(old.certificate_pem)
    assert findings()["server.crt"].state == "ok"
    (world.home.path / "server.crt").write_bytes(b"nothing")
    (world.home.path / "ca.key").chmod(0o644)
    found = findings()
    assert found["server.crt"].state == "warning"
    assert found["secrets"].state == "warning"
    assert "ca.key" in (found["secrets"].remedy or "")


def test_owner_certificate_near_its_end_is_warned_of(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty days before its end a certificate is a warning."""
    import adyton.workflow.doctor_server as module

    monkeypatch.setattr(module, "SOON_DAYS", 1000)
    found = findings()["server.crt"]
    assert found.state == "warning"
    assert "renew-server" in (found.remedy or "")


def test_owner_store_that_is_gone_is_missing_and_stays_so(world: World) -> None:
    """A lost store is named; looking for it makes no empty one in its place."""
    world.store.close()
    (world.home.path / "store.db").unlink()
    for name in ("store.db-wal", "store.db-shm"):
        (world.home.path / name).unlink(missing_ok=True)
    assert findings()["store"].state == "missing"
    assert not (world.home.path / "store.db").exists()
