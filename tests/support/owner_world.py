"""A small world for the key server's tests: an owner, a simulated platform, a signed program, a running server."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from adyton.attest.collateral import AMDCollateral, Collateral
from adyton.attest.sgx import SGXQuote
from adyton.attest.snp import SNPReport
from adyton.attest.tdx import TDXQuote
from adyton.collateral.verifier import Verifier
from adyton.errors import FetchFailed
from adyton.keyserver.service import KeyService
from adyton.keystore.approval import Approval
from adyton.keystore.audit_facts import DENIAL, WAITS, waiting
from adyton.keystore.audit_key import audit_certificates, audit_private_key
from adyton.keystore.grant_key import open_grant_key
from adyton.keystore.home import Home
from adyton.keystore.new_home import init_home
from adyton.keystore.store import Store
from adyton.keystore.tables.keys import KEY
from adyton.manifest.measure import combine, workload_measurement
from adyton.manifest.model import parse_manifest
from adyton.manifest.signed import SignedManifest, load_signed, signed_attributes
from adyton.manifest.sigstruct import generate_signer, load_signer, sign
from adyton.release.tls import server_context
from adyton.server.listener import Limits
from adyton.server.process import server_identity
from adyton.server.protocols import KeyServer
from adyton.sim.chip import SimEnclave, simulated_guest
from adyton.sim.platform import SimPlatform
from adyton.values import Digest, Measurement

RUNTIME_PARTS: Mapping[str, Digest] = {
    "adyton": Digest(hashlib.sha256(b"this Adyton").digest()),
    "python": Digest(hashlib.sha256(b"this Python").digest()),
}

RA_TLS = "[adyton]\ninsecure__ra_tls = true\n"
"""Tables of a program that may ask for its keys over RA-TLS."""


@cache
def signer_pem() -> bytes:
    """One signing key for all tests of a process: making one takes a while."""
    return generate_signer()


class FixedCollateral:
    """The present collateral of simulated platforms. Counts the requests."""

    def __init__(self, *platforms: SimPlatform) -> None:
        self._platforms = {platform.root_fingerprint: platform for platform in platforms}
        self._made: dict[tuple[str, Any], Collateral] = {}

    def for_quote(self, quote: SGXQuote | TDXQuote, now: datetime) -> Collateral:
        """The collateral of the first platform (all have the same kind of machine)."""
        for platform in self._platforms.values():
            tee = "sgx" if isinstance(quote, SGXQuote) else "tdx"
            key = (tee, platform.publication().evaluation_number)
            if key not in self._made:
                self._made[key] = platform.collateral(now, tee="sgx" if tee == "sgx" else "tdx")
            return self._made[key]
        raise FetchFailed("no collateral")

    def for_report(self, _report: SNPReport, _now: datetime) -> AMDCollateral:
        """There is no simulated SEV-SNP."""
        raise FetchFailed("no certificates")


@dataclass
class World:
    """An owner with a key named `weights`, a platform, and a signed program."""

    folder: Path
    home: Home
    store: Store
    platform: SimPlatform
    collateral: FixedCollateral

    @property
    def tee(self) -> str:
        """The platform as a policy names it."""
        return f"sim:{self.platform.root_fingerprint}"

    @property
    def ca_pem(self) -> str:
        """The owner's CA."""
        return self.home.ca_path.read_text()

    def program(
        self,
        *,
        argument: str = "classify.py",
        parts: Mapping[str, Digest] = RUNTIME_PARTS,
        keys: tuple[str, ...] = ("weights",),
        extra: str = "",
        tables: str = "",
        ca_pem: str | None = None,
        debug: bool = False,
        isv_svn: int = 0,
    ) -> SignedManifest:
        """A program of this owner: one argument and its keys are what can differ."""
        mounts = "".join(
            f'\n[[fs.mounts]]\ntype = "encrypted"\npath = "/{name}"\nuri = "file:{name}"\nkey_name = "{name}"\n'
            for name in keys
        )
        text = (
            f'libos.entrypoint = "/usr/bin/python3"\nloader.argv = ["python3", "{argument}"]\n{extra}\n'
            f"sgx.debug = {str(debug).lower()}\nsgx.isvsvn = {isv_svn}\n"
            f"[adyton.owners.alice]\nca = '''{self.ca_pem if ca_pem is None else ca_pem}'''\n{tables}{mounts}"
            f'\n[[sgx.trusted_files]]\nuri = "file:classify.py"\nsha256 = "{"ab" * 32}"\n\n'
        )
        raw = text.encode()
        manifest = parse_manifest(text)
        runtime = combine(parts)
        sigstruct = sign(
            workload_measurement(raw, runtime),
            load_signer(signer_pem()),
            attributes=signed_attributes(manifest),
            isv_prod_id=manifest.sgx.isv_prod_id,
            isv_svn=manifest.sgx.isv_svn,
        )
        return load_signed(raw, sigstruct.to_bytes(), runtime)

    def enclave(
        self, signed: SignedManifest, *, platform: SimPlatform | None = None, tdx: bool = False, **changes: Any
    ) -> SimEnclave:
        """The program as the simulated hardware reports it."""
        values: dict[str, Any] = {
            "measurement": signed.measurement,
            "mrsigner": signed.mrsigner.raw,
            "isv_prod_id": signed.manifest.sgx.isv_prod_id,
            "isv_svn": signed.manifest.sgx.isv_svn,
            "debug": signed.manifest.sgx.debug,
            **changes,
        }
        return (platform or self.platform).enclave(**values, shape="tdx" if tdx else "sgx")

    def approval(self, measurement: Measurement | None, /, **changes: Any) -> Approval:
        """An approval of this measurement for `weights` on this platform."""
        values: dict[str, Any] = {
            "key": "weights",
            "app": "classify",
            "version": "v1",
            "tees": (self.tee,),
            "measurement": measurement,
            **changes,
        }
        if any(tee.startswith("sim-tdx:") for tee in values["tees"]):
            values.setdefault("guest_images", (simulated_guest(),))
        return Approval(**values)

    def approve(self, signed: SignedManifest, **changes: Any) -> str:
        """Approve a program, and store its manifest. Returns the approval's id."""
        with self.store.write() as change:
            stored = change.add_approval(self.approval(signed.measurement, **changes), actor="test")
            parts = {name: digest.hex() for name, digest in RUNTIME_PARTS.items()}
            change.remember(signed.measurement, signed.manifest_bytes, parts)
        return stored.id

    def service(self, *, verifier: Verifier | None = None, **changes: Any) -> KeyService:
        """The key server's decisions over this owner's store."""
        return KeyService(
            self.store,
            verifier or Verifier(self.collateral),
            server_identity(self.home),
            audit_private_key(self.home.path),
            open_grant_key(self.home, self.store, actor="test"),
            combine=combine,
            **{"audit_certificates": audit_certificates(self.home.path), **changes},
        )

    def let_wait(self, measurement: Measurement, *, denial: str = "d-1", at_ms: int = 1, tee: str = "") -> None:
        """Let a program wait for approval, as after a refusal."""
        tee = tee or self.tee
        body = {"denial": denial, "told": {"message": "not approved"}, "peer": "p", "names": ["weights"], "tee": tee}
        body["measurement"] = "ab" * 48 if tee.startswith(("tdx", "sim-tdx")) else measurement.hex()
        with self.store.write() as change:
            change.record(DENIAL, denial, {**body, WAITS: waiting(measurement, tee, "weights")}, at_ms)

    def kinds(self) -> list[str]:
        """The kinds of all audit entries, in order."""
        with self.store.read() as view:
            return [entry.kind for entry in view.entries()]


@contextmanager
def make_world(folder: Path, *, store_url: str = "", key: bytes = bytes(range(16))) -> Iterator[World]:
    """Make an owner's home and a platform below `folder`."""
    home = init_home(
        folder / "owner",
        name="alice",
        server_names=("adyton-key-server", "localhost", "127.0.0.1"),
        signer_pem=signer_pem(),
        store_url=store_url,
    )
    platform = SimPlatform.create(folder / "platform")
    store = home.open_store()
    with store.write() as change:
        change.add_key("weights", key, KEY, actor="test")
    try:
        yield World(folder, home, store, platform, FixedCollateral(platform))
    finally:
        store.close()


@dataclass
class Running:
    """A key server that runs in a thread of this process."""

    server: KeyServer
    adyton: str
    ra_tls: str
    loop: asyncio.AbstractEventLoop


@contextmanager
def running(world: World, *, limits: Limits | None = None, service: KeyService | None = None) -> Iterator[Running]:
    """Run a key server on free ports of 127.0.0.1 until the block ends."""
    own = service or world.service()
    started = threading.Event()
    found: list[Running] = []
    failures: list[BaseException] = []
    stop: asyncio.Event | None = None

    async def work() -> None:
        nonlocal stop
        stop = asyncio.Event()
        server = KeyServer(own, limits or Limits())
        certificate, key = world.home.path / "server.crt", world.home.path / "server.key"
        plain = server.listen_adyton("127.0.0.1", 0, server_context(certificate, key, client_certificate=False))
        mutual = server.listen_ra_tls("127.0.0.1", 0, server_context(certificate, key, client_certificate=True))
        addresses = [f"{item.address[0]}:{item.address[1]}" for item in (plain, mutual)]
        found.append(Running(server, addresses[0], addresses[1], asyncio.get_running_loop()))
        started.set()
        await stop.wait()
        await server.stop(5)

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            failures.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(20)
    if failures:
        raise failures[0]
    try:
        yield found[0]
    finally:
        if stop is not None:
            found[0].loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        own.close()


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)
