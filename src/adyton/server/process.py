"""The key server as a process: open the store, listen, report the addresses, and stop gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import ssl
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from adyton import __version__
from adyton.address import address_text, parse_listening_address
from adyton.atomic_file import write_file
from adyton.collateral.background import BackgroundLookup
from adyton.collateral.downloads import Downloads
from adyton.collateral.gpu_verifier import GPUVerifier
from adyton.collateral.lookup import Lookup
from adyton.collateral.store import CollateralStore
from adyton.collateral.verifier import Verifier
from adyton.keyserver.service import KeyService
from adyton.keystore.audit_key import audit_certificates, audit_private_key
from adyton.keystore.certificate_file import read_certificate
from adyton.keystore.clock import now_ms
from adyton.keystore.grant_key import open_grant_key
from adyton.release.messages import ServerIdentity
from adyton.release.tls import server_context
from adyton.server.checkpoints import Checkpoints
from adyton.server.listener import Limits
from adyton.server.protocols import KeyServer
from adyton.values import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from adyton.keystore.home import Home
    from adyton.keystore.store import Store
    from adyton.server.dashboard.serve import DashboardThread
    from adyton.server.metrics import Metrics

log = logging.getLogger("adyton.keyserver")

GRACE_S: Final = 10
SWITCH_INTERVAL_S: Final = 0.001
"""How long the decision thread may hold the interpreter while the sockets' thread waits."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses to listen on, each `HOST:PORT`. None is off."""

    adyton: str | None
    ra_tls: str | None
    dashboard: str | None
    metrics: str | None = None


class JSONLines(logging.Formatter):
    """Log records as JSON, one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One record: time, level, event, and the members of `extra`."""
        document = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


class TextLines(logging.Formatter):
    """Log records as text for people."""

    def format(self, record: logging.LogRecord) -> str:
        """One record: time, level, event, and the members of `extra`."""
        extra = " ".join(f"{name}={value}" for name, value in _extra(record).items())
        moment = datetime.fromtimestamp(record.created, UTC)
        line = f"{moment:%H:%M:%S} {record.levelname.lower():<7} {record.getMessage()} {extra}".rstrip()
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


_PLAIN: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN}


def set_up_logging(*, json_logs: bool) -> None:
    """Send the log of the key server and of its HTTP libraries to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines() if json_logs else TextLines())
    for name, level in (("adyton", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def server_identity(home: Home) -> ServerIdentity:
    """What evidence for this key server is bound to."""
    der = ssl.PEM_cert_to_DER_cert(read_certificate(home.path, "ca.crt").decode("ascii"))
    return ServerIdentity(Digest(hashlib.sha256(der).digest()), home.config.server_names[0])


def run(
    home: Home,
    addresses: Addresses,
    *,
    combine: Callable[[Mapping[str, Digest]], Digest],
    collateral: Path | None = None,
    online: bool = False,
    ready_file: Path | None = None,
    listening: Callable[[Mapping[str, str], Callable[[], object]], object] = lambda _addresses, _stop: None,
) -> None:
    """Serve until SIGTERM, SIGINT or a call of `stop`. Then finish running requests and return.

    `listening` is called once all protocols listen, with the address of each and `stop`, which any thread may call.
    Signals are handled only in the main thread.
    """
    _no_core_files()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    store = home.open_store()
    try:
        home.check_not_older(store)
        collateral_store = CollateralStore(collateral or home.collateral_path)
        lookup = BackgroundLookup.create(Downloads(collateral_store)) if online else Lookup(collateral_store)
        metrics = None
        if addresses.metrics is not None:
            from adyton.server.metrics import Metrics

            metrics = Metrics()
        service = KeyService(
            store,
            Verifier(lookup),
            server_identity(home),
            audit_private_key(home.path),
            open_grant_key(home, store, actor="adyton serve"),
            combine=combine,
            audit_certificates=audit_certificates(home.path),
            verify_devices=GPUVerifier(collateral_store).verify,
            challenge_lifetime_s=home.limit("challenge_lifetime_s"),
            on_decision=None if metrics is None else metrics.observe,
        )
        try:
            asyncio.run(_serve(home, service, addresses, ready_file, collateral_store, metrics, listening))
        finally:
            service.close()
            _note(store, "stopped")
            home.keep_checkpoint(service.checkpoint())
    finally:
        store.close()


def certificate_end(home: Home) -> datetime:
    """The end of the key server's certificate."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(read_certificate(home.path, "server.crt")).not_valid_after_utc


def _no_core_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))


async def _serve(
    home: Home,
    service: KeyService,
    addresses: Addresses,
    ready_file: Path | None,
    collateral: CollateralStore,
    metrics: Metrics | None,
    listening: Callable[[Mapping[str, str], Callable[[], object]], object],
) -> None:
    limits = Limits(
        max_connections=home.limit("max_connections"),
        max_active=home.limit("max_active"),
        max_per_address=home.limit("max_per_address"),
        first_byte_timeout_s=home.limit("first_byte_timeout_s"),
        handshake_timeout_s=home.limit("handshake_timeout_s"),
        request_timeout_s=home.limit("request_timeout_s"),
        idle_timeout_s=home.limit("idle_timeout_s"),
        max_active_per_address=home.limit("max_active_per_address"),
        connection_timeout_s=home.limit("connection_timeout_s"),
    )
    server = KeyServer(service, limits)
    checkpoints = Checkpoints(home, service)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    certificate, key = home.path / "server.crt", home.path / "server.key"
    home.private("server.key")
    found: dict[str, str] = {}
    dashboard: DashboardThread | None = None
    try:
        if addresses.adyton is not None:
            context = server_context(certificate, key, client_certificate=False)
            found["adyton"] = address_text(
                server.listen_adyton(*parse_listening_address(addresses.adyton), context).address
            )
        if addresses.ra_tls is not None:
            context = server_context(certificate, key, client_certificate=True)
            found["ra-tls"] = address_text(
                server.listen_ra_tls(*parse_listening_address(addresses.ra_tls), context).address
            )
        if addresses.dashboard is not None:
            from adyton.server.dashboard.serve import DashboardThread

            dashboard = DashboardThread(home, service.store, collateral, *parse_listening_address(addresses.dashboard))
            found["dashboard"] = address_text(dashboard.address)
        if metrics is not None and addresses.metrics is not None:
            from adyton.server.metrics import Watched

            metrics.watch(Watched(server, certificate_end(home), checkpoints, collateral))
            found["metrics"] = address_text(metrics.listen(*parse_listening_address(addresses.metrics)))
        listening(found, lambda: loop.call_soon_threadsafe(stop.set))
        if ready_file is not None:
            _write_ready(ready_file, {**found, "pid": os.getpid()})
        _note(service.store, "started", listening=found)
        keeper = asyncio.create_task(checkpoints.run())
        await stop.wait()
        log.info("stopping", extra={"open": server.counters.open})
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
    finally:
        await server.stop(GRACE_S)
        if dashboard is not None:
            await asyncio.to_thread(dashboard.stop)
        if metrics is not None:
            await asyncio.to_thread(metrics.stop)
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)


def _note(store: Store, what: str, **facts: object) -> None:
    """Record that the server started or stopped."""
    with store.write() as change:
        change.record("server", "", {"what": what, "version": __version__, **facts}, now_ms())


def _write_ready(path: Path, document: Mapping[str, object]) -> None:
    write_file(path, json.dumps(document).encode() + b"\n")
