"""Commit latencies: counters in the layout of HdrHistogram, and the figures computed from them.

Counter ``b * half + (ns >> b)`` counts durations of ``ns``, where ``b`` is the smallest for which ``ns >> b`` is below
``2 * half``. Durations below ``2 * half`` ns are exact, longer ones within 1/half of the duration, up to 137 seconds. A handle
counts with a ``half`` of 128, as an HdrHistogram with two significant digits from 1 to ``NS_MAX``. The live page has space for a
``half`` of 8. The native engine counts in C, with the same constants.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import sub
from typing import Any

NS_MAX = (1 << 37) - 1
"""A longer duration is counted as this one; ``total_ns`` and ``max_ns`` are not limited."""

SAMPLE_STEP = 64
"""Where a barrier is not a system call, one commit in SAMPLE_STEP is timed: reading the clock twice adds a fifth to its cost."""

_WRAP = 1 << 32  # the counters of the live page count modulo this

assert SAMPLE_STEP & (SAMPLE_STEP - 1) == 0
assert array("Q").itemsize == 8
assert array("I").itemsize == 4


@dataclass(frozen=True, slots=True)
class Scale:
    """The durations that each counter counts. ``half``: counters per doubling of the duration, a power of two."""

    half: int

    @property
    def counters(self) -> int:
        """Number of counters."""
        return (NS_MAX.bit_length() - self.half.bit_length() + 2) * self.half

    def counter_of(self, ns: int) -> int:
        """Index of the counter for this duration.

        >>> [FINE.counter_of(ns) for ns in (255, 256, 257, 258, 1 << 60)], COARSE.counter_of(257)
        ([255, 256, 256, 257, 3967], 48)
        """
        ns = min(max(ns, 0), NS_MAX)
        shift = max(ns.bit_length() - self.half.bit_length(), 0)
        return shift * self.half + (ns >> shift)

    def longest_in(self, counter: int) -> int:
        """The longest duration in ns that this counter counts.

        >>> FINE.longest_in(255), FINE.longest_in(256), FINE.longest_in(FINE.counters - 1) == NS_MAX, COARSE.longest_in(48)
        (255, 257, True, 287)
        """
        shift = max(counter // self.half - 1, 0)
        return ((counter - shift * self.half + 1) << shift) - 1

    def percentile(self, counts: Sequence[int], percent: float) -> int:
        """The duration in ns that this percentage of the counted ones does not exceed, rounded up to the longest of its counter.

        0 if nothing was counted. ``percent``: 0 to 100, else ``ValueError``.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"a percentile must be from 0 to 100, not {percent!r}")
        summed = list(accumulate(counts))
        if not summed or not summed[-1]:
            return 0
        wanted = max(1, math.ceil(percent / 100 * summed[-1] - 1e-9))
        return self.longest_in(bisect_left(summed, wanted))


FINE = Scale(128)
"""The scale of a handle."""

COARSE = Scale(8)
"""The scale of the live page."""


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """Commit latencies of a handle in ns: from the start of a commit until everything in it is durable.

    Calls that share a commit count once. Waiting for the interpreter while other threads compute is included. On memory and DAX a
    durable ``append`` stores and commits in one step, and both are timed. Failed commits are not counted.

    One commit in ``step`` is timed: 1 on a disk, 64 where a barrier is not a system call. ``max_ns`` is the longest that was timed.
    Percentiles are at most 1/128 too high, never too low. Every figure is 0 until a commit was timed.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB", medium="file") as wal:
    ...     seq = wal.append(b"x")
    ...     before = wal.stats().commit_latency
    ...     first, last = wal.append(b"y"), wal.append(b"z")
    ...     latency = wal.stats().commit_latency
    >>> latency.count, latency.since(before).count, latency.step
    (3, 2, 1)
    >>> 0 < latency.p50 <= latency.p99 <= latency.p999 <= latency.max_ns <= latency.total_ns
    True
    """

    counters: bytes = b""
    total_ns: int = 0
    max_ns: int = 0
    step: int = 1

    @property
    def count(self) -> int:
        """Number of commits that were timed."""
        return sum(self._counts())

    @property
    def mean(self) -> float:
        """Mean in ns."""
        return self.total_ns / self.count if self.count else 0.0

    @property
    def p50(self) -> int:
        """Median in ns."""
        return self.percentile(50)

    @property
    def p99(self) -> int:
        """99th percentile in ns."""
        return self.percentile(99)

    @property
    def p999(self) -> int:
        """99.9th percentile in ns."""
        return self.percentile(99.9)

    def percentile(self, percent: float) -> int:
        """The latency in ns that this percentage of the commits does not exceed. ``percent``: 0 to 100, else ``ValueError``."""
        return min(FINE.percentile(self._counts(), percent), self.max_ns)

    def buckets(self) -> list[tuple[int, int]]:
        """(longest latency in ns, number of commits) for each counter that is not 0, shortest first."""
        return [(FINE.longest_in(counter), count) for counter, count in enumerate(self._counts()) if count]

    def since(self, earlier: LatencyHistogram) -> LatencyHistogram:
        """The commits after an earlier snapshot of the same handle. ``max_ns`` is at most 1/128 too high."""
        counts = array("Q", map(sub, self._counts(), earlier._counts())) if earlier.counters else self._counts()
        longest = min(FINE.percentile(counts, 100), self.max_ns)
        return LatencyHistogram(counts.tobytes(), self.total_ns - earlier.total_ns, longest, self.step)

    def as_dict(self) -> dict[str, float]:
        """The figures as plain values, ready for JSON, without the counters."""
        return {
            "count": self.count,
            "mean_ns": self.mean,
            "p50_ns": self.p50,
            "p99_ns": self.p99,
            "p999_ns": self.p999,
            "max_ns": self.max_ns,
            "step": self.step,
        }

    def as_hdr(self) -> Any:
        """The same as an ``hdrh.histogram.HdrHistogram``, to merge, encode or plot it.

        Needs the package hdrhistogram: ``pip install 'pmwal[metrics]'``, else ``ImportError``.
        """
        try:
            from hdrh.histogram import HdrHistogram  # noqa: PLC0415  (of an extra, and only for this)
        except ImportError as error:
            raise ImportError("as_hdr() needs the package hdrhistogram: pip install 'pmwal[metrics]'") from error
        histogram = HdrHistogram(1, NS_MAX, 2)
        for longest, count in self.buckets():
            histogram.record_value(longest, count)
        return histogram

    def __repr__(self) -> str:
        """The figures; the counters are thousands of bytes."""
        return f"<{self.count} commits timed: p50 {self.p50} ns, p99 {self.p99} ns, p99.9 {self.p999} ns, max {self.max_ns} ns>"

    def _counts(self) -> array[int]:
        return array("Q", self.counters)


@dataclass(frozen=True, slots=True)
class LiveLatency:
    """Commit latencies of a writer since it opened the log, from its live page: ``COARSE`` counters of 32 bits that wrap.

    Percentiles and the maximum are at most 1/8 too high, never too low. ``step``: as for ``LatencyHistogram``. A live page may be
    old or damaged; any bytes give integers.

    >>> def counted(*durations):
    ...     counts = array("I", bytes(4 * COARSE.counters))
    ...     for ns in durations:
    ...         counts[COARSE.counter_of(ns)] += 1
    ...     return LiveLatency(1, counts.tobytes())
    >>> counted(100, 2000, 3000).since(counted(3000)).as_dict()
    {'count': 2, 'p50_ns': 103, 'p99_ns': 2047, 'max_ns': 2047, 'step': 1}
    """

    step: int
    counters: bytes

    def buckets(self) -> list[tuple[int, int]]:
        """(longest latency in ns, number of commits) for each counter that is not 0, shortest first."""
        return [(COARSE.longest_in(counter), count) for counter, count in enumerate(self._counts()) if count]

    def since(self, earlier: LiveLatency) -> LiveLatency:
        """The commits after an earlier snapshot of the same writer, if no counter counted 2^32 commits in between."""
        differences = map(sub, self._counts(), earlier._counts())
        return LiveLatency(self.step, array("I", (difference % _WRAP for difference in differences)).tobytes())

    def as_dict(self) -> dict[str, int]:
        """The figures as plain values; all but ``step`` are 0 until a commit was timed."""
        counts = self._counts()
        return {
            "count": sum(counts),
            "p50_ns": COARSE.percentile(counts, 50),
            "p99_ns": COARSE.percentile(counts, 99),
            "max_ns": COARSE.percentile(counts, 100),
            "step": self.step,
        }

    def _counts(self) -> array[int]:
        return array("I", self.counters)


class LatencyRecorder:
    """The counters of a handle with the engine in Python."""

    def __init__(self) -> None:
        self._counters = array("Q", bytes(8 * FINE.counters))
        self._total_ns = self._max_ns = 0

    def add(self, ns: int) -> None:
        """Count one commit."""
        self._counters[FINE.counter_of(ns)] += 1
        self._total_ns += ns
        self._max_ns = max(self._max_ns, ns)

    def snapshot(self, step: int) -> LatencyHistogram:
        """The counters as they are now."""
        return LatencyHistogram(self._counters.tobytes(), self._total_ns, self._max_ns, step)
