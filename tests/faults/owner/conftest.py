"""An owner at her command line and at her dashboard, with manifests that somebody else wrote."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from adyton.cli import main as command_line
from adyton.collateral.store import CollateralStore
from adyton.keystore.approval import Approval, StoredApproval
from adyton.manifest.measure import combine
from adyton.manifest.signed import SignedManifest
from adyton.runtime import identity
from adyton.server.dashboard.serve import DashboardThread, password_of
from tests.support.owner_world import RUNTIME_PARTS, World, make_world

PARTS = {name: digest.hex() for name, digest in RUNTIME_PARTS.items()}


@dataclass
class Desk:
    """Where the owner sits."""

    world: World
    folder: Path
    captured: pytest.CaptureFixture[str]

    def adyton(self, *words: object) -> tuple[int, str, str]:
        """Type a verb: exit status, standard output, standard error."""
        with pytest.raises(SystemExit) as ended:
            command_line.main([*map(str, words)])
        shown = self.captured.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    def handed(self, signed: SignedManifest) -> Path:
        """The file of a manifest that a co-owner handed over, with its signature."""
        path = self.folder / "app.manifest"
        path.write_bytes(signed.manifest_bytes)
        path.with_name("app.sig").write_bytes(signed.sigstruct.to_bytes())
        return path

    def approve(self, signed: SignedManifest, *words: object) -> tuple[int, str, str]:
        """Type `adyton approve` for this program and the key `weights`."""
        return self.adyton("approve", self.handed(signed), "--key", "weights", "--tee", self.world.tee, *words)

    def approvals(self) -> list[StoredApproval]:
        """All that stands in her store."""
        with self.world.store.read() as view:
            return view.approvals()

    def waits(self, signed: SignedManifest, *, known: bool = True) -> None:
        """Let a program wait for her approval, its manifest shown or not."""
        self.world.let_wait(signed.measurement)
        if known:
            with self.world.store.write() as change:
                change.remember(signed.measurement, signed.manifest_bytes, PARTS)

    def recorded(self) -> list[dict[str, Any]]:
        """The policies of the audit record."""
        with self.world.store.read() as view:
            return [json.loads(entry.body)["policy"] for entry in view.entries(kind="policy")]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    """The owner's desk."""
    runtime = identity.RuntimeIdentity(combine(RUNTIME_PARTS), RUNTIME_PARTS)
    monkeypatch.setattr(identity, "runtime_identity", lambda: runtime)
    with make_world(tmp_path) as world:
        monkeypatch.setenv("ADYTON_HOME", str(world.home.path))
        yield Desk(world, tmp_path, capsys)


Post = Callable[..., httpx.Response]


@pytest.fixture
def page(desk: Desk) -> Iterator[httpx.Client]:
    """Her browser, logged in to her dashboard."""
    world = desk.world
    thread = DashboardThread(world.home, world.store, CollateralStore(world.home.collateral_path), "127.0.0.1", 0)
    context = ssl.create_default_context(cadata=world.ca_pem)
    with httpx.Client(base_url=f"https://127.0.0.1:{thread.address[1]}", verify=context, timeout=30) as client:
        assert client.post("/login", data={"password": password_of(world.home).decode()}).status_code == 303
        yield client
    thread.stop()


@pytest.fixture
def post(page: httpx.Client, desk: Desk) -> Post:
    """Sends her forms; `allow` are the boxes that she ticked."""
    found = re.search(r'name="csrf" value="([^"]+)"', page.get("/").text)
    assert found is not None
    csrf = found[1]

    def send(
        path: str, signed: SignedManifest | None = None, allow: tuple[str, ...] = (), **fields: str
    ) -> httpx.Response:
        if signed is not None:
            fields |= {"measurement": signed.measurement.hex(), "tee": desk.world.tee, "key": "weights"}
            fields |= {"app": "x", "version": "1", "guest": ""}
        return page.post(path, data={**fields, "csrf": csrf, "allow": list(allow)})

    return send


def pending(desk: Desk, approval: Approval) -> str:
    """The id of an approval that somebody proposed."""
    with desk.world.store.write() as change:
        return change.add_approval(approval, actor="proposer", state="pending").id
