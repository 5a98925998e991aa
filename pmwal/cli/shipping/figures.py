"""What was shipped, and what was not, as figures for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from pmwal.cli.exposition import Figures
from pmwal.ship import Progress
from pmwal.ship.otlp import OtlpProgress

GAUGES = {
    "acknowledged_seq": ("acknowledged", "Number of the last record that the stream has acknowledged."),
    "lag_records": ("lag_records", "Records that the stream has not acknowledged."),
    "lag_seconds": ("lag_seconds", "Age of the oldest record that the stream has not acknowledged."),
}
"""Name of each gauge without ``pmwal_ship_`` -> field of ``Progress``, and its help text."""

COUNTERS = {
    "records": ("records", "Records that the stream has acknowledged since the start."),
    "bytes": ("bytes", "Bytes of these records, with 14 bytes before each."),
    "frames": ("frames", "Messages that the stream has acknowledged since the start."),
    "retries": ("retries", "Times that shipping was begun again: no answer, a refusal, no room."),
    "gaps": ("gaps", "Records that were gone before they were shipped."),
    "rollbacks": ("rollbacks", "Rollbacks that the stream was told of."),
}
"""Name of each counter without ``pmwal_ship_`` and ``_total`` -> field of ``Progress``, and its help text."""

OTLP_GAUGES = {
    "acknowledged_seq": ("acknowledged", "Number of the last record that the collector has taken; 0 for several logs."),
    "lag_records": ("lag_records", "Records that the collector has not taken."),
    "lag_seconds": ("lag_seconds", "Age of the oldest record that the collector has not taken."),
}
"""The gauges of shipping to a collector: fields of ``OtlpProgress``."""

OTLP_COUNTERS = {
    "records": ("records", "Records that the collector has taken since the start."),
    "bytes": ("bytes", "Bytes of these records."),
    "requests": ("requests", "Requests that succeeded since the start."),
    "retries": ("retries", "Times that a request failed and was sent again."),
    "gaps": ("gaps", "Records that were gone before they were shipped."),
    "rejected": ("rejected", "Records that the collector has taken and rejected."),
}
"""The counters of shipping to a collector."""


class ShippedLogs(Figures):
    """The progress of each log, labelled ``log`` with its path, in which bytes that are not UTF-8 become ``\\xNN``."""

    def __init__(
        self,
        progress: Callable[[], Mapping[str, Progress] | Mapping[str, OtlpProgress]],
        problems: Callable[[], Mapping[str, object]],
        *,
        otlp: bool = False,
    ) -> None:
        self._progress = progress
        self._problems = problems
        self._gauges = OTLP_GAUGES if otlp else GAUGES
        self._counters = OTLP_COUNTERS if otlp else COUNTERS

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        progress, problems = self._progress(), self._problems()
        for name, (field, text) in self._gauges.items():
            gauge = GaugeMetricFamily(f"pmwal_ship_{name}", text, labels=["log"])
            for path, each in progress.items():
                gauge.add_metric([_label(path)], float(getattr(each, field)))
            yield gauge
        for name, (field, text) in self._counters.items():
            counter = CounterMetricFamily(f"pmwal_ship_{name}", text, labels=["log"])
            for path, each in progress.items():
                counter.add_metric([_label(path)], float(getattr(each, field)))
            yield counter
        stopped = GaugeMetricFamily("pmwal_ship_stopped", "1 if the log is not shipped at the moment.", labels=["log"])
        for path in sorted(progress.keys() | problems.keys()):
            stopped.add_metric([_label(path)], float(path in problems))
        yield stopped


def _label(path: str) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")
