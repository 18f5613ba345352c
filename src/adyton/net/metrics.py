"""What Prometheus reads: requests, decisions and their duration, connections, the audit record, certificates."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from adyton.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.metrics_core import Metric

    from adyton.net.server import KeyServer

BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The key server's metrics; `observe` is called for every decision."""

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
        """A decision: granted, denied or failed."""
        self._decisions.labels(outcome).observe(seconds)

    def watch(self, server: KeyServer, certificate_ends: datetime) -> None:
        """Show the server's counters, too."""
        self.registry.register(_ServerCollector(server, certificate_ends))

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Serve /metrics over plain HTTP; returns the real address."""
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
    def __init__(self, server: KeyServer, certificate_ends: datetime) -> None:
        self._server = server
        self._certificate_ends = certificate_ends

    def collect(self) -> Iterator[Metric]:
        """All counters as they are now."""
        counters = self._server.counters
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
        with self._server.service.store.read() as view:
            head = view.head()
        yield CounterMetricFamily("adyton_audit_entries", "Entries of the audit record.", head.seq)
        ends = self._certificate_ends.timestamp()
        yield GaugeMetricFamily("adyton_server_certificate_end_seconds", "When the server's certificate ends.", ends)
