"""``/metrics``: the logs' live pages, and this server, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from pmwal.cli.exposition import Figures
from pmwal.cli.serving.live import Page, Watch
from pmwal.integrations.prometheus import BUCKETS_NS
from pmwal.latency import LiveLatency


class ServedLogs(Figures):
    """The figures of each log, labelled ``log`` with its name, and of the server. They are read when it is scraped."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.clients = 0
        self.dropped = 0

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        pages = self._watch.pages()
        yield _gauge("pmwal_writer_running", "1 if a process has the log open for writing.", pages, lambda page: page.alive)
        yield _gauge("pmwal_capacity_bytes", "Size of the ring.", pages, lambda page: page.capacity)
        yield _gauge("pmwal_used_bytes", "The part of the ring that records occupy.", pages, _used)
        yield _gauge("pmwal_first_seq", "Number of the oldest record.", pages, lambda page: page.tail.next_seq)
        yield _gauge("pmwal_last_seq", "Number of the newest record.", pages, lambda page: page.stored.next_seq - 1)
        yield _gauge("pmwal_durable_seq", "Number of the newest durable record.", pages, lambda page: page.durable.next_seq - 1)
        latency = HistogramMetricFamily(
            "pmwal_commit_latency_seconds", "Commits timed since the writer opened the log, by their time.", labels=["log"]
        )
        for page in pages:
            if page.latency is not None:
                latency.add_metric([page.name], _buckets(page.latency), None)
        yield latency
        clients = GaugeMetricFamily("pmwal_serve_clients", "Requests for entries that this server is answering.", self.clients)
        dropped = CounterMetricFamily("pmwal_serve_dropped", "Entries that clients were too slow for.", self.dropped)
        yield from (clients, dropped)


def _gauge(name: str, text: str, pages: list[Page], value: Callable[[Page], float]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=["log"])
    for page in pages:
        gauge.add_metric([page.name], float(value(page)))
    return gauge


def _used(page: Page) -> int:
    return min(page.stored.position - page.tail.position, page.capacity)


def _buckets(latency: LiveLatency) -> list[tuple[str, float]]:
    """Commits up to each bound in seconds. A duration within 1/8 below a bound may be in the next bucket."""
    counted = latency.buckets()
    bounds = [(str(bound / 1e9), float(sum(count for longest, count in counted if longest <= bound))) for bound in BUCKETS_NS]
    return [*bounds, ("+Inf", float(sum(count for _, count in counted)))]
