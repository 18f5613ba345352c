"""Metrics for Prometheus: requests, decisions and their duration, connections, the audit record, dates of expiry."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from adyton.errors import Error, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.metrics_core import Metric

    from adyton.collateral.store import CollateralStore
    from adyton.server.checkpoints import Checkpoints
    from adyton.server.protocols import KeyServer

BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


@dataclass(frozen=True, slots=True)
class Watched:
    """A running server and the things it depends on."""

    server: KeyServer
    certificate_ends: datetime
    checkpoints: Checkpoints
    collateral: CollateralStore


class Metrics:
    """The key server's metrics. `observe` is called for every decision."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._decisions = Histogram(
            "adyton_decision_seconds",
            "Time from taking a request to its durable decision.",
            ("outcome",),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._http: tuple[WSGIServer, threading.Thread] | None = None

    def observe(self, outcome: str, seconds: float) -> None:
        """Count a decision: granted, denied or failed."""
        self._decisions.labels(outcome).observe(seconds)

    def watch(self, watched: Watched) -> None:
        """Add the metrics of this server and of the things it depends on."""
        self.registry.register(_ServerCollector(watched))

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Serve /metrics over plain HTTP. Returns the real address."""
        try:
            httpd, thread = start_http_server(port, host, self.registry)
        except (OSError, OverflowError) as error:
            raise Unavailable(f"cannot listen on {host}:{port}: {error}", check="--metrics") from error
        self._http = (httpd, thread)
        return str(httpd.server_address[0]), int(httpd.server_port)

    def stop(self) -> None:
        """Stop serving."""
        if self._http is not None:
            httpd, thread = self._http
            httpd.shutdown()
            httpd.server_close()
            thread.join(5)


class _ServerCollector:
    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def collect(self) -> Iterator[Metric]:
        """The current metrics. A value that cannot be read is left out, and then the server is not ready."""
        counters = self._watched.server.counters
        yield GaugeMetricFamily("adyton_connections", "Connections that are open.", counters.open)
        yield GaugeMetricFamily("adyton_connections_active", "Connections whose TLS has begun.", counters.active)
        yield CounterMetricFamily("adyton_connections_accepted", "Connections taken.", counters.accepted)
        for name, text, counter, label in (
            ("adyton_connections_rejected", "Connections turned away at once.", counters.rejected, "why"),
            ("adyton_connections_closed", "Connections that ended.", counters.closed, "how"),
            ("adyton_requests", "Requests.", counters.requests, "kind"),
        ):
            family = CounterMetricFamily(name, text, labels=[label])
            for value, count in list(counter.items()):
                family.add_metric([value], count)
            yield family
        service = self._watched.server.service
        yield GaugeMetricFamily("adyton_requests_waiting", "Requests that wait for their decision.", service.waiting)
        yield GaugeMetricFamily("adyton_ready", "Whether keys can be released.", float(service.is_ready()))
        yield from self._recorded()
        yield from self._ends()

    def _recorded(self) -> Iterator[Metric]:
        try:
            with self._watched.server.service.store.read() as view:
                head, backups = view.head(), view.newest_entries(1, kinds=("backup",))
        except Error:
            return
        yield CounterMetricFamily("adyton_audit_entries", "Entries of the audit record.", head.seq)
        for backup in backups:
            at_s = backup.at_ms / 1000
            yield GaugeMetricFamily("adyton_backup_time_seconds", "When the last backup was made.", at_s)
        kept_at = self._watched.checkpoints.kept_at
        if kept_at is not None:
            text = "When the checkpoint beside the store was last known to be the newest."
            yield GaugeMetricFamily("adyton_checkpoint_time_seconds", text, kept_at)

    def _ends(self) -> Iterator[Metric]:
        ends = self._watched.certificate_ends.timestamp()
        yield GaugeMetricFamily("adyton_server_certificate_end_seconds", "When the server's certificate ends.", ends)
        try:
            held = [item.verified.expires_at for item in self._watched.collateral.held() if item.verified is not None]
        except Error:
            return
        if held:
            first = min(held).timestamp()
            yield GaugeMetricFamily("adyton_collateral_end_seconds", "When the first of the collateral expires.", first)
