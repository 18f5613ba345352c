"""A run's receipt without a run: the maker of the keeper over files and keys of a test, and a real key server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from adyton.attest.devices import NO_DEVICES
from adyton.attest.roots import TrustRoots
from adyton.manifest.signed import SignedManifest
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.receipt.document import Receipt, parse_receipt
from adyton.receipt.statement import given_by_host
from adyton.release.client import obtain_keys
from adyton.runtime.receipt_maker import Concluded, MountStates, Predecessor, ReceiptMaker
from adyton.values import Key128
from tests.support.owner_world import Running, World, make_world, running

KEY = Key128(bytes(range(16)))
LIMITS = {
    "network": "none",
    "stdin": False,
    "stdio": False,
    "allowed_files": 0,
    "names_from_host": False,
    "gpus": 0,
    "clock": "host",
    "nondeterminism": "not controlled",
}


@dataclass
class Made:
    """A receipt, what it was made of, and what the maker noted."""

    raw: bytes
    notes: list[str]

    @property
    def receipt(self) -> Receipt:
        """As parsed."""
        return parse_receipt(self.raw)


@dataclass
class ReceiptWorld:
    """An owner with her key server, and a program that she approved."""

    world: World
    server: Running
    signed: SignedManifest
    folder: Path
    others: Mapping[str, str] = field(default_factory=dict)
    """Addresses of further owners' key servers."""

    @property
    def roots(self) -> TrustRoots:
        """The roots by which receipts of this world verify."""
        return TrustRoots().with_sim((self.world.platform.root_fingerprint,))

    def protected(self, path: str, content: bytes) -> tuple[str, bytes]:
        """A protected file in the folder. Returns its path and its root."""
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with ProtectedFile.create(OSFile(place, create=True), KEY, path=path) as file:
            file.write_at(0, content)
            file.flush()
            return path, file.root

    def make(
        self,
        *,
        taken: Sequence[tuple[str, bytes]] = (),
        made: Sequence[tuple[str, bytes]] = (),
        after: Sequence[Predecessor] = (),
        servers: Mapping[str, str] | None = None,
        plaintext: bool = False,
    ) -> Made:
        """The receipt of a run that took and made these files."""
        source = self.world.enclave(self.signed)
        where = {"alice": self.server.adyton, **self.others}
        maker = ReceiptMaker(
            self.signed,
            source,
            where if servers is None else servers,
            limits=LIMITS,
            devices=NO_DEVICES,
            given_by_host=given_by_host((), {}),
            plaintext=plaintext,
            predecessors=after,
        )
        key = maker.begin()
        released = obtain_keys(self.signed, source, where, run_key=key, timeout_s=10)
        maker.released(released)
        notes: list[str] = []
        before = os.getcwd()
        os.chdir(self.folder)
        try:
            raw = maker.conclude(
                Concluded(0, [MountStates("data", "weights", taken, made)], dict(released.keys)),
                notes.append,
                reading=nullcontext(),
                progress=lambda: None,
            )
        finally:
            os.chdir(before)
        return Made(raw, notes)


@contextmanager
def receipt_world(folder: Path) -> Iterator[ReceiptWorld]:
    """Make one below `folder`."""
    with make_world(folder) as world:
        signed = world.program()
        world.approve(signed)
        with running(world) as server:
            yield ReceiptWorld(world, server, signed, folder)
