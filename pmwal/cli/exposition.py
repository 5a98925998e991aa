"""Figures of logs in the text format of Prometheus. Needs prometheus_client."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Figures(Collector):
    """Figures that are read when they are asked for. ``collect`` gives them."""

    def text(self) -> bytes:
        """All of them as text."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return bytes(generate_latest(registry))

    def describe(self) -> list[Metric]:
        """Nothing: the logs are looked at when the figures are asked for only."""
        return []
