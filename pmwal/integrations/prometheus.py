"""The counters of logs for Prometheus. Needs prometheus_client: ``pip install 'pmwal[metrics]'``."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from operator import attrgetter

try:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector as _Base
except ImportError as error:
    raise ImportError("pmwal.integrations.prometheus needs prometheus_client: pip install 'pmwal[metrics]'") from error

from pmwal.errors import ForkedWal, WalClosed
from pmwal.latency import LatencyHistogram
from pmwal.records import WalStats
from pmwal.writing.wal import Wal

COUNTERS = {
    "appends": ("appends", "Records stored since the log was opened."),
    "appended_bytes": ("bytes", "Bytes of payload stored since the log was opened."),
    "commits": ("commits", "Commits that made something durable."),
    "barriers": ("barriers", "Barriers: flushes of the medium, or fences."),
    "overwritten": ("overwritten", "Records that were overwritten by newer ones."),
    "dropped": ("dropped", "Records that were refused because the ring was full."),
    "waits": ("waits", "Calls that waited for space in the ring."),
    "errors": ("errors", "1 if the medium has failed and the log takes no more records."),
}
"""Name of each counter without ``pmwal_`` and ``_total`` -> attribute of ``WalStats``, and its help text."""

GAUGES = {
    "capacity_bytes": ("capacity", "Size of the ring."),
    "used_bytes": ("used", "The part of the ring that records occupy."),
    "recovery_seconds": ("recovery.seconds", "How long the last open took to recover the log."),
    "recovery_scanned_bytes": ("recovery.bytes_scanned", "Bytes that the last open read to recover the log."),
    "recovery_records": ("recovery.records", "Records that the last open found."),
    "recovery_dropped_records": ("recovery.dropped_records", "Unfinished records past the end that the last open dropped."),
    "recovery_slots_lost": ("recovery.slots_lost", "Commit slots that the last open found damaged."),
    "recovery_superblocks_lost": ("recovery.superblocks_lost", "Superblock copies that the last open found damaged."),
}
"""Name of each gauge without ``pmwal_`` -> attribute of ``WalStats``, and its help text."""

BUCKETS_NS = (*(digit * 10**power for power in range(2, 10) for digit in (1, 2, 5)), 10**10)
"""Upper bounds of the buckets of ``pmwal_commit_latency_seconds``: 100 ns to 10 s, three in each decade."""


class Collector(_Base):
    """Counters and latencies of any number of open logs, each labelled ``log`` with its path.

    Bytes of a path that are not UTF-8 become ``\\xNN`` in the label. Of several logs with one path the last added is reported.

    Pass all logs of a registry to one collector, or ``add`` them as they are opened. It reads their figures when it is scraped, and
    costs nothing otherwise. It keeps no log open; a log that is closed or dropped is no longer reported.

    Where a barrier is not a system call, the histogram counts one commit in 64: take commit rates from ``pmwal_commits_total``.

    >>> import pmwal
    >>> from prometheus_client import CollectorRegistry
    >>> from pmwal.integrations.prometheus import Collector
    >>> registry = CollectorRegistry()
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     registry.register(Collector(wal))
    ...     seq = wal.append(b"x")
    ...     registry.get_sample_value("pmwal_appends_total", {"log": wal.path})
    1
    """

    def __init__(self, *wals: Wal) -> None:
        self._wals: list[weakref.ref[Wal]] = []
        for wal in wals:
            self.add(wal)

    def add(self, wal: Wal) -> None:
        """Report this log too."""
        self._wals = [known for known in self._wals if _open_log(known) is not None]
        self._wals.append(weakref.ref(wal))

    def collect(self) -> Iterator[Metric]:
        """The metrics of all open logs."""
        logs = list(dict(self._figures()).items())  # Prometheus refuses two samples with one label
        for name, (attribute, text) in COUNTERS.items():
            counter = CounterMetricFamily(f"pmwal_{name}", text, labels=["log"])
            for path, stats in logs:
                counter.add_metric([path], attrgetter(attribute)(stats))
            yield counter
        for name, (attribute, text) in GAUGES.items():
            gauge = GaugeMetricFamily(f"pmwal_{name}", text, labels=["log"])
            for path, stats in logs:
                gauge.add_metric([path], attrgetter(attribute)(stats))
            yield gauge
        info = InfoMetricFamily("pmwal_log", "The medium of a log, and how records are made durable on it.", labels=["log"])
        latency = HistogramMetricFamily(
            "pmwal_commit_latency_seconds", "Time from the start of a commit until it is durable.", labels=["log"]
        )
        for path, stats in logs:
            info.add_metric([path], _facts(stats))
            latency.add_metric([path], _buckets(stats.commit_latency), stats.commit_latency.total_ns / 1e9)
        yield info
        yield latency

    def _figures(self) -> Iterator[tuple[str, WalStats]]:
        """Label and figures of each open log of this process, which in a forked child are not those of its parent."""
        for known in self._wals:
            wal = _open_log(known)
            if wal is None:
                continue
            try:
                stats = wal.stats()
            except (ForkedWal, WalClosed):  # another thread may close it meanwhile
                continue
            yield os.fsencode(wal.path).decode(errors="backslashreplace"), stats


def _open_log(known: weakref.ref[Wal]) -> Wal | None:
    wal = known()
    return None if wal is None or wal.closed else wal


def _facts(stats: WalStats) -> dict[str, str]:
    return {
        "engine": stats.engine,
        "medium": stats.medium,
        "durability": stats.durability,
        "filesystem": stats.filesystem,
        "flush": stats.flush,
        "ordering": stats.ordering,
    }


def _buckets(latency: LatencyHistogram) -> list[tuple[str, float]]:
    """Commits up to each bound in seconds. A duration within 1/128 below a bound may be in the next bucket."""
    counted, bounds = latency.buckets(), []
    for bound in BUCKETS_NS:
        bounds.append((str(bound / 1e9), float(sum(count for longest, count in counted if longest <= bound))))
    return [*bounds, ("+Inf", float(latency.count))]
