"""Statistics of timings: percentiles, and medians of rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pmwal.opening.units import format_ns

time_text = format_ns
"""Nanoseconds as text with a unit."""

Times = npt.NDArray[np.int64]
"""Nanoseconds of each call."""

PERCENTILES = (50.0, 99.0, 99.9, 99.99)
TAIL = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.999)
"""The percentiles in the latency chart."""


@dataclass(frozen=True)
class Latency:
    """Latency of one kind of call in nanoseconds. ``rate`` is calls per second, from the time of the whole loop."""

    calls: int
    rate: float
    p50: float
    p99: float
    p999: float
    p9999: float
    max: float
    tail: tuple[tuple[float, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "tail": [list(point) for point in self.tail]}

    @classmethod
    def of(cls, each: Times | Sequence[int], total_ns: float | None = None) -> Latency:
        """From the time of each call, and of the loop around them if it was measured."""
        times = np.asarray(each, dtype=np.int64)
        if not len(times):
            raise ValueError("no call was timed")
        total = float(times.sum()) if total_ns is None else total_ns
        p50, p99, p999, p9999 = (percentile(times, q) for q in PERCENTILES)
        shown = [q for q in TAIL if q <= 50 or (100 - q) * len(times) >= 100]  # a point needs at least one call above it
        tail = tuple((q, percentile(times, q)) for q in shown)
        return cls(len(times), len(times) / total * 1e9, p50, p99, p999, p9999, float(times.max()), tail)


def percentile(times: Times | Sequence[int], q: float) -> float:
    """The smallest time that at least ``q`` percent of the calls did not exceed: a measured one, never an average of two."""
    values = np.asarray(times, dtype=np.int64)
    index = max(0, math.ceil(round(q * len(values) / 100, 6)) - 1)  # rounded: 99.9 % of 1,000 is 999 in spite of float errors
    return float(np.partition(values, index)[index])


def merge(rounds: Sequence[Times]) -> Times:
    """All calls of all rounds."""
    return np.concatenate([np.asarray(each, dtype=np.int64) for each in rounds])


def median(values: Sequence[float]) -> float:
    """The median of the rounds."""
    return float(statistics.median(values))


def rate_text(per_second: float, what: str = "/s") -> str:
    """A rate as text with a unit, such as 1.23 M/s."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if per_second >= size:
            return f"{per_second / size:.3g} {unit}{what}"
    return f"{per_second:.3g} {what}"
